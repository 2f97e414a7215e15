# SPDX-License-Identifier: Apache-2.0
"""The networks of DeepAnat: a U-Net that makes a T1w of diffusion images, and its critic.

Li et al., "DeepAnat: synthesizing T1-weighted images from diffusion MRI", Medical Image Analysis
86:102744, 2023. The adversarial form is that of HDnGAN: a 3D generator and a discriminator that
looks at single planes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

LEVELS = 5


class _DoubleConv(nn.Sequential):
    """Two 3x3x3 convolutions, each with a ReLU and by option batch normalisation before it."""

    def __init__(self, in_channels: int, out_channels: int, batch_norm: bool) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers.append(nn.Conv3d(channels, out_channels, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm3d(out_channels))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class DeepAnatUNet(nn.Module):
    """The generator: a plain 3D U-Net of five levels that predicts the T1w itself.

    Parameters
    ----------
    in_channels : int
        Diffusion images (:data:`bids_app.diffusion.channels.CHANNELS`).
    out_channels : int
        Images to predict.
    base : int
        Channels at full resolution, twice as many at each lower level. Published: 48.
    batch_norm : bool
        Batch normalisation after every convolution but the last; not used in the publication.

    Notes
    -----
    The network takes ``(batch, in_channels, x, y, z)`` and gives ``(batch, out_channels, x, y,
    z)``: T1w intensities as z-scores in the brain mask, without a final activation. x, y and z
    must be multiples of :attr:`divisor` (16). Upsampling repeats voxels; weights start as in He
    et al. (ICCV 2015). With 11 channels and base 48 it has the published 52,958,977 parameters.
    """

    def __init__(
        self,
        in_channels: int = 11,
        out_channels: int = 1,
        base: int = 48,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(LEVELS)]
        self.divisor = 2 ** (LEVELS - 1)
        self.encoder = nn.ModuleList(
            _DoubleConv(a, b, batch_norm)
            for a, b in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool3d(2)
        self.up = nn.Upsample(scale_factor=2, mode='nearest')
        self.decoder = nn.ModuleList(
            _DoubleConv(3 * n, n, batch_norm) for n in reversed(widths[:-1])
        )
        self.head = nn.Conv3d(base, out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
                nn.init.zeros_(module.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the predicted image; see the class for shapes.

        Raises
        ------
        ValueError
            If a size is no multiple of 16.
        """
        if any(n % self.divisor for n in image.shape[2:]):
            raise ValueError(
                f'an image of {tuple(image.shape[2:])} voxels: multiples of {self.divisor} are '
                'needed'
            )
        across = []
        x = image
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            across.append(x)
        x = across.pop()
        for block in self.decoder:
            x = block(torch.cat([across.pop(), self.up(x)], dim=1))
        return self.head(x)


class DeepAnatDiscriminator(nn.Module):
    """The critic of the adversarial training: says of planes whether they are from a real T1w.

    Parameters
    ----------
    base : int
        Channels of the first convolution. Published: 64.
    size : int
        Edge of the planes, voxels; a multiple of 16.
    spectral : bool
        Spectral normalisation (Miyato et al., ICLR 2018, one power iteration) of every layer, as
        the publication says; its code has none.

    Notes
    -----
    The network takes ``(planes, 1, size, size)`` and gives logits ``(planes, 1)``. (The published
    one ends in a sigmoid, which binary cross-entropy of logits has inside.) It has the published
    13,076,673 trainable parameters. Convolutions have no bias, weights start as N(0, 0.02).
    """

    def __init__(self, base: int = 64, size: int = 64, spectral: bool = True) -> None:
        super().__init__()
        if size % 16:
            raise ValueError(f'planes of {size} voxels: a multiple of 16 is needed')

        def maybe(layer: nn.Module) -> nn.Module:
            nn.init.normal_(layer.weight, std=0.02)
            return spectral_norm(layer) if spectral else layer

        layers: list[nn.Module] = []
        channels = 1
        for width in (base, 2 * base, 4 * base, 8 * base):
            for stride in (1, 2):
                conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
                layers.append(maybe(conv))
                if len(layers) > 1:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.LeakyReLU(0.2, inplace=True))
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            maybe(nn.Linear(channels * (size // 16) ** 2, 1024)),
            nn.LeakyReLU(0.2, inplace=True),
            maybe(nn.Linear(1024, 1)),
        )

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Return a logit for every plane, above 0 for real; see the class for shapes."""
        return self.head(self.features(planes))
