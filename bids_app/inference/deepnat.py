# SPDX-License-Identifier: Apache-2.0
"""DeepNAT over a whole brain, as a dense network instead of patch by patch.

The pooling after the first convolution has a stride of 2, so patches whose centres differ by even
numbers of voxels share all their convolutions: one pass over a tile serves one of the eight parity
classes of its voxels, and the first convolution serves them all. Each patch predicts its centre
and the six neighbours. The centres (even, even, even) and (odd, odd, odd) together reach every
voxel, most of them twice; the mean of the probabilities that reach a voxel is its result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from bids_app.inference.predictor import out_of_memory
from bids_app.networks.deepnat import CENTRE, OFFSETS, PATCH, STRIDE, DeepNAT, gather_patches

logger = logging.getLogger('anatnet.inference')

TILES = (128, 96, 64, 32)
"""Rungs of the ladder: tile edge in voxels."""

PARITIES: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: ((0, 0, 0),),
    2: ((0, 0, 0), (1, 1, 1)),
    8: tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)),
}
"""Which parity classes of voxels are centres of patches. 1 leaves half of the voxels to the mean
of their neighbours, 2 reaches each voxel, 8 is the network at each voxel."""

_CHUNK = 4096
_AFTER = PATCH - 1 - CENTRE


def predict_dense(
    image: torch.Tensor,
    coordinates: torch.Tensor | None,
    mask: torch.Tensor,
    network: DeepNAT,
    *,
    parities: int = 2,
    tile: int | None = None,
    device: str = 'cpu',
    precision: str = 'float32',
    threads: int | None = None,
) -> torch.Tensor:
    """Predict the classes of all voxels of a mask.

    Parameters
    ----------
    image : torch.Tensor, shape (x, y, z), float32
        See :func:`bids_app.inference.deepnat_input.brain_image`. Zeros surround it.
    coordinates : torch.Tensor, shape (coordinates, x, y, z), or None
        Those that the network takes, of every voxel.
    mask : torch.Tensor, shape (x, y, z), bool
        What is wanted.
    network : DeepNAT
        In evaluation mode.
    parities : {1, 2, 8}
        See :data:`PARITIES`. Networks with fewer than seven tasks need 8.
    tile : int, optional
        Edge of the largest tile, voxels.
    device : str
        Torch device.
    precision : {'float32', 'bfloat16'}
        Computation inside the network.
    threads : int, optional
        CPU threads of torch.

    Returns
    -------
    torch.Tensor, shape (classes, x, y, z), float32, on the CPU
        Probabilities; outside the mask the first class has all.

    Raises
    ------
    MemoryError
        If the memory does not suffice for the smallest tiles.
    """
    if threads:
        torch.set_num_threads(threads)
    predictor = DensePredictor(network, device, precision, tile, parities)
    return predictor.probabilities(image, coordinates, mask)


@dataclass
class DensePredictor:
    """A network of DeepNAT on a device.

    Attributes
    ----------
    network : DeepNAT
        The network.
    device : str
        Torch device.
    precision : {'float32', 'bfloat16'}
        Computation inside the network; probabilities are float32 always.
    tile : int or None
        Edge of the tiles to start with, voxels.
    parities : {1, 2, 8}
        See :data:`PARITIES`.
    fallback : str or None
        After a prediction: the rung it ended on, if that is not the first.
    """

    network: DeepNAT
    device: str = 'cpu'
    precision: str = 'float32'
    tile: int | None = None
    parities: int = 2
    fallback: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.parities not in PARITIES:
            raise ValueError(f'parities is {self.parities}: 1, 2 or 8')
        if self.network.tasks < len(OFFSETS) and self.parities != 8:
            raise ValueError('a network with fewer than seven tasks needs 8 parities')
        self.network.eval()
        self._first = 0

    def probabilities(
        self, image: torch.Tensor, coordinates: torch.Tensor | None, mask: torch.Tensor
    ) -> torch.Tensor:
        """Predict a volume; see :func:`predict_dense`."""
        first = self.tile or TILES[0]
        sizes = [first, *(size for size in TILES if size < first)]
        rungs = [(self.device, size) for size in sizes]
        if self.device != 'cpu':
            rungs.append(('cpu', sizes[-1]))
        for number, (device, size) in enumerate(rungs):
            if number < self._first:  # it did not suffice for a volume before
                continue
            words = f'{device}, tiles of {size} voxels'
            try:
                result = self._run(device, size, image, coordinates, mask)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                logger.warning('out of memory on %s', words)
                self._first = number + 1
            else:
                if number:
                    self.fallback = words
                return result
            if device.startswith('cuda'):  # only now the error holds no tensors any more
                torch.cuda.empty_cache()
        tried = '; '.join(f'{device}, tiles of {size} voxels' for device, size in rungs)
        raise MemoryError(
            f'not enough memory for DeepNAT (tried: {tried}): give the job more memory, '
            'or use --low-mem or fewer --nprocs'
        )

    def _run(
        self,
        device: str,
        tile: int,
        image: torch.Tensor,
        coordinates: torch.Tensor | None,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        network = self.network.to(device)
        classes, shape = network.outputs, mask.shape
        # Neighbours of the outermost voxels need a place in the sums.
        padded = torch.Size(n + 2 for n in shape)
        total = torch.zeros(padded.numel(), classes)
        reached = torch.zeros(padded.numel())
        centres = _centres(mask)
        mixed = torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=self.precision == 'bfloat16'
        )
        with torch.inference_mode(), mixed:
            for box in _boxes(centres, tile):
                crop, inside = _halo(image, box), centres[box]
                first = network.conv1(crop[None, None].to(device))
                for parity in PARITIES[self.parities]:
                    places = inside[tuple(slice(p, None, STRIDE) for p in parity)].nonzero()
                    if not len(places):
                        continue
                    at = tuple(
                        slice(p, n - (n - p) % 2)
                        for p, n in zip(parity, first.shape[2:], strict=True)
                    )
                    features = network.deep(first[(..., *at)])
                    corner = torch.tensor(
                        [part.start + p for part, p in zip(box, parity, strict=True)]
                    )
                    for some in places.split(_CHUNK):
                        voxels = STRIDE * some + corner
                        given = None
                        if coordinates is not None:
                            given = coordinates[(slice(None), *voxels.T)].T.to(device)
                        index = functional.pad(some, (1, 0)).to(device)
                        logits = network.head(gather_patches(features, index), given)
                        found = logits.float().softmax(dim=2).cpu()
                        _add(found, voxels, padded, total, reached)
        return _finish(total, reached, padded, mask)


def _centres(mask: torch.Tensor) -> torch.Tensor:
    """Return the voxels that have a voxel of the mask among themselves and their neighbours."""
    found = mask.clone()
    for axis in range(3):
        length = mask.shape[axis] - 1
        found.narrow(axis, 0, length).logical_or_(mask.narrow(axis, 1, length))
        found.narrow(axis, 1, length).logical_or_(mask.narrow(axis, 0, length))
    return found


def _boxes(centres: torch.Tensor, tile: int) -> Iterator[tuple[slice, ...]]:
    """Cover the centres with boxes that do not overlap, from even voxels on."""
    hits = centres.nonzero()
    if not len(hits):
        return
    first, last = hits.amin(dim=0) // 2 * 2, hits.amax(dim=0) + 1
    steps = []
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        count = -(-(high - low) // tile)
        size = -(-(high - low) // count)
        size += size % 2
        steps.append([slice(start, min(start + size, high)) for start in range(low, high, size)])
    for x in steps[0]:
        for y in steps[1]:
            for z in steps[2]:
                found = centres[x, y, z].nonzero()
                if len(found):
                    low, high = found.amin(dim=0) // 2 * 2, found.amax(dim=0) + 1
                    yield tuple(
                        slice(part.start + a, part.start + b)
                        for part, a, b in zip((x, y, z), low.tolist(), high.tolist(), strict=True)
                    )


def _halo(image: torch.Tensor, box: tuple[slice, ...]) -> torch.Tensor:
    """Cut what the patches of a box see, and one voxel more; zeros beyond the image."""
    inner, padding = [], []
    for part, size in zip(box, image.shape, strict=True):
        low, high = part.start - CENTRE, part.stop + _AFTER + 1
        inner.append(slice(max(low, 0), min(high, size)))
        padding = [max(-low, 0), max(high - size, 0), *padding]
    return functional.pad(image[tuple(inner)], padding)


def _add(
    found: torch.Tensor,
    voxels: torch.Tensor,
    shape: torch.Size,
    total: torch.Tensor,
    reached: torch.Tensor,
) -> None:
    """Add the probabilities of the tasks of some patches to the voxels that they predict."""
    strides = torch.tensor([shape[1] * shape[2], shape[2], 1])
    centre = (voxels + 1) @ strides
    for task, offset in enumerate(OFFSETS[: found.shape[1]]):
        place = centre + int(torch.tensor(offset) @ strides)
        # One task of one parity class never reaches a voxel twice.
        total[place] += found[:, task]
        reached[place] += 1


def _finish(
    total: torch.Tensor, reached: torch.Tensor, shape: torch.Size, mask: torch.Tensor
) -> torch.Tensor:
    """Divide the sums, fill what was not reached from its neighbours, and keep the mask alone."""
    total /= reached.clamp_min(1)[:, None]
    known = functional.pad(mask, (1,) * 6).flatten() & (reached > 0)
    missing = functional.pad(mask, (1,) * 6).flatten() & (reached == 0)
    strides = torch.tensor([shape[1] * shape[2], shape[2], 1])
    steps = [int(torch.tensor(offset) @ strides) for offset in OFFSETS[1:]]
    while bool(missing.any()):
        place = missing.nonzero().flatten()
        near = torch.stack([place + step for step in steps])
        there = known[near].float()
        count = there.sum(dim=0)
        fits = count > 0
        if not bool(fits.any()):  # nothing of the part of the mask was reached
            break
        mean = (total[near] * there[..., None]).sum(dim=0) / count.clamp_min(1)[:, None]
        total[place[fits]] = mean[fits]
        known[place[fits]] = True
        missing[place[fits]] = False
    total = total.view(*shape, -1)[1:-1, 1:-1, 1:-1]
    # In place: these are the largest arrays of the engine.
    total[~mask] = torch.eye(1, total.shape[-1])
    return total.movedim(-1, 0).contiguous()
