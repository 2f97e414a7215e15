# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bids_app.networks import (
    DenseNet3D,
    EarlyFusionDenseNet3D,
    HyperDenseNet3D,
    LateFusionDenseNet3D,
    build_network,
)
from bids_app.networks.densenet import DenseLayer
from bids_app.networks.pif import parameter_count

FAMILY = (DenseNet3D, EarlyFusionDenseNet3D, HyperDenseNet3D, LateFusionDenseNet3D)


@pytest.mark.parametrize(
    ('network', 'channels', 'classes', 'count'),
    [
        (DenseNet3D, 1, 4, 2_685_243),
        (DenseNet3D, 2, 4, 2_697_811),
        (DenseNet3D, 3, 4, 2_710_379),
        (DenseNet3D, 2, 9, 2_698_561),
        # Streams of nine layers, without the classifiers inside them that nothing uses: those
        # are 600 parameters each, which the published count of three streams (8,057,529) holds.
        (LateFusionDenseNet3D, 1, 4, 2_685_243),
        (LateFusionDenseNet3D, 2, 4, 5_370_486),
        (LateFusionDenseNet3D, 3, 4, 8_057_529 - 3 * 600),
        # The published code has 2,995,086 parameters and uses 2,994,409 of them.
        (EarlyFusionDenseNet3D, 1, 4, 2_685_243),
        (EarlyFusionDenseNet3D, 2, 4, 2_995_086),
        (EarlyFusionDenseNet3D, 3, 4, 3_304_929),
        (EarlyFusionDenseNet3D, 2, 9, 2_995_836),
        (EarlyFusionDenseNet3D, 3, 9, 3_305_679),
        (HyperDenseNet3D, 2, 4, 10_361_922),
        (HyperDenseNet3D, 3, 4, 23_173_431),
    ],
)
def test_parameter_counts(network, channels, classes, count):
    with torch.device('meta'):
        assert parameter_count(network(channels, classes)) == count


@pytest.mark.parametrize('network', FAMILY)
@pytest.mark.parametrize('channels', [1, 2, 3])
def test_output_has_the_grid_of_the_input_and_no_parameter_is_idle(
    network, channels, unused_parameters
):
    torch.manual_seed(0)
    built = build_network(network.__name__, {'in_channels': channels, 'out_channels': 4})
    image = torch.randn(1, channels, 3, 4, 5)
    with torch.no_grad():
        assert built.eval()(image).shape == (1, 4, 3, 4, 5)
    assert unused_parameters(built, image) == []


@pytest.mark.parametrize('network', FAMILY)
def test_receptive_field_has_19_voxels(network):
    torch.manual_seed(0)
    built = network(2, 2).eval()
    image = torch.randn(1, 2, 23, 1, 1, requires_grad=True)
    built(image)[0, :, 11].sum().backward()
    reached = image.grad[0].abs().amax(dim=(0, 2, 3)) > 0
    assert reached.nonzero().flatten().tolist() == list(range(2, 21))


@pytest.mark.parametrize('network', FAMILY)
def test_shifted_image_gives_the_shifted_output(network):
    torch.manual_seed(0)
    built = network(1, 2).eval()
    image = torch.zeros(1, 1, 30, 3, 3)
    image[..., 11:17, :, :] = torch.randn(6, 3, 3)
    with torch.no_grad():
        one, two = built(image), built(image.roll(2, dims=2))
    torch.testing.assert_close(one[:, :, 10:18], two[:, :, 12:20], rtol=1e-3, atol=1e-5)


def test_negative_intensities_reach_the_first_convolution():
    torch.manual_seed(0)
    image = torch.randn(1, 1, 4, 4, 4)
    kept, cut = (DenseLayer(1, 3, 0.0, active=active).eval() for active in (False, True))
    cut.load_state_dict(kept.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(kept.body(-image), -kept.body(image))
        torch.testing.assert_close(cut.body(image), kept.body(image.clamp_min(0)))
    for network in (DenseNet3D, EarlyFusionDenseNet3D, LateFusionDenseNet3D):
        corrected = sum(isinstance(m, torch.nn.ReLU) for m in network(2, 2).modules())
        published = network(2, 2, rectify_input=True)
        layers = sum(isinstance(m, DenseLayer) for m in published.modules())
        assert sum(isinstance(m, torch.nn.ReLU) for m in published.modules()) == layers
        assert layers - corrected == (1 if network is DenseNet3D else 2)


@pytest.mark.parametrize('network', [EarlyFusionDenseNet3D, LateFusionDenseNet3D])
def test_each_contrast_has_its_own_weights(network):
    torch.manual_seed(0)
    built = network(2, 2).eval()
    first, second = built.early if network is EarlyFusionDenseNet3D else built.streams
    one, two = (next(part.parameters()).data_ptr() for part in (first, second))
    assert one != two
    image = torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        before = built(image)
        for value in second.parameters():
            value.mul_(2)
        assert not torch.allclose(before, built(image))


def test_hyper_dense_paths_are_alike_up_to_their_order():
    """Swapping contrasts, paths and the halves that the head sees changes nothing."""
    torch.manual_seed(0)
    network, image = HyperDenseNet3D(2, 3).eval(), torch.randn(1, 2, 3, 3, 3)
    with torch.no_grad():
        before = network(image)
        network.paths = torch.nn.ModuleList(reversed(network.paths))
        weight = network.head[0].weight
        weight.copy_(torch.cat(weight.chunk(2, dim=1)[::-1], dim=1))
        torch.testing.assert_close(network(image.flip(1)), before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('network', [DenseNet3D, EarlyFusionDenseNet3D, LateFusionDenseNet3D])
def test_dropout_acts_in_training_only(network):
    torch.manual_seed(0)
    built, image = network(2, 2, dropout=0.1), torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        assert not torch.equal(built(image), built(image))
        built.eval()
        assert torch.equal(built(image), built(image))
