# SPDX-License-Identifier: Apache-2.0
"""Carry points, images and labels between a scan and a template.

Every array comes with its voxel-to-world matrix, so that axis order, flips and oblique slices of
a scan make no difference. The rules at the borders are those of ITK: a voxel reaches half its
size beyond its centre, with one value; beyond the field of view lies the value for outside, and
beyond the registration grid nothing is displaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from bids_app.images.grids import separable_axes, slab
from bids_app.images.resample import resample_separable, smooth_for_growth

from .normalisation import Normalisation

Order = Literal['linear', 'nearest']
Direction = Literal['forward', 'backward']

SLAB_VOXELS = 1 << 20
"""Target voxels that are worked on at a time: some 100 MB of temporary arrays."""


def map_points(
    normalisation: Normalisation, points: np.ndarray, direction: Direction
) -> np.ndarray:
    """Map points between template and scan.

    Parameters
    ----------
    normalisation : Normalisation
    points : array-like, shape (n, 3)
        mm, RAS+.
    direction : {'forward', 'backward'}
        ``forward``: from the template to the scan; ``backward``: from the scan to the template.
        (Images go the other way: the transform of an image asks, for every point of the target,
        where to look in the source.)

    Returns
    -------
    ndarray of float64, shape (n, 3)
        mm, RAS+. Displacements are interpolated linearly.
    """
    points = np.asarray(points, dtype=np.float64).T
    before, field, after = _parts(normalisation, direction)
    points = before[:3, :3] @ points + before[:3, 3:]
    inverse = np.linalg.inv(normalisation.grid_affine)
    points = points + _at(field, inverse[:3, :3] @ points + inverse[:3, 3:])
    return (after[:3, :3] @ points + after[:3, 3:]).T


def to_template(
    data: np.ndarray,
    native_affine: np.ndarray,
    normalisation: Normalisation,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    order: Order = 'linear',
    outside: float = 0.0,
) -> np.ndarray:
    """Bring an image of the scan to a grid in the world of the template.

    Where the target voxels are larger than those of the scan by more than sqrt(3), the scan is
    smoothed first, so that fine structure does not alias (a Gaussian of matching second moment,
    see :func:`bids_app.images.resample.resample_to`); labels never are.

    Parameters
    ----------
    data : ndarray, shape (x, y, z) or (channel, x, y, z)
        Finite values on the grid of the scan, in any axis order.
    native_affine : array-like, shape (4, 4)
        Voxel-to-world matrix of the scan, mm, RAS+.
    normalisation : Normalisation
    shape : sequence of 3 int
        Voxels of the target grid.
    affine : array-like, shape (4, 4)
        Its voxel-to-world matrix, mm, in the world of the template.
    order : {'linear', 'nearest'}
        ``nearest`` for labels.
    outside : float
        Value beyond the field of view of the scan.

    Returns
    -------
    ndarray, shape (*channels, *shape)
        float32; with ``nearest`` the dtype of `data`.
    """
    return _pull(data, native_affine, normalisation, 'forward', shape, affine, order, outside)


def to_native(
    data: np.ndarray,
    template_affine: np.ndarray,
    normalisation: Normalisation,
    native_shape: Sequence[int],
    native_affine: np.ndarray,
    *,
    order: Order = 'linear',
    outside: float = 0.0,
) -> np.ndarray:
    """Bring an image in the world of the template, for instance an atlas, to the grid of the scan.

    Parameters
    ----------
    data : ndarray, shape (x, y, z) or (channel, x, y, z)
        Finite values on any grid in the world of the template.
    template_affine : array-like, shape (4, 4)
        Its voxel-to-world matrix, mm, RAS+.
    normalisation : Normalisation
    native_shape : sequence of 3 int
        Shape of the scan.
    native_affine : array-like, shape (4, 4)
        Its voxel-to-world matrix, mm, RAS+, any axis order.
    order, outside
        As for :func:`to_template`, which also tells about smoothing.

    Returns
    -------
    ndarray, shape (*channels, *native_shape)
        float32; with ``nearest`` the dtype of `data`.
    """
    return _pull(
        data,
        template_affine,
        normalisation,
        'backward',
        native_shape,
        native_affine,
        order,
        outside,
    )


def _parts(
    normalisation: Normalisation, direction: Direction
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the matrix before the displacement, the displacement, and the matrix after it."""
    affine = np.asarray(normalisation.affine, dtype=np.float64)
    if direction == 'forward':
        return np.eye(4), normalisation.forward, affine
    if direction == 'backward':
        return np.linalg.inv(affine), normalisation.backward, np.eye(4)
    raise ValueError(f"direction must be 'forward' or 'backward', not {direction!r}")


