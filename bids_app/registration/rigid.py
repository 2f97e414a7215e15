# SPDX-License-Identifier: Apache-2.0
"""Rigid registration of another contrast of a session, T2w or FLAIR, to its T1w.

Normalised mutual information (Studholme, Hill & Hawkes, Pattern Recognition 1999) is climbed from
coarse to fine with its exact derivative. The start is where the headers say, and, in case the
head moved or a header is wrong, the centres of the brains on each other, both with a few turns,
by right angles as well.

Thick slices keep their own voxels: averaging stops where a voxel is as large as the resolution of
a level, and the moving image is sampled at points, not at voxels of the fixed one. Blurring each
image with the voxel of the other as well has been tried and did not change the result.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from bids_app.errors import ImageError
from bids_app.images.grids import voxel_sizes
from bids_app.images.masks import dilate_mm, otsu_threshold
from bids_app.registration.affine import right_angle_rotations
from bids_app.registration.similarity import (
    Comparison,
    Sampler,
    bin_position,
    intensity_range,
    shrink,
)

_LEVELS = ((8.0, 6_000, 25), (4.0, 25_000, 25), (2.0, 60_000, 30))
"""Resolution in mm, number of points and largest number of iterations of each level."""

_TURNS = (15.0, 30.0)
"""Degrees about each axis, both ways, from which the coarsest level starts as well."""

_KEPT = 3
"""Different places that the coarsest level found and that go on to the second one."""

_RIGHT_ANGLES = 3
"""How many of the 24 turns by right angles, the most similar ones, are climbed from."""

_MASK_MM = 3.0  # grid of the masks
_RIM_MM = 8.0
"""What is compared beyond the fixed brain: the skull helps to hold its border."""

_RADIUS_MM = 60.0
"""Distance from the centre at which a turn counts as a shift, about that of the cortex."""

_SCALE = 1000.0  # of the similarity, so that its slope along a millimetre is about one


def register_rigid(
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    *,
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Find the rigid map that lays an image of another contrast onto a fixed one.

    Parameters
    ----------
    fixed : ndarray, shape (x, y, z)
        T1w, finite values, any order and direction of the axes.
    fixed_affine : array-like, shape (4, 4)
        Its voxel-to-world matrix in mm.
    moving : ndarray, shape (x, y, z)
        T2w or FLAIR as it was scanned: its voxel sizes say how thick its slices are.
    moving_affine : array-like, shape (4, 4)
    fixed_mask, moving_mask : ndarray, optional
        Brain on the grid of its image, nonzero inside. Without them the whole head is compared,
        and start and overlap cannot be checked by the brains.

    Returns
    -------
    matrix : ndarray, shape (4, 4)
        World of `fixed` to world of `moving`, RAS+ mm: a rotation and a translation. It is what
        resamples `moving` onto `fixed` (:func:`bids_app.images.resample.resample_rigid`) and
        what :func:`bids_app.images.transforms.write_linear` writes.
    measures : dict
        ``similarity_header`` and ``similarity`` (normalised mutual information before and
        after, 1 to 2), ``dice`` (overlap of the two masks; NaN without them), ``coverage`` (share
        of the fixed brain that lies in the moving field of view), ``shift_mm`` (of the brain's
        centre), ``rotation_degrees`` and ``displacement_mm`` (mean over the brain), all away from
        what the headers say, ``start`` (which start led there) and ``seconds``.

    Raises
    ------
    ImageError
        If an image or a mask is empty, or an image has a single voxel along an axis.
    """
    started = time.monotonic()
    one = _Image('the fixed image', fixed, fixed_affine, fixed_mask)
    two = _Image('the moving image', moving, moving_affine, moving_mask)
    found = _search(one, two)
    size, count, iterations = _LEVELS[1]
    comparison = _comparison(one, two, size, count)
    refined = [
        (*_climb(comparison, matrix, one.centre, iterations), name)
        for _, name, matrix in found[:_KEPT]
    ]
    matrix, _, name = max(refined, key=lambda item: item[1])
    size, count, iterations = _LEVELS[2]
    comparison = _comparison(one, two, size, count)
    matrix, _ = _climb(comparison, matrix, one.centre, iterations)
    shift, degrees, mean = rigid_displacement(matrix, one.points)
    measures = {
        'similarity_header': comparison(comparison.points)[0],
        'similarity': comparison(_moved(comparison.points.T, matrix).T)[0],
        'dice': _overlap(one, two, matrix) if one.masked and two.masked else math.nan,
        'coverage': float(two.inside(one.points, matrix).mean()),
        'shift_mm': shift,
        'rotation_degrees': degrees,
        'displacement_mm': mean,
        'seconds': time.monotonic() - started,
    }
    rounded: dict[str, Any] = {key: round(value, 4) for key, value in measures.items()}
    return matrix, {**rounded, 'start': name}


