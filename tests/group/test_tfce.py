# SPDX-License-Identifier: Apache-2.0
"""Threshold-free cluster enhancement against sums over thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, generate_binary_structure, label

from bids_app.group.tfce import Enhancer


def _stepwise(volume: np.ndarray, mask: np.ndarray, steps: int = 3000) -> np.ndarray:
    """The definition: label the clusters above every threshold, both signs."""
    total = np.zeros(volume.shape)
    for sign in (1, -1):
        height = np.where(mask, volume * sign, 0.0)
        step = height.max() / steps
        for number in range(steps):
            threshold = (number + 0.5) * step
            clusters, _ = label(height > threshold)
            extent = np.bincount(clusters.ravel()).astype(float)
            extent[0] = 0
            total += sign * (extent**0.5 * threshold**2 * step)[clusters]
    return total


def _noise(seed: int, sigma: float, shape: tuple[int, ...] = (11, 12, 10)) -> np.ndarray:
    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return volume / volume.std()


@pytest.mark.parametrize(('sigma', 'levels'), [(0.0, 0), (0.8, 0), (1.5, 0), (1.0, 4)])
def test_equal_to_the_sum_over_thresholds(sigma, levels):
    """Rough and smooth maps, a mask with holes, and plateaus of equal values."""
    volume = _noise(2, sigma)
    if levels:
        volume = np.round(volume * levels) / levels
    mask = np.random.default_rng(3).random(volume.shape) < 0.85
    expected = _stepwise(volume, mask)[mask]
    found = Enhancer(mask)(volume[mask])
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_one_sided_leaves_out_what_is_negative():
    """The positive part does not change."""
    volume = _noise(4, 1.0)
    mask = np.ones(volume.shape, bool)
    both = Enhancer(mask)(volume[mask])
    one = Enhancer(mask)(volume[mask], two_sided=False)
    assert np.allclose(one, np.maximum(both, 0))


def test_a_box_has_the_value_of_the_integral():
    """27 voxels of height 3: sqrt(27) * 3^3 / 3."""
    volume = np.zeros((7, 7, 7))
    volume[2:5, 2:5, 2:5] = 3.0
    mask = np.ones(volume.shape, bool)
    found = np.zeros(volume.shape)
    found[mask] = Enhancer(mask)(volume[mask])
    assert np.allclose(found[2:5, 2:5, 2:5], np.sqrt(27) * 9)
    assert found.sum() == pytest.approx(27 * np.sqrt(27) * 9)


def test_like_nilearn_on_fine_steps():
    """nilearn leaves out the factor of the step and adds up at its upper ends."""
    from nilearn.mass_univariate._utils import calculate_tfce

    volume = _noise(5, 1.0)
    mask = np.ones(volume.shape, bool)
    step = np.abs(volume).max() / 500
    faces = generate_binary_structure(3, 1)
    steps = calculate_tfce(volume[..., None], faces, dh=step)[..., 0] * step
    found = Enhancer(mask)(volume[mask])
    assert np.abs(found - steps[mask]).max() < 0.01 * np.abs(found).max()


def test_nothing_and_one_voxel():
    """The smallest masks."""
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    assert Enhancer(mask)(np.array([2.0])) == pytest.approx([8 / 3])
    assert Enhancer(mask)(np.array([0.0])) == pytest.approx([0.0])
    assert Enhancer(mask)(np.array([-1.0]), two_sided=False) == pytest.approx([0.0])
