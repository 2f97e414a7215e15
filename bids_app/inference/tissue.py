# SPDX-License-Identifier: Apache-2.0
"""Tissue models: which one fits the contrasts of a session, and how it is run over a brain.

A tissue model is a model folder whose card says ``"task": "tissue"`` and names the contrast of
every channel of its network.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from bids_app.errors import ModelError
from bids_app.images.masks import bounding_box
from bids_app.inference.device import resolve_precision
from bids_app.inference.models import ModelCard, find_model, load_card, models_folder
from bids_app.inference.predictor import TILES, Predictor, pad_to_multiple

logger = logging.getLogger('anatnet.inference')

STAGE = 'tissue'
"""Name of the one network of a tissue model."""

_MARGIN = 8
"""Voxels around the brain that the network sees."""
_LOW_MEMORY_TILE = 64
_MEMORY_SHARE = 0.5  # of the free memory: other scans may be at work
_COPIES = 2  # skip connections and temporary results, in units of the largest layer


def usable_contrasts(
    card: ModelCard, available: Collection[str], reference: str | None = None
) -> list[str] | None:
    """Return the contrast of every channel of a tissue model, an empty text for one left empty.

    Parameters
    ----------
    card : ModelCard
        Of a tissue model. All of its contrasts are needed, unless it says
        ``missing_contrasts``: then one is enough.
    available : collection of str
        The contrasts that there are.
    reference : str, optional
        What ``any`` stands for; by default T1w, else T2w, else FLAIR, else the first by name.

    Returns
    -------
    list of str or None
        None if a contrast is missing that the model cannot do without.
    """
    if reference is None:
        order = ('T1w', 'T2w', 'FLAIR', *sorted(available))
        reference = next((one for one in order if one in available), '')
    wanted = [reference if one == 'any' else one for one in card.content['contrasts']]
    enough = any if card.content.get('missing_contrasts') else all
    if not enough(one in available for one in wanted):
        return None
    return [one if one in available else '' for one in wanted]


def tissue_models(models_dir: Path | None = None) -> list[Path]:
    """Return the folders of all tissue models that have weights, by name."""
    cards = sorted((models_dir or models_folder()).glob('*/card.json'))
    return [
        path.parent
        for path in cards
        if path.with_name('weights.safetensors').is_file()
        and load_card(path.parent).content.get('task') == 'tissue'
    ]


def choose_tissue_model(
    available: Collection[str],
    name: str | None = None,
    *,
    reference: str | None = None,
    models_dir: Path | None = None,
) -> Path:
    """Return the folder of the tissue model for the contrasts of a session, and log why.

    Without a name it is the model that uses most of the contrasts. Of equals it is the one with
    the fewest empty channels, then the one with the highest ``priority`` in its card (0 where
    there is none), then one made for just these contrasts rather than for any, then the first by
    name.

    Parameters
    ----------
    available : collection of str
        The contrasts that there are: ``T1w``, ``T2w``, ``FLAIR``, or others.
    name : str, optional
        Name or folder of the model to take.
    reference : str, optional
        What models for any contrast are given; see :func:`usable_contrasts`.
    models_dir : pathlib.Path, optional
        Where the models are, instead of :func:`bids_app.inference.models.models_folder`.

    Raises
    ------
    ModelError
        If the named model is no tissue model or needs a contrast that is missing; or if no model
        fits.
    """
    there = ', '.join(sorted(available)) or 'none'
    candidates = [find_model(name, models_dir)] if name else tissue_models(models_dir)
    best: tuple[tuple[Any, ...], Path, list[str]] | None = None
    for folder in candidates:
        card = load_card(folder)
        if card.content.get('task') != 'tissue':
            raise ModelError(
                f'{folder} is no tissue model: give one whose card.json has "task": "tissue"'
            )
        channels = usable_contrasts(card, available, reference)
        if channels is None:
            continue
        used = len(set(channels) - {''})
        rank = (
            used,
            used - len(channels),
            card.content.get('priority', 0),
            'any' not in card.content['contrasts'],
        )
        if best is None or rank > best[0]:
            best = (rank, folder, channels)
    if best is None and name:
        wanted = ', '.join(load_card(candidates[0]).content['contrasts'])
        raise ModelError(
            f'the tissue model {name} takes {wanted}, of which not enough is there (there: '
            f'{there}): choose another model, or auto'
        )
    if best is None:
        raise ModelError(
            f'no tissue model in {models_dir or models_folder()} takes what there is ({there}): '
            'train one (docs/training.md), or give a folder with --models-dir'
        )
    _, folder, channels = best
    left_out = sorted(set(available) - set(channels))
    empty = [
        wanted
        for wanted, channel in zip(load_card(folder).content['contrasts'], channels, strict=True)
        if not channel
    ]
    logger.info(
        'tissue model %s, from %s%s%s',
        folder.name,
        ', '.join(one for one in channels if one),
        f'; without {", ".join(empty)}, which it can do' if empty else '',
        f'; {", ".join(left_out)} left out' if left_out else '',
    )
    return folder


def bytes_per_voxel(network: nn.Module, channels: int) -> int:
    """Estimate the memory that a network needs for each voxel of its input, in bytes.

    The largest input and output of any one module, in float32, twice; found without computing
    anything. On a CPU the networks of the family need 0.95 to 1.3 times as much. Those whose
    features all stay at full resolution need the most.

    Parameters
    ----------
    network : torch.nn.Module
        Takes ``(1, channels, x, y, z)``.
    channels : int
        Contrasts.
    """
    largest = 0

    def look(_: nn.Module, given: tuple[Any, ...], found: Any) -> None:
        nonlocal largest
        tensors = [one for one in (*given, found) if isinstance(one, torch.Tensor)]
        largest = max(largest, sum(one.numel() for one in tensors))

    edge = 2 * max(network.divisor, 16)
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shadows = {key: torch.empty_like(value, device='meta') for key, value in state.items()}
    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        with torch.no_grad():
            functional_call(
                network, shadows, (torch.empty((1, channels, *(edge,) * 3), device='meta'),)
            )
    finally:
        for hook in hooks:
            hook.remove()
    return _COPIES * 4 * -(-largest // edge**3)


def free_memory(device: str) -> int:
    """Return the free memory of a device, bytes."""
    if device.startswith('cuda'):
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def choose_tile(
    network: nn.Module,
    size: Sequence[int],
    channels: int,
    shape: Sequence[int],
    memory: float,
    low_mem: bool = False,
) -> int | None:
    """Return the edge of the tiles to run a network in, voxels, or None for the whole volume.

    Networks with instance normalisation take tiles of the size of their training samples, because
    they see the statistics of the tile. All others see the whole volume, if it fits.

    Parameters
    ----------
    network : torch.nn.Module
        The network.
    size : sequence of int
        Voxels of the volume.
    channels : int
        Contrasts.
    shape : sequence of int
        Voxels of the training samples.
    memory : float
        What the network may use, bytes.
    low_mem : bool
        Take small tiles in any case.
    """
    trained = max(shape)
    if low_mem:
        return min(_LOW_MEMORY_TILE, trained)
    local = any(isinstance(module, nn.InstanceNorm3d) for module in network.modules())
    first = trained if local else None
    need = bytes_per_voxel(network, channels)
    smaller = [edge for edge in TILES if edge is not None and (first is None or edge < first)]
    for tile in (first, *smaller):
        voxels = 1
        for n in size:
            voxels *= n if tile is None else min(n, tile)
        if voxels * need <= memory:
            return tile
    return min(*smaller, trained) if smaller else trained


def predict_tissue(
    image: torch.Tensor,
    network: nn.Module,
    *,
    shape: Sequence[int],
    classes: int,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int | None = None,
    low_mem: bool = False,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Run a tissue network over a brain.

    Parameters
    ----------
    image : torch.Tensor, shape (contrasts, x, y, z), float32
        Masked and normalised (:func:`bids_app.images.intensity.normalise_brain_zscore`), RAS+;
        voxels outside the brain, and contrasts that are missing, are zero.
    network : torch.nn.Module
        The network of the stage ``tissue`` of a tissue model.
    shape : sequence of int
        Voxels of its training samples.
    classes : int
        How many it tells apart, background first.
    device : str
        Torch device.
    precision : {'auto', 'float32', 'bfloat16'}
        See :func:`bids_app.inference.device.resolve_precision`.
    threads : int, optional
        CPU threads.
    low_mem : bool
        Trade time for memory.

    Returns
    -------
    probabilities : torch.Tensor, shape (classes, x, y, z), float32
        They sum to 1. Beyond a margin around the voxels that are not zero all is background.
    used : dict
        ``device``, ``precision`` and, where memory ran out, ``fallback``: the tiles that it ended
        with.

    Raises
    ------
    ModelError
        If the network predicts another number of classes.
    MemoryError
        If the memory does not suffice even for small tiles.
    """
    if threads:
        torch.set_num_threads(threads)
    resolved = resolve_precision(precision, device)
    probabilities = torch.zeros((classes, *image.shape[1:]))
    probabilities[0] = 1
    used = {'device': device, 'precision': resolved, 'fallback': None}
    inside = (image != 0).any(dim=0)
    if not bool(inside.any()):
        return probabilities, used
    box = bounding_box(inside.numpy(), _MARGIN)
    cut = image[(slice(None), *box)]
    size = cut.shape[1:]
    # At the lowest level of a U-Net there must be more than one voxel.
    least = 2 * network.divisor
    short = [max(0, least - n) for n in reversed(size)]
    cut = nn.functional.pad(cut, [end for n in short for end in (0, n)])
    cut = pad_to_multiple(cut, network.divisor)
    memory = _MEMORY_SHARE * free_memory(device)
    tile = choose_tile(network, cut.shape[1:], len(image), shape, memory, low_mem)
    predictor = Predictor(network, device, resolved, tile)
    logits = predictor.logits(cut)
    if len(logits) != classes:
        raise ModelError(
            f'the network tells {len(logits)} classes apart, its card says {classes}: '
            'export the model again'
        )
    found = logits.softmax(dim=0)[(slice(None), *(slice(0, n) for n in size))]
    probabilities[(slice(None), *box)] = found
    return probabilities, {**used, 'fallback': predictor.fallback}
