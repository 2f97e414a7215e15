# SPDX-License-Identifier: Apache-2.0
"""Planes of world space through a scan, sampled for display.

A scan is shown upright whatever the order, flips or obliqueness of its voxels: the display
planes are those of the world (scanner) frame, RAS+ in millimetres, with the same spacing along
both sides of the picture, and only the planes that are shown are interpolated.

Pictures follow the neurological convention: the left of the picture is the left of the patient
in axial and coronal planes; sagittal planes have the front of the head at the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PLANES = ('axial', 'coronal', 'sagittal')

NORMAL = {'axial': 2, 'coronal': 1, 'sagittal': 0}
"""World axis that a plane cuts."""

_ACROSS_DOWN = {'axial': (0, 1), 'coronal': (0, 2), 'sagittal': (1, 2)}
"""World axes along the picture's columns (ascending) and rows (descending)."""

EDGE_LETTERS = {'axial': ('L', 'R'), 'coronal': ('L', 'R'), 'sagittal': ('P', 'A')}
"""What lies at the left and at the right edge of a picture."""


@dataclass(frozen=True)
class Volume:
    """A volume in the order of its file.

    Attributes
    ----------
    data : numpy.ndarray, shape (i, j, k)
        Finite values.
    affine : numpy.ndarray, shape (4, 4)
        Voxel to world (RAS+, mm).
    """

    data: np.ndarray
    affine: np.ndarray

    def equals(self, *values: int) -> Volume:
        """Return the binary volume (uint8) of the voxels that hold one of ``values``."""
        table = np.zeros(max(int(self.data.max(initial=0)), *values) + 1, np.uint8)
        table[list(values)] = 1
        return Volume(table[np.maximum(self.data, 0)], self.affine)

    @property
    def zooms(self) -> np.ndarray:
        """Voxel sizes in mm, shape (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def load_volume(path: str | Path, labels: bool = False) -> Volume:
    """Read a NIfTI file as it is; of a 4-D file the first volume.

    Parameters
    ----------
    path : str or Path
        The file.
    labels : bool
        Read integers; otherwise unscaled integers or float32.

    Raises
    ------
    OSError, ValueError, nibabel.filebasedimages.ImageFileError
        If the file cannot be read or is not three-dimensional.
    """
    import nibabel as nib

    image = nib.load(path)
    while image.ndim > 3:
        image = nib.funcs.four_to_three(image)[0] if image.ndim == 4 else image.slicer[..., 0]
    if image.ndim != 3:
        raise ValueError(f'{Path(path).name} is not a three-dimensional image')
    data = np.asanyarray(image.dataobj)
    if data.dtype.kind == 'f':
        data = data.astype(np.float32, copy=False)
        if not np.isfinite(data).all():
            data = np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0)
        if labels:
            data = np.rint(data).astype(np.int32)
    return Volume(data, np.asarray(image.affine, float))


@dataclass(frozen=True)
class Frame:
    """What part of the world is shown, how finely and where it is cut.

    Attributes
    ----------
    low, high : numpy.ndarray, shape (3,)
        Corners of the shown box in mm.
    spacing : float
        Size of a display pixel in mm.
    cuts : dict of str to numpy.ndarray
        Positions of the cuts (mm) along the normal of every plane.
    """

    low: np.ndarray
    high: np.ndarray
    spacing: float
    cuts: dict[str, np.ndarray]

    def size(self, plane: str) -> tuple[int, int]:
        """Return width and height of one picture in pixels."""
        across, down = _ACROSS_DOWN[plane]
        extent = np.maximum(self.high - self.low, self.spacing)
        return (
            max(int(round(extent[across] / self.spacing)), 1),
            max(int(round(extent[down] / self.spacing)), 1),
        )

    def sample(self, volume: Volume, plane: str, position: float, order: int = 1) -> np.ndarray:
        """Sample one plane of a volume.

        Parameters
        ----------
        volume : Volume
            Any grid.
        plane : str
            ``axial``, ``coronal`` or ``sagittal``.
        position : float
            World coordinate of the cut in mm.
        order : int
            0 takes the nearest voxel (labels), 1 interpolates linearly.

        Returns
        -------
        numpy.ndarray, shape (height, width)
            float32, or the volume's own type for order 0; zero outside the volume.
        """
        width, height = self.size(plane)
        across, down = _ACROSS_DOWN[plane]
        axes = [np.array([position])] * 3
        axes[across] = self.low[across] + (np.arange(width) + 0.5) * self.spacing
        axes[down] = self.high[down] - (np.arange(height) + 0.5) * self.spacing
        return sample_grid(volume, axes, order).squeeze(NORMAL[plane]).T

    def row(self, volume: Volume, plane: str, order: int = 1) -> list[np.ndarray]:
        """Sample all cuts of a plane, see :meth:`sample`."""
        return [self.sample(volume, plane, cut, order) for cut in self.cuts[plane]]


def sample_grid(volume: Volume, axes: Sequence[np.ndarray], order: int = 1) -> np.ndarray:
    """Interpolate a volume on a grid whose axes are those of the world.

    Parameters
    ----------
    volume : Volume
        Any grid.
    axes : sequence of three numpy.ndarray
        World coordinates along x, y and z, RAS+ mm.
    order : int
        0 nearest voxel, 1 linear.

    Returns
    -------
    numpy.ndarray, shape (len(x), len(y), len(z))
        float32, or the volume's own type for order 0; zero beyond the outer faces of the
        outermost voxels.
    """
    to_voxel = np.linalg.inv(volume.affine)
    source = np.abs(to_voxel[:3, :3]).argmax(0)  # the voxel axis that follows each world axis
    aligned = np.zeros((3, 3))
    aligned[source, range(3)] = to_voxel[source, range(3)]
    reach = np.array([np.ptp(axis) / 2 for axis in axes])
    tilt = np.abs(to_voxel[:3, :3] - aligned) @ reach
    if len(set(source)) == 3 and tilt.max() < 0.1:
        return _sample_aligned(volume, axes, to_voxel, source, order)
    return _sample_oblique(volume, axes, to_voxel, order)


def _sample_aligned(
    volume: Volume,
    axes: Sequence[np.ndarray],
    to_voxel: np.ndarray,
    source: np.ndarray,
    order: int,
) -> np.ndarray:
    """Sample a volume whose axes are those of the world: one axis after the other."""
    out = volume.data.transpose(source)
    center = np.array([axis.mean() for axis in axes])
    start = to_voxel[:3, :3] @ center + to_voxel[:3, 3]
    at = [start[source[n]] + to_voxel[source[n], n] * (axes[n] - center[n]) for n in range(3)]
    inside = [(at[n] >= -0.5) & (at[n] < out.shape[n] - 0.5) for n in range(3)]
    sizes = out.shape
    for n in sorted(range(3), key=lambda n: len(at[n]) / sizes[n]):  # smallest results first
        if order == 0:
            nearest = np.clip(np.floor(at[n] + 0.5).astype(np.intp), 0, sizes[n] - 1)
            out = _picked(out, nearest, n)
            continue
        place = np.clip(at[n], 0, sizes[n] - 1)
        lower = np.minimum(place.astype(np.intp), max(sizes[n] - 2, 0))
        shape = [-1 if m == n else 1 for m in range(3)]
        weight = (place - lower).astype(np.float32).reshape(shape)
        below = _picked(out, lower, n).astype(np.float32)
        above = _picked(out, np.minimum(lower + 1, sizes[n] - 1), n)
        out = below + weight * (above.astype(np.float32) - below)
    out[~inside[0]] = 0
    out[:, ~inside[1]] = 0
    out[:, :, ~inside[2]] = 0
    return out


def _picked(data: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """Take elements along an axis; unlike ``numpy.take`` it never copies all of ``data`` first."""
    return data[(slice(None),) * axis + (index,)]


def _sample_oblique(
    volume: Volume, axes: Sequence[np.ndarray], to_voxel: np.ndarray, order: int
) -> np.ndarray:
    """Sample a volume of any orientation, plane by plane along the shortest axis."""
    from scipy.ndimage import map_coordinates

    kind = np.float32 if order else volume.data.dtype
    out = np.zeros([len(axis) for axis in axes], kind)
    limits = np.array(volume.data.shape).reshape(3, 1, 1)
    through = int(np.argmin(out.shape))
    first, second = (n for n in range(3) if n != through)
    rows, columns = (axes[n] * to_voxel[:3, n : n + 1] for n in (first, second))
    flat = rows[:, :, None] + columns[:, None, :]
    planes = np.moveaxis(out, through, 0)  # a view
    for k, place in enumerate(axes[through]):
        at = flat + (to_voxel[:3, through] * place + to_voxel[:3, 3]).reshape(3, 1, 1)
        inside = ((at >= -0.5) & (at < limits - 0.5)).all(0)
        if order:
            values = map_coordinates(volume.data, at, output=kind, order=1, mode='nearest')
        else:
            nearest = np.clip(np.floor(at + 0.5).astype(np.intp), 0, limits - 1)
            values = volume.data[tuple(nearest)]
        planes[k] = np.where(inside, values, 0)
    return out


def world_box(volume: Volume, where: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (mm) of the box around a volume's grid or around some of its voxels.

    Parameters
    ----------
    volume : Volume
        Gives the grid.
    where : numpy.ndarray, shape (n, 3), optional
        Voxel indices; default the corners of the grid.
    """
    if where is None:
        ends = [(-0.5, n - 0.5) for n in volume.data.shape]
        where = np.array(np.meshgrid(*ends, indexing='ij')).reshape(3, -1).T
    world = where @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return world.min(0), world.max(0)