def _pull(
    data: np.ndarray,
    src_affine: np.ndarray,
    normalisation: Normalisation,
    direction: Direction,
    shape: Sequence[int],
    affine: np.ndarray,
    order: Order,
    outside: float,
) -> np.ndarray:
    """Look up, for every voxel of a target grid, where it lies in the source."""
    data = np.asarray(data)
    if data.ndim not in (3, 4):
        raise ValueError(f'expected 3 or 4 dimensions, got {data.ndim}')
    if order not in ('linear', 'nearest'):
        raise ValueError(f"order must be 'linear' or 'nearest', not {order!r}")
    shape = tuple(int(n) for n in shape)
    before, field, after = _parts(normalisation, direction)
    start = before @ np.asarray(affine, dtype=np.float64)
    to_voxel = np.linalg.inv(np.asarray(src_affine, dtype=np.float64)) @ after
    channels = data if data.ndim == 4 else data[np.newaxis]
    dtype = data.dtype
    if order == 'linear':
        dtype = np.dtype(np.float32)
        whole = to_voxel @ start
        channels = [smooth_for_growth(one.astype(dtype, copy=False), whole) for one in channels]
    result = np.empty((len(channels), *shape), dtype=dtype)
    for planes, place in _slabs(shape, start):
        size = result[0, planes].shape
        displacement = _displacement(field, normalisation.grid_affine, size, place)
        position = _positions(to_voxel, place, size, displacement)
        inside = np.ones(position.shape[1:], dtype=bool)
        for axis, count in enumerate(data.shape[-3:]):
            inside &= (position[axis] >= -0.5) & (position[axis] <= count - 0.5)
        for channel, target in zip(channels, result[:, planes], strict=True):
            target[...] = _sample(channel, position, order)
            target[~inside] = outside
    return result if data.ndim == 4 else result[0]


def _slabs(shape: tuple[int, ...], affine: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Cut a grid along its first axis; give the planes and the matrix of every part."""
    planes = max(SLAB_VOXELS // max(shape[1] * shape[2], 1), 1)
    for first in range(0, shape[0], planes):
        last = min(first + planes, shape[0])
        yield slice(first, last), slab(shape, affine, first, last)[1]


def _displacement(
    field: np.ndarray, grid_affine: np.ndarray, shape: tuple[int, ...], place: np.ndarray
) -> np.ndarray:
    """Interpolate the displacement (3, x, y, z) at the voxels of a grid, mm."""
    if separable_axes(grid_affine, shape, place) is not None:
        return resample_separable(field, grid_affine, shape, place, antialias=False)
    voxel = _positions(np.linalg.inv(grid_affine), place, shape)
    return _at(field, voxel.reshape(3, -1)).reshape(3, *shape)


def _positions(
    to_voxel: np.ndarray,
    place: np.ndarray,
    shape: tuple[int, ...],
    displacement: np.ndarray | None = None,
) -> np.ndarray:
    """Return where the voxels of a grid lie in the source, in its voxels: (3, x, y, z)."""
    matrix = to_voxel @ place
    index = np.ogrid[tuple(slice(n) for n in shape)]
    position = np.empty((3, *shape))
    for axis, row in enumerate(matrix[:3]):
        position[axis] = row[0] * index[0] + row[1] * index[1] + (row[2] * index[2] + row[3])
        if displacement is not None:
            for component in range(3):
                factor = to_voxel[axis, component]
                if factor:
                    position[axis] += np.float32(factor) * displacement[component]
    return position


def _at(field: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Interpolate a displacement at voxel positions (3, n); zero outside its grid."""
    from scipy.ndimage import map_coordinates

    count = np.array(field.shape[1:])[:, np.newaxis]
    inside = ((voxel >= -0.5) & (voxel <= count - 0.5)).all(axis=0)
    result = np.zeros(voxel.shape, dtype=np.float32)
    voxel = voxel[:, inside]
    for one, values in zip(field, result, strict=True):
        values[inside] = map_coordinates(one, voxel, order=1, mode='nearest')
    return result


def _sample(channel: np.ndarray, position: np.ndarray, order: Order) -> np.ndarray:
    """Interpolate an image at voxel positions (3, x, y, z); the border voxels go on outside."""
    if order == 'linear':
        from scipy.ndimage import map_coordinates

        return map_coordinates(channel, position, order=1, mode='nearest', output=np.float32)
    index = [
        np.clip(np.floor(axis + 0.5), 0, count - 1).astype(np.intp)
        for axis, count in zip(position, channel.shape, strict=True)
    ]
    return channel[tuple(index)]
