# SPDX-License-Identifier: Apache-2.0
"""Patch individual filters (PIF): convolutions that do not share their weights between places.

Eitel et al., "Harnessing spatial homogeneity of neuroimaging data: patch individual filter layers
for CNNs" (2019), and Eitel et al., Scientific Reports 11:24447 (2021). Brains that are normalised
to a template have the same structure at the same voxel, so a filter may belong to a place. The
layer splits a feature map into patches, gives each a convolution of its own, and puts the maps
together again where convolutions follow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_LANES = 8
"""On a CPU, grouped convolutions are two to four times as fast with a multiple of so many filters
for each group: empty ones are added for the computation."""
_SCANS = 6
"""Scans that a CPU takes at once where there are no gradients."""

OVERLAPS = ('none', 'half', 'duplicate')


class PatchIndividualFilters3D(nn.Module):
    """One convolution for each patch of a feature map, computed as a single grouped convolution.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the map, and filters of each patch.
    shape : sequence of int
        Voxels of the map. Zeros are appended at the end of each axis until ``patch`` divides it.
    patch, kernel, stride, padding : int
        Edge of a patch, and the convolution inside it.
    overlap : {'none', 'half', 'duplicate'}
        A second set of patches. ``half`` begins half a patch further on every axis that has more
        than one patch. ``duplicate`` begins a whole patch further, as the code of 2021 does under
        the name of overlap: those filters see patches that the first set has as well. It is for
        reproduction only.
    reassemble : bool
        Whether to return a map instead of patches.

    Notes
    -----
    Parameters: ``(P + Q) * out_channels * (in_channels * kernel**3 + 1)``, where ``P`` is the
    product of ``ceil(shape / patch)`` and ``Q``, with a second set, that of
    ``max(ceil(shape / patch) - 1, 1)``.

    Patches are in raster order, the last axis fastest, the second set after the first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: Sequence[int],
        *,
        patch: int = 5,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 0,
        overlap: str = 'none',
        reassemble: bool = False,
    ) -> None:
        super().__init__()
        if overlap not in OVERLAPS:
            raise ValueError(f'overlap {overlap!r}: choose one of {", ".join(OVERLAPS)}')
        self.shape = tuple(shape)
        self.patch = patch
        self.out_channels = out_channels
        self.reassemble = reassemble
        self.edge = (patch + 2 * padding - kernel) // stride + 1
        if self.edge < 1:
            raise ValueError(f'a kernel of {kernel} does not fit into a patch of {patch}')
        self.counts = tuple(math.ceil(size / patch) for size in self.shape)
        self.pad = [n * patch - size for n, size in zip(self.counts, self.shape, strict=True)]
        # (first voxel, number of patches) on each axis, for each set
        self.sets = [tuple((0, n) for n in self.counts)]
        if overlap != 'none':
            shift = patch // 2 if overlap == 'half' else patch
            self.sets.append(tuple((shift, n - 1) if n > 1 else (0, 1) for n in self.counts))
        self.patches = [math.prod(n for _, n in axes) for axes in self.sets]
        groups = sum(self.patches)
        self.filters = nn.Conv3d(
            groups * in_channels,
            groups * out_channels,
            kernel,
            stride=stride,
            padding=padding,
            groups=groups,
        )

    @property
    def out_features(self) -> int:
        """Numbers that a scan becomes: patches times channels times voxels."""
        return sum(self.patches) * self.out_channels * self.edge**3

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Cut a map into patches: ``(batch, patches, channels, patch, patch, patch)``."""
        if tuple(x.shape[2:]) != self.shape:
            raise ValueError(f'a map of {self.shape} voxels is needed, not {tuple(x.shape[2:])}')
        pad = (0, self.pad[2], 0, self.pad[1], 0, self.pad[0])
        if self._scans_last(x):
            # First the order of the axes, then the patches: two copies with long runs take half
            # the time of one with runs of a few voxels.
            x = x.flatten(2).permute(1, 2, 0).contiguous().unflatten(1, self.shape)
            x = F.pad(x, (0, 0, *pad)) if any(self.pad) else x
            out = x.new_empty(sum(self.patches), len(x), *[self.patch] * 3, x.shape[-1])
            first = 0
            for number, tiles in zip(self.patches, self._tiles(x, 1), strict=True):
                tiles = tiles.permute(1, 3, 5, 0, 2, 4, 6, 7)
                out[first : first + number].unflatten(0, tiles.shape[:3]).copy_(tiles)
                first += number
            return out.permute(5, 0, 1, 2, 3, 4)
        x = F.pad(x, pad) if any(self.pad) else x
        found = [
            tiles.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3) for tiles in self._tiles(x, 2)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _scans_last(self, x: torch.Tensor) -> bool:
        """Return whether scans are laid side by side, as the neighbours of a voxel in memory.

        A row of a patch has three results, too few for the vector units of a CPU; the same row
        of all scans has enough. Gradients of many channels are no faster in this order.
        """
        few = not torch.is_grad_enabled() or x.shape[1] < _LANES
        return x.device.type == 'cpu' and self.filters.stride[0] == 1 and few and len(x) > 0

    def _tiles(self, x: torch.Tensor, axis: int) -> Iterator[torch.Tensor]:
        """Yield each set of patches as a view, every axis as two: patches, and voxels in one."""
        for axes in self.sets:
            part = x
            for place, (start, number) in enumerate(axes, start=axis):
                part = part.narrow(2 * place - axis, start, number * self.patch)
                part = part.unflatten(2 * place - axis, (number, self.patch))
            yield part

    def process(self, patches: torch.Tensor) -> torch.Tensor:
        """Convolve each patch with its own filters; channels and edge are those of the output."""
        conv = self.filters
        weight, bias = conv.weight, conv.bias
        extra = -self.out_channels % _LANES if patches.device.type == 'cpu' else 0
        if extra:
            weight = weight.unflatten(0, (-1, self.out_channels))
            weight = F.pad(weight, (0,) * 8 + (0, extra)).flatten(0, 1)
            bias = F.pad(bias.unflatten(0, (-1, self.out_channels)), (0, extra)).flatten()
        filters = (-1, self.out_channels + extra)
        if self._scans_last(patches[:, 0]):
            # The last axis becomes voxels times scans: the next voxel of a scan is ``batch`` away.
            batch, margin = len(patches), conv.padding[0]
            x = patches.permute(1, 2, 3, 4, 5, 0).flatten(4).flatten(0, 1)[None]
            out = F.conv3d(
                x, weight, bias, 1, (margin, margin, margin * batch), (1, 1, batch), conv.groups
            )
            out = out[0].unflatten(0, filters).unflatten(4, (-1, batch)).permute(5, 0, 1, 2, 3, 4)
        else:
            out = F.conv3d(
                patches.flatten(1, 2), weight, bias, conv.stride, conv.padding, groups=conv.groups
            ).unflatten(1, filters)
        return out[:, :, : self.out_channels]

    def assemble(self, patches: torch.Tensor) -> torch.Tensor:
        """Put patches together: ``(batch, channels, x, y, z)``, the second set as more channels.

        The second set lies half a patch further and has zeros around it. (For ``duplicate`` that
        is half a patch beside its true place, as published.)
        """
        e, maps, first = self.edge, [], 0
        for axes, number in zip(self.sets, self.patches, strict=True):
            (_, a), (_, b), (_, c) = axes
            tiles = patches[:, first : first + number].unflatten(1, (a, b, c))
            part = tiles.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(
                len(tiles), self.out_channels, a * e, b * e, c * e
            )
            margins = []
            for (_, n), full in zip(reversed(axes), reversed(self.counts), strict=True):
                missing = (full - n) * e
                margins += [missing // 2, missing - missing // 2]
            maps.append(F.pad(part, margins) if any(margins) else part)
            first += number
        return torch.cat(maps, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the patches, or the map, of ``x`` with shape ``(batch, channels, x, y, z)``."""
        # A few scans at a time stay in the caches of a CPU: 32 at once take twice as long.
        scans = _SCANS if self._scans_last(x) and not torch.is_grad_enabled() else len(x)
        done = [self.process(self.split(part)) for part in x.split(scans or 1)]
        patches = done[0] if len(done) == 1 else torch.cat(done)
        return self.assemble(patches) if self.reassemble else patches


