# SPDX-License-Identifier: Apache-2.0
"""Splitting the participants of a study over the jobs of a cluster (``--batch i/n``)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bids_app.errors import UsageError


def parse_batch(text: str) -> tuple[int, int]:
    """Return number and count of ``i/n``.

    Raises
    ------
    UsageError
        If it has another form, or if ``i`` is not one of 1 to ``n``.

    Examples
    --------
    >>> parse_batch('2/10')
    (2, 10)
    """
    found = re.fullmatch(r'(\d+)/(\d+)', text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(
            f'--batch cannot be "{text}"; use NUMBER/COUNT with a number from 1, such as 2/10'
        )
    return int(found[1]), int(found[2])


def take_batch(labels: Iterable[str], batch: str | None) -> list[str]:
    """Return the participants of one batch.

    The sorted labels are dealt out like cards. Every participant is in exactly one batch, the
    sizes differ by one at most, and scanners or sites that follow each other in the labels are
    spread over all batches. A participant that is added behind the others moves none of them.

    Parameters
    ----------
    labels : iterable of str
        All participants; order and repetitions do not matter.
    batch : str or None
        ``i/n``; None for all participants.

    Returns
    -------
    list of str
        Sorted; empty if there are fewer participants than batches.

    Examples
    --------
    >>> take_batch(['05', '01', '02', '04', '03'], '1/2')
    ['01', '03', '05']
    """
    ordered = sorted(set(labels))
    if batch is None:
        return ordered
    number, count = parse_batch(batch)
    return ordered[number - 1 :: count]
