# SPDX-License-Identifier: Apache-2.0
"""Training samples of the coarse and of the fine network of the default model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bids_app.images.intensity import normalise_brain, normalise_head
from bids_app.inference.classes import CLASSES
from bids_app.inference.context import resample_linear
from bids_app.training.contrast import Contrast, brighten_outside, draw_contrast
from bids_app.training.label_maps import LabelMaps
from bids_app.training.synthesis import (
    Deformation,
    Ranges,
    corrupt,
    paint,
    sample_labels,
    sub_voxel_labels,
)

_CSF = CLASSES.index('csf')
# An all but empty image has no variance to normalise by: its gradients are huge and teach nothing.
_LEAST_BRAIN = 0.03


@dataclass
class Sample:
    """One training sample.

    Attributes
    ----------
    image : torch.Tensor, shape (1, x, y, z), float32
        Normalised as in inference.
    context : torch.Tensor or None, shape (classes + 1, x/2, y/2, z/2), float32
        Coarse posteriors and coarse side, for the fine network.
    target : torch.Tensor, shape (classes, x, y, z), float32
        Share of each class in each voxel.
    side : torch.Tensor, shape (2, x, y, z), float32
        Share of left and of right structures in each voxel.
    """

    image: torch.Tensor
    context: torch.Tensor | None
    target: torch.Tensor
    side: torch.Tensor


class Sampler:
    """Draws samples from label maps without end.

    Parameters
    ----------
    maps : LabelMaps
        What to draw from.
    ranges : Ranges
        Ranges of the random changes.
    shape : tuple of int
        Voxels of a sample.
    spacing : float
        Voxel size, mm.
    draws : int
        Sub-voxel positions for each voxel.
    seed : int
        Seed of the sequence: the same seed gives the same samples.
    """

    def __init__(
        self,
        maps: LabelMaps,
        ranges: Ranges,
        shape: tuple[int, int, int],
        spacing: float,
        draws: int,
        seed: int,
    ) -> None:
        self.maps = maps
        self.ranges = ranges
        self.shape = shape
        self.spacing = spacing
        self.draws = draws
        self.generator = torch.Generator().manual_seed(seed)

    def _uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _contrast(self) -> Contrast:
        choice = self._uniform()
        kind = 'random'
        if choice < self.ranges.t1w:
            kind = 't1w'
        elif choice < self.ranges.t1w + self.ranges.t2w:
            kind = 't2w'
        elif choice < self.ranges.t1w + self.ranges.t2w + self.ranges.flair:
            kind = 'flair'
        contrast = draw_contrast(self.maps.values, kind, self.generator)
        if kind == 't1w' and self._uniform() < self.ranges.bright_fat:
            contrast = brighten_outside(contrast, self.maps.values, self.generator)
        # The spreads were measured on scans, where noise and texture are already in them.
        return Contrast(contrast.mean, contrast.spread * self._uniform(0.3, 1.0))

    def _choose(self) -> int:
        return int(self._uniform(0, len(self.maps.maps)))

    def _fractions(
        self, labels: list[torch.Tensor], flip: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of classes (classes, x, y, z) and of left and right (2, x, y, z)."""
        shape = labels[0].shape
        target = torch.zeros(len(CLASSES), labels[0].numel())
        side = torch.zeros(2, *shape)
        one = torch.full((1, labels[0].numel()), 1 / len(labels))
        for draw in labels:
            flat = draw.flatten()
            target.scatter_add_(0, self.maps.classes.index_select(0, flat)[None], one)
            sides = self.maps.sides.index_select(0, flat).view(shape)
            if flip:
                sides = -sides
            side[0] += sides < 0
            side[1] += sides > 0
        return target.view(-1, *shape), side / len(labels)

    def _strip(self, target: torch.Tensor) -> torch.Tensor | None:
        """Draw a mask of what skull-stripping leaves, or None: shape (x, y, z), bool."""
        if self._uniform() > self.ranges.stripped:
            return None
        tissue = 1 - target[0] - target[_CSF]
        if self._uniform() < 0.3:  # all CSF stays
            return target[0] < 0.5
        mask = (tissue > 0.5).float()[None, None]
        # Close sulci as masks from labels or stripping tools do, then let the border vary.
        closing = int(self._uniform(0, 4)) if self.spacing < 2 else int(self._uniform(0, 2))
        widen = int(self._uniform(0, 2.5)) if self.spacing < 2 else int(self._uniform(0, 1.5))
        for size, sign in ((closing + widen, 1), (closing, -1)):
            if size:
                mask = sign * functional.max_pool3d(sign * mask, 2 * size + 1, 1, size)
        return mask[0, 0] > 0.5

    @staticmethod
    def _blank(sample: Sample, keep: torch.Tensor) -> None:
        """Make all voxels outside ``keep`` background, in place."""
        sample.target[:, ~keep] = 0
        sample.target[0, ~keep] = 1
        sample.side[:, ~keep] = 0


