# SPDX-License-Identifier: Apache-2.0
"""Where a voxel lies in its brain: three Cartesian and three spectral coordinates for DeepNAT.

The spectral ones are eigenfunctions of the Laplace operator of the solid brain with Neumann
boundary, the coordinates that a brain has of its own: they follow its shape and not the scanner
(Wachinger, Reuter and Klein, DeepNAT, NeuroImage 170, 2018; Reuter, Wolter and Peinecke,
Laplace-Beltrami spectra, Computer-Aided Design 38, 2006). How the paper solves, orders and orients
them is not published. Here a finite-volume operator on cells of 5 mm that the mask fills in part
is solved with a sparse eigensolver, and the axes of the head decide order and direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.errors import ImageError
from bids_app.images.grids import voxel_sizes
from bids_app.images.masks import bounding_box, largest_component
from bids_app.images.resample import axis_weights, resample_separable

CELL_MM = 5.0
PITCH_DEGREES = 15.0
"""How far the axes of the eigenfunctions of a head that stands straight are turned about R, from
A towards S: the mean of 18 brains, with a standard deviation of 4 degrees."""
LEAST_BRAIN_MM3 = 20e3
"""A smaller mask is no brain: the same limit as that of the search for the brain."""

_LEAST_FILLED = 0.02
"""Cells of which less is brain do not take part: they only worsen the condition."""
_MARGIN = 3
"""Cells around the brain into which the eigenfunctions are continued."""
_CANDIDATES = 6
_DEGENERATE = 0.02
"""Eigenfunctions whose eigenvalues differ by less than about this part are turned to the axes."""


@dataclass(frozen=True)
class Eigenfunctions:
    """Eigenfunctions of the Laplace operator on the cells of a brain.

    Attributes
    ----------
    values : ndarray, shape (n, cells)
        Mean square 1 over the brain, mean 0; in the order of the eigenvalues.
    eigenvalues : ndarray, shape (n,)
        mm^-2, ascending, without the 0 of the constant function.
    positions : ndarray, shape (3, cells)
        Centroids of what is brain in the cells, mm along the axes of the mask from the centre of
        its array.
    filled : ndarray, shape (cells,)
        Which part of every cell is brain.
    where : ndarray of bool, shape (x, y, z)
        The cells on their grid.
    affine : ndarray, shape (4, 4)
        From indices of cells to such positions.
    """

    values: np.ndarray
    eigenvalues: np.ndarray
    positions: np.ndarray
    filled: np.ndarray
    where: np.ndarray
    affine: np.ndarray


def brain_coordinates(
    mask: np.ndarray, affine: np.ndarray, *, cartesian: bool = True, spectral: bool = True
) -> np.ndarray:
    """Return coordinates of all voxels of a volume relative to the brain in it.

    Parameters
    ----------
    mask : ndarray, shape (x, y, z)
        Brain mask, nonzero inside, axes in RAS order. Its largest face-connected part counts; the
        coordinates are continued into others.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix, mm; only its voxel sizes are used.
    cartesian, spectral : bool
        Which are wanted.

    Returns
    -------
    ndarray of float32, shape (0, 3 or 6, x, y, z)
        Cartesian: -1 to 1 between the outermost voxels of the brain towards R, A and S, and on
        along the same line outside. Spectral: eigenfunctions that rise towards R, A and S, between
        -1 and 1, continued smoothly outside the brain. A mirrored mask gives mirrored coordinates
        with the sign of those towards R turned.

    Raises
    ------
    ImageError
        If the mask has less than 20 cm^3.
    """
    mask = np.asarray(mask) != 0
    sizes = voxel_sizes(affine)
    brain = largest_component(mask)
    volume = float(brain.sum() * np.prod(sizes))
    if volume < LEAST_BRAIN_MM3:
        raise ImageError(
            f'the brain mask has {volume / 1e3:.1f} cm^3, too little for coordinates in the brain '
            f'(least: {LEAST_BRAIN_MM3 / 1e3:.0f} cm^3): look at the scan and its mask'
        )
    rows = []
    if cartesian:
        rows.append(_cartesian(brain))
    if spectral:
        rows.append(_spectral(brain, sizes))
    if not rows:
        return np.zeros((0, *mask.shape), dtype=np.float32)
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _cartesian(brain: np.ndarray) -> np.ndarray:
    """Return -1 to 1 along every axis of the bounding box."""
    found = np.empty((3, *brain.shape), dtype=np.float32)
    for axis, part in enumerate(bounding_box(brain)):
        half = max(part.stop - 1 - part.start, 1) / 2
        line = (np.arange(brain.shape[axis]) - (part.start + part.stop - 1) / 2) / half
        found[axis] = line.reshape([-1 if other == axis else 1 for other in range(3)])
    return found


def _spectral(brain: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the three eigenfunctions on all voxels."""
    found = neumann_eigenfunctions(brain, sizes, _CANDIDATES)
    values = align_to_axes(found)
    values /= np.abs(values).max(axis=1, keepdims=True)
    cells = _continue(found.where, values)
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -(np.array(brain.shape) - 1) / 2 * sizes
    result = np.empty((3, *brain.shape), dtype=np.float32)
    for row, volume in zip(result, cells, strict=True):
        row[...] = resample_separable(
            volume, found.affine, brain.shape, affine, order=3, outside='edge'
        )
    return np.clip(result, -1, 1, out=result)


