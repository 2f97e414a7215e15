# SPDX-License-Identifier: Apache-2.0
"""What all networks for several contrasts have in common."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def unused_parameters() -> Callable[[nn.Module, torch.Tensor], list[str]]:
    """Names of the parameters to which no gradient comes, dropout aside."""

    def find(network: nn.Module, image: torch.Tensor) -> list[str]:
        for module in network.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout3d)):
                module.p = 0.0
        # In evaluation mode batch normalisation is a scaling, and biases before it count.
        network.eval()(image).square().mean().backward()
        return [
            name
            for name, value in network.named_parameters()
            if value.grad is None or not bool(value.grad.abs().max() > 0)
        ]

    return find