class Standardise(nn.Module):
    """Subtract a mean map and multiply by a scale map; both are set from training scans."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(tuple(shape)))
        self.register_buffer('scale', torch.ones(tuple(shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * self.scale


class ConvClassifier3D(nn.Module):
    """Convolutions, a PIF layer or none, and fully connected layers.

    All networks of the two papers and their baselines are of this form; see :data:`PUBLISHED`.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the input.
    widths : sequence of int
        Channels after each 3x3x3 convolution.
    pools : sequence of (after, kernel, stride, padding)
        Maximum pooling after the convolution with that number (from 1). Dropout of whole channels
        follows each.
    hidden : int, optional
        Width of the fully connected layer between features and output; None for no such layer.
    padding : sequence of int, optional
        Of each convolution; 0 without it.
    pif : dict, optional
        Arguments of :class:`PatchIndividualFilters3D` after ``shape``, and ``out_channels``.
    norm : bool
        Batch normalisation after each convolution.
    activation : {'elu', 'relu'}
        After each convolution and after the PIF layer.
    hidden_activation : bool
        The same after the hidden layer (2021) or nothing (2019).
    dropout : float
        Share of channels that are dropped in training.
    in_channels, out_features : int
        Channels of the input; outputs (logits, or the number that is predicted).
    standardise : bool
        Whether the input goes through :class:`Standardise` first.
    """

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        pools: Sequence[Sequence[int]],
        hidden: int | None,
        *,
        padding: Sequence[int] | None = None,
        pif: dict[str, Any] | None = None,
        norm: bool = False,
        activation: str = 'elu',
        hidden_activation: bool = True,
        dropout: float = 0.3,
        in_channels: int = 1,
        out_features: int = 1,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        active = {'elu': nn.ELU, 'relu': nn.ReLU}[activation]
        layers: list[nn.Module] = []
        size = tuple(shape)
        before = in_channels
        for number, width in enumerate(widths, start=1):
            pad = padding[number - 1] if padding else 0
            layers.append(nn.Conv3d(before, width, 3, padding=pad))
            size = tuple(n + 2 * pad - 2 for n in size)
            if norm:
                layers.append(nn.BatchNorm3d(width))
            # The activations never fall, so the maximum may be taken first: the same numbers for
            # a fraction of the work.
            pool = next((entry for entry in pools if entry[0] == number), None)
            if pool is not None:
                _, kernel, stride, margin = pool
                layers.append(nn.MaxPool3d(kernel, stride, margin))
                size = tuple((n + 2 * margin - kernel) // stride + 1 for n in size)
            layers.append(active())
            if pool is not None:
                layers.append(nn.Dropout3d(dropout))
            before = width
            if min(size) < 1:
                raise ValueError(f'a map of {tuple(shape)} voxels is too small for this network')
        self.shape = tuple(shape)
        self.standardise = Standardise(shape) if standardise else nn.Identity()
        self.features = nn.Sequential(*layers)
        self.pif = None
        features = before * math.prod(size)
        if pif is not None:
            self.pif = PatchIndividualFilters3D(before, shape=size, **pif)
            self.active = active()
            features = self.pif.out_features
        self.feature_shape = size
        if hidden is None:
            self.head = nn.Sequential(nn.Linear(features, out_features))
        else:
            self.head = nn.Sequential(
                nn.Linear(features, hidden),
                active() if hidden_activation else nn.Identity(),
                nn.Linear(hidden, out_features),
            )

    def patch_boxes(self) -> list[tuple[slice, slice, slice]]:
        """Return the part of the input that lies behind each patch of the PIF layer.

        The boxes of one set touch each other; what a filter sees reaches a few voxels further.
        """
        if self.pif is None:
            raise ValueError('this network has no PIF layer')
        step, centre = 1.0, 0.0  # input position of voxel i of the features: centre + step * i
        for layer in self.features:
            if isinstance(layer, (nn.Conv3d, nn.MaxPool3d)):
                kernel, stride, margin = (
                    value[0] if isinstance(value, tuple) else value
                    for value in (layer.kernel_size, layer.stride, layer.padding)
                )
                centre += step * ((kernel - 1) / 2 - margin)
                step *= stride
        boxes = []
        for axes in self.pif.sets:
            sides = [
                [
                    slice(
                        # The border, which no centre of a filter reaches, goes with the outermost.
                        0 if first == 0 else math.ceil(centre + step * (first - 0.5)),
                        size if last >= inner else math.ceil(centre + step * (last - 0.5)),
                    )
                    for first, last in (
                        (start + i * self.pif.patch, start + (i + 1) * self.pif.patch)
                        for i in range(number)
                    )
                ]
                for (start, number), size, inner in zip(
                    axes, self.shape, self.feature_shape, strict=True
                )
            ]
            boxes += list(itertools.product(*sides))
        return boxes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, out_features)`` for ``x`` with shape ``(batch, channels, x, y, z)``."""
        x = self.features(self.standardise(x))
        if self.pif is not None:
            x = self.active(self.pif(x))
        return self.head(x.flatten(1))


