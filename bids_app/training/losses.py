# SPDX-License-Identifier: Apache-2.0
"""Losses of the segmentation networks."""

from __future__ import annotations

import torch
from torch.nn import functional


def soft_dice(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return one minus the mean Dice over the classes that the target holds.

    Parameters
    ----------
    probability, target : torch.Tensor, shape (batch, class, x, y, z)
        Shares that sum to one over the classes; the first class (background) is left out.

    Returns
    -------
    torch.Tensor, scalar
        Milletari et al. (V-Net, 3DV 2016), with squared denominators.
    """
    dims = (0, 2, 3, 4)
    overlap = (probability * target).sum(dims)[1:]
    size = (probability**2).sum(dims)[1:] + (target**2).sum(dims)[1:]
    present = target.sum(dims)[1:] > 8  # a class of some voxels at the border only adds noise
    if not bool(present.any()):
        return probability.new_zeros(())
    return (1 - (2 * overlap[present] + 1) / (size[present] + 1)).mean()


def segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor, side: torch.Tensor, smoothing: float = 0.0
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return Dice plus cross-entropy over the classes, plus cross-entropy of the side.

    Parameters
    ----------
    logits : torch.Tensor, shape (batch, classes + 1, x, y, z)
        Logits of the classes, then the logit of "right".
    target : torch.Tensor, shape (batch, classes, x, y, z)
        Share of each class.
    side : torch.Tensor, shape (batch, 2, x, y, z)
        Share of left and of right structures; elsewhere the side does not matter.
    smoothing : float
        Label smoothing of the cross-entropy.

    Returns
    -------
    loss : torch.Tensor, scalar
    parts : dict of float
        The three terms, for the log.
    """
    logits = logits.float()
    log_probability = functional.log_softmax(logits[:, :-1], dim=1)
    soft = target if not smoothing else target * (1 - smoothing) + smoothing / target.shape[1]
    entropy = -(soft * log_probability).sum(dim=1).mean()
    dice = soft_dice(log_probability.exp(), target)
    lateral = side.sum(dim=1)
    wanted = side[:, 1] / lateral.clamp_min(1e-6)
    sides = functional.binary_cross_entropy_with_logits(
        logits[:, -1], wanted, weight=lateral, reduction='sum'
    ) / lateral.sum().clamp_min(1)
    parts = {'ce': entropy.item(), 'dice': dice.item(), 'side': sides.item()}
    return dice + entropy + 0.5 * sides, parts
