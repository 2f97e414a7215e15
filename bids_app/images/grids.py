# SPDX-License-Identifier: Apache-2.0
"""Voxel grids: axis order, conformed grids, slabs, and how two grids lie to each other.

Arrays are indexed ``[..., i, j, k]`` (the last three axes are spatial, leading axes are
channels); an affine is a 4x4 matrix from voxel indices to world millimetres (RAS+), and an
integer index is the *centre* of a voxel, so that ``n`` voxels cover the indices from -0.5 to
``n`` - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Positions closer than this to a voxel centre (in voxels) count as on it: float32 headers carry
# rounding of this order, and copying is exact where interpolation would blur.
POSITION_TOLERANCE = 1e-3

# Voxel sizes within this fraction of the requested one are kept, so that nominal 1 mm scans
# (0.9998 mm, say) are not interpolated for nothing. Volumes always use the true affine.
ZOOM_TOLERANCE = 0.01


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Return the voxel size along each array axis.

    Parameters
    ----------
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.

    Returns
    -------
    ndarray, shape (3,)
        Lengths of the three column vectors, in mm.

    Examples
    --------
    >>> voxel_sizes(np.diag([-1.0, 2.0, 3.0, 1.0])).tolist()
    [1.0, 2.0, 3.0]
    """
    return np.sqrt((np.asarray(affine, dtype=float)[:3, :3] ** 2).sum(axis=0))


def orientation(affine: np.ndarray) -> np.ndarray:
    """Return which world axis each array axis follows, and in which direction.

    Parameters
    ----------
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix; oblique axes go to their nearest world axis.

    Returns
    -------
    ndarray of int, shape (3, 2)
        Row ``a``: world axis (0 = R, 1 = A, 2 = S) of array axis ``a`` and +1 or -1. Each world
        axis occurs once. The format is that of :mod:`nibabel.orientations`.
    """
    from nibabel.orientations import io_orientation

    return io_orientation(np.asarray(affine, dtype=float)).astype(int)


def canonical_affine(
    shape: Sequence[int], affine: np.ndarray
) -> tuple[tuple[int, int, int], np.ndarray, np.ndarray]:
    """Return the grid that :func:`canonical` gives, without data.

    Parameters
    ----------
    shape : sequence of 3 int
        Voxels along each array axis.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.

    Returns
    -------
    shape_ras : tuple of 3 int
    affine_ras : ndarray, shape (4, 4)
    transform : ndarray of int, shape (3, 2)
        As returned by :func:`orientation`.
    """
    affine = np.asarray(affine, dtype=float)
    transform = orientation(affine)
    # `to_native` maps RAS-ordered indices to the indices of the given grid.
    to_native = np.zeros((4, 4))
    to_native[3, 3] = 1.0
    shape_ras = [0, 0, 0]
    for axis, (world, direction) in enumerate(transform):
        shape_ras[world] = int(shape[axis])
        to_native[axis, world] = direction
        if direction < 0:
            to_native[axis, 3] = shape[axis] - 1
    return tuple(shape_ras), affine @ to_native, transform


