# SPDX-License-Identifier: Apache-2.0
"""Statistics at every voxel against least squares, scipy and nilearn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bids_app.errors import UsageError
from bids_app.group.linear import false_discovery, fit, partition


def _data(n: int = 40, voxels: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """A design with columns of very different sizes, and data that depend on it."""
    rng = np.random.default_rng(7)
    group = np.arange(n) % 2
    age = rng.uniform(20, 80, n)
    tiv = rng.normal(1.5e6, 1e5, n) + 5e4 * group
    matrix = np.stack([np.ones(n), group, age, tiv], axis=1)
    values = rng.normal(0.4, 0.05, (n, voxels)) + 2e-7 * (tiv[:, None] - 1.5e6)
    values[:, : voxels // 2] -= 0.002 * (age - 50)[:, None]
    values[:, :100] += 0.1 * group[:, None]
    return matrix, values


def _centred(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)).astype(np.float32)


def _least_squares(matrix: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F (or t squared) straight from the sums of squares of two models."""
    beta, full, *_ = np.linalg.lstsq(matrix / matrix.max(0), values, rcond=None)
    del beta
    null = np.linalg.svd(weights)[2][len(weights) :].T
    reduced = matrix @ null
    rest = values - reduced @ np.linalg.lstsq(reduced, values, rcond=None)[0]
    k, df = len(weights), len(matrix) - matrix.shape[1]
    return ((rest**2).sum(0) - full) / k / (full / df)


WEIGHTS = {
    'group': [[0, 1, 0, 0]],
    'age': [[0, 0, 1, 0]],
    'tiv': [[0, 0, 0, -1]],
    'mixed': [[0, 1, 0.5, 0]],
    'joint': [[0, 1, 0, 0], [0, 0, 1, 0]],
}


@pytest.mark.parametrize('name', WEIGHTS)
def test_equal_to_nested_models(name):
    """The statistic, its p value and the share of variance."""
    matrix, values = _data()
    weights = np.array(WEIGHTS[name], float)
    found = fit(_centred(values), partition(matrix, weights))
    expected = _least_squares(matrix, values, weights)
    df, k = len(matrix) - 4, len(weights)
    if k == 1:
        assert np.allclose(found.statistic**2, expected, rtol=1e-4, atol=1e-5)
        p = 2 * stats.t.sf(np.sqrt(expected), df)
        assert np.allclose(found.partial**2, expected / (expected + df), atol=1e-5)
    else:
        assert np.allclose(found.statistic, expected, rtol=1e-4, atol=1e-5)
        p = stats.f.sf(expected, k, df)
        assert np.allclose(found.partial, expected * k / (expected * k + df), atol=1e-5)
    assert np.allclose(10.0**-found.log_p, p, rtol=2e-3, atol=1e-5)


def test_effects_are_in_units_of_the_data():
    """The contrast of coefficients, and Cohen's d of two groups."""
    matrix, values = _data()
    beta = np.linalg.lstsq(matrix, values, rcond=None)[0]
    found = fit(_centred(values), partition(matrix, np.array([[0, 1, 0.5, 0]])))
    assert np.allclose(found.effect, beta[1] + 0.5 * beta[2], atol=1e-6)
    two = matrix[:, :2]
    found = fit(_centred(values), partition(two, np.array([[0, 1.0]])))
    a, b = values[matrix[:, 1] == 1], values[matrix[:, 1] == 0]
    pooled = np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / 2)
    assert np.allclose(found.d, (a.mean(0) - b.mean(0)) / pooled, atol=1e-4)
    assert np.allclose(found.statistic, stats.ttest_ind(a, b).statistic, rtol=1e-4, atol=1e-5)


def test_equal_to_nilearn():
    """nilearn's second level on the same maps: t and effect to 1e-4."""
    import nibabel as nib
    from nilearn.glm.second_level import SecondLevelModel

    matrix, values = _data(voxels=512)
    names = ['intercept', 'group', 'age', 'tiv']
    # nilearn wants columns of similar size
    scaled = matrix / [1, 1, 1, 1e6]
    images = [nib.Nifti1Image(row.reshape(8, 8, 8), np.eye(4)) for row in values]
    mask = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4))
    model = SecondLevelModel(mask_img=mask).fit(
        images, design_matrix=pd.DataFrame(scaled, columns=names)
    )
    contrast = np.array([0, 1, 0.5, 0])
    expected = model.compute_contrast(contrast, output_type='all')
    found = fit(_centred(values), partition(scaled, contrast[None]))
    t = expected['stat'].get_fdata().ravel()
    assert np.abs(found.statistic - t).max() < 1e-4 * np.abs(t).max()
    effect = expected['effect_size'].get_fdata().ravel()
    assert np.abs(found.effect - effect).max() < 1e-4 * np.abs(effect).max()


def test_strong_effects_have_finite_logarithms():
    """p values smaller than the smallest float, and exact fits."""
    matrix, values = _data(n=200, voxels=20)
    values[:, 0] = matrix[:, 1] + 1e-12 * values[:, 0]
    values[:, 1] = 0.25
    found = fit(_centred(values), partition(matrix, np.array([[0, 1.0, 0, 0]])))
    assert np.isfinite(found.log_p).all()
    assert np.isfinite(found.statistic).all()
    assert found.statistic[1] == 0


def test_one_sided_p_values():
    """Half of the two-sided one for the sign that is asked for."""
    matrix, values = _data()
    part = partition(matrix, np.array([[0, 1.0, 0, 0]]))
    two, one = (fit(_centred(values), part, two_sided=sides) for sides in (True, False))
    positive = two.statistic > 0
    assert np.allclose(10.0 ** -one.log_p[positive], 10.0 ** -two.log_p[positive] / 2)
    assert (10.0 ** -one.log_p[~positive] >= 0.5).all()


def test_the_mean_of_all_cannot_be_tested():
    """An intercept, or a model without one."""
    matrix, _ = _data()
    with pytest.raises(UsageError, match='mean of all sessions'):
        partition(matrix, np.array([[1.0, 0, 0, 0]]))
    with pytest.raises(UsageError, match='intercept'):
        partition(matrix[:, 1:3], np.array([[1.0, 0]]))
    # one column per group holds the constant as their sum
    groups = np.stack([matrix[:, 1], 1 - matrix[:, 1]], axis=1)
    assert partition(groups, np.array([[1.0, -1.0]])).nuisance.shape == (40, 0)


def test_false_discovery_rate_like_scipy():
    """Benjamini and Hochberg."""
    p = np.random.default_rng(0).uniform(size=2000) ** 3
    expected = stats.false_discovery_control(p, method='bh')
    assert np.allclose(10.0 ** -false_discovery(-np.log10(p)), expected)
