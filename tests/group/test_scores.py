# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from bids_app.group.scores import (
    Units,
    by_subject,
    class_scores,
    intervals,
    number_scores,
    p_value,
    permutation_p,
    reliability,
)


def random_case(classes, number=60, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(classes, size=number)
    values[:classes] = range(classes)
    predictions = rng.dirichlet(np.ones(classes), number)
    predictions[np.arange(number), values] += 0.3
    return values, predictions / predictions.sum(1, keepdims=True)


@pytest.mark.parametrize('classes', [2, 4])
def test_scores_equal_scikit_learn(classes):
    values, predictions = random_case(classes)
    found = class_scores(values, predictions)
    guesses = predictions.argmax(1)
    assert found['balanced_accuracy'] == pytest.approx(
        metrics.balanced_accuracy_score(values, guesses)
    )
    reference = predictions[:, 1] if classes == 2 else predictions
    assert found['auc'] == pytest.approx(
        metrics.roc_auc_score(values, reference, multi_class='ovr')
    )
    if classes == 2:
        weight = 1 / np.bincount(values)[values]
        assert found['brier'] == pytest.approx(
            metrics.brier_score_loss(values, predictions[:, 1], sample_weight=weight)
        )


def test_number_scores_equal_scikit_learn():
    rng = np.random.default_rng(0)
    values = rng.normal(50, 10, 40)
    predictions = values + rng.normal(2, 5, 40)
    found = number_scores(values, predictions)
    assert found['mae'] == pytest.approx(metrics.mean_absolute_error(values, predictions))
    assert found['r2'] == pytest.approx(metrics.r2_score(values, predictions))
    assert found['r'] == pytest.approx(np.corrcoef(values, predictions)[0, 1])


def test_probabilities_that_hold_have_no_calibration_error():
    rng = np.random.default_rng(0)
    values = np.arange(40000) % 2
    # Two normal distributions, a distance of 1 apart: the log odds are x - 0.5.
    x = rng.standard_normal(40000) + values
    right = 1 / (1 + np.exp(-(x - 0.5)))
    sure = 1 / (1 + np.exp(-5 * (x - 0.5)))
    assert class_scores(values, np.stack([1 - right, right], 1))['calibration_error'] < 0.01
    assert class_scores(values, np.stack([1 - sure, sure], 1))['calibration_error'] > 0.1
    rows = reliability(values, np.stack([1 - right, right], 1))
    assert [row['number'] for row in rows] == [8000] * 5
    assert sum(row['share'] for row in rows) == pytest.approx(1)


def test_sessions_are_averaged_by_subject_and_class():
    subjects = np.array(['b', 'a', 'a', 'a'])
    predictions = np.array([[0.2, 0.8], [1, 0], [0.5, 0.5], [0.1, 0.9]])
    units = by_subject(subjects, np.array([1, 0, 0, 1]), predictions, 2)
    assert units.subjects.tolist() == ['a', 'a', 'b']
    assert units.values.tolist() == [0, 1, 1]
    np.testing.assert_allclose(units.predictions, [[0.75, 0.25], [0.1, 0.9], [0.2, 0.8]])
    ages = by_subject(subjects, np.array([30.0, 50, 51, 52]), predictions[:, :1], 0)
    np.testing.assert_allclose(ages.values, [51, 30])


def test_interval_of_an_accuracy_is_about_the_binomial_one():
    values = np.arange(400) % 2
    right = np.random.default_rng(0).random(400) < 0.8
    guesses = np.where(right, values, 1 - values)
    units = Units(np.array([f's{i}' for i in range(400)]), values, np.eye(2)[guesses], 2)
    low, high = intervals(units)['balanced_accuracy']
    width = 2 * 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert high - low == pytest.approx(width, rel=0.15)
    assert low < right.mean() < high


def test_a_perfect_score_of_few_subjects_is_not_certain():
    values = np.arange(20) % 2
    units = Units(np.arange(20).astype(str), values, np.eye(2)[values], 2)
    low, high = intervals(units, draws=50)['balanced_accuracy']
    one_class = wilson(10, 10)
    assert high == 1
    assert low == pytest.approx(1 - np.sqrt(2) * (1 - one_class) / 2)


def wilson(count, number):
    """Lower end of Wilson's 95 % interval, as scipy computes it."""
    return binomtest(count, number).proportion_ci(method='wilson').low


def test_interval_is_wider_when_sessions_belong_to_few_subjects():
    values = np.arange(60) % 2
    subjects = np.array([f's{i}' for i in range(60)])
    predictions = np.eye(2)[np.where(np.arange(60) < 48, values, 1 - values)]
    few = Units(np.array([f's{i // 6}' for i in range(60)]), values, predictions, 2)
    many = Units(subjects, values, predictions, 2)
    narrow, wide = (np.diff(intervals(u)['balanced_accuracy'])[0] for u in (many, few))
    assert wide > narrow


def test_permutation_p_is_uniform_without_and_small_with_knowledge():
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = np.arange(40) % 2
        probability = rng.random(40)
        units = Units(
            np.arange(40).astype(str), values, np.stack([1 - probability, probability], 1), 2
        )
        found.append(permutation_p(units, 200, seed))
    assert 0.35 < np.mean(found) < 0.7
    assert np.mean(np.array(found) < 0.05) < 0.11
    units = Units(units.subjects, values, np.eye(2)[values], 2)
    assert permutation_p(units, 200, 0) == pytest.approx(1 / 201)
    numbers = Units(units.subjects, np.arange(40.0), np.arange(40.0)[:, None] + 1, 0)
    assert permutation_p(numbers, 200, 0) == pytest.approx(1 / 201)


def test_ties_count_as_good():
    assert p_value(0.5, np.array([0.5, 0.4, 0.6])) == 0.75
