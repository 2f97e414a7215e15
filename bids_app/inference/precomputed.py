# SPDX-License-Identifier: Apache-2.0
"""Put a brain mask or tissue maps that were made elsewhere in the place of ours.

The files have to lie where the scan lies in the world; their axes and voxels may differ. Masks
are cut at one half after resampling. A mask limits the tissues, or the tissues that are given
define the mask if none is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.errors import ImageError

TISSUES = ('gm', 'wm', 'csf')

LEAST_OVERLAP = 0.1
"""A file is taken to lie elsewhere if less than this part of it, or of the brain that we found,
lies in the other. Masks of one brain by different programs share nine tenths; with less than
:data:`USUAL_OVERLAP` (Dice) there is a note."""
USUAL_OVERLAP = 0.85
TOLERANCE = 0.02
"""Probabilities may leave the range from 0 to 1 by this much (rounding, cubic interpolation)."""


def read_on_grid(
    path: Path, shape: tuple[int, int, int], affine: np.ndarray
) -> tuple[np.ndarray, str | None]:
    """Read a mask or a map and bring it to the grid of a scan.

    Parameters
    ----------
    path : Path
        NIfTI image with values from 0 to 1.
    shape : tuple of int
        Shape of the scan.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix of the scan, mm, RAS+.

    Returns
    -------
    data : ndarray of float32, shape `shape`
        0 to 1; zero outside the field of view of the file.
    note : str or None
        What had to be done, if its voxels are not those of the scan in another order.

    Raises
    ------
    ImageError
        If it cannot be read, is no volume, or holds other values.
    """
    from bids_app.images.grids import voxel_sizes
    from bids_app.images.resample import resample_to
    from bids_app.images.scans import MAX_GRID, open_image, read_voxels

    image = open_image(Path(path))
    if (
        len(image.shape) < 3
        or min(image.shape) < 1
        or math.prod(image.shape[3:]) != 1
        or math.prod(int(n) for n in image.shape[:3]) > MAX_GRID
    ):
        raise ImageError(f'{path}: not a volume, its shape is {image.shape}; repair or remove it')
    data = read_voxels(image, Path(path), [])
    low, high = (float(data.min()), float(data.max())) if data.size else (0.0, 0.0)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also true of NaN
        raise ImageError(
            f'{path}: values from {low:g} to {high:g}; a mask or a map of probabilities from 0 to '
            '1 is needed'
        )
    if not data.any():
        raise ImageError(f'{path}: it is empty; repair or remove it')
    found = np.clip(resample_to(data, image.affine, shape, affine), 0, 1)
    relation = np.linalg.inv(image.affine) @ affine
    # The same voxels in another order: a permutation with signs, shifted by whole voxels.
    if np.allclose(relation, np.rint(relation), atol=1e-3):
        return found, None
    sizes = ' x '.join(f'{size:g}' for size in np.round(voxel_sizes(image.affine), 3))
    return found, f'{path.name}: resampled from its own grid ({sizes} mm) to that of the scan'


def replace(
    own: Mapping[str, np.ndarray],
    affine: np.ndarray,
    structures: list[dict[str, Any]],
    *,
    mask: np.ndarray | None = None,
    tissues: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """Replace the mask, the tissue maps or both, and what follows from them.

    Parameters
    ----------
    own : mapping of ndarray, shape (x, y, z)
        Ours on the grid of the scan: ``mask``, ``dseg``, ``gm``, ``wm``, ``csf``, ``wholebrain``
        and ``entropy``.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix of the scan, mm.
    structures : list of dict
        Our volumes: ``index``, ``volume_mm3`` and ``mean_probability``.
    mask : ndarray, shape (x, y, z), optional
        0 to 1; inside where at least one half.
    tissues : mapping of ndarray, shape (x, y, z), optional
        ``gm``, ``wm`` and ``csf``, probabilities from 0 to 1.

    Returns
    -------
    maps : dict of ndarray
        As `own`. Tissues, structures and uncertainty are zero outside a mask that was given; the
        sum of the tissues is at most one.
    findings : dict
        ``tissues``, ``structures`` (volumes of structures shrink by the share of their voxels
        that a given mask leaves out), ``tiv_mm3`` and ``entropy_mean``.
    notes : list of str
        What is worth knowing.

    Raises
    ------
    ImageError
        If what is given does not lie where the brain is.
    """
    from bids_app.images.masks import clean_mask
    from bids_app.morphometry.volumes import voxel_volume

    maps = {name: np.array(data) for name, data in own.items()}
    before = maps['mask'] > 0
    voxel = voxel_volume(affine)
    if tissues is not None:
        given = np.stack([np.clip(tissues[name], 0, 1) for name in TISSUES]).astype(np.float32)
        total = given.sum(axis=0)
        given /= np.maximum(total, 1)
        maps.update(zip(TISSUES, given, strict=True))
        inside = clean_mask(total > 0.5) if mask is None else mask >= 0.5
    elif mask is not None:
        inside = mask >= 0.5
    else:
        raise ValueError('neither a mask nor tissues are given')
    notes = _compare(inside, before, voxel)
    maps['mask'] = inside.astype(np.uint8)
    if mask is not None:
        for name in (*TISSUES, 'wholebrain', 'entropy'):
            maps[name][~inside] = 0
        structures = _shrunken(structures, own['wholebrain'], inside)
    stacked = np.stack([maps[name] for name in TISSUES])
    found = inside & (stacked.sum(axis=0) > 0)
    maps['dseg'] = np.where(found, stacked.argmax(axis=0) + 1, 0).astype(np.uint8)
    rows = []
    for number, name in enumerate(TISSUES, start=1):
        chosen = maps['dseg'] == number
        rows.append(
            {
                'index': number,
                'name': name.upper(),
                'volume_mm3': float(maps[name].sum(dtype=np.float64)) * voxel,
                'mean_probability': float(maps[name][chosen].mean()) if chosen.any() else math.nan,
            }
        )
    findings = {
        'tissues': rows,
        'structures': structures,
        'tiv_mm3': sum(row['volume_mm3'] for row in rows),
        'entropy_mean': float(maps['entropy'][inside].mean()),
    }
    return maps, findings, notes


def mask_only(
    own: np.ndarray, affine: np.ndarray, mask: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """Replace the mask where nothing else was computed.

    Parameters
    ----------
    own, mask : ndarray, shape (x, y, z)
        Ours, and the one that was given, 0 to 1.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix of the scan, mm.

    Returns
    -------
    maps, findings, notes
        As for :func:`replace`: ``mask``; ``volume_mm3``.
    """
    from bids_app.morphometry.volumes import voxel_volume

    inside, voxel = mask >= 0.5, voxel_volume(affine)
    notes = _compare(inside, own > 0, voxel)
    found = {'volume_mm3': float(inside.sum()) * voxel}
    return {'mask': inside.astype(np.uint8)}, found, notes


def _compare(inside: np.ndarray, before: np.ndarray, voxel: float) -> list[str]:
    """Compare the new brain with the one that we found."""
    both = int((inside & before).sum())
    sizes = int(inside.sum()), int(before.sum())
    if both < LEAST_OVERLAP * max(*sizes, 1):
        raise ImageError(
            'what --derivatives gives does not lie where the brain of the scan is (they share '
            f'{100 * both / max(*sizes, 1):.0f} %): is it in another space, or of another scan?'
        )
    notes = []
    dice = 2 * both / sum(sizes)
    if dice < USUAL_OVERLAP:
        notes.append(
            f'the brain differs from the one that the network found (Dice {dice:.2f}): look at it'
        )
    new = (sizes[0] - both) * voxel / 1000
    if new > 0.01 * sizes[1] * voxel / 1000:
        notes.append(f'{new:.0f} cm^3 of it lie outside the brain that the network found')
    return notes


def _shrunken(
    structures: list[dict[str, Any]], labels: np.ndarray, inside: np.ndarray
) -> list[dict[str, Any]]:
    """Return volumes without the share of every structure that lies outside a mask."""
    labels = labels.astype(np.intp)
    every = np.bincount(labels.ravel(), minlength=256)
    kept = np.bincount(labels[inside], minlength=256)
    share = np.where(every > 0, kept / np.maximum(every, 1), 1.0)
    return [
        {**row, 'volume_mm3': row['volume_mm3'] * float(share[row['index']])} for row in structures
    ]
