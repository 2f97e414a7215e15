# SPDX-License-Identifier: Apache-2.0
"""The default model: find the brain on the whole head at 3 mm, then segment it at 1 mm.

Arrays are float32 tensors in RAS+ voxel order on the conformed 1 mm grid. The networks predict
kinds of structure and, apart, the side (see :mod:`bids_app.inference.classes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from bids_app.images.intensity import normalise_brain, normalise_head
from bids_app.images.masks import largest_component
from bids_app.inference.context import resample_linear
from bids_app.inference.predictor import Predictor, pad_to_multiple

MARGIN = 10
"""Voxels around the coarse brain that the fine network sees."""

# By how much the network must be surer of a turned head than of the one that the header promises.
# Real heads were 0.015 to 0.1 surer the right way up; none was surer the wrong way.
TURN_MARGIN = 0.03

# Half turns of the head that a wrong header can cause, as the axes to flip.
TURNS = {
    'upside down and back to front': (1, 2),
    'upside down': (0, 2),
    'back to front': (0, 1),
}


@dataclass
class Coarse:
    """What the coarse network found.

    Attributes
    ----------
    posterior : torch.Tensor, shape (classes + 1, x, y, z), float32
        Probabilities of the classes, then P(right) - P(left).
    origin : torch.Tensor, shape (3,)
        Position of the centre of its first voxel on the 1 mm grid, voxels.
    spacing : float
        Its voxel size in voxels of the 1 mm grid.
    volume : float
        Volume of the brain, mm^3 (of the 1 mm grid).
    confidence : float
        Mean over the brain of the largest probability, 0..1.
    suspect : str or None
        How the head seems to be turned against what the header says.
    """

    posterior: torch.Tensor
    origin: torch.Tensor
    spacing: float
    volume: float
    confidence: float
    suspect: str | None = None

    def brain_probability(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the probability of brain on a 1 mm grid of this shape."""
        brain = 1 - self.posterior[:1]
        # Beyond the coarse window there is no brain; its border would otherwise be repeated.
        brain = functional.pad(brain, (1,) * 6)
        return resample_linear(
            brain, self.origin - self.spacing, self.spacing, torch.zeros(3), 1.0, shape
        )[0]