def canonical(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Permute and flip axes into RAS order; values are never interpolated.

    Parameters
    ----------
    data : ndarray, shape (..., x, y, z)
        Image or channels of an image.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.

    Returns
    -------
    data_ras : ndarray
        A view of `data` where possible.
    affine_ras : ndarray, shape (4, 4)
        Its columns point closest to right, anterior and superior.
    transform : ndarray of int, shape (3, 2)
        What :func:`from_canonical` needs to undo the step.
    """
    data = np.asarray(data)
    _, affine_ras, transform = canonical_affine(data.shape[-3:], affine)
    lead = data.ndim - 3
    flips = [lead + axis for axis in range(3) if transform[axis, 1] < 0]
    order = [*range(lead), *(lead + int(axis) for axis in np.argsort(transform[:, 0]))]
    return np.flip(data, flips).transpose(order), affine_ras, transform


def from_canonical(data_ras: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Undo :func:`canonical`.

    Parameters
    ----------
    data_ras : ndarray, shape (..., x, y, z)
        Array in RAS order.
    transform : ndarray of int, shape (3, 2)
        As returned by :func:`canonical`.

    Returns
    -------
    ndarray
        The array in its original axis order and directions.
    """
    data_ras = np.asarray(data_ras)
    lead = data_ras.ndim - 3
    data = data_ras.transpose([*range(lead), *(lead + int(world) for world in transform[:, 0])])
    return np.flip(data, [lead + axis for axis in range(3) if transform[axis, 1] < 0])


def conform_grid(
    shape: Sequence[int], affine: np.ndarray, voxel_size: float = 1.0
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the grid in RAS order, of the given voxel size, over the same field of view.

    The axes keep the direction of the scan's (an oblique scan stays oblique), the centre of the
    field of view stays where it is in the world, and the new voxels cover the whole of the old
    ones, edge to edge. An axis whose voxel size is within 1 % of `voxel_size` is kept as it is.

    Parameters
    ----------
    shape : sequence of 3 int
        Voxels along each array axis of the scan.
    affine : array-like, shape (4, 4)
        Its voxel-to-world matrix in mm.
    voxel_size : float
        Edge length of the new voxels in mm.

    Returns
    -------
    shape : tuple of 3 int
    affine : ndarray, shape (4, 4)

    Examples
    --------
    >>> shape, affine = conform_grid((10, 10, 4), np.diag([1.0, 1.0, 3.0, 1.0]))
    >>> shape, affine[2, 3].item()
    ((10, 10, 12), -1.0)
    """
    shape_ras, affine_ras, _ = canonical_affine(shape, affine)
    count = np.array(shape_ras)
    zooms = voxel_sizes(affine_ras)
    scale = np.where(np.abs(zooms / voxel_size - 1) <= ZOOM_TOLERANCE, 1.0, voxel_size / zooms)
    # A rounding error must not add a voxel, hence the small allowance.
    new_count = np.maximum(np.ceil(count / scale - POSITION_TOLERANCE), 1).astype(int)
    new_count = np.where(scale == 1, count, new_count)
    new_affine = affine_ras.copy()
    new_affine[:3, :3] = affine_ras[:3, :3] * scale
    if np.all(scale == 1):
        return shape_ras, affine_ras
    centre = affine_ras[:3, :3] @ ((count - 1) / 2) + affine_ras[:3, 3]
    new_affine[:3, 3] = centre - new_affine[:3, :3] @ ((new_count - 1) / 2)
    return tuple(int(n) for n in new_count), new_affine


def slab(
    shape: Sequence[int], affine: np.ndarray, start: int, stop: int, axis: int = 0
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the part of a grid between two indices of one axis, as a grid of its own.

    Resampling onto the slabs of a grid one after the other gives the same values as resampling
    onto the whole grid, with a fraction of the memory.

    Parameters
    ----------
    shape : sequence of 3 int
    affine : array-like, shape (4, 4)
    start, stop : int
        First voxel and the one after the last along `axis`.
    axis : int
        Array axis that is cut.

    Returns
    -------
    shape : tuple of 3 int
    affine : ndarray, shape (4, 4)
    """
    affine = np.array(affine, dtype=float)
    stop = min(stop, shape[axis])
    new_shape = [int(n) for n in shape]
    new_shape[axis] = max(stop - start, 0)
    affine[:3, 3] += affine[:3, axis] * start
    return tuple(new_shape), affine


def separable_axes(
    src_affine: np.ndarray, dst_shape: Sequence[int], dst_affine: np.ndarray
) -> list[tuple[int, float, float]] | None:
    """Relate the axes of two grids that share their directions.

    Parameters
    ----------
    src_affine, dst_affine : array-like, shape (4, 4)
        Voxel-to-world matrices in mm.
    dst_shape : sequence of 3 int
        Voxels of the destination grid.

    Returns
    -------
    list of (src_axis, scale, offset), or None
        For each destination axis, the source axis that it runs along and the line
        ``src_index = scale * dst_index + offset``. None where the axes are not parallel, that
        is where some voxel would be off by more than 0.01 source voxels.
    """
    matrix = np.linalg.inv(np.asarray(src_affine, float)) @ np.asarray(dst_affine, float)
    linear = matrix[:3, :3]
    middle = (np.array(dst_shape, dtype=float) - 1) / 2
    middle_in_src = linear @ middle + matrix[:3, 3]
    source_axes = np.abs(linear).argmax(axis=0)
    if sorted(source_axes) != [0, 1, 2]:
        return None
    relation, rest = [], np.abs(linear)
    for axis, source in enumerate(source_axes):
        scale = float(linear[source, axis])
        # Anchored at the middle of the grid, rounding errors stay smallest.
        relation.append((int(source), scale, float(middle_in_src[source] - scale * middle[axis])))
        rest[source, axis] = 0.0
    if (rest @ middle).max() > 0.01:
        return None
    return relation
