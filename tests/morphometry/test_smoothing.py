# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bids_app.morphometry.smoothing import smooth

AFFINE = np.diag([-1.5, 2.0, 1.0, 1.0])


def test_width_at_half_the_maximum():
    """A point becomes a bell that is half as high 6 mm from its middle on every axis."""
    point = np.zeros((41, 31, 61), dtype=np.float32)
    point[20, 15, 30] = 1
    bell = smooth(point, AFFINE, 12.0)
    middle = bell[20, 15, 30]
    for value in (bell[24, 15, 30], bell[20, 18, 30], bell[20, 15, 36], bell[16, 15, 30]):
        assert value == pytest.approx(middle / 2, rel=1e-3)
    assert bell.sum() == pytest.approx(1, rel=1e-3)


def test_like_scipy():
    data = np.random.default_rng(0).random((20, 24, 18))
    sigma = 8 / 2.354820045 / np.array([1.5, 2.0, 1.0])
    expected = gaussian_filter(data, sigma, mode='constant')
    np.testing.assert_allclose(smooth(data, AFFINE, 8), expected, atol=1e-5)
    assert smooth(data, AFFINE, 8).dtype == np.float32


def test_widths_add_up():
    """Smoothing a Gaussian of 5 mm by 12 mm gives one of 13 mm."""
    x = np.indices((45, 45, 45)) - 22
    exponent = -4 * np.log(2) * (x**2).sum(axis=0) * 4.0
    found = smooth(np.exp(exponent / 10**2), np.diag([2.0, 2, 2, 1]), 24)
    expected = np.exp(exponent / 26**2) * (10 / 26) ** 3
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())


def test_zero_lies_outside():
    assert smooth(np.ones((30, 30, 30)), AFFINE, 6)[0, 0, 0] < 0.3


def test_no_width_changes_nothing():
    data = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    found = smooth(data, AFFINE, 0)
    np.testing.assert_array_equal(found, data)
    assert not np.shares_memory(found, data)
    with pytest.raises(ValueError, match='negative'):
        smooth(data, AFFINE, -1)


def test_channels_do_not_mix():
    data = np.random.default_rng(0).random((2, 12, 12, 12))
    found = smooth(data, AFFINE, 5)
    np.testing.assert_array_equal(found[1], smooth(data[1], AFFINE, 5))
