# SPDX-License-Identifier: Apache-2.0
"""Diffusion MRI of known anatomy: tissue parameters, gradient schemes, signals, tensor fit.

A voxel holds up to three compartments: fluid, grey and white matter. Each has an axially symmetric
tensor; white matter is a mixture of two fibre populations. That the signal falls more slowly than
a tensor predicts at high b-values is modelled by a gamma distribution of diffusivities (Oshio et
al., Magnetic Resonance in Medical Sciences 2014). All functions here take flat lists of voxels, so
that only those inside the brain are computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bids_app.diffusion.channels import DIRECTIONS, SYNTHESIS_BVAL
from bids_app.diffusion.tensor import MAX_DIFFUSIVITY, design_matrix

FLUID, GREY, WHITE = range(3)


@dataclass(frozen=True)
class Tissue:
    """Mean properties of a tissue; see :func:`draw_tissues` for how far they vary.

    Attributes
    ----------
    labels : tuple of int
        FreeSurfer's numbers, and those of generation label maps.
    compartment : int
        :data:`FLUID`, :data:`GREY` or :data:`WHITE`.
    signal : float
        T2-weighted intensity without diffusion weighting, on the scale of docs/training.md.
    diffusivity : float
        Mean diffusivity, um^2/ms.
    anisotropy : float
        Fractional anisotropy of one fibre population.
    t1w : float
        Intensity on a bias-corrected T1w, on the same scale.
    """

    labels: tuple[int, ...]
    compartment: int
    signal: float
    diffusivity: float
    anisotropy: float
    t1w: float


TISSUES: tuple[Tissue, ...] = (
    Tissue((0,), GREY, 2, 1.0, 0.0, 5),  # air
    Tissue((), GREY, 25, 1.0, 0.1, 70),  # the head around the brain: every label not named here
    Tissue((), FLUID, 238, 3.0, 0.0, 46),  # CSF that brain masks leave out
    Tissue((24, 4, 5, 14, 15, 43, 44, 72), FLUID, 238, 3.0, 0.0, 46),
    Tissue((136, 137, 163, 164), FLUID, 200, 2.2, 0.1, 62),  # choroid plexus
    Tissue((30, 62), FLUID, 110, 1.8, 0.1, 85),  # vessels
    Tissue((2, 41, 85), WHITE, 72, 0.70, 0.68, 160),
    Tissue((25, 57), WHITE, 140, 1.15, 0.30, 116),  # lesions
    Tissue((3, 42), GREY, 97, 0.85, 0.14, 103),
    Tissue((17, 53), GREY, 97, 0.95, 0.16, 119),
    Tissue((18, 54), GREY, 90, 0.85, 0.15, 116),
    Tissue((26, 58), GREY, 81, 0.75, 0.18, 115),
    Tissue((11, 50), GREY, 79, 0.74, 0.16, 124),
    Tissue((12, 51), GREY, 65, 0.71, 0.15, 135),
    Tissue((13, 52), GREY, 40, 0.78, 0.28, 158),
    Tissue((10, 49), GREY, 67, 0.78, 0.32, 145),
    Tissue((28, 60), WHITE, 62, 0.74, 0.50, 155),
    Tissue((16,), WHITE, 66, 0.74, 0.60, 156),
    Tissue((7, 46), WHITE, 72, 0.68, 0.55, 162),
    Tissue((8, 47), GREY, 95, 0.77, 0.15, 119),
)
"""What label maps are translated to."""

AIR, HEAD, OUTER_FLUID, INNER_FLUID = range(4)
"""Indices of the tissues that brain masks draw their border between."""

_PIVOT = 72.0  # the T2-weighted signal that contrast is raised or lowered about
_GAMMA_SHAPE = (0.01, 0.15, 0.3)  # width of the distribution of diffusivities, per compartment
_MOST_DIRECTIONS = 12


def tissue_table(size: int = 1024) -> torch.Tensor:
    """Return the index into :data:`TISSUES` of every label value: shape (size,), uint8."""
    table = torch.full((size,), HEAD, dtype=torch.uint8)
    for index, tissue in enumerate(TISSUES):
        table[list(tissue.labels)] = index
    return table


@dataclass(frozen=True)
class TissueDraw:
    """Properties of all tissues in one head; tensors of shape (tissues,).

    Attributes
    ----------
    signal, diffusivity, anisotropy, t1w : torch.Tensor
        As in :class:`Tissue`.
    """

    signal: torch.Tensor
    diffusivity: torch.Tensor
    anisotropy: torch.Tensor
    t1w: torch.Tensor


def draw_tissues(generator: torch.Generator) -> TissueDraw:
    """Draw the properties of all tissues.

    The T2-weighted contrast varies as with the echo time, each tissue a little on its own. The
    T1w hardly varies: it is one contrast that the network is to learn.
    """

    def column(name: str) -> torch.Tensor:
        return torch.tensor([float(getattr(tissue, name)) for tissue in TISSUES])

    def normal() -> torch.Tensor:
        return torch.randn(len(TISSUES), generator=generator)

    power = 0.7 + 0.7 * torch.rand((), generator=generator)
    signal = _PIVOT * (column('signal') / _PIVOT) ** power
    signal = signal * torch.exp(0.08 * normal())
    diffusivity = column('diffusivity') * torch.exp(0.06 * normal())
    anisotropy = (column('anisotropy') + 0.03 * normal()).clamp(0, 0.9)
    t1w = column('t1w') + 2.5 * normal()
    signal[OUTER_FLUID], diffusivity[OUTER_FLUID], t1w[OUTER_FLUID] = (
        values[INNER_FLUID] for values in (signal, diffusivity, t1w)
    )
    return TissueDraw(signal, diffusivity.clamp(0.3, 3.3), anisotropy, t1w)


@dataclass(frozen=True)
class Scheme:
    """How a diffusion series is measured.

    Attributes
    ----------
    bvals : torch.Tensor, shape (m,)
        s/mm^2 of the weighted volumes that are computed.
    bvecs : torch.Tensor, shape (m, 3)
        Their unit vectors.
    repeats : float
        Measured volumes for each that is computed: noise is as low as theirs together.
    b0_repeats : int
        Volumes of b=0.
    noise : float
        Standard deviation of the noise of one volume, as a share of white matter at b=0.
    """

    bvals: torch.Tensor
    bvecs: torch.Tensor
    repeats: float
    b0_repeats: int
    noise: float


def spread_directions(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return evenly spread unit vectors on half a sphere, turned at random: shape (count, 3)."""
    at = torch.arange(count) + 0.5
    height = 1 - at / count
    radius = (1 - height**2).clamp_min(0).sqrt()
    angle = at * math.pi * (3 - math.sqrt(5))
    spiral = torch.stack([radius * angle.cos(), radius * angle.sin(), height], dim=1)
    turn, _ = torch.linalg.qr(torch.randn((3, 3), generator=generator))
    return spiral @ turn


