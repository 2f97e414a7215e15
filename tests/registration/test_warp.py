# SPDX-License-Identifier: Apache-2.0
"""Images, labels and points between a scan and a template."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from bids_app.registration import warp
from bids_app.registration.normalisation import Normalisation
from bids_app.registration.warp import map_points, to_native, to_template

TEMPLATE_SHAPE = (50, 60, 45)
TEMPLATE_AFFINE = np.array([[2.0, 0, 0, -49], [0, 2, 0, -58], [0, 0, 2, -40], [0, 0, 0, 1]])
NATIVE_SHAPE = (64, 60, 56)
NATIVE_AFFINE = np.array(
    [[-1.7, 0.1, 0.2, 55], [0.1, 1.8, -0.3, -60], [0.15, 0.3, 1.9, -45], [0, 0, 0, 1.0]]
)


def world(shape, affine):
    """Return the world coordinates of all voxel centres, (n, 3)."""
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).T


def picture(points):
    """Return a smooth asymmetric picture at points of the world."""
    x, y, z = np.asarray(points).T
    return (np.sin(x / 13) + np.cos(y / 11 + 0.3) + np.sin(z / 9 + x / 30)).astype(np.float32)


def interior(shape, affine, normalisation, direction, other_shape, other_affine):
    """Tell which voxels of a grid have their source well inside the other grid."""
    mapped = map_points(normalisation, world(shape, affine), direction)
    voxel = np.linalg.inv(other_affine)
    voxel = (voxel[:3, :3] @ mapped.T).T + voxel[:3, 3]
    return ((voxel > 0) & (voxel < np.array(other_shape) - 1)).all(axis=1).reshape(shape)


def test_points_follow_the_definition(normalisation):
    """At the voxels of the registration grid the displacement needs no interpolation."""
    rng = np.random.default_rng(1)
    index = rng.integers(0, normalisation.shape, (200, 3))
    points = index * 3.0 + normalisation.grid_affine[:3, 3]
    moved = points + normalisation.forward[:, index[:, 0], index[:, 1], index[:, 2]].T
    expected = moved @ normalisation.affine[:3, :3].T + normalisation.affine[:3, 3]
    np.testing.assert_allclose(map_points(normalisation, points, 'forward'), expected, atol=1e-5)


def test_points_come_back(normalisation):
    rng = np.random.default_rng(2)
    points = rng.uniform([-50, -60, -42], [50, 60, 48], (500, 3))
    there = map_points(normalisation, points, 'forward')
    assert np.abs(there - points).max() > 5
    error = np.abs(map_points(normalisation, there, 'backward') - points)
    # Both fields are interpolated linearly on 3 mm.
    assert error.mean() < 0.01
    assert error.max() < 0.1


def test_no_displacement_beyond_the_grid(normalisation):
    points = np.array([[200.0, 0, 0], [0, -300, 10]])
    expected = points @ normalisation.affine[:3, :3].T + normalisation.affine[:3, 3]
    np.testing.assert_allclose(map_points(normalisation, points, 'forward'), expected)
    with pytest.raises(ValueError, match='direction'):
        map_points(normalisation, points, 'sideways')


@pytest.mark.parametrize('turned', [False, True])
def test_image_to_template_is_the_image_at_the_mapped_points(normalisation, turned, monkeypatch):
    """On grids parallel to the registration grid and on others, in many slabs."""
    monkeypatch.setattr(warp, 'SLAB_VOXELS', 20_000)
    affine = NATIVE_AFFINE @ np.diag([1, 1, 1, 1.0]) if turned else TEMPLATE_AFFINE
    shape = TEMPLATE_SHAPE
    data = picture(world(NATIVE_SHAPE, NATIVE_AFFINE)).reshape(NATIVE_SHAPE)
    found = to_template(data, NATIVE_AFFINE, normalisation, shape, affine, outside=-7)
    expected = picture(map_points(normalisation, world(shape, affine), 'forward')).reshape(shape)
    inside = interior(shape, affine, normalisation, 'forward', NATIVE_SHAPE, NATIVE_AFFINE)
    assert inside.mean() > 0.3
    # Linear interpolation of a picture of wavelength 57 mm and more on 2 mm voxels.
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.02)
    assert found.dtype == np.float32
    assert (found == -7).any() != turned or (found[~inside] == -7).any()


def test_image_to_scan_is_the_image_at_the_mapped_points(normalisation):
    data = picture(world(TEMPLATE_SHAPE, TEMPLATE_AFFINE)).reshape(TEMPLATE_SHAPE)
    found = to_native(data, TEMPLATE_AFFINE, normalisation, NATIVE_SHAPE, NATIVE_AFFINE)
    mapped = map_points(normalisation, world(NATIVE_SHAPE, NATIVE_AFFINE), 'backward')
    inside = interior(
        NATIVE_SHAPE, NATIVE_AFFINE, normalisation, 'backward', TEMPLATE_SHAPE, TEMPLATE_AFFINE
    )
    expected = picture(mapped).reshape(NATIVE_SHAPE)
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.02)


@pytest.mark.parametrize('axes', ['LPS', 'PIR', 'SAL'])
@pytest.mark.parametrize('order', ['linear', 'nearest'])
def test_axis_order_of_the_scan_makes_no_difference(normalisation, axes, order):
    data = picture(world(NATIVE_SHAPE, NATIVE_AFFINE)).reshape(NATIVE_SHAPE)
    turn = ornt_transform(io_orientation(NATIVE_AFFINE), axcodes2ornt(axes))
    turned_affine = NATIVE_AFFINE @ inv_ornt_aff(turn, NATIVE_SHAPE)
    turned = data
    for axis in range(3):
        if turn[axis, 1] < 0:
            turned = np.flip(turned, axis)
    turned = np.transpose(turned, np.argsort(turn[:, 0]))
    grid = TEMPLATE_SHAPE, TEMPLATE_AFFINE
    first = to_template(data, NATIVE_AFFINE, normalisation, *grid, order=order)
    second = to_template(turned, turned_affine, normalisation, *grid, order=order)
    np.testing.assert_allclose(second, first, atol=1e-5)
    back = to_native(first, TEMPLATE_AFFINE, normalisation, NATIVE_SHAPE, NATIVE_AFFINE)
    turned_back = to_native(
        first, TEMPLATE_AFFINE, normalisation, turned.shape, turned_affine, order='linear'
    )
    expected = back
    for axis in range(3):
        if turn[axis, 1] < 0:
            expected = np.flip(expected, axis)
    expected = np.transpose(expected, np.argsort(turn[:, 0]))
    np.testing.assert_allclose(turned_back, expected, atol=1e-4)


def test_left_stays_left(normalisation):
    """A body in the left hemisphere of the scan is at negative x of the template."""
    points = world(NATIVE_SHAPE, NATIVE_AFFINE)
    centre = map_points(normalisation, [[-25.0, 5, 0]], 'forward')[0]
    body = (np.linalg.norm(points - centre, axis=1) < 12).reshape(NATIVE_SHAPE)
    labels = to_template(
        body.astype(np.uint16) * 40_000,
        NATIVE_AFFINE,
        normalisation,
        TEMPLATE_SHAPE,
        TEMPLATE_AFFINE,
        order='nearest',
    )
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) == {0, 40_000}
    found = world(TEMPLATE_SHAPE, TEMPLATE_AFFINE)[labels.ravel() > 0].mean(axis=0)
    np.testing.assert_allclose(found, [-25, 5, 0], atol=1.5)


def test_channels_are_carried_one_by_one(normalisation):
    data = np.stack([picture(world(NATIVE_SHAPE, NATIVE_AFFINE)).reshape(NATIVE_SHAPE)] * 2)
    data[1] *= -2
    both = to_template(data, NATIVE_AFFINE, normalisation, TEMPLATE_SHAPE, TEMPLATE_AFFINE)
    one = to_template(data[0], NATIVE_AFFINE, normalisation, TEMPLATE_SHAPE, TEMPLATE_AFFINE)
    np.testing.assert_array_equal(both[0], one)
    np.testing.assert_allclose(both[1], -2 * one, atol=1e-5)


def test_fine_structure_does_not_alias():
    """A chequerboard of the scan is grey on voxels three times as large, not black or white."""
    still = np.zeros((3, 10, 10, 10), np.float32)
    grid = np.diag([6.0, 6, 6, 1])
    identity = Normalisation('test', np.eye(4), grid, still, still, 'network')
    board = (np.indices((48, 48, 48)).sum(axis=0) % 2).astype(np.float32)
    found = to_template(board, np.eye(4), identity, (14, 14, 14), np.diag([3.0, 3, 3, 1]))
    np.testing.assert_allclose(found[2:-2, 2:-2, 2:-2], 0.5, atol=0.02)


def test_half_a_voxel_beyond_the_last_centre_is_inside():
    still = np.zeros((3, 4, 4, 4), np.float32)
    identity = Normalisation('test', np.eye(4), np.eye(4), still, still, 'network')
    data = np.full((4, 4, 4), 5.0)
    target = np.eye(4)
    target[0, 3] = 0.4
    found = to_template(data, np.eye(4), identity, (5, 4, 4), target, outside=1)
    np.testing.assert_allclose(found[:4], 5)
    np.testing.assert_allclose(found[4], 1)
    with pytest.raises(ValueError, match='order'):
        to_template(data, np.eye(4), identity, (5, 4, 4), target, order='cubic')
    with pytest.raises(ValueError, match='dimensions'):
        to_template(data[0], np.eye(4), identity, (5, 4, 4), target)