def _thinned(volume: Volume, most: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Every n-th voxel, so that no side is longer than ``most``; with the steps."""
    steps = np.array([max(int(np.ceil(n / most)), 1) for n in volume.data.shape])
    return volume.data[:: steps[0], :: steps[1], :: steps[2]], steps


def head_box(scan: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (mm) of the box that holds the head, or all of the grid if unclear.

    The head is what is brighter than a tenth of the 98th percentile; the outermost 0.3 % along
    every axis are left out as noise.
    """
    data, steps = _thinned(scan)
    bright = data > 0.1 * np.percentile(data, 98)
    grid = world_box(scan)
    if bright.sum() < 100:
        return grid
    voxels = np.argwhere(bright) * steps
    world = voxels @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    low, high = np.percentile(world, (0.3, 99.7), axis=0)
    return np.maximum(low - 6, grid[0]), np.minimum(high + 6, grid[1])


def make_frame(
    scan: Volume,
    mask: Volume | None = None,
    n_cuts: int = 7,
    margin: float = 22.0,
    widest: int = 300,
) -> Frame:
    """Choose the box to show, the display spacing and the cuts.

    The box is the head cropped to ``margin`` mm around the brain mask. A mask of implausible
    volume (under 0.5 or over 2.5 litres) or none at all leaves the whole head in view, so that
    a failed mask is seen for what it is.

    Parameters
    ----------
    scan : Volume
        The scan that the pictures show.
    mask : Volume, optional
        Brain mask.
    n_cuts : int
        Cuts per plane.
    margin : float
        mm around the brain.
    widest : int
        Most pixels along a side of the box; larger boxes are shown more coarsely.
    """
    low, high = head_box(scan)
    core = (low, high)
    if mask is not None and mask.data.any():
        thin, steps = _thinned(mask, 128)
        voxels = np.argwhere(thin > 0) * steps
        if len(voxels):
            core = world_box(mask, voxels)
            litres = len(voxels) * steps.prod() * abs(np.linalg.det(mask.affine[:3, :3])) / 1e6
            if 0.5 <= litres <= 2.5:
                grid = world_box(scan)
                low = np.maximum(np.maximum(low, core[0] - margin), grid[0])
                high = np.minimum(np.minimum(high, core[1] + margin), grid[1])
            # a stripped scan is no larger than its brain: leave it a rim to stand out
            low = np.minimum(low, core[0] - 4)
            high = np.maximum(high, core[1] + 4)
    spacing = float(np.clip(scan.zooms.min(), 0.75, 1.0))
    spacing = max(spacing, float((high - low).max()) / widest)
    at = np.linspace(0.1, 0.9, n_cuts)
    cuts = {
        plane: core[0][axis] + at * (core[1][axis] - core[0][axis])
        for plane, axis in NORMAL.items()
    }
    return Frame(low, high, spacing, cuts)


def display_window(scan: Volume, mask: Volume | None = None) -> tuple[float, float]:
    """Return the intensities shown as black and as white.

    White is a little above the brightest tissue of the brain, so that fat does not flatten the
    contrast that matters; without a mask it is a little above what 90 % of the head stay below.
    """
    data, steps = _thinned(scan, 128)
    low = float(np.percentile(data, 1))
    inside: Sequence[float] | np.ndarray = ()
    if mask is not None and mask.data.shape == scan.data.shape:
        inside = data[mask.data[:: steps[0], :: steps[1], :: steps[2]] > 0]
    if len(inside) > 100:
        high = float(np.percentile(inside, 99.5)) * 1.12
    else:
        head = data[data > low + 0.1 * (np.percentile(data, 98) - low)]
        high = float(np.percentile(head, 90)) * 1.15 if head.size else low
    return (low, high) if high > low else (low, low + 1.0)
