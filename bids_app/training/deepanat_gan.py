# SPDX-License-Identifier: Apache-2.0
"""Adversarial training of the T1w synthesis: the generator also tries to pass for real.

As published (Li et al., Medical Image Analysis 2023): the discriminator sees the planes of a block
along its three axes, three passes for each step of the generator, whose loss is L1 plus a small
share of the binary cross-entropy. What makes a training on a CPU possible is in the recipe: a
narrower discriminator, and some of the planes of each axis instead of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bids_app.networks import DeepAnatDiscriminator
from bids_app.training.deepanat import SynthesisTrainer, masked_error


@dataclass(frozen=True)
class Adversary:
    """The part of a recipe about the discriminator (``data.adversarial``).

    Attributes
    ----------
    base : int
        Its width. Published: 64.
    planes : int
        Planes of a block along each axis, drawn anew for each step; 64 are all.
    weight : float
        Of the cross-entropy in the loss of the generator.
    learning_rate : float
        Of its Adam.
    passes : int
        Over the planes of a block, for one step of the generator.
    batch : int
        Planes, real and synthetic ones mixed, of a step of the discriminator.
    least_norm : float
        Planes whose real T1w (z-scores) has a smaller L2 norm hold hardly any brain: the
        discriminator does not learn from them.
    """

    base: int = 64
    planes: int = 64
    weight: float = 1e-3
    learning_rate: float = 3e-4
    passes: int = 3
    batch: int = 10
    least_norm: float = 15.0


def block_planes(blocks: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Cut cubic blocks into planes along each axis.

    Parameters
    ----------
    blocks : torch.Tensor, shape (n, 1, size, size, size)
    chosen : torch.Tensor, shape (3, p), int64
        Which planes along x, y and z.

    Returns
    -------
    torch.Tensor, shape (3 * n * p, 1, size, size)
    """
    cut = [
        blocks.index_select(axis + 2, chosen[axis].to(blocks.device)).movedim(axis + 2, 1)
        for axis in range(3)
    ]
    return torch.cat([planes.flatten(0, 1) for planes in cut])


class AdversarialTrainer(SynthesisTrainer):
    """Trains the generator against a discriminator; start from weights trained with L1 alone."""

    losses = ('l1-adversarial',)

    def __init__(self, *args: Any, adversary: Adversary, **kwargs: Any) -> None:
        stage = args[0]
        self.adversary = adversary
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(kwargs.get('seed', 0) + 1)
            self.critic = DeepAnatDiscriminator(adversary.base, stage.shape[0])
        self.critic.to(kwargs.get('device', 'cpu'), memory_format=torch.channels_last)
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=adversary.learning_rate
        )
        super().__init__(*args, **kwargs)

    def _state(self) -> dict[str, object]:
        return super()._state() | {
            'critic': self.critic.state_dict(),
            'critic_optimizer': self.critic_optimizer.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.critic.load_state_dict(state['critic'])
        self.critic_optimizer.load_state_dict(state['critic_optimizer'])

    def _logits(self, planes: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.critic(planes.contiguous(memory_format=torch.channels_last)).float()

    def _train_critic(self, real: torch.Tensor, synthetic: torch.Tensor) -> float:
        """Teach the discriminator planes (p, 1, size, size) of both; return its mean loss."""
        kept = real.flatten(1).norm(dim=1) > self.adversary.least_norm
        planes = torch.cat([real[kept], synthetic[kept]])
        truth = torch.zeros((len(planes), 1), device=planes.device)
        truth[: int(kept.sum())] = 1
        self.critic.train().requires_grad_(True)
        losses = []
        for _ in range(self.adversary.passes):
            for batch in torch.randperm(len(planes)).split(self.adversary.batch):
                if len(batch) < 2:  # batch normalisation has nothing to measure
                    continue
                loss = functional.binary_cross_entropy_with_logits(
                    self._logits(planes[batch]), truth[batch]
                )
                self.critic_optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.critic_optimizer.step()
                losses.append(loss.item())
        return sum(losses) / max(1, len(losses))

    def _loss(self, drawn: list[Any]) -> tuple[torch.Tensor, dict[str, float]]:
        channels, target, mask = self._batch(drawn)
        predicted = self._predict(self.network, channels) * mask
        size, count = target.shape[-1], min(self.adversary.planes, target.shape[-1])
        chosen = torch.stack([torch.randperm(size)[:count] for _ in range(3)])
        real = block_planes(target, chosen)
        synthetic = block_planes(predicted, chosen)
        critic = self._train_critic(real, synthetic.detach())
        # As it is used in inference: with the averages of its batch normalisation.
        self.critic.eval().requires_grad_(False)
        logits = self._logits(synthetic)
        fooled = functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        content = masked_error(predicted, target, mask)
        parts = {'l1': content.item(), 'adversarial': fooled.item(), 'critic': critic}
        return content + self.adversary.weight * fooled, parts
