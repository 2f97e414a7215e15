# SPDX-License-Identifier: Apache-2.0
"""Maps of the diffusion tensor, and their means in brain structures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bids_app.data import structures
from bids_app.diffusion.tensor import TensorFit, fractional_anisotropy

if TYPE_CHECKING:
    import pandas as pd

MAPS = ('fa', 'md', 'ad', 'rd')
"""Fractional anisotropy, and mean, axial and radial diffusivity."""

REGION_COLUMNS = {
    'index': {'Description': "Value in the segmentation (FreeSurfer's number)"},
    'name': {'Description': "Structure (FreeSurfer's name)"},
    'voxels': {'Description': 'Voxels of the diffusion image that belong to it'},
    'fa_mean': {'Description': 'Mean of fractional anisotropy'},
    'fa_sd': {'Description': 'Standard deviation of fractional anisotropy'},
    'md_mean': {'Description': 'Mean of mean diffusivity', 'Units': 'um^2/ms'},
    'md_sd': {'Description': 'Standard deviation of mean diffusivity', 'Units': 'um^2/ms'},
    'ad_mean': {'Description': 'Mean of axial diffusivity', 'Units': 'um^2/ms'},
    'ad_sd': {'Description': 'Standard deviation of axial diffusivity', 'Units': 'um^2/ms'},
    'rd_mean': {'Description': 'Mean of radial diffusivity', 'Units': 'um^2/ms'},
    'rd_sd': {'Description': 'Standard deviation of radial diffusivity', 'Units': 'um^2/ms'},
}
"""What the columns of :func:`region_table` mean, for its JSON sidecar."""


def tensor_maps(fit: TensorFit) -> dict[str, np.ndarray]:
    """Return fractional anisotropy and the diffusivities of a tensor fit.

    Parameters
    ----------
    fit : TensorFit

    Returns
    -------
    dict of ndarray, shape (x, y, z), float32
        :data:`MAPS`: ``fa`` from 0 to 1; ``md``, ``ad`` and ``rd`` in um^2/ms.
    """
    first, second, third = fit.eigenvalues
    return {
        'fa': fractional_anisotropy(fit.eigenvalues).astype(np.float32),
        'md': (first + second + third) / 3,
        'ad': first,
        'rd': (second + third) / 2,
    }


def direction_colours(fa: np.ndarray, vectors: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Colour anisotropy by the direction of the first eigenvector.

    Parameters
    ----------
    fa : ndarray, shape (x, y, z)
        0 to 1.
    vectors : ndarray, shape (3, x, y, z)
        First eigenvectors along the voxel axes.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix of the image.

    Returns
    -------
    ndarray, shape (3, x, y, z), float32
        Red for left-right, green for front-back, blue for up-down in the world, times FA (Pajevic
        & Pierpaoli, Magnetic Resonance in Medicine 1999).
    """
    from bids_app.diffusion.gradients import world_directions

    flat = world_directions(vectors.reshape(3, -1).T, affine).T.reshape(vectors.shape)
    return (np.abs(flat) * np.clip(fa, 0, 1)).astype(np.float32)


def region_table(
    labels: np.ndarray, maps: Mapping[str, np.ndarray], valid: np.ndarray
) -> pd.DataFrame:
    """Describe diffusion in brain structures.

    Parameters
    ----------
    labels : ndarray of int, shape (x, y, z)
        Structures on the diffusion grid, with the numbers of :func:`bids_app.data.structures`.
    maps : mapping of str to ndarray, shape (x, y, z)
        :data:`MAPS`.
    valid : ndarray of bool, shape (x, y, z)
        Where the maps hold something.

    Returns
    -------
    pandas.DataFrame
        One row per structure of the table of structures, also for one without a voxel, with the
        columns of :data:`REGION_COLUMNS`. Standard deviations are of the voxels (n - 1).
    """
    import pandas as pd

    inside = labels[valid].astype(np.intp)
    values = {name: np.asarray(maps[name], np.float64)[valid] for name in MAPS}
    length = max(int(inside.max(initial=0)), max(s.index for s in structures())) + 1
    count = np.bincount(inside, minlength=length)
    rows = []
    with np.errstate(divide='ignore', invalid='ignore'):
        mean = {n: np.bincount(inside, v, length) / count for n, v in values.items()}
        sd = {
            n: np.sqrt(np.bincount(inside, (v - mean[n][inside]) ** 2, length) / (count - 1))
            for n, v in values.items()
        }
    for structure in structures():
        index = structure.index
        row = {'index': index, 'name': structure.name, 'voxels': int(count[index])}
        for name in MAPS:
            row[f'{name}_mean'] = float(mean[name][index]) if count[index] else np.nan
            row[f'{name}_sd'] = float(sd[name][index]) if count[index] > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows, columns=list(REGION_COLUMNS))


def majority_labels(
    labels: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    target_affine: np.ndarray,
    matrix: np.ndarray | None = None,
) -> np.ndarray:
    """Bring labels to a coarser grid: every voxel gets the label that fills most of it.

    Parameters
    ----------
    labels : ndarray of int, shape (x, y, z)
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix of the labels.
    shape, target_affine
        The other grid.
    matrix : array-like, shape (4, 4), optional
        World of the other grid to world of the labels, mm. Default: they are the same.

    Returns
    -------
    ndarray, shape `shape`, dtype of `labels`
        Shares are those of linear interpolation, averaged where voxels grow; 0 where the
        background has the largest share, and outside.
    """
    from bids_app.images.resample import resample_rigid

    matrix = np.eye(4) if matrix is None else matrix
    best = np.zeros(shape, labels.dtype)
    left = np.ones(shape, np.float32)  # share of what has not been looked at: the background
    share = np.zeros(shape, np.float32)
    for label in np.unique(labels[labels != 0]):
        own, _ = resample_rigid(
            (labels == label).astype(np.float32), affine, matrix, shape, target_affine, order=1
        )
        better = own > share
        best[better], share[better] = label, own[better]
        left -= own
    best[left > share] = 0
    return best
