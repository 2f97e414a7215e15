# SPDX-License-Identifier: Apache-2.0
"""Spectral coordinates against analytic eigenfunctions; order and direction of turned brains."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform, map_coordinates
from scipy.spatial.transform import Rotation

from bids_app.errors import ImageError
from bids_app.inference.coordinates import brain_coordinates, neumann_eigenfunctions

SIZES = np.array([3.0, 3.0, 3.0])
GRID = np.diag([*SIZES, 1.0])


def brain_like(
    turn: np.ndarray | None = None, shape: tuple[int, ...] = (72, 72, 72)
) -> np.ndarray:
    """Return an ellipsoid as large as a brain, pitched like one, with a stem and one fuller side.

    ``turn`` is applied about the middle of the volume.
    """
    shape = (72, 72, 72)
    middle = (np.array(shape) - 1) / 2
    points = (np.indices(shape).reshape(3, -1) - middle[:, None]) * SIZES[0]
    if turn is not None:
        points = turn.T @ points
    points = Rotation.from_euler('x', 15, degrees=True).as_matrix().T @ points
    right, front, top = points / np.array([[66.0], [84.0], [60.0]])
    right = right / (1 + 0.08 * front * np.sign(right))
    stem = (np.hypot(points[0], points[1] + 15) < 12) & (np.abs(points[2] + 55) < 25)
    return ((right**2 + front**2 + top**2 < 1) | stem).reshape(shape)


def box(lengths: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Return a box in voxels of 2 mm, in a volume, and where it lies in it."""
    inside = tuple(slice(8, 8 + round(n / 2)) for n in lengths)
    mask = np.zeros([part.stop + 7 for part in inside], bool)
    mask[inside] = True
    return mask, inside


