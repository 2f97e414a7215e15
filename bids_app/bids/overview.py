# SPDX-License-Identifier: Apache-2.0
"""What ``--dry-run`` prints: per session what was found, chosen and skipped, and why."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from bids_app.bids.check import content_problem
from bids_app.bids.choice import RULE
from bids_app.bids.diffusion import RULE as DIFFUSION_RULE
from bids_app.bids.inputs import Scan, SessionRecord
from bids_app.bids.reference import SHARPEST

GROUP_FROM = 4
"""That many files skipped for the same reason share one line."""


_GIVEN = {'brain_mask': 'mask', 'probseg_gm': 'GM', 'probseg_wm': 'WM', 'probseg_csf': 'CSF'}


def overview(
    records: Sequence[SessionRecord], bids_dir: Path, segmentation: str = 'default'
) -> str:
    """Write a table of all sessions, then their number.

    Parameters
    ----------
    records : sequence of SessionRecord
        What :func:`bids_app.bids.inputs.collect_sessions` found.
    bids_dir : Path
        Root of the raw data set; paths are shown relative to it.
    segmentation : str
        What labels the structures, ``default`` or ``deepnat``.

    Returns
    -------
    str
        Lines for a person to read, in three columns: use, file, remark.
    """
    lines = [f'Data set  {bids_dir}', f'Rule      of several images of a contrast, {RULE}']
    if any(record.stand_in for record in records):
        lines.append(f'          where there is no T1w, {SHARPEST}')
    if any(record.dwi for record in records):
        lines.append(f'          {DIFFUSION_RULE}')
    if segmentation == 'deepnat':
        lines.append('          structures are labelled by DeepNAT, which takes T1w images')
    lines.append('')
    for record in records:
        lines.append(record.label if record.problem is None else f'{record.label}  NOT PROCESSED')
        rows = list(_rows(record, Path(os.path.abspath(bids_dir))))
        if segmentation == 'deepnat' and record.stand_in is not None:
            rows.append(('problem', 'DeepNAT cannot label it: there is no T1w', ''))
        width = max((len(file) for _, file, _ in rows), default=0)
        lines += [f'  {use:<8}{file:<{width}}  {text}'.rstrip() for use, file, text in rows]
    lines += ['', _summary(records)]
    return '\n'.join(lines) + '\n'


def _summary(records: Sequence[SessionRecord]) -> str:
    """Count subjects and sessions, and those that are left out by their reason."""
    good = sum(record.problem is None for record in records)
    subjects = len({record.subject for record in records})
    text = (
        f'{_count(subjects, "participant")}, {_count(len(records), "session")}: {good} to process'
    )
    if others := sum(bool(record.stand_in or record.dwi_alone) for record in records):
        text += f' ({others} of them without a T1w)'
    reasons: dict[str, int] = defaultdict(int)
    for record in records:
        if record.problem is not None:
            reasons[record.problem] += 1
    return text + ''.join(f', {number} with {reason}' if reason.startswith('no ')
                          else f', {number}: {reason}'
                          for reason, number in reasons.items())  # fmt: skip


def _rows(record: SessionRecord, root: Path) -> Iterator[tuple[str, str, str]]:
    """List the lines of one session: use, file, remark."""
    if record.problem is not None:
        yield 'problem', record.problem, ''
    images = [('T1w', record.t1w), ('T2w', record.t2w), ('FLAIR', record.flair)]
    if record.stand_in is not None and record.stand_in not in (record.t2w, record.flair):
        images.append((record.stand_in.suffix, record.stand_in))
    for use, scan in images:
        if scan is not None:
            first = 'the reference: there is no T1w' if scan is record.stand_in else ''
            yield use, _relative(scan.path, root), _remark(scan, use, first)
    for scan in record.dwi:
        notes = [_tables(scan, root), _role(record)]
        remark = ', '.join(note for note in notes if note)
        yield 'DWI', _relative(scan.path, root), _remark(scan, 'dwi', remark)
    for given in record.precomputed:
        text = f'of {given.name}, instead of ours'
        if problem := content_problem(given.path):
            text += f', {problem}'
        yield _GIVEN[given.kind], _relative(given.path, root), text
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for skipped in record.skipped:
        by_reason[skipped.reason].append(skipped.path)
    for reason, paths in by_reason.items():
        if len(paths) >= GROUP_FROM:
            yield 'skipped', f'{len(paths)} files, {paths[0].name} ...', reason
        else:
            for path in paths:
                yield 'skipped', _relative(path, root), reason


def _role(record: SessionRecord) -> str:
    """Say what is made of the diffusion images of a session."""
    if record.no_tensor:
        return f'{record.no_tensor}: only its mean images are made'
    return 'a T1w is synthesised from it' if record.dwi_alone else ''


def _tables(scan: Scan, root: Path) -> str:
    """Name gradient tables that are inherited; those beside the image need no word."""
    inherited = [table for table in (scan.bval, scan.bvec)
                 if table is not None and table.parent != scan.path.parent]  # fmt: skip
    names = ' and '.join(_relative(table, root) for table in inherited)
    return f'gradients of {names}' if names else ''


def _remark(scan: Scan, use: str, first: str = '') -> str:
    """Say what is special about a chosen image."""
    notes = [first] if first else []
    if scan.suffix != use:
        notes.append(f'{scan.suffix} taken as {use}')
    if problem := content_problem(scan.path):
        notes.append(problem)
    return ', '.join(notes)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _count(number: int, what: str) -> str:
    return f'{number} {what}' + ('' if number == 1 else 's')
