# SPDX-License-Identifier: Apache-2.0
"""Tests of the eleven images that the T1w synthesis sees."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bids_app.diffusion.channels import (
    CHANNELS,
    DIRECTIONS,
    channels_of_series,
    deepanat_channels,
    tensor_volumes,
)
from bids_app.diffusion.tensor import design_matrix


def _directions(count: int) -> np.ndarray:
    vectors = np.random.default_rng(count).normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_six_directions() -> None:
    """Rows of the table in the fact sheet, and the condition number that goes with it."""
    assert_allclose(DIRECTIONS[0], [0.9095, 0.4158, 0], atol=5e-5)
    assert_allclose(DIRECTIONS[5], [-0.4158, 0, 0.9095], atol=5e-5)
    design = -design_matrix(np.full(6, 1000.0), DIRECTIONS)[:, :6]
    assert np.linalg.cond(design) == pytest.approx(1.3233, abs=1e-4)


def test_channels_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    grid = (5, 6, 7)
    mask = rng.uniform(size=grid) > 0.4
    b0, mean_dwi, s0 = rng.uniform(100, 900, (3, *grid)).astype(np.float32)
    tensor = np.zeros((6, *grid), np.float32)
    tensor[[0, 3, 5]] = rng.uniform(0.2, 2.5, (3, *grid))
    values = -np.sort(-tensor[[0, 3, 5]], axis=0) + np.float32(1.8)
    channels = deepanat_channels(b0, mean_dwi, values, tensor, s0, mask)
    assert channels.shape == (len(CHANNELS), *grid)
    assert channels.dtype == np.float32
    assert not channels[:, ~mask].any()
    scored = channels[[0, 1, 5, 6, 7, 8, 9, 10]][:, mask]
    assert_allclose(scored.mean(axis=1), 0, atol=1e-5)
    assert_allclose(scored.std(axis=1), 1, atol=1e-5)
    assert_allclose(channels[2:5, mask], np.clip(values[:, mask], 0, 4))
    assert values.max() > 4
    for direction, channel in zip(DIRECTIONS, channels[5:], strict=True):
        signal = s0 * np.exp(-np.einsum('ixyz,i->xyz', tensor[[0, 3, 5]], direction**2))
        expected = (signal - signal[mask].mean()) / signal[mask].std()
        assert_allclose(channel[mask], expected[mask], atol=1e-4)


def test_nothing_in_the_mask_and_nothing_finite() -> None:
    grid = (3, 3, 3)
    image = np.full(grid, np.nan, np.float32)
    channels = deepanat_channels(
        image, image, np.full((3, *grid), np.inf), np.full((6, *grid), -np.inf), image,
        np.ones(grid),
    )  # fmt: skip
    assert np.isfinite(channels).all()
    nothing = deepanat_channels(
        image, image, image[None].repeat(3, 0), image[None].repeat(6, 0), image, np.zeros(grid)
    )
    assert not nothing.any()


def test_channels_of_a_series_use_the_lower_shell() -> None:
    """Two shells, the upper one of which is spoilt: it must not matter."""
    vectors = np.r_[np.zeros((2, 3)), _directions(12), _directions(12)]
    bvals = np.r_[0, 5, np.full(12, 995.0), np.full(12, 2500.0)]
    values = np.array([1.7, 0.4, 0.3])
    decay = np.exp(-bvals / 1000 * (vectors**2 @ values))
    s0 = np.random.default_rng(3).uniform(200, 400, (3, 3, 3))
    data = (s0[..., None] * decay).astype(np.float32)
    data[..., 14:] = 7
    result = channels_of_series(data, bvals, vectors, np.ones((3, 3, 3)))
    assert result.used.nonzero()[0].tolist() == list(range(2, 14))
    assert_allclose(result.b0, s0, rtol=1e-5)
    assert_allclose(result.mean_dwi, s0 * decay[2:14].mean(), rtol=1e-5)
    assert_allclose(result.fit.eigenvalues, np.broadcast_to(values[:, None, None, None],
                                                            (3, 3, 3, 3)), atol=1e-3)  # fmt: skip
    assert_allclose(result.channels[2], 1.7, atol=1e-3)


def test_all_shells_where_the_lower_one_is_too_small() -> None:
    vectors = np.r_[np.zeros((1, 3)), _directions(3), _directions(8)]
    bvals = np.r_[0, np.full(3, 1000.0), np.full(8, 2000.0)]
    assert tensor_volumes(bvals, vectors).tolist() == [False] + [True] * 11
    assert tensor_volumes(bvals, vectors.T, b0_threshold=1000).sum() == 8


def test_series_without_b0() -> None:
    with pytest.raises(ValueError, match='no volume with a b-value of at most 50'):
        channels_of_series(
            np.ones((2, 2, 2, 7)), np.full(7, 1000.0), _directions(7), np.ones((2, 2, 2))
        )
