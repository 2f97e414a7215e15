# SPDX-License-Identifier: Apache-2.0
"""N4 recovers a known smooth field and behaves outside the mask."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.images.bias import n4_bias_field

pytest.importorskip('ants')


@pytest.fixture(scope='module')
def phantom():
    """A brain of two tissues, 2 mm voxels, with a known field: (image, affine, mask, field)."""
    shape = (80, 96, 80)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    position = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1)) * 2 - 1
    mask = (position**2).sum(axis=0) < 0.64
    folds = np.sin(14 * position[0]) * np.sin(12 * position[1]) * np.sin(13 * position[2])
    tissue = np.where(folds > 0.15, 70.0, 110.0)
    noise = np.random.default_rng(0).normal(0, 2, shape)
    field = np.exp(0.3 * position[0] - 0.2 * position[1] * position[2] + 0.25 * position[2] ** 2)
    field /= field[mask].mean()
    image = np.where(mask, tissue + noise, 20 + noise).astype(np.float32)
    return image * field.astype(np.float32), affine, mask, field


def test_known_field_is_recovered(phantom):
    image, affine, mask, field = phantom
    estimate = n4_bias_field(image, affine, mask)
    error = estimate / field
    error /= error[mask].mean()
    assert np.ptp(np.percentile(field[mask], [1, 99])) > 0.4
    assert error[mask].std() < 0.02
    assert np.abs(np.percentile(error[mask], [1, 99]) - 1).max() < 0.06
    # Around the mask the field goes on rather than jumping.
    assert np.abs(np.diff(np.log(estimate), axis=0)).max() < 0.05


def test_field_is_positive_finite_and_of_mean_one(phantom):
    image, affine, mask, _ = phantom
    estimate = n4_bias_field(image, affine, mask)
    assert estimate.dtype == np.float32
    assert estimate.shape == image.shape
    assert np.isfinite(estimate).all()
    assert estimate.min() >= estimate[mask].min() * 0.8
    assert estimate.max() <= estimate[mask].max() * 1.2
    assert estimate[mask].mean(dtype=float) == pytest.approx(1, abs=1e-4)
    # Same input, same field; the unit of the intensities does not matter.
    np.testing.assert_array_equal(n4_bias_field(image, affine, mask), estimate)
    np.testing.assert_allclose(n4_bias_field(1e-3 * image, affine, mask), estimate, rtol=2e-3)


def test_nothing_to_fit(phantom):
    image, affine, mask, _ = phantom
    assert (n4_bias_field(image, affine, mask & False) == 1).all()
    assert (n4_bias_field(image * 0, affine, mask) == 1).all()
    assert (n4_bias_field(np.full_like(image, 5), affine, mask) == 1).all()
    with pytest.raises(ValueError, match='shape'):
        n4_bias_field(image, affine, mask[1:])
