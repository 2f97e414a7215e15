# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bids_app.networks import build_network
from bids_app.networks.pif import (
    PUBLISHED,
    ConvClassifier3D,
    PatchIndividualFilters3D,
    compact,
    parameter_count,
)

PARAMETERS = {
    '2019-ukb-baseline-a': 3_752_849,
    '2019-ukb-pif': 1_348_665,
    '2019-adni-baseline-b': 499_845,
    '2019-adni-pif': 493_405,
    '2019-ms-baseline-c': 333_889,
    '2019-ms-pif': 493_405,
    '2021-adni-a': 238_997,
    '2021-adni-a-pif': 259_131,
    '2021-adni-b': 499_845,
    '2021-adni-b-pif': 519_979,
    '2021-ms-a': 468_521,
    '2021-ms-a-pif': 428_545,
    '2021-ms-b': 621_961,
    '2021-ms-b-pif': 471_329,
    '2021-ukb-a': 1_303_769,
    '2021-ukb-a-pif': 1_348_665,
    '2021-ukb-b': 787_785,
    '2021-ukb-b-pif': 301_895,
}
PIF_INPUT = {
    '2019-ukb-pif': ((15, 19, 15), [36]),
    '2019-adni-pif': ((10, 13, 10), [12]),
    '2021-adni-a-pif': ((10, 13, 10), [12, 2]),
    '2021-ms-b-pif': ((10, 12, 10), [12, 2]),
    '2021-ukb-a-pif': ((15, 19, 15), [36, 12]),
    '2021-ukb-b-pif': ((8, 10, 8), [8, 1]),
}


def loop(layer, x):
    """The layer as one would write it down: a scan at a time, a patch at a time."""
    p = layer.patch
    x = F.pad(x, (0, layer.pad[2], 0, layer.pad[1], 0, layer.pad[0]))
    weight = layer.filters.weight.unflatten(0, (-1, layer.out_channels))
    bias = layer.filters.bias.unflatten(0, (-1, layer.out_channels))
    scans = []
    for scan in x:
        patches, number = [], 0
        for (x0, a), (y0, b), (z0, c) in layer.sets:
            for i in range(a):
                for j in range(b):
                    for k in range(c):
                        cut = scan[
                            :,
                            x0 + i * p : x0 + (i + 1) * p,
                            y0 + j * p : y0 + (j + 1) * p,
                            z0 + k * p : z0 + (k + 1) * p,
                        ]
                        patches.append(
                            F.conv3d(
                                cut[None],
                                weight[number],
                                bias[number],
                                stride=layer.filters.stride,
                                padding=layer.filters.padding,
                            )[0]
                        )
                        number += 1
        scans.append(torch.stack(patches))
    return torch.stack(scans)


@pytest.mark.parametrize('overlap', ['none', 'half', 'duplicate'])
@pytest.mark.parametrize(('patch', 'padding', 'stride'), [(5, 0, 1), (4, 1, 1), (5, 1, 2)])
def test_layer_equals_the_loop(overlap, patch, padding, stride):
    layer = PatchIndividualFilters3D(
        3, 2, (10, 13, 4), patch=patch, padding=padding, stride=stride, overlap=overlap
    )
    x = torch.randn(2, 3, 10, 13, 4)
    torch.testing.assert_close(layer(x), loop(layer, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('channels', [1, 9])  # few and many: two orders in memory
@pytest.mark.parametrize('overlap', ['none', 'half', 'duplicate'])
@pytest.mark.parametrize(('patch', 'padding', 'stride'), [(5, 0, 1), (4, 1, 1), (5, 1, 2)])
def test_without_gradients_the_layer_equals_the_loop(overlap, patch, padding, stride, channels):
    layer = PatchIndividualFilters3D(
        channels, 3, (10, 13, 4), patch=patch, padding=padding, stride=stride, overlap=overlap
    )
    x = torch.randn(3, channels, 10, 13, 4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), loop(layer, x), atol=1e-5, rtol=1e-5)


def test_more_scans_than_are_taken_at_once():
    layer = PatchIndividualFilters3D(8, 3, (10, 13, 4))
    x = torch.randn(14, 8, 10, 13, 4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), loop(layer, x), atol=1e-5, rtol=1e-5)
        assert layer(x[:0]).shape == (0, 6, 3, 3, 3, 3)


