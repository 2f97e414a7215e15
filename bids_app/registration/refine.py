# SPDX-License-Identifier: Apache-2.0
"""Refinement of a pair of velocity fields on the instance: symmetric log-domain demons.

Both images move to the middle, the difference there drives both velocities, and smoothing keeps
them regular (Vercauteren et al., MICCAI 2008; several channels share one field). No gradient goes
through the integration, so an iteration costs little more than two exponentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from bids_app.registration.velocity import border_window, exponential, resize, smooth, warp


@dataclass(frozen=True)
class Level:
    """One resolution of the refinement.

    Attributes
    ----------
    shrink : int
        Size of its voxels in voxels of the images.
    iterations : int
        Updates of the velocities.
    update_smoothing : float
        Standard deviation of the Gaussian over each update, in its voxels ("fluid").
    field_smoothing : float
        The same over the velocity after each update ("diffusion").
    """

    shrink: int
    iterations: int
    update_smoothing: float
    field_smoothing: float


LEVELS: tuple[Level, ...] = (Level(4, 12, 1.2, 0.6), Level(2, 16, 1.5, 0.6))
"""From coarse to fine, for images of 1.5 mm."""

WEIGHTS: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Weight of each channel of :mod:`bids_app.registration.shares` in the squared difference."""

_LARGEST_STEP = 1.0  # voxels of the level, per iteration
_SQUARINGS = 5
_BORDER_MM = 12.0


def _pyramid(image: torch.Tensor, shrink: int) -> torch.Tensor:
    return functional.avg_pool3d(image, shrink) if shrink > 1 else image


def _gradient(image: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.gradient(image[0], dim=(1, 2, 3)))


def _update(
    gradient: list[torch.Tensor], difference: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return the demons step that lowers the weighted squared difference: (1, 3, x, y, z)."""
    weighted = difference * weight
    slope = torch.stack([(weighted * axis).sum(dim=0) for axis in gradient])
    energy = sum((weight * axis.square()).sum(dim=0) for axis in gradient)
    noise = (weighted * difference).sum(dim=0)
    # Thirion's bound: no step is longer than half a voxel times _LARGEST_STEP.
    step = -slope / (energy + noise / _LARGEST_STEP**2 + 1e-3)
    return step[None]


def refine(
    scan: torch.Tensor,
    template: torch.Tensor,
    velocities: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    levels: Sequence[Level] = LEVELS,
    weights: Sequence[float] = WEIGHTS,
    spacing: float = 1.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improve a pair of velocities for one scan.

    Parameters
    ----------
    scan, template : torch.Tensor, shape (1, c, x, y, z)
        Shares on one grid, the scan already in affine alignment. The shape must be divisible by
        the largest ``shrink``.
    velocities : pair of torch.Tensor, shape (1, 3, x', y', z'), optional
        Where to start, in voxels of their own grid, which covers the same box with fewer or as
        many voxels. Zero without.
    levels : sequence of Level
        From coarse to fine.
    weights : sequence of float
        Weight of each channel.
    spacing : float
        Voxel size of the images, mm.

    Returns
    -------
    velocity_xy, velocity_yx : torch.Tensor, shape (1, 3, *shape of the last level)
        In voxels of the grid of the last level; zero at its border.
    """
    weight = torch.tensor(weights, dtype=torch.float32).view(-1, 1, 1, 1).to(scan)
    shape = scan.shape[2:]
    vx = vy = None
    for level in levels:
        size = tuple(n // level.shrink for n in shape)
        window = border_window(size, _BORDER_MM / (spacing * level.shrink)).to(scan)
        if vx is None:
            vx = vy = torch.zeros(1, 3, *size).to(scan)
            if velocities is not None:
                factor = size[0] / velocities[0].shape[2]
                vx, vy = (resize(v.to(scan), size, factor) for v in velocities)
        else:
            factor = size[0] / vx.shape[2]
            vx, vy = resize(vx, size, factor), resize(vy, size, factor)
        x, y = _pyramid(scan, level.shrink), _pyramid(template, level.shrink)
        for _ in range(level.iterations):
            moved_x = warp(x, exponential(vx, _SQUARINGS), 'zeros')
            moved_y = warp(y, exponential(vy, _SQUARINGS), 'zeros')
            difference = (moved_x - moved_y)[0]
            common = [
                0.5 * (a + b) for a, b in zip(_gradient(moved_x), _gradient(moved_y), strict=True)
            ]
            step = smooth(_update(common, difference, weight), level.update_smoothing)
            vx = window * smooth(vx + step, level.field_smoothing)
            vy = window * smooth(vy - step, level.field_smoothing)
    return vx, vy
