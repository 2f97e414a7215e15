# SPDX-License-Identifier: Apache-2.0
"""V-Net and its lighter form: residual encoder and decoder with 5x5x5 convolutions.

Milletari et al., "V-Net: fully convolutional neural networks for volumetric medical image
segmentation" (3DV 2016), with the widths and the batch normalisation of MedicalZooPytorch (2019).
"""

from __future__ import annotations

import torch
from torch import nn

STEM = 16  # channels at full resolution


class ConvUnit(nn.Sequential):
    """A convolution, batch normalisation and PReLU.

    The convolution has a bias, as published, although the normalisation takes it away again.
    """

    def __init__(self, convolution: nn.Module) -> None:
        channels = convolution.out_channels
        super().__init__(convolution, nn.BatchNorm3d(channels), nn.PReLU(channels))


def _row(channels: int, convolutions: int) -> nn.Sequential:
    """Some 5x5x5 convolutions that keep the width."""
    return nn.Sequential(
        *(ConvUnit(nn.Conv3d(channels, channels, 5, padding=2)) for _ in range(convolutions))
    )


class InputBlock(nn.Module):
    """The first convolution; the image, repeated along the channels, is added to what it finds.

    Every feature gets one of the contrasts, in turn. The published code repeats the image
    ``16 // in_channels`` times, which fits only where ``in_channels`` divides 16.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(in_channels, STEM, 5, padding=2)
        self.norm = nn.BatchNorm3d(STEM)
        self.active = nn.PReLU(STEM)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        times = -(-STEM // image.shape[1])
        repeated = image.repeat(1, times, 1, 1, 1)[:, :STEM]
        return self.active(self.norm(self.convolution(image)) + repeated)


class DownBlock(nn.Module):
    """Halve the grid and double the width, then a row of convolutions with a shortcut."""

    def __init__(self, in_channels: int, convolutions: int, dropout: float) -> None:
        super().__init__()
        channels = 2 * in_channels
        self.down = ConvUnit(nn.Conv3d(in_channels, channels, 2, stride=2))
        self.dropout = nn.Dropout3d(dropout) if dropout else nn.Identity()
        self.row = _row(channels, convolutions)
        self.active = nn.PReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        return self.active(self.row(self.dropout(x)) + x)


class UpBlock(nn.Module):
    """Double the grid, join the features of the encoder, then a row with a shortcut."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        convolutions: int,
        dropout: float,
        skip_dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(dropout) if dropout else nn.Identity()
        self.skip_dropout = nn.Dropout3d(skip_dropout) if skip_dropout else nn.Identity()
        self.up = ConvUnit(nn.ConvTranspose3d(in_channels, channels // 2, 2, stride=2))
        self.row = _row(channels, convolutions)
        self.active = nn.PReLU(channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.up(self.dropout(x)), self.skip_dropout(skip)], dim=1)
        return self.active(self.row(x) + x)


class VNet(nn.Module):
    """V-Net with five levels of 16 to 256 channels.

    Parameters
    ----------
    in_channels : int
        Contrasts.
    out_channels : int
        Classes.
    dropout : float
        Share of channels that the two lowest levels drop in training, of what goes on and of what
        goes across.
    published_dropout : bool
        Whether the two upper levels, which have no dropout otherwise, drop half of the channels
        that go across: what the published code does.

    Notes
    -----
    The network takes ``(batch, in_channels, x, y, z)`` and gives logits
    ``(batch, out_channels, x, y, z)``; x, y and z must be multiples of :attr:`divisor`.
    """

    LEVELS = ((1, False), (2, False), (3, True), (2, True))
    """Convolutions of each level of the encoder below the first, and whether it has dropout."""
    UP = ((256, 2, True), (128, 2, True), (64, 1, False), (32, 1, False))
    """Channels and convolutions of each level of the decoder, and whether it has dropout."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.5,
        published_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.divisor = 2 ** len(self.LEVELS)
        self.stem = InputBlock(in_channels)
        self.down = nn.ModuleList()
        width = STEM
        for convolutions, dropped in self.LEVELS:
            self.down.append(DownBlock(width, convolutions, dropout if dropped else 0.0))
            width *= 2
        self.up = nn.ModuleList()
        for channels, convolutions, dropped in self.UP:
            across = 0.5 if published_dropout else dropout if dropped else 0.0
            self.up.append(
                UpBlock(width, channels, convolutions, dropout if dropped else 0.0, across)
            )
            width = channels
        self.head = nn.Sequential(
            ConvUnit(nn.Conv3d(width, out_channels, 5, padding=2)),
            nn.Conv3d(out_channels, out_channels, 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of an image; see the class for shapes."""
        found = [self.stem(image)]
        for down in self.down:
            found.append(down(found[-1]))
        x = found.pop()
        for up in self.up:
            x = up(x, found.pop())
        return self.head(x)


class VNetLight(VNet):
    """V-Net without its lowest level, a quarter of the parameters; arguments as of V-Net."""

    LEVELS = VNet.LEVELS[:-1]
    UP = VNet.UP[1:]
