# SPDX-License-Identifier: Apache-2.0
"""Finds what the participant level has left, without the raw data.

Every folder is listed once (no index of the data set is made), and a session is what its state
file says, so that thousands of sessions are read in seconds.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids.outputs import Outputs, parameters, reference_blanks, table
from bids_app.errors import NoInputError, UsageError
from bids_app.group import phenotypes
from bids_app.reports.tables import number, read_tsv, total_intracranial_volume
from bids_app.resume import SessionState, read_state

if TYPE_CHECKING:
    import pandas as pd

LOGGER = logging.getLogger('anatnet.group')

VOLUMES = ('tiv', 'gm', 'wm', 'csf')
"""Columns of :meth:`Study.table` in mm^3."""

_STATE_SUFFIX = '_state.json'


@dataclass(frozen=True, order=True)
class MapFile:
    """One file of which a session may have several: per space, voxel size, smoothing or atlas.

    Attributes
    ----------
    kind : str
        Key of the table of outputs, such as ``vbm_gm``; smoothed maps have the kind of their
        source.
    space, res : str
        Labels, such as ``MNI152NLin2009aSym`` and ``1p5``; empty where the name has none.
    fwhm : float
        Full width at half maximum of the smoothing in mm, 0 for none.
    name : str
        File name.
    atlas : str
        Label of the atlas; empty where the name has none.
    key : str
        Key of the table of outputs.
    """

    kind: str
    space: str
    res: str
    fwhm: float
    name: str
    atlas: str = ''
    key: str = ''


@dataclass(frozen=True)
class SessionRecord:
    """One session of the derivatives.

    Attributes
    ----------
    subject, session : str
        Labels without prefix; ``session`` is None where there are no sessions.
    prefix : str
        First part of its file names, ``sub-01_ses-a``.
    status : str
        ``done``, ``failed``, or ``incomplete`` (no state, or outputs are missing).
    reason : str
        Why it is not done, in one line; empty if it is.
    files : dict of str to Path
        What is on disk, by the keys of ``bids/outputs.json``, and ``report``. Of files that
        exist once per space, voxel size, smoothing or atlas, the first is here and all are in
        ``template_files``.
    state : SessionState, optional
        What it was made from.
    template_files : tuple of MapFile
        Files in template space and tables of atlases, sorted.
    folder : Path
        Where they are.
    """

    subject: str
    session: str | None
    prefix: str
    status: str
    reason: str = ''
    files: dict[str, Path] = field(default_factory=dict)
    state: SessionState | None = None
    template_files: tuple[MapFile, ...] = ()
    folder: Path = Path()

    @property
    def participant_id(self) -> str:
        """Label as in ``participants.tsv``."""
        return f'sub-{self.subject}'

    @property
    def session_id(self) -> str | None:
        """Label as in ``sessions.tsv``."""
        return f'ses-{self.session}' if self.session else None

    @property
    def run(self) -> dict[str, Any]:
        """What its state says of the run: ``reference``, ``report`` and the like."""
        return self.state.run if self.state is not None else {}

    def volumes(self) -> dict[str, float | None]:
        """Read the volumes of :data:`VOLUMES` in mm^3; None for what is not there."""
        found: dict[str, float | None] = dict.fromkeys(VOLUMES)
        if 'tissue_morph' not in self.files:
            return found
        try:
            rows = read_tsv(self.files['tissue_morph'])
        except (OSError, ValueError) as error:
            LOGGER.warning('%s: cannot read its volumes: %s', self.prefix, error)
            return found
        for row in rows:
            name = (row.get('name') or '').lower()
            if name in found:
                found[name] = number(row.get('volume_mm3'))
        found['tiv'] = total_intracranial_volume(rows)
        return found


@dataclass(frozen=True)
class Study:
    """All sessions of a derivatives folder.

    Attributes
    ----------
    output_dir : Path
        The derivatives.
    bids_dir : Path, optional
        The raw data, if they are still there.
    sessions : tuple of SessionRecord
        Sorted by subject and session, the failed ones among them.
    """

    output_dir: Path
    bids_dir: Path | None
    sessions: tuple[SessionRecord, ...]

    @property
    def done(self) -> tuple[SessionRecord, ...]:
        """The finished sessions."""
        return tuple(record for record in self.sessions if record.status == 'done')

    def table(self) -> pd.DataFrame:
        """Return what is known of every session: one row each, in the order of ``sessions``.

        Returns
        -------
        DataFrame
            ``participant_id``, ``session_id`` (None without sessions), ``status``, the columns
            of ``participants.tsv`` and ``sessions.tsv``, and ``tiv``, ``gm``, ``wm``, ``csf`` in
            mm^3. A column of numbers is float (missing: NaN), any other is text (missing: None).
            Where both files have a column, the value of the session counts. A column of theirs
            with the name of one of ours gets ``_participants`` appended.
        """
        import pandas as pd

        columns = phenotypes.columns_of(
            phenotypes.load(self.output_dir, self.bids_dir, self.sessions), self.sessions
        )
        ours: dict[str, Sequence[Any]] = {
            'participant_id': [record.participant_id for record in self.sessions],
            'session_id': [record.session_id for record in self.sessions],
            'status': [record.status for record in self.sessions],
        }
        volumes = [record.volumes() for record in self.sessions]
        measured = {
            name: [float('nan') if row[name] is None else row[name] for row in volumes]
            for name in VOLUMES
        }
        merged = dict(ours)
        for name, values in columns.items():
            taken = name in ours or name in measured
            merged[f'{name}_participants' if taken else name] = phenotypes.as_numbers(values, name)
        merged.update(measured)
        frame = {
            name: pd.Series(values, dtype='float64' if _numeric(values) else object)
            for name, values in merged.items()
        }
        return pd.DataFrame(frame)

    def maps(
        self,
        kind: str = 'vbm_gm',
        fwhm: float | None = None,
        space: str | None = None,
        res: str | None = None,
    ) -> list[Path | None]:
        """Find one image in template space per session.

        Parameters
        ----------
        kind : str
            ``vbm_gm`` or ``vbm_wm`` (modulated), or another key of the table of outputs.
        fwhm : float, optional
            Smoothing in mm; 0 for none. Without it, the one that most sessions have, smoothed
            before unsmoothed.
        space, res : str, optional
            Template and resolution label; without them, those that most sessions have.

        Returns
        -------
        list of Path or None
            In the order of ``sessions``, None for those that are not done or have no such image.
        """
        choice = self.map_choice(kind, fwhm, space, res)
        if choice is None:
            return [None] * len(self.sessions)
        return [
            next(
                (record.folder / file.name for file in record.template_files
                 if (file.kind, file.fwhm, file.space, file.res) == choice),
                None,
            ) if record.status == 'done' else None
            for record in self.sessions
        ]  # fmt: skip

    def map_choice(
        self,
        kind: str = 'vbm_gm',
        fwhm: float | None = None,
        space: str | None = None,
        res: str | None = None,
    ) -> tuple[str, float, str, str] | None:
        """Return kind, FWHM (mm), space and resolution that :meth:`maps` takes; None if none."""
        counts = Counter(
            (file.kind, file.fwhm, file.space, file.res)
            for record in self.done
            for file in record.template_files
            if file.kind == kind
            and (fwhm is None or file.fwhm == fwhm)
            and (space is None or file.space == space)
            and (res is None or file.res == res)
        )
        if not counts:
            return None
        # Ties go to the wider smoothing, then to the name that sorts first.
        order = sorted(counts, key=lambda c: (c[1] == 0, -counts[c], -c[1], c[2], c[3]))
        return order[0]


def load_study(
    output_dir: Path,
    bids_dir: Path | None = None,
    participant_label: Sequence[str] | None = None,
    session_label: Sequence[str] | None = None,
) -> Study:
    """Find all sessions of a derivatives folder.

    Parameters
    ----------
    output_dir : Path
        The derivatives.
    bids_dir : Path, optional
        The raw data, for ``participants.tsv`` and ``sessions.tsv``; may be gone.
    participant_label, session_label : sequence of str, optional
        Labels without prefix to which the study is limited.

    Raises
    ------
    UsageError
        If a label is asked for that is not there.
    NoInputError
        If there is no folder, or no session in it.
    """
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        raise NoInputError(
            f'there are no results in {output_dir}; run the participant level first'
        )
    found: list[SessionRecord] = []
    subjects = _names(output_dir)
    wanted = None if participant_label is None else set(participant_label)
    for name in sorted(subjects):
        if not re.fullmatch(r'sub-[0-9a-zA-Z+]+', name) or not (output_dir / name).is_dir():
            continue
        if wanted is None or name.removeprefix('sub-') in wanted:
            found.extend(_sessions_of(output_dir, name.removeprefix('sub-'), subjects))
    if wanted is not None:
        missing = wanted - {record.subject for record in found}
        if missing:
            raise UsageError(
                f'{output_dir} has no results of participant {", ".join(sorted(missing))}'
            )
    if session_label is not None:
        missing = set(session_label) - {record.session for record in found}
        if missing:
            raise UsageError(f'{output_dir} has no session {", ".join(sorted(missing))}')
        found = [record for record in found if record.session in set(session_label)]
    if not found:
        raise NoInputError(
            f'there are no sessions in {output_dir}; run the participant level first'
        )
    raw = Path(bids_dir) if bids_dir is not None and Path(bids_dir).is_dir() else None
    return Study(output_dir, raw, tuple(found))


def _sessions_of(output_dir: Path, subject: str, top: set[str]) -> Iterator[SessionRecord]:
    """Yield the sessions of a subject: those with a state, and folders without one."""
    folder = output_dir / f'sub-{subject}'
    labels: set[str | None] = set()
    beginning = f'sub-{subject}'
    for name in _names(folder / 'log'):
        if not name.endswith(_STATE_SUFFIX):
            continue
        prefix = name.removesuffix(_STATE_SUFFIX)
        if prefix == beginning:
            labels.add(None)
        elif found := re.fullmatch(rf'{re.escape(beginning)}_ses-([0-9a-zA-Z+]+)', prefix):
            labels.add(found[1])
    for name in _names(folder):
        if name == 'anat':
            labels.add(None)
        elif found := re.fullmatch(r'ses-([0-9a-zA-Z+]+)', name):
            labels.add(found[1])
    if not labels:
        labels.add(None)
    for label in sorted(labels, key=lambda text: text or ''):
        yield _session(Outputs(output_dir, subject, label), top)


def _session(outputs: Outputs, top: set[str]) -> SessionRecord:
    """Read one session; every folder is listed once."""
    state = read_state(outputs.state_file)
    if state is not None:
        outputs.reference = str(state.run.get('reference', 'T1w'))
    listing = {
        folder: _names(outputs.session_dir / folder)
        for folder in {entry['folder'] for entry in table().values()}
    }
    files: dict[str, Path] = {}
    for key, entry in table().items():
        if not parameters(key):
            path = outputs.path(key)
            if path.name in listing[entry['folder']]:
                files[key] = path
    if outputs.path('report').name in top:
        files['report'] = outputs.path('report')
    maps = sorted(
        found
        for name in listing.get('anat', ())
        if (found := _template_file(name, outputs.prefix, outputs.reference)) is not None
    )
    folder = outputs.session_dir / 'anat'
    for found in maps:
        files.setdefault(found.key, folder / found.name)
    status, reason = _status(outputs, state, listing)
    return SessionRecord(
        outputs.subject, outputs.session, outputs.prefix, status, reason, files, state,
        tuple(maps), folder,
    )  # fmt: skip


def _status(
    outputs: Outputs, state: SessionState | None, listing: dict[str, set[str]]
) -> tuple[str, str]:
    """Tell whether a session is done and, if not, why."""
    if state is None:
        return 'incomplete', 'not finished: no state file (interrupted, or still running)'
    if state.status != 'done':
        return 'failed', ' '.join((state.error or 'no reason given').split())
    for name in sorted(state.outputs):
        folder, _, file = name.rpartition('/')
        room = folder.rpartition('/')[2]
        if room in listing and file not in listing[room]:
            return 'incomplete', f'output missing: {name}'
    return 'done', ''


def _template_file(name: str, prefix: str, reference: str = 'T1w') -> MapFile | None:
    """Read the name of a file of which there may be several; None for any other."""
    if not name.startswith(prefix + '_'):
        return None
    stem, dot, extension = name.removeprefix(prefix + '_').partition('.')
    *parts, suffix = stem.split('_')
    entities = dict(part.split('-', 1) for part in parts if '-' in part)
    texts = {**entities, 'suffix': suffix}
    place = (dot + extension, frozenset(texts))
    for key, patterns in _templates(reference).get(place, ()):
        labels: dict[str, str] = {}
        for part, pattern in patterns.items():
            found = re.fullmatch(pattern, texts[part])
            if found is None:
                break
            labels.update(found.groupdict())
        else:
            if labels.get('contrast') == reference_blanks(reference)['reference']:
                continue  # the reference itself
            return MapFile(
                key.removesuffix('_smooth'), labels.get('space', ''), labels.get('res', ''),
                float(labels.get('fwhm', '0').replace('p', '.')), name, labels.get('atlas', ''),
                key,
            )  # fmt: skip
    return None


@cache
def _templates(
    reference: str,
) -> dict[tuple[str, frozenset[str]], list[tuple[str, dict[str, str]]]]:
    """Return the entries with blanks by extension and names of entities.

    Each is its key and a pattern per entity and for the suffix, in which the blanks are groups.
    """
    found: dict[tuple[str, frozenset[str]], list[tuple[str, dict[str, str]]]] = {}
    for key, entry in table().items():
        if parameters(key):
            patterns = {
                part: re.sub(
                    r'\{(\w+)\}',
                    r'(?P<\1>[0-9a-zA-Z+]+?)',
                    _known(value, reference),
                )
                for part, value in {**entry['entities'], 'suffix': entry['suffix']}.items()
            }
            found.setdefault((entry['extension'], frozenset(patterns)), []).append((key, patterns))
    return found


def _known(text: str, reference: str) -> str:
    """Fill the blanks that the reference of a session fills."""
    for blank, value in reference_blanks(reference).items():
        text = text.replace(f'{{{blank}}}', value)
    return text


def _names(folder: Path) -> set[str]:
    """List a folder; empty where there is none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def _numeric(values: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, float) for value in values) and any(
        value is not None for value in values
    )
