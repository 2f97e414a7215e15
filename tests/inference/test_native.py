# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bids_app.images.grids import canonical, conform_grid
from bids_app.inference.cascade import Coarse, Posterior, _cut, brain_box, find_brain, segment
from bids_app.inference.classes import CLASSES
from bids_app.inference.native import to_native
from bids_app.inference.predictor import Predictor

SIZE = 40


def sphere_posterior(radius: float = 12.0) -> Posterior:
    """A ball of white matter with a thalamus on the right and one on the left, 1 mm."""
    x, y, z = np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing='ij')
    distance = np.sqrt(x**2 + y**2 + z**2)
    brain = np.clip(radius + 0.5 - distance, 0, 1)
    thalamus = brain * (np.sqrt((np.abs(x) - 5) ** 2 + y**2 + z**2) < 3)
    classes = np.zeros((len(CLASSES), SIZE, SIZE, SIZE), dtype=np.float32)
    classes[0] = 1 - brain
    classes[CLASSES.index('thalamus')] = thalamus
    classes[CLASSES.index('cerebral-white-matter')] = brain - thalamus
    right = (x > 0).astype(np.float32)
    return Posterior(torch.from_numpy(classes), torch.from_numpy(right), (0, 0, 0))


def test_volume_of_a_ball():
    result = to_native(sphere_posterior(), np.eye(4), (SIZE,) * 3, np.eye(4))
    expected = 4 / 3 * np.pi * 12**3
    assert result.tiv_mm3 == pytest.approx(expected, rel=0.01)
    white = {r['index']: r['volume_mm3'] for r in result.structures}
    assert white[2] == pytest.approx(white[41], rel=1e-3)
    assert result.tiv_mm3 == pytest.approx(sum(white.values()), rel=1e-4)


@pytest.mark.parametrize('zooms', [(1, 1, 1), (0.5, 1, 2), (2, 0.8, 1.3)])
def test_volumes_do_not_depend_on_the_grid_of_the_scan(zooms):
    shape = tuple(int(round(SIZE / z)) for z in zooms)
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = [(z - 1) / 2 for z in zooms]
    result = to_native(sphere_posterior(), np.eye(4), shape, affine)
    assert result.labels.shape == shape
    assert result.tiv_mm3 == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.04)


def test_left_and_right_for_every_axis_order_and_direction():
    """The right thalamus lies at positive world x, however the scan is stored."""
    base = np.eye(4)
    base[:3, 3] = -(SIZE - 1) / 2
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            native = np.zeros((4, 4))
            native[3, 3] = 1
            for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
                native[world, axis] = sign
                native[world, 3] = -sign * (SIZE - 1) / 2
            _, conformed = conform_grid((SIZE,) * 3, native)
            np.testing.assert_allclose(conformed, base, atol=1e-6)
            result = to_native(sphere_posterior(), conformed, (SIZE,) * 3, native)
            labels, _, _ = canonical(result.labels, native)
            assert np.argwhere(labels == 49)[:, 0].mean() > SIZE / 2
            assert np.argwhere(labels == 10)[:, 0].mean() < SIZE / 2


def test_maps_are_consistent_inside_and_zero_outside_the_mask():
    result = to_native(sphere_posterior(), np.eye(4), (SIZE,) * 3, np.eye(4))
    inside = result.mask > 0
    assert (result.labels[inside] > 0).all()
    assert (result.dseg[inside] > 0).all()
    total = sum(result.tissues.values())
    assert float(total.max()) <= 1 + 1e-5
    for data in (result.labels, result.dseg, total, result.entropy):
        assert not data[~inside].any()
    assert result.dseg[result.labels == 49].tolist() == [1] * int((result.labels == 49).sum())
    assert 0 <= result.mean_entropy < 0.2


def test_a_box_off_the_corner_lands_where_it_belongs():
    posterior = sphere_posterior()
    moved = Posterior(posterior.classes, posterior.right, (-5, 3, 7))
    whole = to_native(posterior, np.eye(4), (SIZE,) * 3, np.eye(4))
    shifted = to_native(moved, np.eye(4), (60, 60, 60), np.eye(4))
    a = np.argwhere(whole.mask).mean(axis=0)
    b = np.argwhere(shifted.mask).mean(axis=0)
    np.testing.assert_allclose(b - a, (-5, 3, 7), atol=1e-6)


