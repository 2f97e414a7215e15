# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.inference.classes import CLASSES
from bids_app.training.contrast import Contrast, brighten_outside, draw_contrast
from bids_app.training.label_maps import load_label_maps
from bids_app.training.samples import CoarseSampler, FineSampler
from bids_app.training.synthesis import (
    Deformation,
    Ranges,
    corrupt,
    paint,
    sample_labels,
    sub_voxel_labels,
)

STILL = Ranges(rotation=0, scaling=(1, 1), shear=0, elastic=0, elastic_fine=0, bias=0, noise=0,
               gamma=0, low_resolution=0, stripped=0, t1w=1, t2w=0)  # fmt: skip


@pytest.fixture(scope='module')
def maps(head_files):
    return load_label_maps(head_files)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_orientation_of_the_file_does_not_matter(maps):
    assert torch.equal(maps.maps[0], maps.maps[1])
    left = torch.tensor([maps.sides[i] for i in range(len(maps.values))])[maps.maps[0].long()] < 0
    assert left.nonzero()[:, 0].float().mean() < maps.maps[0].shape[0] / 2


def test_septum_goes_to_white_matter_and_choroid_plexus_stays():
    from bids_app.training.label_maps import separate_septum

    labels = np.zeros((40, 10, 10), dtype=np.int16)
    labels[5:8], labels[32:35] = 10, 49
    labels[18:20, 5, 5], labels[20:22, 5, 5] = 136, 163
    labels[10:12, 5, 5], labels[28:30, 5, 5] = 136, 163
    result = separate_septum(labels)
    assert result[18:22, 5, 5].tolist() == [2, 2, 41, 41]
    assert result[10, 5, 5] == 136
    assert result[29, 5, 5] == 163
    assert labels[18, 5, 5] == 136


def test_labels_outside_the_map_are_zero():
    label_map = torch.ones(4, 4, 4, dtype=torch.uint8)
    at = torch.tensor([[-0.4, -0.6, 3.4, 3.6]] * 3)
    assert sample_labels(label_map, at).tolist() == [1, 0, 1, 0]


def test_deformation_without_ranges_is_a_shift_up_to_flip_and_own_zooms():
    deformation = Deformation(STILL, 40, torch.tensor([20.0, 20, 20]), generator())
    grid = deformation.grid(torch.tensor([0.0, 0, 0]), 1.0, (3, 3, 3))
    assert torch.equal(grid[:, 0, 0, 0], torch.tensor([20.0, 20, 20]))
    steps = (grid[:, 1, 1, 1] - grid[:, 0, 0, 0]).abs()
    assert ((steps > 0.94) & (steps < 1.07)).all()


def test_two_grids_of_one_deformation_agree_where_they_meet():
    deformation = Deformation(Ranges(), 40, torch.tensor([20.0, 20, 20]), generator(3))
    fine = deformation.grid(torch.tensor([-9.0, -9, -9]), 1.0, (19, 19, 19))
    coarse = deformation.grid(torch.tensor([-9.0, -9, -9]), 3.0, (7, 7, 7))
    torch.testing.assert_close(fine[:, ::3, ::3, ::3], coarse, rtol=0, atol=1e-3)


def test_partial_volume_of_a_plane_is_the_share_on_each_side():
    label_map = torch.zeros(20, 20, 20, dtype=torch.uint8)
    label_map[10:] = 1  # the plane lies at x = 9.5
    coordinates = torch.tensor([9.25, 10.0, 10.0])[:, None, None, None].expand(3, 16, 16, 16)
    labels = sub_voxel_labels(label_map, coordinates, torch.eye(3), 16, generator())
    share = torch.stack(labels).float().mean()
    assert abs(float(share) - 0.25) < 0.01


def test_paint_gives_the_mean_and_spread_of_each_class():
    labels = [torch.tensor([0, 1]).repeat(20000).view(200, 200, 1).int()]
    image = paint(
        labels, Contrast(torch.tensor([10.0, 90.0]), torch.tensor([2.0, 5.0])), generator()
    )
    one = image.flatten()[1::2]
    assert abs(float(one.mean()) - 90) < 0.3
    assert abs(float(one.std()) - 5) < 0.2


def test_corruption_without_ranges_only_rescales_or_blurs_a_constant():
    image = corrupt(torch.full((16, 16, 16), 40.0), STILL, 1.0, generator())
    torch.testing.assert_close(image[4:-4, 4:-4, 4:-4], torch.ones(8, 8, 8), rtol=1e-3, atol=1e-3)


