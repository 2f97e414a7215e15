# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_app.registration import velocity as v

SHAPE = (24, 28, 20)


def points():
    return torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in SHAPE], indexing='ij'))


def smooth_field(seed=0, size=2.0):
    field = torch.randn((1, 3, *SHAPE), generator=torch.Generator().manual_seed(seed))
    field = v.smooth(field, 3.0)
    return size * field / field.abs().max() * v.border_window(SHAPE, 5)


def test_warp_by_whole_voxels_copies():
    image = torch.randn(1, 2, *SHAPE)
    field = torch.zeros(1, 3, *SHAPE)
    field[0, 1] = 2
    torch.testing.assert_close(
        v.warp(image, field)[:, :, :, :-2], image[:, :, :, 2:], atol=1e-4, rtol=0
    )
    assert float(v.warp(image, field, 'zeros')[:, :, :, -1].abs().max()) == 0


@pytest.mark.parametrize('threads', [1, 2])
def test_warp_equals_scipy(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        image, field = torch.rand(1, 1, *SHAPE), smooth_field()
        found = v.warp(image, field)
    finally:
        torch.set_num_threads(before)
    expected = ndimage.map_coordinates(
        image[0, 0].numpy(), (points() + field[0]).numpy(), order=1, mode='nearest'
    )
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)


def test_exponential_of_a_linear_velocity():
    # v(x) = A (x - c) has exp(v)(x) = c + expm(A) (x - c); far from the border nothing is cut.
    rate = 0.2
    centre = (torch.tensor(SHAPE) - 1).float() / 2
    offset = points() - centre.view(3, 1, 1, 1)
    found = v.exponential(rate * offset[None], 8)
    inner = (slice(None), slice(None), slice(9, 15), slice(10, 18), slice(8, 12))
    torch.testing.assert_close(
        found[inner], ((math.exp(rate) - 1) * offset[None])[inner], atol=2e-3, rtol=0
    )


def test_exponential_of_minus_v_is_the_inverse():
    field = smooth_field(size=2.0)
    there, back = v.exponential(field), v.exponential(-field)
    assert float(v.compose(back, there).abs().max()) < 0.15
    assert float(v.compose(back, there).abs().mean()) < 0.01


def test_full_flows_are_inverse_and_do_not_fold():
    forward, backward = v.full_flows(smooth_field(1), smooth_field(2))
    assert float(v.compose(backward, forward).abs().mean()) < 0.01
    assert float(v.jacobian(forward).min()) > 0
    assert float(v.jacobian(backward).min()) > 0


def test_full_flows_on_a_finer_grid():
    coarse = v.full_flows(smooth_field(1), smooth_field(2))[0]
    fine = v.full_flows(smooth_field(1), smooth_field(2), tuple(2 * n for n in SHAPE))[0]
    back = torch.nn.functional.avg_pool3d(fine, 2) / 2
    assert float((back - coarse).abs().mean()) < 0.03


def test_smooth_equals_scipy():
    image = torch.rand(1, 1, *SHAPE)
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), 1.5, mode='constant', truncate=3.0)
    # Both cut the kernel off, scipy at 4.5 rounded to 5 voxels, as here.
    np.testing.assert_allclose(v.smooth(image, 1.5)[0, 0].numpy(), expected, atol=1e-4)
    assert v.smooth(image, 0) is image


def test_resize_keeps_the_displacement_in_millimetres():
    field = torch.ones(1, 3, *SHAPE)
    fine = v.resize(field, tuple(2 * n for n in SHAPE), 2)
    assert fine.shape[2:] == tuple(2 * n for n in SHAPE)
    torch.testing.assert_close(fine, torch.full_like(fine, 2.0))


def test_border_window():
    window = v.border_window(SHAPE, 4)[0, 0]
    assert window[12, 14, 10] == 1
    assert window[0].max() == 0
    assert window[:, :, -1].max() == 0


def test_jacobian_of_a_scaling():
    offset = points()
    torch.testing.assert_close(
        v.jacobian(0.1 * offset[None]), torch.full(SHAPE, 1.1**3), atol=1e-4, rtol=0
    )
