# SPDX-License-Identifier: Apache-2.0
"""Densely connected networks without pooling: one stream, late fusion and early fusion.

They go back to Dolz et al., "HyperDense-Net: a hyper-densely connected CNN for multi-modal image
segmentation" (IEEE TMI 2019), in the form that MedicalZooPytorch (2019) gives them: padded
convolutions, so that the output has the grid of the input. All features stay at full resolution,
which takes much memory: tiles of some 64 voxels are the way to run them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

GROWTH = (25, 25, 25, 50, 50, 50, 75, 75, 75)
"""Features that each dense layer adds."""
TAIL_GROWTH = (25, 25, 50, 50, 50, 75, 75, 75)
"""The same after early fusion, where a layer for each contrast stands before."""
FEATURES = 150  # of the last hidden layer


class DenseLayer(nn.Module):
    """Normalise, activate, convolve, drop; the result is joined to the input.

    Parameters
    ----------
    in_channels, growth : int
        Width of the input, and features that are added.
    dropout : float
        Share of the new features that are dropped in training.
    active : bool
        Whether ReLU follows the normalisation.
    """

    def __init__(self, in_channels: int, growth: int, dropout: float, active: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm3d(in_channels),
            nn.ReLU(inplace=True) if active else nn.Identity(),
            nn.Conv3d(in_channels, growth, 3, padding=1, bias=False),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def _dense_block(
    in_channels: int, growths: Sequence[int], dropout: float, first_active: bool
) -> nn.Sequential:
    layers, width = [], in_channels
    for number, growth in enumerate(growths):
        layers.append(DenseLayer(width, growth, dropout, active=first_active or number > 0))
        width += growth
    return nn.Sequential(*layers)


def _hidden(in_channels: int, dropout: float) -> nn.Sequential:
    """Three 1x1x1 convolutions down to 150 features, without activations between them."""
    widths = (in_channels, 400, 200, FEATURES)
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Conv3d(a, b, 1, bias=False), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class DenseNet3D(nn.Module):
    """Dense network of one stream that takes all contrasts as channels.

    Parameters
    ----------
    in_channels : int
        Contrasts.
    out_channels : int
        Classes.
    dropout : float
        Share of new features that each dense layer drops in training.
    head_dropout : float
        The same for the three hidden layers of the head. The published 0.5 slows the learning
        down; short trainings do better with less.
    rectify_input : bool
        Whether ReLU acts on the normalised image before the first convolution: what the published
        code does, and what takes away all that is darker than the mean of a z-scored image.

    Notes
    -----
    The network takes ``(batch, in_channels, x, y, z)`` of any size and gives logits
    ``(batch, out_channels, x, y, z)``. It sees 19 voxels along each axis.
    """

    divisor = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.1,
        head_dropout: float = 0.5,
        rectify_input: bool = False,
    ) -> None:
        super().__init__()
        self.dense = _dense_block(in_channels, GROWTH, dropout, rectify_input)
        self.hidden = _hidden(in_channels + sum(GROWTH), head_dropout)
        self.classify = nn.Conv3d(FEATURES, out_channels, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of an image; see the class for shapes."""
        return self.classify(self.hidden(self.dense(image)))


class LateFusionDenseNet3D(nn.Module):
    """A dense network for each contrast; their last features are classified together.

    Parameters are those of :class:`DenseNet3D`; the published dropout inside the streams is 0.

    Notes
    -----
    The published code fails with two contrasts: it gives the streams the short block of early
    fusion and a head of another width. Here all streams are alike. It also gives each stream a
    classifier that nothing uses; here there is none.
    """

    divisor = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        head_dropout: float = 0.5,
        rectify_input: bool = False,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(
            nn.Sequential(
                _dense_block(1, GROWTH, dropout, rectify_input),
                _hidden(1 + sum(GROWTH), head_dropout),
            )
            for _ in range(in_channels)
        )
        self.classify = nn.Conv3d(in_channels * FEATURES, out_channels, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of an image; see :class:`DenseNet3D` for shapes."""
        channels = image.split(1, dim=1)
        found = [stream(x) for stream, x in zip(self.streams, channels, strict=True)]
        return self.classify(torch.cat(found, dim=1))


class EarlyFusionDenseNet3D(nn.Module):
    """A dense layer for each contrast, then one dense network for all.

    Parameters are those of :class:`DenseNet3D`.

    Notes
    -----
    The published code sends both of two contrasts through the layer of the first and leaves that
    of the second idle. Here each contrast has its own.
    """

    divisor = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.1,
        head_dropout: float = 0.5,
        rectify_input: bool = False,
    ) -> None:
        super().__init__()
        self.early = nn.ModuleList(
            DenseLayer(1, GROWTH[0], dropout, active=rectify_input) for _ in range(in_channels)
        )
        width = in_channels * (1 + GROWTH[0])
        self.dense = _dense_block(width, TAIL_GROWTH, dropout, first_active=True)
        self.hidden = _hidden(width + sum(TAIL_GROWTH), head_dropout)
        self.classify = nn.Conv3d(FEATURES, out_channels, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of an image; see :class:`DenseNet3D` for shapes."""
        channels = image.split(1, dim=1)
        found = [layer(x) for layer, x in zip(self.early, channels, strict=True)]
        return self.classify(self.hidden(self.dense(torch.cat(found, dim=1))))
