# SPDX-License-Identifier: Apache-2.0
"""Smoothing of maps in template space."""

from __future__ import annotations

import math

import numpy as np

from bids_app.images.grids import voxel_sizes

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
_REACH = 4.0
"""Standard deviations at which the kernel ends: 0.006 % of its mass lie beyond."""


def smooth(data: np.ndarray, affine: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """Convolve an image with a Gaussian, axis by axis.

    Outside the image lies zero, so that the sum is kept, except for what moves out at the border.

    Parameters
    ----------
    data : ndarray, shape (x, y, z) or (channel, x, y, z)
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix, mm.
    fwhm_mm : float
        Full width of the Gaussian at half its maximum, mm; 0 for none.

    Returns
    -------
    ndarray of float32, shape of `data`
        Never `data` itself.

    Raises
    ------
    ValueError
        If the width is negative.
    """
    from scipy.ndimage import gaussian_filter

    if fwhm_mm < 0:
        raise ValueError(f'the width of a Gaussian cannot be negative: {fwhm_mm} mm')
    data = np.array(data, dtype=np.float32)
    if fwhm_mm == 0:
        return data
    sigma = fwhm_mm / FWHM_PER_SIGMA / voxel_sizes(affine)
    sigma = [0.0] * (data.ndim - 3) + sigma.tolist()
    return gaussian_filter(data, sigma, mode='constant', truncate=_REACH)
