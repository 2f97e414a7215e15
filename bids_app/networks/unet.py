# SPDX-License-Identifier: Apache-2.0
"""The residual 3D U-Net of the default model.

The layout is the residual U-Net of He et al. (identity mappings in residual networks, 2016) and
Çiçek et al. (3D U-Net, MICCAI 2016), with two choices for speed on a CPU: the full-resolution
level is thin (one convolution each way), because it costs eight times as much as the next, and
decoder features are added by a 1x1x1 projection instead of a second wide convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class ConvUnit(nn.Sequential):
    """A 3x3x3 convolution, instance normalisation and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class ResidualBlock(nn.Module):
    """Some :class:`ConvUnit` in a row with a shortcut around them.

    Parameters
    ----------
    in_channels, out_channels : int
        Width before and after; where they differ the shortcut is a 1x1x1 convolution.
    convolutions : int
        How many convolutions stand in the row.
    """

    def __init__(self, in_channels: int, out_channels: int, convolutions: int) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * convolutions
        self.body = nn.Sequential(
            *(ConvUnit(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv3d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


class ResidualUNet3D(nn.Module):
    """Residual 3D U-Net with a thin full-resolution level.

    Parameters
    ----------
    in_channels : int
        Channels of the input.
    out_channels : int
        Channels of the output (logits).
    widths : sequence of int
        Channels per level; each level halves the grid.
    convolutions : int
        Convolutions per block from the second level on; the first level has one.
    context_channels : int
        Channels of a second input that joins at the second level, on a grid of half the size:
        what a coarser network found. 0 for none.

    Notes
    -----
    Input and output are ``(batch, channel, x, y, z)``; x, y and z must be multiples of
    :attr:`divisor`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (16, 32, 64, 96, 128),
        convolutions: int = 2,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError('a U-Net needs at least two levels')
        self.divisor = 2 ** (len(widths) - 1)
        self.stem = ConvUnit(in_channels, widths[0])
        self.down = nn.ModuleList()
        self.encoder = nn.ModuleList()
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            self.down.append(ConvUnit(a, b, stride=2))
            extra = context_channels if level == 0 else 0
            self.encoder.append(ResidualBlock(b + extra, b, convolutions))
            self.up.append(nn.ConvTranspose3d(b, a, 2, stride=2))
            self.decoder.append(ResidualBlock(2 * a, a, 1 if level == 0 else convolutions))
        self.head = nn.Conv3d(widths[0], out_channels, 1)
        self.context_channels = context_channels

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of ``x``; see the class for shapes."""
        if (context is None) != (self.context_channels == 0):
            raise ValueError(f'this network takes {self.context_channels} context channels')
        skips = [self.stem(x)]
        for level, (down, encoder) in enumerate(zip(self.down, self.encoder, strict=True)):
            x = down(skips[-1])
            if level == 0 and context is not None:
                x = torch.cat([x, context], dim=1)
            skips.append(encoder(x))
        x = skips.pop()
        for up, decoder in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = decoder(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)