class LinearClassifier3D(nn.Module):
    """A weight for each voxel: what a principal component regression comes down to.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the input.
    out_features : int
        Outputs.
    """

    def __init__(self, shape: Sequence[int], out_features: int = 1) -> None:
        super().__init__()
        self.standardise = Standardise(shape)
        self.head = nn.Linear(math.prod(shape), out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, out_features)`` for ``x`` with shape ``(batch, 1, x, y, z)``."""
        return self.head(self.standardise(x).flatten(1))


_UKB = (182, 218, 182)
_ADNI = (96, 114, 96)


def _published(
    shape: tuple[int, ...], widths: tuple[int, ...], pools: tuple, hidden: int | None, **more
) -> dict[str, Any]:
    return {'shape': shape, 'widths': widths, 'pools': pools, 'hidden': hidden, **more}


def _pif(filters: int, overlap: str = 'none') -> dict[str, Any]:
    return {'out_channels': filters, 'patch': 5, 'overlap': overlap}


_P33, _P32 = (2, 3, 3, 0), (2, 3, 2, 0)  # the second pool
_FIRST = (1, 3, 3, 0)
_OLD = {'hidden_activation': False}
_TWICE = 'duplicate'

PUBLISHED: dict[str, dict[str, Any]] = {
    '2019-ukb-baseline-a': _published(
        _UKB, (16, 32, 64, 32, 16), ((1, 3, 2, 0), _P33, (5, 4, 3, 0)), 512,
        norm=True, activation='relu', **_OLD,
    ),
    '2019-ukb-pif': _published(_UKB, (8, 16, 32, 64), (_FIRST, _P33), 100, pif=_pif(8), **_OLD),
    '2019-adni-baseline-b': _published(
        _ADNI, (64, 64, 64, 64, 36), (_FIRST, _P32, (5, 4, 2, 0)), 80, **_OLD
    ),
    '2019-adni-pif': _published(_ADNI, (64,) * 4, (_FIRST, _P32), 100, pif=_pif(3), **_OLD),
    '2019-ms-baseline-c': _published(
        _ADNI, (64,) * 4, (_FIRST, _P33, (4, 3, 3, 0)), None, **_OLD
    ),
    '2019-ms-pif': _published(_ADNI, (64,) * 4, (_FIRST, _P32), 100, pif=_pif(3), **_OLD),
    '2021-adni-a': _published(
        _ADNI, (8, 16, 32, 64, 36), (_FIRST, _P32, (5, 4, 2, 0)), 80
    ),
    '2021-adni-a-pif': _published(
        _ADNI, (8, 16, 32, 64), (_FIRST, _P32), 100, pif=_pif(3, _TWICE)
    ),
    '2021-adni-b': _published(
        _ADNI, (64, 64, 64, 64, 36), (_FIRST, _P32, (5, 4, 2, 0)), 80
    ),
    '2021-adni-b-pif': _published(_ADNI, (64,) * 4, (_FIRST, _P32), 100, pif=_pif(3, _TWICE)),
    '2021-ms-a': _published(_ADNI, (16, 32, 64, 64), (_FIRST, _P33, (4, 3, 1, 0)), 100),
    '2021-ms-a-pif': _published(
        _ADNI, (16, 32, 64, 64), (_FIRST, _P32), 100, pif=_pif(4, _TWICE)
    ),
    '2021-ms-b': _published(_ADNI, (64,) * 4, (_FIRST, _P33, (4, 3, 1, 0)), 100),
    '2021-ms-b-pif': _published(
        _ADNI, (64,) * 3, (_FIRST, (2, 3, 3, 1)), 100, padding=(0, 0, 1), pif=_pif(4, _TWICE)
    ),
    '2021-ukb-a': _published(
        _UKB, (8, 16, 32, 64, 64), (_FIRST, _P33, (5, 4, 2, 0)), 100
    ),
    '2021-ukb-a-pif': _published(
        _UKB, (8, 16, 32, 64), (_FIRST, _P33), 100, pif=_pif(6, _TWICE)
    ),
    '2021-ukb-b': _published(_UKB, (8, 32, 64, 64), (_FIRST, _P33, (4, 4, 3, 0)), 100),
    '2021-ukb-b-pif': _published(
        _UKB, (8, 32, 64), (_FIRST, _P33, (3, 3, 2, 0)), 100, pif=_pif(6, _TWICE)
    ),
}  # fmt: skip
"""Arguments of :class:`ConvClassifier3D` for the networks of 2019 and 2021.

