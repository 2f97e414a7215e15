# SPDX-License-Identifier: Apache-2.0
"""Fully connected conditional random field in 3D, by mean field and fast filtering.

Every voxel of the brain is joined to every other, with two kernels: near voxels have the same
label (smoothness), and so have those that are near and equally bright (appearance). A step of the
mean field is then a Gaussian and a bilateral filter of the probabilities (Kraehenbuehl and Koltun,
Efficient inference in fully connected CRFs with Gaussian edge potentials, NIPS 2011). The
bilateral filter works on a bilateral grid over x, y, z and brightness: splat, blur, slice (Chen,
Paris and Durand, Real-time edge-aware image processing with the bilateral grid, SIGGRAPH 2007).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bids_app.images.masks import bounding_box

_FLOOR = 1e-5
"""Least probability of a class that enters: no class is impossible."""
_LOCAL = 0.01
"""A class occurs where it has at least this probability; beyond it the smoothness kernel does not
look for it."""
_CERTAIN = math.log(100)
"""A voxel whose best class leads by this much more than full agreement for another can add only
sends messages: none could bring that class below 0.99."""
_GRID_VALUES = 1 << 26
"""Values of the bilateral grid at a time (256 MiB): classes are filtered in groups."""


@dataclass(frozen=True)
class CRFParameters:
    """Kernels of the field; both are scaled to the mean over the neighbours.

    Attributes
    ----------
    smoothness_weight, appearance_weight : float
        What full agreement of all neighbours adds to the logarithm of a probability.
    smoothness_mm : float
        Standard deviation of the smoothness kernel, mm.
    appearance_mm, appearance_brightness : float
        Standard deviations of the appearance kernel: mm, and the unit of the image.
    iterations : int
        Steps of the mean field.

    Notes
    -----
    The defaults are the best of a few that were tried on the two validation scans of the MICCAI
    2012 labels (docs/deepnat.md); they were not tuned further.
    """

    smoothness_weight: float = 0.5
    smoothness_mm: float = 1.0
    appearance_weight: float = 2.0
    appearance_mm: float = 4.0
    appearance_brightness: float = 0.06
    iterations: int = 3


def dense_crf(
    probabilities: torch.Tensor,
    image: torch.Tensor,
    mask: torch.Tensor,
    *,
    parameters: CRFParameters = CRFParameters(),
    voxel_mm: float = 1.0,
    device: str = 'cpu',
    threads: int | None = None,
    cells_per_sigma: float = 1.0,
) -> torch.Tensor:
    """Sharpen the probabilities of classes with a dense conditional random field.

    Potts compatibility. Messages are normalised: they are means over the neighbours, weighted with
    the kernel, of the neighbours' probabilities. The smoothness kernel leaves out the voxel
    itself; the appearance kernel holds it (one of hundreds).

    Parameters
    ----------
    probabilities : torch.Tensor, shape (classes, x, y, z)
        They sum to 1.
    image : torch.Tensor, shape (x, y, z)
        Brightness, such as :func:`bids_app.images.intensity.normalise_brain` makes.
    mask : torch.Tensor, shape (x, y, z), bool
        The voxels that take part.
    parameters : CRFParameters
        Kernels and their weights.
    voxel_mm : float
        Edge of a voxel, mm.
    device : str
        Torch device to compute on.
    threads : int, optional
        CPU threads.
    cells_per_sigma : float
        Resolution of the bilateral grid: cells per standard deviation. At 1 (at 3),
        probabilities of the tests are within 0.03 (0.006) of those of the exact kernel, in the
        mean within 0.002 (0.0003).

    Returns
    -------
    torch.Tensor, shape (classes, x, y, z), float32
        On the CPU; voxels outside the mask are as they were.
    """
    if threads:
        torch.set_num_threads(threads)
    result = probabilities.detach().to('cpu', torch.float32, copy=True)
    if parameters.iterations < 1 or len(result) < 2 or not bool(mask.any()):
        return result
    box = bounding_box(mask.cpu().numpy())
    inside = mask[box].to(device, torch.bool)
    given = result[(slice(None), *box)].to(device)[:, inside]
    evidence = given.clamp_min(_FLOOR).log_()
    believed = evidence.softmax(dim=0)
    best = evidence.topk(2, dim=0).values
    most = parameters.smoothness_weight + parameters.appearance_weight
    open_ = best[0] - best[1] < most + _CERTAIN
    evidence = evidence[:, open_]
    smooth = _Smoothness(inside, open_, given > _LOCAL, parameters.smoothness_mm / voxel_mm)
    del given, best
    appearance = None
    if parameters.appearance_weight:
        appearance = _BilateralGrid(
            inside,
            open_,
            image[box].to(device, torch.float32)[inside],
            believed,
            parameters.appearance_mm / voxel_mm,
            parameters.appearance_brightness,
            cells_per_sigma,
        )
    for _ in range(parameters.iterations):
        update = evidence.clone()
        if parameters.smoothness_weight:
            smooth.add_message(believed, parameters.smoothness_weight, update)
        if appearance is not None:
            appearance.add_message(believed, parameters.appearance_weight, update)
        believed[:, open_] = update.softmax(dim=0)
    result[(slice(None), *box)][:, inside.cpu()] = believed.cpu()
    return result


class _Smoothness:
    """The Gaussian kernel over the places of voxels."""

    def __init__(
        self, inside: torch.Tensor, open_: torch.Tensor, occurs: torch.Tensor, sigma: float
    ) -> None:
        self.inside = inside
        self.kernels = _bands(inside.shape, sigma**2, inside.device)
        self.number = torch.zeros(inside.shape, dtype=torch.int32, device=inside.device)
        self.number[inside] = torch.arange(
            int(inside.sum()), dtype=torch.int32, device=inside.device
        )
        self.open = torch.zeros_like(inside)
        self.open[inside] = open_
        self.open_number = torch.zeros_like(self.number)
        self.open_number[self.open] = torch.arange(
            int(open_.sum()), dtype=torch.int32, device=inside.device
        )
        # The kernel at the voxel itself is 1, which is left out here and below.
        self.norm = (_blur(inside.float(), self.kernels)[self.open] - 1).clamp_min_(1e-6)
        places = inside.nonzero()
        margin = math.ceil(3 * sigma)
        self.boxes: dict[int, tuple[slice, ...]] = {}
        for number, local in enumerate(occurs):
            if bool(local.any()):
                low, high = places[local].aminmax(dim=0)
                self.boxes[number] = tuple(
                    slice(max(a - margin, 0), b + margin + 1)
                    for a, b in zip(low.tolist(), high.tolist(), strict=True)
                )

    def add_message(self, believed: torch.Tensor, weight: float, update: torch.Tensor) -> None:
        """Add the weighted means over the neighbours to ``update``, (classes, open voxels)."""
        for number, box in self.boxes.items():
            inside, wanted = self.inside[box], self.open[box]
            volume = torch.zeros(inside.shape, device=believed.device)
            volume[inside] = believed[number][self.number[box][inside].long()]
            kernels = [kernel[part, part] for kernel, part in zip(self.kernels, box, strict=True)]
            rows = self.open_number[box][wanted].long()
            mean = (_blur(volume, kernels)[wanted] - volume[wanted]) / self.norm[rows]
            update[number].index_add_(0, rows, mean, alpha=weight)


class _BilateralGrid:
    """The Gaussian kernel over place and brightness, on a grid with about one cell per sigma.

    Splat and slice are linear in all four directions, a sparse matrix and its transpose. Both
    together blur by a third of a cell's square on average, the blur of the grid adds the rest.
    What voxels send that are not open is the same in every step, and summed up once.
    """

    def __init__(
        self,
        inside: torch.Tensor,
        open_: torch.Tensor,
        brightness: torch.Tensor,
        believed: torch.Tensor,
        sigma: float,
        brightness_sigma: float,
        cells_per_sigma: float,
    ) -> None:
        places = [brightness - brightness.min()]
        lengths = [float(places[0].max()), *(float(n - 1) for n in inside.shape)]
        places += [place.float() for place in inside.nonzero().T]
        sigmas = (brightness_sigma, sigma, sigma, sigma)
        base = torch.zeros(len(brightness), dtype=torch.int64, device=brightness.device)
        fractions = []
        self.shape: list[int] = []
        for place, length, width in zip(places, lengths, sigmas, strict=True):
            span = length * cells_per_sigma / width
            cells = int(span) + 2
            # The grid lies symmetrically about the brain.
            position = place * (cells_per_sigma / width) + (cells - 1 - span) / 2
            cell = position.floor().clamp_(0, cells - 2)
            fractions.append(position - cell)
            base = base * cells + cell.long()
            self.shape.append(cells)
        corners = np.indices((2, 2, 2, 2)).reshape(4, -1).T.tolist()
        columns = torch.empty((len(base), 16), dtype=torch.int32, device=base.device)
        weights = torch.empty((len(base), 16), device=base.device)
        for number, corner in enumerate(corners):
            step, weight = 0, torch.ones_like(brightness)
            for high, fraction, cells in zip(corner, fractions, self.shape, strict=True):
                step = step * cells + high
                weight *= fraction if high else 1 - fraction
            columns[:, number] = base + step
            weights[:, number] = weight
        cells = int(np.prod(self.shape))
        self.kernels = _bands(self.shape, max(cells_per_sigma**2 - 1 / 3, 0.1), base.device)
        group = max(1, _GRID_VALUES // cells)
        self.groups = [slice(n, n + group) for n in range(0, len(believed), group)]
        closed = ~open_
        splat, _ = _sparse_pair(columns[closed], weights[closed], cells)
        self.constant = [splat @ believed[some][:, closed].T.contiguous() for some in self.groups]
        total = splat @ torch.ones((int(closed.sum()), 1), device=base.device)
        self.open = open_
        self.splat, self.slice = _sparse_pair(columns[open_], weights[open_], cells)
        ones = torch.ones((int(open_.sum()), 1), device=base.device)
        self.norm = self._filter(ones, total).clamp_min_(1e-6)

    def _filter(self, values: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
        grid = (self.splat @ values + constant).view(*self.shape, -1)
        return self.slice @ _blur(grid, self.kernels).view(-1, values.shape[1])

    def add_message(self, believed: torch.Tensor, weight: float, update: torch.Tensor) -> None:
        """Add the weighted means over all voxels to ``update``, (classes, open voxels)."""
        for some, constant in zip(self.groups, self.constant, strict=True):
            values = believed[some][:, self.open].T.contiguous()
            message = self._filter(values, constant).div_(self.norm)
            update[some].add_(message.T, alpha=weight)


def _sparse_pair(
    columns: torch.Tensor, weights: torch.Tensor, cells: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sparse matrices to the grid and from it, (cells, voxels) and (voxels, cells)."""
    from scipy import sparse

    voxels, corners = columns.shape
    starts = np.arange(voxels + 1, dtype=np.int32) * corners
    content = weights.cpu().numpy().ravel(), columns.cpu().numpy().ravel(), starts
    back = sparse.csr_matrix(content, (voxels, cells))
    pair = []
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta')
        for matrix in (back.T.tocsr(), back):
            parts = (torch.from_numpy(one) for one in (matrix.indptr, matrix.indices, matrix.data))
            found = torch.sparse_csr_tensor(*parts, matrix.shape, check_invariants=False)
            pair.append(found.to(columns.device))
    return pair[0], pair[1]


def _bands(shape: Sequence[int], variance: float, device: torch.device) -> list[torch.Tensor]:
    """Return for each axis the matrix of a Gaussian, 1 at the voxel itself, to 5 deviations."""
    kernels = []
    for size in shape:
        place = torch.arange(size, dtype=torch.float32, device=device)
        away = (place[:, None] - place) ** 2
        kernel = torch.exp(-away / (2 * variance))
        kernels.append(torch.where(away <= 25 * variance, kernel, 0.0))
    return kernels


def _blur(volume: torch.Tensor, kernels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiply the first axes of a volume by a matrix each; on the CPU faster than convolving."""
    for axis, kernel in enumerate(kernels):
        shape = volume.shape
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        if after == 1:
            volume = (volume.reshape(before, -1) @ kernel).view(shape)
        else:
            volume = (kernel @ volume.reshape(before, shape[axis], after)).view(shape)
    return volume