@dataclass
class Posterior:
    """What the fine network found, on a box of the 1 mm grid.

    Attributes
    ----------
    classes : torch.Tensor, shape (classes, x, y, z), float32
        Probabilities.
    right : torch.Tensor, shape (x, y, z), float32
        Probability of the right side.
    corner : tuple of int
        First voxel of the box on the 1 mm grid.
    """

    classes: torch.Tensor
    right: torch.Tensor
    corner: tuple[int, int, int]


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax of the classes and tanh-like side: P(right) - P(left)."""
    side = 2 * torch.sigmoid(logits[-1:]) - 1
    return torch.cat([logits[:-1].softmax(dim=0), side])


def _flip_average(
    predictor: Predictor, image: torch.Tensor, context: torch.Tensor | None
) -> torch.Tensor:
    """Mean of the prediction and of that of the mirrored head, whose sides are swapped back."""
    found = _probabilities(predictor.logits(image, context))
    if context is not None:
        context = context.flip(1).clone()
        context[-1] *= -1
    mirrored = _probabilities(predictor.logits(image.flip(1), context)).flip(1)
    mirrored[-1] *= -1
    return (found + mirrored) / 2


def coarse_grid(image: torch.Tensor, spacing: int) -> torch.Tensor:
    """Average a 1 mm image over cubes of ``spacing`` voxels; the end is filled with zeros."""
    return functional.avg_pool3d(pad_to_multiple(image, spacing)[None, None], spacing)[0, 0]


def find_brain(
    image: torch.Tensor, predictor: Predictor, spacing: int, window: tuple[int, int, int]
) -> Coarse:
    """Run the coarse network over a head.

    Parameters
    ----------
    image : torch.Tensor, shape (x, y, z), float32
        Conformed scan, 1 mm, RAS+, any intensity unit.
    predictor : Predictor
        The coarse network.
    spacing : int
        Voxel size of the coarse network, mm.
    window : tuple of int
        Voxels of the grid that the network was trained on.

    Returns
    -------
    Coarse
        The head as it stands is compared with its half turns. Where the network is clearly surer
        of one of these, the header is wrong; ``suspect`` then says how.
    """
    best, boxed = _find_upright(image, predictor, spacing, window)
    upright = _confidence(predictor, boxed)
    turned = {name: _confidence(predictor, boxed.flip(axes)) for name, axes in TURNS.items()}
    name = max(turned, key=turned.__getitem__)
    if turned[name] > upright + TURN_MARGIN:
        other, _ = _find_upright(image.flip(TURNS[name]), predictor, spacing, window)
        if other.confidence > best.confidence:
            best = other
            best.suspect = name
    return best


def _confidence(predictor: Predictor, boxed: torch.Tensor) -> float:
    """Mean of the largest probability over the brain that is found in a window."""
    found = _probabilities(predictor.logits(normalise_head(boxed)[None]))[:-1]
    brain = found[0] < 0.5
    return float(found.max(dim=0).values[brain].mean()) if brain.any() else 0.0


def _find_upright(
    image: torch.Tensor, predictor: Predictor, spacing: int, window: tuple[int, int, int]
) -> tuple[Coarse, torch.Tensor]:
    """One pass over the whole field of view, then one over a window centred on the brain.

    Returns what was found, and the window of the coarse grid.
    """
    small = coarse_grid(image, spacing)
    whole = pad_to_multiple(normalise_head(small), predictor.network.divisor)
    brain = 1 - _probabilities(predictor.logits(whole[None]))[0]
    mask = largest_component((brain > 0.5).numpy())
    if not mask.any():
        mask = (brain >= brain.max()).numpy()
    centre = [int(round(float(where.mean()))) for where in np.nonzero(mask)]
    start = [c - n // 2 for c, n in zip(centre, window, strict=True)]
    boxed = _cut(small, start, window)
    posterior = _flip_average(predictor, normalise_head(boxed)[None], None)
    brain = 1 - posterior[0]
    mask = torch.from_numpy(largest_component((brain > 0.5).numpy()))
    confidence = float(posterior[:-1].max(dim=0).values[mask].mean()) if mask.any() else 0.0
    # Voxels of the pieces that are not the brain must not draw the fine network there.
    far = ~functional.max_pool3d(mask[None, None].float(), 3, 1, 1)[0, 0].bool()
    posterior[:, far] = 0
    posterior[0, far] = 1
    origin = torch.tensor([spacing * s + (spacing - 1) / 2 for s in start])
    volume = float(mask.sum()) * spacing**3
    return Coarse(posterior, origin, spacing, volume, confidence), boxed


def _cut(volume: torch.Tensor, start: list[int], size: tuple[int, ...]) -> torch.Tensor:
    """Cut a window that may reach beyond the volume; zeros there."""
    out = torch.zeros(size)
    source, target = [], []
    for s, n, whole in zip(start, size, volume.shape, strict=True):
        first, last = max(0, s), min(whole, s + n)
        source.append(slice(first, max(first, last)))
        target.append(slice(first - s, max(first, last) - s))
    out[tuple(target)] = volume[tuple(source)]
    return out


def brain_box(
    probability: torch.Tensor, divisor: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the corner and size of a box around the brain, with a margin, for the network.

    Parameters
    ----------
    probability : torch.Tensor, shape (x, y, z)
        Probability of brain on the 1 mm grid.
    divisor : int
        The sizes are multiples of it; the box may reach beyond the grid.

    Returns
    -------
    corner, size : tuple of int
    """
    mask = probability > 0.3
    if not bool(mask.any()):
        mask = torch.ones_like(mask)
    corner, size = [], []
    for axis in range(3):
        hit = mask.any(dim=tuple(a for a in range(3) if a != axis)).nonzero().flatten()
        first, last = int(hit[0]) - MARGIN, int(hit[-1]) + MARGIN + 1
        length = -(-(last - first) // divisor) * divisor
        corner.append(first - (length - (last - first)) // 2)
        size.append(length)
    return tuple(corner), tuple(size)


def segment(
    image: torch.Tensor, coarse: Coarse, predictor: Predictor, *, flips: bool = True
) -> Posterior:
    """Run the fine network over the brain.

    Parameters
    ----------
    image : torch.Tensor, shape (x, y, z), float32
        Conformed scan, 1 mm, RAS+, bias-corrected if possible.
    coarse : Coarse
        From :func:`find_brain`.
    predictor : Predictor
        The fine network.
    flips : bool
        Average with the prediction of the mirrored image: twice the time, a little better.

    Returns
    -------
    Posterior
    """
    brain = coarse.brain_probability(tuple(image.shape))
    corner, size = brain_box(brain, predictor.network.divisor)
    boxed = _cut(image, list(corner), size)
    mask = _cut(brain, list(corner), size) > 0.5
    half = tuple(n // 2 for n in size)
    start = torch.tensor(corner, dtype=torch.float32) + 0.5
    context = resample_linear(coarse.posterior, coarse.origin, coarse.spacing, start, 2.0, half)
    given = normalise_brain(boxed, mask)[None]
    if flips:
        found = _flip_average(predictor, given, context)
    else:
        found = _probabilities(predictor.logits(given, context))
    return Posterior(found[:-1], (found[-1] + 1) / 2, corner)