class CoarseSampler(Sampler):
    """Whole heads on a coarse grid."""

    def draw(self) -> Sample:
        """Return one sample, without context."""
        index = self._choose()
        box = self.maps.brain_boxes[index]
        extent = self.spacing * max(self.shape) / 2
        deformation = Deformation(self.ranges, extent, box.mean(dim=0), self.generator)
        shift = torch.tensor([self._uniform(-20, 20) for _ in range(3)])
        origin = shift - self.spacing * (torch.tensor(self.shape) - 1) / 2
        coordinates = deformation.grid(origin, self.spacing, self.shape)
        labels = sub_voxel_labels(
            self.maps.maps[index],
            coordinates,
            deformation.matrix * self.spacing,
            self.draws,
            self.generator,
        )
        target, side = self._fractions(labels, deformation.flip)
        image = corrupt(
            paint(labels, self._contrast(), self.generator),
            self.ranges,
            self.spacing,
            self.generator,
        )
        sample = Sample(image[None], None, target, side)
        keep = self._strip(target)
        if keep is not None:
            image *= keep
            self._blank(sample, keep)
        if self._uniform() < 0.2:  # the field of view ends inside the head
            inside = torch.ones(self.shape, dtype=torch.bool)
            axis = int(self._uniform(0, 3))
            cut = int(self._uniform(0.02, 0.3) * self.shape[axis])
            start = 0 if self._uniform() < 0.5 else self.shape[axis] - cut
            inside.narrow(axis, start, cut).fill_(False)
            image *= inside
            self._blank(sample, inside)
        if self._uniform() < 0.3:  # what stripping and defacing leave outside the head: zeros
            image[image < self._uniform(0, 0.04)] = 0
        sample.image = normalise_head(image)[None]
        return sample


@dataclass(frozen=True)
class CoarseStage:
    """A trained coarse network, for the context of fine samples.

    Attributes
    ----------
    network : callable
        Takes ``(1, 1, x, y, z)`` and gives logits.
    shape : tuple of int
        Voxels of its window.
    spacing : float
        Its voxel size, mm.
    """

    network: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, int, int]
    spacing: float


