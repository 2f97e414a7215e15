# SPDX-License-Identifier: Apache-2.0
"""Synthesise a T1w from the channels of a diffusion scan.

The published way is to cut the brain into overlapping blocks of 64 voxels and to average (Li et
al., Medical Image Analysis 2023). Here the network sees the whole brain where memory allows, and
else overlapping tiles whose borders count little; both work for brains of any size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from bids_app.errors import ModelError
from bids_app.images.masks import bounding_box
from bids_app.images.resample import resample_to
from bids_app.inference.device import resolve_precision
from bids_app.inference.models import find_model, load_card, models_folder
from bids_app.inference.predictor import Predictor, pad_to_multiple
from bids_app.inference.tissue import choose_tile, free_memory

STAGE = 'generator'
"""Name of the network of a synthesis model that predicts the T1w."""

TASK = 'synthesis'
"""What the card of a synthesis model says under ``task``."""

BLOCK = 64
"""Edge of the blocks of the training, voxels."""

T1W_MEAN, T1W_SPREAD = 114.0, 41.0
"""Mean and standard deviation in the brain of the bias-corrected T1w of OpenNeuro ds002748, on a
scale on which white matter is 160."""

_MARGIN = 4
_MEMORY_SHARE = 0.5  # of the free memory: other scans may be at work
_LEAST = 1.0  # in the brain, so that 0 is outside it


def synthesis_model(name: str = 'deepanat', models_dir: Path | None = None) -> Path:
    """Return the folder of a synthesis model.

    Raises
    ------
    ModelError
        If there is no such model, or it is made for something else.
    """
    folder = find_model(name, models_dir or models_folder())
    if load_card(folder).content.get('task') != TASK:
        raise ModelError(
            f'{folder} does not synthesise: give a model whose card.json has "task": "{TASK}"'
        )
    return folder


def synthesise_t1w(
    channels: np.ndarray,
    mask: np.ndarray,
    network: nn.Module,
    *,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int | None = None,
    tile: int | None = None,
    low_mem: bool = False,
) -> np.ndarray:
    """Predict the T1w of a brain, as z-scores.

    Parameters
    ----------
    channels : ndarray, shape (11, x, y, z), float32
        :func:`bids_app.diffusion.channels.deepanat_channels`, by way of :func:`regrid_channels`
        if a finer grid is wanted; RAS+ order.
    mask : ndarray, shape (x, y, z)
        Brain, nonzero inside.
    network : torch.nn.Module
        The network of the stage :data:`STAGE` of a synthesis model.
    device : str
        Torch device.
    precision : {'auto', 'float32', 'bfloat16'}
        See :func:`bids_app.inference.device.resolve_precision`.
    threads : int, optional
        CPU threads.
    tile : int, optional
        Edge of overlapping tiles, voxels, a multiple of 16. Default: the whole brain, or tiles
        that fit into the memory.
    low_mem : bool
        Trade time for memory.

    Returns
    -------
    ndarray, shape (x, y, z), float32
        0 outside the mask; :func:`t1w_intensities` makes intensities of it.

    Raises
    ------
    MemoryError
        If the memory does not suffice even for small tiles.
    """
    if threads:
        torch.set_num_threads(threads)
    inside = np.asarray(mask) > 0
    result = np.zeros(inside.shape, np.float32)
    if not inside.any():
        return result
    box = bounding_box(inside, _MARGIN)
    cut = torch.from_numpy(np.ascontiguousarray(channels[(slice(None), *box)], np.float32))
    size = cut.shape[1:]
    cut = pad_to_multiple(cut, network.divisor)
    if tile is None:
        memory = _MEMORY_SHARE * free_memory(device)
        tile = choose_tile(network, cut.shape[1:], len(cut), (BLOCK,) * 3, memory, low_mem)
    # Several times as fast on a CPU, for a network of few channels.
    network.to(memory_format=torch.channels_last_3d)
    predictor = Predictor(network, device, resolve_precision(precision, device), tile)
    found = predictor.logits(cut)[0].numpy()
    result[box] = found[tuple(slice(0, n) for n in size)]
    return np.where(inside, result, np.float32(0))


def t1w_intensities(zscores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Give z-scores the intensities of a bias-corrected T1w whose white matter is about 160.

    Parameters
    ----------
    zscores : ndarray, shape (x, y, z)
        Of :func:`synthesise_t1w`.
    mask : ndarray, shape (x, y, z)
        Brain, nonzero inside.

    Returns
    -------
    ndarray, shape (x, y, z), float32
        1 or more in the mask, 0 outside.
    """
    values = np.maximum(T1W_MEAN + T1W_SPREAD * zscores, _LEAST)
    return np.where(np.asarray(mask) > 0, values, 0).astype(np.float32)


def regrid_channels(
    channels: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    to_affine: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Bring channels to another, mostly finer grid, the border of the brain kept sharp.

    Voxels outside the mask have no weight, so that zeros around the brain do not bleed in. The
    network is trained on channels that went the same way.

    Parameters
    ----------
    channels : ndarray, shape (11, x, y, z)
    mask : ndarray, shape (x, y, z)
        Brain, nonzero inside.
    affine : ndarray, shape (4, 4)
        Voxel to world, mm.
    shape : tuple of int
        Voxels of the wanted grid. Its axes should be parallel to the given ones: the six images
        that the tensor predicts belong to directions along the voxel axes.
    to_affine : ndarray, shape (4, 4)

    Returns
    -------
    channels : ndarray, shape (11, *shape), float32
    mask : ndarray, shape shape, bool
        Where more than half of the weight is inside the given mask.
    """
    inside = (np.asarray(mask) > 0).astype(np.float32)
    weight = resample_to(inside, affine, shape, to_affine)
    new = weight > 0.5
    result = np.zeros((len(channels), *shape), np.float32)
    for source, out in zip(channels, result, strict=True):
        moved = resample_to(source * inside, affine, shape, to_affine)
        out[new] = moved[new] / weight[new]
    return result, new
