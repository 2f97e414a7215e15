# SPDX-License-Identifier: Apache-2.0
"""What there is to process: one record per subject and session, with what was skipped and why."""

from __future__ import annotations

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids import choice, gradients
from bids_app.bids.diffusion import choose_runs
from bids_app.bids.filters import QUERIES, match_filters
from bids_app.bids.layout import (
    DATATYPES,
    GRADIENTS,
    IMAGES,
    LABEL,
    open_layout,
    session_labels,
    subject_labels,
)
from bids_app.bids.outputs import SYNTHESIZED
from bids_app.bids.reference import stand_in
from bids_app.cluster.batches import take_batch
from bids_app.errors import NoInputError

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

    from bids_app.bids.precomputed import Precomputed
    from bids_app.config import RunConfig

MAX_NAMED = 5
"""Participants that a message names; where thousands are missing, the first ones will do."""


@dataclass(frozen=True)
class Scan:
    """One image that was chosen.

    ``entities`` has pybids' names (``acquisition``, ``run``, ...) and string values.
    ``bval`` and ``bvec`` are set for diffusion images only.
    """

    path: Path
    suffix: str
    entities: Mapping[str, str]
    bval: Path | None = None
    bvec: Path | None = None


@dataclass(frozen=True)
class Skipped:
    """One image that was found and is not used."""

    path: Path
    reason: str


