# SPDX-License-Identifier: Apache-2.0
"""Small operations on binary masks; all work inside the bounding box of the mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .grids import voxel_sizes


def bounding_box(mask: np.ndarray, margin: int | tuple[int, ...] = 0) -> tuple[slice, ...]:
    """Return the smallest box that holds a mask.

    Parameters
    ----------
    mask : ndarray of bool
        Any number of dimensions.
    margin : int or tuple of int
        Voxels added on every side, cut at the border of the array.

    Returns
    -------
    tuple of slice
        The whole array if the mask is empty.
    """
    margins = (margin,) * mask.ndim if np.isscalar(margin) else tuple(margin)
    box = []
    for axis, extra in enumerate(margins):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        used = np.flatnonzero(mask.any(axis=others))
        if used.size == 0:
            return tuple(slice(0, n) for n in mask.shape)
        box.append(
            slice(max(int(used[0]) - extra, 0), min(int(used[-1]) + 1 + extra, mask.shape[axis]))
        )
    return tuple(box)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest face-connected part of a mask.

    Parameters
    ----------
    mask : ndarray, shape (x, y, z)
        Nonzero is inside.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
        Of parts of equal size the first in memory order is kept.
    """
    mask = np.asarray(mask) != 0
    box = bounding_box(mask)
    labels, count = ndimage.label(mask[box])
    if count <= 1:
        return mask.copy()
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = np.zeros_like(mask)
    kept[box] = labels == sizes.argmax()
    return kept


def remove_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Remove face-connected parts of fewer than a number of voxels.

    Parameters
    ----------
    mask : ndarray, shape (x, y, z)
        Nonzero is inside.
    voxels : float
        Smallest size that stays.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
    """
    labels, _ = ndimage.label(np.asarray(mask) != 0)
    stays = np.bincount(labels.ravel()) >= voxels
    stays[0] = False
    return stays[labels]


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill cavities that no face-connected path joins to the outside.

    Parameters
    ----------
    mask : ndarray, shape (x, y, z)
        Nonzero is inside.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
    """
    mask = np.asarray(mask) != 0
    box = bounding_box(mask)
    # One voxel of background all around joins everything outside into one component.
    outside, count = ndimage.label(np.pad(~mask[box], 1, constant_values=True))
    filled = mask.copy()
    if count > 1:
        filled[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Return the largest part of a mask with its cavities filled.

    Parameters
    ----------
    mask : ndarray, shape (x, y, z)
        Nonzero is inside.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
    """
    return fill_holes(largest_component(mask))


def dilate_mm(mask: np.ndarray, affine: np.ndarray, distance: float) -> np.ndarray:
    """Add everything within a distance of a mask.

    Parameters
    ----------
    mask : ndarray, shape (x, y, z)
        Nonzero is inside.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix; only its voxel sizes are used.
    distance : float
        Distance between voxel centres in mm; a negative one erodes.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
    """
    mask = np.asarray(mask) != 0
    if distance < 0:
        return erode_mm(mask, affine, -distance)
    if distance == 0 or not mask.any():
        return mask.copy()
    sizes = voxel_sizes(affine)
    box = bounding_box(mask, tuple(int(np.ceil(distance / size)) for size in sizes))
    away = ndimage.distance_transform_edt(~mask[box], sampling=sizes)
    grown = np.zeros_like(mask)
    grown[box] = away <= distance * (1 + 1e-6)
    return grown


def erode_mm(mask: np.ndarray, affine: np.ndarray, distance: float) -> np.ndarray:
    """Remove everything within a distance of the outside of a mask.

    The border of the array does not count as outside.

    Parameters
    ----------
    mask : ndarray, shape (x, y, z)
        Nonzero is inside.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix; only its voxel sizes are used.
    distance : float
        Distance between voxel centres in mm.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
    """
    mask = np.asarray(mask) != 0
    if distance <= 0 or mask.all():
        return mask.copy()
    box = bounding_box(mask, 1)
    depth = ndimage.distance_transform_edt(mask[box], sampling=voxel_sizes(affine))
    shrunken = np.zeros_like(mask)
    shrunken[box] = depth > distance * (1 + 1e-6)
    return shrunken


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that best separates values into two groups (Otsu 1979).

    Parameters
    ----------
    values : ndarray
        Finite values, any shape. The brightest 0.1 % do not take part.
    bins : int
        Histogram resolution.

    Returns
    -------
    float
        Threshold in the units of `values`; their value if they are all equal.
    """
    values = np.asarray(values).ravel()
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    if not high > low:
        return low
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts, dtype=float)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide='ignore', invalid='ignore'):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    # Over an empty stretch of the histogram the criterion is flat: take its middle.
    best = np.flatnonzero(between >= np.nanmax(between) * (1 - 1e-9))
    return float(edges[1:][best].mean())
