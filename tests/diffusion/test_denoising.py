# SPDX-License-Identifier: Apache-2.0
"""Tests of the removal of noise on data whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.diffusion.denoising import mppca


@pytest.fixture
def clean() -> np.ndarray:
    """Volumes that are mixtures of three smooth images."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices((14, 13, 12)) / 12
    bases = np.stack([np.ones_like(x), np.sin(2 * x + y), np.cos(3 * z - y)])
    return np.einsum('cxyz,cn->xyzn', bases, rng.uniform(20, 60, (3, 24)))


def test_noise_is_measured_and_removed(clean: np.ndarray) -> None:
    noisy = clean + np.random.default_rng(1).normal(0, 5, clean.shape)
    found, sigma, kept = mppca(noisy)
    assert found.shape == clean.shape
    assert np.median(sigma) == pytest.approx(5, rel=0.05)
    assert 1 <= np.median(kept) <= 3  # two of the three look alike in a patch
    before, after = (np.sqrt(((data - clean) ** 2).mean()) for data in (noisy, found))
    assert after < 0.45 * before


def test_data_without_noise_stay(clean: np.ndarray) -> None:
    found, sigma, _ = mppca(clean)
    assert np.abs(found - clean).max() < 1e-3 * clean.max()
    assert sigma.max() < 1e-2 * clean.max()


def test_small_images_and_empty_voxels(clean: np.ndarray) -> None:
    small = clean[:3, :2, :4].copy()
    small[0] = 0
    found, _, _ = mppca(small)
    assert np.isfinite(found).all()
    assert np.abs(found[0]).max() < 1e-2 * clean.max()
