# SPDX-License-Identifier: Apache-2.0
"""Optional removal of noise from a diffusion series by principal components (MP-PCA).

In a small patch the volumes are redundant: the signal lives in a few principal components, and
the eigenvalues of pure noise follow the Marchenko-Pastur distribution, which tells the two apart
without a parameter (Veraart et al., NeuroImage 142:394-406, 2016; the estimator of the noise is
that of Cordero-Grande et al., NeuroImage 200:391-404, 2019). It must come before everything that
interpolates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bids_app.diffusion.series import Series

STRIDE = 2
"""Voxels between the centres of patches; every voxel is the mean over all that hold it."""

_BATCH = 4096  # patches at a time


def denoise_series(series: Series) -> tuple[Series, dict[str, Any]]:
    """Remove noise from a series.

    Parameters
    ----------
    series : Series
        As it was acquired.

    Returns
    -------
    series : Series
    measures : dict
        ``sigma`` (median standard deviation of the noise where there is signal, in the unit of
        the data) and ``components`` (mean number of components that were kept).
    """
    data, sigma, kept = mppca(series.data)
    bright = series.data.mean(axis=3)
    head = bright > bright.mean()
    found = {
        'sigma': float(f'{np.median(sigma[head]):.4g}'),
        'components': round(float(kept[head].mean()), 2),
    }
    return replace(series, data=data), found


def mppca(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Denoise volumes patch by patch.

    Parameters
    ----------
    data : ndarray, shape (x, y, z, n)
        Patches are cubes of an odd edge with at least n voxels, or what fits into the image.

    Returns
    -------
    data : ndarray, shape (x, y, z, n), float32
    sigma : ndarray, shape (x, y, z), float32
        Standard deviation of the noise.
    kept : ndarray, shape (x, y, z), float32
        Number of components that were kept.
    """
    shape, volumes = data.shape[:3], data.shape[3]
    edge = 3
    while edge**3 < volumes:
        edge += 2
    edges = [min(edge, n) for n in shape]
    offsets = np.stack(np.meshgrid(*map(np.arange, edges), indexing='ij'), -1).reshape(-1, 3)
    corners = np.stack(
        np.meshgrid(
            *(
                np.unique([*range(0, n - e + 1, STRIDE), n - e])
                for n, e in zip(shape, edges, strict=True)
            ),
            indexing='ij',
        ),
        -1,
    ).reshape(-1, 3)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    flat = np.ascontiguousarray(data, np.float32).reshape(-1, volumes)
    total = np.zeros((len(flat), volumes + 3), np.float32)  # volumes, noise, components, weight
    for start in range(0, len(corners), _BATCH):
        where = corners[start : start + _BATCH] @ strides
        index = where[:, None] + offsets @ strides
        patches = flat[index]
        clean, sigma, kept = _denoise_patches(patches)
        parts = np.empty((*index.shape, volumes + 3), np.float32)
        parts[..., :volumes] = clean
        parts[..., volumes], parts[..., volumes + 1] = sigma[:, None], kept[:, None]
        parts[..., volumes + 2] = 1
        # One voxel of all patches at a time: no two of them are the same place.
        for voxel in range(index.shape[1]):
            total[index[:, voxel]] += parts[:, voxel]
    total[:, :-1] /= total[:, -1:]
    return (
        total[:, :volumes].reshape(data.shape),
        total[:, volumes].reshape(shape),
        total[:, volumes + 1].reshape(shape),
    )


def _denoise_patches(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Denoise patches (p, voxels, volumes); return them with noise and number of components."""
    _, voxels, volumes = patches.shape
    rank, most = min(voxels, volumes), max(voxels, volumes)
    gram = np.matmul(patches.transpose(0, 2, 1), patches).astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    # The smallest first; where there are fewer voxels than volumes the rest are zero.
    noise = np.maximum(values[:, volumes - rank :], 0) / most
    order = np.arange(1, rank + 1)
    mean = np.cumsum(noise, axis=1) / order
    gamma = order / (most - (rank - order))
    spread = (noise - noise[:, :1]) / (4 * np.sqrt(gamma))
    is_noise = spread < mean
    cut = np.where(is_noise.any(axis=1), rank - is_noise[:, ::-1].argmax(axis=1), 0)
    sigma = np.where(cut > 0, mean[np.arange(len(cut)), np.maximum(cut - 1, 0)], 0) ** 0.5
    keep = np.arange(volumes) >= (volumes - rank + cut)[:, None]
    used = (vectors * keep[:, None, :]).astype(np.float32)
    clean = np.matmul(np.matmul(patches, used), used.transpose(0, 2, 1))
    return clean, sigma, (rank - cut).astype(np.float32)
