# SPDX-License-Identifier: Apache-2.0
"""Losses of the segmentation networks.

:data:`TISSUE_LOSSES` holds those of the tissue networks by the names that recipes use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


def tissue_loss(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return Dice plus cross-entropy, and both for the log.

    Parameters
    ----------
    logits, target : torch.Tensor, shape (batch, classes, x, y, z)
        The target holds shares that sum to 1, or zeros alone in voxels that do not count.
    """
    log_probability = functional.log_softmax(logits.float(), dim=1)
    counted = target.sum(dim=1, keepdim=True)
    entropy = -(target * log_probability).sum(dim=1).mean()
    dice = soft_dice(log_probability.exp() * counted, target)
    return dice + entropy, {'ce': entropy.item(), 'dice': dice.item()}


def class_dice_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    normalise: str = 'softmax',
    background: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return one minus the mean Dice over the classes, as the MedicalZoo thesis (2019) has it.

    For each class ``2 sum(p t) / (sum(p^2) + sum(t^2))``, the sums over batch and space together
    and the denominator at least 1e-6. A class that the target lacks counts as well, with a Dice
    of 0; :func:`soft_dice` leaves it out.

    Parameters
    ----------
    logits, target : torch.Tensor, shape (batch, classes, x, y, z)
        The target holds shares that sum to 1, or zeros alone in voxels that do not count.
    normalise : {'softmax', 'sigmoid'}
        How logits become probabilities. The published training scripts take the sigmoid.
    background : bool
        Whether the first class counts. In the published loss it does.

    Returns
    -------
    loss : torch.Tensor, scalar
    parts : dict of float
        The loss, for the log.
    """
    logits = logits.float()
    probability = logits.softmax(dim=1) if normalise == 'softmax' else logits.sigmoid()
    probability = probability * target.sum(dim=1, keepdim=True)
    dims = (0, 2, 3, 4)
    overlap = (probability * target).sum(dims)
    size = (probability**2).sum(dims) + (target**2).sum(dims)
    dice = 2 * overlap / size.clamp_min(1e-6)
    loss = 1 - dice[0 if background else 1 :].mean()
    return loss, {'dice': loss.item()}


TissueLoss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]

TISSUE_LOSSES: dict[str, TissueLoss] = {
    'dice-ce': tissue_loss,
    'dice': class_dice_loss,
    'dice-background': partial(class_dice_loss, background=True),
    'dice-sigmoid': partial(class_dice_loss, normalise='sigmoid'),
    'dice-sigmoid-background': partial(class_dice_loss, normalise='sigmoid', background=True),
}
"""Losses of tissue networks; the last is the one of the published scripts."""