def draw_scheme(generator: torch.Generator) -> Scheme:
    """Draw a gradient scheme: 6 to 64 directions, b of 700 to 3000 s/mm^2, mostly one shell.

    The channels come of volumes up to 1500 s/mm^2 where there are enough of them, else of all
    (:func:`bids_app.diffusion.channels.tensor_volumes`), so low shells are the common case.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    measured = 6 * (64 / 6) ** uniform(0, 1)
    count = min(round(measured), _MOST_DIRECTIONS)
    high = uniform(0, 1) < 0.3
    bvals = torch.full((count,), uniform(1500, 3000) if high else uniform(700, 1500))
    if count >= 10 and uniform(0, 1) < 0.2:  # two shells
        bvals[::2] *= uniform(0.5, 0.9)
    return Scheme(
        bvals,
        spread_directions(count, generator),
        max(1.0, measured / count),
        1 + int(uniform(0, 1) ** 2 * 6),
        1 / (10 * 5 ** uniform(0, 1)),
    )


@dataclass
class Microstructure:
    """What the voxels of a list hold.

    Attributes
    ----------
    shares : torch.Tensor, shape (tissues, n)
        They sum to 1.
    first, second : torch.Tensor, shape (3, n)
        Unit vectors of the two fibre populations.
    crossing : torch.Tensor, shape (n,)
        Share of the second one, 0 to 1.
    coherence : torch.Tensor, shape (n,)
        Factor of the anisotropy.
    gain : torch.Tensor, shape (n,)
        Factor of all signals: receiver field, and signal piled up by distortion.
    """

    shares: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    crossing: torch.Tensor
    coherence: torch.Tensor
    gain: torch.Tensor


def axial_factor(anisotropy: torch.Tensor) -> torch.Tensor:
    """Return k such that eigenvalues of MD (1 + 2k, 1 - k, 1 - k) have this FA."""
    return anisotropy / (3 - 2 * anisotropy**2).sqrt()


def simulate_signals(
    voxels: Microstructure, tissues: TissueDraw, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the signals of some voxels without noise.

    Parameters
    ----------
    voxels : Microstructure
        n voxels.
    tissues : TissueDraw
    scheme : Scheme
        m weighted volumes.

    Returns
    -------
    b0 : torch.Tensor, shape (n,)
    weighted : torch.Tensor, shape (m, n)
    """
    b = (scheme.bvals / 1000)[:, None]
    along_first = (scheme.bvecs @ voxels.first).square()
    along_second = (scheme.bvecs @ voxels.second).square()
    compartment = torch.tensor([tissue.compartment for tissue in TISSUES])
    b0 = torch.zeros(voxels.shares.shape[1])
    weighted = torch.zeros((len(b), len(b0)))
    for kind, shape in enumerate(_GAMMA_SHAPE):
        members = compartment == kind
        amounts = tissues.signal[members, None] * voxels.shares[members]
        total = amounts.sum(dim=0)
        weights = amounts / total.clamp_min(1e-6)
        diffusivity = tissues.diffusivity[members] @ weights
        anisotropy = (tissues.anisotropy[members] @ weights * voxels.coherence).clamp(0, 0.92)
        stretch = axial_factor(anisotropy)

        def decay(along: torch.Tensor | None) -> torch.Tensor:
            rate = (diffusivity * (1 - stretch))[None]  # noqa: B023 - used within the turn
            if along is not None:
                rate = rate + 3 * diffusivity * stretch * along  # noqa: B023
            return torch.exp(torch.log1p(shape * b * rate) / -shape)  # noqa: B023

        b0 += total
        if kind == WHITE:
            mixture = torch.lerp(decay(along_first), decay(along_second), voxels.crossing)
            weighted += total * mixture
        else:
            weighted += total * decay(along_first if kind == GREY else None)
    return b0 * voxels.gain, weighted * voxels.gain


