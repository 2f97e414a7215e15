# SPDX-License-Identifier: Apache-2.0
"""Move images between voxel grids without losing position.

The conventions are those of :mod:`bids_app.images.grids`. The grids of one scan (native,
conformed, coarse) differ only by the order and direction of their axes, by voxel size and by
offset. Interpolation then separates into one small matrix per axis, which BLAS applies in a
fraction of a second to 40 million voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .grids import (
    POSITION_TOLERANCE,
    canonical,
    conform_grid,
    from_canonical,
    separable_axes,
    slab,
    voxel_sizes,
)

__all__ = [
    'axis_weights',
    'canonical',
    'conform_grid',
    'from_canonical',
    'resample_rigid',
    'resample_separable',
    'resample_to',
    'slab',
    'smooth_for_growth',
    'voxel_sizes',
]


def _hat_integral(x: np.ndarray) -> np.ndarray:
    """Integral of the unit triangle (height 1 at 0, zero beyond +-1) from -infinity to x."""
    x = np.clip(x, -1, 1)
    return np.where(x < 0, 0.5 * (x + 1) ** 2, 1 - 0.5 * (1 - x) ** 2)


def _cubic_bspline(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = 2 / 3 - x**2 + x**3 / 2
    far = np.clip(2 - x, 0, None) ** 3 / 6
    return np.where(x < 1, near, far)


def axis_weights(
    src_count: int,
    dst_count: int,
    scale: float,
    offset: float,
    outside: str = 'zero',
    antialias: bool = True,
    order: int = 1,
) -> np.ndarray:
    """Return the matrix that resamples one axis.

    The destination sample at ``p = scale * i + offset`` is the linear interpolant at ``p``, or,
    where voxels grow, its mean over an interval of length ``w`` around ``p``. With ``s`` the
    growth, ``w**2 = s**2 - 3`` (zero below ``s = sqrt(3)``): then the second moment of the whole
    kernel (a box of ``w`` and the triangle of linear interpolation, ``w**2 / 12 + 2 / 12``)
    equals what separates a voxel of length ``s`` from one of length 1, ``(s**2 - 1) / 12``. Two
    voxels merged into one are exactly their mean. The mean of a straight line over an interval
    is its value in the middle, so ramps are kept exactly, as are constants.

    Parameters
    ----------
    src_count, dst_count : int
        Voxels along the axis.
    scale, offset : float
        ``src_index = scale * dst_index + offset``.
    outside : {'zero', 'edge'}
        What lies beyond the field of view (indices -0.5 to ``src_count`` - 0.5). Between the
        outermost voxel centre and the edge of the field of view the last voxel is repeated.
    antialias : bool
        Average where voxels grow.
    order : {0, 1, 3}
        Nearest neighbour, linear, or cubic B-spline (weights of B-spline coefficients, see
        :func:`resample_separable`).

    Returns
    -------
    ndarray of float64, shape (dst_count, src_count)
        Rows sum to 1, or to 0 outside.
    """
    position = scale * np.arange(dst_count) + offset
    nearest = np.rint(position)
    if abs(abs(scale) - 1) * max(dst_count, 1) < POSITION_TOLERANCE and np.all(
        np.abs(position - nearest) < POSITION_TOLERANCE
    ):
        position = nearest
        order = 1 if order == 0 else order
    weights = np.zeros((dst_count, src_count))
    rows = np.arange(dst_count)
    if order == 0:
        # Halves go down: rounding them to even would skip and repeat voxels.
        chosen = np.ceil(position - 0.5 - 1e-6)
        weights[rows, np.clip(chosen, 0, src_count - 1).astype(int)] = 1.0
    else:
        width = 0.0
        if antialias and order == 1:
            width = math.sqrt(max(scale**2 - 3.0, 0.0))
        reach = (2 if order == 3 else 1) + width / 2
        clamped = np.clip(position, 0, src_count - 1)
        first = np.ceil(clamped - reach).astype(int)
        for step in range(math.floor(2 * reach) + 1):
            index = first + step
            distance = index - clamped
            if order == 3:
                weight = _cubic_bspline(distance)
                # Mirror at the outermost centres, as scipy.ndimage's spline filter does.
                index = np.abs(index)
                index = (src_count - 1) - np.abs((src_count - 1) - index)
            elif width > 0:
                weight = _hat_integral(distance + width / 2) - _hat_integral(distance - width / 2)
                weight = weight / width
            else:
                weight = np.clip(1 - np.abs(distance), 0, None)
            np.add.at(weights, (rows, np.clip(index, 0, src_count - 1)), weight)
    if outside == 'zero':
        edge = 0.5 + POSITION_TOLERANCE
        weights[(position < -edge) | (position > src_count - 1 + edge)] = 0.0
    elif outside != 'edge':
        raise ValueError(f"outside must be 'zero' or 'edge', not {outside!r}")
    return weights


def _as_slice(weights: np.ndarray) -> slice | None:
    """Return the slice equivalent to a weight matrix that only picks neighbouring voxels."""
    if weights.shape[0] == 0:
        return slice(0, 0)
    index = weights.argmax(axis=1)
    if not np.all(weights[np.arange(len(index)), index] == 1.0) or weights.sum() != len(index):
        return None
    step = 1 if len(index) == 1 else int(index[1] - index[0])
    if step not in (1, -1) or np.any(np.diff(index) != step):
        return None
    stop = int(index[-1]) + step
    return slice(int(index[0]), None if stop < 0 else stop, step)


def _apply_axis(data: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Multiply a (channel, x, y, z) array by a weight matrix along one of its spatial axes."""
    picked = _as_slice(weights)
    index = [slice(None)] * 4
    if picked is not None:
        index[axis] = picked
        return data[tuple(index)]
    # Only the source voxels that carry weight take part: a slab reads only its neighbourhood.
    used = np.flatnonzero(weights.any(axis=0))
    first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
    index[axis] = slice(first, last)
    data = data[tuple(index)]
    matrix = np.ascontiguousarray(weights[:, first:last], dtype=np.float32)
    if axis == 3:
        return np.matmul(data, matrix.T)
    if axis == 2:
        return np.matmul(matrix, data)
    channels, _, y, z = data.shape
    flat = np.ascontiguousarray(data).reshape(channels, last - first, y * z)
    return np.matmul(matrix, flat).reshape(channels, len(matrix), y, z)


