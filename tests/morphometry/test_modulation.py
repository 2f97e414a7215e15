# SPDX-License-Identifier: Apache-2.0
"""Modulated maps hold the volume of the scan."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bids_app.images.grids import canonical, voxel_sizes
from bids_app.morphometry.modulation import full_jacobian, modulated
from bids_app.morphometry.volumes import voxel_volume
from bids_app.registration.normalisation import Normalisation

SHAPE = (64, 72, 60)
GRID = np.array([[1.5, 0, 0, -47.25], [0, 1.5, 0, -53.25], [0, 0, 1.5, -44.25], [0, 0, 0, 1]])
AFFINE = np.array(
    [[1.08, 0.05, -0.04, 2.0], [-0.06, 0.97, 0.08, -3.0], [0.05, -0.06, 1.12, 4.0], [0, 0, 0, 1]]
)
AMPLITUDE, WAVE = 3.0, 2 * math.pi / 40


def world(shape, affine):
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


@pytest.fixture(scope='module')
def sine():
    """Each axis is moved by a sine of the next: x' = x + a sin(k x) + a/2 sin(k y) and so on."""
    points = world(SHAPE, GRID)
    forward = AMPLITUDE * np.sin(WAVE * points)
    forward += AMPLITUDE / 2 * np.sin(WAVE * np.roll(points, -1, axis=0))
    forward = forward.astype(np.float32)
    return Normalisation('test', AFFINE, GRID, forward, np.zeros_like(forward), 'refined')


def analytic_jacobian(points):
    own = 1 + AMPLITUDE * WAVE * np.cos(WAVE * points)
    other = AMPLITUDE / 2 * WAVE * np.cos(WAVE * np.roll(points, -1, axis=0))
    # Rows: dx'/dx, dx'/dy; dy'/dy, dy'/dz; dz'/dz, dz'/dx.
    return own.prod(axis=0) + other.prod(axis=0)


@pytest.mark.parametrize('size', [1.5, 2.0, 1.0])
def test_jacobian_of_a_known_map(sine, size):
    shape = tuple(int(0.8 * n * 1.5 / size) for n in SHAPE)
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -0.4 * 1.5 * np.array(SHAPE)
    expected = analytic_jacobian(world(shape, affine)) * np.linalg.det(AFFINE)
    found = full_jacobian(sine, shape, affine)
    assert found.dtype == np.float32
    assert expected.min() < 0.5
    assert expected.max() > 2
    # Central differences see a slope (k h)^2 / 6 = 0.9 % too small, three of which multiply.
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.01)
    assert np.abs(found - expected).mean() < 0.01


def test_jacobian_beyond_the_registration_grid(sine):
    far = np.eye(4)
    far[:3, 3] = 500
    found = full_jacobian(sine, (4, 4, 4), far)
    np.testing.assert_allclose(found, np.linalg.det(AFFINE), rtol=1e-6)


def turn(degrees, axis):
    matrix = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = -s, s
    return matrix


SCANS = {
    '1 mm': np.diag([1.0, 1, 1, 1]),
    '0.8 mm flipped': np.diag([-0.8, -0.8, 0.8, 1]),
    '0.6 mm': np.diag([0.6, 0.6, 0.6, 1]),
    '2 mm': np.diag([2.0, 2, 2, 1]),
    'thick slices': np.diag([1.0, 1, 5, 1]),
    'oblique': turn(20, 0) @ turn(-15, 2) @ np.diag([1.0, 0.9, 1.2, 1]),
    'thick oblique': turn(25, 1) @ np.diag([0.9, 0.9, 4, 1]),
    'sagittal': np.array([[0, 0, -1.2, 0], [1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize('name', SCANS)
@pytest.mark.parametrize('size', [1.5, 2.0])
def test_volume_is_kept(sine, name, size):
    """An ellipsoid with a hollow, off the middle, cut by the sine: in the scan and modulated."""
    affine = SCANS[name].copy()
    sizes = voxel_sizes(affine)
    shape = tuple(np.ceil(70 / sizes).astype(int))
    affine[:3, 3] -= affine[:3, :3] @ ((np.array(shape) - 1) / 2) - [2, -3, 4]
    points = world(shape, affine) - np.reshape([4.0, -6, 3], (3, 1, 1, 1))
    distance = np.sqrt(((points / np.reshape([20.0, 25, 17], (3, 1, 1, 1))) ** 2).sum(axis=0))
    # A shell with a soft edge of about two millimetres, thin like cortex.
    shell = np.clip((1 - distance) * 10, 0, 1) * np.clip((distance - 0.75) * 10, 0, 1)
    probability = np.stack([shell, np.clip((0.75 - distance) * 10, 0, 1)]).astype(np.float32)
    target = np.diag([size, size, size, 1.0])
    count = tuple(int(n * 1.5 / size) for n in SHAPE)
    target[:3, 3] = GRID[:3, 3] - 0.75 + size / 2
    found = modulated(probability, affine, sine, count, target)
    volumes = found.sum(axis=(1, 2, 3), dtype=float) * voxel_volume(target)
    expected = probability.sum(axis=(1, 2, 3), dtype=float) * voxel_volume(affine)
    assert expected.min() > 5e3
    np.testing.assert_allclose(volumes, expected, rtol=0.01)


def test_flipped_scan_gives_the_same_map(sine):
    rng = np.random.default_rng(0)
    affine = np.array([[0, -1.2, 0, 30.0], [-1, 0, 0, 30], [0, 0, 1.1, -30], [0, 0, 0, 1]])
    probability = rng.random((50, 52, 54), dtype=np.float32)
    turned, turned_affine, _ = canonical(probability, affine)
    first = modulated(probability, affine, sine, SHAPE, GRID)
    second = modulated(turned, turned_affine, sine, SHAPE, GRID)
    np.testing.assert_allclose(first, second, atol=1e-5)
