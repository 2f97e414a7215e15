# SPDX-License-Identifier: Apache-2.0
"""Affine registration of a segmented scan to a template.

The start is the affine map that carries the centres of the template's structures onto those of
the scan: it needs no search and does not care how the head lies in its grid. Without structures
(tissue maps made elsewhere) the moments of the brain give the start, and the 24 rotations by
right angles are tried. From there an inverse-compositional Gauss-Newton scheme (Baker & Matthews,
International Journal of Computer Vision 2004) minimises the squared difference of all shares.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch.nn import functional

from bids_app.registration.shares import Shares
from bids_app.registration.velocity import smooth

_FEWEST_CENTRES = 8
_LEVELS = ((4, 12), (2, 12))  # shrink factor, iterations
_CONVERGED_MM = 0.02


def affine_from_centres(
    template: dict[int, np.ndarray], scan: dict[int, np.ndarray]
) -> np.ndarray | None:
    """Return the affine map that carries centres of structures onto each other.

    Parameters
    ----------
    template, scan : dict
        Centres in world mm by number of structure.

    Returns
    -------
    ndarray, shape (4, 4), or None
        Template world to scan world, by least squares with outliers taken out; None if too few
        structures are in both.
    """
    common = sorted(set(template) & set(scan))
    if len(common) < _FEWEST_CENTRES:
        return None
    source = np.array([[*template[value], 1.0] for value in common])
    target = np.array([scan[value] for value in common])
    weight = np.ones(len(common))
    for _ in range(5):
        root = np.sqrt(weight)[:, None]
        solution = np.linalg.lstsq(source * root, target * root, rcond=None)[0]
        distance = np.linalg.norm(source @ solution - target, axis=1)
        weight = 1 / (1 + (distance / 5.0) ** 2)  # a structure some 5 mm off counts half
    matrix = np.eye(4)
    matrix[:3] = solution.T
    return matrix if np.linalg.det(matrix[:3, :3]) > 0.1 else None


def right_angle_rotations() -> list[np.ndarray]:
    """Return the 24 proper rotations by multiples of 90 degrees, as 3x3 matrices."""
    out = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                out.append(matrix)
    return out


def _moments(shares: Shares) -> tuple[np.ndarray, float]:
    """Centre of mass and radius of gyration of grey and white matter, world mm."""
    brain = shares.data[0] + shares.data[1]
    total = float(brain.sum())
    centre = np.array(
        [
            (brain.sum(axis=tuple(a for a in range(3) if a != axis)) * np.arange(n)).sum() / total
            for axis, n in enumerate(brain.shape)
        ]
    )
    spread = sum(
        (
            brain.sum(axis=tuple(a for a in range(3) if a != axis))
            * (np.arange(n) - centre[axis]) ** 2
        ).sum()
        / total
        for axis, n in enumerate(brain.shape)
    )
    voxel = abs(np.linalg.det(shares.affine[:3, :3])) ** (1 / 3)
    return shares.affine[:3, :3] @ centre + shares.affine[:3, 3], float(np.sqrt(spread) * voxel)


def sample_scan(
    scan: torch.Tensor,
    scan_affine: np.ndarray,
    matrix: np.ndarray,
    shape: tuple[int, int, int],
    grid_affine: np.ndarray,
) -> torch.Tensor:
    """Sample channels of a scan on a grid in the template's world, through an affine map.

    Parameters
    ----------
    scan : torch.Tensor, shape (c, x, y, z)
        Channels of the scan.
    scan_affine : ndarray, shape (4, 4)
        Its voxel-to-world matrix.
    matrix : ndarray, shape (4, 4)
        Template world to scan world.
    shape : tuple of int
        Grid in the template's world.
    grid_affine : ndarray, shape (4, 4)
        Its voxel-to-world matrix.

    Returns
    -------
    torch.Tensor, shape (c, *shape)
        Trilinear; zero outside the scan.
    """
    voxels = np.linalg.inv(scan_affine) @ matrix @ grid_affine
    size = np.array(scan.shape[1:])
    # Voxel i of the grid has normalised coordinate 2 i / (n - 1) - 1 in both images.
    half_out, half_in = (np.array(shape) - 1) / 2, (size - 1) / 2
    linear = voxels[:3, :3] * half_out / half_in[:, None]
    shift = (voxels[:3, :3] @ half_out + voxels[:3, 3] - half_in) / half_in
    theta = np.concatenate([linear[::-1, ::-1], shift[::-1, None]], axis=1)
    theta = torch.from_numpy(theta.copy()).to(scan)[None]
    grid = functional.affine_grid(theta, [1, 1, *shape], align_corners=True)
    return functional.grid_sample(scan[None], grid, align_corners=True)[0]


def _shrunk(shares: Shares, factor: int) -> tuple[torch.Tensor, np.ndarray]:
    """Smooth and average blocks of voxels; the grid's edge stays where it is."""
    data = torch.from_numpy(shares.data)[None]
    data = functional.avg_pool3d(data, factor, ceil_mode=True, count_include_pad=True)
    data = smooth(data, 0.8)[0]
    affine = shares.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    affine[:3, :3] *= factor
    return data, affine


