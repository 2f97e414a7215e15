# SPDX-License-Identifier: Apache-2.0
"""Training of the registration network, without any reference field.

A head is deformed at random and meets the template, or another head. The network predicts both
velocities, and the loss is the difference of the shares in the middle and at both ends, plus the
roughness of the velocities (Mok & Chung, CVPR 2020). Left and right are mirrored at random: the
template is symmetric and both sides share channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bids_app.registration.velocity import (
    border_window,
    exponential,
    full_flows,
    jacobian,
    resize,
    smooth,
    warp,
)
from bids_app.training.heads import Heads
from bids_app.training.loop import Trainer, Validator
from bids_app.training.synthesis import Ranges, rotation_matrix

_LOSS_SHRINK = 2  # the loss looks at 3 mm: the velocities have 6 mm
_SQUARINGS = 5
_ROUGHNESS = 0.15
_FOLDING = 10.0


@dataclass
class Pair:
    """One training sample: two tensors of shape (channels, x, y, z), shares 0 to 1."""

    scan: torch.Tensor
    template: torch.Tensor


class PairSampler:
    """Draws pairs of heads without end.

    Parameters
    ----------
    heads : Heads
        What to draw from.
    ranges : Ranges
        ``rotation``, ``scaling``, ``elastic`` and ``control_spacing`` of the deformation of the
        first head, which stands for what the affine registration leaves and more.
    seed : int
        Seed of the sequence.
    template_share : float
        How often the second head is the template.
    """

    def __init__(
        self, heads: Heads, ranges: Ranges, seed: int, template_share: float = 0.75
    ) -> None:
        self.heads = heads
        self.ranges = ranges
        self.template_share = template_share
        self.generator = torch.Generator().manual_seed(seed)

    def _uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _displacement(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A random affine map plus smooth waves, in voxels of the full grid: (1, 3, x, y, z)."""
        small = tuple(n // 4 for n in shape)
        axes = [torch.linspace(-1, 1, n) * full / 2 for n, full in zip(small, shape, strict=True)]
        points = torch.stack(torch.meshgrid(*axes, indexing='ij'))
        angles = torch.tensor([self._uniform(-1, 1) for _ in range(3)]) * self.ranges.rotation
        zooms = torch.tensor([self._uniform(*self.ranges.scaling) for _ in range(3)])
        matrix = torch.diag(zooms) @ rotation_matrix(angles)
        field = torch.tensordot(matrix - torch.eye(3), points, 1)[None]
        field = field + torch.tensor([self._uniform(-2, 2) for _ in range(3)]).view(1, 3, 1, 1, 1)
        waves = torch.randn((1, 3, *small), generator=self.generator)
        width = self.ranges.control_spacing / (4 * 1.5) / 2
        waves = smooth(waves, width)
        waves = waves / waves.std() * self._uniform(0, self.ranges.elastic) / 1.5
        return resize(field + waves, shape, 1.0)

    def draw(self) -> Pair:
        """Return one pair."""
        stored = self.heads.heads
        index = int(self._uniform(0, len(stored)))
        scan = stored[index].float() / 255
        if self._uniform() < self.template_share or len(stored) < 2:
            other = self.heads.template
        else:
            other = stored[(index + 1 + int(self._uniform(0, len(stored) - 1))) % len(stored)]
        if self._uniform() < 0.5:
            scan = scan.flip(1)
        shape = tuple(scan.shape[1:])
        moved = warp(scan[None], self._displacement(shape), 'zeros')[0]
        return Pair(moved, other.float() / 255)


def registration_loss(
    velocities: torch.Tensor, scan: torch.Tensor, template: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of a predicted pair of velocities.

    Parameters
    ----------
    velocities : torch.Tensor, shape (1, 6, x/4, y/4, z/4)
        Of the scan, then of the template, in voxels of their grid.
    scan, template : torch.Tensor, shape (1, c, x, y, z)
        Shares.

    Returns
    -------
    loss : torch.Tensor, scalar
    parts : dict of float
        Difference in the middle and at the ends, roughness, folding.
    """
    vx, vy = velocities[:, :3], velocities[:, 3:]
    x, y = (functional.avg_pool3d(image, _LOSS_SHRINK) for image in (scan, template))
    shape = tuple(x.shape[2:])
    scale = shape[0] / vx.shape[2]
    half_x = resize(exponential(vx, _SQUARINGS), shape, scale)
    half_y = resize(exponential(vy, _SQUARINGS), shape, scale)
    x_to_y, y_to_x = full_flows(vx, vy, shape, _SQUARINGS)
    middle = (warp(x, half_x, 'zeros') - warp(y, half_y, 'zeros')).square().mean()
    ends = 0.5 * (
        (warp(x, x_to_y, 'zeros') - y).square().mean()
        + (warp(y, y_to_x, 'zeros') - x).square().mean()
    )
    rough = sum(v.diff(dim=axis).square().mean() for v in (vx, vy) for axis in (2, 3, 4))
    folding = sum(functional.relu(0.1 - jacobian(flow)).mean() for flow in (x_to_y, y_to_x))
    loss = 100 * (middle + ends) + _ROUGHNESS * rough + _FOLDING * folding
    parts = {
        'middle': 100 * middle.item(),
        'ends': 100 * ends.item(),
        'rough': rough.item(),
        'folding': folding.item(),
    }
    return loss, parts


class RegistrationTrainer(Trainer):
    """Trains a registration network; ``maps`` and ``validation_maps`` are :class:`Heads`."""

    def _sampler(self, seed: int, late: bool) -> PairSampler:
        ranges = self.stage.late_ranges if late else self.stage.ranges
        return PairSampler(self.maps, ranges, seed)

    def _predict(self, network: nn.Module, pair: Pair) -> tuple[torch.Tensor, ...]:
        scan = pair.scan[None].to(self.device)
        template = pair.template[None].to(self.device)
        given = torch.cat([scan[:, :2], template[:, :2]], dim=1)
        with torch.autocast(self.device.type, torch.bfloat16):
            found = network(given).float()
        shape = tuple(found.shape[2:])
        window = border_window(shape, 2.0).to(found)  # 12 mm, as in inference
        return found * window, scan, template

    def _loss(self, drawn: list[Any]) -> tuple[torch.Tensor, dict[str, float]]:
        losses = [registration_loss(*self._predict(self.network, pair)) for pair in drawn]
        parts = {k: sum(p[k] for _, p in losses) / len(losses) for k in losses[0][1]}
        return sum(loss for loss, _ in losses) / len(losses), parts

    def _make_validator(self, maps: Heads, count: int = 6) -> Validator:
        def validate(network: nn.Module) -> dict[str, float]:
            scores = []
            for head in maps.heads[:count]:
                pair = Pair(head.float() / 255, maps.template.float() / 255)
                with torch.inference_mode():
                    velocities, scan, template = self._predict(network, pair)
                    flow, _ = full_flows(
                        velocities[:, :3], velocities[:, 3:], tuple(scan.shape[2:])
                    )
                    warped = warp(scan, flow, 'zeros')
                    both = torch.minimum(warped, template).sum((0, 2, 3, 4))
                    total = (warped + template).sum((0, 2, 3, 4))
                    folded = float((jacobian(flow) <= 0).float().mean())
                scores.append(((2 * both / total).tolist(), folded))
            channels = [
                sum(s[0][c] for s in scores) / len(scores) for c in range(len(scores[0][0]))
            ]
            return {
                'score': sum(channels) / len(channels),
                'dice': [round(value, 4) for value in channels],
                'folded': sum(s[1] for s in scores) / len(scores),
            }

        return validate
