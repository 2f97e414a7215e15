# SPDX-License-Identifier: Apache-2.0
"""Overlap of label maps, as sums that add up over crops."""

from __future__ import annotations

import torch


def class_overlaps(
    found: torch.Tensor, truth: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count, for every class, the voxels that both maps have, and those of the two together.

    Parameters
    ----------
    found, truth : torch.Tensor of int, of one shape
        Classes from 0 to ``count - 1``.
    count : int
        Number of classes.

    Returns
    -------
    both, size : torch.Tensor of int64, shape (count,)
        Dice is ``2 * both / size``.
    """
    found, truth = found.flatten(), truth.flatten()
    both = torch.bincount(found[found == truth], minlength=count)
    size = torch.bincount(found, minlength=count) + torch.bincount(truth, minlength=count)
    return both, size
