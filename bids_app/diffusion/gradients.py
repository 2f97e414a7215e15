# SPDX-License-Identifier: Apache-2.0
"""Gradient tables: reading them, and turning their vectors with the image.

BIDS keeps b-vectors as FSL does: along the voxel axes of the image, in the order of the file, with
the first component negated where the voxel axes are right-handed in world space (the determinant
of the affine is positive). Here all work is done in RAS+ order, along the voxel axes of the
reoriented image, without that exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.bids.files import read_text
from bids_app.errors import ImageError
from bids_app.images.grids import orientation, voxel_sizes

SHELL_WIDTH = 100.0
"""s/mm^2: b-values closer than this to their neighbours belong to one shell."""

SAME_DIRECTION_DEGREES = 3.0
"""Two volumes whose directions (or opposite ones) are closer than this measure the same."""


@dataclass(frozen=True)
class Gradients:
    """Diffusion weighting of the volumes of a series.

    Attributes
    ----------
    bvals : ndarray, shape (n,)
        s/mm^2.
    bvecs : ndarray, shape (n, 3)
        Unit vectors, 0 where there is no weighting.
    """

    bvals: np.ndarray
    bvecs: np.ndarray

    def __len__(self) -> int:
        return len(self.bvals)


def read_gradients(bval: Path, bvec: Path) -> Gradients:
    """Read a gradient table as it is in the files, vectors in FSL's convention.

    Parameters
    ----------
    bval, bvec : Path
        Text files with n numbers, and with three rows of n numbers (or n rows of three).

    Returns
    -------
    Gradients
        Vectors are made unit vectors; NaN is 0.

    Raises
    ------
    ImageError
        If a file is no such table, or the two do not belong together.
    """
    bvals = _numbers(bval).ravel()
    vectors = _numbers(bvec)
    if vectors.ndim != 2 or 3 not in vectors.shape:
        raise ImageError(f'{bvec}: not three rows of numbers; export the gradient table again')
    if vectors.shape[0] == 3:  # as BIDS wants it; some write one row per volume
        vectors = vectors.T
    if len(vectors) != len(bvals):
        raise ImageError(
            f'{bval.name} has {len(bvals)} b-values, but {bvec.name} has {len(vectors)} vectors; '
            'export the gradient table again'
        )
    if (bvals < 0).any() or not np.isfinite(bvals).all():
        raise ImageError(f'{bval}: b-values must be numbers from 0; export the table again')
    vectors = np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return Gradients(bvals, unit)


def _numbers(path: Path) -> np.ndarray:
    """Read rows of numbers."""
    try:
        rows = [line.replace(',', ' ').split() for line in read_text(path).splitlines()]
        table = np.array([[float(word) for word in row] for row in rows if row], np.float64)
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror})') from None
    except ValueError:
        raise ImageError(
            f'{path}: not a table of numbers with rows of one length; export it again'
        ) from None
    if table.size == 0:
        raise ImageError(f'{path}: is empty; export the gradient table again')
    return table


def ras_directions(bvecs: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn FSL's vectors along the axes of a file into vectors along RAS+ voxel axes.

    Parameters
    ----------
    bvecs : ndarray, shape (n, 3)
        As the ``.bvec`` file has them.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix of the image that they belong to.

    Returns
    -------
    ndarray, shape (n, 3)
        Along the axes of :func:`bids_app.images.grids.canonical` of the image: axes are permuted
        and flipped as those of the image are. An oblique image stays oblique, and so its vectors
        refer to its own axes, not to those of the scanner.
    """
    vectors = np.array(bvecs, dtype=np.float64)
    if np.linalg.det(np.asarray(affine, float)[:3, :3]) > 0:
        vectors[:, 0] *= -1
    out = np.empty_like(vectors)
    for axis, (world, direction) in enumerate(orientation(affine)):
        out[:, world] = direction * vectors[:, axis]
    return out


def world_directions(bvecs: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn vectors along the voxel axes of an image into world directions.

    Parameters
    ----------
    bvecs : ndarray, shape (n, 3)
        Along its voxel axes, without FSL's exception (:func:`ras_directions` for RAS+ order).
    affine : array-like, shape (4, 4)
        Its voxel-to-world matrix, RAS+ mm.

    Returns
    -------
    ndarray, shape (n, 3)
        Along right, anterior, superior of the scanner.
    """
    affine = np.asarray(affine, float)
    return np.asarray(bvecs, float) @ (affine[:3, :3] / voxel_sizes(affine)).T


def voxel_directions(directions: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undo :func:`world_directions`; affines with shears are taken as they are."""
    affine = np.asarray(affine, float)
    axes = affine[:3, :3] / voxel_sizes(affine)
    return np.asarray(directions, float) @ np.linalg.inv(axes).T


def shells(bvals: np.ndarray, b0_threshold: float) -> list[tuple[float, int]]:
    """List the shells of a series.

    Parameters
    ----------
    bvals : ndarray, shape (n,)
        s/mm^2.
    b0_threshold : float
        s/mm^2 up to which a volume is one of b=0.

    Returns
    -------
    list of (float, int)
        Mean b-value and number of volumes of every shell, the lowest first; b=0 is not among
        them.
    """
    ordered = np.sort(np.asarray(bvals, float)[np.asarray(bvals) > b0_threshold])
    groups = np.split(ordered, np.flatnonzero(np.diff(ordered) > SHELL_WIDTH) + 1)
    return [(round(float(group.mean()), 1), len(group)) for group in groups if len(group)]


def count_directions(gradients: Gradients, b0_threshold: float) -> int:
    """Count different directions of weighted volumes; opposite ones are the same."""
    weighted = (gradients.bvals > b0_threshold) & gradients.bvecs.any(axis=1)
    different: list[np.ndarray] = []
    least = np.cos(np.radians(SAME_DIRECTION_DEGREES))
    for vector in gradients.bvecs[weighted]:
        if not different or np.abs(np.array(different) @ vector).max() < least:
            different.append(vector)
    return len(different)


def tensor_problem(gradients: Gradients, b0_threshold: float) -> str | None:
    """Say why a series does not determine a tensor, in words; None if it does."""
    from bids_app.diffusion.tensor import design_matrix

    low = gradients.bvals <= b0_threshold
    if not low.any():
        return f'no volume with b up to {b0_threshold:g} s/mm^2 (no b=0)'
    if low.all():
        return 'no diffusion-weighted volume'
    if not gradients.bvecs[~low].any():
        return 'the b-vectors of all weighted volumes are zero (trace images?)'
    count = count_directions(gradients, b0_threshold)
    if count < 6:
        return f'{count} different direction{"s"[: count != 1]}, and a tensor needs six'
    products = design_matrix(np.full((~low).sum(), 1000.0), gradients.bvecs[~low])[:, :6]
    if np.linalg.matrix_rank(products, tol=1e-2) < 6:
        return 'the directions lie in a plane or a cone and do not determine a tensor'
    return None
