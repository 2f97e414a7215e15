# SPDX-License-Identifier: Apache-2.0
"""White-matter lesions for synthetic images: where they lie and what shape they have.

Lesions are drawn where they are found in life, most of them near the lateral ventricles (Fazekas
et al., AJR 1987: caps and bands, then deep spots), as blobs of random size with a ragged border.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_ROUGHNESS = 0.35
_PERIVENTRICULAR = 0.6
_REACH = 10  # mm from a ventricle that still counts as periventricular


def draw_lesions(
    white: torch.Tensor,
    ventricles: torch.Tensor,
    spacing: float,
    generator: torch.Generator,
    most: int = 14,
) -> torch.Tensor:
    """Draw lesions in white matter.

    Parameters
    ----------
    white, ventricles : torch.Tensor, shape (x, y, z), bool
        Cerebral white matter and lateral ventricles.
    spacing : float
        Voxel size, mm.
    generator : torch.Generator
        Source of randomness.
    most : int
        Largest number of lesions.

    Returns
    -------
    torch.Tensor, shape (x, y, z), float32
        Above 0.5 inside a lesion, falling smoothly to 0 outside; not limited to white matter.
    """
    shape = white.shape
    field = torch.zeros(shape)
    if not bool(white.any()):
        return field
    reach = max(1, round(_REACH / spacing))
    near = ventricles.float()[None, None]
    for _ in range(3):  # a cube of 2 reach + 1 in three cheap steps
        size = 2 * max(1, reach // 3) + 1
        near = functional.max_pool3d(near, size, 1, size // 2)
    beside = (near[0, 0] > 0) & white
    number = 1 + int(torch.rand((), generator=generator) ** 2 * most)
    ragged = torch.randn((1, 1, *(max(4, n // 4) for n in shape)), generator=generator)
    ragged = functional.interpolate(ragged, size=shape, mode='trilinear', align_corners=False)[
        0, 0
    ]
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    for _ in range(number):
        at_ventricle = torch.rand((), generator=generator) < _PERIVENTRICULAR
        candidates = (beside if at_ventricle and bool(beside.any()) else white).nonzero()
        centre = candidates[int(torch.rand((), generator=generator) * len(candidates))]
        # Radii of 1.5 to 10 mm, small ones far more often; caps and bands are longer.
        radius = 1.5 + 8.5 * float(torch.rand((), generator=generator)) ** 3
        radii = radius * (0.6 + 0.8 * torch.rand(3, generator=generator)) / spacing
        parts = [((axis - centre[i]) / radii[i]) ** 2 for i, axis in enumerate(axes)]
        distance = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :]
        blob = 1 / (1 + distance * torch.exp(_ROUGHNESS * 2 * ragged))  # 0.5 at the ragged border
        field = torch.maximum(field, blob)
    return field
