# SPDX-License-Identifier: Apache-2.0
"""Optional correction of head motion in a diffusion series, one rigid map per volume.

Distortions are not corrected: neither those by eddy currents, which are not rigid, nor those by
susceptibility, which need a field map or a run with the opposite phase encoding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bids_app.diffusion.gradients import Gradients, shells, voxel_directions, world_directions
from bids_app.diffusion.series import Series
from bids_app.images.resample import resample_rigid
from bids_app.registration.rigid import refine_rigid, rigid_displacement


def correct_motion(series: Series, b0_threshold: float) -> tuple[Series, dict[str, Any]]:
    """Register every volume rigidly, interpolate it once, and turn its b-vector with the head.

    The volumes of b=0 are registered to the first of them, weighted ones to the mean of their
    shell (their contrast is that of no b=0), and that mean to the mean b=0.

    Parameters
    ----------
    series : Series
        With at least one volume of b=0.
    b0_threshold : float
        s/mm^2.

    Returns
    -------
    series : Series
        On the same grid.
    measures : dict
        ``displacement_mm`` (list: mean displacement of the head in every volume, against the
        first b=0), ``displacement_mean_mm``, ``displacement_max_mm`` and ``rotation_max_degrees``.
    """
    data, affine, bvals = series.data, series.affine, series.gradients.bvals
    low = np.flatnonzero(bvals <= b0_threshold)
    first = data[..., low[0]]
    maps = {low[0]: np.eye(4)}
    for index in low[1:]:
        maps[index] = refine_rigid(first, affine, data[..., index], affine)
    b0 = np.mean([_moved(series, index, maps[index]) for index in low], axis=0)
    for members in _shell_members(bvals, b0_threshold):
        mean = data[..., members].mean(axis=3, dtype=np.float32)
        to_mean = refine_rigid(b0, affine, mean, affine)
        for index in members:
            maps[index] = refine_rigid(mean, affine, data[..., index], affine) @ to_mean

    vectors = series.gradients.bvecs.copy()
    corrected = np.empty(data.shape, np.float32)
    points = _head_points(first, affine)
    displacements, degrees = [], []
    for index in range(len(bvals)):
        matrix = maps[index]
        corrected[..., index] = _moved(series, index, matrix)
        vectors[index] = turned_direction(vectors[index], affine, matrix)
        _, angle, mean = rigid_displacement(matrix, points)
        displacements.append(round(mean, 3))
        degrees.append(angle)
    result = replace(series, data=corrected, gradients=Gradients(bvals, vectors))
    return result, {
        'displacement_mm': displacements,
        'displacement_mean_mm': round(float(np.mean(displacements)), 3),
        'displacement_max_mm': max(displacements),
        'rotation_max_degrees': round(max(degrees), 3),
    }


def turned_direction(vector: np.ndarray, affine: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn a b-vector with a volume that is resampled onto a reference.

    The gradient is fixed to the scanner. In a head that `matrix` (reference to volume) has turned
    by R, a direction f of the reference lies along R f, and is weighted with g.(R f) = (R'g).f.

    Parameters
    ----------
    vector : ndarray, shape (3,)
        Along the voxel axes.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix of both.
    matrix : array-like, shape (4, 4)
        World of the reference to world of the volume, as
        :func:`bids_app.registration.rigid.register_rigid` returns it.

    Returns
    -------
    ndarray, shape (3,)
        Of the length of `vector`.
    """
    world = world_directions(vector[None], affine) @ np.asarray(matrix)[:3, :3]
    turned = voxel_directions(world, affine)[0]
    length = np.linalg.norm(turned)
    return turned * (np.linalg.norm(vector) / length) if length > 0 else turned


def _moved(series: Series, index: int, matrix: np.ndarray) -> np.ndarray:
    """Return a volume on the grid of the reference; one that did not move is not interpolated."""
    volume = series.data[..., index]
    if np.array_equal(matrix, np.eye(4)):
        return volume
    moved, _ = resample_rigid(volume, series.affine, matrix, volume.shape, series.affine)
    return moved


def _shell_members(bvals: np.ndarray, b0_threshold: float) -> list[np.ndarray]:
    """Return the volumes of every shell."""
    weighted = np.flatnonzero(bvals > b0_threshold)
    centres = np.array([centre for centre, _ in shells(bvals, b0_threshold)])
    nearest = np.abs(bvals[weighted, None] - centres).argmin(axis=1)
    return [weighted[nearest == shell] for shell in range(len(centres))]


def _head_points(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return places (n, 3) in the head, world mm."""
    where = np.argwhere(volume > volume.mean())
    return where[:: max(len(where) // 2000, 1)] @ affine[:3, :3].T + affine[:3, 3]
