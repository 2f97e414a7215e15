# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bids_app.group.quality import (
    FISHER,
    HIGHER,
    LOGARITHM,
    LOWER,
    MIDDLE,
    Finding,
    badness,
    bounds,
    check_findings,
    compare,
    rate,
    robust_z,
    severity,
)


def test_robust_z_of_many_values_is_distance_over_scaled_mad():
    values = np.random.default_rng(0).standard_normal(5001) * 3 + 10
    expected = (values - np.median(values)) / stats.median_abs_deviation(values, scale='normal')
    np.testing.assert_allclose(robust_z(values), expected, atol=0.01)


def test_an_outlier_does_not_hide_itself():
    values = np.r_[np.linspace(-1, 1, 50), 100.0]
    assert robust_z(values)[-1] > 10
    assert abs(stats.zscore(values)[-1]) < 8


@pytest.mark.parametrize('count', [8, 10, 20, 50])
def test_rate_of_false_alarms_is_small_for_few_sessions(count):
    random = np.random.default_rng(1)
    z = np.concatenate([robust_z(random.standard_normal(count)) for _ in range(30_000 // count)])
    expected = 2 * stats.norm.sf(3.0)
    assert np.mean(np.abs(z) > 3.0) < 1.5 * expected
    assert np.mean(np.abs(z) > 1.5) > 0.2 * 2 * stats.norm.sf(1.5)


def test_equal_and_few_values():
    assert robust_z([3.0] * 9).tolist() == [0.0] * 9
    assert np.isnan(robust_z([1.0, 2.0, 3.0, np.nan])).all()
    mostly_equal = robust_z([0.0] * 20 + [1.0])
    assert mostly_equal[0] < 0.2
    assert mostly_equal[-1] > 3
    with_gap = robust_z([1, 2, 3, 4, 5, np.nan])
    assert np.isnan(with_gap[-1])
    assert np.isfinite(with_gap[:-1]).all()


def test_only_the_bad_side_counts():
    z = np.array([-4.0, 0.0, 4.0])
    assert badness(z, HIGHER).tolist() == [4, 0, 0]
    assert badness(z, LOWER).tolist() == [0, 0, 4]
    assert badness(z, MIDDLE).tolist() == [4, 0, 4]


def test_score_multiplies_the_worst_of_every_group():
    assert rate([]).score == 100
    half = Finding('image', 0.5, 'b')
    result = rate([Finding('image', 0.2, 'a'), half, Finding('volumes', 0.2, 'c')])
    assert result.score == pytest.approx(100 * 0.5 * 0.8)
    assert result.rating == 'doubtful'
    assert result.reasons == ['b', 'a', 'c']
    assert rate([Finding('image', 0.2, 'a')]).rating == 'ok'
    assert rate([Finding('image', 0.21, 'a')]).rating == 'look'
    assert rate([half]).rating == 'look'


def test_thresholds_of_z_and_score_agree():
    assert 100 * (1 - severity(3.5)) == pytest.approx(80)
    assert 100 * (1 - severity(5)) == pytest.approx(50)


@pytest.mark.parametrize(('scale', 'middle'), [(None, 5.0), (LOGARITHM, 5.0), (FISHER, 0.8)])
def test_bounds_have_the_z_that_asks_for_a_look(scale, middle):
    values = middle * np.exp(np.random.default_rng(2).normal(0, 0.02, 30))
    low, high = bounds(values, MIDDLE, scale)
    for end, sign in ((low, -1), (high, 1)):
        # one more value at the bound changes median and spread only a little
        with_end = np.r_[values, values, end]
        z = robust_z(with_end if scale is None else scale.forward(with_end))[-1]
        assert sign * z == pytest.approx(3.5, abs=0.3)
    assert bounds(values, HIGHER, scale) == (low, None)
    assert bounds(values, LOWER, scale) == (None, high)
    assert bounds(values[:3], MIDDLE) == (None, None)


def test_reasons_name_measure_side_and_median():
    values = np.r_[np.linspace(7, 9, 40), 1.0]
    z, findings = compare('SNR', values, 'image', HIGHER)
    assert z[-1] < -3.5
    assert findings[:-1] == [None] * 40
    assert findings[-1].reason.startswith('SNR 1 is below the others (median 7.974, robust z -')
    _, none = compare('SNR', -values, 'image', HIGHER)
    assert none == [None] * 41


def test_verdict_of_the_participant_level_costs():
    assert check_findings('ok', []) == []
    assert check_findings('n/a', []) == []
    worst, other = check_findings('fail', ['a', 'b'])
    assert (worst.severity, other.severity) == (0.6, 0.25)
    assert check_findings('warn', [])[0].reason == 'quality check: warn'
    assert rate(check_findings('warn', ['a'])).rating == 'look'
    assert rate(check_findings('fail', ['a'])).rating == 'doubtful'
