# SPDX-License-Identifier: Apache-2.0
"""HyperDenseNet: a path for each contrast, every layer connected to all earlier layers of all.

Dolz et al., "HyperDense-Net: a hyper-densely connected CNN for multi-modal image segmentation"
(IEEE TMI 2019).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from bids_app.networks.densenet import GROWTH


def _crop(x: torch.Tensor) -> torch.Tensor:
    """Take the outermost voxels away, as a convolution without padding does."""
    return x[..., 1:-1, 1:-1, 1:-1]


def _layer(in_channels: int, out_channels: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.BatchNorm3d(in_channels)] if norm else []
    return nn.Sequential(*layers, nn.PReLU(), nn.Conv3d(in_channels, out_channels, 3))


class HyperDenseNet3D(nn.Module):
    """Hyper-densely connected network.

    Parameters
    ----------
    in_channels : int
        Contrasts, a path for each.
    out_channels : int
        Classes.

    Notes
    -----
    The network takes ``(batch, in_channels, x, y, z)`` of any size and gives logits
    ``(batch, out_channels, x, y, z)``. Its nine convolutions have no padding: the image gets nine
    zeros on each side first (images are zero outside the brain), so that the output has its size.

    Each layer sees its own earlier inputs first, then the newest features of its own path and
    those of the others. There are no activations between the four 1x1x1 convolutions of the head,
    as published.
    """

    divisor = 1
    margin = len(GROWTH)
    """Voxels that the convolutions take away on each side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList()
        for _ in range(in_channels):
            layers, width = nn.ModuleList(), 1
            for number, growth in enumerate(GROWTH):
                layers.append(_layer(width, growth, norm=number > 0))
                # The first features replace the image; later ones are joined to what there is.
                width = in_channels * growth + (width if number else 0)
            self.paths.append(layers)
        self.head = nn.Sequential(
            nn.Conv3d(in_channels * width, 400, 1),
            nn.Conv3d(400, 200, 1),
            nn.Conv3d(200, 150, 1),
            nn.Conv3d(150, out_channels, 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of an image; see the class for shapes."""
        inputs = list(functional.pad(image, (self.margin,) * 6).split(1, dim=1))
        for number, layers in enumerate(zip(*self.paths, strict=True)):
            new = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
            for path, x in enumerate(inputs):
                joined = [new[path], *new[:path], *new[path + 1 :]]
                inputs[path] = torch.cat([_crop(x), *joined] if number else joined, dim=1)
        return self.head(torch.cat(inputs, dim=1))
