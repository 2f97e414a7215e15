# SPDX-License-Identifier: Apache-2.0
"""Training samples of the T1w synthesis: simulated diffusion channels and the T1w to predict.

An anatomy is either a label map of a whole head, painted in one T1w contrast, or a real T1w with
its labels, which adds what no painting has: real texture and real borders. It is deformed, also
along one axis as echo-planar images are, *before* both images are made of it: the T1w lies on the
distorted grid of the diffusion data, where it is wanted. The diffusion images have voxels of their
own, as large as those of the T1w or larger, and are interpolated as in use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from bids_app.errors import ImageError
from bids_app.training.diffusion_simulation import (
    AIR,
    HEAD,
    OUTER_FLUID,
    Microstructure,
    TissueDraw,
    add_noise,
    draw_scheme,
    draw_tissues,
    fit_tensors,
    simulate_signals,
    stack_channels,
    tissue_table,
)
from bids_app.training.heads import DERIVATIVE
from bids_app.training.label_maps import separate_septum
from bids_app.training.synthesis import Deformation, Ranges

TARGET_LIMIT = 5.0
"""The T1w to predict is clipped to this many standard deviations."""

_EXTENT = 130.0  # mm from the centre of the brain in which a head is deformed
_SURVEY = 7.0  # mm between the points that the statistics of a whole brain are of
_RAW = slice(2, 5)  # the channels that are not z-scored: eigenvalues
_LEAST_BRAIN = 0.35  # of a block, or of the brain where that is smaller
_FILLED = 0.5  # share of its box that a brain fills
_CSF = 24  # the label of fluid around the brain
_WHITE = 6  # index of cerebral white matter in the table of tissues


@dataclass
class Anatomy:
    """A head to simulate.

    Attributes
    ----------
    tissues : torch.Tensor, shape (x, y, z), uint8
        Indices into :data:`bids_app.training.diffusion_simulation.TISSUES`, RAS+.
    t1w : torch.Tensor or None, shape (x, y, z), float16
        Bias-corrected T1w on the same grid, 1 on average in the brain, 0 outside.
    zooms : torch.Tensor, shape (3,)
        Voxel size, mm.
    centre : torch.Tensor, shape (3,)
        Voxel in the middle of the brain.
    reach : torch.Tensor, shape (3,)
        Half the edges of the box around the brain, mm.
    name : str
        File name.
    """

    tissues: torch.Tensor
    t1w: torch.Tensor | None
    zooms: torch.Tensor
    centre: torch.Tensor
    reach: torch.Tensor
    name: str


def load_anatomies(files: list[Path]) -> list[Anatomy]:
    """Read label maps of whole heads, and sessions of AnatNet's derivatives.

    Parameters
    ----------
    files : list of pathlib.Path
        Whole-head label maps, or ``*_desc-wholebrain_dseg.nii.gz`` of AnatNet's derivatives, to
        which ``desc-preproc_T1w`` and ``desc-brain_mask`` belong.

    Returns
    -------
    list of Anatomy

    Raises
    ------
    ImageError
        If there is no file, or one of them cannot be read.
    """
    if not files:
        raise ImageError('no heads to simulate: check --data')
    return [_load(file) for file in files]


def _load(file: Path) -> Anatomy:
    try:
        image = nib.as_closest_canonical(nib.load(file))
        labels = np.asarray(image.dataobj).astype(np.int16)
        t1w = None
        if file.name.endswith(DERIVATIVE):
            stem = file.name.removesuffix(DERIVATIVE)
            t1w, mask = (
                nib.as_closest_canonical(nib.load(file.with_name(f'{stem}_{end}.nii.gz')))
                .get_fdata(dtype=np.float32)
                for end in ('desc-preproc_T1w', 'desc-brain_mask')
            )  # fmt: skip
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise ImageError(f'{file}: cannot be used to simulate diffusion ({error})') from error
    table = tissue_table().numpy()
    if t1w is None:
        tissues = _name_outer_fluid(table[separate_septum(labels)], labels == _CSF)
    else:
        tissues = np.where(mask > 0, table[labels], AIR)
        t1w = np.where(mask > 0, t1w / t1w[mask > 0].mean(), 0)
    zooms = np.array(image.header.get_zooms()[:3], dtype=np.float32)
    # A little of the head around the brain is enough, and some air, which is all that is beyond.
    inner = ~np.isin(tissues, (AIR, HEAD, OUTER_FLUID))
    box = tuple(slice(max(0, first - 12), last + 13) for first, last in _ends(inner))
    tissues = np.pad(tissues[box], 1, constant_values=AIR)
    if t1w is not None:
        t1w = np.pad(t1w[box].astype(np.float16), 1)
    first, last = np.array(_ends(np.pad(inner[box], 1)), dtype=np.float32).T
    return Anatomy(
        torch.from_numpy(tissues),
        None if t1w is None else torch.from_numpy(t1w),
        torch.from_numpy(zooms),
        torch.from_numpy((first + last) / 2),
        torch.from_numpy((last - first) / 2 * zooms),
        file.name,
    )


def _ends(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of a mask along each axis."""
    hits = [mask.any(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    return [(int(hit.argmax()), len(hit) - 1 - int(hit[::-1].argmax())) for hit in hits]


def _name_outer_fluid(tissues: np.ndarray, fluid: np.ndarray, closing: int = 2) -> np.ndarray:
    """Tell CSF around the brain from that in sulci, which every mask of a brain holds."""
    from scipy import ndimage

    brain = ~np.isin(tissues, (AIR, HEAD)) & ~fluid
    box = tuple(slice(max(0, first - 5), last + 6) for first, last in _ends(brain))
    closed = np.zeros_like(brain)
    neighbours = ndimage.generate_binary_structure(3, 2)
    closed[box] = ndimage.binary_closing(brain[box], neighbours, closing)
    closed[box] = ndimage.binary_fill_holes(closed[box])
    return np.where(fluid & ~closed, OUTER_FLUID, tissues).astype(np.uint8)


class SmoothField:
    """A random smooth function of the position in a head, in millimetres.

    Parameters
    ----------
    channels : int
        Components.
    distance : float
        Distance of control points, mm.
    generator : torch.Generator
        Source of randomness.

    Notes
    -----
    Between the control points, which are N(0, 1), it is a quadratic B-spline.
    """

    def __init__(self, channels: int, distance: float, generator: torch.Generator) -> None:
        self.points = max(4, round(2 * _EXTENT / distance) + 1)
        shape = (channels, self.points, self.points, self.points)
        self.control = torch.randn(shape, generator=generator)

    def at(self, axes: list[torch.Tensor]) -> torch.Tensor:
        """Return the values at positions along each axis, mm: shape (channels, x, y, z)."""
        out = self.control
        for axis, positions in enumerate(axes):
            place = (positions + _EXTENT) / (2 * _EXTENT) * (self.points - 1)
            distance = (place.clamp(0, self.points - 1)[:, None] - torch.arange(self.points)).abs()
            weight = torch.where(
                distance < 0.5, 0.75 - distance**2, 0.5 * (1.5 - distance).clamp_min(0) ** 2
            )
            out = torch.tensordot(out, weight, dims=([axis + 1], [1])).movedim(-1, axis + 1)
        return out


@dataclass
class DiffusionSample:
    """One training sample.

    Attributes
    ----------
    channels : torch.Tensor, shape (11, x, y, z), float32
        As inference gives them; 0 outside the mask.
    target : torch.Tensor, shape (1, x, y, z), float32
        T1w as z-scores in the brain; 0 outside the mask.
    mask : torch.Tensor, shape (1, x, y, z), bool
        Brain.
    """

    channels: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor


class Scene:
    """One deformed head with all that is drawn for it; anything can be computed anywhere.

    Parameters
    ----------
    anatomy : Anatomy
        The head.
    ranges : Ranges
        Of the deformation; ``bias`` is that of the receiver field.
    generator : torch.Generator
        Source of randomness.
    """

    def __init__(self, anatomy: Anatomy, ranges: Ranges, generator: torch.Generator) -> None:
        self.anatomy, self.generator = anatomy, generator
        self.deformation = Deformation(ranges, _EXTENT, torch.zeros(3), generator)
        self.tissues: TissueDraw = draw_tissues(generator)
        self.scheme = draw_scheme(generator)
        self.fibres = SmoothField(6, self.uniform(14, 30), generator)
        self.mixing = SmoothField(1, self.uniform(8, 16), generator)
        self.coherence = SmoothField(1, self.uniform(10, 25), generator)
        self.bias = SmoothField(1, 60.0, generator)
        self.bias_size = ranges.bias * self.uniform(0, 1)
        # Arrays of small coils are several times as bright at the surface as in the middle.
        self.coil_size = max(0.0, self.uniform(-0.6, 1.2))
        self.coil_centre = 0.35 * torch.randn(3, generator=generator)
        self.distortion = SmoothField(1, self.uniform(25, 45), generator)
        self.distortion_size = 3.0 * self.uniform(0, 1) ** 2
        self.distorted_axis = 1 if self.uniform(0, 1) < 0.8 else 0
        # Masks of label maps: with all CSF, or only with what lies between gyri.
        self.tight = self.uniform(0, 1) < 0.6
        self.border = self.uniform(0.3, 0.7)
        self.texture = 8.0 * self.uniform(0, 1)
        # Now and then the field of view ends within the brain.
        self.bottom, self.top = -math.inf, math.inf
        if self.uniform(0, 1) < 0.15:
            reach = float(anatomy.reach[2])
            self.bottom = self.uniform(-1, -0.2) * reach
            self.top = self.uniform(0.2, 1) * reach

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def survey_axes(self) -> list[torch.Tensor]:
        """Return positions all over the head, mm."""
        counts = (2 * (1.2 * self.anatomy.reach + 10) / _SURVEY).int().tolist()
        return [_SURVEY * (torch.arange(n) - (n - 1) / 2) for n in counts]

    def shares(
        self, axes: list[torch.Tensor], voxel: torch.Tensor, cuts: int, image: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what voxels around some positions hold.

        Parameters
        ----------
        axes : list of torch.Tensor
            Positions along each axis, mm.
        voxel : torch.Tensor, shape (3,)
            Size of the voxels, mm; they need not touch each other.
        cuts : int
            Sub-voxel positions along each axis.
        image : bool
            Whether the T1w of the anatomy is wanted, too.

        Returns
        -------
        shares : torch.Tensor, shape (tissues, x, y, z)
        t1w : torch.Tensor or None, shape (x, y, z)
        """
        anatomy = self.anatomy
        zooms = anatomy.zooms.view(3, 1, 1, 1)
        places = self.deformation.at(axes)
        shift = self.distortion_size * self.distortion.at(axes)
        places += self.deformation.matrix[:, self.distorted_axis].view(3, 1, 1, 1) * shift
        places = places / zooms + anatomy.centre.view(3, 1, 1, 1)
        steps = self.deformation.matrix * voxel / anatomy.zooms[:, None]
        inner = (torch.arange(cuts) + 0.5) / cuts - 0.5
        size = anatomy.tissues.shape
        count = len(self.tissues.signal)
        voxels = math.prod(places.shape[1:])
        found = torch.zeros(count, voxels)
        one = torch.full((1, voxels), 1 / cuts**3)
        t1w = torch.zeros(voxels) if image and anatomy.t1w is not None else None
        tissues = anatomy.tissues.flatten()
        for offset in torch.cartesian_prod(inner, inner, inner):
            delta = steps @ offset
            index = torch.zeros(voxels, dtype=torch.int32)
            inside = torch.ones(voxels, dtype=torch.bool)
            for axis in range(3):
                at = (places[axis].flatten() + (delta[axis] + 0.5)).floor_().to(torch.int32)
                inside &= (at >= 0) & (at < size[axis])
                index = index * size[axis] + at
            index = torch.where(inside, index, 0)
            # The first voxel is in a corner of the box around the head: air.
            found.scatter_add_(0, tissues.index_select(0, index).long()[None], one)
            if t1w is not None:
                t1w += anatomy.t1w.flatten().index_select(0, index).float()
        shape = places.shape[1:]
        return (
            found.view(count, *shape),
            None if t1w is None else t1w.view(shape) / cuts**3,
        )

    def mask(self, shares: torch.Tensor, axes: list[torch.Tensor], smooth: bool) -> torch.Tensor:
        """Return the brain as masks have it: shape (x, y, z), bool."""
        outside = shares[AIR] + shares[HEAD] + (shares[OUTER_FLUID] if self.tight else 0)
        brain = 1 - outside
        border = 0.5
        if smooth:  # the border is uncertain by a part of a voxel
            brain = functional.avg_pool3d(brain[None, None], 3, 1, 1)[0, 0]
            border = self.border
        if self.anatomy.t1w is not None:
            border = max(border, 0.5)  # there is no T1w around it
        seen = (axes[2] >= self.bottom) & (axes[2] <= self.top)
        return (brain > border) & seen

    def diffusion(
        self, shares: torch.Tensor, axes: list[torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the channels of the voxels of a mask, not normalised: shape (11, n)."""

        def inside(field: SmoothField) -> torch.Tensor:
            return field.at(axes)[:, mask]

        fibres = inside(self.fibres)
        from_coil = sum(
            (((one / reach - middle) ** 2).view([-1 if i == axis else 1 for i in range(3)]))
            for axis, (one, reach, middle) in enumerate(
                zip(axes, self.anatomy.reach, self.coil_centre, strict=True)
            )
        )
        coil = self.coil_size * (from_coil[mask] - 1).clamp(-1, 1.2)
        gain = torch.exp(self.bias_size * inside(self.bias)[0] + coil)
        shift = self.distortion_size * self.distortion.at(axes)[0]
        (slope,) = torch.gradient(
            shift, spacing=(axes[self.distorted_axis],), dim=self.distorted_axis
        )
        voxels = Microstructure(
            shares[:, mask],
            functional.normalize(fibres[:3], dim=0),
            functional.normalize(fibres[3:], dim=0),
            torch.sigmoid(8 * (inside(self.mixing)[0] - 0.3)),
            (0.9 + 0.35 * inside(self.coherence)[0]).clamp(0.4, 1.25),
            gain * (1 + slope[mask]).clamp(0.3, 2),
        )
        signals = simulate_signals(voxels, self.tissues, self.scheme)
        white = float(self.tissues.signal[_WHITE])
        b0, weighted = add_noise(*signals, self.scheme, white, self.generator)
        return stack_channels(b0, weighted, fit_tensors(b0, weighted, self.scheme))

    def t1w(self, shares: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
        """Return the T1w of some voxels: a real one, or one painted in the canonical contrast."""
        if image is not None:
            return image
        painted = torch.tensordot(self.tissues.t1w, shares, 1)
        return painted + self.texture * torch.randn(painted.shape, generator=self.generator)


class DiffusionSampler:
    """Draws blocks without end.

    Parameters
    ----------
    anatomies : list of Anatomy
        What to draw from; label maps and real T1w have the same share if there are both.
    ranges : Ranges
        Of the deformation and the receiver field.
    shape : tuple of int
        Voxels of a block.
    spacing : float
        Smallest voxel size, mm.
    cuts : int
        Sub-voxel positions along each axis.
    seed : int
        Seed of the sequence: the same seed gives the same samples.
    """

    def __init__(
        self,
        anatomies: list[Anatomy],
        ranges: Ranges,
        shape: tuple[int, int, int],
        spacing: float,
        cuts: int,
        seed: int,
    ) -> None:
        self.kinds = [
            kind
            for kind in (
                [one for one in anatomies if one.t1w is None],
                [one for one in anatomies if one.t1w is not None],
            )
            if kind
        ]
        self.ranges, self.shape, self.spacing, self.cuts = ranges, shape, spacing, cuts
        self.generator = torch.Generator().manual_seed(seed)

    def _uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _voxels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the voxel size of the block and of the diffusion images, mm: shape (3,) each."""
        in_plane = self._uniform(1.25, 3.2)
        slices = in_plane if self._uniform() < 0.7 else self._uniform(in_plane, 4.2)
        measured = torch.tensor([in_plane, in_plane, slices])
        if self._uniform() < 0.4:  # on the grid of the diffusion images
            return measured, measured
        size = self.spacing if self._uniform() < 0.7 else self._uniform(self.spacing, in_plane)
        return torch.full((3,), size), measured

    def draw(self) -> DiffusionSample:
        """Return one sample; blocks with hardly any brain are drawn again."""
        while True:
            kind = self.kinds[int(self._uniform(0, len(self.kinds)))]
            anatomy = kind[int(self._uniform(0, len(kind)))]
            scene = Scene(anatomy, self.ranges, self.generator)
            voxel, measured = self._voxels()
            # The farther a block may be from the middle, the less of the brain it holds.
            half = voxel * torch.tensor(self.shape) / 2
            room = (anatomy.reach - 0.6 * half).clamp_min(0)
            centre = room * (2 * torch.rand(3, generator=self.generator) - 1)
            sample = self.block(scene, centre, voxel, measured)
            if sample is not None:
                return sample

    def block(
        self, scene: Scene, centre: torch.Tensor, voxel: torch.Tensor, measured: torch.Tensor
    ) -> DiffusionSample | None:
        """Return the block of a scene around a point, mm; None if it holds hardly any brain."""
        wanted = [
            c + v * (torch.arange(n) - (n - 1) / 2)
            for c, v, n in zip(centre, voxel, self.shape, strict=True)
        ]
        same = bool(torch.equal(voxel, measured))
        axes = wanted
        if not same:
            phases = torch.rand(3, generator=self.generator)
            axes = [
                one[0]
                - m * (1 + p)
                + m * torch.arange(math.ceil(float((one[-1] - one[0]) / m)) + 4)
                for one, m, p in zip(wanted, measured, phases, strict=True)
            ]
        shares, image = scene.shares(axes, measured, self.cuts, image=same)
        mask = scene.mask(shares, axes, smooth=True)
        most = (
            _FILLED * (2 * scene.anatomy.reach).prod() / (voxel * torch.tensor(self.shape)).prod()
        )
        if float(mask.float().mean()) < _LEAST_BRAIN * min(1.0, float(most)):
            return None
        survey, survey_t1w = self._survey(scene, voxel, measured)
        raw = scene.diffusion(shares, axes, mask)
        # Not the eigenvalues: they stay in um^2/ms.
        mean, spread = survey.mean(dim=1, keepdim=True), survey.std(dim=1, keepdim=True)
        mean[_RAW], spread[_RAW] = 0, 1
        channels = torch.zeros((len(raw), *mask.shape))
        channels[:, mask] = (raw - mean) / spread.clamp_min(1e-6)
        if not same:
            channels, mask = interpolate(channels, mask, axes, wanted)
            shares, image = scene.shares(wanted, voxel, self.cuts, image=True)
        target = scene.t1w(shares, image)
        target = (target - survey_t1w.mean()) / survey_t1w.std().clamp_min(1e-6)
        target = torch.where(mask, target.clamp(-TARGET_LIMIT, TARGET_LIMIT), 0.0)
        return DiffusionSample(channels, target[None], mask[None])

    def _survey(
        self, scene: Scene, voxel: torch.Tensor, measured: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return channels (11, n) and T1w (n,) of voxels all over the brain."""
        axes = scene.survey_axes()
        shares, image = scene.shares(axes, measured, self.cuts, image=True)
        mask = scene.mask(shares, axes, smooth=False)
        raw = scene.diffusion(shares, axes, mask)
        if not torch.equal(voxel, measured):
            shares, image = scene.shares(axes, voxel, self.cuts, image=True)
        return raw, scene.t1w(shares, image)[mask]


def interpolate(
    channels: torch.Tensor,
    mask: torch.Tensor,
    given: list[torch.Tensor],
    wanted: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring channels to another grid with the same axes, linearly, the border of the mask kept.

    The same rule as :func:`bids_app.inference.deepanat.regrid_channels`: what lies outside the
    mask has no weight, and the new mask is where the old one has more than half of the weight.

    Parameters
    ----------
    channels : torch.Tensor, shape (c, x, y, z)
    mask : torch.Tensor, shape (x, y, z), bool
    given, wanted : list of torch.Tensor
        Positions along each axis, evenly spaced.

    Returns
    -------
    channels, mask
        On the wanted grid.
    """
    out = torch.cat([channels * mask, mask[None].float()])
    for axis, (old, new) in enumerate(zip(given, wanted, strict=True)):
        distance = (new[:, None] - old[None]).abs() / (old[1] - old[0])
        out = torch.tensordot(out, (1 - distance).clamp_min(0), dims=([axis + 1], [1]))
        out = out.movedim(-1, axis + 1)
    inside = out[-1] > 0.5
    return torch.where(inside, out[:-1] / out[-1].clamp_min(0.5), 0.0), inside
