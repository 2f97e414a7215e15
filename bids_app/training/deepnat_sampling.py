# SPDX-License-Identifier: Apache-2.0
"""Crops of scans, and the patches in them that DeepNAT learns from.

Patches of one parity share their convolutions in a crop, so a step costs what its crops cost and
not what thousands of single patches would. Sampling is hierarchical: a class, one of its voxels,
a crop around it, then patches in the crop. Rare classes are drawn more often at both places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from bids_app.inference.deepnat_classes import mirrored_classes
from bids_app.inference.deepnat_input import ODD_ROWS, coordinate_rows
from bids_app.networks.deepnat import CENTRE, OFFSETS, PATCH, STRIDE
from bids_app.training.deepnat_labels import UNKNOWN
from bids_app.training.deepnat_scans import DeepNATScan
from bids_app.training.synthesis import Deformation, Ranges, sample_labels

_JITTER = 10.0
"""How far the middle of a crop may be from the voxel that was drawn for it, voxels."""


@dataclass(frozen=True)
class Sampling:
    """How crops and patches are drawn.

    Attributes
    ----------
    patches : int
        Patches of a crop.
    crops, centres : float
        The probability of a class, as the middle of a crop and as the centre of a patch, is its
        number of voxels to this power: 1 is as they are, 0 is all classes alike.
    late_centres : float
        The latter while the learning rate falls. With 1 the probabilities that the network learns
        are those of the brain; before, rare structures come out too large.
    plain : float
        Share of crops that are not deformed, only mirrored: interpolation blurs.
    """

    patches: int = 344
    crops: float = 0.5
    centres: float = 0.75
    late_centres: float = 1.0
    plain: float = 0.25


@dataclass
class PatchSample:
    """A crop and the patches that count in it.

    Attributes
    ----------
    image : torch.Tensor, shape (1, x, y, z), float32
    index : torch.Tensor, shape (patches, 3), int64
        First feature of each patch in the features of the crop.
    coordinates : torch.Tensor, shape (patches, coordinates), float32
        Of the centres.
    target : torch.Tensor, shape (patches, 7), int64
        Class of the centre and its neighbours (:data:`bids_app.networks.deepnat.OFFSETS`).
    """

    image: torch.Tensor
    index: torch.Tensor
    coordinates: torch.Tensor
    target: torch.Tensor


def centre_count(size: int) -> int:
    """Return the number of patches of one parity along an axis of a crop."""
    return (size - PATCH) // STRIDE + 1


def at_centres(volume: torch.Tensor, offset: tuple[int, int, int] = (0, 0, 0)) -> torch.Tensor:
    """Return the voxels at the centres of all patches of a crop, or beside them.

    Parameters
    ----------
    volume : torch.Tensor, shape (..., x, y, z)
        On the grid of the crop.
    offset : tuple of int
        Voxels from the centre.
    """
    parts = []
    for size, step in zip(volume.shape[-3:], offset, strict=True):
        first = CENTRE + step
        parts.append(slice(first, first + STRIDE * (centre_count(size) - 1) + 1, STRIDE))
    return volume[(..., *parts)]


def eligible(classes: torch.Tensor, wide: torch.Tensor, foreground: bool) -> torch.Tensor:
    """Return where the centres of patches may lie.

    Parameters
    ----------
    classes : torch.Tensor of int, shape (x, y, z)
        Truth.
    wide : torch.Tensor of bool, shape (x, y, z)
        Brain mask with a rim.
    foreground : bool
        For the network that finds the foreground: all of the mask. Else the true foreground and
        one voxel around it, because the foreground that is found may be too large.

    Returns
    -------
    torch.Tensor of bool, shape (x, y, z)
        Without voxels of which the class is not known.
    """
    known = classes != UNKNOWN
    if foreground:
        return wide & known
    inside = functional.max_pool3d((classes > 0).float()[None, None], 3, 1, 1)[0, 0] > 0
    return inside & wide & known


class PatchSampler:
    """Draws crops without end.

    Parameters
    ----------
    scans : list of DeepNATScan
        What to draw from, each as likely.
    ranges : Ranges
        ``rotation``, ``scaling``, ``shear`` and the elastic ones of the deformation; ``bias``,
        ``noise`` and ``gamma`` of the intensities; with a probability of 1 - ``stripped`` the rim
        of the mask is filled with something.
    shape : tuple of int
        Voxels of a crop.
    seed : int
        Seed of the sequence.
    foreground : bool
        Whether the targets are foreground against background.
    kinds : sequence of str
        Coordinates (:data:`bids_app.inference.deepnat_input.COORDINATES`).
    sampling : Sampling
        How often classes are drawn.
    """

    def __init__(
        self,
        scans: list[DeepNATScan],
        ranges: Ranges,
        shape: tuple[int, int, int],
        seed: int,
        *,
        foreground: bool,
        kinds: list[str],
        sampling: Sampling,
    ) -> None:
        self.scans, self.ranges, self.shape = scans, ranges, shape
        self.foreground, self.sampling = foreground, sampling
        self.rows = coordinate_rows(kinds)
        self.generator = torch.Generator().manual_seed(seed)
        self._mirrored = torch.arange(256)
        self._mirrored[: len(mirrored_classes())] = torch.from_numpy(mirrored_classes())
        self._voxels = [self._by_class(scan) for scan in scans]

    def _by_class(self, scan: DeepNATScan) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the eligible voxels of a scan in the order of their classes, and how many."""
        classes = scan.classes
        if self.foreground:
            classes = torch.where(classes == UNKNOWN, classes, (classes > 0).to(classes.dtype))
        # The rim of one voxel needs no crops of its own.
        there = scan.wide & (classes != UNKNOWN) & (self.foreground | (classes > 0))
        voxels = there.flatten().nonzero().flatten().to(torch.int32)
        found = classes.flatten()[voxels.long()]
        return voxels[found.argsort(stable=True)], torch.bincount(found.long())

    def _uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _centre(self, number: int) -> torch.Tensor:
        """Draw a class, one of its voxels, and the middle of a crop around it."""
        voxels, counts = self._voxels[number]
        weights = torch.where(counts > 0, counts.double() ** self.sampling.crops, 0.0)
        chosen = int(torch.multinomial(weights, 1, generator=self.generator))
        first = int(counts[:chosen].sum())
        place = int(voxels[first + int(self._uniform(0, int(counts[chosen])))])
        _, ny, nz = self.scans[number].classes.shape
        voxel = torch.tensor([place // (ny * nz), place // nz % ny, place % nz])
        return voxel + (2 * torch.rand(3, generator=self.generator) - 1) * _JITTER

    def _grid(self, centre: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Return the voxel of the scan for each voxel of the crop (3, x, y, z); mirrored?"""
        half = (torch.tensor(self.shape) - 1) / 2
        if self._uniform() < self.sampling.plain:
            flip = self._uniform() < 0.5
            first = (centre - half).round()
            axes = [torch.arange(n) + first[axis] for axis, n in enumerate(self.shape)]
            if flip:
                axes[0] = axes[0].flip(0)
            return torch.stack(torch.meshgrid(*axes, indexing='ij')), flip
        extent = max(self.shape) / 2 + 12
        deformation = Deformation(self.ranges, extent, centre, self.generator)
        return deformation.grid(-half, 1.0, self.shape), deformation.flip

    def draw(self) -> PatchSample:
        """Return one sample; crops with hardly a place for patches are drawn again."""
        while True:
            number = int(self._uniform(0, len(self.scans)))
            scan = self.scans[number]
            grid, flip = self._grid(self._centre(number))
            classes = sample_labels(scan.classes, grid)
            wide = sample_labels(scan.wide.to(torch.uint8), grid) > 0
            places = at_centres(eligible(classes, wide, self.foreground))
            if int(places.sum()) > self.sampling.patches // 8:
                break
        image = self._change(sample_linear(scan.image[None], grid)[0], classes, wide)
        if flip:
            classes = self._mirrored[classes]
        index = self._choose(at_centres(classes), places)
        chosen = tuple(index.T)
        target = torch.stack([at_centres(classes, step)[chosen] for step in OFFSETS], dim=1)
        where = at_centres(grid)[(slice(None), *chosen)]
        coordinates = sample_linear(scan.coordinates, where)
        if flip:
            coordinates[list(ODD_ROWS)] *= -1
        coordinates = coordinates[self.rows].T
        if self.foreground:
            target = torch.where(target == UNKNOWN, target, (target > 0).to(target.dtype))
        return PatchSample(image[None], index, coordinates.contiguous(), target.long())

    def _choose(self, classes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Draw patches among the places; returns their indices, shape (patches, 3)."""
        index = places.nonzero()
        found = classes[places].long()
        if self.foreground:
            found = (found > 0).long()
        weights = torch.bincount(found).double()[found] ** (self.sampling.centres - 1)
        count = self.sampling.patches
        chosen = torch.multinomial(
            weights, count, replacement=len(index) < count, generator=self.generator
        )
        return index[chosen]

    def _change(
        self, image: torch.Tensor, classes: torch.Tensor, wide: torch.Tensor
    ) -> torch.Tensor:
        """Change the intensities of a crop: contrast, coil, noise, and what lies in the rim."""
        ranges, generator = self.ranges, self.generator
        rim = wide & (classes == 0)
        if self._uniform() > ranges.stripped:
            texture = _smooth_field(self.shape, 12, generator).abs() * self._uniform(0.1, 0.8)
            image = torch.where(rim, torch.maximum(image, texture), image)
        inside = image > 0
        exponent = float(torch.exp(ranges.gamma * torch.randn((), generator=generator)))
        image = image.clamp_min(0).pow(exponent) * self._uniform(0.93, 1.07)
        image = (
            image * (ranges.bias * self._uniform() * _smooth_field(self.shape, 4, generator)).exp()
        )
        noise = ranges.noise * self._uniform() ** 2
        image = image + noise * torch.randn(self.shape, generator=generator)
        return torch.where(inside, image, 0.0).clamp(0, 1.5)


def _smooth_field(shape: tuple[int, ...], points: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a smooth field, SD about 1, from so many control points along each axis."""
    control = torch.randn((1, 1, points, points, points), generator=generator)
    return functional.interpolate(control, size=shape, mode='trilinear', align_corners=True)[0, 0]


def sample_linear(volumes: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Interpolate volumes linearly at voxel coordinates; the border goes on outside.

    Parameters
    ----------
    volumes : torch.Tensor, shape (channels, x, y, z)
        Any floating type; only the box around the coordinates is read.
    grid : torch.Tensor, shape (3, ...)
        Voxel coordinates.

    Returns
    -------
    torch.Tensor, shape (channels, ...), float32
    """
    points = grid.flatten(1)
    limits = torch.tensor(volumes.shape[1:])
    first = torch.minimum(points.amin(dim=1).floor().long().clamp_min(0), limits - 2)
    last = torch.maximum(torch.minimum(points.amax(dim=1).ceil().long(), limits - 1), first + 1)
    box = tuple(slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    size = (last - first).float()
    place = 2 * (points - first[:, None]) / size[:, None] - 1
    found = functional.grid_sample(
        volumes[(slice(None), *box)].float()[None],
        place.flip(0).T.view(1, -1, 1, 1, 3),
        align_corners=True,
        padding_mode='border',
    )
    return found.view(len(volumes), *grid.shape[1:])
