# SPDX-License-Identifier: Apache-2.0
"""Images from label maps: deform, draw a contrast, spoil as scanners do.

The approach of SynthSeg (Billot et al., Medical Image Analysis 2023) and SynthStrip (Hoopes et
al., NeuroImage 2022), written so that only the wanted grid is ever computed: a coarse whole head
and a fine crop cost what their voxels cost. Partial volume comes from drawing several sub-voxel
positions of the label map for each voxel and averaging their intensities.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional

from bids_app.training.contrast import Contrast


@dataclass(frozen=True)
class Ranges:
    """Ranges of the random changes; see ``recipe.toml`` for the values in use.

    Attributes
    ----------
    rotation : float
        Largest rotation about each axis, degrees.
    scaling : tuple of float
        Smallest and largest zoom of an axis.
    shear : float
        Largest off-diagonal element.
    elastic : float
        Largest standard deviation of the displacement of control points, mm.
    control_spacing : float
        Distance of control points, mm.
    bias : float
        Largest standard deviation of the log bias field.
    noise : float
        Largest standard deviation of the noise, as a share of the intensity scale.
    gamma : float
        Standard deviation of the log exponent.
    thickness : float
        Largest slice thickness, mm.
    low_resolution : float
        Probability of a coarser resolution than the grid.
    stripped : float
        Probability of a skull-stripped image.
    t1w, t2w, flair : float
        Probabilities of those contrasts; the rest is random contrast.
    bright_fat : float
        Probability that the head around the brain is brighter on T1w than in the table.
    thick_slices : float
        With several contrasts: probability of a coarser resolution of T2w and FLAIR.
    misalignment : float
        With several contrasts: standard deviation of what coregistration leaves, mm and degrees.
    missing : float
        With several contrasts: probability that one of them is missing.
    """

    rotation: float = 20.0
    scaling: tuple[float, float] = (0.85, 1.18)
    shear: float = 0.1
    elastic: float = 4.0
    control_spacing: float = 30.0
    bias: float = 0.4
    noise: float = 0.06
    gamma: float = 0.25
    thickness: float = 6.0
    low_resolution: float = 0.4
    stripped: float = 0.4
    t1w: float = 0.6
    t2w: float = 0.1
    flair: float = 0.0
    bright_fat: float = 0.0
    elastic_fine: float = field(default=1.5)
    thick_slices: float = 0.6
    misalignment: float = 0.4
    missing: float = 0.0


def rotation_matrix(degrees: torch.Tensor) -> torch.Tensor:
    """Return the product of rotations about x, y and z: shape (3, 3) for three angles."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(torch.deg2rad(degrees)):
        turn = torch.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = torch.cos(angle)
        turn[i, j], turn[j, i] = -torch.sin(angle), torch.sin(angle)
        matrix = matrix @ turn
    return matrix


class Deformation:
    """A random smooth map from a target grid in millimetres to a label map in voxels.

    Parameters
    ----------
    ranges : Ranges
        How far the map may go.
    extent : float
        Half the edge of the cube, centred on zero, in which the displacement is defined, mm.
    centre : torch.Tensor, shape (3,)
        The voxel of the label map that the origin of the target comes from.
    generator : torch.Generator
        Source of randomness.

    Attributes
    ----------
    flip : bool
        Whether the target is mirrored in x: left and right swap.
    """

    def __init__(
        self, ranges: Ranges, extent: float, centre: torch.Tensor, generator: torch.Generator
    ) -> None:
        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        matrix = rotation_matrix(uniform(-ranges.rotation, ranges.rotation, 3))
        common = uniform(*ranges.scaling, 1)
        own = uniform(0.95, 1.05, 3)
        shear = torch.eye(3) + uniform(-ranges.shear, ranges.shear, 3, 3) * (1 - torch.eye(3)) / 2
        self.flip = bool(torch.rand((), generator=generator) < 0.5)
        mirror = torch.diag(torch.tensor([-1.0 if self.flip else 1.0, 1.0, 1.0]))
        # Target to source: the zoom of the target is the inverse of what is applied here.
        self.matrix = mirror @ matrix @ shear @ torch.diag(1 / (common * own))
        self.centre = centre
        self.extent = extent
        self.displacements = []
        for spacing, largest in (
            (ranges.control_spacing, ranges.elastic),
            (ranges.control_spacing / 2.5, ranges.elastic_fine),
        ):
            points = max(4, round(2 * extent / spacing) + 1)
            size = largest * torch.rand((), generator=generator)
            shape = (1, 3, points, points, points)
            self.displacements.append(size * torch.randn(shape, generator=generator))

    def grid(self, origin: torch.Tensor, spacing: float, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the label-map voxel coordinates of a regular target grid.

        Parameters
        ----------
        origin : torch.Tensor, shape (3,)
            Position of the first voxel, mm.
        spacing : float
            Voxel size, mm.
        shape : tuple of int
            Voxels of the grid.

        Returns
        -------
        torch.Tensor, shape (3, x, y, z)
        """
        return self.at([origin[i] + spacing * torch.arange(n) for i, n in enumerate(shape)])

    def at(self, axes: list[torch.Tensor]) -> torch.Tensor:
        """Return what :meth:`grid` does for positions along each axis, mm: (3, x, y, z)."""
        linear = [self.matrix[:, i, None] * axes[i] for i in range(3)]
        coordinates = (
            linear[0][:, :, None, None] + linear[1][:, None, :, None] + linear[2][:, None, None, :]
        )
        coordinates = coordinates + self.centre[:, None, None, None]
        for control in self.displacements:
            coordinates += _separable_interpolation(control[0], axes, self.extent)
        return coordinates


def _separable_interpolation(
    control: torch.Tensor, axes: list[torch.Tensor], extent: float
) -> torch.Tensor:
    """Evaluate a control grid over ``-extent..extent`` with quadratic B-splines, per axis."""
    out = control
    for axis, positions in enumerate(axes):
        n = control.shape[axis + 1]
        at = ((positions + extent) / (2 * extent) * (n - 1)).clamp(0, n - 1)
        distance = (at[:, None] - torch.arange(n)[None, :]).abs()
        weight = torch.where(
            distance < 0.5, 0.75 - distance**2, 0.5 * (1.5 - distance).clamp_min(0) ** 2
        )
        out = torch.tensordot(out, weight, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return out


def sample_labels(label_map: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Return the label at the voxel nearest to each coordinate, 0 outside the map.

    Parameters
    ----------
    label_map : torch.Tensor, shape (x, y, z), uint8
        Indices of labels.
    coordinates : torch.Tensor, shape (3, ...)
        Voxel coordinates of the map.

    Returns
    -------
    torch.Tensor, shape (...), int32
    """
    nearest = coordinates.round().to(torch.int32)
    size = label_map.shape
    x, y, z = nearest
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1]) & (z >= 0) & (z < size[2])
    flat = (x * size[1] + y) * size[2] + z
    flat = torch.where(inside, flat, 0)
    labels = label_map.flatten().index_select(0, flat.flatten()).view(flat.shape).to(torch.int32)
    return torch.where(inside, labels, 0)


