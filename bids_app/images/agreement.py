# SPDX-License-Identifier: Apache-2.0
"""How alike two images of one thing are: peak signal-to-noise ratio, structural similarity."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

_DEVIATION = 1.5  # voxels, of the Gaussian window of SSIM
_REACH = 5


def peak_snr(
    image: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, span: float
) -> float:
    """Return the peak signal-to-noise ratio in a mask, dB.

    Parameters
    ----------
    image, reference : torch.Tensor, shape (x, y, z)
        Intensities in the same unit.
    mask : torch.Tensor, shape (x, y, z), bool
        Where to compare.
    span : float
        Range of the intensities.
    """
    error = float((image - reference)[mask].square().mean())
    return 10 * math.log10(span**2 / max(error, 1e-12 * span**2))


def mean_ssim(
    image: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, span: float
) -> float:
    """Return the mean structural similarity in a mask (Wang et al., IEEE TIP 2004), in 3D.

    Parameters
    ----------
    image, reference : torch.Tensor, shape (x, y, z)
        Intensities in the same unit.
    mask : torch.Tensor, shape (x, y, z), bool
        Voxels over which the local index is averaged.
    span : float
        Range of the intensities.

    Notes
    -----
    Gaussian window of 11 voxels with a deviation of 1.5; K1 = 0.01 and K2 = 0.03, as published.
    """
    at = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32, device=image.device)
    kernel = torch.exp(-0.5 * (at / _DEVIATION) ** 2)
    kernel = kernel / kernel.sum()

    def local_mean(volume: torch.Tensor) -> torch.Tensor:
        out = volume[None, None]
        for axis in range(3):
            shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
            shape[axis + 2], padding[axis] = len(kernel), _REACH
            out = functional.conv3d(out, kernel.view(shape), padding=padding)
        return out[0, 0]

    a, b = image.float(), reference.float()
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a = local_mean(a * a) - mean_a**2
    var_b = local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    index = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return float(index[mask].mean())
