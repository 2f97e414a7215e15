# SPDX-License-Identifier: Apache-2.0
"""What the data set says about its participants: ``participants.tsv`` and ``sessions.tsv``.

The tables are read from the raw data. A copy stays beside the derivatives, so that the group
level works when the raw data are gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bids_app.bids.files import MAX_TABLE_BYTES, read_text, write_if_different
from bids_app.reports.tables import number

if TYPE_CHECKING:
    from bids_app.group.derivatives import Study

LOGGER = logging.getLogger('anatnet.group')

PARTICIPANTS_COPY = 'group_participants.tsv'
SESSIONS_COPY = 'group_sessions.tsv'
DICTIONARY_COPY = 'group_participants.json'
MISSING = frozenset({'n/a', '', 'na', 'nan'})
"""Written for a missing value, in lower case; BIDS has only the first."""

Rows = dict[str, dict[str, str]]


class _Session(Protocol):
    subject: str
    session: str | None

    @property
    def participant_id(self) -> str: ...

    @property
    def session_id(self) -> str | None: ...


@dataclass
class Phenotypes:
    """Rows of the two tables.

    Attributes
    ----------
    participants : dict
        Rows by ``participant_id``.
    sessions : dict
        Rows by ``participant_id`` and ``session_id``.
    """

    participants: Rows = field(default_factory=dict)
    sessions: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)


def load(output_dir: Path, bids_dir: Path | None, sessions: Iterable[_Session]) -> Phenotypes:
    """Read both tables from the raw data or, where they are gone, from the copy."""
    result = Phenotypes()
    file = first_file(bids_dir, 'participants.tsv', output_dir, PARTICIPANTS_COPY)
    if file is not None:
        for row in read_phenotype(file):
            label = _with_prefix(row.get('participant_id'), 'sub-')
            if label is None:
                continue
            if label in result.participants:
                LOGGER.warning('%s has more than one row of %s: the first counts', file, label)
                continue
            result.participants[label] = row
    copied = Path(output_dir) / SESSIONS_COPY
    if bids_dir is None and copied.is_file():
        rows = read_phenotype(copied)
    else:
        subjects = sorted({record.subject for record in sessions if record.session})
        rows = [
            {'participant_id': f'sub-{subject}', **row}
            for subject in subjects
            if bids_dir is not None
            for row in _sessions_file(Path(bids_dir) / f'sub-{subject}', subject)
        ]
    for row in rows:
        label = _with_prefix(row.get('participant_id'), 'sub-')
        session = _with_prefix(row.get('session_id'), 'ses-')
        if label is not None and session is not None:
            result.sessions.setdefault((label, session), row)
    return result


def first_file(bids_dir: Path | None, name: str, output_dir: Path, copy: str) -> Path | None:
    """Return the file of the raw data, else its copy, else None."""
    for file in ([Path(bids_dir) / name] if bids_dir else []) + [Path(output_dir) / copy]:
        if file.is_file():
            return file
    return None


def columns_of(
    phenotypes: Phenotypes, sessions: Sequence[_Session]
) -> dict[str, list[str | None]]:
    """Return the columns of both tables for some sessions.

    Parameters
    ----------
    phenotypes : Phenotypes
        The tables.
    sessions : sequence
        Sessions; a row each.

    Returns
    -------
    dict of str to list
        Text; None for a missing value. A column that no session has a value in is kept. Where
        both tables have a column, the value of the session counts.
    """
    names: dict[str, None] = {}
    for row in (*phenotypes.participants.values(), *phenotypes.sessions.values()):
        names.update(dict.fromkeys(row))
    for name in ('participant_id', 'session_id'):
        names.pop(name, None)
    columns: dict[str, list[str | None]] = {}
    for name in names:
        values = []
        for record in sessions:
            own = phenotypes.sessions.get((record.participant_id, record.session_id or ''), {})
            value = _value(own.get(name))
            if value is None:
                value = _value(phenotypes.participants.get(record.participant_id, {}).get(name))
            values.append(value)
        columns[name] = values
    return columns


def keep_copy(study: Study) -> None:
    """Write the tables beside the derivatives; a warning where that cannot be."""
    if study.bids_dir is None:
        return
    try:
        for name, copy in (
            ('participants.tsv', PARTICIPANTS_COPY), ('participants.json', DICTIONARY_COPY),
        ):  # fmt: skip
            source = study.bids_dir / name
            if source.is_file():
                text = read_text(source, MAX_TABLE_BYTES, 'utf-8-sig', 'replace')
                write_if_different(study.output_dir / copy, text)
        rows = load(study.output_dir, study.bids_dir, study.sessions).sessions
        if rows:
            names = dict.fromkeys(
                ['participant_id', 'session_id', *(n for row in rows.values() for n in row)]
            )
            lines = ['\t'.join(names)]
            for (label, session), row in sorted(rows.items()):
                row = {**row, 'participant_id': label, 'session_id': session}
                lines.append('\t'.join(row.get(name) or 'n/a' for name in names))
            write_if_different(study.output_dir / SESSIONS_COPY, '\n'.join(lines) + '\n')
    except OSError as error:
        LOGGER.warning('cannot keep a copy of %s: %s', error.filename, error.strerror)
    except ValueError as error:
        LOGGER.warning('cannot keep a copy of the tables of the data set: %s', error)


def read_phenotype(path: Path) -> list[dict[str, str]]:
    """Read a table of a data set: one dict per line, all values as text.

    BIDS knows no quoting: a quotation mark inside a value is a character like any other. Quotes
    around a whole value, which spreadsheets add, are taken off.
    """
    try:
        text = read_text(path, MAX_TABLE_BYTES, 'utf-8-sig', 'replace')
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        LOGGER.warning('cannot read %s: %s', path, reason)
        return []
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    names = [_unquoted(name) for name in lines[0].split('\t')]
    return [
        {
            name: _unquoted(value)
            for name, value in zip(names, line.split('\t'), strict=False)
            if name
        }
        for line in lines[1:]
    ]


def _sessions_file(folder: Path, subject: str) -> list[dict[str, str]]:
    file = folder / f'sub-{subject}_sessions.tsv'
    return read_phenotype(file) if file.is_file() else []


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return text


def _with_prefix(label: str | None, prefix: str) -> str | None:
    """Write a label with its prefix, which some tables leave out."""
    if not label or label.lower() in MISSING:
        return None
    return label if label.startswith(prefix) else prefix + label


def _value(text: str | None) -> str | None:
    return None if text is None or text.lower() in MISSING else text


def as_numbers(values: Sequence[str | None], name: str = '') -> list[float | str | None]:
    """Return numbers if all values that are there are numbers, else the text.

    An ``age`` of ``89+``, as BIDS wants it for the oldest, counts as 89.
    """
    if name == 'age':
        values = [value.removesuffix('+') if value else value for value in values]
    numbers = [None if value is None else number(value) for value in values]
    pairs = zip(values, numbers, strict=True)
    if all((value is None) == (found is None) for value, found in pairs):
        return numbers
    return list(values)
