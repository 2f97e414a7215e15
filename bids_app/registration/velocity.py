# SPDX-License-Identifier: Apache-2.0
"""Displacements and stationary velocity fields on a regular grid.

A field is a float32 tensor of shape ``(1, 3, x, y, z)`` whose components are in voxels along the
axes of its grid: the point ``x`` goes to ``x + field(x)``. A stationary velocity field ``v``
stands for the diffeomorphism ``exp(v)`` (Arsigny et al., MICCAI 2006; Ashburner, NeuroImage 2007),
whose inverse is ``exp(-v)``; two of them, each for half of the way, make the symmetric pair of
SYMNet (Mok & Chung, CVPR 2020).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch.nn import functional

STEPS = 6
"""Squarings of the exponential: the first step is 1/64 of the velocity."""


@lru_cache(maxsize=8)
def _axes(shape: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    """Voxel coordinates along each axis, z y x order of ``grid_sample`` not yet applied."""
    return tuple(torch.arange(n, dtype=torch.float32) for n in shape)


def sampling_grid(field: torch.Tensor) -> torch.Tensor:
    """Return where each voxel looks, as ``grid_sample`` wants it.

    Parameters
    ----------
    field : torch.Tensor, shape (1, 3, x, y, z)
        Displacement in voxels.

    Returns
    -------
    torch.Tensor, shape (1, x, y, z, 3)
        Normalised coordinates, last axis first.
    """
    shape = tuple(field.shape[2:])
    parts = []
    for axis in (2, 1, 0):
        view = [1, 1, 1]
        view[axis] = shape[axis]
        place = _axes(shape)[axis].to(field.device).view(view)
        parts.append((field[0, axis] + place) * (2 / (shape[axis] - 1)) - 1)
    return torch.stack(parts, dim=-1)[None]


def warp(image: torch.Tensor, field: torch.Tensor, padding: str = 'border') -> torch.Tensor:
    """Sample an image at the displaced voxels of its own grid, trilinearly.

    Parameters
    ----------
    image : torch.Tensor, shape (1, c, x, y, z)
        Any channels.
    field : torch.Tensor, shape (1, 3, x, y, z)
        Displacement in voxels.
    padding : {'border', 'zeros'}
        What lies outside.

    Returns
    -------
    torch.Tensor, shape (1, c, x, y, z)
    """
    grid = sampling_grid(field)
    # On the CPU torch samples one batch item per thread: slabs of the target are the batch.
    slabs = math.gcd(grid.shape[1], 8) if grid.device.type == 'cpu' else 1
    if slabs == 1 or torch.get_num_threads() == 1:
        return functional.grid_sample(image, grid, padding_mode=padding, align_corners=True)
    pieces = grid.view(slabs, grid.shape[1] // slabs, *grid.shape[2:])
    found = functional.grid_sample(
        image.expand(slabs, -1, -1, -1, -1), pieces, padding_mode=padding, align_corners=True
    )
    return found.transpose(0, 1).reshape(1, image.shape[1], *grid.shape[1:4])


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Return the displacement of "first ``inner``, then ``outer``".

    Parameters
    ----------
    outer, inner : torch.Tensor, shape (1, 3, x, y, z)
        Displacements in voxels.

    Returns
    -------
    torch.Tensor, shape (1, 3, x, y, z)
        ``inner(x) + outer(x + inner(x))``.
    """
    return inner + warp(outer, inner)


