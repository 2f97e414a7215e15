# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bids_app.registration.normalisation import Normalisation, jacobian_determinant

GRID = np.diag([1.5, 1.5, 1.5, 1.0])


def make(shape=(12, 14, 10), **changes):
    rng = np.random.default_rng(0)
    values = {
        'space': 'T',
        'affine': np.diag([1.1, 0.9, 1.2, 1.0]),
        'grid_affine': GRID,
        'forward': rng.normal(size=(3, *shape)).astype(np.float32),
        'backward': rng.normal(size=(3, *shape)).astype(np.float32),
        'method': 'refined',
        'measures': {'dice_gm': 0.5},
    }
    return Normalisation(**{**values, **changes})


def test_saved_and_loaded_is_the_same(tmp_path):
    first = make()
    second = Normalisation.load(first.save(tmp_path / 'n.npz'))
    assert (second.space, second.method) == ('T', 'refined')
    assert second.measures == {'dice_gm': 0.5}
    for name in ('affine', 'grid_affine', 'forward', 'backward'):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert [p.name for p in tmp_path.iterdir()] == ['n.npz']


def test_volume_factor_of_the_affine_part():
    assert make().affine_factor == pytest.approx(1.1 * 0.9 * 1.2)


def test_jacobian_of_a_linear_map():
    matrix = np.array([[0.1, 0.02, 0.0], [0.0, -0.1, 0.05], [0.03, 0.0, 0.2]])
    points = 1.5 * np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing='ij'))
    field = np.tensordot(matrix, points, 1)
    found = make(forward=field, backward=field).jacobian()
    np.testing.assert_allclose(found, np.linalg.det(np.eye(3) + matrix), rtol=1e-5)


def test_jacobian_of_a_wave():
    x = 2.0 * np.arange(60)
    field = np.zeros((3, 60, 5, 5))
    field[0] = (1.5 * np.sin(x / 8))[:, None, None]
    found = jacobian_determinant(field, [2.0, 1.0, 1.0])
    expected = 1 + 1.5 / 8 * np.cos(x / 8)
    # Differences of fourth order flatten a wave by (kh)^4 / 30.
    np.testing.assert_allclose(found[2:-2, 2, 2], expected[2:-2], atol=1.5 / 8 * 0.25**4 / 30)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'affine': np.eye(3)}, '4x4'),
        ({'forward': np.zeros((2, 3, 3, 3))}, 'shape'),
        ({'backward': np.zeros((3, 3, 3, 3))}, 'differ'),
        ({'grid_affine': np.diag([-1.5, 1.5, 1.5, 1.0])}, 'RAS'),
    ],
)
def test_wrong_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
