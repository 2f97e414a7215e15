# SPDX-License-Identifier: Apache-2.0
"""The diffusion tensor of every voxel by weighted linear least squares.

The logarithm of the signal is linear in the tensor; its noise grows as the signal falls, so every
measurement is weighted by the square of the signal that an unweighted fit predicts (Salvador et
al., Human Brain Mapping 2005; Veraart et al., NeuroImage 2013: one such step is enough).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_DIFFUSIVITY = 4.0
"""um^2/ms: above that of free water at 37 degrees Celsius (3.0), whatever the noise says."""

_CHUNK = 32_768  # voxels at a time: what is in use then stays in the cache of a processor
_PAIRS = np.triu_indices(7)
_RIDGE = 1e-7
"""Of the mean diagonal of the normal equations: what a voxel does not determine becomes 0."""


@dataclass(frozen=True)
class TensorFit:
    """Result of :func:`fit_tensor`; all maps are float32 and 0 outside the mask.

    Attributes
    ----------
    s0 : ndarray, shape (x, y, z)
        Signal without diffusion weighting as the fit has it, in the unit of the data.
    tensor : ndarray, shape (6, x, y, z)
        xx, xy, xz, yy, yz, zz in um^2/ms, along the axes that the b-vectors refer to.
    eigenvalues : ndarray, shape (3, x, y, z)
        In um^2/ms, the largest first. Negative ones, which only noise makes, are 0.
    eigenvectors : ndarray, shape (3, 3, x, y, z)
        ``eigenvectors[i]`` is the unit vector of ``eigenvalues[i]``; its sign means nothing.
    """

    s0: np.ndarray
    tensor: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


def fit_tensor(
    data: np.ndarray, bvals: np.ndarray, bvecs: np.ndarray, mask: np.ndarray | None = None
) -> TensorFit:
    """Fit a diffusion tensor to every voxel of a mask.

    Parameters
    ----------
    data : ndarray, shape (x, y, z, n)
        Signal of n volumes. Values that are not above 0, which no magnitude image measures, do
        not count.
    bvals : ndarray, shape (n,)
        s/mm^2.
    bvecs : ndarray, shape (n, 3) or (3, n)
        Along the voxel axes of ``data``; in RAS+ order these are x to the right, y to the front,
        z up. They are made unit vectors; those of b = 0 do not matter. An array of 3 x 3 is read
        with one vector per row.
    mask : ndarray, shape (x, y, z), optional
        Nonzero where to fit. Default: everywhere.

    Returns
    -------
    TensorFit

    Raises
    ------
    ValueError
        If shapes do not fit, or if the directions do not determine a tensor.
    """
    bvals = np.asarray(bvals, np.float64).ravel()
    if data.ndim != 4 or data.shape[3] != bvals.size:
        raise ValueError(f'{bvals.size} b-values do not fit data of shape {data.shape}')
    design = design_matrix(bvals, bvecs)
    if np.linalg.matrix_rank(design, tol=1e-3) < 7:
        raise ValueError('fewer than six directions with two b-values: no tensor can be fitted')
    grid = data.shape[:3]
    inside = np.ones(grid, bool) if mask is None else np.asarray(mask) > 0
    voxels = np.nonzero(inside)

    s0 = np.zeros(grid, np.float32)
    tensor = np.zeros((6, *grid), np.float32)
    values = np.zeros((3, *grid), np.float32)
    vectors = np.zeros((3, 3, *grid), np.float32)
    for start in range(0, voxels[0].size, _CHUNK):
        part = tuple(index[start : start + _CHUNK] for index in voxels)
        fitted = _fit(data[part], design)
        s0[part] = np.exp(np.clip(fitted[:, 6], -80, 80)) * fitted.any(axis=1)
        tensor[(slice(None), *part)] = fitted[:, :6].T
        found = _eigen(fitted[:, :6])
        values[(slice(None), *part)], vectors[(slice(None), slice(None), *part)] = found
    return TensorFit(s0, tensor, values, vectors)


def design_matrix(bvals: np.ndarray, bvecs: np.ndarray) -> np.ndarray:
    """Matrix that takes (xx, xy, xz, yy, yz, zz, log S0) to the logarithm of the signals.

    Parameters
    ----------
    bvals : ndarray, shape (n,)
        s/mm^2.
    bvecs : ndarray, shape (n, 3) or (3, n)

    Returns
    -------
    ndarray, shape (n, 7), float64
        For tensors in um^2/ms.

    Raises
    ------
    ValueError
        If there are not as many vectors as b-values.
    """
    bvals = np.asarray(bvals, np.float64).ravel()
    bvecs = np.asarray(bvecs, np.float64)
    if bvecs.shape != (bvals.size, 3):
        bvecs = bvecs.T
    if bvecs.shape != (bvals.size, 3):
        raise ValueError(f'{bvals.size} b-values do not fit b-vectors of shape {bvecs.T.shape}')
    lengths = np.linalg.norm(bvecs, axis=1, keepdims=True)
    x, y, z = np.divide(bvecs, lengths, out=np.zeros_like(bvecs), where=lengths > 0).T
    # A volume without a direction has no weighting, whatever its b-value (of 5, say) claims.
    b = bvals / 1000 * (lengths[:, 0] > 0)
    products = (x * x, 2 * x * y, 2 * x * z, y * y, 2 * y * z, z * z)
    return np.stack([*(-b * product for product in products), np.ones_like(b)], axis=1)


def fractional_anisotropy(eigenvalues: np.ndarray) -> np.ndarray:
    """Fractional anisotropy, 0..1, of eigenvalues of shape (3, ...) (Basser & Pierpaoli 1996)."""
    deviation = eigenvalues - eigenvalues.mean(axis=0)
    size = np.square(eigenvalues).sum(axis=0)
    spread = 1.5 * np.square(deviation).sum(axis=0)
    return np.sqrt(np.divide(spread, size, out=np.zeros_like(size), where=size > 0))


def _fit(signals: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Coefficients (voxels, 7) of signals (voxels, n): one unweighted fit, one weighted."""
    signals = np.nan_to_num(np.asarray(signals, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    measured = signals > 0
    logs = np.log(signals, out=np.zeros_like(signals), where=measured)
    if measured.all():
        first = logs @ np.linalg.pinv(design).T
    else:
        first = _solve(measured.astype(np.float64), logs, design)
    predicted = first @ design.T
    # Relative to the largest of the voxel: the unit of the data must not matter.
    weights = np.exp(2 * (predicted - predicted.max(axis=1, keepdims=True))) * measured
    fitted = _solve(weights, logs, design)
    fitted[measured.sum(axis=1) < 7] = 0
    return fitted


def _solve(weights: np.ndarray, logs: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Weighted least squares in all voxels at once: normal equations of 7 unknowns each."""
    products = design[:, _PAIRS[0]] * design[:, _PAIRS[1]]
    normal = np.empty((len(logs), 7, 7))
    normal[:, _PAIRS[0], _PAIRS[1]] = normal[:, _PAIRS[1], _PAIRS[0]] = weights @ products
    ridge = _RIDGE * np.trace(normal, axis1=1, axis2=2) / 7 + 1e-30
    normal[:, range(7), range(7)] += ridge[:, None]
    return np.linalg.solve(normal, ((weights * logs) @ design)[..., None])[..., 0]


def _eigen(tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (3, voxels) from large to small and their vectors (3, 3, voxels)."""
    values, vectors = np.linalg.eigh(tensors[:, [[0, 1, 2], [1, 3, 4], [2, 4, 5]]])
    return np.maximum(values[:, ::-1], 0).T, vectors[:, :, ::-1].transpose(2, 1, 0)