def exponential(velocity: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """Integrate a stationary velocity field over unit time by scaling and squaring.

    Parameters
    ----------
    velocity : torch.Tensor, shape (1, 3, x, y, z)
        Voxels per unit time.
    steps : int
        Squarings.

    Returns
    -------
    torch.Tensor, shape (1, 3, x, y, z)
        Displacement in voxels.
    """
    field = velocity / 2**steps
    for _ in range(steps):
        field = compose(field, field)
    return field


def full_flows(
    velocity_xy: torch.Tensor,
    velocity_yx: torch.Tensor,
    shape: tuple[int, int, int] | None = None,
    steps: int = STEPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both directions of the symmetric pair.

    Each image moves half of the way: the middle shape is ``x o exp(v_xy)`` and
    ``y o exp(v_yx)``.

    Parameters
    ----------
    velocity_xy, velocity_yx : torch.Tensor, shape (1, 3, x, y, z)
        Velocities of the two halves, voxels.
    shape : tuple of int, optional
        Grid of the result, over the same field of view. The halves are integrated where the
        velocities are and put together there, which leaves an inverse error of some hundredths
        of a voxel and takes a fourth of the time of doing all on the finer grid.
    steps : int
        Squarings.

    Returns
    -------
    x_to_y : torch.Tensor, shape (1, 3, *shape)
        Samples ``x`` on the grid of ``y``: ``exp(v_xy) o exp(-v_yx)``.
    y_to_x : torch.Tensor
        Its inverse, ``exp(v_yx) o exp(-v_xy)``.
    """
    halves = []
    for velocity in (velocity_xy, -velocity_xy, velocity_yx, -velocity_yx):
        half = exponential(velocity, steps)
        if shape is not None and tuple(half.shape[2:]) != tuple(shape):
            half = resize(half, shape, shape[0] / half.shape[2])
        halves.append(half)
    return compose(halves[0], halves[3]), compose(halves[2], halves[1])


def smooth(field: torch.Tensor, deviation: float) -> torch.Tensor:
    """Smooth every channel with a Gaussian; voxels outside count as zero.

    Parameters
    ----------
    field : torch.Tensor, shape (1, c, x, y, z)
        Any channels.
    deviation : float
        Standard deviation in voxels; 0 changes nothing.

    Returns
    -------
    torch.Tensor, shape (1, c, x, y, z)
    """
    if deviation <= 0:
        return field
    radius = math.ceil(3 * deviation)
    at = torch.arange(-radius, radius + 1, dtype=torch.float32, device=field.device)
    kernel = torch.exp(-0.5 * (at / deviation) ** 2)
    kernel = kernel / kernel.sum()
    out = field.movedim(1, 0)
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[axis + 2], padding[axis] = len(kernel), radius
        out = functional.conv3d(out, kernel.view(shape), padding=padding)
    return out.movedim(0, 1)


def resize(field: torch.Tensor, shape: tuple[int, int, int], spacing: float) -> torch.Tensor:
    """Bring a field to a grid of other voxels over the same field of view.

    Parameters
    ----------
    field : torch.Tensor, shape (1, 3, x, y, z)
        Displacement or velocity in voxels.
    shape : tuple of int
        New shape; the grids cover the same box from edge to edge.
    spacing : float
        Old voxel size divided by the new one.

    Returns
    -------
    torch.Tensor, shape (1, 3, *shape)
        In voxels of the new grid.
    """
    return spacing * functional.interpolate(
        field, size=shape, mode='trilinear', align_corners=False
    )


def border_window(shape: tuple[int, int, int], width: float) -> torch.Tensor:
    """Return a factor that is 1 inside and falls to 0 at the border of a grid.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the grid.
    width : float
        Voxels over which it falls.

    Returns
    -------
    torch.Tensor, shape (1, 1, x, y, z)
        A velocity that vanishes at the border gives a map that is the identity there and outside.
    """
    out = torch.ones(1, 1, *shape)
    for axis, n in enumerate(shape):
        at = torch.arange(n, dtype=torch.float32)
        distance = torch.minimum(at, n - 1 - at) / width
        view = [1, 1, 1, 1, 1]
        view[axis + 2] = n
        out = out * torch.sin(distance.clamp(0, 1) * math.pi / 2).square().view(view)
    return out


def jacobian(field: torch.Tensor) -> torch.Tensor:
    """Return the determinant of the Jacobian of ``x + field(x)`` by central differences.

    Parameters
    ----------
    field : torch.Tensor, shape (1, 3, x, y, z)
        Displacement in voxels.

    Returns
    -------
    torch.Tensor, shape (x, y, z)
    """
    gradients = torch.gradient(field[0], dim=(1, 2, 3))  # by axis: (component, x, y, z)
    j = [[gradients[axis][c] + (axis == c) for axis in range(3)] for c in range(3)]
    return (
        j[0][0] * (j[1][1] * j[2][2] - j[1][2] * j[2][1])
        - j[0][1] * (j[1][0] * j[2][2] - j[1][2] * j[2][0])
        + j[0][2] * (j[1][0] * j[2][1] - j[1][1] * j[2][0])
    )
