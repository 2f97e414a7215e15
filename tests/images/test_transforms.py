# SPDX-License-Identifier: Apache-2.0
"""Our transforms say the same to ANTs, SimpleITK and nitransforms as to us."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_app.errors import ImageError
from bids_app.images.resample import resample_rigid
from bids_app.images.transforms import read_linear, write_composite, write_linear
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


OBLIQUE = np.array(
    [
        [-0.78, 0.21, 0.9, 31.0],
        [0.25, 0.83, -1.1, -40.0],
        [0.31, -0.17, 3.4, -22.0],
        [0, 0, 0, 1.0],
    ]
)


def rigid(seed=0, largest=20.0):
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(-15, 15, 3))).as_matrix()
    matrix[:3, 3] = rng.uniform(-largest, largest, 3)
    return matrix


def test_linear_there_and_back(tmp_path):
    matrix = rigid(1)
    path = write_linear(tmp_path / 'a.txt', matrix)
    np.testing.assert_allclose(read_linear(path), matrix, atol=1e-12)
    assert path.read_bytes() == write_linear(tmp_path / 'b.txt', matrix).read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.txt', 'b.txt']


def test_linear_of_ants_and_simpleitk(tmp_path, points):
    """Points of the fixed image go to the moving one; ITK's world is LPS."""
    import ants

    matrix = rigid(2)
    path = str(write_linear(tmp_path / 'a.txt', matrix))
    expected = points @ matrix[:3, :3].T + matrix[:3, 3]
    transform = ants.read_transform(path)
    found = [ants.apply_ants_transform_to_point(transform, tuple(p)) for p in lps(points)]
    np.testing.assert_allclose(lps(found), expected, atol=1e-3)  # ants computes in float32
    sitk = pytest.importorskip('SimpleITK')
    found = [sitk.ReadTransform(path).TransformPoint(p) for p in lps(points).tolist()]
    np.testing.assert_allclose(lps(found), expected, atol=1e-9)


def test_linear_of_nitransforms(tmp_path, points):
    linear = pytest.importorskip('nitransforms.linear')

    matrix = rigid(2)
    path = write_linear(tmp_path / 'a.txt', matrix)
    found = linear.load(str(path), fmt='itk').map(points)
    np.testing.assert_allclose(found, points @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-6)


def test_linear_about_a_centre_as_ants_writes_it(tmp_path):
    import ants

    matrix, centre = lps_matrix(rigid(3)), np.array([12.0, -30, 7])
    transform = ants.create_ants_transform(
        transform_type='AffineTransform',
        matrix=matrix[:3, :3],
        translation=matrix[:3, 3] + matrix[:3, :3] @ centre - centre,
        center=centre,
    )
    ants.write_transform(transform, str(tmp_path / 'a.txt'))
    np.testing.assert_allclose(read_linear(tmp_path / 'a.txt'), rigid(3), atol=1e-4)


def lps_matrix(matrix):
    flip = np.diag([-1.0, -1, 1, 1])
    return flip @ matrix @ flip


def test_images_through_a_linear_transform_of_ants(tmp_path):
    """Our resampling and that of ANTs through our file agree, between two oblique grids."""
    import ants

    moving = np.random.default_rng(4).uniform(1, 2, (40, 44, 14)).astype(np.float32)
    # Columns at right angles: ANTs knows no shear.
    axes = np.linalg.qr(OBLIQUE[:3, :3])[0] * np.array([1.1, 1.0, 3.5])
    moving_affine = OBLIQUE.copy()
    moving_affine[:3, :3] = axes
    middle = moving_affine[:3, :3] @ [20, 22, 7] + moving_affine[:3, 3]
    matrix = rigid(5, 5.0)
    back = np.linalg.inv(matrix) @ [*middle, 1]
    affine = np.diag([-1.3, 1.4, 1.6, 1.0])
    affine[:3, 3] = back[:3] - affine[:3, :3] @ [15, 16, 12]
    found, covered = resample_rigid(moving, moving_affine, matrix, (30, 32, 24), affine, order=1)
    path = write_linear(tmp_path / 'a.txt', matrix)
    expected = ants.apply_transforms(
        _ants(np.zeros((30, 32, 24), np.float32), affine),
        _ants(moving, moving_affine),
        [str(path)],
        interpolator='linear',
    ).numpy()
    assert (found[~covered] == 0).all()
    assert 0.2 < covered.mean() < 1
    assert ((expected > 0) == covered).mean() > 0.99
    inside = covered & (expected > 0)
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize(
    'content',
    [
        'not a transform\n',
        '#Insight Transform File V1.0\nTransform: Euler3DTransform_double_3_3\n'
        'Parameters: 0 0 0 0 0 0\nFixedParameters: 0 0 0\n',
        '#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n'
        'Parameters: 1 0 0\nFixedParameters: 0 0 0\n',
    ],
)
def test_what_is_no_linear_transform(tmp_path, content):
    (tmp_path / 'a.txt').write_text(content)
    with pytest.raises(ImageError, match=r'a\.txt'):
        read_linear(tmp_path / 'a.txt')


def test_a_matrix_that_maps_nothing_is_not_written(tmp_path):
    with pytest.raises(ValueError, match='invertible'):
        write_linear(tmp_path / 'a.txt', np.diag([1.0, 1, 0, 1]))
    assert not list(tmp_path.iterdir())