def resample_separable(
    data: np.ndarray,
    src_affine: np.ndarray,
    dst_shape: Sequence[int],
    dst_affine: np.ndarray,
    *,
    outside: str = 'zero',
    antialias: bool = True,
    order: int = 1,
) -> np.ndarray:
    """Resample between grids whose axes are parallel (any order, direction, voxel size, offset).

    Grids that differ only by the order and direction of the axes, or by whole voxels, are copied
    without interpolation. See :func:`axis_weights` for the kernel.

    Parameters
    ----------
    data : ndarray, shape (x, y, z) or (channel, x, y, z)
        Finite values.
    src_affine, dst_affine : array-like, shape (4, 4)
        Voxel-to-world matrices in mm.
    dst_shape : sequence of 3 int
        Voxels of the destination grid; see :func:`slab` to work in parts.
    outside : {'zero', 'edge'}
        Value beyond the field of view of the source.
    antialias : bool
        Average where voxels grow by more than sqrt(3).
    order : {0, 1, 3}
        Nearest neighbour (labels), linear, or cubic B-spline (for smooth fields on coarse grids).

    Returns
    -------
    ndarray of float32, shape (*channels, *dst_shape)
        With order 0 the dtype of `data` is kept. Contiguous, and never a view of `data`.

    Raises
    ------
    ValueError
        If the axes of the two grids are not parallel; use :func:`resample_to` then.
    """
    data = np.asarray(data)
    if data.ndim not in (3, 4):
        raise ValueError(f'expected 3 or 4 dimensions, got {data.ndim}')
    relation = separable_axes(src_affine, dst_shape, dst_affine)
    if relation is None:
        raise ValueError('the axes of the two grids are not parallel; use resample_to')
    spatial = data.shape[-3:]
    work = data if data.ndim == 4 else data[np.newaxis]
    if order != 0:
        work = work.astype(np.float32, copy=False)
    # Bring the source axes into the order of the destination; from here axis a means both.
    work = work.transpose([0, *(1 + source for source, _, _ in relation)])
    weights = [
        axis_weights(spatial[source], int(count), scale, offset, outside, antialias, order)
        for (source, scale, offset), count in zip(relation, dst_shape, strict=True)
    ]
    if order == 0:
        for axis, matrix in enumerate(weights, start=1):
            work = np.take(work, matrix.argmax(axis=1), axis=axis)
            empty = ~matrix.any(axis=1)
            if empty.any():
                work[(slice(None),) * axis + (empty,)] = 0
    else:
        # Shrinking axes first: everything after them is smaller.
        for axis in sorted(range(3), key=lambda a: weights[a].shape[0] / weights[a].shape[1]):
            if order == 3 and _as_slice(weights[axis]) is None and work.shape[axis + 1] > 1:
                from scipy.ndimage import spline_filter1d

                work = spline_filter1d(work, 3, axis + 1, np.float32, mode='mirror')
            work = _apply_axis(work, weights[axis], axis + 1)
    result = work if data.ndim == 4 else work[0]
    if np.shares_memory(result, data):
        return result.copy(order='C')
    return np.ascontiguousarray(result)


