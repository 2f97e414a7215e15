# SPDX-License-Identifier: Apache-2.0
"""One logger for the whole app, to the terminal and to a file of the run."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

LOGGER_NAMES = ('anatnet', 'bids_app')
VERBOSE = 15
"""Level between debug and info: shown with ``-v``."""

_CONSOLE_FORMAT = '%(asctime)s %(levelname)s  %(message)s'
_FILE_FORMAT = '%(asctime)s %(levelname)-8s %(name)s  %(message)s'

logging.addLevelName(VERBOSE, 'VERBOSE')


class _Brief(logging.Formatter):
    """Time and message; the level only where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = f'{self.formatTime(record, "%H:%M:%S")}  '
        if record.levelno >= logging.WARNING:
            text += f'{record.levelname}: '
        text += record.getMessage()
        if record.exc_info:
            text += '\n' + self.formatException(record.exc_info)
        return text


class _LogFile(logging.FileHandler):
    """A file that is given up, with one warning, when the disk takes no more."""

    _given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._given_up:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._given_up = True
        logging.getLogger(LOGGER_NAMES[0]).warning(
            'Cannot write the log %s any more (%s)', self.baseFilename, error.strerror
        )


def console_level(verbose: int) -> int:
    """Turn the number of ``-v`` into a logging level: info, verbose, debug."""
    return (logging.INFO, VERBOSE, logging.DEBUG)[min(max(verbose, 0), 2)]


def setup_logging(verbose: int = 0) -> None:
    """Send the app's messages to standard error; calling it again replaces the handlers."""
    close_logging()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Brief())
    handler.setLevel(console_level(verbose))
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(handler)
    for name in ('nipype', 'nipype.workflow', 'nipype.interface', 'nipype.utils'):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose > 1 else logging.WARNING)


def add_log_file(path: Path, verbose: int = 0) -> None:
    """Send the app's messages to a file as well; a folder that cannot be written is a warning."""
    logger = logging.getLogger(LOGGER_NAMES[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding='utf-8')
    except OSError as error:
        logger.warning('Cannot write the log %s (%s)', path, error.strerror)
        return
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    handler.setLevel(min(console_level(verbose), VERBOSE))
    for name in LOGGER_NAMES:
        logging.getLogger(name).addHandler(handler)


def close_logging() -> None:
    """Close and remove the handlers of :func:`setup_logging` and :func:`add_log_file`."""
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            with contextlib.suppress(OSError, ValueError):
                handler.close()
        logger.propagate = True
