# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bids_app.networks import build_network
from bids_app.networks.deepnat import CENTRE, OFFSETS, DeepNAT, _pool, gather_patches


@pytest.mark.parametrize(
    ('outputs', 'coordinates', 'count'),
    [(27, 6, 2_773_053), (2, 6, 2_683_278), (25, 6, 2_765_871), (27, 0, 2_769_981)],
)
def test_parameters_are_as_many_as_published(outputs, coordinates, count):
    network = build_network('DeepNAT', {'outputs': outputs, 'coordinates': coordinates})
    assert sum(p.numel() for p in network.parameters()) == count


def test_patches_of_23_voxels_pool_with_a_window_that_is_cut_off():
    network = DeepNAT(3)
    assert network.trunk(torch.zeros(1, 1, 23, 23, 23)).shape == (1, 64, 3, 3, 3)
    assert network.trunk(torch.zeros(1, 1, 24, 24, 24)).shape == (1, 64, 3, 3, 3)


def _trained(outputs: int = 4) -> DeepNAT:
    """A network whose batch normalisation has seen something."""
    torch.manual_seed(1)
    network = DeepNAT(outputs)
    with torch.no_grad():
        network(torch.randn(8, 1, 24, 24, 24), torch.randn(8, 6))
    return network.eval()


def test_trunk_on_a_crop_gives_what_it_gives_on_every_patch():
    network = _trained()
    crop, place = torch.randn(2, 1, 30, 28, 26), torch.tensor([[0, 0, 0, 0], [1, 3, 2, 1]])
    coordinates = torch.randn(2, 6)
    with torch.inference_mode():
        dense = network.head(gather_patches(network.trunk(crop), place), coordinates)
        patches = torch.stack(
            [crop[b, :, 2 * i : 2 * i + 24, 2 * j : 2 * j + 24, 2 * k : 2 * k + 24]
             for b, i, j, k in place.tolist()]
        )  # fmt: skip
        single = network(patches, coordinates)
    torch.testing.assert_close(dense, single, rtol=1e-4, atol=1e-5)


def test_first_layer_is_a_convolution_over_the_features():
    network = _trained()
    features = torch.randn(1, 64, 4, 3, 3)
    index = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]])
    found = network.fc1(gather_patches(features, index))
    weight = network.fc1.weight.view(-1, 64, 3, 3, 3)
    wanted = functional.conv3d(features, weight, network.fc1.bias)[0, :, :, 0, 0].T
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_coordinates_are_not_dropped_and_normalisation_has_no_weights():
    network = _trained().train()
    assert network.norm2.weight is None
    assert network.norm_fc2.weight is None
    seen = []
    network.fc2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    coordinates = torch.rand(64, 6) + 1
    network.head(torch.rand(64, 1728), coordinates)
    torch.testing.assert_close(seen[0][:, 1024:], coordinates)
    assert (seen[0][:, :1024] == 0).float().mean() > 0.4


def test_receptive_field_is_one_patch():
    network = _trained()
    image = torch.randn(1, 1, 26, 26, 26, requires_grad=True)
    index = torch.tensor([[0, 0, 0, 0]])
    network.head(gather_patches(network.trunk(image), index), torch.zeros(1, 6)).sum().backward()
    reached = (image.grad[0, 0] != 0).nonzero()
    assert reached.min() >= 0
    assert reached.max() <= 23
    assert CENTRE == 11


def test_tasks_are_the_centre_and_its_six_neighbours():
    assert len(set(OFFSETS)) == 7
    assert all(sum(map(abs, offset)) == (number > 0) for number, offset in enumerate(OFFSETS))
    assert DeepNAT(5, tasks=1)(torch.zeros(2, 1, 24, 24, 24), torch.zeros(2, 6)).shape == (2, 1, 5)
    with pytest.raises(ValueError, match='tasks'):
        DeepNAT(5, tasks=8)


def test_pooling_is_that_of_the_library():
    volume = torch.randn(2, 3, 6, 4, 8)
    torch.testing.assert_close(_pool(volume), functional.max_pool3d(volume, 2, 2))
    odd = torch.randn(1, 1, 17, 17, 17)
    assert _pool(odd).shape[2:] == (9, 9, 9)
