# SPDX-License-Identifier: Apache-2.0
"""Model folders: ``card.json``, ``weights.safetensors`` and ``recipe.toml``.

Weights are safetensors, so nothing is unpickled. One file holds all networks of a model; the
names of its tensors begin with the stage (``coarse.``, ``fine.``).
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids.files import read_json
from bids_app.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class ModelCard:
    """What a model is and where it comes from.

    Attributes
    ----------
    name, version, description, licence : str
        Identity, and the licence of the weights.
    sha256 : str
        Of the weights file.
    stages : dict
        For every network: ``network``, ``arguments``, ``spacing`` (mm), and ``shape`` (voxels) of
        the training samples.
    classes : list of str
        What segmentation networks predict, in order; empty for other tasks.
    content : dict
        The whole card.
    """

    name: str
    version: str
    description: str
    licence: str
    sha256: str
    stages: dict[str, Any]
    classes: list[str]
    content: dict[str, Any]


def models_folder() -> Path:
    """Return the folder of the models that come with the app.

    It is ``ANATNET_MODELS`` where that is set, else ``models`` beside the package (a checkout or
    an editable installation), else ``share/anatnet/models`` of the Python environment.
    """
    if os.environ.get('ANATNET_MODELS'):
        return Path(os.environ['ANATNET_MODELS'])
    beside = Path(__file__).resolve().parents[2] / 'models'
    return beside if beside.is_dir() else Path(sys.prefix) / 'share' / 'anatnet' / 'models'


def find_model(name: str, models_dir: Path | None = None) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    name : str
        Name of a model, or the path of a model folder.
    models_dir : pathlib.Path, optional
        Where to look instead of :func:`models_folder`.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ModelError
        If there is no such folder, or it lacks its card or its weights.
    """
    base = models_dir or models_folder()
    folder = Path(name) if os.sep in name else base / name
    trainable = (folder / 'recipe.toml').is_file()
    if not (folder / 'card.json').is_file() and not trainable:
        known = sorted(card.parent.name for card in base.glob('*/card.json'))
        raise ModelError(
            f'no model {name!r} in {base} (there: {", ".join(known) or "none"}): '
            'name one of these, or give the folder with --models-dir'
        )
    if not all((folder / name).is_file() for name in ('card.json', 'weights.safetensors')):
        raise ModelError(
            f'{folder}: no weights.safetensors: train them with '
            f'"python -m bids_app.training {folder / "recipe.toml"} --data DIR"'
        )
    return folder


def load_card(folder: Path) -> ModelCard:
    """Read the card of a model folder.

    Raises
    ------
    ModelError
        If the card is missing, is not JSON or lacks an entry.
    """
    path = folder / 'card.json'
    try:
        content = read_json(path)
        return ModelCard(
            content['name'],
            content['version'],
            content['description'],
            content['licence'],
            content['sha256'],
            content['stages'],
            content.get('classes', []),
            content,
        )
    except OSError as error:
        raise ModelError(f'{path}: cannot be read ({error.strerror})') from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{path}: not a model card ({error}): export the model again') from error


@lru_cache(maxsize=32)
def _file_sha256(path: Path, size: int, modified: int) -> str:
    with path.open('rb') as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_checksum(folder: Path) -> str:
    """Return the SHA-256 of the weights of a model folder, read from the file itself."""
    path = folder / 'weights.safetensors'
    try:
        status = path.stat()
        return _file_sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ModelError(f'{path}: cannot be read ({error.strerror})') from error


def check_weights(folder: Path, card: ModelCard) -> str:
    """Return the SHA-256 of the weights after comparing it with that of the card.

    Raises
    ------
    ModelError
        If they differ: the file was damaged, or is that of another model.
    """
    checksum = model_checksum(folder)
    if checksum != card.sha256:
        raise ModelError(
            f'{folder}: the weights are not those of the card (SHA-256 differs): '
            'fetch the model again, or export it'
        )
    return checksum


def load_weights(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read a weights file: for every stage its state dictionary, in float32.

    Raises
    ------
    ModelError
        If the file cannot be read or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f'{path}: not a weights file ({error}): fetch or train it again'
        ) from None
    stages: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        stage, name = key.split('.', 1)
        stages.setdefault(stage, {})[name] = value.float()
    return stages


def resident_networks(folder: Path) -> dict[str, nn.Module]:
    """Return the networks of a model folder, loaded once per process and kept for the next scan.

    They are shared by all callers: whoever moves one to a device leaves it there.

    Raises
    ------
    ModelError
        See :func:`load_networks`.
    """
    return _resident(folder, model_checksum(folder))


@lru_cache(maxsize=8)
def _resident(folder: Path, checksum: str) -> dict[str, nn.Module]:
    return load_networks(folder)


def load_networks(folder: Path) -> dict[str, nn.Module]:
    """Build the networks of a model folder with their weights, in evaluation mode on the CPU.

    Raises
    ------
    ModelError
        If the checksum of the weights is not the card's, or they do not fit the networks.
    """
    from bids_app.networks import build_network

    card = load_card(folder)
    check_weights(folder, card)
    weights = load_weights(folder / 'weights.safetensors')
    networks = {}
    for name, stage in card.stages.items():
        try:
            network = build_network(stage['network'], stage['arguments'])
            network.load_state_dict(weights[name])
        except (KeyError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f'{folder}: weights do not fit the card ({reason})') from error
        networks[name] = network.eval().requires_grad_(False)
    return networks