def refine_rigid(
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    *,
    fixed_mask: np.ndarray | None = None,
) -> np.ndarray:
    """Find the rigid map between images of one run, which the head left almost in its place.

    It is :func:`register_rigid` from one start only, where the headers put the images, and
    without the coarsest level: a tenth of its time.

    Parameters
    ----------
    fixed, fixed_affine, moving, moving_affine, fixed_mask
        As for :func:`register_rigid`.

    Returns
    -------
    ndarray, shape (4, 4)
        World of `fixed` to world of `moving`, RAS+ mm.
    """
    one = _Image('the fixed image', fixed, fixed_affine, fixed_mask)
    two = _Image('the moving image', moving, moving_affine, None)
    matrix = np.eye(4)
    for size, count, iterations in _LEVELS[1:]:
        matrix, _ = _climb(_comparison(one, two, size, count), matrix, one.centre, iterations)
    return matrix


def rigid_displacement(matrix: np.ndarray, points: np.ndarray) -> tuple[float, float, float]:
    """Say how far a rigid map moves a head.

    Parameters
    ----------
    matrix : ndarray, shape (4, 4)
        World to world, mm.
    points : ndarray, shape (n, 3)
        Where the brain is, mm.

    Returns
    -------
    shift : float
        mm by which the centre of the points moves.
    degrees : float
        Angle of the rotation.
    mean : float
        Mean displacement of the points, mm.
    """
    moved = _moved(points, matrix) - points
    angle = Rotation.from_matrix(matrix[:3, :3]).magnitude()
    shift = float(np.linalg.norm(moved.mean(axis=0)))
    return shift, math.degrees(angle), float(np.linalg.norm(moved, axis=1).mean())


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a map (4, 4) to points (n, 3)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


