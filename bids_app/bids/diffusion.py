# SPDX-License-Identifier: Apache-2.0
"""Which diffusion runs of a session are used, and whether they allow a tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids.files import read_json
from bids_app.bids.gradients import GradientFinder
from bids_app.errors import ImageError

if TYPE_CHECKING:
    from bids_app.bids.inputs import Scan, Skipped
    from bids_app.diffusion.gradients import Gradients

RULE = (
    'diffusion runs of one grid and one phase-encoding direction are joined; of several such '
    'groups, that with most directions is used, then that with most volumes'
)
"""The rule of :func:`choose_runs` in words."""

_MAP = re.compile(r'adc|trace|colfa|^fa$|^exp', re.I)
"""Acquisitions and reconstructions that are no series: what scanners make of one."""


@dataclass(frozen=True)
class _Run:
    """A diffusion image that may be used; ``grid`` is None where its header cannot be read."""

    scan: Scan
    gradients: Gradients
    grid: tuple[Any, ...] | None
    encoding: str


@dataclass(frozen=True)
class ChosenRuns:
    """What :func:`choose_runs` found.

    Attributes
    ----------
    runs : tuple of Scan
        Used together; empty if none can be used.
    skipped : tuple of Skipped
        The others, with the reason.
    no_tensor : str
        Why the runs do not allow a tensor, empty if they do.
    """

    runs: tuple[Scan, ...]
    skipped: tuple[Skipped, ...]
    no_tensor: str


def choose_runs(scans: Sequence[Scan], bids_dir: Path, b0_threshold: float) -> ChosenRuns:
    """Choose the diffusion runs of one session by the rule :data:`RULE`.

    Gradient tables and headers are read, voxels are not. An image that cannot be read stays among
    the candidates: the step that reads it says what is wrong.

    Parameters
    ----------
    scans : sequence of Scan
        Diffusion images with their tables, in the order of their names.
    bids_dir : Path
        Root of the data set.
    b0_threshold : float
        s/mm^2 up to which a volume is one of b=0.
    """
    from bids_app.bids.inputs import Skipped
    from bids_app.diffusion.gradients import count_directions

    skipped: list[Skipped] = []
    groups: list[list[_Run]] = []
    for scan in scans:
        try:
            run = _read(scan, bids_dir, several=len(scans) > 1)
        except ImageError as error:
            text = str(error).removeprefix(f'{scan.path}: ')
            skipped.append(Skipped(scan.path, text))
            continue
        group = next((one for one in groups if _belongs(run, one[0])), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    if not groups:
        return ChosenRuns((), tuple(skipped), '')

    def worth(group: list[_Run]) -> tuple[bool, int, int]:
        table = _joined(group)
        usable = _problem(table, b0_threshold) is None
        return usable, count_directions(table, b0_threshold), len(table)

    best = max(groups, key=worth)
    first = best[0]
    for run in (run for group in groups if group is not best for run in group):
        what = 'phase-encoding direction' if run.grid == first.grid else 'grid'
        reason = f'on another {what} than {first.scan.path.name}, which was taken'
        skipped.append(Skipped(run.scan.path, reason))
    return ChosenRuns(
        tuple(run.scan for run in best),
        tuple(skipped),
        _problem(_joined(best), b0_threshold) or '',
    )


def _problem(table: Gradients, b0_threshold: float) -> str | None:
    from bids_app.diffusion.gradients import tensor_problem

    return tensor_problem(table, b0_threshold)


def _joined(group: Iterable[_Run]) -> Gradients:
    """Put the tables of some runs one after the other."""
    import numpy as np

    from bids_app.diffusion.gradients import Gradients

    tables = [run.gradients for run in group]
    return Gradients(
        np.concatenate([table.bvals for table in tables]),
        np.concatenate([table.bvecs for table in tables]),
    )


def _belongs(run: _Run, other: _Run) -> bool:
    return run.grid == other.grid and run.encoding == other.encoding


def _read(scan: Scan, bids_dir: Path, several: bool) -> _Run:
    """Read what the choice depends on; raise ImageError if the image cannot be used."""
    from bids_app.diffusion.gradients import read_gradients
    from bids_app.diffusion.series import count_problem
    from bids_app.images.scans import count_volumes, read_grid

    for entity in ('acquisition', 'reconstruction'):
        if _MAP.search(scan.entities.get(entity, '')):
            raise ImageError(
                f'{entity[:3]}-{scan.entities[entity]}: a map made of diffusion images, no series'
            )
    gradients = read_gradients(scan.bval, scan.bvec)
    encoding = _phase_encoding(scan, bids_dir) if several else ''
    try:
        grid = read_grid(scan.path)
        volumes = count_volumes(scan.path)
    except ImageError:
        return _Run(scan, gradients, None, encoding)
    if volumes != len(gradients):
        raise ImageError(count_problem(scan.path, volumes, len(gradients)))
    # Rounded to a hundredth of a millimetre: headers of one session differ by less.
    numbers = tuple(round(float(value), 2) + 0.0 for value in grid.affine[:3].ravel())
    return _Run(scan, gradients, (*grid.shape, *numbers), encoding)


def _phase_encoding(scan: Scan, bids_dir: Path) -> str:
    """Return the direction of phase encoding by the sidecars, or by the name of the file."""
    folders = [folder for folder in scan.path.parents
               if folder == bids_dir or bids_dir in folder.parents]  # fmt: skip
    sidecars = [path for folder in folders for path in folder.glob('*dwi.json')]
    sidecar = GradientFinder(bids_dir, sidecars).find(scan.path, '.json')
    try:
        fields = read_json(sidecar) if sidecar is not None else {}
    except (OSError, ValueError):
        fields = {}
    value = fields.get('PhaseEncodingDirection') if isinstance(fields, dict) else None
    return str(value or scan.entities.get('direction', ''))
