# SPDX-License-Identifier: Apache-2.0
"""The training loop: resumes, logs, validates, keeps the best weights."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bids_app.errors import UsageError
from bids_app.networks import build_network
from bids_app.training.label_maps import LabelMaps
from bids_app.training.losses import segmentation_loss
from bids_app.training.overlap import class_overlaps
from bids_app.training.recipe import StageRecipe
from bids_app.training.samples import (
    CoarseSampler,
    CoarseStage,
    FineSampler,
    Sample,
    Sampler,
)

logger = logging.getLogger('anatnet.training')

Validator = Callable[[nn.Module], dict[str, float]]


def make_sampler(
    stage: StageRecipe,
    maps: LabelMaps,
    seed: int,
    coarse: CoarseStage | None = None,
    late: bool = False,
) -> Sampler:
    """Return the sampler that fits a stage: fine where the network takes context."""
    ranges = stage.late_ranges if late else stage.ranges
    common = (maps, ranges, stage.shape, stage.spacing, stage.draws, seed)
    if stage.arguments.get('context_channels'):
        return FineSampler(*common, coarse=coarse)
    return CoarseSampler(*common)


def load_coarse(stage: StageRecipe, best: Path) -> CoarseStage | None:
    """Return a trained coarse stage from its ``best.pt``, or None where there is none yet."""
    if not best.exists():
        return None
    network = build_network(stage.network, stage.arguments).eval().requires_grad_(False)
    network.load_state_dict(torch.load(best, map_location='cpu', weights_only=True)['network'])
    return CoarseStage(network, stage.shape, stage.spacing)


def learning_rate_factor(step: int, steps: int, warmup: int, decay: float) -> float:
    """Return the share of the learning rate at a step: warm-up, constant, linear decay."""
    if step < warmup:
        return (step + 1) / warmup
    start = steps * (1 - decay)
    return 1.0 if step < start else max(0.0, (steps - step) / max(1.0, steps - start))


def make_optimizer(stage: StageRecipe, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a stage.

    Raises
    ------
    UsageError
        If the recipe names another than ``adamw`` and ``sgd``.
    """
    settings = {'lr': stage.learning_rate, 'weight_decay': stage.weight_decay}
    if stage.optimizer == 'adamw':
        return torch.optim.AdamW(network.parameters(), **settings)
    if stage.optimizer == 'sgd':
        return torch.optim.SGD(network.parameters(), momentum=stage.momentum, **settings)
    raise UsageError(f'the recipe has an unknown optimizer "{stage.optimizer}": adamw or sgd')


class _Endless(IterableDataset):
    """The samples of a sampler, a sequence of its own for every worker process."""

    def __init__(self, make: Callable[[int], Any], seed: int) -> None:
        self.make = make
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            torch.set_num_threads(1)
        sampler = self.make(self.seed + 7919 * (worker.id + 1 if worker else 0))
        while True:
            yield sampler.draw()


def _batch(samples: list[Sample], device: torch.device) -> tuple[torch.Tensor | None, ...]:
    image = torch.stack([sample.image for sample in samples]).to(device)
    target = torch.stack([sample.target for sample in samples]).to(device)
    side = torch.stack([sample.side for sample in samples]).to(device)
    context = None
    if samples[0].context is not None:
        context = torch.stack([sample.context for sample in samples]).to(device)
    return image, context, target, side


