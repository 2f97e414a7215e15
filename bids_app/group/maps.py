# SPDX-License-Identifier: Apache-2.0
"""The maps of a study as one matrix: sessions by voxels inside a mask.

Maps are read one by one, twice: once for the mean that gives the mask, once for the values. The
matrix is float32, in memory while it is small and in a file that is mapped into memory beyond.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.errors import UsageError

IN_MEMORY_BYTES = 3 << 30
"""Larger matrices go to a file."""


@dataclass(frozen=True)
class MapMatrix:
    """Values of all sessions inside a mask.

    Attributes
    ----------
    values : numpy.ndarray of float32, shape (sessions, voxels)
        Less the mean of their voxel, so that single precision is enough.
    mean : numpy.ndarray of float64, shape (x, y, z)
        Mean over sessions.
    mask : numpy.ndarray of bool, shape (x, y, z)
        The voxels, in C order.
    affine : numpy.ndarray, shape (4, 4)
        Voxel to world, mm, RAS+.
    """

    values: np.ndarray
    mean: np.ndarray
    mask: np.ndarray
    affine: np.ndarray

    def volume(self, values: np.ndarray, outside: float = 0.0) -> np.ndarray:
        """Put one value per voxel of the mask back into a volume, float32."""
        out = np.full(self.mask.shape, outside, np.float32)
        out[self.mask] = values
        return out


def check_maps(paths: Sequence[Path | None]) -> dict[int, str]:
    """Find the maps that cannot be used: missing, unreadable, or not on the grid of most.

    Parameters
    ----------
    paths : sequence of Path or None
        One per session.

    Returns
    -------
    dict of int to str
        The reason by position; headers only are read.
    """
    import nibabel as nib

    problems: dict[int, str] = {}
    grids: dict[int, tuple] = {}
    for number, path in enumerate(paths):
        if path is None:
            problems[number] = 'no map'
            continue
        try:
            image = nib.load(path)
            grids[number] = (image.shape, tuple(np.round(image.affine, 3).ravel()))
        except Exception as error:  # whatever is wrong with one file must not stop the others
            problems[number] = f'cannot read {Path(path).name}: {" ".join(str(error).split())}'
    if grids:
        usual = Counter(grids.values()).most_common(1)[0][0]
        for number, grid in grids.items():
            if grid != usual:
                shape = 'x'.join(map(str, grid[0]))
                problems[number] = f'its map has another grid ({shape}) than most'
            elif len(grid[0]) != 3:
                problems[number] = 'its map is not three-dimensional'
    return problems


def mean_map(
    paths: Sequence[Path], *, every: bool = False, threshold: float = 0.1, n_jobs: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
    """Average maps and threshold them.

    Parameters
    ----------
    paths : sequence of Path
        Maps on one grid.
    every : bool
        The mask holds the voxels above the threshold in every map (SPM's absolute masking)
        rather than those whose mean is above it.
    threshold : float
        In the unit of the maps.
    n_jobs : int
        Threads that read.

    Returns
    -------
    mean : numpy.ndarray of float64, shape (x, y, z)
    mask : numpy.ndarray of bool, shape (x, y, z)
    affine : numpy.ndarray, shape (4, 4)
    problems : dict of int to str
        Maps that could not be used (they count neither in the mean nor in the mask).
    """
    import nibabel as nib

    total = lowest = None
    first = None
    changes = None
    problems: dict[int, str] = {}
    used = 0
    with ThreadPoolExecutor(max(n_jobs, 1)) as pool:
        for number, data in enumerate(read_in_order(pool, paths, n_jobs)):
            if isinstance(data, str):
                problems[number] = data
                continue
            if total is None:
                total = np.zeros(data.shape)
                lowest = data.copy()
                first = data
                changes = np.zeros(data.shape, bool)
            total += data
            np.minimum(lowest, data, out=lowest)
            changes |= data != first
            used += 1
    if total is None:
        raise UsageError(f'none of the {len(paths)} maps can be read: {problems.get(0, "")}')
    mean = total / used
    # a voxel that is the same in all maps has no variance to test
    mask = ((lowest if every else mean) > threshold) & changes
    readable = next(path for number, path in enumerate(paths) if number not in problems)
    return mean, mask, np.asarray(nib.load(readable).affine, float), problems


def load_matrix(
    paths: Sequence[Path],
    mean: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    work_dir: Path | None = None,
    n_jobs: int = 1,
) -> MapMatrix:
    """Read the values inside the mask.

    Parameters
    ----------
    paths : sequence of Path
        Readable maps on one grid.
    mean, mask, affine : numpy.ndarray
        From :func:`mean_map` of the same maps.
    work_dir : Path, optional
        Where a matrix that is too large for memory goes; default the folder for temporary files.
        The file disappears with the matrix.
    n_jobs : int
        Threads that read.
    """
    shape = (len(paths), int(mask.sum()))
    if shape[0] * shape[1] * 4 > IN_MEMORY_BYTES:
        with tempfile.NamedTemporaryFile(dir=work_dir, prefix='anatnet-maps-') as file:
            values = np.memmap(file.name, np.float32, 'w+', shape=shape)
    else:
        values = np.empty(shape, np.float32)
    center = mean[mask]
    with ThreadPoolExecutor(max(n_jobs, 1)) as pool:
        for number, data in enumerate(read_in_order(pool, paths, n_jobs)):
            if isinstance(data, str):
                raise UsageError(f'a map changed while it was read: {data}')
            values[number] = data[mask] - center
    return MapMatrix(values, mean, mask, affine)


def read_in_order(pool: ThreadPoolExecutor, paths: Sequence[Path], ahead: int):
    """Read maps in threads and yield them in order, only a few ahead of their use."""
    waiting = []
    for path in paths:
        waiting.append(pool.submit(_read, path))
        if len(waiting) > ahead + 1:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _read(path: Path) -> np.ndarray | str:
    """Return the values of a map as float32, or what is wrong with it."""
    import nibabel as nib

    try:
        data = np.asarray(nib.load(path).dataobj, dtype=np.float32)
    except Exception as error:  # a broken file may fail in many ways
        return f'cannot read {Path(path).name}: {" ".join(str(error).split())}'
    if not np.isfinite(data).all():
        return f'{Path(path).name} has values that are not finite'
    return data
