# SPDX-License-Identifier: Apache-2.0
"""Finds brain masks and tissue maps of other pipelines (``--derivatives NAME=PATH``)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bids_app.bids.inputs import Scan, SessionRecord, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

TISSUES = ('probseg_gm', 'probseg_wm', 'probseg_csf')
KINDS = ('brain_mask', *TISSUES)
"""What can be replaced: keys of the table of derivatives."""

_NAME = re.compile(r'(?P<entities>sub-.+)_(?P<suffix>mask|probseg)\.nii(?:\.gz)?')
_OF_THE_FILE = ('desc', 'label', 'space')
"""Entities that say what a file holds; all others say which scan it came from."""


@dataclass(frozen=True)
class Precomputed:
    """A file that replaces one of ours.

    Attributes
    ----------
    kind : str
        One of :data:`KINDS`.
    name : str
        That of its folder on the command line.
    path : Path
        The file.
    """

    kind: str
    name: str
    path: Path


def add_precomputed(
    records: Sequence[SessionRecord], derivatives: Mapping[str, Path]
) -> list[SessionRecord]:
    """Return the records with what the folders of other pipelines hold for them.

    Parameters
    ----------
    records : sequence of SessionRecord
        What was found in the raw data.
    derivatives : mapping of str to Path
        Folders by their names. The first one that has something is taken, for the mask and for
        the tissue maps apart.

    Returns
    -------
    list of SessionRecord
        In the same order. Files that would fit and were not taken are in ``skipped``.
    """
    if not derivatives:
        return list(records)
    return [
        # A T1w that is synthesised here has a grid that nobody else knows.
        record
        if record.reference is None or record.dwi_alone
        else _with_files(record, record.reference, derivatives)
        for record in records
    ]


def _with_files(
    record: SessionRecord, scan: Scan, derivatives: Mapping[str, Path]
) -> SessionRecord:
    """Look for the files of one session."""
    found: dict[str, Precomputed] = {}
    skipped: list[Skipped] = []
    for name, root in derivatives.items():
        chosen: dict[str, Precomputed] = {}
        for kind in KINDS:
            candidates = _candidates(root, record, scan, kind)
            if candidates:
                chosen[kind] = Precomputed(kind, name, candidates[0])
                skipped += [
                    Skipped(path, f'{candidates[0].name} was taken: it fits the scan better')
                    for path in candidates[1:]
                ]
        maps = [chosen.pop(kind) for kind in TISSUES if kind in chosen]
        if 0 < len(maps) < len(TISSUES):
            skipped += [
                Skipped(one.path, 'tissue maps are taken only if GM, WM and CSF are all there')
                for one in maps
            ]
        elif maps:
            chosen.update((one.kind, one) for one in maps)
        for kind, one in chosen.items():
            if kind in found:
                skipped.append(Skipped(one.path, f'that of {found[kind].name} was taken'))
            else:
                found[kind] = one
    return replace(
        record,
        precomputed=tuple(found[kind] for kind in KINDS if kind in found),
        skipped=(*record.skipped, *skipped),
    )


def _candidates(root: Path, record: SessionRecord, scan: Scan, kind: str) -> list[Path]:
    """List the files of a kind that belong to a session, the best first."""
    wanted = _entities(scan.path.name.split('.')[0].rpartition('_')[0])
    for session in dict.fromkeys((wanted.get('ses'), record.session)):
        folder = root / f'sub-{record.subject}'
        if session:
            folder /= f'ses-{session}'
        ranked = []
        for path, suffix, entities in _listed(folder / 'anat'):
            if _kind(suffix, entities, record.reference_name) != kind:
                continue
            own = {key: value for key, value in entities.items() if key not in _OF_THE_FILE}
            if own.get('sub') != record.subject or own.get('ses') != session:
                continue
            others = {key: value for key, value in own.items() if key not in ('sub', 'ses')}
            if any(_plain(wanted.get(key)) != _plain(value) for key, value in others.items()):
                continue  # of another scan of this session, or in another space or resolution
            ranked.append((-len(others), path.name, path))
        if ranked:
            return [path for _, _, path in sorted(ranked)]
    return []


def _listed(folder: Path) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """List masks and tissue maps of a folder with suffix and entities."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError:
        return
    for name in names:
        if match := _NAME.fullmatch(name):
            yield folder / name, match['suffix'], _entities(match['entities'])


def _kind(suffix: str, entities: Mapping[str, str], reference: str) -> str | None:
    """Return what a file replaces; None for one in another space or with another content."""
    if entities.get('space', reference) != reference:
        return None
    label, desc = entities.get('label'), entities.get('desc')
    if suffix == 'mask':
        return 'brain_mask' if desc == 'brain' and label is None else None
    return f'probseg_{label.lower()}' if label in ('GM', 'WM', 'CSF') and desc is None else None


def _entities(text: str) -> dict[str, str]:
    return dict(part.split('-', 1) for part in text.split('_') if '-' in part)


def _plain(label: str | None) -> str | None:
    """Return a label without the zeros in front of a number: run-01 is run-1."""
    return label.lstrip('0') or '0' if label is not None and label.isdigit() else label
