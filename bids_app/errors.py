# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can foresee and mend.

Every message is one line that says what went wrong, where, and how to fix it; the command line
prints that line without a traceback and leaves with the error's exit code.
"""

from __future__ import annotations

import errno


class AnatNetError(Exception):
    """Base of all foreseeable errors: exit code 1, a run that could not do its work."""

    exit_code = 1


class UsageError(AnatNetError):
    """The command line or the configuration asks for something that cannot be."""

    exit_code = 2


class InvalidBIDSError(AnatNetError):
    """The input folder is not a BIDS data set."""

    exit_code = 16


class NoInputError(AnatNetError):
    """No scan of the data set matches the request."""

    exit_code = 66


class SoftwareError(AnatNetError):
    """A step inside AnatNet failed before any scan could be processed."""

    exit_code = 70


class ImageError(AnatNetError):
    """A scan that cannot be processed; the other scans go on."""


class ModelError(AnatNetError):
    """A model folder that is missing, broken or does not match its card."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def storage_error(error: OSError) -> AnatNetError | None:
    """Return the error of a disk that takes no more; None for any other."""
    if error.errno not in _NO_ROOM:
        return None
    place = f' {error.filename}' if error.filename else ''
    return AnatNetError(
        f'cannot write{place}: {error.strerror}; make room, then the same command goes on'
    )