# In the flat one, as of a scan of a part of the head, the third eigenfunction is a product.
@pytest.mark.parametrize('height', [82.0, 66.0])
def test_box_has_its_cosines(height):
    lengths = np.array([96.0, 120.0, height])
    mask, inside = box(lengths)
    coordinates = brain_coordinates(mask, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert coordinates.shape == (6, *mask.shape)
    assert coordinates.dtype == np.float32
    for axis in range(3):
        count = round(lengths[axis] / 2)
        centres = (np.arange(count) + 0.5) / count
        line = np.moveaxis(coordinates[(3 + axis, *inside)], axis, 0)
        expected = -np.cos(np.pi * centres)
        assert np.abs(line - expected[:, None, None]).max() < 0.04
        cartesian = np.moveaxis(coordinates[(axis, *inside)], axis, 0)
        assert cartesian == pytest.approx(np.linspace(-1, 1, count)[:, None, None] + 0 * line)
    # Outside the box they go on with the value at its border.
    edge, outside = coordinates[3, 8 + 47, 30, 20], coordinates[3, 8 + 48, 30, 20]
    assert outside == pytest.approx(edge, abs=0.02)


def test_eigenvalues_of_a_box():
    lengths = np.array([96.0, 120.0, 82.0])  # order of the eigenvalues: A, R, S
    found = neumann_eigenfunctions(box(lengths)[0], np.array([2.0, 2.0, 2.0]))
    assert found.eigenvalues == pytest.approx((np.pi / lengths[[1, 0, 2]]) ** 2, rel=5e-3)


def test_ball_has_its_bessel_functions():
    radius, shape = 60.0, (46, 44, 45)
    middle = (np.array(shape) - 1) / 2
    points = (np.indices(shape) - middle[:, None, None, None]) * 3.0
    mask = np.sqrt((points**2).sum(axis=0)) <= radius
    found = neumann_eigenfunctions(mask, SIZES)
    # The first root of the derivative of j1 is 2.0816; the three functions share it.
    assert found.eigenvalues == pytest.approx(np.full(3, (2.0816 / radius) ** 2), rel=0.02)
    r = np.sqrt((found.positions**2).sum(axis=0))
    k = 2.0816 * r / radius
    profile = (np.sin(k) / k**2 - np.cos(k) / k) / r
    analytic = profile * found.positions
    weights = np.sqrt(found.filled)
    basis, *_ = np.linalg.lstsq((analytic * weights).T, (found.values * weights).T, rcond=None)
    rest = found.values - basis.T @ analytic
    assert np.abs(rest).max() < 0.05 * np.abs(found.values).max()
    assert np.average(rest**2, axis=1, weights=found.filled).max() < 1e-4


@pytest.mark.parametrize(
    'rotation',
    [(30, 0, 0), (-30, 0, 0), (0, 30, 0), (0, 0, -30), (17, 17, 17), (-17, 17, -17)],
)
def test_turned_heads_are_neither_flipped_nor_swapped(rotation):
    turn = Rotation.from_rotvec(rotation, degrees=True).as_matrix()
    straight, turned = brain_like(), brain_like(turn)
    expected = brain_coordinates(straight, GRID, cartesian=False)
    found = brain_coordinates(turned, GRID, cartesian=False)
    points = np.argwhere(straight)[::37].T
    middle = (np.array(straight.shape)[:, None] - 1) / 2
    moved = turn @ (points - middle) + middle
    for axis in range(3):
        there = map_coordinates(found[axis], moved, order=1)
        here = expected[(axis, *points)]
        assert np.corrcoef(there, here)[0, 1] > 0.995
        assert np.abs(there - here).max() < 0.15


def test_nearly_equal_lengths_are_turned_to_the_axes_of_the_head():
    shape = (48, 60, 48)
    points = (np.indices(shape).T - (np.array(shape) - 1) / 2).T * 3.0
    mask = (points[0] / 60) ** 2 + (points[1] / 80) ** 2 + (points[2] / 60) ** 2 < 1
    towards_right, _, towards_top = brain_coordinates(mask, GRID, cartesian=False)[:, mask]
    assert np.corrcoef(towards_right, points[0][mask])[0, 1] > 0.98
    assert abs(np.corrcoef(towards_right, points[2][mask])[0, 1]) < 0.02
    assert np.corrcoef(towards_top, points[2][mask])[0, 1] > 0.95


def test_mirrored_brain_has_mirrored_coordinates():
    # More voxels on one side than on the other: nothing may hang on the array.
    mask = np.pad(brain_like(), ((3, 0), (0, 0), (0, 2)))
    found = brain_coordinates(mask, GRID)
    mirrored = brain_coordinates(mask[::-1], GRID)
    expected = found[:, ::-1].copy()
    expected[[0, 3]] *= -1
    assert np.abs(mirrored - expected)[:, mask[::-1]].max() < 2e-3


def test_rows_can_be_left_out():
    mask = brain_like()
    both = brain_coordinates(mask, GRID)
    assert np.array_equal(brain_coordinates(mask, GRID, spectral=False), both[:3])
    assert np.array_equal(brain_coordinates(mask, GRID, cartesian=False), both[3:])
    assert brain_coordinates(mask, GRID, cartesian=False, spectral=False).shape == (0, *mask.shape)


def test_other_parts_are_continued():
    mask = brain_like()
    expected = brain_coordinates(mask, GRID)
    mask[2:5, 2:5, 2:5] = True
    found = brain_coordinates(mask, GRID)
    assert np.array_equal(found, expected)
    assert np.isfinite(found).all()
    assert np.abs(found[3:]).max() <= 1
    # Smooth also beyond the brain: no step is much larger than the largest inside.
    inside = brain_like()
    for row in found[3:]:
        steps = np.abs(np.diff(row, axis=1))
        assert steps.max() < 2 * steps[inside[:, 1:] & inside[:, :-1]].max()


@pytest.mark.parametrize('edge', [0, 8])
def test_masks_that_are_no_brain(edge):
    mask = np.zeros((30, 30, 30), bool)
    mask[:edge, :edge, :edge] = True
    with pytest.raises(ImageError, match='too little for coordinates'):
        brain_coordinates(mask, GRID)


@pytest.mark.parametrize('subject', ['sub-1000', 'sub-1013'])
def test_real_brains_are_neither_flipped_nor_swapped(data_dir, subject):
    path = data_dir / 'miccai2012' / f'{subject}_T1w.nii.gz'
    if not path.is_file():
        pytest.skip(f'{path} is missing')
    image = nib.as_closest_canonical(nib.load(path))
    mask = np.pad(np.asanyarray(image.dataobj)[::3, ::3, ::3] > 0, 8)
    expected = brain_coordinates(mask, GRID, cartesian=False)
    points = np.argwhere(mask)[::29].T
    positions = points - points.mean(axis=1, keepdims=True)
    for axis in range(3):
        assert np.corrcoef(expected[(axis, *points)], positions[axis])[0, 1] > 0.75
    middle = (np.array(mask.shape) - 1) / 2
    for vector in ((30, 0, 0), (-30, 0, 0), (-10, 20, -20)):
        turn = Rotation.from_rotvec(vector, degrees=True).as_matrix()
        turned = affine_transform(
            mask.astype(np.float32), turn.T, middle - turn.T @ middle, order=1
        )
        found = brain_coordinates(turned > 0.5, GRID, cartesian=False)
        moved = turn @ (points - middle[:, None]) + middle[:, None]
        for axis in range(3):
            there = map_coordinates(found[axis], moved, order=1, mode='nearest')
            assert np.corrcoef(there, expected[(axis, *points)])[0, 1] > 0.99
