# SPDX-License-Identifier: Apache-2.0
"""What registration looks at: shares of tissues and structures in every voxel.

A head is described by grey matter, white matter and a few groups of structures. Structures that
touch each other never share a group, so that every border between two of them is an edge in some
channel. Left and right share channels: where they lie tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.data import structures
from bids_app.images.grids import conform_grid
from bids_app.images.resample import resample_separable

GROUPS: tuple[tuple[str, ...], ...] = (
    ('lateral-ventricle', 'inferior-lateral-ventricle', 'fourth-ventricle', 'pallidum'),
    ('thalamus', 'putamen', 'brain-stem'),
    ('caudate', 'hippocampus', 'cerebellum-cortex', 'third-ventricle'),
    ('ventral-dc', 'amygdala', 'accumbens'),
)
"""Kinds of structure (``bids_app/data/structures.tsv``) that make up each further channel."""

CHANNELS = 2 + len(GROUPS)
"""Grey matter, white matter, then the groups."""

SPACING = 1.5
"""Voxel size of registration, mm."""

_FEWEST_VOXELS = 20  # of a structure whose centre is to be trusted


@dataclass(frozen=True)
class Shares:
    """A head as registration sees it.

    Attributes
    ----------
    data : ndarray, shape (channels, x, y, z), float32
        Shares, 0 to 1.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix, mm, RAS order.
    centres : dict
        Centre of mass of every structure in world mm, by its number.
    """

    data: np.ndarray
    affine: np.ndarray
    centres: dict[int, np.ndarray]


def group_values() -> list[list[int]]:
    """Return the numbers of the structures in each group."""
    return [[s.index for s in structures() if s.kind in group] for group in GROUPS]


def structure_centres(labels: np.ndarray, affine: np.ndarray) -> dict[int, np.ndarray]:
    """Return the centre of mass of every structure that is large enough.

    Parameters
    ----------
    labels : ndarray of int, shape (x, y, z)
        FreeSurfer's numbers.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix, mm.

    Returns
    -------
    dict
        Number of the structure: ndarray, shape (3,), world mm.
    """
    where = np.nonzero(labels)
    values = labels[where].astype(np.int64)
    count = np.bincount(values)
    sums = [np.bincount(values, weights=axis) for axis in where]
    known = {structure.index for structure in structures()}
    centres = {}
    for value in np.nonzero(count >= _FEWEST_VOXELS)[0]:
        if int(value) in known:
            voxel = np.array([axis[value] for axis in sums]) / count[value]
            centres[int(value)] = affine[:3, :3] @ voxel + affine[:3, 3]
    return centres


def scan_shares(gm: np.ndarray, wm: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> Shares:
    """Describe a segmented scan on a grid of 1.5 mm along its own axes, cut to its brain.

    Parameters
    ----------
    gm, wm : ndarray, shape (x, y, z)
        Tissue probabilities.
    labels : ndarray of int, shape (x, y, z)
        Structures with FreeSurfer's numbers; all zero if there are none.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix of the scan, any axis order.

    Returns
    -------
    Shares

    Raises
    ------
    ValueError
        If there is neither grey nor white matter.
    """
    brain = (gm + wm) > 0.5
    if not brain.any():
        raise ValueError('there is no grey or white matter to register')
    shape, grid = conform_grid(labels.shape, affine, SPACING)
    # The box of the brain on the new grid, with room for gradients.
    corners = np.array([(np.nonzero(brain.any(axis=(1, 2)))[0][[0, -1]]),
                        (np.nonzero(brain.any(axis=(0, 2)))[0][[0, -1]]),
                        (np.nonzero(brain.any(axis=(0, 1)))[0][[0, -1]])])  # fmt: skip
    box = np.stack(np.meshgrid(*corners, indexing='ij')).reshape(3, -1)
    to_grid = np.linalg.inv(grid) @ affine
    placed = to_grid[:3, :3] @ box + to_grid[:3, 3:]
    first = np.maximum(np.floor(placed.min(axis=1)).astype(int) - 6, 0)
    last = np.minimum(np.ceil(placed.max(axis=1)).astype(int) + 7, shape)
    grid = grid.copy()
    grid[:3, 3] += grid[:3, :3] @ first
    size = tuple(int(n) for n in last - first)
    data = np.empty((CHANNELS, *size), dtype=np.float32)
    channels = [gm, wm, *(np.isin(labels, values) for values in group_values())]
    for number, channel in enumerate(channels):
        data[number] = resample_separable(
            np.asarray(channel, dtype=np.float32), affine, size, grid
        )
    return Shares(np.clip(data, 0, 1), grid, structure_centres(labels, affine))


def template_shares(tissues: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> Shares:
    """Describe a template whose maps are on the registration grid.

    Parameters
    ----------
    tissues : ndarray, shape (2 or more, x, y, z)
        Probabilities of grey and white matter, 0 to 1.
    labels : ndarray of int, shape (x, y, z)
        Structures with FreeSurfer's numbers.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix, mm, RAS order.

    Returns
    -------
    Shares
    """
    data = np.stack(
        [tissues[0], tissues[1], *(np.isin(labels, values) for values in group_values())]
    ).astype(np.float32)
    return Shares(data, affine, structure_centres(labels, affine))
