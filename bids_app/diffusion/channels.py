# SPDX-License-Identifier: Apache-2.0
"""What the synthesis of a T1w sees of diffusion data: eleven images of one grid.

They do not depend on how many directions were measured, nor on which (Li et al., Medical Image
Analysis 2023, DeepAnat): mean b=0, mean diffusion-weighted image, the three eigenvalues of the
tensor, and six diffusion-weighted images that the tensor predicts along fixed directions (DSM-6,
Skare et al., Journal of Magnetic Resonance 2000). Training and use go through the same function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.diffusion.tensor import MAX_DIFFUSIVITY, TensorFit, design_matrix, fit_tensor

CHANNELS = (
    'b0', 'mean_dwi', 'L1', 'L2', 'L3', 'dwi1', 'dwi2', 'dwi3', 'dwi4', 'dwi5', 'dwi6',
)  # fmt: skip
"""Order of the channels."""

SYNTHESIS_BVAL = 1000.0
"""s/mm^2 of the six predicted images."""

B0_THRESHOLD = 50.0
"""s/mm^2: volumes up to this b-value count as b=0."""

TENSOR_BMAX = 1500.0
"""s/mm^2: above it the signal does not fall as a tensor predicts; not used where avoidable."""

_DSM6 = np.array(
    [
        [0.91, 0.416, 0.0],
        [0.0, 0.91, 0.416],
        [0.416, 0.0, 0.91],
        [0.91, -0.416, 0.0],
        [0.0, 0.91, -0.416],
        [-0.416, 0.0, 0.91],
    ]
)
DIRECTIONS = _DSM6 / np.linalg.norm(_DSM6, axis=1, keepdims=True)
"""Unit vectors (6, 3) of the predicted images, along RAS+ voxel axes."""


@dataclass(frozen=True)
class SeriesChannels:
    """What :func:`channels_of_series` makes of one diffusion series.

    Attributes
    ----------
    channels : ndarray, shape (11, x, y, z)
        As :func:`deepanat_channels`.
    b0, mean_dwi : ndarray, shape (x, y, z)
        Means, in the unit of the data, in the whole field of view.
    fit : TensorFit
    used : ndarray, shape (n,), bool
        The volumes that the tensor and the mean diffusion-weighted image are of.
    """

    channels: np.ndarray
    b0: np.ndarray
    mean_dwi: np.ndarray
    fit: TensorFit
    used: np.ndarray


def deepanat_channels(
    b0: np.ndarray,
    mean_dwi: np.ndarray,
    eigenvalues: np.ndarray,
    tensor: np.ndarray,
    s0: np.ndarray,
    mask: np.ndarray,
) -> np.ndarray:
    """Stack the input of the T1w synthesis.

    Parameters
    ----------
    b0, mean_dwi : ndarray, shape (x, y, z)
        Mean of the volumes without and with diffusion weighting, any unit.
    eigenvalues : ndarray, shape (3, x, y, z)
        um^2/ms, the largest first.
    tensor : ndarray, shape (6, x, y, z)
        xx, xy, xz, yy, yz, zz in um^2/ms along RAS+ voxel axes.
    s0 : ndarray, shape (x, y, z)
        Signal without weighting that the six images start from: the mean b=0.
    mask : ndarray, shape (x, y, z)
        Brain, nonzero inside.

    Returns
    -------
    ndarray, shape (11, x, y, z), float32
        In the order of :data:`CHANNELS`: z-scores in the mask, but eigenvalues as they are,
        limited to 0..4 um^2/ms; 0 outside the mask.
    """
    inside = np.asarray(mask) > 0
    channels = np.zeros((len(CHANNELS), *inside.shape), np.float32)
    channels[0][inside] = _zscore(b0[inside])
    channels[1][inside] = _zscore(mean_dwi[inside])
    limited = np.clip(_finite(eigenvalues[:, inside]), 0, MAX_DIFFUSIVITY)
    channels[2:5, inside] = limited
    # The same rule as in the tensor fit: minus b times the products of the directions.
    decay = design_matrix(np.full(6, SYNTHESIS_BVAL), DIRECTIONS)[:, :6].astype(np.float32)
    exponents = decay @ _finite(tensor[:, inside])
    np.clip(exponents, -SYNTHESIS_BVAL / 1000 * MAX_DIFFUSIVITY, 0, out=exponents)
    signals = np.exp(exponents) * _finite(s0[inside])
    for channel, signal in zip(channels[5:], signals, strict=True):
        channel[inside] = _zscore(signal)
    return channels


def channels_of_series(
    data: np.ndarray,
    bvals: np.ndarray,
    bvecs: np.ndarray,
    mask: np.ndarray,
    *,
    b0_threshold: float = B0_THRESHOLD,
    tensor_bmax: float = TENSOR_BMAX,
) -> SeriesChannels:
    """Take a diffusion series to the input of the T1w synthesis.

    Parameters
    ----------
    data : ndarray, shape (x, y, z, n)
    bvals : ndarray, shape (n,)
        s/mm^2.
    bvecs : ndarray, shape (n, 3) or (3, n)
        Along RAS+ voxel axes.
    mask : ndarray, shape (x, y, z)
        Brain, nonzero inside.
    b0_threshold : float
        s/mm^2 up to which a volume is one of b=0.
    tensor_bmax : float
        s/mm^2 up to which volumes are used where they determine a tensor; all volumes otherwise.

    Returns
    -------
    SeriesChannels

    Raises
    ------
    ValueError
        If there is no volume of b=0, or if the directions do not determine a tensor.
    """
    bvals = np.asarray(bvals, np.float64).ravel()
    low = bvals <= b0_threshold
    if not low.any():
        raise ValueError(f'no volume with a b-value of at most {b0_threshold:g} s/mm^2')
    used = tensor_volumes(bvals, bvecs, b0_threshold=b0_threshold, tensor_bmax=tensor_bmax)
    vectors = np.asarray(bvecs, np.float64)
    vectors = vectors if vectors.shape == (bvals.size, 3) else vectors.T
    b0 = data[..., low].mean(axis=3, dtype=np.float32)
    mean_dwi = data[..., used].mean(axis=3, dtype=np.float32)
    fitted = low | used
    series = data if fitted.all() else data[..., fitted]
    fit = fit_tensor(series, bvals[fitted], vectors[fitted], mask)
    channels = deepanat_channels(b0, mean_dwi, fit.eigenvalues, fit.tensor, b0, mask)
    return SeriesChannels(channels, b0, mean_dwi, fit, used)


def tensor_volumes(
    bvals: np.ndarray,
    bvecs: np.ndarray,
    *,
    b0_threshold: float = B0_THRESHOLD,
    tensor_bmax: float = TENSOR_BMAX,
) -> np.ndarray:
    """Say which diffusion-weighted volumes the tensor is fitted to.

    Parameters
    ----------
    bvals : ndarray, shape (n,)
    bvecs : ndarray, shape (n, 3) or (3, n)
    b0_threshold, tensor_bmax : float
        s/mm^2.

    Returns
    -------
    ndarray, shape (n,), bool
        Weighted volumes of b up to ``tensor_bmax``, or all weighted ones where these do not
        determine a tensor.
    """
    bvals = np.asarray(bvals, np.float64).ravel()
    weighted = bvals > b0_threshold
    low = weighted & (bvals <= tensor_bmax)
    products = design_matrix(np.where(low, 1000.0, 0.0), bvecs)[low, :6]
    enough = len(products) >= 6 and np.linalg.matrix_rank(products, tol=1e-2) == 6
    return low if enough else weighted


def _zscore(values: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1; a constant image becomes 0."""
    values = _finite(values)
    if values.size == 0:
        return values
    mean, spread = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return (values - np.float32(mean)) / np.float32(max(spread, 1e-6 * abs(mean), 1e-30))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
