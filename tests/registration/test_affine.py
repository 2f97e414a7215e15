# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bids_app.registration.affine import (
    affine_from_centres,
    register_affine,
    right_angle_rotations,
)
from bids_app.registration.shares import Shares


def rotation(x, y, z):
    out = np.eye(4)
    for axis, angle in enumerate(np.deg2rad([x, y, z])):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


def true_map(angles=(8, -5, 12), zoom=(1.08, 0.94, 1.03), shift=(9, -14, 20)):
    matrix = rotation(*angles) @ np.diag([*zoom, 1.0])
    matrix[:3, 3] = shift
    return matrix


@pytest.fixture(scope='module')
def moved_head(phantoms):
    """The phantom as a scan whose world is ``matrix`` times that of the template."""

    def make(matrix, affine, shape):
        back = np.linalg.inv(matrix)
        return phantoms[0](affine, shape, lambda p: back[:3, :3] @ p + back[:3, 3:])

    return make


def brain_error(found, expected):
    """Mean distance in mm over points of the brain."""
    points = np.random.default_rng(0).uniform((-60, -90, -40), (60, 60, 70), (500, 3)).T
    points = np.vstack([points, np.ones(500)])
    return float(np.linalg.norm(((found - expected) @ points)[:3], axis=0).mean())


SCAN = np.diag([2.0, 2.0, 2.0, 1.0])
SCAN[:3, 3] = (-96, -120, -70)
SHAPE = (100, 120, 92)


@pytest.mark.parametrize('with_structures', [True, False])
def test_known_map_is_found(template, phantoms, moved_head, with_structures):
    expected = true_map()
    scan = phantoms[1](moved_head(expected, SCAN, SHAPE), SCAN)
    if not with_structures:  # only moments and the rotations by right angles are left
        scan = Shares(scan.data, scan.affine, {})
    assert brain_error(register_affine(template, scan), expected) < 0.7


def test_head_that_lies_on_its_side_is_found_without_structures(template, phantoms, moved_head):
    expected = true_map(angles=(90, 0, 6), shift=(3, 20, 10))
    affine = SCAN.copy()
    affine[:3, 3] = (-110, -110, -110)
    scan = phantoms[1](moved_head(expected, affine, (110, 110, 110)), affine)
    scan = Shares(scan.data, scan.affine, {})
    assert brain_error(register_affine(template, scan), expected) < 1.0


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_axis_order_of_the_scan_does_not_matter(template, phantoms, moved_head, axis):
    expected = true_map()
    labels = moved_head(expected, SCAN, SHAPE)
    flipped = SCAN @ np.diag([-1.0 if a == axis else 1.0 for a in (0, 1, 2)] + [1.0])
    flipped[:3, 3] = SCAN[:3, 3]
    flipped[axis, 3] += SCAN[axis, axis] * (SHAPE[axis] - 1)
    scan = phantoms[1](np.flip(labels, axis).copy(), flipped)
    found = register_affine(template, scan)
    assert brain_error(found, expected) < 0.7
    assert np.linalg.det(found[:3, :3]) > 0


def test_outlying_structure_does_not_spoil_the_start():
    rng = np.random.default_rng(1)
    centres = {n: rng.normal(0, 40, 3) for n in range(20)}
    matrix = true_map()
    moved = {n: matrix[:3, :3] @ c + matrix[:3, 3] for n, c in centres.items()}
    moved[3] = moved[3] + 60
    points = np.array(list(centres.values())).T
    found = affine_from_centres(centres, moved)
    error = (found - matrix)[:3, :3] @ points + (found - matrix)[:3, 3:]
    assert np.linalg.norm(error, axis=0).mean() < 1.5


def test_too_few_structures_give_no_start():
    assert affine_from_centres({1: np.zeros(3)}, {1: np.zeros(3)}) is None


def test_there_are_24_right_angle_rotations():
    found = right_angle_rotations()
    assert len({m.tobytes() for m in found}) == 24
    assert all(np.linalg.det(m) == pytest.approx(1) for m in found)
