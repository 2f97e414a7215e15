# SPDX-License-Identifier: Apache-2.0
"""Resampling keeps position, constants and ramps; axis changes are exact."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from bids_app.images.grids import (
    canonical,
    canonical_affine,
    conform_grid,
    from_canonical,
    separable_axes,
    slab,
    voxel_sizes,
)
from bids_app.images.resample import (
    axis_weights,
    resample_rigid,
    resample_separable,
    resample_to,
)

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation matrix, shape (3, 3), about x, y and z in turn."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def grid(order, signs, zooms, origin, degrees=(0, 0, 0)) -> np.ndarray:
    """Affine whose array axis a runs along world axis order[a] in direction signs[a]."""
    axes = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        axes[world, axis] = sign * zooms[world]
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ axes
    affine[:3, 3] = origin
    return affine


def world_coordinates(shape, affine) -> np.ndarray:
    """World position of every voxel centre, shape (3, x, y, z), mm."""
    indices = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ indices + affine[:3, 3:]).reshape(3, *shape)


def centre_of_mass(data, affine) -> np.ndarray:
    points = world_coordinates(data.shape, affine)
    return (points * data).sum(axis=(1, 2, 3)) / data.sum()


def blob(shape, affine, centre, radius=5.0) -> np.ndarray:
    points = world_coordinates(shape, affine) - np.reshape(centre, (3, 1, 1, 1))
    return np.exp(-0.5 * (points**2).sum(axis=0) / radius**2).astype(np.float32)


@pytest.mark.parametrize(('order', 'signs'), ORIENTATIONS)
def test_every_orientation_there_and_back(order, signs):
    """All 48 axis orders and directions: no position lost, left stays left, exact if 1 mm."""
    world_shape = np.array((36, 42, 40))
    shape = tuple(world_shape[list(order)])
    offset = np.array((6.0, -4.0, 3.0))
    for zooms, degrees, exact in (
        ((1.0, 1.0, 1.0), (0, 0, 0), True),
        ((1.0, 1.3, 0.9), (7, -4, 11), False),
    ):
        affine = grid(order, signs, zooms, (0, 0, 0), degrees)
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + (1.5, -2.5, 3.25)
        data = blob(
            shape, affine, affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3] + offset
        )
        new_shape, new_affine = conform_grid(shape, affine)
        conformed = resample_separable(data, affine, new_shape, new_affine)
        assert np.all(np.diag(new_affine)[:3] > 0.9 * voxel_sizes(new_affine))
        np.testing.assert_allclose(
            centre_of_mass(conformed, new_affine), centre_of_mass(data, affine), atol=0.01
        )
        back = resample_separable(conformed, new_affine, shape, affine)
        np.testing.assert_allclose(
            centre_of_mass(back, affine), centre_of_mass(data, affine), atol=0.01
        )
        if exact:
            ras, ras_affine, transform = canonical(data, affine)
            np.testing.assert_array_equal(conformed, ras)
            np.testing.assert_array_equal(new_affine, ras_affine)
            np.testing.assert_array_equal(from_canonical(ras, transform), data)
            np.testing.assert_array_equal(back, data)


def test_canonical_agrees_with_nibabel():
    nib = pytest.importorskip('nibabel')
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    for order, signs in ORIENTATIONS:
        affine = grid(order, signs, (1, 2, 3), (4, 5, 6), (10, 20, -15))
        image = nib.as_closest_canonical(nib.Nifti1Image(data[1], affine))
        ras, ras_affine, transform = canonical(data, affine)
        np.testing.assert_array_equal(ras[1], image.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(ras_affine, image.affine, atol=1e-12)
        np.testing.assert_array_equal(from_canonical(ras, transform), data)
        assert canonical_affine(data.shape[1:], affine)[0] == image.shape


@pytest.mark.parametrize('zooms', [(1, 0.5, 0.5), (0.719, 0.719, 3), (2, 2, 2), (0.868, 1, 5)])
@pytest.mark.parametrize('voxel_size', [1.0, 3.0])
def test_conform_grid_covers_the_field_of_view(zooms, voxel_size):
    shape = (31, 40, 17)
    affine = grid((2, 0, 1), (-1, 1, -1), zooms, (10, -20, 30), (5, 6, 7))
    new_shape, new_affine = conform_grid(shape, affine, voxel_size)
    old_centre = affine @ [*((np.array(shape) - 1) / 2), 1]
    new_centre = new_affine @ [*((np.array(new_shape) - 1) / 2), 1]
    np.testing.assert_allclose(new_centre, old_centre, atol=1e-9)
    old_span = np.array(canonical_affine(shape, affine)[0]) * np.array(zooms)
    new_span = np.array(new_shape) * voxel_sizes(new_affine)
    assert np.all(new_span >= old_span - 1e-3)
    assert np.all(new_span < old_span + voxel_size)
    np.testing.assert_allclose(voxel_sizes(new_affine), voxel_size, rtol=0.0101)


def test_conform_grid_leaves_nominal_voxels_alone():
    shape, affine = conform_grid((10, 11, 12), np.diag([-0.9996, 1.0004, 1.0, 1]))
    assert shape == (10, 11, 12)
    np.testing.assert_allclose(voxel_sizes(affine), (0.9996, 1.0004, 1.0))


@pytest.mark.parametrize('scale', [0.2, 0.5, 0.87, 1.0, 1.3, 2.0, 3.0, 5.7])
@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('order', [1, 3])
def test_axis_weights_keep_constants_and_ramps(scale, sign, order):
    count = 60
    new_count = int(count / scale)
    offset = (count - 1) / 2 - sign * scale * (new_count - 1) / 2 + 0.17
    weights = axis_weights(count, new_count, sign * scale, offset, 'edge', order=order)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    position = sign * scale * np.arange(new_count) + offset
    # Near the border the kernel meets repeated (or mirrored) voxels.
    inside = (position > 2 * scale + 2) & (position < count - 3 - 2 * scale)
    assert inside.sum() >= 3
    np.testing.assert_allclose((weights @ np.arange(count))[inside], position[inside], atol=1e-9)


def test_halving_is_the_mean_of_two_and_aliasing_is_damped():
    np.testing.assert_allclose(
        axis_weights(6, 3, 2, 0.5), np.kron(np.eye(3), [[0.5, 0.5]]), atol=1e-12
    )
    # The fastest oscillation must vanish, slow ones must stay.
    comb = np.where(np.arange(90) % 2, 1.0, -1.0)
    slow = np.sin(np.arange(90) / 20)
    weights = axis_weights(90, 30, 3, 1)
    assert np.abs(weights @ comb)[2:-2].max() < 0.2
    np.testing.assert_allclose((weights @ slow)[2:-2], slow[1::3][2:-2], atol=0.01)
    assert np.abs(axis_weights(90, 30, 3, 1, antialias=False) @ comb)[2:-2].min() > 0.99


def test_outside():
    data = np.ones((4, 4, 4), np.float32)
    target = np.eye(4)
    target[:3, 3] = -2
    zero = resample_separable(data, np.eye(4), (8, 8, 8), target)
    assert zero.sum() == 64
    assert zero[2:6, 2:6, 2:6].all()
    edge = resample_separable(data, np.eye(4), (8, 8, 8), target, outside='edge')
    assert edge.min() == 1
    # Between the last voxel centre and the edge of the field of view the image goes on.
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = -0.25
    assert resample_separable(data, np.eye(4), (8, 8, 8), fine).min() == 1
    with pytest.raises(ValueError, match='outside'):
        resample_separable(data, np.eye(4), (8, 8, 8), target, outside='wrap')


def test_slabs_and_channels_equal_the_whole():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(3, 20, 25, 15)).astype(np.float32)
    affine = grid((1, 2, 0), (-1, 1, 1), (1.2, 0.8, 2.0), (3, 4, 5), (3, 0, 2))
    shape, target = conform_grid(data.shape[1:], affine, 0.7)
    whole = resample_separable(data, affine, shape, target)
    assert whole.shape == (3, *shape)
    for axis in range(3):
        for start in range(0, shape[axis], 9):
            part = resample_separable(data, affine, *slab(shape, target, start, start + 9, axis))
            expected = np.take(whole, range(start, min(start + 9, shape[axis])), axis=axis + 1)
            np.testing.assert_allclose(part, expected, atol=1e-5)
    np.testing.assert_allclose(
        whole[1], resample_separable(data[1], affine, shape, target), atol=1e-6
    )


def test_labels_keep_their_values_and_places():
    labels = np.zeros((12, 12, 12), np.int16)
    labels[2:5, 3:9, 4:10] = 53
    labels[6:10, 3:9, 4:10] = 17
    fine_shape, fine = conform_grid(labels.shape, np.eye(4), 0.5)
    up = resample_to(labels, np.eye(4), fine_shape, fine, order=0)
    assert up.dtype == np.int16
    assert (up == 17).sum() == 8 * (labels == 17).sum()
    np.testing.assert_array_equal(resample_to(up, fine, labels.shape, np.eye(4), order=0), labels)


def test_general_resampling_agrees_with_the_separable_one():
    affine = grid((0, 1, 2), (1, 1, 1), (1, 1, 1), (-20, -20, -20))
    data = blob((40, 40, 40), affine, (2, 3, -1))
    target = grid((0, 1, 2), (1, -1, 1), (1, 1, 1), (-15, 17, -12), (20, -10, 5))
    assert separable_axes(affine, (30, 30, 30), target) is None
    with pytest.raises(ValueError, match='parallel'):
        resample_separable(data, affine, (30, 30, 30), target)
    turned = resample_to(data, affine, (36, 36, 36), target)
    expected = blob((36, 36, 36), target, (2, 3, -1))
    inside = resample_to(np.ones_like(data), affine, (36, 36, 36), target) > 0
    np.testing.assert_allclose(turned[inside], expected[inside], atol=0.02)
    assert not turned[~inside].any()


def test_result_is_never_a_view():
    data = np.ones((4, 5, 6), np.float32)
    result = resample_separable(data, np.eye(4), data.shape, np.eye(4))
    result[:] = 0
    assert data.all()


def test_cubic_upsampling_of_a_smooth_field():
    coarse = grid((0, 1, 2), (1, 1, 1), (4, 4, 4), (-38, -38, -38))
    points = world_coordinates((20, 20, 20), coarse)
    field = np.cos(points[0] / 15) + np.sin(points[1] / 12 + points[2] / 20)
    shape, fine = conform_grid((20, 20, 20), coarse, 1.0)
    up = resample_separable(field, coarse, shape, fine, order=3)
    points = world_coordinates(shape, fine)[:, 20:-20, 20:-20, 20:-20]
    expected = np.cos(points[0] / 15) + np.sin(points[1] / 12 + points[2] / 20)
    np.testing.assert_allclose(up[20:-20, 20:-20, 20:-20], expected, atol=2e-3)


class TestRigid:
    """An image of known values, through a known map."""

    shape, affine = (12, 14, 10), np.array([[2.0, 0, 0, -11], [0, 2, 0, -13], [0, 0, 3, -13.5],
                                            [0, 0, 0, 1]])  # fmt: skip
    matrix = np.array([[0.6, -0.8, 0, 1.5], [0.8, 0.6, 0, -2], [0, 0, 1, 0.5], [0, 0, 0, 1]])

    def ramp(self, order):
        """A grid in the middle of an image whose value is a linear function of its world."""
        slope = np.array([0.5, -1.25, 2.0])
        where = np.indices(self.shape).reshape(3, -1)
        image = slope @ (self.affine[:3, :3] @ where + self.affine[:3, 3:])
        grid = np.diag([1.0, 1.5, 1.0, 1.0])
        grid[:3, 3] = [-3, -4.5, -3]
        found = resample_rigid(
            image.reshape(self.shape), self.affine, self.matrix, (6, 7, 8), grid, order=order
        )
        points = grid[:3, :3] @ np.indices((6, 7, 8)).reshape(3, -1) + grid[:3, 3:]
        moved = self.matrix[:3, :3] @ points + self.matrix[:3, 3:]
        return found, (slope @ moved).reshape(6, 7, 8)

    def test_a_ramp_goes_where_the_map_says(self):
        (data, covered), expected = self.ramp(1)
        assert covered.all()
        np.testing.assert_allclose(data, expected, atol=1e-4)

    def test_cubic_splines_stay_in_the_range(self):
        image = np.zeros(self.shape, np.float32)
        image[4:8, 4:9, 3:7] = 100
        grid = np.diag([0.7, 0.7, 0.7, 1.0])
        grid[:3, 3] = -8
        data, _ = resample_rigid(image, self.affine, self.matrix, (24, 24, 24), grid)
        assert data.dtype == np.float32
        assert data.min() == 0
        assert data.max() == 100

    def test_labels_keep_their_type_and_values(self):
        labels = np.random.default_rng(0).integers(0, 5, self.shape).astype(np.uint8)
        data, covered = resample_rigid(
            labels, self.affine, self.matrix, self.shape, self.affine, order=0
        )
        assert data.dtype == np.uint8
        assert set(np.unique(data)) <= set(range(5))
        assert 0 < covered.sum() < covered.size

    def test_the_same_voxels(self):
        image = np.random.default_rng(1).normal(size=self.shape).astype(np.float32)
        # The map and the affine cancel: both images have the same voxels.
        data, covered = resample_rigid(
            image, self.matrix @ self.affine, self.matrix, self.shape, self.affine, order=3
        )
        assert covered.all()
        np.testing.assert_allclose(data, image, atol=1e-5)

    def test_what_is_not_covered_is_zero(self):
        image = np.full(self.shape, 7.0, np.float32)
        shift = np.eye(4)
        shift[0, 3] = 10.0  # five voxels
        data, covered = resample_rigid(image, self.affine, shift, self.shape, self.affine, 1)
        assert (data[covered] == 7).all()
        assert (data[~covered] == 0).all()
        assert covered[:, 0, 0].tolist() == [True] * 7 + [False] * 5
