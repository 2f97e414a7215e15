# SPDX-License-Identifier: Apache-2.0
"""Modulation: tissue maps in template space whose sum is the volume of the tissue in the scan.

Where a scan had to be compressed to fit the template, its tissue becomes denser. A warped
probability times the determinant of the full Jacobian (affine and nonlinear) is the amount of
tissue per volume of template (Ashburner and Friston, 2000, NeuroImage 11:805-821).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_app.images.resample import resample_to
from bids_app.registration.normalisation import Normalisation
from bids_app.registration.warp import to_template


def full_jacobian(
    normalisation: Normalisation, shape: Sequence[int], affine: np.ndarray
) -> np.ndarray:
    """Return by how much the map from template to scan enlarges volumes.

    Parameters
    ----------
    normalisation : Normalisation
    shape : sequence of 3 int
        Voxels of the target grid.
    affine : array-like, shape (4, 4)
        Its voxel-to-world matrix, mm, in the world of the template.

    Returns
    -------
    ndarray of float32, shape `shape`
        mm^3 of the scan per mm^3 of the template, affine part included. Beyond the registration
        grid, where nothing is displaced, it is the affine part alone.
    """
    change = resample_to(normalisation.jacobian() - 1, normalisation.grid_affine, shape, affine)
    return (change + 1) * np.float32(normalisation.affine_factor)


def modulated(
    probability: np.ndarray,
    native_affine: np.ndarray,
    normalisation: Normalisation,
    shape: Sequence[int],
    affine: np.ndarray,
) -> np.ndarray:
    """Warp tissue probabilities to template space and multiply them by the full Jacobian.

    The sum over the result times the volume of a voxel of the target grid is the volume of the
    tissue in the scan, where the target grid covers all of it. Voxels of the scan that are much
    smaller than those of the target are averaged, not skipped (see
    :func:`bids_app.registration.warp.to_template`).

    Parameters
    ----------
    probability : ndarray, shape (x, y, z) or (channel, x, y, z)
        0 to 1, on the grid of the scan, in any axis order.
    native_affine : array-like, shape (4, 4)
        Voxel-to-world matrix of the scan, mm, RAS+.
    normalisation : Normalisation
    shape : sequence of 3 int
        Voxels of the target grid.
    affine : array-like, shape (4, 4)
        Its voxel-to-world matrix, mm, in the world of the template.

    Returns
    -------
    ndarray of float32, shape (*channels, *shape)
        mm^3 of tissue per mm^3 of template; above 1 where the scan was compressed.
    """
    warped = to_template(probability, native_affine, normalisation, shape, affine)
    return warped * full_jacobian(normalisation, shape, affine)
