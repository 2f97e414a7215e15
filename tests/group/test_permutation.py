# SPDX-License-Identifier: Apache-2.0
"""Permutations against a slow Freedman-Lane, and their rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.group.linear import fit, partition
from bids_app.group.permutation import corrected, null_distribution, permutations
from bids_app.group.tfce import Enhancer

WEIGHTS = {'t': np.array([[0, 1.0, 0, 0]]), 'F': np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0]])}


def _data(n: int = 24, voxels: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = (np.arange(n) % 2).astype(float)
    age = rng.uniform(20, 80, n) + 10 * group
    tiv = rng.normal(1.5e6, 1e5, n)
    matrix = np.stack([np.ones(n), group, age, tiv], axis=1)
    values = rng.normal(0.4, 0.05, (n, voxels)) + 3e-7 * (tiv[:, None] - 1.5e6)
    values += 0.004 * (age[:, None] - 50)
    return matrix, (values - values.mean(0)).astype(np.float32)


def _slow(matrix, values, weights, orders, two_sided) -> np.ndarray:
    """Permute the residuals of the reduced model, add its fit again, fit the full model."""
    y = values.astype(float)
    reduced = matrix @ np.linalg.svd(weights)[2][len(weights) :].T
    reduced /= np.linalg.norm(reduced, axis=0)
    model = reduced @ np.linalg.pinv(reduced) @ y
    largest = []
    for order in orders:
        permuted = (y - model)[order] + model
        permuted -= permuted.mean(0)
        statistic = fit(permuted, partition(matrix, weights)).statistic
        largest.append(np.abs(statistic).max() if two_sided else statistic.max())
    return np.array(largest)


@pytest.mark.parametrize(('test', 'two_sided'), [('t', True), ('t', False), ('F', False)])
def test_equal_to_the_slow_way(test, two_sided):
    """With nuisance columns that correlate with what is tested."""
    matrix, values = _data()
    orders = permutations(len(matrix), 12, 3)
    part = partition(matrix, WEIGHTS[test])
    found = null_distribution(values, part, orders, two_sided=two_sided)
    expected = _slow(matrix, values, WEIGHTS[test], orders, two_sided)
    assert np.allclose(found.voxel, expected, rtol=1e-4)
    assert found.tfce is None


def test_the_observed_order_gives_the_observed_statistic():
    """Single precision against double, with and without enhancement."""
    matrix, values = _data(voxels=8 * 9 * 10)
    part = partition(matrix, WEIGHTS['t'])
    enhancer = Enhancer(np.ones((8, 9, 10), bool))
    orders = np.arange(len(matrix))[None]
    found = null_distribution(values, part, orders, enhancer=enhancer)
    statistic = fit(values, part).statistic
    assert found.voxel[0] == pytest.approx(np.abs(statistic).max(), rel=1e-5)
    assert found.tfce[0] == pytest.approx(np.abs(enhancer(statistic)).max(), rel=1e-4)


def test_the_same_for_any_number_of_jobs():
    """And the same for the same seed, another for another."""
    matrix, values = _data(voxels=20 * 20 * 20)
    part = partition(matrix, WEIGHTS['t'])
    enhancer = Enhancer(np.ones((20, 20, 20), bool))
    runs = [
        null_distribution(
            values, part, permutations(24, 70, seed), enhancer=enhancer, n_jobs=n_jobs
        )
        for seed, n_jobs in ((5, 1), (5, 3), (6, 2))
    ]
    assert np.array_equal(runs[0].voxel, runs[1].voxel)
    assert np.array_equal(runs[0].tfce, runs[1].tfce)
    assert not np.array_equal(runs[0].voxel, runs[2].voxel)


def test_corrected_p_values_count_permutations():
    """Ties count as reached; the observed order is one of them."""
    null = np.array([1.0, 2.0, 3.0, 4.0])
    p = 10.0 ** -corrected(np.array([-5.0, 4.0, -2.5, 0.0]), null)
    assert np.allclose(p, [1 / 5, 2 / 5, 3 / 5, 1.0])
    p = 10.0 ** -corrected(np.array([-5.0, 4.0]), null, two_sided=False)
    assert np.allclose(p, [1.0, 2 / 5])


def test_family_wise_error_under_the_null():
    """60 designs unrelated to the data: false alarms within the binomial bounds of 5 %.

    The data depend on nuisance columns that correlate with what is tested.
    """
    from scipy.stats import binom

    alarms = {'voxel': 0, 'tfce': 0}
    runs = 60
    mask = np.ones((6, 6, 6), bool)
    enhancer = Enhancer(mask)
    for seed in range(runs):
        matrix, values = _data(voxels=216, seed=100 + seed)
        part = partition(matrix, WEIGHTS['t'])
        null = null_distribution(
            values, part, permutations(len(matrix), 99, seed), enhancer=enhancer
        )
        statistic = fit(values, part).statistic
        alarms['voxel'] += corrected(statistic, null.voxel).max() > -np.log10(0.0501)
        alarms['tfce'] += corrected(enhancer(statistic), null.tfce).max() > -np.log10(0.0501)
    for count in alarms.values():
        assert count <= binom.ppf(0.999, runs, 0.05)
