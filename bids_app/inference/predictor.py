# SPDX-License-Identifier: Apache-2.0
"""Run a network over a volume, whole or in tiles that overlap.

When the memory of the device runs out the predictor walks down a ladder (whole volume, large
tiles, small tiles, CPU) and says on which rung it ended, so that the rung can be written down.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

logger = logging.getLogger('anatnet.inference')

TILES = (None, 128, 96, 64)
"""Rungs of the ladder: tile edge in voxels, None for the whole volume."""


@dataclass
class Predictor:
    """A network on a device.

    Attributes
    ----------
    network : torch.nn.Module
        Takes ``(1, channel, x, y, z)``, and a context on half that grid if it has context
        channels; gives logits.
    device : str
        Torch device.
    precision : {'float32', 'bfloat16'}
        Computation inside the network; probabilities are float32 always.
    tile : int or None
        Edge of the tiles to start with, voxels.
    fallback : str or None
        After a prediction: the rung it ended on, if that is not the first.
    """

    network: nn.Module
    device: str = 'cpu'
    precision: str = 'float32'
    tile: int | None = None
    fallback: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # It goes to its device with the first volume, where lack of memory is looked after.
        self.network.eval()
        self._first = 0

    def logits(self, image: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Predict logits of a volume.

        Parameters
        ----------
        image : torch.Tensor, shape (channel, x, y, z)
            Input; x, y, z multiples of the network's divisor.
        context : torch.Tensor, shape (channel, x/2, y/2, z/2), optional
            Second input of networks that take one.

        Returns
        -------
        torch.Tensor, shape (out_channel, x, y, z), float32, on the CPU
            In tiles: the mean of the logits that reach a voxel, weighted by a Gaussian centred
            in each tile (Isensee et al., nnU-Net, Nature Methods 2021).

        Raises
        ------
        MemoryError
            If the memory does not suffice even on the last rung.
        """
        rungs = [(self.device, tile) for tile in TILES if _not_larger(tile, self.tile)]
        if self.tile is not None and self.tile not in TILES:
            rungs.insert(0, (self.device, self.tile))
        if self.device != 'cpu':
            rungs.append(('cpu', self.tile or 96))
        for number, (device, tile) in enumerate(rungs):
            if number < self._first:  # it did not suffice for a volume before
                continue
            try:
                result = self._run(device, tile, image, context)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                logger.warning('out of memory on %s', _words(device, tile))
                self._first = number + 1
            else:
                if number:
                    self.fallback = _words(device, tile)
                return result
            if device.startswith('cuda'):  # only now the error holds no tensors any more
                torch.cuda.empty_cache()
        tried = '; '.join(_words(device, tile) for device, tile in rungs)
        raise MemoryError(
            f'not enough memory for the network (tried: {tried}): give the job more memory, '
            'or use --low-mem or fewer --nprocs'
        )

    def _run(
        self, device: str, tile: int | None, image: torch.Tensor, context: torch.Tensor | None
    ) -> torch.Tensor:
        network = self.network.to(device)
        shape = image.shape[1:]
        with (
            torch.inference_mode(),
            torch.autocast(
                torch.device(device).type, torch.bfloat16, enabled=self.precision == 'bfloat16'
            ),
        ):
            if tile is None or all(n <= tile for n in shape):
                given = () if context is None else (context[None].to(device),)
                return network(image[None].to(device), *given)[0].float().cpu()
            total, weights = None, torch.zeros(shape)
            for corner, size in tiles(shape, tile):
                at = tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))
                half = tuple(slice(s.start // 2, s.stop // 2) for s in at)
                given = ()
                if context is not None:
                    given = (context[(None, slice(None), *half)].to(device),)
                piece = image[(None, slice(None), *at)].to(device)
                found = network(piece, *given)[0].float().cpu()
                weight = gaussian_window(size)
                if total is None:
                    total = torch.zeros((found.shape[0], *shape))
                total[(slice(None), *at)] += found * weight
                weights[at] += weight
            return total / weights


def _not_larger(tile: int | None, limit: int | None) -> bool:
    return limit is None or (tile is not None and tile <= limit)


def _words(device: str, tile: int | None) -> str:
    """Name a rung of the ladder."""
    return f'{device}, ' + (f'tiles of {tile} voxels' if tile else 'whole volume')


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: torch uses several types for it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    signs = ('out of memory', "can't allocate memory", 'status_alloc_failed')
    return any(sign in text for sign in signs)


def tiles(
    shape: tuple[int, ...], tile: int, overlap: float = 0.25
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cover a volume with equal tiles that overlap.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the volume, multiples of 2.
    tile : int
        Edge of a tile, voxels; tiles are cut to the volume where that is smaller.
    overlap : float
        Least share of a tile that its neighbour covers too.

    Yields
    ------
    corner, size : tuple of int
        First voxel and voxels of a tile; corners are even, so that a half-size grid can be cut
        at the same places.
    """
    sizes = [min(tile, n) for n in shape]
    corners = []
    for n, size in zip(shape, sizes, strict=True):
        step = max(1, int(size * (1 - overlap)))
        count = -(-(n - size) // step) + 1
        last = n - size
        corners.append(
            sorted({round(i * last / max(1, count - 1) / 2) * 2 for i in range(count)} | {last})
        )
    for x in corners[0]:
        for y in corners[1]:
            for z in corners[2]:
                yield (x, y, z), tuple(sizes)


def gaussian_window(size: tuple[int, ...], share: float = 0.25) -> torch.Tensor:
    """Return a Gaussian that is 1 in the middle of a tile; ``share`` of the edge is its SD."""
    window = torch.ones(())
    for n in size:
        at = (torch.arange(n) - (n - 1) / 2) / (share * n)
        window = window[..., None] * torch.exp(-0.5 * at**2)
    return window.clamp_min(1e-3)


def pad_to_multiple(volume: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pad the end of the last three axes with zeros to multiples of ``divisor``."""
    padding: list[int] = []
    for n in reversed(volume.shape[-3:]):
        padding += [0, -n % divisor]
    return functional.pad(volume, padding)