class FineSampler(Sampler):
    """Crops at full resolution with coarse posteriors as context.

    Parameters
    ----------
    coarse_spacing : float
        Voxel size of simulated coarse posteriors, mm.
    coarse : CoarseStage, optional
        With it the context is, most of the time, what this network says of the whole head that
        the crop belongs to, so that the fine network meets the true errors of the coarse one.
        Without it the context is simulated from the labels.
    """

    def __init__(
        self,
        *args: Any,
        coarse_spacing: float = 3.0,
        coarse: CoarseStage | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.coarse_spacing = coarse_spacing
        self.coarse = coarse

    def _centre(self, index: int) -> torch.Tensor:
        jitter = torch.tensor([self._uniform(-16, 16) for _ in range(3)])
        if self._uniform() < 0.65:  # most structures are deep and small
            return self.maps.deep_centres[index] + jitter
        first, last = self.maps.brain_boxes[index]
        # The corners of the box are outside the brain: half a crop of air teaches little.
        return first + (0.2 + 0.6 * torch.rand(3, generator=self.generator)) * (last - first)

    def draw(self) -> Sample:
        """Return one sample with context; crops with hardly any brain are drawn again."""
        while True:
            sample = self._draw_once()
            if float((sample.target[0] < 0.5).float().mean()) > _LEAST_BRAIN:
                return sample

    def _draw_once(self) -> Sample:
        index = self._choose()
        extent = self.spacing * max(self.shape) / 2 + 12
        real = self.coarse is not None and self._uniform() < 0.8
        if real:  # the deformation must reach over the whole head
            extent = self.coarse.spacing * max(self.coarse.shape) / 2 + 20
        deformation = Deformation(self.ranges, extent, self._centre(index), self.generator)
        origin = -self.spacing * (torch.tensor(self.shape) - 1) / 2
        label_map = self.maps.maps[index]
        coordinates = deformation.grid(origin, self.spacing, self.shape)
        labels = sub_voxel_labels(
            label_map, coordinates, deformation.matrix * self.spacing, self.draws, self.generator
        )
        # The target is the label at the centre of the voxel: one draw, without partial volume.
        target, side = self._fractions([sample_labels(label_map, coordinates)], deformation.flip)
        contrast = self._contrast()
        image = corrupt(
            paint(labels, contrast, self.generator), self.ranges, self.spacing, self.generator
        )
        sample = Sample(image[None], None, target, side)
        keep = self._strip(target)
        bare = keep is not None and bool((target[_CSF] * keep).sum() < 0.5 * target[_CSF].sum())
        if keep is not None:
            image *= keep
            self._blank(sample, keep)
        if real:
            start, found = self._ask_coarse(index, deformation, contrast, keep is not None, bare)
            spacing = self.coarse.spacing
        else:
            start, found = self._simulate_coarse(label_map, deformation, origin, bare)
            spacing = self.coarse_spacing
        sample.context = resample_linear(
            found,
            start,
            spacing,
            origin + self.spacing / 2,
            2 * self.spacing,
            tuple(n // 2 for n in self.shape),
        )
        brain = sample.target[0] < 0.5
        sample.image = (normalise_brain(image, brain) * self._uniform(0.9, 1.1))[None]
        return sample

    def _ask_coarse(
        self, index: int, deformation: Deformation, contrast: Contrast, stripped: bool, bare: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the origin and the posteriors of the coarse network over the same head."""
        shape, spacing = self.coarse.shape, self.coarse.spacing
        # Where the brain's centre lies on the target grid: the inverse of the linear part.
        middle = self.maps.brain_boxes[index].mean(dim=0) - deformation.centre
        middle = torch.linalg.solve(deformation.matrix, middle)
        middle = middle + torch.tensor([self._uniform(-6, 6) for _ in range(3)])
        start = middle - spacing * (torch.tensor(shape) - 1) / 2
        label_map = self.maps.maps[index]
        labels = sub_voxel_labels(
            label_map,
            deformation.grid(start, spacing, shape),
            deformation.matrix * spacing,
            3,
            self.generator,
        )
        image = corrupt(
            paint(labels, contrast, self.generator), self.ranges, spacing, self.generator
        )
        if stripped:
            classes = self.maps.classes.index_select(0, labels[0].flatten()).view(shape)
            keep = (classes > 0).float()
            if bare:
                keep = ((classes > 0) & (classes != _CSF)).float()[None, None]
                keep = -functional.max_pool3d(-functional.max_pool3d(keep, 3, 1, 1), 3, 1, 1)
                keep = keep[0, 0]
            image *= keep
        given = normalise_head(image)[None, None]
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
            logits = self.coarse.network(given)[0].float()
        side = 2 * torch.sigmoid(logits[-1:]) - 1
        return start, torch.cat([logits[:-1].softmax(dim=0), side]).clone()

    def _simulate_coarse(
        self, label_map: torch.Tensor, deformation: Deformation, origin: torch.Tensor, bare: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Simulate what the coarse network says: right on average, smooth and a little wrong."""
        spacing = self.coarse_spacing
        reach = self.spacing * torch.tensor(self.shape)
        shape = tuple(int(r / spacing) + 4 for r in reach)
        start = origin - spacing * (1 + torch.rand(3, generator=self.generator))
        coordinates = deformation.grid(start, spacing, shape)
        error = torch.randn((1, 3, 5, 5, 5), generator=self.generator) * self._uniform(0, 2.0)
        coordinates += functional.interpolate(
            error, size=shape, mode='trilinear', align_corners=True
        )[0]
        labels = sub_voxel_labels(
            label_map, coordinates, deformation.matrix * spacing, 6, self.generator
        )
        posterior, side = self._fractions(labels, deformation.flip)
        if bare:
            posterior[0] += posterior[_CSF]
            posterior[_CSF] = 0
        smooth = functional.avg_pool3d(
            functional.pad(posterior[None], (1,) * 6, mode='replicate'), 3, 1
        )[0]
        share = self._uniform(0.1, 0.8)
        posterior = (1 - share) * posterior + share * smooth
        doubt = torch.randn((1, len(CLASSES), 6, 6, 6), generator=self.generator)
        doubt = functional.interpolate(doubt, size=shape, mode='trilinear', align_corners=True)[0]
        posterior = (posterior + 0.01).pow(self._uniform(0.6, 1.6))
        posterior = posterior * torch.exp(self._uniform(0, 0.8) * doubt)
        posterior = posterior / posterior.sum(dim=0, keepdim=True)
        sides = (side[1] - side[0])[None]
        sides = functional.avg_pool3d(
            functional.pad(sides[None], (1,) * 6, mode='replicate'), 3, 1
        )[0]
        return start, torch.cat([posterior, sides])
