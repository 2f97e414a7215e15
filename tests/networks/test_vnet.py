# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from bids_app.networks import VNet, VNetLight, build_network
from bids_app.networks.pif import parameter_count
from bids_app.networks.vnet import InputBlock


@pytest.mark.parametrize(
    ('network', 'channels', 'classes', 'count'),
    [
        (VNet, 1, 4, 45_611_956),
        (VNet, 2, 4, 45_613_956),
        (VNet, 3, 4, 45_615_956),
        (VNet, 1, 9, 45_632_046),
        (VNetLight, 1, 4, 12_247_988),
        (VNetLight, 2, 4, 12_249_988),
        (VNetLight, 3, 4, 12_251_988),
        (VNetLight, 1, 9, 12_268_078),
    ],
)
def test_parameter_counts_are_the_published_ones(network, channels, classes, count):
    with torch.device('meta'):
        assert parameter_count(network(channels, classes)) == count


@pytest.mark.parametrize(('published', 'dropouts'), [(True, 8), (False, 6)])
def test_census_of_layers(published, dropouts):
    with torch.device('meta'):
        network = VNet(1, 4, published_dropout=published)
    census = Counter(type(module) for module in network.modules())
    assert census[nn.Conv3d] == 21
    assert census[nn.ConvTranspose3d] == 4
    assert census[nn.BatchNorm3d] == 24
    assert census[nn.PReLU] == 32
    assert census[nn.Dropout3d] == dropouts


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_every_feature_of_the_stem_gets_one_contrast(channels):
    block = InputBlock(channels).eval()
    nn.init.zeros_(block.convolution.weight)
    nn.init.zeros_(block.convolution.bias)
    image = torch.rand(1, channels, 3, 4, 5)
    with torch.no_grad():
        found = block(image)
    for feature in range(16):
        torch.testing.assert_close(found[0, feature], image[0, feature % channels])


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_output_has_the_grid_of_the_input(channels):
    network = build_network('VNetLight', {'in_channels': channels, 'out_channels': 4}).eval()
    with torch.no_grad():
        assert network(torch.rand(1, channels, 8, 16, 24)).shape == (1, 4, 8, 16, 24)
    assert network.divisor == 8


def test_v_net_has_one_level_more_than_its_light_form():
    with torch.device('meta'):
        network = VNet(3, 4)
        assert network(torch.rand(1, 3, 16, 32, 48)).shape == (1, 4, 16, 32, 48)
    assert network.divisor == 16


def test_every_parameter_gets_a_gradient(unused_parameters):
    torch.manual_seed(0)
    assert unused_parameters(VNetLight(3, 4), torch.randn(1, 3, 8, 8, 8)) == []


def test_batch_statistics_and_dropout_act_in_training_only():
    torch.manual_seed(0)
    network, image = VNetLight(1, 2), torch.randn(1, 1, 16, 8, 8)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))


def test_corrected_dropout_leaves_the_upper_levels_alone():
    rates = {
        published: [
            getattr(block.skip_dropout, 'p', 0.0)
            for block in VNetLight(1, 2, dropout=0.3, published_dropout=published).up
        ]
        for published in (False, True)
    }
    assert rates == {False: [0.3, 0.0, 0.0], True: [0.5, 0.5, 0.5]}
