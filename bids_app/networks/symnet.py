# SPDX-License-Identifier: Apache-2.0
"""The registration network: a pair of stationary velocity fields from two heads.

The scheme is that of SYMNet (Mok & Chung, CVPR 2020): from two images the network predicts two
velocities, and each image moves half of the way. As in deepmriprep the images are maps of grey
and white matter. The velocities are smooth, so the encoder goes down to a quarter of the
resolution at once and the decoder ends there: nearly all of the computation of a U-Net at full
resolution is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from bids_app.networks.unet import ConvUnit, ResidualBlock


class SymNet(nn.Module):
    """Predict a pair of velocity fields at a quarter of the resolution of the images.

    Parameters
    ----------
    in_channels : int
        Channels of both images together.
    widths : sequence of int
        Channels at a half, a quarter, an eighth, ... of the resolution.
    reach : float
        Largest velocity component, in voxels of the velocity grid.

    Notes
    -----
    The input is ``(batch, in_channels, x, y, z)``, the scan's channels before the template's; x,
    y and z must be multiples of :attr:`divisor`. The output is ``(batch, 6, x/4, y/4, z/4)``: the
    three components of the velocity of the scan, then those of the template, in voxels of that
    grid (:mod:`bids_app.registration.velocity`).
    """

    def __init__(
        self, in_channels: int = 4, widths: Sequence[int] = (16, 32, 64, 96), reach: float = 3.0
    ) -> None:
        super().__init__()
        if len(widths) < 3:
            raise ValueError('SymNet needs at least three levels')
        self.divisor = 2 ** len(widths)
        self.reach = reach
        # No normalisation here: how much tissue a voxel holds is what the network is to compare.
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, widths[0], 3, stride=2, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(widths[0], widths[1], 3, stride=2, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
        )
        self.first = ResidualBlock(widths[1], widths[1], 2)
        self.down = nn.ModuleList()
        self.encoder = nn.ModuleList()
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for a, b in zip(widths[1:-1], widths[2:], strict=True):
            self.down.append(ConvUnit(a, b, stride=2))
            self.encoder.append(ResidualBlock(b, b, 2))
            self.up.append(nn.ConvTranspose3d(b, a, 2, stride=2))
            self.decoder.append(ResidualBlock(2 * a, a, 2))
        self.head = nn.Conv3d(widths[1], 6, 3, padding=1)
        # The identity is a good first guess: the images are in affine alignment.
        nn.init.normal_(self.head.weight, std=1e-4)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the velocities; see the class for shapes."""
        if any(n % self.divisor for n in x.shape[2:]):
            raise ValueError(f'every side must be a multiple of {self.divisor}')
        skips = [self.first(self.stem(x))]
        for down, encoder in zip(self.down, self.encoder, strict=True):
            skips.append(encoder(down(skips[-1])))
        x = skips.pop()
        for up, decoder in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = decoder(torch.cat([skips.pop(), up(x)], dim=1))
        return self.reach * functional.softsign(self.head(x))