def neumann_eigenfunctions(
    mask: np.ndarray, sizes: np.ndarray, count: int = 3, cell: float = CELL_MM
) -> Eigenfunctions:
    """Solve ``-laplace(u) = eigenvalue * u`` in a mask, with no flux through its border.

    Finite volumes on a grid of cubes: the mass of a cell is the part of it that the mask fills,
    the flux between two cells goes through the part of their common face that lies in the mask.

    Parameters
    ----------
    mask : ndarray of bool, shape (x, y, z)
        One connected part.
    sizes : array-like, shape (3,)
        Voxel size, mm.
    count : int
        Eigenfunctions, without the constant one.
    cell : float
        Edge of a cell, mm.

    Returns
    -------
    Eigenfunctions

    Raises
    ------
    ImageError
        If the mask is spread so thinly that hardly any cells hang together.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import LinearOperator, eigsh, splu

    box = bounding_box(mask)
    content = mask[box].astype(np.float32)
    # The grid of cells lies symmetrically about the mask: a mirrored mask gets mirrored cells.
    numbers = [int(np.ceil(n * s / cell)) for n, s in zip(content.shape, sizes, strict=True)]
    parts, faces, moments = [], [], []
    for n, size, number in zip(content.shape, sizes, numbers, strict=True):
        edges = (np.arange(number + 1) - number / 2) * cell
        voxels = (np.arange(n + 1) - n / 2) * size
        upper = np.minimum(edges[1:, None], voxels[None, 1:])
        lower = np.maximum(edges[:-1, None], voxels[None, :-1])
        parts.append(np.clip(upper - lower, 0, None) / cell)
        off_centre = (upper + lower) / 2 - (edges[1:, None] + edges[:-1, None]) / 2
        moments.append(parts[-1] * off_centre)
        scale, first = cell / size, edges[1] / size + (n - 1) / 2
        faces.append(axis_weights(n, number - 1, scale, first, antialias=False))
    filled = _apply(content, parts)
    inside = filled > _LEAST_FILLED
    index = np.full(inside.shape, -1)
    index[inside] = np.arange(int(inside.sum()))
    rows, columns, weights = [], [], []
    centroids = np.zeros((3, *filled.shape))
    for axis in range(3):
        area = _apply(content, [faces[a] if a == axis else parts[a] for a in range(3)]) * cell**2
        moment = _apply(content, [moments[a] if a == axis else parts[a] for a in range(3)])
        centroids[axis] = moment / np.maximum(filled, _LEAST_FILLED)
        # What is left of a cell at the border lies nearer to its neighbour than the whole would.
        distance = np.maximum(cell + np.diff(centroids[axis], axis=axis), cell / 4)
        flux = area / distance
        low = index.take(np.arange(numbers[axis] - 1), axis)
        high = index.take(np.arange(1, numbers[axis]), axis)
        joined = (low >= 0) & (high >= 0) & (flux > 0)
        rows.append(low[joined])
        columns.append(high[joined])
        weights.append(flux[joined])
    size = int(inside.sum())
    upper = sparse.coo_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (size, size)
    )
    joint = (upper + upper.T).tocsr()
    _, part = connected_components(joint, directed=False)
    used = part == np.bincount(part).argmax()
    joint = joint[used][:, used]
    if used.sum() < 10 * count:
        raise ImageError(
            'the brain mask has hardly any connected volume: look at the scan and its mask'
        )
    where = inside.copy()
    where[inside] = used
    mass = filled[where].astype(float)
    root = np.sqrt(mass * cell**3)
    stiffness = sparse.diags(np.asarray(joint.sum(axis=1)).ravel()) - joint
    operator = sparse.diags(1 / root) @ stiffness @ sparse.diags(1 / root)
    # Just below the eigenvalue 0 of the constant function, on the scale of the brain's others.
    shift = -0.1 * (np.pi / max(n * s for n, s in zip(content.shape, sizes, strict=True))) ** 2
    factors = splu(
        (operator - shift * sparse.identity(len(root))).tocsc(),
        permc_spec='MMD_AT_PLUS_A',
        diag_pivot_thresh=0.0,
        options={'SymmetricMode': True},
    )
    inverse = LinearOperator(operator.shape, matvec=factors.solve, dtype=float)
    grid = np.diag([cell, cell, cell, 1.0])
    middle = [
        ((part.start + part.stop) / 2 - n / 2) * size
        for part, n, size in zip(box, mask.shape, sizes, strict=True)
    ]
    grid[:3, 3] = np.array(middle) - (np.array(numbers) - 1) / 2 * cell
    positions = grid[:3, :3] @ np.array(np.nonzero(where)) + grid[:3, 3:] + centroids[:, where]
    # The same start for the same brain, and nothing in it that a mirrored brain would lack.
    start = root * (1 + positions.sum(axis=0) / np.abs(positions).max())
    eigenvalues, vectors = eigsh(
        operator, count + 1, sigma=shift, OPinv=inverse, v0=start, tol=1e-7
    )
    order = np.argsort(eigenvalues)[1:]
    values = (vectors[:, order] / root[:, None]).T
    values -= values @ mass[:, None] / mass.sum()
    values /= np.sqrt(values**2 @ mass[:, None] / mass.sum())
    # The cells are returned with a margin, in which they are continued.
    grid[:3, 3] -= _MARGIN * cell
    return Eigenfunctions(
        values, eigenvalues[order], positions, mass, np.pad(where, _MARGIN), grid
    )


def _apply(data: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """Multiply a volume by one matrix per axis."""
    for axis, matrix in enumerate(matrices):
        data = np.moveaxis(np.tensordot(matrix.astype(np.float32), data, (1, axis)), 0, axis)
    return data


def align_to_axes(found: Eigenfunctions) -> np.ndarray:
    """Choose the eigenfunctions that run along the three axes of the head, and orient them.

    The direction of an eigenfunction is that of its regression on the position (in whitened
    positions, so that a turned head has turned directions and its length counts no more than its
    width). Each axis gets the eigenfunction closest to it, all three together (Hungarian
    algorithm): their order in the spectrum may differ between brains. Brains that stand straight
    have directions that are pitched by :data:`PITCH_DEGREES`; measured from there, a head may be
    turned by almost 45 degrees before another choice fits better.

    Where eigenvalues are nearly equal, eigenfunctions are mixed at random: the three are turned
    among themselves towards the axes as far as the differences of the eigenvalues allow. This is
    continuous: clearly different eigenvalues leave the eigenfunctions as they are, equal ones
    leave the choice to the axes.

    Parameters
    ----------
    found : Eigenfunctions
        At least three.

    Returns
    -------
    ndarray, shape (3, cells)
        They rise towards R, A and S; mean square 1.
    """
    from scipy.optimize import linear_sum_assignment, minimize
    from scipy.spatial.transform import Rotation

    weights = found.filled / found.filled.sum()
    centred = found.positions - (found.positions @ weights)[:, None]
    spread, main = np.linalg.eigh((centred * weights) @ centred.T)
    white = main @ np.diag(spread**-0.5) @ main.T @ centred
    axes = Rotation.from_euler('x', PITCH_DEGREES, degrees=True).as_matrix()
    directions = (found.values * weights) @ white.T @ axes
    rows, columns = linear_sum_assignment(-np.abs(directions))
    chosen = rows[np.argsort(columns)]
    signs = np.where(np.diag(directions[chosen]) < 0, -1.0, 1.0)[:, None]
    values, directions = found.values[chosen] * signs, directions[chosen] * signs
    spectrum = np.diag(found.eigenvalues[chosen] / found.eigenvalues[chosen].mean())

    def cost(angles: np.ndarray) -> float:
        turn = Rotation.from_rotvec(angles).as_matrix()
        impure = ((turn @ spectrum @ turn.T)[np.triu_indices(3, 1)] ** 2).sum()
        return float(impure / _DEGENERATE**2 - (np.diag(turn @ directions) ** 2).sum())

    best = minimize(cost, np.zeros(3), method='BFGS')
    return Rotation.from_rotvec(best.x).as_matrix() @ values


def _continue(where: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Continue values from the cells of the brain to all others.

    Every other cell gets the value of its nearest, which is smooth across the border since the
    derivative is zero there; where two parts of the brain are as near, the jump is diffused.
    """
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(~where, return_distances=False, return_indices=True)
    full = np.zeros((len(values), *where.shape))
    full[:, where] = values
    full = full[(slice(None), *nearest)]
    for volume in full:
        for _ in range(4 * _MARGIN):
            volume[~where] = ndimage.uniform_filter(volume, 3, mode='nearest')[~where]
    return full
