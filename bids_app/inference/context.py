# SPDX-License-Identifier: Apache-2.0
"""Bring coarse posteriors to the grid of the fine network."""

from __future__ import annotations

import torch


def resample_linear(
    volume: torch.Tensor,
    source_origin: torch.Tensor,
    source_spacing: float,
    target_origin: torch.Tensor,
    target_spacing: float,
    target_shape: tuple[int, ...],
) -> torch.Tensor:
    """Linear interpolation between two grids with the same axes.

    Parameters
    ----------
    volume : torch.Tensor, shape (channel, x, y, z)
        Values on the source grid.
    source_origin, target_origin : torch.Tensor, shape (3,)
        Position of the centre of the first voxel, mm.
    source_spacing, target_spacing : float
        Voxel size, mm.
    target_shape : tuple of int
        Voxels of the target grid.

    Returns
    -------
    torch.Tensor, shape (channel, *target_shape)
        Beyond the source grid the value of its border.
    """
    out = volume
    for axis in range(3):
        n = volume.shape[axis + 1]
        steps = torch.arange(target_shape[axis], dtype=torch.float32)
        at = float(target_origin[axis] - source_origin[axis]) + steps * target_spacing
        at = (at / source_spacing).clamp(0, n - 1)
        weight = (1 - (at[:, None] - torch.arange(n)[None, :]).abs()).clamp_min(0)
        out = torch.tensordot(out, weight, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return out.contiguous()
