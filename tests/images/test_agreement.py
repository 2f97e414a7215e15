# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bids_app.images.agreement import mean_ssim, peak_snr


def test_peak_snr_of_a_known_error() -> None:
    image = torch.zeros(6, 6, 6)
    mask = torch.ones_like(image, dtype=torch.bool)
    mask[0] = False
    other = image + 0.3
    other[0] = 9
    assert peak_snr(other, image, mask, 6.0) == pytest.approx(20 * np.log10(20), abs=1e-4)
    assert peak_snr(image, image, mask, 6.0) == pytest.approx(120)


def test_ssim_of_constant_images_is_that_of_their_means() -> None:
    a, b = torch.full((24, 24, 24), 1.0), torch.full((24, 24, 24), 2.0)
    middle = torch.zeros_like(a, dtype=torch.bool)
    middle[10:14, 10:14, 10:14] = True
    c1 = (0.01 * 6) ** 2
    assert mean_ssim(a, b, middle, 6.0) == pytest.approx((4 + c1) / (5 + c1), abs=1e-4)


def test_ssim_is_that_of_another_implementation() -> None:
    source = np.random.default_rng(0)
    a, b = source.normal(size=(2, 26, 26, 26))
    b = 0.6 * a + 0.4 * b
    middle = np.zeros(a.shape, bool)
    middle[8:18, 8:18, 8:18] = True

    def smooth(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, radius=5, mode='constant')

    c1, c2 = 0.06**2, 0.18**2
    ma, mb = smooth(a), smooth(b)
    va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    index = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    found = mean_ssim(
        torch.from_numpy(a).float(), torch.from_numpy(b).float(), torch.from_numpy(middle), 6.0
    )
    assert found == pytest.approx(index[middle].mean(), abs=1e-4)
