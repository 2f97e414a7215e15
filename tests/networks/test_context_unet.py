# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bids_app.networks import ContextUNet3D, build_network
from bids_app.networks.pif import parameter_count


@pytest.mark.parametrize(
    ('channels', 'classes', 'base', 'count'),
    [
        (1, 4, 8, 1_781_528),
        (2, 4, 8, 1_781_744),
        (3, 4, 8, 1_781_960),
        (2, 4, 16, 7_125_216),
        (2, 9, 8, 1_782_304),
    ],
)
def test_parameter_counts_are_the_published_ones(channels, classes, base, count):
    assert parameter_count(ContextUNet3D(channels, classes, base)) == count


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_output_has_the_grid_of_the_input(channels):
    network = build_network(
        'ContextUNet3D', {'in_channels': channels, 'out_channels': 4, 'base': 2}
    )
    assert network(torch.rand(2, channels, 16, 32, 48)).shape == (2, 4, 16, 32, 48)
    assert network.divisor == 16


@pytest.mark.parametrize('size', [(16, 16, 16), (32, 32, 40)])
def test_wrong_sizes_are_refused(size):
    with pytest.raises(ValueError, match='multiples of 16'):
        ContextUNet3D(1, 4, base=2)(torch.rand(1, 1, *size))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    network = ContextUNet3D(2, 3, base=4, dropout=0.0)
    network(torch.randn(1, 2, 32, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    network, image = ContextUNet3D(1, 2, base=2), torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))


def test_scale_and_offset_of_one_level_do_not_matter_to_the_normalised_levels():
    """The second level sees a normalised first one: its features do not change with scale."""
    torch.manual_seed(0)
    network, image = ContextUNet3D(1, 2, base=2).eval(), torch.randn(1, 1, 32, 32, 32)
    seen = []
    network.down[0].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        network(image)
        network(3 * image)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=1e-4)


def test_forward_is_the_published_one():
    """The same weights in a forward pass that is written out level by level."""
    torch.manual_seed(0)
    network, image = ContextUNet3D(2, 3, base=2).eval(), torch.randn(1, 2, 32, 32, 48)

    def lrelu(x):
        return functional.leaky_relu(x, 0.01)

    def norm(x):
        return lrelu(functional.instance_norm(x))

    def conv(x, layer, stride=1):
        return functional.conv3d(
            x, layer.weight, stride=stride, padding=layer.weight.shape[-1] // 2
        )

    def double(x):
        return functional.interpolate(x, scale_factor=2, mode='nearest')

    with torch.no_grad():
        first = conv(image, network.stem.first)
        x = conv(lrelu(first), network.stem.body[1])
        x = conv(lrelu(x), network.stem.body[4]) + first
        kept = [lrelu(x)]
        x = norm(x)
        for level in range(4):
            x = conv(x, network.down[level], stride=2)
            shared = network.context[level].unit[2]
            x = conv(norm(conv(norm(x), shared)), shared) + x
            if level < 3:
                x = norm(x)
                kept.append(x)
        x = norm(conv(double(norm(x)), network.up[0][2]))
        x = norm(conv(x, network.bottom[0]))
        maps = []
        for level in range(3):
            x = norm(conv(torch.cat([x, kept[3 - level]], 1), network.fuse[level][0]))
            maps.append(x)
            x = conv(x, network.narrow[level])
            x = norm(conv(double(norm(x)), network.up[level + 1][2]))
        x = norm(conv(torch.cat([x, kept[0]], 1), network.fuse[3][0]))
        deep = double(conv(maps[1], network.classify[0])) + conv(maps[2], network.classify[1])
        wanted = conv(x, network.head) + double(deep)
        torch.testing.assert_close(network(image), wanted, rtol=1e-4, atol=1e-5)