class _Level:
    """One resolution: what does not change over the iterations is computed once."""

    def __init__(self, template: Shares, scan: Shares, factor: int) -> None:
        self.template, self.grid_affine = _shrunk(template, factor)
        self.scan, self.scan_affine = _shrunk(scan, factor)
        self.shape = tuple(self.template.shape[1:])
        gradients = torch.gradient(self.template, dim=(1, 2, 3))
        energy = sum(g.square().sum(dim=0) for g in gradients)
        self.where = energy.flatten() > 1e-5
        axes = [
            float(self.grid_affine[a, a]) * torch.arange(n) + float(self.grid_affine[a, 3])
            for a, n in enumerate(self.shape)
        ]
        points = torch.stack(torch.meshgrid(*axes, indexing='ij')).reshape(3, -1)[:, self.where]
        # Centred and scaled to about one, so that the normal equations are well conditioned.
        self.middle = points.mean(dim=1)
        self.scale = float(points.std())
        local = torch.cat(
            [(points - self.middle[:, None]) / self.scale, torch.ones(1, points.shape[1])]
        )
        columns = []
        for axis, gradient in enumerate(gradients):
            slope = gradient.flatten(1)[:, self.where] / float(self.grid_affine[axis, axis])
            columns.append(slope[:, None] * local[None])  # (channel, 4, voxel)
        design = torch.cat(columns, dim=1)  # (channel, 12, voxel): row-major 3x4
        self.design = design.transpose(1, 2).reshape(-1, 12)
        self.normal = (self.design.T @ self.design).double()
        self.normal += 1e-6 * self.normal.diagonal().mean() * torch.eye(12)

    def sampled(self, matrix: np.ndarray) -> torch.Tensor:
        return sample_scan(self.scan, self.scan_affine, matrix, self.shape, self.grid_affine)

    def cost(self, matrix: np.ndarray) -> float:
        """Mean squared difference of all channels."""
        return float((self.sampled(matrix) - self.template).square().mean())

    def step(self, matrix: np.ndarray) -> tuple[np.ndarray, float]:
        """One Gauss-Newton step: the new matrix and how far it moves the brain, mm."""
        difference = (self.sampled(matrix) - self.template).flatten(1)[:, self.where].flatten()
        solution = torch.linalg.solve(self.normal, (self.design.T @ difference).double())
        update = solution.reshape(3, 4).numpy()
        change = np.eye(4)
        middle = self.middle.numpy().astype(float)
        change[:3, :3] += update[:, :3] / self.scale
        change[:3, 3] = update[:, 3] - update[:, :3] @ middle / self.scale
        moved = float(np.sqrt((update**2).sum()))
        # The template was moved by `change` to meet the scan: the scan moves back.
        return matrix @ np.linalg.inv(change), moved


def _descend(level: _Level, matrix: np.ndarray, iterations: int) -> tuple[np.ndarray, float]:
    best, best_cost = matrix, level.cost(matrix)
    for _ in range(iterations):
        matrix, moved = level.step(matrix)
        if not np.isfinite(matrix).all() or not 0.2 < np.linalg.det(matrix[:3, :3]) < 5:
            break
        cost = level.cost(matrix)
        if cost < best_cost:
            best, best_cost = matrix, cost
        if moved < _CONVERGED_MM:
            break
    return best, best_cost


def _search(level: _Level, template: Shares, scan: Shares) -> np.ndarray:
    """Start from moments: the best of 24 rotations after a few steps each."""
    centre_t, radius_t = _moments(template)
    centre_s, radius_s = _moments(scan)
    starts = []
    for rotation in right_angle_rotations():
        matrix = np.eye(4)
        matrix[:3, :3] = rotation * (radius_s / radius_t)
        matrix[:3, 3] = centre_s - matrix[:3, :3] @ centre_t
        starts.append((level.cost(matrix), len(starts), matrix))
    starts.sort(key=lambda item: item[:2])
    found = [_descend(level, matrix, 8) for _, _, matrix in starts[:6]]
    return min(found, key=lambda item: item[1])[0]


def register_affine(template: Shares, scan: Shares) -> np.ndarray:
    """Find the affine map from a template to a scan.

    Parameters
    ----------
    template, scan : Shares
        The template on a grid with the axes of the world; the scan on any RAS-ordered grid.

    Returns
    -------
    ndarray, shape (4, 4)
        Template world to scan world, mm. Its determinant is positive: a head is never mirrored.
    """
    matrix = affine_from_centres(template.centres, scan.centres)
    for factor, iterations in _LEVELS:
        level = _Level(template, scan, factor)
        if matrix is None:
            matrix = _search(level, template, scan)
        matrix = _descend(level, matrix, iterations)[0]
    return matrix