@pytest.mark.parametrize('channels', [1, 9])
@pytest.mark.parametrize('overlap', ['none', 'half'])
def test_gradients_equal_those_of_the_loop(overlap, channels):
    layer = PatchIndividualFilters3D(channels, 3, (10, 13, 4), overlap=overlap)
    x = torch.randn(3, channels, 10, 13, 4, requires_grad=True)
    wanted = [x, layer.filters.weight, layer.filters.bias]
    factors = torch.randn(layer(x).shape)
    ours = torch.autograd.grad((layer(x) * factors).sum(), wanted)
    theirs = torch.autograd.grad((loop(layer, x) * factors).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('shape', 'overlap', 'patches'),
    [
        ((10, 13, 10), 'none', 12),
        ((10, 13, 10), 'half', 12 + 2),
        ((15, 19, 15), 'duplicate', 36 + 12),
        ((4, 11, 5), 'half', 3 + 2),
    ],
)
def test_parameters_follow_the_formula(shape, overlap, patches):
    layer = PatchIndividualFilters3D(7, 3, shape, overlap=overlap)
    counts = [math.ceil(size / 5) for size in shape]
    more = math.prod(max(n - 1, 1) for n in counts) if overlap != 'none' else 0
    assert math.prod(counts) + more == patches == sum(layer.patches)
    assert parameter_count(layer) == patches * 3 * (7 * 27 + 1)
    assert layer.out_features == patches * 3 * 27


def test_second_set_begins_half_a_patch_or_as_published_a_whole_one_further():
    x = torch.arange(1000.0).reshape(1, 1, 10, 10, 10)
    half = PatchIndividualFilters3D(1, 1, (10, 10, 10), overlap='half')
    twice = PatchIndividualFilters3D(1, 1, (10, 10, 10), overlap='duplicate')
    assert half.split(x)[0, 8, 0, 0, 0, 0] == x[0, 0, 2, 2, 2]
    assert torch.equal(twice.split(x)[0, 8], twice.split(x)[0, 7])


@pytest.mark.parametrize('overlap', ['none', 'half'])
def test_patches_are_put_together_where_they_came_from(overlap):
    layer = PatchIndividualFilters3D(
        1, 1, (8, 12, 4), patch=4, padding=1, overlap=overlap, reassemble=True
    )
    with torch.no_grad():  # every filter passes its input
        layer.filters.weight.zero_()[:, :, 1, 1, 1] = 1
        layer.filters.bias.zero_()
    x = torch.randn(2, 1, 8, 12, 4)
    out = layer(x)
    torch.testing.assert_close(out[:, :1], x)
    if overlap == 'half':
        torch.testing.assert_close(out[:, 1:, 2:6, 2:10], x[:, :, 2:6, 2:10])
        assert not out[:, 1:, :2].any()
        assert not out[:, 1:, :, 10:].any()


def test_unpadded_patches_make_a_map_of_three_voxels_each():
    layer = PatchIndividualFilters3D(2, 4, (10, 13, 10), overlap='half', reassemble=True)
    assert layer(torch.zeros(1, 2, 10, 13, 10)).shape == (1, 8, 6, 9, 6)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match='needed'):
        PatchIndividualFilters3D(1, 1, (10, 10, 10))(torch.zeros(1, 1, 10, 10, 9))


@pytest.mark.parametrize('name', PARAMETERS)
def test_published_networks_have_their_parameters(name):
    with torch.device('meta'):
        network = ConvClassifier3D(**PUBLISHED[name])
    assert parameter_count(network) == PARAMETERS[name]
    if name in PIF_INPUT:
        assert (network.feature_shape, network.pif.patches) == PIF_INPUT[name]


def test_every_published_network_is_tested():
    assert PARAMETERS.keys() == PUBLISHED.keys()


def test_dropout_is_off_outside_training():
    network = ConvClassifier3D(**compact((26, 26, 26), pif=True, pool=2))
    x = torch.randn(2, 1, 26, 26, 26)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(('shape', 'pool'), [((48, 60, 50), 3), ((26, 30, 26), 2)])
def test_compact_networks_are_matched(shape, pool):
    counts = [
        parameter_count(build_network('ConvClassifier3D', compact(shape, pif=pif, pool=pool)))
        for pif in (True, False)
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)


def test_boxes_cover_the_input_and_hold_what_their_patch_sees():
    network = ConvClassifier3D(**compact((36, 42, 36), pif=True, pool=2)).eval()
    boxes = network.patch_boxes()
    assert len(boxes) == sum(network.pif.patches)
    seen = torch.zeros(36, 42, 36)
    for box in boxes[: network.pif.patches[0]]:
        seen[box] += 1
    assert (seen == 1).all()
    # The gradient of a patch is in the middle of its box.
    number = network.pif.patches[0]  # first patch of the second set, inside the map
    torch.manual_seed(0)
    x = torch.randn(8, 1, 36, 42, 36, requires_grad=True)
    patches = network.pif.split(network.features(x))
    patches[:, number].square().sum().backward()
    reach = x.grad.abs().sum((0, 1))
    centre = [(reach.sum(dim=[a for a in range(3) if a != axis])) for axis in range(3)]
    for axis, profile in enumerate(centre):
        middle = (profile * torch.arange(len(profile))).sum() / profile.sum()
        box = boxes[number][axis]
        assert middle.item() == pytest.approx((box.start + box.stop - 1) / 2, abs=1.0)
    assert reach[boxes[number]].mean() > 10 * reach.mean()
