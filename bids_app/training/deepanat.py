# SPDX-License-Identifier: Apache-2.0
"""Training of the T1w synthesis on simulated diffusion data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bids_app.images.agreement import mean_ssim, peak_snr
from bids_app.training.deepanat_samples import Anatomy, DiffusionSample, DiffusionSampler
from bids_app.training.loop import Trainer, Validator


def masked_error(
    predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Mean absolute difference over the voxels of a mask.

    The published loss averages over all voxels of a block, zeros outside the brain included. That
    makes blocks with little brain count little; here every voxel of the brain of a block counts
    the same, and blocks with little brain are not drawn.
    """
    return (predicted - target).abs()[mask].mean()


class SynthesisTrainer(Trainer):
    """Trains the generator with the L1 loss; ``maps`` are lists of :class:`Anatomy`."""

    losses = ('l1',)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Convolutions of few channels are half as fast again in this order.
        self.network.to(memory_format=torch.channels_last_3d)

    def _make_sampler(self, anatomies: list[Anatomy], seed: int, late: bool) -> DiffusionSampler:
        stage = self.stage
        ranges = stage.late_ranges if late else stage.ranges
        return DiffusionSampler(anatomies, ranges, stage.shape, stage.spacing, stage.draws, seed)

    def _sampler(self, seed: int, late: bool) -> DiffusionSampler:
        return self._make_sampler(self.maps, seed, late)

    def _batch(self, drawn: list[DiffusionSample]) -> tuple[torch.Tensor, ...]:
        """Return channels, target and mask of some samples on the device."""
        channels = torch.stack([sample.channels for sample in drawn]).to(self.device)
        return (
            channels.contiguous(memory_format=torch.channels_last_3d),
            torch.stack([sample.target for sample in drawn]).to(self.device),
            torch.stack([sample.mask for sample in drawn]).to(self.device),
        )

    def _predict(self, network: nn.Module, channels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return network(channels).float()

    def _loss(self, drawn: list[Any]) -> tuple[torch.Tensor, dict[str, float]]:
        channels, target, mask = self._batch(drawn)
        return masked_error(self._predict(self.network, channels), target, mask), {}

    def _make_validator(self, maps: list[Anatomy], count: int = 24) -> Validator:
        sampler = self._make_sampler(maps, 12345, late=True)
        samples = [sampler.draw() for _ in range(count)]

        def validate(network: nn.Module) -> dict[str, float]:
            rows = []
            for sample in samples:
                channels, target, mask = self._batch([sample])
                with torch.inference_mode():
                    rows.append(image_scores(self._predict(network, channels), target, mask))
            scores = {name: sum(row[name] for row in rows) / count for name in rows[0]}
            return {'score': 1 - scores['mae']} | {k: round(v, 4) for k, v in scores.items()}

        return validate


def image_scores(
    predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
) -> dict[str, float]:
    """Return how alike two T1w are inside a brain.

    Parameters
    ----------
    predicted, target : torch.Tensor, shape (1, 1, x, y, z)
        z-scores.
    mask : torch.Tensor, shape (1, 1, x, y, z), bool
        Brain.

    Returns
    -------
    dict of float
        ``mae``; ``psnr`` in dB and ``ssim`` for a range of 6 standard deviations, as that of the
        published error, which is of ``(z + 3) / 6``.
    """
    inside = mask[0, 0]
    a, b = predicted[0, 0] * inside, target[0, 0] * inside
    return {
        'mae': float(masked_error(predicted, target, mask)),
        'psnr': peak_snr(a, b, inside, 6.0),
        'ssim': mean_ssim(a, b, inside, 6.0),
    }