class Trainer:
    """Trains one stage of a recipe in a folder of its own.

    This class trains segmentation; what differs for other tasks is in ``_sampler``, ``_loss``
    and ``_make_validator``.

    Parameters
    ----------
    stage : StageRecipe
        What to train.
    maps, validation_maps : LabelMaps
        Label maps to learn from, and others to validate on.
    folder : pathlib.Path
        Where ``checkpoint.pt``, ``best.pt`` and ``log.jsonl`` go.
    seed : int
        Seed of weights and samples.
    device : str
        Torch device.
    validator : callable, optional
        Takes the averaged network and returns scores, of which ``score`` decides what is best.
        By default Dice and loss on fixed synthetic samples of ``validation_maps``.
    initial : dict, optional
        Weights to start from (fine-tuning).
    coarse : CoarseStage, optional
        The trained coarse stage, for fine stages.
    workers : int
        Processes that draw samples ahead of the optimiser; 0 draws them in between.
    """

    losses: tuple[str, ...] = ('dice-ce',)
    """What a recipe may name as the loss; for other tasks than tissue there is one each."""

    def __init__(
        self,
        stage: StageRecipe,
        maps: Any,
        validation_maps: Any,
        folder: Path,
        *,
        seed: int = 0,
        device: str = 'cpu',
        validator: Validator | None = None,
        initial: dict[str, torch.Tensor] | None = None,
        coarse: CoarseStage | None = None,
        workers: int = 0,
    ) -> None:
        if stage.loss not in self.losses:
            raise UsageError(
                f'the recipe has an unknown loss "{stage.loss}": {" or ".join(self.losses)}'
            )
        self.stage = stage
        self.coarse = coarse
        self.folder = folder
        self.device = torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.network = build_network(stage.network, stage.arguments).to(self.device)
        if initial is not None:
            try:
                self.network.load_state_dict(initial)
            except RuntimeError as error:  # other layers, or layers of other sizes
                raise UsageError(
                    f'the weights to start from do not fit {stage.network} with the arguments of '
                    'the recipe: use the same network and arguments'
                ) from error
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = make_optimizer(stage, self.network)
        self.step = 0
        self.best = -math.inf
        self._resume()
        self.maps, self.seed, self.workers = maps, seed, workers
        self.validator = validator or self._make_validator(validation_maps)

    def _resume(self) -> None:
        path = self.folder / 'checkpoint.pt'
        if not path.exists():
            return
        self._restore(torch.load(path, map_location=self.device, weights_only=True))
        logger.info('%s: resumed at step %d', self.folder.name, self.step)

    def _save(self, name: str, content: dict[str, object]) -> None:
        temporary = self.folder / f'.{name}.{os.getpid()}'
        torch.save(content, temporary)
        os.replace(temporary, self.folder / name)

    def _sampler(self, seed: int, late: bool) -> Any:
        """Return what draws the samples; its ``draw()`` gives one."""
        return make_sampler(self.stage, self.maps, seed, self.coarse, late)

    def _samples(self, late: bool) -> Iterator[Any]:
        """Return an endless sequence; a resumed run does not see the first samples again."""
        loader = DataLoader(
            _Endless(
                lambda number: self._sampler(number, late),
                self.seed + 1_000_003 * (self.step + 1),
            ),
            batch_size=None,
            num_workers=self.workers,
            multiprocessing_context='fork' if self.workers else None,
        )
        return iter(loader)

    def checkpoint(self) -> None:
        """Write all that a later call needs to go on."""
        self._save('checkpoint.pt', self._state())

    def _state(self) -> dict[str, object]:
        """Return what a checkpoint holds."""
        return {
            'network': self.network.state_dict(),
            'average': self.average.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'step': self.step,
            'best': self.best,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on from the content of a checkpoint."""
        self.network.load_state_dict(state['network'])
        self.average.load_state_dict(state['average'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.step, self.best = state['step'], state['best']

    def run(self, steps: int | None = None, minutes: float | None = None) -> Path:
        """Train until ``steps`` or for ``minutes``, whichever comes first.

        Parameters
        ----------
        steps : int, optional
            Total steps, instead of the recipe's; also the length of the schedule.
        minutes : float, optional
            Wall-clock limit of this call; a later call goes on.

        Returns
        -------
        pathlib.Path
            ``best.pt``: the averaged weights with the best validation score.
        """
        stage = self.stage
        steps = steps or stage.steps
        deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        parts: dict[str, float] = {}
        started = time.monotonic()
        since = 0
        late = stage.falling(self.step, steps)
        samples = self._samples(late)
        while self.step < steps and time.monotonic() < deadline:
            factor = learning_rate_factor(self.step, steps, stage.warmup, stage.decay)
            for group in self.optimizer.param_groups:
                group['lr'] = stage.learning_rate * factor
            if late != stage.falling(self.step, steps):
                late = True
                samples = self._samples(late)
            new = self._train_step(samples)
            parts = {k: 0.98 * parts.get(k, v) + 0.02 * v for k, v in new.items()}
            self.step += 1
            since += 1
            if self.step % 50 == 0:
                self._log(
                    {
                        'step': self.step,
                        **parts,
                        'seconds_per_step': (time.monotonic() - started) / since,
                    }
                )
            if self.step % stage.validate_every == 0 or self.step == steps:
                self.validate()
                self.checkpoint()
            elif self.step % 100 == 0:
                self.checkpoint()
        self.checkpoint()
        if not (self.folder / 'best.pt').exists():
            self.validate()
        return self.folder / 'best.pt'

    def _loss(self, drawn: list[Any]) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of some samples, and its parts for the log."""
        image, context, target, side = _batch(drawn, self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(image, context)
        return segmentation_loss(logits, target, side)

    def _train_step(self, samples: Iterator[Any]) -> dict[str, float]:
        drawn = [next(samples) for _ in range(self.stage.batch)]
        self.network.train()
        loss, parts = self._loss(drawn)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if bool(torch.isfinite(norm)):  # an all but empty crop can give infinite gradients
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.stage.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(
                self.average.state_dict().values(), self.network.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - decay)
                else:  # batch normalisation counts its batches
                    mean.copy_(value)
        return {**parts, 'loss': loss.item()}

    def validate(self) -> None:
        """Score the averaged weights and keep them if they are the best so far."""
        scores = self.validator(self.average)
        self._log({'step': self.step, 'validation': scores})
        if scores['score'] > self.best:
            self.best = scores['score']
            self._save('best.pt', {'network': self.average.state_dict(), 'step': self.step})

    def _make_validator(self, maps: Any, count: int = 6) -> Validator:
        sampler = make_sampler(self.stage, maps, 12345, self.coarse)
        samples = [sampler.draw() for _ in range(count)]

        def validate(network: nn.Module) -> dict[str, float]:
            # Sums over all samples, so that a class at the rim of one crop does not count alone.
            overlap, size, right, lateral = 0.0, 0.0, 0.0, 0.0
            for sample in samples:
                image, context, target, side = _batch([sample], self.device)
                with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                    logits = network(image, context).float()
                both, voxels = class_overlaps(
                    logits[0, :-1].argmax(dim=0), target[0].argmax(dim=0), target.shape[1]
                )
                overlap, size = overlap + both, size + voxels
                wanted = side[0, 1] > side[0, 0]
                counted = side[0].sum(dim=0) > 0.5
                right += float(((logits[0, -1] > 0) == wanted)[counted].sum())
                lateral += float(counted.sum())
            dice = (2 * overlap / size.clamp_min(1))[1:]
            mean = float(dice.mean())
            return {
                'score': mean,
                'dice_min': float(dice.min()),
                'side_accuracy': right / max(1.0, lateral),
                'dice': [round(float(value), 3) for value in dice],
            }

        return validate

    def _log(self, entry: dict[str, object]) -> None:
        entry['time'] = round(time.time())
        with (self.folder / 'log.jsonl').open('a', encoding='utf-8') as stream:
            stream.write(json.dumps(entry) + '\n')
        logger.info('%s: %s', self.folder.name, json.dumps(entry))