class Oracle(torch.nn.Module):
    """Calls bright voxels white matter and copies the side of the context."""

    divisor = 4

    def forward(self, image, context=None):
        out = torch.zeros(1, len(CLASSES) + 1, *image.shape[2:])
        out[:, 0] = 10 * (0.5 - image[:, 0])
        out[:, CLASSES.index('cerebral-white-matter')] = 10 * (image[:, 0] - 0.5)
        out[:, 1:-1] -= 20 * (out[:, 1:-1] == 0)
        out[:, -1] = 5 * torch.nn.functional.interpolate(context[:, -1:], scale_factor=2)[:, 0]
        return out


def test_cascade_returns_the_box_and_averages_over_the_mirror():
    image = torch.zeros(50, 44, 48)
    image[20:36, 16:30, 18:33] = 100.0
    posterior = torch.zeros(len(CLASSES) + 1, 16, 16, 16)
    posterior[0] = 1
    posterior[0, 6:12, 5:10, 6:11] = 0
    posterior[1, 6:12, 5:10, 6:11] = 1
    posterior[-1] = torch.linspace(-1, 1, 16)[:, None, None]
    coarse = Coarse(posterior, torch.ones(3), 3, 1e6, 1.0)
    found = segment(image, coarse, Predictor(Oracle()))
    assert all(n % 4 == 0 for n in found.classes.shape[1:])
    mask = found.classes[0] < 0.5
    x0, y0, z0 = found.corner
    corner = mask.nonzero().min(dim=0).values + torch.tensor([x0, y0, z0])
    assert corner.tolist() == [20, 16, 18]
    assert int(mask.sum()) == 16 * 14 * 15
    # The mirror average must not mirror the side: it still grows with x.
    assert found.right[-1].mean() > found.right[0].mean()


def test_cut_pads_beyond_the_volume():
    volume = torch.arange(8.0).view(2, 2, 2)
    out = _cut(volume, [-1, 0, 1], (3, 2, 2))
    assert out[0].sum() == 0
    assert out[1, 0, 0] == volume[0, 0, 1]
    assert out[1, 0, 1] == 0


def test_brain_box_holds_the_brain_and_fits_the_network():
    probability = torch.zeros(60, 60, 60)
    probability[30:40, 5:20, 10:50] = 1
    corner, size = brain_box(probability, 16)
    assert all(n % 16 == 0 for n in size)
    for axis, (first, last) in enumerate(((30, 39), (5, 19), (10, 49))):
        assert corner[axis] <= first - 10
        assert corner[axis] + size[axis] > last + 10


class UprightOnly(torch.nn.Module):
    """Sure of a head that is brighter above and in front, unsure of any other."""

    divisor = 4

    def forward(self, image, context=None):
        half = image.shape[-1] // 2
        above = image[..., half:].mean() > image[..., :half].mean()
        front = image[:, :, :, half:].mean() > image[:, :, :, :half].mean()
        upright = bool(above and front)
        out = torch.zeros(1, len(CLASSES) + 1, *image.shape[2:])
        inside = image[:, 0] > 0.1
        out[:, 0] = torch.where(inside, -8.0, 8.0)
        out[:, 1] = torch.where(inside, 6.0 if upright else 2.5, -8.0)
        return out


@pytest.mark.parametrize('upside_down', [False, True])
def test_a_head_upside_down_by_header_is_noticed(upside_down):
    image = torch.zeros(96, 96, 96)
    image[24:72, 24:72, 24:72] = torch.linspace(40, 100, 48)
    image[24:72, 48:72, 24:72] += 20
    if upside_down:
        image = image.flip((0, 2))
    coarse = find_brain(image, Predictor(UprightOnly()), 3, (32, 32, 32))
    assert coarse.suspect == ('upside down' if upside_down else None)
    assert coarse.volume == pytest.approx(48**3, rel=0.1)
