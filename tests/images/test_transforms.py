# SPDX-License-Identifier: Apache-2.0
"""Composite transforms say the same to ANTs, SimpleITK and nitransforms as the normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.images.transforms import write_composite
from bids_app.registration.warp import map_points, to_native, to_template

DIRECTIONS = ('forward', 'backward')
NATIVE_SHAPE = (64, 60, 56)
NATIVE_AFFINE = np.array([[-1.7, 0, 0, 55], [0, 1.8, 0, -60], [0, 0, 1.9, -45], [0, 0, 0, 1.0]])
TEMPLATE_SHAPE = (50, 60, 45)
TEMPLATE_AFFINE = np.array([[2.0, 0, 0, -49], [0, 2, 0, -58], [0, 0, 2, -40], [0, 0, 0, 1]])


@pytest.fixture(scope='module')
def files(normalisation, tmp_path_factory):
    """Write both directions."""
    folder = tmp_path_factory.mktemp('transforms')
    return {
        direction: write_composite(folder / f'{direction}.h5', normalisation, direction)
        for direction in DIRECTIONS
    }


@pytest.fixture(scope='module')
def points():
    """Return points inside the registration grid, in either world."""
    return np.random.default_rng(3).uniform([-45, -55, -40], [45, 55, 40], (100, 3))


def lps(points):
    return np.asarray(points) * [-1, -1, 1]


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_points_of_ants(normalisation, files, points, direction):
    import ants

    transform = ants.read_transform(str(files[direction]))
    found = [ants.apply_ants_transform_to_point(transform, tuple(p)) for p in lps(points)]
    expected = map_points(normalisation, points, direction)
    np.testing.assert_allclose(lps(found), expected, atol=1e-3)


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_points_of_simpleitk(normalisation, files, points, direction):
    sitk = pytest.importorskip('SimpleITK')
    transform = sitk.ReadTransform(str(files[direction]))
    found = [transform.TransformPoint(p) for p in lps(points).tolist()]
    expected = map_points(normalisation, points, direction)
    np.testing.assert_allclose(lps(found), expected, atol=1e-3)


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_points_of_nitransforms(normalisation, files, direction):
    """At the voxels of the grid: between them nitransforms interpolates with cubic splines."""
    manip = pytest.importorskip('nitransforms.manip')
    points = np.random.default_rng(5).integers(2, 33, (100, 3)) * 3.0
    points += normalisation.grid_affine[:3, 3]
    if direction == 'backward':
        points = points @ normalisation.affine[:3, :3].T + normalisation.affine[:3, 3]
    chain = manip.load(str(files[direction]), fmt='itk')
    expected = map_points(normalisation, points, direction)
    np.testing.assert_allclose(chain.map(points), expected, atol=1e-3)


def test_there_and_back(files, points):
    import ants

    forward = ants.read_transform(str(files['forward']))
    backward = ants.read_transform(str(files['backward']))
    for point in lps(points[:20]):
        there = ants.apply_ants_transform_to_point(forward, tuple(point))
        back = ants.apply_ants_transform_to_point(backward, tuple(there))
        np.testing.assert_allclose(back, point, atol=0.05)


@pytest.mark.parametrize(
    ('order', 'interpolator'), [('linear', 'linear'), ('nearest', 'nearestNeighbor')]
)
@pytest.mark.parametrize('direction', DIRECTIONS)
def test_images_of_ants(normalisation, files, direction, order, interpolator):
    """ANTs resamples images to what our own functions give, except at edges of rounding."""
    import ants

    rng = np.random.default_rng(4)
    native = rng.uniform(1, 2, NATIVE_SHAPE).astype(np.float32)
    template = rng.uniform(1, 2, TEMPLATE_SHAPE).astype(np.float32)
    if direction == 'forward':
        found = to_template(
            native, NATIVE_AFFINE, normalisation, TEMPLATE_SHAPE, TEMPLATE_AFFINE, order=order
        )
        moving, fixed = (native, NATIVE_AFFINE), (template, TEMPLATE_AFFINE)
    else:
        found = to_native(
            template, TEMPLATE_AFFINE, normalisation, NATIVE_SHAPE, NATIVE_AFFINE, order=order
        )
        moving, fixed = (template, TEMPLATE_AFFINE), (native, NATIVE_AFFINE)
    expected = ants.apply_transforms(
        _ants(*fixed), _ants(*moving), [str(files[direction])], interpolator=interpolator
    ).numpy()
    assert found.shape == expected.shape
    close = np.isclose(found, expected, atol=2e-3)
    assert close.mean() > 0.998
    inside = (found > 0) & (expected > 0)
    assert inside.mean() > 0.2
    if order == 'linear':
        np.testing.assert_allclose(found[inside], expected[inside], atol=5e-3)


def _ants(data, affine):
    import ants

    matrix = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
    return ants.from_numpy(
        data,
        origin=tuple(matrix[:3, 3]),
        spacing=tuple(spacing),
        direction=matrix[:3, :3] / spacing,
    )


def test_same_bytes_again_and_no_leftovers(normalisation, tmp_path):
    first = write_composite(tmp_path / 'a.h5', normalisation, 'forward').read_bytes()
    second = write_composite(tmp_path / 'b.h5', normalisation, 'forward').read_bytes()
    assert first == second
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.h5', 'b.h5']
    with pytest.raises(ValueError, match='direction'):
        write_composite(tmp_path / 'c.h5', normalisation, 'inverse')
