# SPDX-License-Identifier: Apache-2.0
"""What DeepNAT sees of a scan; the same in training and in inference."""

from __future__ import annotations

import numpy as np
import torch

from bids_app.errors import ImageError
from bids_app.images.intensity import normalise_brain
from bids_app.images.masks import dilate_mm
from bids_app.inference.coordinates import LEAST_BRAIN_MM3

RIM_MM = 2.0
"""How far beyond the brain mask the foreground network looks for the brain."""

COORDINATES = ('cartesian', 'spectral')
"""Kinds of coordinates, three of each."""

ODD_ROWS = (0, 3)
"""Rows of all six coordinates that change their sign when left and right are swapped."""


def brain_image(
    data: np.ndarray, affine: np.ndarray, mask: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the brain alone, normalised, and the mask in which it lies.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Conformed T1w, 1 mm, RAS+, bias-corrected, any unit.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix, mm.
    mask : ndarray, shape (x, y, z)
        The app's brain mask.

    Returns
    -------
    image : torch.Tensor, shape (x, y, z), float32
        0 to 1.5, see :func:`bids_app.images.intensity.normalise_brain`; 0 outside the rim.
    wide : torch.Tensor, shape (x, y, z), bool
        The mask and :data:`RIM_MM` around it.

    Raises
    ------
    ImageError
        If the mask has less than 20 cm^3.
    """
    mask = np.asarray(mask) != 0
    volume = float(mask.sum()) * abs(float(np.linalg.det(np.asarray(affine)[:3, :3])))
    if volume < LEAST_BRAIN_MM3:
        raise ImageError(
            f'the brain mask has {volume / 1e3:.1f} cm^3, too little for DeepNAT (least: '
            f'{LEAST_BRAIN_MM3 / 1e3:.0f} cm^3): look at the scan and its mask'
        )
    wide = torch.from_numpy(dilate_mm(mask, affine, RIM_MM))
    image = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    image = normalise_brain(image, torch.from_numpy(mask))
    return torch.where(wide, image, 0.0), wide


def coordinate_rows(kinds: list[str] | tuple[str, ...]) -> list[int]:
    """Return the rows of all six coordinates that some of :data:`COORDINATES` are."""
    return [
        3 * COORDINATES.index(kind) + n for kind in COORDINATES if kind in kinds for n in (0, 1, 2)
    ]
