# SPDX-License-Identifier: Apache-2.0
"""From the runs of a session to one diffusion series in RAS+ order, with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bids_app.diffusion.gradients import (
    Gradients,
    ras_directions,
    read_gradients,
    tensor_problem,
)
from bids_app.errors import ImageError
from bids_app.images.grids import canonical, from_canonical, voxel_sizes
from bids_app.images.scans import Grid, LoadedSeries, load_series

FEWEST_SLICES_MM = 100.0
"""A brain is longer than this in every direction: less is a part of it."""

SAME_GRID_MM = 0.01
"""Largest difference of any number of two voxel-to-world matrices that are the same grid."""

_CUT = 0.05
"""Part of the outermost slice that is brain where the brain goes on beyond it."""


@dataclass(frozen=True)
class Series:
    """A diffusion series.

    Attributes
    ----------
    data : ndarray, shape (x, y, z, n), float32
        Signal in RAS+ order.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix of that order, mm.
    gradients : Gradients
        With vectors along the voxel axes of ``data``.
    grid : Grid
        Grid of the file; results go back to it with :meth:`to_file_order`.
    turn : ndarray of int, shape (3, 2)
        What :func:`bids_app.images.grids.from_canonical` needs.
    notes : tuple of str
        What was unusual, one sentence each.
    """

    data: np.ndarray
    affine: np.ndarray
    gradients: Gradients
    grid: Grid
    turn: np.ndarray
    notes: tuple[str, ...] = field(default=())

    def to_file_order(self, image: np.ndarray) -> np.ndarray:
        """Return an image (x, y, z) or (channels, x, y, z) in the axis order of the file.

        Channels become the last axis, as NIfTI wants it.
        """
        image = from_canonical(image, self.turn)
        return image if image.ndim == 3 else np.moveaxis(image, 0, -1)

    def b0(self, threshold: float) -> np.ndarray:
        """Return the mean of the volumes of b up to a threshold (s/mm^2), shape (x, y, z)."""
        return self.data[..., self.gradients.bvals <= threshold].mean(axis=3, dtype=np.float32)

    def tensor_problem(self, threshold: float) -> str | None:
        """Say why no tensor can be fitted, in words; None if one can."""
        return tensor_problem(self.gradients, threshold)


def read_run(image: Path, bval: Path, bvec: Path) -> Series:
    """Read one run and bring it to RAS+ order; values are not interpolated.

    Parameters
    ----------
    image, bval, bvec : Path
        The diffusion image and its gradient table.

    Returns
    -------
    Series

    Raises
    ------
    ImageError
        If one of them cannot be used, or they do not belong together.
    """
    table = read_gradients(bval, bvec)
    loaded = load_series(image)
    volumes = loaded.data.shape[3]
    if volumes != len(table):
        raise ImageError(count_problem(image, volumes, len(table)))
    data, affine, turn = canonical(np.moveaxis(loaded.data, 3, 0), loaded.affine)
    gradients = Gradients(table.bvals, ras_directions(table.bvecs, loaded.affine))
    return Series(
        np.moveaxis(data, 0, 3), affine, gradients, _grid_of(loaded), turn, tuple(loaded.notes)
    )


def _grid_of(loaded: LoadedSeries) -> Grid:
    return Grid(loaded.path, loaded.shape, loaded.affine, loaded.header, loaded.notes)


def count_problem(image: Path, volumes: int, bvals: int) -> str:
    """Word the error for an image and a table of different length."""
    hint = ' (a trace or ADC map?)' if volumes <= 3 else ''
    return (
        f'{image}: {volumes} volume{"s"[: volumes != 1]}{hint}, but {bvals} b-values; export '
        'image and gradient table together again'
    )


def join_runs(runs: Sequence[Series], b0_threshold: float) -> Series:
    """Join runs of one grid.

    Parameters
    ----------
    runs : sequence of Series
        At least one.
    b0_threshold : float
        s/mm^2.

    Returns
    -------
    Series
        All volumes one after the other. Runs are scaled so that the median of their mean b=0 in
        bright voxels is that of the first, since scanners scale every run on its own.

    Raises
    ------
    ImageError
        If a run is on another grid than the first.
    """
    first = runs[0]
    parts, notes = [first.data], list(first.notes)
    level = _level(first, b0_threshold)
    for run in runs[1:]:
        if not same_grid(first.grid, run.grid):
            raise ImageError(
                f'{run.grid.path}: not on the grid of {first.grid.path.name}; leave one of them '
                'out with --bids-filter-file'
            )
        own = _level(run, b0_threshold)
        scale = level / own if level and own else 1.0
        parts.append(run.data * np.float32(scale))
        notes += run.notes
    if len(runs) == 1:
        return first
    gradients = Gradients(
        np.concatenate([run.gradients.bvals for run in runs]),
        np.concatenate([run.gradients.bvecs for run in runs]),
    )
    return replace(
        first,
        data=np.concatenate(parts, axis=3),
        gradients=gradients,
        notes=tuple(dict.fromkeys(notes)),
    )


def same_grid(one: Grid, other: Grid) -> bool:
    """Tell whether two images have the same voxels."""
    return tuple(one.shape) == tuple(other.shape) and bool(
        np.abs(one.affine - other.affine).max() < SAME_GRID_MM
    )


def _level(run: Series, b0_threshold: float) -> float:
    """Median of the mean b=0 where it is bright; 0 without a b=0."""
    if not (run.gradients.bvals <= b0_threshold).any():
        return 0.0
    b0 = run.b0(b0_threshold)
    return float(np.median(b0[b0 > b0.mean()])) if b0.any() else 0.0


def without_undirected(series: Series, b0_threshold: float) -> Series:
    """Leave out weighted volumes that have no direction, with a note; they are trace images."""
    gradients = series.gradients
    weighted = gradients.bvals > b0_threshold
    lost = weighted & ~gradients.bvecs.any(axis=1)
    if not lost.any() or lost.sum() == weighted.sum():
        return series
    count = int(lost.sum())
    note = (
        f'{count} weighted volume{"s"[: count != 1]} without a direction (trace images?) '
        f'{"were" if count > 1 else "was"} left out'
    )
    return replace(
        series,
        data=series.data[..., ~lost],
        gradients=Gradients(gradients.bvals[~lost], gradients.bvecs[~lost]),
        notes=(*series.notes, note),
    )


def coverage_notes(series: Series, mask: np.ndarray) -> list[str]:
    """Say where the brain is cut off by the field of view.

    Parameters
    ----------
    series : Series
    mask : ndarray of bool, shape (x, y, z)
        Brain in RAS+ order.

    Returns
    -------
    list of str
        Empty for a whole brain.
    """
    sizes = voxel_sizes(series.affine)
    covered = sizes * np.array(mask.shape)
    notes = []
    names = ('left to right', 'back to front', 'bottom to top')
    for axis, name in enumerate(names):
        if covered[axis] < FEWEST_SLICES_MM:
            notes.append(
                f'partial coverage: the images reach {covered[axis]:.0f} mm from {name}, less '
                'than a brain; results are of what is there'
            )
    cut = [
        end for end, share, most in (
            ('upper', mask[..., -1].mean(), _CUT),
            ('lower', mask[..., 0].mean(), 2 * _CUT),  # the brain stem goes on in any case
        ) if share > most
    ]  # fmt: skip
    if cut and not notes:
        notes.append(f'the brain is cut off at the {" and ".join(cut)} end of the images')
    return notes
