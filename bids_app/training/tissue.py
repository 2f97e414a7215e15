# SPDX-License-Identifier: Apache-2.0
"""Training of tissue networks on synthetic images of one, two or three contrasts.

One label map is deformed, given lesions, and painted once for every contrast, with its own
resolution, bias field and noise and a small error of the coregistration. What the networks see is
what inference gives them: the brain alone, normalised inside its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bids_app.data import structures
from bids_app.images.intensity import normalise_brain_zscore
from bids_app.inference.classes import CLASSES
from bids_app.training.contrast import Contrast, draw_contrast
from bids_app.training.label_maps import LabelMaps
from bids_app.training.lesions import draw_lesions
from bids_app.training.loop import Trainer, Validator
from bids_app.training.losses import TISSUE_LOSSES
from bids_app.training.overlap import class_overlaps
from bids_app.training.samples import Sampler
from bids_app.training.synthesis import (
    Deformation,
    Ranges,
    corrupt,
    paint,
    rotation_matrix,
    sample_labels,
    sub_voxel_labels,
)

TISSUES: tuple[str, ...] = ('background', 'csf', 'gm', 'wm')
"""What tissue networks predict; those that know lesions have ``lesion`` as a fifth class."""

_LESION = len(TISSUES)
_LESION_LABELS = (25, 57)
_KINDS = {'T1w': 't1w', 'T2w': 't2w', 'FLAIR': 'flair'}
_ANY = (('t1w', 0.45), ('t2w', 0.2), ('flair', 0.2), ('random', 0.15))
_LEAST_BRAIN = 0.1
_TRUTH_DRAWS = 28
"""More sub-voxel positions for the truth of a validation: it is the class that fills most of a
voxel, not what happens to lie at its centre."""


@dataclass
class TissueSample:
    """One training sample.

    Attributes
    ----------
    image : torch.Tensor, shape (contrasts, x, y, z), float32
        Normalised as in inference; a contrast that is missing is zero.
    target : torch.Tensor, shape (classes, x, y, z), float32
        Share of each class in the voxel; outside the brain mask all is background.
    kinds : tuple of str
        What each channel shows: ``t1w``, ``t2w``, ``flair``, ``random`` or ``missing``.
    """

    image: torch.Tensor
    target: torch.Tensor
    kinds: tuple[str, ...]


@lru_cache(maxsize=1)
def _tissue_of_class() -> torch.Tensor:
    """Return the tissue (index into :data:`TISSUES`) of every class of the default model."""
    tissue_of = {structure.kind: structure.tissue.lower() for structure in structures()}
    return torch.tensor([TISSUES.index(tissue_of.get(name, 'background')) for name in CLASSES])


class TissueSampler(Sampler):
    """Draws crops of brains in several contrasts without end.

    Parameters
    ----------
    maps : LabelMaps
        What to draw from.
    ranges : Ranges
        Ranges of the random changes. ``low_resolution`` is for T1w, ``thick_slices`` for the
        others; ``misalignment`` and ``missing`` are for all but the first contrast.
    shape : tuple of int
        Voxels of a crop.
    spacing : float
        Voxel size, mm.
    draws : int
        Sub-voxel positions for each voxel.
    seed : int
        Seed of the sequence.
    contrasts : sequence of str
        ``T1w``, ``T2w``, ``FLAIR`` or ``any``, one for every channel.
    lesions : bool
        Whether lesions are a class of their own; else they are white matter.
    target_draws : int
        More sub-voxel positions, for the target alone. The ``draws`` that make the image of the
        first contrast are always in the target.
    """

    def __init__(
        self,
        maps: LabelMaps,
        ranges: Ranges,
        shape: tuple[int, int, int],
        spacing: float,
        draws: int,
        seed: int,
        contrasts: Sequence[str],
        lesions: bool = False,
        target_draws: int = 0,
    ) -> None:
        super().__init__(maps, ranges, shape, spacing, draws, seed)
        self.contrasts, self.lesions = tuple(contrasts), lesions
        self.target_draws = target_draws
        # A map without lesions has no label for them: it gets one at the end.
        self.values = list(maps.values)
        if not any(value in _LESION_LABELS for value in self.values):
            self.values.append(_LESION_LABELS[0])
        self._lesion_label = next(
            i for i, value in enumerate(self.values) if value in _LESION_LABELS
        )
        self._tissues = _tissue_of_class()[maps.classes]
        is_lesion = torch.tensor([value in _LESION_LABELS for value in self.values])
        white = TISSUES.index('wm')
        # What is predicted for each label: of the maps, and of a lesion label that was appended.
        added = torch.full((len(self.values) - len(self._tissues),), white)
        self._targets = torch.cat([self._tissues, added])
        self._targets[is_lesion] = _LESION if lesions else white
        self._is_white = torch.tensor([value in (2, 41) for value in self.values])
        self._is_outer = torch.tensor([value == 24 for value in self.values])
        self._is_ventricle = torch.tensor([value in (4, 43) for value in self.values])

    def _lesion_field(self, labels: torch.Tensor) -> torch.Tensor:
        """Draw lesions into the crop, or none; see :func:`draw_lesions`."""
        white = self._is_white[labels]
        if self._uniform() < 0.3:
            return torch.zeros(labels.shape)
        return draw_lesions(white, self._is_ventricle[labels], self.spacing, self.generator)

    def _mask(self, labels: torch.Tensor) -> torch.Tensor:
        """Draw a brain mask as tools make it: shape (x, y, z), bool."""
        inside = self._tissues[labels] > 0
        if self._uniform() < 0.2:  # without outer CSF, its sulci closed
            inside &= ~self._is_outer[labels]
            inside = _grow(_grow(inside, 2), -2)
        return _grow(inside, int(self._uniform(0, 3.99)) - 1)

    def _kind(self, contrast: str) -> str:
        if contrast != 'any':
            return _KINDS[contrast]
        choice = self._uniform()
        for kind, share in _ANY:
            choice -= share
            if choice < 0:
                return kind
        return 'random'

    def _present(self) -> list[bool]:
        """Say which contrasts there are; one at least."""
        present = [self._uniform() >= self.ranges.missing for _ in self.contrasts]
        if not any(present):
            present[int(self._uniform(0, len(present)))] = True
        return present

    def _displacement(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a small rigid movement: rotation (3, 3) and shift (3,), mm."""
        size = self.ranges.misalignment
        angles, shift = size * torch.randn((2, 3), generator=self.generator)
        return rotation_matrix(angles), shift

    def _sub_voxel(
        self,
        index: int,
        coordinates: torch.Tensor,
        step: torch.Tensor,
        field: torch.Tensor,
        draws: int,
    ) -> list[torch.Tensor]:
        """Draw labels inside the voxels, lesions among them: each shape (x, y, z)."""
        labels = sub_voxel_labels(self.maps.maps[index], coordinates, step, draws, self.generator)
        for draw in labels:
            border = 0.4 + 0.2 * torch.rand(field.shape, generator=self.generator)
            draw[(field > border) & self._is_white[draw]] = self._lesion_label
        return labels

    def _moved(
        self, coordinates: torch.Tensor, step: torch.Tensor, field: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Move coordinates and lesions by what coregistration leaves."""
        rotation, shift = self._displacement()
        axes = [torch.arange(n) - (n - 1) / 2 for n in self.shape]
        points = torch.stack(torch.meshgrid(*axes, indexing='ij'))  # voxels of the crop
        delta = torch.tensordot(rotation - torch.eye(3), points, 1)
        delta += (shift / self.spacing).view(3, 1, 1, 1)
        # The elastic part hardly changes over a millimetre: its linear part is enough.
        coordinates = coordinates + torch.tensordot(step, delta, 1)
        half = (torch.tensor(self.shape) - 1).view(3, 1, 1, 1) / 2
        place = ((points + delta) / half).flip(0).movedim(0, -1)  # grid_sample: z first
        field = functional.grid_sample(field[None, None], place[None], align_corners=True)
        return coordinates, field[0, 0]

    def _paint(self, labels: list[torch.Tensor], kind: str) -> torch.Tensor:
        """Draw the image of one contrast: shape (x, y, z)."""
        contrast = draw_contrast(self.values, kind, self.generator)
        # The spreads were measured on scans, where partial volume and noise are already in them.
        contrast = Contrast(contrast.mean, contrast.spread * self._uniform(0.2, 0.8))
        ranges = self.ranges
        if kind != 't1w':
            ranges = replace(ranges, low_resolution=ranges.thick_slices)
        image = paint(labels, contrast, self.generator)
        return corrupt(image, ranges, self.spacing, self.generator)

    def _shares(self, labels: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Return the share of each class in the voxels: shape (classes, x, y, z)."""
        target = torch.zeros((len(TISSUES) + self.lesions, *self.shape))
        share = torch.full((1, *self.shape), 1 / len(labels))
        for draw in labels:
            target.scatter_add_(0, self._targets[draw][None], share)
        target[:, ~mask] = 0
        target[0, ~mask] = 1
        return target

    def _centre(self, index: int) -> torch.Tensor:
        if self._uniform() < 0.4:
            jitter = torch.tensor([self._uniform(-20, 20) for _ in range(3)])
            return self.maps.deep_centres[index] + jitter
        first, last = self.maps.brain_boxes[index]
        return first + (0.1 + 0.8 * torch.rand(3, generator=self.generator)) * (last - first)

    def draw(self) -> TissueSample:
        """Return one sample; crops with hardly any brain are drawn again."""
        while True:
            index = self._choose()
            extent = self.spacing * max(self.shape) / 2 + 12
            deformation = Deformation(self.ranges, extent, self._centre(index), self.generator)
            origin = -self.spacing * (torch.tensor(self.shape) - 1) / 2
            coordinates = deformation.grid(origin, self.spacing, self.shape)
            labels = sample_labels(self.maps.maps[index], coordinates)
            tissue = self._tissues[labels]
            if float((tissue > 0).float().mean()) > _LEAST_BRAIN:
                break
        field = self._lesion_field(labels)
        mask = self._mask(labels)
        step = deformation.matrix * self.spacing
        first = self._sub_voxel(index, coordinates, step, field, self.draws)
        kinds, images = [], []
        for channel, (contrast, present) in enumerate(
            zip(self.contrasts, self._present(), strict=True)
        ):
            kind = self._kind(contrast) if present else 'missing'
            kinds.append(kind)
            if not present:
                images.append(torch.zeros(self.shape))
                continue
            inside = first
            if channel:
                place, moved = self._moved(coordinates, step, field)
                inside = self._sub_voxel(index, place, step, moved, self.draws)
            images.append(normalise_brain_zscore(self._paint(inside, kind), mask))
        more = self._sub_voxel(index, coordinates, step, field, self.target_draws)
        target = self._shares(first + more, mask)
        return TissueSample(torch.stack(images), target, tuple(kinds))


def _grow(mask: torch.Tensor, voxels: int) -> torch.Tensor:
    """Dilate (or erode, for negative numbers) a mask by a cube, steps of one voxel."""
    image = mask.float()[None, None]
    sign = 1 if voxels > 0 else -1
    for _ in range(abs(voxels)):
        image = sign * functional.max_pool3d(sign * image, 3, 1, 1)
    return image[0, 0] > 0.5


class TissueTrainer(Trainer):
    """Trains a tissue network; ``contrasts`` are those of its channels."""

    losses = tuple(TISSUE_LOSSES)

    def __init__(self, *args: Any, contrasts: Sequence[str], **kwargs: Any) -> None:
        self.contrasts = tuple(contrasts)
        super().__init__(*args, **kwargs)

    def _make_sampler(
        self, maps: LabelMaps, ranges: Ranges, seed: int, target_draws: int = 0
    ) -> TissueSampler:
        stage = self.stage
        return TissueSampler(
            maps, ranges, stage.shape, stage.spacing, stage.draws, seed, self.contrasts,
            lesions=stage.arguments['out_channels'] > len(TISSUES), target_draws=target_draws,
        )  # fmt: skip

    def _sampler(self, seed: int, late: bool) -> TissueSampler:
        ranges = self.stage.late_ranges if late else self.stage.ranges
        return self._make_sampler(self.maps, ranges, seed)

    def _loss(self, drawn: list[Any]) -> tuple[torch.Tensor, dict[str, float]]:
        image = torch.stack([sample.image for sample in drawn]).to(self.device)
        target = torch.stack([sample.target for sample in drawn]).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(image)
        return TISSUE_LOSSES[self.stage.loss](logits, target)

    def _make_validator(self, maps: LabelMaps, count: int = 16) -> Validator:
        sampler = self._make_sampler(maps, self.stage.late_ranges, 12345, _TRUTH_DRAWS)
        samples = [sampler.draw() for _ in range(count)]

        def validate(network: nn.Module) -> dict[str, float]:
            overlap, size = 0.0, 0.0
            for sample in samples:
                with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                    logits = network(sample.image[None].to(self.device)).float()[0]
                truth = sample.target.argmax(dim=0).to(logits.device)
                both, voxels = class_overlaps(logits.argmax(dim=0), truth, len(sample.target))
                overlap, size = overlap + both, size + voxels
            dice = (2 * overlap / size.clamp_min(1))[1:].tolist()
            tissues = dice[: len(TISSUES) - 1]
            scores = {'score': sum(tissues) / len(tissues)}
            scores |= {f'dice_{n}': round(d, 4) for n, d in zip(TISSUES[1:], tissues, strict=True)}
            if len(dice) > len(tissues):
                scores['dice_lesion'] = round(dice[-1], 4)
                scores['score'] = (sum(tissues) + 0.5 * dice[-1]) / (len(tissues) + 0.5)
            return scores

        return validate