@dataclass(frozen=True)
class SessionRecord:
    """Everything that is known about one session before it is processed.

    Labels are without ``sub-`` and ``ses-``. ``session`` is ``None`` for a subject without
    sessions, and where one result per subject is asked for. ``stand_in`` is what takes the place
    of a T1w where there is none: the T2w, the FLAIR or another anatomical image. ``precomputed``
    are the files of other pipelines that replace ours. ``dwi`` are diffusion runs that belong
    together; ``no_tensor`` says why they do not allow a tensor, ``dwi_alone`` that they are all
    there is, so that a T1w is synthesised from them.
    """

    subject: str
    session: str | None
    t1w: Scan | None = None
    t2w: Scan | None = None
    flair: Scan | None = None
    dwi: tuple[Scan, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    note: str = field(default='', compare=False)
    precomputed: tuple[Precomputed, ...] = ()
    stand_in: Scan | None = None
    dwi_alone: bool = False
    no_tensor: str = ''

    @property
    def reference(self) -> Scan | None:
        """The image on whose grid everything is computed, or from which that image is made."""
        return self.t1w or self.stand_in or (self.dwi[0] if self.dwi_alone else None)

    @property
    def reference_name(self) -> str:
        """What results call their grid: ``T1w``, also for a UNIT1, or the stand-in's suffix.

        It is :data:`bids_app.bids.outputs.SYNTHESIZED` where there are diffusion images only.
        """
        if self.dwi_alone:
            return SYNTHESIZED
        return self.stand_in.suffix if self.t1w is None and self.stand_in is not None else 'T1w'

    @property
    def contrasts(self) -> tuple[Scan, ...]:
        """Further anatomical images, which are brought to the grid of the reference."""
        return tuple(scan for scan in (self.t2w, self.flair)
                     if scan is not None and scan is not self.reference)  # fmt: skip

    @property
    def label(self) -> str:
        """Name of the session as files carry it, ``sub-01_ses-1``."""
        return f'sub-{self.subject}' + (f'_ses-{self.session}' if self.session else '')

    @property
    def problem(self) -> str | None:
        """Say why the session cannot be processed; ``None`` if it can."""
        if self.reference is not None:
            return None
        if self.note:
            return self.note
        candidates = [s for s in self.skipped if s.path.name.split('.')[0].endswith('_T1w')]
        if candidates:
            return f'no usable T1w image ({candidates[0].reason})'
        if self.t2w or self.flair:  # only where nothing may stand in for a T1w
            return 'no T1w or UNIT1 image, which --reference T1w asks for'
        lost = [s for s in self.skipped if s.path.name.split('.')[0].endswith('_dwi')]
        if lost:
            return f'no anatomical image, and no usable diffusion image ({lost[0].reason})'
        if self.dwi or self.skipped:
            return 'no anatomical image that can be used'
        return 'no anatomical image'


@dataclass(frozen=True)
class _Image:
    """One file of the index, with its place in the folders and the entities of its name."""

    path: Path
    subject: str
    session: str | None
    entities: dict[str, str]

    @property
    def suffix(self) -> str:
        return self.entities.get('suffix', '')


def collect_sessions(config: RunConfig) -> list[SessionRecord]:
    """Find and choose the images of every asked session.

    Parameters
    ----------
    config : RunConfig
        Of it ``bids_dir``, ``participant_label``, ``session_label``, ``batch``, ``bids_filters``,
        ``bids_database_dir``, ``reference`` and ``subject_anatomical_reference`` are used.

    Returns
    -------
    list of SessionRecord
        Sorted by subject and session. A session that cannot be processed is among them, with its
        ``problem``.

    Raises
    ------
    NoInputError
        If an asked participant or session does not exist, or there are no subjects at all.
    """
    bids_dir = Path(os.path.abspath(config.bids_dir))
    subjects = take_batch(find_participants(bids_dir, config.participant_label), config.batch)
    if not subjects:  # more batches than participants
        return []
    everyone = config.participant_label is None and config.batch is None
    asked = None if everyone else subjects
    layout = open_layout(bids_dir, asked, config.bids_database_dir)
    images = _catalogue(layout, bids_dir, set(subjects))
    matches = match_filters(layout, config.bids_filters)
    tables = [Path(f.path) for f in layout.get(extension=list(GRADIENTS))]
    finder = gradients.GradientFinder(bids_dir, tables)

    by_session: dict[tuple[str, str | None], list[_Image]] = defaultdict(list)
    for image in images:
        by_session[image.subject, image.session].append(image)

    records = []
    for subject in subjects:
        if not LABEL.fullmatch(subject):
            records.append(_not_a_label(subject, None))
            continue
        sessions = _sessions_of(config, subject, by_session)
        records += [
            _choose(subject, session, by_session.get((subject, session), []), matches, config,
                    finder)
            if session is None or LABEL.fullmatch(session) else _not_a_label(subject, session)
            for session in sessions
        ]  # fmt: skip
    records = _add_missing_sessions(records, subjects, config.session_label)
    if config.subject_anatomical_reference == 'first-lex':
        records = _first_of_each_subject(records)
    return records


def _not_a_label(subject: str, session: str | None) -> SessionRecord:
    """Return the record of a folder whose name must not get into names of files and texts."""
    folder = f'sub-{subject}' if session is None else f'ses-{session}'
    note = f'the folder {ascii(folder)} has a name that is not a label of letters and digits'
    return SessionRecord(_printable(subject), session and _printable(session), note=note)


def _printable(label: str) -> str:
    return label if LABEL.fullmatch(label) else ascii(label)[1:-1]


def find_participants(bids_dir: Path, asked: tuple[str, ...] | None) -> list[str]:
    """List the participants to process, all of the data set where ``asked`` is ``None``.

    Raises
    ------
    NoInputError
        If one of those asked for has no folder; the message names it.
    """
    there = subject_labels(bids_dir)
    if not there:
        raise NoInputError(
            f'no sub-* folder in {bids_dir}: is this the root of the data set? '
            'In a container, check that the folder is mounted (-v/--bind HOST:CONTAINER:ro)'
        )
    if asked is None:
        return there
    known = set(there)
    missing = [label for label in asked if label not in known]
    if missing:
        named = missing[:MAX_NAMED]
        guesses = [guess for label in named for guess in _guess(label, there)]
        hint = f'; did you mean {", ".join(guesses)}?' if guesses else ''
        more = f' and {len(missing) - len(named)} more' if len(missing) > len(named) else ''
        raise NoInputError(
            f'no folder for participant {", ".join(f"sub-{m}" for m in named)}{more} in {bids_dir}'
            f'{hint} ({len(there)} participants are there; in a container, check that '
            'the folder is mounted)'
        )
    return sorted(set(asked))


def _guess(label: str, there: list[str]) -> list[str]:
    """Find a label that differs by padding zeros or a letter."""
    padded = [t for t in there if t.lstrip('0') == label.lstrip('0')]
    return padded[:1] or difflib.get_close_matches(label, there, n=1)


def _catalogue(layout: BIDSLayout, bids_dir: Path, subjects: set[str]) -> list[_Image]:
    """List all images of the index that belong to the subjects."""
    root = os.path.join(str(layout.root), '')
    images = []
    for file in layout.get(extension=list(IMAGES), datatype=list(DATATYPES)):
        parts = str(file.path).removeprefix(root).split('/')
        subject = parts[0].removeprefix('sub-')
        if subject not in subjects:
            continue
        session = parts[1][4:] if parts[1].startswith('ses-') else None
        entities = {name: str(value) for name, value in file.entities.items()}
        images.append(_Image(bids_dir.joinpath(*parts), subject, session, entities))
    return sorted(images, key=lambda image: image.path)


def _sessions_of(
    config: RunConfig, subject: str, by_session: Mapping[tuple[str, str | None], Any]
) -> list[str | None]:
    """List the sessions of a subject that are asked for; ``None`` is the subject's own folder."""
    sessions: list[str | None] = list(session_labels(config.bids_dir, subject))
    if config.session_label is not None:
        return [s for s in sessions if s in config.session_label]
    if not sessions or (subject, None) in by_session:
        sessions.insert(0, None)
    return sessions


def _choose(
    subject: str,
    session: str | None,
    images: Iterable[_Image],
    matches: Mapping[str, set[str]],
    config: RunConfig,
    finder: gradients.GradientFinder,
) -> SessionRecord:
    """Choose the images of one session."""
    filters, only_t1w = config.bids_filters, config.reference == 'T1w'
    skipped: list[Skipped] = []
    candidates: dict[str, list[_Image]] = {modality: [] for modality in QUERIES}
    for image in images:
        modality, reason = _modality(image, matches, filters, finder.bids_dir)
        if modality is None:
            skipped.append(Skipped(image.path, reason))
        else:
            candidates[modality].append(image)

    chosen: dict[str, Scan | None] = {}
    for modality in ('t1w', 't2w', 'flair'):
        ordered = sorted(candidates[modality], key=_rank)
        chosen[modality] = None
        if ordered:
            best = ordered[0]
            chosen[modality] = Scan(best.path, best.suffix, best.entities)
            skipped += [
                Skipped(
                    other.path,
                    f'{best.path.name} was taken: {choice.difference(_rank(best), _rank(other))}',
                )
                for other in ordered[1:]
            ]
    instead, unused = _stand_in(chosen, candidates['other'], only_t1w)
    skipped += unused

    dwi = []
    for image in candidates['dwi']:
        bval = finder.find(image.path, '.bval')
        bvec = finder.find(image.path, '.bvec')
        if bval is None or bvec is None:
            missing = ' and '.join(n for n, f in (('bval', bval), ('bvec', bvec)) if f is None)
            skipped.append(Skipped(image.path, f'no {missing} file'))
        else:
            dwi.append(Scan(image.path, image.suffix, image.entities, bval, bvec))
    alone = chosen['t1w'] is None and instead is None and not only_t1w
    no_tensor = ''
    if dwi and (alone or 'dwi' in config.modules):  # to read the tables takes time
        found = choose_runs(dwi, finder.bids_dir, config.b0_threshold)
        dwi, no_tensor = list(found.runs), found.no_tensor
        skipped += found.skipped
    return SessionRecord(
        subject, session, **chosen, dwi=tuple(dwi),
        skipped=tuple(sorted(skipped, key=lambda s: s.path)), stand_in=instead,
        dwi_alone=alone and bool(dwi), no_tensor=no_tensor,
    )  # fmt: skip


def _stand_in(
    chosen: Mapping[str, Scan | None], others: Iterable[_Image], only_t1w: bool
) -> tuple[Scan | None, list[Skipped]]:
    """Choose what takes the place of a missing T1w; list the other images that do not."""
    if chosen['t1w'] is not None or only_t1w:
        return None, [Skipped(other.path, f'{other.suffix} images are used only where there is '
                              'no T1w, and --reference allows it')
                      for other in others]  # fmt: skip
    ordered = sorted(others, key=lambda image: (image.suffix, _rank(image)))
    scans = [Scan(image.path, image.suffix, image.entities) for image in ordered]
    found = stand_in([scan for scan in (chosen['t2w'], chosen['flair'], *scans) if scan])
    return found, [
        Skipped(scan.path, f'{found.path.name} stands in for the T1w: it is sharper')
        for scan in scans if found is not None and scan is not found
    ]  # fmt: skip


def _modality(
    image: _Image,
    matches: Mapping[str, set[str]],
    filters: Mapping[str, Mapping[str, Any]],
    bids_dir: Path,
) -> tuple[str | None, str]:
    """Return what an image is taken for, or ``None`` and why it is not taken."""
    named = image.entities.get('subject'), image.entities.get('session')
    if named != (image.subject, image.session):
        return None, 'its name does not belong to the folder it lies in'
    if re.search(r'_(desc|space)-', image.path.name):
        return None, 'a derivative among the raw data'
    relative = image.path.relative_to(bids_dir).as_posix()
    rejected = None
    for modality, query in QUERIES.items():
        asked = filters.get(modality, {})
        if modality in matches:
            if relative not in matches[modality]:
                if image.suffix in query['suffix']:
                    rejected = f'does not pass the filter of {modality}'
                continue
        elif (
            image.suffix not in query['suffix']
            or image.entities['datatype'] != (query['datatype'])
        ):
            continue
        reason = choice.unsuitable(image.entities, asked)
        return (modality, '') if reason is None else (None, reason)
    return None, rejected or f'{image.suffix} images are not used'


def _rank(image: _Image) -> tuple:
    return choice.rank(image.entities, image.path.name)


def _add_missing_sessions(
    records: list[SessionRecord], subjects: list[str], asked: tuple[str, ...] | None
) -> list[SessionRecord]:
    """Add a record for every asked session that a subject does not have."""
    if asked is None:
        return records
    there = {(r.subject, r.session) for r in records}
    missing = [label for label in asked if not any((s, label) in there for s in subjects)]
    if missing:
        raise NoInputError(
            f'no session {", ".join(f"ses-{m}" for m in missing)} for '
            + (f'sub-{subjects[0]}' if len(subjects) == 1 else 'any of the participants')
        )
    records = records + [
        SessionRecord(subject, label, note=f'there is no folder ses-{label}')
        for subject in subjects
        for label in asked
        if (subject, label) not in there
    ]
    return sorted(records, key=lambda r: (r.subject, r.session or ''))


def _first_of_each_subject(records: list[SessionRecord]) -> list[SessionRecord]:
    """Keep one session of every subject and name it after the subject alone.

    It is the first one with a T1w, else the first one with another anatomical image, else the
    first one that can be processed.
    """
    by_subject: dict[str, list[SessionRecord]] = defaultdict(list)
    for record in records:
        by_subject[record.subject].append(record)
    kept = []
    for sessions in by_subject.values():
        first = min(sessions, key=lambda r: (r.t1w is None, r.problem is not None, r.dwi_alone))
        others = [r for r in sessions if r is not first]
        skipped = list(first.skipped)
        for record in others:
            scans = (record.t1w or record.stand_in, *record.contrasts, *record.dwi)
            reason = f'{first.label} was taken: one session per subject was asked for'
            skipped += [Skipped(scan.path, reason) for scan in scans if scan is not None]
            skipped += record.skipped
        kept.append(replace(first, session=None, skipped=tuple(skipped)))
    return kept
