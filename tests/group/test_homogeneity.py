# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter

from bids_app.group.homogeneity import (
    mahalanobis,
    measure_homogeneity,
    principal_scores,
    standardise,
    thinning,
    unusual_distance,
)

SHAPE = (12, 14, 10)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def write(folder, name, data, affine=AFFINE):
    path = folder / f'{name}.nii.gz'
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return path


@pytest.fixture
def maps(tmp_path):
    random = np.random.default_rng(0)
    base = gaussian_filter(random.random(SHAPE), 1) + 0.5
    return [
        write(tmp_path, f'm{n}', base * (1 + 0.05 * random.standard_normal(SHAPE)))
        for n in range(12)
    ]


def test_products_of_standardised_maps_are_correlations(maps):
    data = np.stack([nib.load(path).get_fdata().ravel() for path in maps]).astype(np.float32)
    standard = data.copy()
    standardise(standard)
    np.testing.assert_allclose(standard @ standard.T, np.corrcoef(data), atol=1e-5)


@pytest.mark.parametrize(('maps', 'voxels'), [(30, 200), (200, 30), (80, 90)])
def test_lanczos_finds_the_components_of_the_full_decomposition(maps, voxels):
    random = np.random.default_rng(1)
    patterns = random.standard_normal((6, voxels)) * np.array([9, 7, 5, 3, 2, 1])[:, None]
    data = random.standard_normal((maps, 6)) @ patterns + random.standard_normal((maps, voxels))
    data -= data.mean(0)
    expected = np.square(np.linalg.svd(data, full_matrices=False).U[:, :4]).sum(1)
    for dense in (0, 1000):
        found = np.square(principal_scores(data, 4, dense)).sum(1)
        np.testing.assert_allclose(found, expected, rtol=1e-7)
    single = np.square(principal_scores(data.astype(np.float32), 4, 0)).sum(1)
    np.testing.assert_allclose(single, expected, rtol=1e-3)


def test_mean_map_deviation_and_mean_correlation(maps):
    found = measure_homogeneity(maps, fwhm=0, threads=2)
    data = np.stack([nib.load(path).get_fdata() for path in maps])
    np.testing.assert_allclose(found.mean, data.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.deviation, data.std(0, ddof=1), rtol=1e-3)
    matrix = np.corrcoef(data.reshape(12, -1))
    expected = (matrix.sum(1) - 1) / 11
    np.testing.assert_allclose(found.mean_correlation, expected, atol=1e-4)
    assert found.used.all()
    assert found.components == 2
    assert found.notes == ()


def test_distance_is_that_of_the_projection(maps):
    data = np.stack([nib.load(path).get_fdata().ravel() for path in maps])
    standard = stats.zscore(data, axis=1) / np.sqrt(data.shape[1])
    distance, probability, components = mahalanobis(standard.copy())
    centred = standard - standard.mean(0)
    scores = np.linalg.svd(centred, full_matrices=False)
    projected = (scores.U * scores.S)[:, :components]
    precision = np.linalg.inv(np.cov(projected, rowvar=False))
    expected = np.einsum('ij,jk,ik->i', projected, precision, projected)
    np.testing.assert_allclose(distance, expected, rtol=1e-6)
    assert ((probability >= 0) & (probability <= 1)).all()
    rare = unusual_distance(2.0, 12, components)
    assert stats.beta.sf(12 * rare / 121, components / 2, (11 - components) / 2) == pytest.approx(
        stats.norm.sf(2.0)
    )


def test_probabilities_are_right_for_normally_distributed_maps():
    random = np.random.default_rng(3)
    base, patterns = 10 * random.standard_normal(400), random.standard_normal((8, 400))
    below = []
    for _ in range(150):
        data = base + random.standard_normal((40, 8)) @ patterns
        standard = stats.zscore(data, axis=1) / np.sqrt(400)
        below.append(np.mean(mahalanobis(standard)[1] < 0.05))
    assert np.mean(below) == pytest.approx(0.05, abs=0.01)


def test_shifted_map_stands_apart(maps, tmp_path):
    shifted = np.roll(nib.load(maps[0]).get_fdata(), 3, axis=1)
    found = measure_homogeneity([*maps, write(tmp_path, 'shifted', shifted)])
    assert found.mean_correlation.argmin() == 12
    assert found.mean_correlation[12] < found.mean_correlation[:12].min() - 0.1
    assert found.probability[12] < 0.01


def test_bad_maps_are_left_out_and_named(maps, tmp_path):
    broken = tmp_path / 'broken.nii.gz'
    broken.write_bytes(b'nothing')
    moved = AFFINE.copy()
    moved[0, 3] = 5
    hole = nib.load(maps[0]).get_fdata()
    hole[0, 0, 0] = np.nan
    paths = [maps[0], None, broken, write(tmp_path, 'grid', np.ones(SHAPE), moved),
             write(tmp_path, 'hole', hole), maps[1]]  # fmt: skip
    found = measure_homogeneity(paths)
    assert found.used.tolist() == [True, False, False, False, False, True]
    assert sorted(found.problems) == [2, 3, 4]
    assert 'grid' in found.problems[3]
    assert 'not finite' in found.problems[4]


@pytest.mark.parametrize('count', [1, 2, 3])
def test_few_maps_say_what_cannot_be_computed(maps, count):
    found = measure_homogeneity(maps[:count])
    assert np.isfinite(found.mean_correlation).all() == (count == 3)
    assert np.isnan(found.distance).all()
    assert len(found.notes) == (1 if count == 3 else 2)


def test_no_map_is_none(tmp_path):
    assert measure_homogeneity([None, None]) is None


def test_equal_maps_have_no_distance(tmp_path):
    paths = [write(tmp_path, f'e{n}', np.ones(SHAPE)) for n in range(10)]
    found = measure_homogeneity(paths)
    assert found.components == 0
    assert found.notes == ('All maps are equal, so they have no distances',)
    assert found.deviation.max() == 0


def test_thinning_follows_the_smoothing_and_the_limit():
    shape, affine = (112, 144, 112), np.diag([1.5, 1.5, 1.5, 1])
    assert thinning(shape, affine, 6, most=10**9) == (2, 2, 2)
    assert thinning(shape, affine, 0, most=10**9) == (1, 1, 1)
    steps = thinning(shape, affine, 6)
    kept = np.prod([-(-n // step) for n, step in zip(shape, steps, strict=True)])
    assert kept <= 60_000
    assert thinning((10, 10, 10), np.diag([1, 1, 4, 1]), 8, most=10**6) == (4, 4, 1)