def add_noise(
    b0: torch.Tensor,
    weighted: torch.Tensor,
    scheme: Scheme,
    white: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the noise of magnitude images to means over repeated volumes.

    The mean of a Rician variable is close to ``sqrt(signal^2 + sigma^2)``; its spread falls with
    the number of volumes.

    Parameters
    ----------
    b0 : torch.Tensor, shape (n,)
    weighted : torch.Tensor, shape (m, n)
    scheme : Scheme
    white : float
        Signal of white matter at b=0.
    generator : torch.Generator

    Returns
    -------
    Both with noise, positive.
    """
    sigma = scheme.noise * white

    def noisy(signal: torch.Tensor, repeats: float) -> torch.Tensor:
        mean = (signal.square() + sigma**2).sqrt()
        mean += sigma / math.sqrt(repeats) * torch.randn(mean.shape, generator=generator)
        return mean.clamp_min(0.05 * sigma)

    return noisy(b0, scheme.b0_repeats), noisy(weighted, scheme.repeats)


def fit_tensors(b0: torch.Tensor, weighted: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Fit tensors by least squares with one set of weights for all voxels.

    Every volume is weighted by its mean square signal. The application weights each voxel on its
    own (:func:`bids_app.diffusion.tensor.fit_tensor`); here all is one product of matrices.

    Parameters
    ----------
    b0 : torch.Tensor, shape (n,)
    weighted : torch.Tensor, shape (m, n)
    scheme : Scheme

    Returns
    -------
    torch.Tensor, shape (6, n)
        xx, xy, xz, yy, yz, zz in um^2/ms.
    """
    bvals = torch.cat([torch.zeros(1), scheme.bvals]).numpy()
    bvecs = torch.cat([torch.zeros(1, 3), scheme.bvecs]).numpy()
    design = torch.from_numpy(design_matrix(bvals, bvecs)).float()
    repeats = torch.full((len(bvals),), scheme.repeats)
    repeats[0] = scheme.b0_repeats
    size = torch.cat([b0.square().mean()[None], weighted.square().mean(dim=1)])
    weight = (repeats * size / size[0].clamp_min(1e-12)).sqrt()[:, None]
    inverse = torch.linalg.pinv(weight * design) * weight.T
    return inverse[:6, :1] @ b0.log()[None] + inverse[:6, 1:] @ weighted.log()


def tensor_eigenvalues(tensors: torch.Tensor) -> torch.Tensor:
    """Return the eigenvalues of symmetric 3 x 3 matrices, the largest first, in closed form.

    Parameters
    ----------
    tensors : torch.Tensor, shape (6, n)
        xx, xy, xz, yy, yz, zz.

    Returns
    -------
    torch.Tensor, shape (3, n)
        Smith, Communications of the ACM 1961.
    """
    xx, xy, xz, yy, yz, zz = tensors
    mean = (xx + yy + zz) / 3
    a, b, c = xx - mean, yy - mean, zz - mean
    off = xy**2 + xz**2 + yz**2
    size = ((a**2 + b**2 + c**2 + 2 * off) / 6).clamp_min(1e-20).sqrt()
    determinant = a * (b * c - yz**2) - xy * (xy * c - yz * xz) + xz * (xy * yz - b * xz)
    angle = torch.acos((determinant / (2 * size**3)).clamp(-1, 1)) / 3
    largest = mean + 2 * size * angle.cos()
    smallest = mean + 2 * size * (angle + 2 * math.pi / 3).cos()
    return torch.stack([largest, 3 * mean - largest - smallest, smallest])


def stack_channels(
    b0: torch.Tensor, weighted: torch.Tensor, tensors: torch.Tensor
) -> torch.Tensor:
    """Return the eleven channels before their normalisation: shape (11, n).

    As :func:`bids_app.diffusion.channels.deepanat_channels`, whose z-scores are of a whole brain,
    which a training block does not hold.

    Parameters
    ----------
    b0 : torch.Tensor, shape (n,)
    weighted : torch.Tensor, shape (m, n)
    tensors : torch.Tensor, shape (6, n)
    """
    bvals = torch.full((6,), SYNTHESIS_BVAL).numpy()
    decay = torch.from_numpy(design_matrix(bvals, DIRECTIONS)[:, :6]).float()
    lowest = -SYNTHESIS_BVAL / 1000 * MAX_DIFFUSIVITY
    predicted = b0 * torch.exp((decay @ tensors).clamp(lowest, 0))
    eigenvalues = tensor_eigenvalues(tensors).clamp(0, MAX_DIFFUSIVITY)
    return torch.cat([b0[None], weighted.mean(dim=0)[None], eigenvalues, predicted])