def test_t1w_contrast_orders_the_tissues():
    values = [0, 2, 3, 24, 41, 42]
    contrasts = [draw_contrast(values, 't1w', generator(i)) for i in range(200)]
    mean = torch.stack([c.mean for c in contrasts]).mean(dim=0)
    assert mean[3] < mean[2] < mean[1]
    for contrast in contrasts:
        assert contrast.mean[1] == contrast.mean[4]
        assert contrast.mean[2] == contrast.mean[5]


def test_only_the_head_around_the_brain_is_brightened():
    values = [0, 2, 3, 24, 507, 511, 530]
    largest = 0.0
    for seed in range(50):
        before = draw_contrast(values, 't1w', generator(seed))
        kept = before.mean.clone()
        after = brighten_outside(before, values, generator(100 + seed))
        assert torch.equal(before.mean, kept)
        assert torch.equal(after.mean[:4], before.mean[:4])
        factors = after.mean[4:] / before.mean[4:]
        torch.testing.assert_close(factors, after.spread[4:] / before.spread[4:])
        assert (factors >= 1).all()
        largest = max(largest, float(factors.max()))
    assert 2.5 < largest <= 3.2


@pytest.mark.parametrize(
    ('shares', 'kind'), [({'flair': 1}, 'flair'), ({'t2w': 1}, 't2w'), ({'t1w': 1}, 't1w')]
)
def test_shares_of_the_ranges_choose_the_contrast(maps, monkeypatch, shares, kind):
    drawn = []

    def draw(values, name, source):
        drawn.append(name)
        return draw_contrast(values, name, source)

    monkeypatch.setattr('bids_app.training.samples.draw_contrast', draw)
    ranges = Ranges(**{'t1w': 0, 't2w': 0, **shares}, bright_fat=1)
    sampler = CoarseSampler(maps, ranges, (16, 16, 16), 3.0, 1, 0)
    for _ in range(3):
        sampler.draw()
    assert drawn == 3 * [kind]


def test_unknown_contrast_is_an_error():
    with pytest.raises(ValueError, match='t1w'):
        draw_contrast([0], 'pd', generator())


@pytest.mark.parametrize('seed', range(4))
def test_flips_swap_the_labels_of_the_sides(maps, seed):
    """Whatever the flip, left structures lie where the label 'left' says after the swap."""
    sampler = CoarseSampler(maps, STILL, (32, 32, 32), 3.0, 2, seed)
    sample = sampler.draw()
    left, right = sample.side
    x = torch.arange(32.0)[:, None, None]
    assert (x * left).sum() / left.sum() < (x * right).sum() / right.sum()


def test_coarse_sample_is_normalised_and_shares_sum_to_one(maps):
    sample = CoarseSampler(maps, Ranges(), (32, 40, 32), 3.0, 4, 1).draw()
    assert sample.image.shape == (1, 32, 40, 32)
    assert 0 <= float(sample.image.min()) <= float(sample.image.max()) <= 1
    torch.testing.assert_close(sample.target.sum(dim=0), torch.ones(32, 40, 32))
    assert sample.context is None


def test_fine_context_agrees_with_the_target(maps):
    sampler = FineSampler(maps, STILL, (32, 32, 32), 1.0, 2, 5)
    agree = []
    for _ in range(4):
        sample = sampler.draw()
        assert sample.context.shape == (len(CLASSES) + 1, 16, 16, 16)
        found = sample.context[:-1].argmax(dim=0)
        truth = sample.target.argmax(dim=0)[::2, ::2, ::2]
        agree.append(float((found == truth).float().mean()))
        right, left = sample.side[1, ::2, ::2, ::2] > 0, sample.side[0, ::2, ::2, ::2] > 0
        if left.any() and right.any():
            assert sample.context[-1][right].mean() > sample.context[-1][left].mean()
    assert sum(agree) / 4 > 0.6


def test_the_same_seed_gives_the_same_sample(maps):
    one, two = (FineSampler(maps, Ranges(), (16, 16, 16), 1.0, 2, 9).draw() for _ in range(2))
    assert torch.equal(one.image, two.image)


def test_stripped_samples_have_no_target_outside_the_image(maps):
    ranges = Ranges(stripped=1.0)
    sampler = CoarseSampler(maps, ranges, (32, 32, 32), 3.0, 4, 2)
    for _ in range(3):
        sample = sampler.draw()
        assert not ((sample.image[0] == 0) & (sample.target[0] < 0.2)).float().mean() > 0.05
