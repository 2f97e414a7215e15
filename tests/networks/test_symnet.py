# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bids_app.networks import build_network


def test_shapes_and_reach():
    torch.manual_seed(0)
    network = build_network('SymNet', {'widths': [4, 8, 12], 'reach': 2.0})
    found = network(torch.rand(1, 4, 16, 24, 8)).detach()
    assert found.shape == (1, 6, 4, 6, 2)
    assert float(found.abs().max()) < 0.05  # it starts at the identity
    network.head.bias.data.fill_(1e6)
    assert float(network(torch.rand(1, 4, 16, 24, 8)).max()) == pytest.approx(2.0, abs=1e-3)


def test_parameters_of_the_shipped_size():
    network = build_network('SymNet', {})
    assert sum(p.numel() for p in network.parameters()) == 1_508_182


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match='multiple of 8'):
        build_network('SymNet', {'widths': [4, 8, 12]})(torch.rand(1, 4, 12, 16, 16))
    with pytest.raises(ValueError, match='three levels'):
        build_network('SymNet', {'widths': [4, 8]})
