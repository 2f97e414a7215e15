# SPDX-License-Identifier: Apache-2.0
"""The residual "3D-UNet" of MedicalZoo: context modules, and class maps of three levels added up.

The network goes back to Isensee et al., "Brain tumor segmentation and radiomics survival
prediction" (BrainLes 2017); its form, with shared weights in the context modules, is that of
MedicalZooPytorch (2019). Its normalisations have no parameters, so most weights are convolutions.
"""

from __future__ import annotations

import torch
from torch import nn

LEVELS = 5


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _project(in_channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, 1, bias=False)


def _norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.InstanceNorm3d(channels), nn.LeakyReLU(0.01, inplace=True))


class ContextModule(nn.Module):
    """Normalise, activate and convolve twice, with a shortcut around both.

    Both times the convolution is the same: the module has the weights of one.

    Parameters
    ----------
    channels : int
        Width.
    dropout : float
        Share of channels dropped between the two in training.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        # Not in place: the shortcut needs what comes in.
        self.unit = nn.Sequential(
            nn.InstanceNorm3d(channels), nn.LeakyReLU(0.01), _conv(channels, channels)
        )
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(self.dropout(self.unit(x))) + x


class Stem(nn.Module):
    """The first level: three convolutions of their own, a shortcut around the last two."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.first = _conv(in_channels, out_channels)
        self.body = nn.Sequential(
            nn.LeakyReLU(0.01),
            _conv(out_channels, out_channels),
            nn.Dropout3d(dropout),
            nn.LeakyReLU(0.01),
            _conv(out_channels, out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.body(x) + x


class UpModule(nn.Sequential):
    """Double the grid by repeating voxels, then convolve; normalised before and after."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            _norm_act(in_channels),
            nn.Upsample(scale_factor=2, mode='nearest'),
            _conv(in_channels, out_channels),
            _norm_act(out_channels),
        )


class ContextUNet3D(nn.Module):
    """Residual U-Net of five levels with class maps at three of them.

    Parameters
    ----------
    in_channels : int
        Contrasts.
    out_channels : int
        Classes.
    base : int
        Channels at full resolution; each of the five levels has twice as many as the one above.
    dropout : float
        Share of channels that each context module drops in training. The published 0.6 is much
        for eight channels; short trainings do better with less.

    Notes
    -----
    The network takes ``(batch, in_channels, x, y, z)`` and gives logits
    ``(batch, out_channels, x, y, z)``. x, y and z must be multiples of :attr:`divisor` (16), and
    one of them at least 32: at the lowest level instance normalisation needs two voxels.

    The class maps of the decoder at a quarter and at half resolution are doubled by repetition
    and added to the map at full resolution. As published, the level-1 features that go across are
    taken before their instance normalisation, unlike those of the other levels.

    Instance normalisation takes its mean and SD over the volume or tile that it is given, so
    tiles do not give exactly what the whole volume gives: predict with tiles of the size of the
    training samples or larger.
    """

    def __init__(
        self, in_channels: int, out_channels: int, base: int = 8, dropout: float = 0.6
    ) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(LEVELS)]
        self.divisor = 2 ** (LEVELS - 1)
        self.stem = Stem(in_channels, base, dropout)
        self.active = nn.LeakyReLU(0.01)
        self.stem_norm = nn.InstanceNorm3d(base)
        self.down = nn.ModuleList(
            _conv(a, b, stride=2) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.context = nn.ModuleList(ContextModule(n, dropout) for n in widths[1:])
        # The lowest level is normalised by the module that brings it up.
        self.context_norm = nn.ModuleList(_norm_act(n) for n in widths[1:-1])
        self.up = nn.ModuleList(UpModule(2 * n, n) for n in reversed(widths[:-1]))
        self.bottom = nn.Sequential(_project(widths[3], widths[3]), _norm_act(widths[3]))
        self.fuse = nn.ModuleList(
            nn.Sequential(_conv(2 * n, 2 * n), _norm_act(2 * n)) for n in reversed(widths[:-1])
        )
        self.narrow = nn.ModuleList(_project(2 * n, n) for n in reversed(widths[1:-1]))
        self.classify = nn.ModuleList(_project(2 * n, out_channels) for n in (4 * base, 2 * base))
        self.head = _project(2 * base, out_channels)
        self.repeat = nn.Upsample(scale_factor=2, mode='nearest')

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of an image; see the class for shapes.

        Raises
        ------
        ValueError
            If a size is no multiple of 16, or all are 16.
        """
        size = tuple(image.shape[2:])
        if any(n % self.divisor for n in size) or max(size) < 2 * self.divisor:
            raise ValueError(
                f'an image of {size} voxels: multiples of {self.divisor} are needed, one of them '
                f'at least {2 * self.divisor}'
            )
        x = self.stem(image)
        across = [self.active(x)]
        x = self.active(self.stem_norm(x))
        for level, (down, context) in enumerate(zip(self.down, self.context, strict=True)):
            x = context(down(x))
            if level < len(self.context_norm):
                x = self.context_norm[level](x)
                across.append(x)
        x = self.bottom(self.up[0](x))
        maps = []
        for level, fuse in enumerate(self.fuse):
            x = fuse(torch.cat([x, across.pop()], dim=1))
            if level == len(self.fuse) - 1:
                break
            if level > 0:
                maps.append(self.classify[level - 1](x))
            x = self.up[level + 1](self.narrow[level](x))
        quarter, half = maps
        return self.head(x) + self.repeat(self.repeat(quarter) + half)
