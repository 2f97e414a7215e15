# SPDX-License-Identifier: Apache-2.0
"""Train one network of a classifier, stop early, and calibrate what it says.

Training follows Eitel et al. (2019, 2021): Adam, dropout, early stopping on the loss of a
validation split. Classes weigh the same in every loss, so probabilities are those of a population
in which the classes are equally common.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bids_app.group.scores import class_weights
from bids_app.inference.classifier import probabilities
from bids_app.networks import build_network
from bids_app.networks.pif import Standardise, parameter_count


@dataclass(frozen=True)
class TrainingSettings:
    """How networks are trained.

    Attributes
    ----------
    epochs : int
        At most so many.
    patience : int
        Training stops when the validation loss has not fallen for so many epochs.
    ignore, ignore_steps : int
        The first epochs, and all until so many steps are done, do not count: with few scans an
        epoch is a few steps only.
    epochs_without_validation : int
        Where the sessions are too few for a validation split.
    batch : int
        Scans of a step.
    learning_rate, weight_decay : float
        Adam.
    mirror : bool
        Whether a training scan is mirrored at random, as in the papers. It makes networks blind
        to what differs between left and right.
    """

    epochs: int = 100
    patience: int = 10
    ignore: int = 5
    ignore_steps: int = 200
    epochs_without_validation: int = 20
    batch: int = 8
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    mirror: bool = False


@dataclass(frozen=True)
class Task:
    """What the outputs of a network mean.

    Attributes
    ----------
    classes : int
        0 for a number.
    mean, sd : float
        By which a number is standardised.
    """

    classes: int
    mean: float = 0.0
    sd: float = 1.0

    @property
    def outputs(self) -> int:
        """Outputs of a network."""
        return self.classes if self.classes > 2 else 1


@dataclass
class Trained:
    """A trained network.

    Attributes
    ----------
    name : str
        Class in :data:`bids_app.networks.NETWORKS`.
    arguments : dict
        Of that class.
    network : torch.nn.Module
        In evaluation mode, on the CPU.
    task : Task
    temperature : float
        Divides the logits of classes.
    error_sd : float
        Standard deviation of the error of a number, in its unit.
    epochs, best_epoch : int
        When training stopped, and which weights were kept; 0 for models without epochs.
    """

    name: str
    arguments: dict[str, Any]
    network: nn.Module
    task: Task
    temperature: float = 1.0
    error_sd: float = 0.0
    epochs: int = 0
    best_epoch: int = 0
    parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = parameter_count(self.network)

    def outputs(self, maps: np.ndarray, rows: np.ndarray, device: str = 'cpu') -> torch.Tensor:
        """Return the raw outputs for some scans, shape (scans, outputs)."""
        return run(self.network.to(device), maps, rows)

    def predict(self, maps: np.ndarray, rows: np.ndarray, device: str = 'cpu') -> np.ndarray:
        """Return calibrated probabilities (scans, classes), or numbers (scans, 1)."""
        return self.translate(self.outputs(maps, rows, device))

    def translate(self, outputs: torch.Tensor) -> np.ndarray:
        """Turn raw outputs into probabilities or numbers."""
        if self.task.classes:
            return probabilities(outputs.double(), self.temperature).numpy()
        return outputs.double().numpy() * self.task.sd + self.task.mean

    def stage(self) -> dict[str, Any]:
        """Return the entry of a model card."""
        entry: dict[str, Any] = {
            'network': self.name,
            'arguments': self.arguments,
            'parameters': self.parameters,
            'epochs': self.epochs,
            'best_epoch': self.best_epoch,
        }
        if self.task.classes:
            return entry | {'temperature': self.temperature}
        return entry | {'mean': self.task.mean, 'sd': self.task.sd, 'error_sd': self.error_sd}


def make_task(values: np.ndarray, classes: int, train: np.ndarray) -> Task:
    """Describe the outputs; the mean of a number is that of the training sessions."""
    if classes:
        return Task(classes)
    return Task(0, float(values[train].mean()), float(values[train].std()) or 1.0)


def set_standardise(layer: Standardise, maps: np.ndarray, train: np.ndarray) -> None:
    """Standardise maps voxel by voxel with the training scans alone.

    Voxels of less than a tenth of the largest mean are outside and become 0. The standard
    deviation of a voxel counts for not less than the median of all, so that noise where nothing
    varies is not blown up.
    """
    total = np.zeros(maps.shape[1:])
    square = np.zeros(maps.shape[1:])
    for row in train:
        scan = maps[row].astype(np.float64)
        total += scan
        square += scan**2
    mean = total / len(train)
    sd = np.sqrt(np.maximum(square / len(train) - mean**2, 0))
    inside = mean > 0.1 * mean.max()
    floor = np.median(sd[inside]) if inside.any() else 1.0
    scale = inside / np.maximum(sd, floor if floor > 0 else 1.0)
    layer.mean.copy_(torch.from_numpy(mean))
    layer.scale.copy_(torch.from_numpy(scale))


def train_network(
    name: str,
    arguments: dict[str, Any],
    maps: np.ndarray,
    values: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    classes: int,
    *,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    device: str = 'cpu',
) -> Trained:
    """Train a network and calibrate it.

    Parameters
    ----------
    name, arguments
        Network of :data:`bids_app.networks.NETWORKS`; it has a ``standardise`` layer.
    maps : ndarray of float16 or float32, shape (sessions, x, y, z)
        Of all sessions.
    values : ndarray, shape (sessions,)
        Codes of classes, or numbers.
    train, validation : ndarray of int
        Positions of sessions. Without validation sessions, a fixed number of epochs is trained
        and nothing is calibrated.
    classes : int
        0 for numbers.
    settings : TrainingSettings, optional
    seed : int
        Of weights, order and dropout. The same seed gives the same network on the same machine.
    device : str
        Torch device.

    Returns
    -------
    Trained
    """
    settings = settings or TrainingSettings()
    task = make_task(values, classes, train)
    gpus = [torch.device(device)] if device.startswith('cuda') else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        network = build_network(name, arguments)
        set_standardise(network.standardise, maps, train)
        network.to(device)
        epochs, best = _optimise(network, maps, values, train, validation, task, settings, seed)
    trained = Trained(
        name, arguments, network.cpu().eval().requires_grad_(False), task,
        epochs=epochs, best_epoch=best,
    )  # fmt: skip
    if len(validation):
        calibrate(trained, trained.outputs(maps, validation, device), values[validation])
        trained.network.cpu()
    return trained


def calibrate(trained: Trained, outputs: torch.Tensor, values: np.ndarray) -> None:
    """Set the temperature of classes, or the error of numbers, from the validation sessions.

    The temperature is the one with the smallest loss between 1/4 and 16 (Guo et al., ICML 2017).
    """
    if not trained.task.classes:
        error = trained.translate(outputs)[:, 0] - values
        trained.error_sd = float(np.sqrt(np.mean(error**2)))
        return
    from scipy.optimize import minimize_scalar

    weights = class_weights(values, trained.task.classes)
    picked = np.arange(len(values)), values

    def loss(log_temperature: float) -> float:
        chance = probabilities(outputs.double(), float(np.exp(log_temperature))).numpy()
        return float(-weights @ np.log(np.maximum(chance[picked], 1e-12)))

    found = minimize_scalar(loss, bounds=(np.log(0.25), np.log(16)), method='bounded')
    trained.temperature = float(np.exp(found.x))


def loss_of(outputs: torch.Tensor, values: torch.Tensor, task: Task, weights: torch.Tensor):
    """Return the weighted loss: cross-entropy for classes, squared error for numbers.

    Parameters
    ----------
    outputs : Tensor, shape (scans, outputs)
    values : Tensor, shape (scans,)
        Codes, or numbers in their unit.
    task : Task
    weights : Tensor, shape (scans,)
    """
    if task.classes == 2:
        each = F.binary_cross_entropy_with_logits(
            outputs[:, 0], values.to(outputs.dtype), reduction='none'
        )
    elif task.classes:
        each = F.cross_entropy(outputs, values, reduction='none')
    else:
        wanted = ((values - task.mean) / task.sd).to(outputs.dtype)
        each = (outputs[:, 0] - wanted) ** 2
    return (weights * each).sum()


def _optimise(
    network: nn.Module,
    maps: np.ndarray,
    values: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    task: Task,
    settings: TrainingSettings,
    seed: int,
) -> tuple[int, int]:
    """Train until the validation loss no longer falls; return the last and the best epoch."""
    rng = np.random.default_rng(seed)
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    weights = dict(zip(train, _weights(values[train], task) * len(train), strict=True))
    limit = settings.epochs if len(validation) else settings.epochs_without_validation
    steps = max(1, round(len(train) / settings.batch))
    ignore = min(max(settings.ignore, -(-settings.ignore_steps // steps)), limit - 1)
    lowest, best, kept = np.inf, 0, None
    for epoch in range(1, limit + 1):
        network.train()
        for rows in np.array_split(rng.permutation(train), steps):
            x = _batch(maps, rows, device)
            if settings.mirror:
                flipped = torch.from_numpy(rng.random(len(rows)) < 0.5).to(device)
                x = torch.where(flipped[:, None, None, None, None], x.flip(2), x)
            weight = torch.tensor([weights[row] / len(rows) for row in rows], dtype=torch.float32)
            loss = loss_of(
                network(x), torch.from_numpy(values[rows]).to(device), task, weight.to(device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not len(validation) or epoch <= ignore:
            continue
        network.eval()
        outputs = run(network, maps, validation)
        wanted = torch.from_numpy(values[validation])
        weight = torch.from_numpy(_weights(values[validation], task)).float()
        now = float(loss_of(outputs, wanted, task, weight))
        if kept is None or now < lowest:
            lowest, best = now, epoch
            kept = copy.deepcopy(network.state_dict())
        elif epoch - best >= settings.patience:
            break
    if kept is not None:
        network.load_state_dict(kept)
    return epoch, best or epoch


def _weights(values: np.ndarray, task: Task) -> np.ndarray:
    if task.classes:
        return class_weights(values, task.classes)
    return np.full(len(values), 1 / len(values))


def run(network: nn.Module, maps: np.ndarray, rows: np.ndarray, batch: int = 16) -> torch.Tensor:
    """Return the outputs of a network for some scans, on the CPU."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        found = [
            network(_batch(maps, rows[start : start + batch], device)).cpu()
            for start in range(0, len(rows), batch)
        ]
    return torch.cat(found)


def _batch(maps: np.ndarray, rows: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(maps[rows].astype(np.float32))[:, None].to(device)