def smooth_for_growth(data: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Smooth an image that linear interpolation would alias on a coarser grid.

    Parameters
    ----------
    data : ndarray, shape (x, y, z), float32
        Source image.
    matrix : ndarray, shape (4, 4)
        From voxels of the destination to voxels of the source.

    Returns
    -------
    ndarray, shape (x, y, z), float32
        `data` itself where no axis grows by more than sqrt(3); else its convolution with the
        Gaussian of the second moment that :func:`axis_weights` gives.
    """
    from scipy.ndimage import gaussian_filter

    # The length that one destination voxel spans along each source axis.
    growth = np.sqrt((np.asarray(matrix)[:3, :3] ** 2).sum(axis=1))
    sigma = np.sqrt(np.clip(growth**2 - 3, 0, None) / 12)
    return gaussian_filter(data, sigma, mode='nearest') if sigma.any() else data


def resample_to(
    data: np.ndarray,
    src_affine: np.ndarray,
    dst_shape: Sequence[int],
    dst_affine: np.ndarray,
    order: int = 1,
    outside: str = 'zero',
) -> np.ndarray:
    """Resample onto any grid, rotated or not.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Finite values.
    src_affine, dst_affine : array-like, shape (4, 4)
        Voxel-to-world matrices in mm.
    dst_shape : sequence of 3 int
        Voxels of the destination grid.
    order : {0, 1, 3}
        Nearest neighbour (labels), linear or cubic B-spline.
    outside : {'zero', 'edge'}
        Value beyond the field of view of the source.

    Returns
    -------
    ndarray, shape dst_shape
        float32; with order 0 the dtype of `data`. Rotated grids whose voxels are larger than
        those of the source are smoothed first (Gaussian of matching second moment).
    """
    if separable_axes(src_affine, dst_shape, dst_affine) is not None:
        return resample_separable(
            data, src_affine, dst_shape, dst_affine, order=order, outside=outside
        )
    from scipy.ndimage import affine_transform

    data = np.asarray(data)
    matrix = np.linalg.inv(np.asarray(src_affine, float)) @ np.asarray(dst_affine, float)
    if order != 0:
        data = smooth_for_growth(data.astype(np.float32, copy=False), matrix)
    result = affine_transform(
        data,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=tuple(int(n) for n in dst_shape),
        output=data.dtype,
        order=order,
        mode='nearest',
    )
    if outside == 'zero':
        result[~_inside(matrix, data.shape, dst_shape)] = 0
    return result


def resample_rigid(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    matrix: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    order: int = 3,
) -> tuple[np.ndarray, np.ndarray]:
    """Resample an image onto the grid of another one through a map between their worlds.

    Parameters
    ----------
    moving : ndarray, shape (x, y, z)
        Finite values.
    moving_affine : array-like, shape (4, 4)
        Its voxel-to-world matrix in mm.
    matrix : array-like, shape (4, 4)
        World of the grid to world of `moving`, mm, as
        :func:`bids_app.registration.rigid.register_rigid` returns it.
    shape : sequence of 3 int
        Voxels of the grid.
    affine : array-like, shape (4, 4)
        Its voxel-to-world matrix in mm.
    order : {0, 1, 3}
        Nearest neighbour (labels), linear, or cubic B-spline. The values of cubic B-splines are
        cut to the range of `moving`, which they would leave beside sharp edges.

    Returns
    -------
    data : ndarray, shape `shape`
        float32, with order 0 the dtype of `moving`; 0 where `moving` does not reach.
    covered : ndarray of bool, shape `shape`
        Voxels whose centre lies in the field of view of `moving`.
    """
    moving = np.asarray(moving)
    source = np.linalg.inv(np.asarray(matrix, float)) @ np.asarray(moving_affine, float)
    data = resample_to(moving, source, shape, affine, order)
    if order == 3:
        np.clip(data, moving.min(), moving.max(), out=data)
    covered = np.empty(data.shape, dtype=bool)
    to_voxel = np.linalg.inv(source)
    planes = max((1 << 22) // max(data[0].size, 1), 1)  # positions in float64 are large
    for first in range(0, data.shape[0], planes):
        part, place = slab(data.shape, affine, first, first + planes)
        covered[first : first + planes] = _inside(to_voxel @ place, moving.shape, part)
    # Both ways of interpolating leave a little room for rounding at the border.
    data[~covered] = 0
    return data, covered


def _inside(matrix: np.ndarray, src_shape: Sequence[int], dst_shape: Sequence[int]) -> np.ndarray:
    """Return which destination voxels have their centre in the field of view of the source."""
    inside = np.ones(tuple(int(n) for n in dst_shape), dtype=bool)
    i, j, k = np.ogrid[tuple(slice(int(n)) for n in dst_shape)]
    for row, count in zip(matrix[:3], src_shape, strict=True):
        position = row[0] * i + row[1] * j + row[2] * k + row[3]
        inside &= (position >= -0.5) & (position <= count - 0.5)
    return inside