def sub_voxel_labels(
    label_map: torch.Tensor,
    coordinates: torch.Tensor,
    step: torch.Tensor,
    draws: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Sample labels at ``draws`` random positions inside each voxel.

    Parameters
    ----------
    label_map : torch.Tensor, shape (x, y, z), uint8
        Indices of labels.
    coordinates : torch.Tensor, shape (3, x, y, z)
        Label-map coordinates of the voxel centres.
    step : torch.Tensor, shape (3, 3)
        Columns: how far one voxel of the target reaches in the label map.
    draws : int
        Number of positions.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    list of torch.Tensor, each shape (x, y, z), int32
    """
    out = []
    for _ in range(draws):
        offset = torch.rand(coordinates.shape, generator=generator) - 0.5
        out.append(
            sample_labels(label_map, coordinates + torch.tensordot(step, offset, dims=([1], [0])))
        )
    return out


def paint(
    labels: list[torch.Tensor], contrast: Contrast, generator: torch.Generator
) -> torch.Tensor:
    """Draw an intensity for every sub-voxel label and average: shape (x, y, z), float32."""
    image = torch.zeros(labels[0].shape)
    for draw in labels:
        flat = draw.flatten()
        noise = torch.randn(flat.shape, generator=generator)
        value = contrast.mean.index_select(0, flat) + contrast.spread.index_select(0, flat) * noise
        image += value.view(draw.shape)
    return image / len(labels)


def corrupt(
    image: torch.Tensor, ranges: Ranges, spacing: float, generator: torch.Generator
) -> torch.Tensor:
    """Spoil an image as scanners do: bias field, resolution, noise, gamma.

    Parameters
    ----------
    image : torch.Tensor, shape (x, y, z)
        Intensities on a scale of about 0 to 255.
    ranges : Ranges
        How much.
    spacing : float
        Voxel size, mm.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    torch.Tensor, shape (x, y, z), float32
        Non-negative.
    """

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    shape = image.shape
    control = torch.randn((1, 1, 4, 4, 4), generator=generator) * ranges.bias * uniform()
    bias = functional.interpolate(control, size=shape, mode='trilinear', align_corners=True)
    image = image * bias[0, 0].exp()
    noise = 255 * ranges.noise * uniform() ** 2
    if uniform() < ranges.low_resolution:
        thick = spacing + (ranges.thickness - spacing) * uniform() ** 1.5
        in_plane = spacing + 0.5 * uniform() * max(0.0, thick - spacing) * (uniform() < 0.5)
        axis = int(uniform() * 3)
        sizes = [
            max(8, round(n * spacing / (thick if i == axis else in_plane)))
            for i, n in enumerate(shape)
        ]
        if thick > 1.2 * spacing:
            small = functional.interpolate(image[None, None], size=sizes, mode='area')
            small = small + noise * torch.randn(small.shape, generator=generator)
            image = functional.interpolate(
                small, size=shape, mode='trilinear', align_corners=False
            )[0, 0]
            noise = 0.0
    elif uniform() < 0.6:  # a little blur: interpolation, filtering by the scanner, motion
        image = _blur(image, 0.3 + 0.7 * uniform())
    if noise:
        image = image + noise * torch.randn(shape, generator=generator)
    image = image.clamp_min(0)
    exponent = float(torch.exp(ranges.gamma * torch.randn((), generator=generator)))
    top = image.max().clamp_min(1e-6)
    return (image / top).pow(exponent)


def _blur(image: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian blur with a standard deviation in voxels, up to about 1."""
    at = torch.arange(-2, 3, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / deviation) ** 2)
    kernel = kernel / kernel.sum()
    out = image[None, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = 5
        padding = [0, 0, 0]
        padding[axis] = 2
        out = functional.conv3d(out, kernel.view(shape), padding=padding)
    return out[0, 0]
