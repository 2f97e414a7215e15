# SPDX-License-Identifier: Apache-2.0
"""What is to be predicted: a column of the table of the study, as classes or as a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

MIN_SUBJECTS = 20
MIN_PER_CLASS = 8
TASKS = ('auto', 'classes', 'number')
_CODES = 5
"""A column of at most so many different whole numbers is taken for codes of classes."""


@dataclass(frozen=True)
class Target:
    """The sessions that are used and what is known of them.

    Attributes
    ----------
    column : str
        Name.
    classes : tuple of str
        Values, sorted; empty where a number is predicted.
    values : ndarray, shape (sessions,)
        Position in ``classes`` (int64), or the number (float64).
    subjects : ndarray of str, shape (sessions,)
        Whose sessions they are.
    rows : ndarray of int, shape (sessions,)
        Rows of the table.
    excluded : tuple of (int, str)
        Rows that are not used, and why.
    warning : str
        Why the result means nothing; empty if there are enough subjects.
    """

    column: str
    classes: tuple[str, ...]
    values: np.ndarray
    subjects: np.ndarray
    rows: np.ndarray
    excluded: tuple[tuple[int, str], ...]
    warning: str = ''

    @property
    def n_outputs(self) -> int:
        """Outputs of a network: one for a number or two classes, else one for each class."""
        return len(self.classes) if len(self.classes) > 2 else 1

    def counts(self) -> dict[str, int]:
        """Subjects of each class; a subject with sessions of two classes counts in both."""
        pairs = set(zip(self.subjects, self.values, strict=True))
        return {
            name: sum(int(value == code) for _, value in pairs)
            for code, name in enumerate(self.classes)
        }


def read_target(
    frame: pd.DataFrame,
    column: str,
    unusable: Mapping[int, str],
    *,
    task: str = 'auto',
    force: bool = False,
) -> Target:
    """Read a column.

    Parameters
    ----------
    frame : DataFrame
        One row per session with ``participant_id``.
    column : str
        What is to be predicted.
    unusable : mapping of int to str
        Rows without a usable map, and why.
    task : {'auto', 'classes', 'number'}
        ``auto`` takes text, and numbers of at most five different whole values, for classes.
    force : bool
        Go on with too few subjects.

    Returns
    -------
    Target

    Raises
    ------
    UsageError
        If there is no such column, it holds one value alone, or there are too few subjects.
    """
    if task not in TASKS:
        raise UsageError(f'classification task {task!r}: choose one of {", ".join(TASKS)}')
    if column not in frame.columns:
        known = ', '.join(name for name in frame.columns if not _internal(name))
        raise UsageError(
            f'cannot classify by {column!r}: no such column in participants.tsv or sessions.tsv '
            f'(there: {known or "none"})'
        )
    excluded = dict(unusable)
    for row, value in enumerate(frame[column]):
        if row not in excluded and _missing(value):
            excluded[row] = f'no value of {column}'
    used = [row for row in range(len(frame)) if row not in excluded]
    numeric = frame[column].dtype.kind in 'fiu'
    found = [frame[column].iloc[row] for row in used]
    if task == 'number' and not numeric:
        raise UsageError(f'cannot predict {column!r} as a number: it holds text')
    whole = numeric and all(float(value).is_integer() for value in found)
    if task == 'number' or (
        task == 'auto' and numeric and not (whole and len(set(found)) <= _CODES)
    ):
        return _number(frame, column, used, excluded, force)
    return _classes(frame, column, used, excluded, force, numeric)


def _number(
    frame: pd.DataFrame, column: str, used: list[int], excluded: dict[int, str], force: bool
) -> Target:
    values = np.array([float(frame[column].iloc[row]) for row in used])
    subjects = _subjects(frame, used)
    number = len(set(subjects))
    if number < 4 or np.ptp(values) == 0:
        raise UsageError(
            f'cannot predict {column!r}: {number} subjects with a map and a value'
            + ('' if number < 4 else ', all with the same')
        )
    warning = _too_few(column, number, {}, force)
    return Target(column, (), values, subjects, np.array(used), _sorted(excluded), warning)


def _classes(
    frame: pd.DataFrame,
    column: str,
    used: list[int],
    excluded: dict[int, str],
    force: bool,
    numeric: bool,
) -> Target:
    names = {
        row: f'{frame[column].iloc[row]:g}' if numeric else str(frame[column].iloc[row])
        for row in used
    }
    pairs = {(frame['participant_id'].iloc[row], names[row]) for row in used}
    counts = Counter(name for _, name in pairs)
    warning = _too_few(column, len({subject for subject, _ in pairs}), counts, force)
    for row in list(used):
        if counts[names[row]] < 2:
            used.remove(row)
            excluded[row] = f'{column} {names[row]}: the only subject of its class'
    classes = tuple(sorted({names[row] for row in used}))
    if len(classes) < 2:
        raise UsageError(
            f'cannot classify by {column!r}: two classes of at least two subjects with maps are '
            f'needed, and there are {_words(counts)}'
        )
    codes = np.array([classes.index(names[row]) for row in used])
    return Target(
        column, classes, codes, _subjects(frame, used), np.array(used), _sorted(excluded), warning
    )


def _too_few(column: str, number: int, counts: Mapping[str, int], force: bool) -> str:
    """Return the warning that is due, or raise it."""
    few = {name: count for name, count in counts.items() if count < MIN_PER_CLASS}
    if number >= MIN_SUBJECTS and not few:
        return ''
    if few:
        text = f'too few subjects to classify by {column!r}: {_words(counts)}'
    else:
        text = f'too few subjects to predict {column!r}: {number}'
    if not force:
        raise UsageError(
            f'{text} (at least {MIN_SUBJECTS}, and {MIN_PER_CLASS} in each class, are needed for '
            'a result that means anything): set rare classes to n/a, or use --force'
        )
    return f'{text}. The result means nothing: it shows that the program runs, no more.'


def _words(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{name} {count}' for name, count in sorted(counts.items())) or 'none'


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))


def _subjects(frame: pd.DataFrame, used: list[int]) -> np.ndarray:
    return np.array([str(frame['participant_id'].iloc[row]) for row in used])


def _sorted(excluded: Mapping[int, str]) -> tuple[tuple[int, str], ...]:
    return tuple(sorted(excluded.items()))


def _internal(name: str) -> bool:
    return name in ('participant_id', 'session_id', 'status')
