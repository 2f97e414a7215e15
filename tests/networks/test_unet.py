# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bids_app.networks import ResidualUNet3D, build_network


def test_output_has_the_grid_of_the_input():
    network = ResidualUNet3D(2, 5, widths=(4, 6, 8), convolutions=1)
    assert network(torch.zeros(1, 2, 16, 8, 12)).shape == (1, 5, 16, 8, 12)
    assert network.divisor == 4


def test_default_model_networks_have_between_one_and_six_million_parameters():
    coarse = ResidualUNet3D(1, 20, widths=(16, 32, 64, 96))
    fine = ResidualUNet3D(1, 20, widths=(16, 32, 64, 96, 128), context_channels=20)
    counts = [sum(p.numel() for p in net.parameters()) for net in (coarse, fine)]
    assert counts[0] == 1_520_564
    assert 1e6 < sum(counts) < 6e6


def test_context_joins_at_half_the_grid():
    network = ResidualUNet3D(1, 3, widths=(4, 8), context_channels=2).eval()
    image = torch.rand(1, 1, 8, 8, 8)
    one = network(image, torch.zeros(1, 2, 4, 4, 4))
    two = network(image, torch.rand(1, 2, 4, 4, 4))
    assert not torch.allclose(one, two)
    with pytest.raises(ValueError, match='context'):
        network(image)


def test_residual_shortcut_passes_the_input_when_the_body_is_silent():
    network = ResidualUNet3D(1, 1, widths=(4, 8))
    block = network.encoder[0]
    for unit in block.body:
        torch.nn.init.zeros_(unit[1].weight)
        torch.nn.init.zeros_(unit[1].bias)
    x = torch.randn(1, 8, 4, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_every_parameter_gets_a_gradient():
    network = ResidualUNet3D(1, 2, widths=(4, 8, 8), context_channels=1)
    network(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 4, 4, 4)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_unknown_network_names_the_known_ones():
    with pytest.raises(KeyError, match='ResidualUNet3D'):
        build_network('UNet4D', {})
