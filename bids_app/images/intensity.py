# SPDX-License-Identifier: Apache-2.0
"""Intensity normalisation, the same function in training and in inference."""

from __future__ import annotations

import torch


def normalise_head(image: torch.Tensor, low: float = 0.5, high: float = 99.5) -> torch.Tensor:
    """Map robust percentiles of a whole-head image to 0 and 1.

    Parameters
    ----------
    image : torch.Tensor, shape (x, y, z)
        Intensities in any unit; zeros outside the field of view are allowed.
    low, high : float
        Percentiles of all voxels above the minimum (so that a zeroed background, which
        skull-stripped scans have and others do not, does not shift the scale).

    Returns
    -------
    torch.Tensor, shape (x, y, z), float32
        Values clipped to 0..1; all zeros for a constant image.
    """
    image = image.float()
    image = image - image.min()
    foreground = image[image > 0]
    if foreground.numel() == 0:
        return image
    bottom, top = _percentiles(foreground, (low, high))
    return ((image - bottom) / (top - bottom).clamp_min(1e-6)).clamp_(0, 1)


def normalise_brain(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scale an image so that the bright end of the brain becomes 1.

    Parameters
    ----------
    image : torch.Tensor, shape (x, y, z)
        Intensities in any unit.
    mask : torch.Tensor, shape (x, y, z), bool
        The brain, roughly.

    Returns
    -------
    torch.Tensor, shape (x, y, z), float32
        ``(image - minimum) / (98th percentile in the mask - minimum)``, clipped to 0..1.5, so
        that fat and vessels around the brain do not compress the tissue contrast.
    """
    image = image.float()
    image = image - image.min()
    inside = image[mask]
    if inside.numel() == 0:
        inside = image.flatten()
    (top,) = _percentiles(inside, (98.0,))
    return (image / top.clamp_min(1e-6)).clamp_(0, 1.5)


def normalise_brain_zscore(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Give the voxels of the brain mean 0 and standard deviation 1, and all others 0.

    Parameters
    ----------
    image : torch.Tensor, shape (x, y, z)
        Intensities in any unit, bias-corrected.
    mask : torch.Tensor, shape (x, y, z), bool
        The brain. Voxels of exactly 0 in it are outside the field of view and stay 0.

    Returns
    -------
    torch.Tensor, shape (x, y, z), float32
        Clipped to -4..4; all zeros where there is nothing to measure.
    """
    image = image.float()
    inside = mask & (image != 0)
    values = image[inside]
    if values.numel() < 2:
        return torch.zeros_like(image)
    scaled = (image - values.mean()) / values.std().clamp_min(1e-6)
    return torch.where(inside, scaled.clamp(-4, 4), 0.0)


def _percentiles(values: torch.Tensor, percents: tuple[float, ...]) -> torch.Tensor:
    """Percentiles of at most some 200,000 values, evenly taken: enough for 1 part in 1,000."""
    step = max(1, values.numel() // 200_000)
    ordered = values[::step].sort().values
    positions = [round((ordered.numel() - 1) * percent / 100) for percent in percents]
    return ordered[positions]