Two defects of the published code are not repeated: dropout is off outside training, and the
2019 networks that fed randomly mirrored scans to validation and test are given scans as they are.
"""


def parameter_count(network: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def compact(
    shape: Sequence[int], *, pif: bool, pool: int = 3, filters: int = 3, out_features: int = 1
) -> dict[str, Any]:
    """Return the arguments of a small network for coarse maps, or of its matched baseline.

    The two share the first three convolutions. Then one has a PIF layer with patches of five
    voxels and half a patch of overlap; the other has two more convolutions, which share their
    weights between places, and a pooling, as the published baselines do. The hidden layer of the
    baseline is as wide as makes the numbers of parameters equal.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the input.
    pif : bool
        Which of the two.
    pool : int
        Kernel and stride of the first pooling: 3 for maps of about 3 mm (at least 36 voxels on
        each axis), 2 for coarser ones (at least 24).
    filters : int
        Filters of each patch.
    out_features : int
        Outputs.

    Returns
    -------
    dict
        For :class:`ConvClassifier3D`.
    """
    common = {'shape': list(shape), 'out_features': out_features, 'standardise': True}
    first = [1, pool, pool, 0]
    network: dict[str, Any] = {
        'widths': [8, 16, 32],
        'pools': [first],
        'hidden': 32,
        'pif': {'out_channels': filters, 'patch': 5, 'overlap': 'half'},
        **common,
    }
    if pif:
        return network
    baseline = {
        'widths': [8, 16, 32, 24, 24],
        'pools': [first, [5, 3, 2, 0]],
        'hidden': 1,
        **common,
    }
    with torch.device('meta'):
        wanted = parameter_count(ConvClassifier3D(**network))
        one, two = (
            parameter_count(ConvClassifier3D(**{**baseline, 'hidden': width})) for width in (1, 2)
        )
    return {**baseline, 'hidden': max(1, 1 + round((wanted - one) / (two - one)))}