class _Image:
    """An image at working resolution, with its brain on a coarse grid."""

    def __init__(
        self, name: str, data: np.ndarray, affine: np.ndarray, mask: np.ndarray | None
    ) -> None:
        if min(np.shape(data)) < 2:
            raise ImageError(
                f'{name} has a single voxel along an axis: leave it out with --bids-filter-file'
            )
        self.data, self.affine = shrink(data, affine, _LEVELS[-1][0] / 2)
        self.masked = mask is not None
        if mask is not None:
            share, grid = shrink(np.asarray(mask) > 0, affine, _MASK_MM)
        else:
            values, grid = shrink(self.data, self.affine, _MASK_MM)
            share = (values > otsu_threshold(values)).astype(np.float32)
        core = share > 0.5
        if not core.any():
            raise ImageError(
                f'{name} is empty{" inside its brain mask" if self.masked else ""}: look at it'
            )
        self.share, self.grid = share, grid
        self.points = self._world(np.argwhere(core))
        self.centre = self.points.mean(axis=0)
        self._region = np.argwhere(dilate_mm(core, grid, _RIM_MM))

    def _world(self, where: np.ndarray) -> np.ndarray:
        return _moved(where, self.grid)

    def sampler(self, size: float) -> Sampler:
        """Return the image at a resolution in mm."""
        data, affine = shrink(self.data, self.affine, size / 2)
        return Sampler(gaussian_filter(data, size / 4 / voxel_sizes(affine)), affine)

    def around(self, count: int) -> np.ndarray:
        """Draw points (n, 3) in and around the brain, world mm; the same ones every time."""
        rng = np.random.default_rng(0)
        chosen = self._region[rng.integers(len(self._region), size=count)]
        return self._world(chosen + rng.uniform(-0.5, 0.5, (count, 3)))

    def place(self, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Return indices (3, n) of the coarse grid where a map carries points (n, 3)."""
        return _moved(points, np.linalg.inv(self.grid) @ matrix).T

    def inside(self, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Return which points lie in the field of view after a map."""
        place = self.place(points, matrix)
        limits = np.array(self.share.shape)[:, None] - 0.5
        return ((place >= -0.5) & (place <= limits)).all(axis=0)


def _comparison(fixed: _Image, moving: _Image, size: float, count: int) -> Comparison:
    """Prepare a level of some resolution (mm) and number of points."""
    points = fixed.around(count).T
    values = fixed.sampler(size)(points)[0]
    bins = np.rint(bin_position(values, *intensity_range(values))).astype(np.intp)
    sampler = moving.sampler(size)
    values, _, inside = sampler(moving.around(count).T)
    return Comparison(points, bins, sampler, intensity_range(values[inside]))


def _climb(
    comparison: Comparison, matrix: np.ndarray, centre: np.ndarray, iterations: int
) -> tuple[np.ndarray, float]:
    """Return the best map near the given one, and its similarity as a share of all points."""
    local = comparison.points - centre[:, None]
    start = matrix[:3, :3]
    place = start @ centre + matrix[:3, 3]

    def turned(vector: np.ndarray) -> np.ndarray:
        return Rotation.from_rotvec(vector / _RADIUS_MM).as_matrix() @ start

    def cost(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = comparison(turned(values[3:]) @ local + (place + values[:3])[:, None])
        if slope is None:
            return 0.0, np.zeros(6)
        change = slope @ local.T
        gradient = np.zeros(6)
        gradient[:3] = slope.sum(axis=1)
        for axis, step in enumerate(np.eye(3) * 1e-3):
            bend = (turned(values[3:] + step) - turned(values[3:] - step)) / 2e-3
            gradient[3 + axis] = (bend * change).sum()
        return -_SCALE * (value - 1), -_SCALE * gradient

    found = minimize(
        cost, np.zeros(6), jac=True, method='L-BFGS-B',
        options={'maxiter': iterations, 'maxls': 12, 'ftol': 1e-6, 'gtol': 1e-3},
    )  # fmt: skip
    out = _about(turned(found.x[3:]), centre, place + found.x[:3])
    # Where the images hardly overlap, mutual information says little, however large it is: what
    # counts between different places is the information of all points together.
    seen = comparison.moving.inside(_moved(comparison.points.T, out).T).mean()
    return out, float(seen) * -float(found.fun) / _SCALE


def _about(rotation: np.ndarray, centre: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the map that turns about a centre and carries it to a target."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = target - rotation @ centre
    return matrix


_Found = tuple[float, str, np.ndarray]


def _search(fixed: _Image, moving: _Image) -> list[_Found]:
    """Climb from every start at the coarsest level; best first, no two alike."""
    size, count, iterations = _LEVELS[0]
    comparison = _comparison(fixed, moving, size, count)

    def climbed(name: str, rotation: np.ndarray, target: np.ndarray) -> _Found:
        start = _about(rotation, fixed.centre, target)
        matrix, value = _climb(comparison, start, fixed.centre, iterations)
        return value, name, matrix

    def unclimbed(rotation: np.ndarray) -> float:
        start = _about(rotation, fixed.centre, moving.centre)
        return comparison(_moved(comparison.points.T, start).T)[0]

    turns = [
        Rotation.from_rotvec(sign * degrees * axis, degrees=True).as_matrix()
        for degrees in _TURNS for axis in np.eye(3) for sign in (1, -1)
    ]  # fmt: skip
    found = []
    for name, target in (('header', fixed.centre), ('centres', moving.centre)):
        found.append(climbed(name, np.eye(3), target))
        found += [climbed(f'{name}, turned', turn, target) for turn in turns]
    # A header without orientation may be off by right angles.
    turns = sorted(right_angle_rotations(), key=unclimbed)[-_RIGHT_ANGLES:]
    found += [climbed('centres, right angles', turn, moving.centre) for turn in turns]
    different: list[_Found] = []
    for item in sorted(found, key=lambda item: -item[0]):
        if all(_distance(item[2], other[2], fixed) > size / 4 for other in different):
            different.append(item)
    return [
        # Of all starts that led there the plainest one gives its name.
        (value, next(n for _, n, m in found if _distance(m, matrix, fixed) <= size / 4), matrix)
        for value, _, matrix in different
    ]


def _distance(first: np.ndarray, second: np.ndarray, fixed: _Image) -> float:
    """Mean distance of the places to which two maps carry the fixed brain, mm."""
    points = fixed.points[:: max(len(fixed.points) // 500, 1)]
    apart = _moved(points, first) - _moved(points, second)
    return float(np.linalg.norm(apart, axis=1).mean())


def _overlap(fixed: _Image, moving: _Image, matrix: np.ndarray) -> float:
    """Return the Dice of the two brains where both fields of view reach."""
    back = np.linalg.inv(matrix)
    own = fixed._world(np.argwhere(fixed.share > 0))
    own = own[moving.inside(own, matrix)]
    other = moving._world(np.argwhere(moving.share > 0))
    other = other[fixed.inside(other, back)]
    mine, theirs, rest = (
        map_coordinates(image.share, image.place(points, map_), order=1, mode='nearest')
        for image, points, map_ in (
            (fixed, own, np.eye(4)),
            (moving, own, matrix),
            (moving, other, np.eye(4)),
        )
    )
    volume = abs(np.linalg.det(moving.grid[:3, :3]) / np.linalg.det(fixed.grid[:3, :3]))
    total = float(mine.sum() + rest.sum() * volume)
    return 2 * float(np.minimum(mine, theirs).sum()) / total if total > 0 else 0.0
