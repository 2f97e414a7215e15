# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bids_app.networks import DeepAnatDiscriminator, DeepAnatUNet, build_network
from bids_app.networks.pif import parameter_count


@pytest.mark.parametrize(('channels', 'count'), [(11, 52_958_977), (1, 52_946_017)])
def test_generator_has_the_published_parameters(channels: int, count: int) -> None:
    with torch.device('meta'):
        assert parameter_count(build_network('DeepAnatUNet', {'in_channels': channels})) == count


def test_discriminator_has_the_published_parameters_with_and_without_normalisation() -> None:
    assert parameter_count(DeepAnatDiscriminator()) == 13_076_673
    assert parameter_count(DeepAnatDiscriminator(spectral=False)) == 13_076_673


def test_generator_keeps_the_grid_and_says_which_it_takes() -> None:
    network = DeepAnatUNet(base=2)
    assert network(torch.zeros(2, 11, 16, 32, 48)).shape == (2, 1, 16, 32, 48)
    with pytest.raises(ValueError, match='multiples of 16'):
        network(torch.zeros(1, 11, 16, 16, 20))


def test_generator_has_no_normalisation_unless_asked_for() -> None:
    def norms(network: torch.nn.Module) -> int:
        return sum(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())

    assert norms(DeepAnatUNet(base=2)) == 0
    assert norms(DeepAnatUNet(base=2, batch_norm=True)) == 18


def test_generator_starts_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    weight = DeepAnatUNet(base=16).encoder[2][0].weight  # 32 channels in
    assert weight.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.02)


def test_largest_singular_value_of_every_layer_of_the_discriminator_becomes_one() -> None:
    torch.manual_seed(0)
    network = DeepAnatDiscriminator(base=4, size=32)
    layers = [
        module
        for module in network.modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    assert len(layers) == 10
    planes = torch.randn(4, 1, 32, 32)
    for _ in range(60):  # one power iteration each
        network(planes)
    network.eval()
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        assert float(largest) == pytest.approx(1, abs=0.03)


def test_discriminator_gives_a_logit_for_each_plane() -> None:
    network = DeepAnatDiscriminator(base=4, size=32)
    assert network(torch.randn(5, 1, 32, 32)).shape == (5, 1)
    with pytest.raises(ValueError, match='multiple of 16'):
        DeepAnatDiscriminator(size=40)
