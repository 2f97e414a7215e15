# SPDX-License-Identifier: Apache-2.0
"""Training of tissue networks on scans with manual labels; held-out scans are scored whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bids_app.errors import UsageError
from bids_app.inference.tissue import predict_tissue
from bids_app.training.loop import Validator
from bids_app.training.scans import Scan, ScanSampler, class_dice
from bids_app.training.tissue import TissueTrainer


class ScanTrainer(TissueTrainer):
    """Trains a tissue network; ``maps`` and ``validation_maps`` are lists of :class:`Scan`.

    Parameters
    ----------
    least : float
        See :class:`bids_app.training.scans.ScanSampler`.

    Notes
    -----
    The score is the hard Dice over whole held-out scans, without background. (The thesis prints
    soft Dice of crops, and its averages include the background.)
    """

    def __init__(self, *args: Any, least: float = 0.1, **kwargs: Any) -> None:
        self.least = least
        self.held_out: list[Scan] = []
        super().__init__(*args, **kwargs)
        wanted = len(self.maps[0].names)
        if self.stage.arguments['out_channels'] != wanted:
            raise UsageError(
                f'the network has {self.stage.arguments["out_channels"]} classes, the data '
                f'{wanted}: make out_channels and data.classes of the recipe agree'
            )

    def _sampler(self, seed: int, late: bool) -> ScanSampler:
        return ScanSampler(self.maps, self.stage.shape, seed, self.least)

    def _scores(self, network: nn.Module, scan: Scan) -> list[float]:
        """Return the Dice of each class but background on a whole scan."""
        probabilities, _ = predict_tissue(
            scan.image, network, shape=self.stage.shape, classes=len(scan.names),
            device=str(self.device), precision='float32',
        )  # fmt: skip
        return class_dice(probabilities.argmax(dim=0), scan.classes, len(scan.names))

    def _make_validator(self, maps: list[Scan]) -> Validator:
        self.held_out = maps

        def validate(network: nn.Module) -> dict[str, float]:
            scores = [self._scores(network, scan) for scan in maps]
            means = [_mean(column) for column in zip(*scores, strict=True)]
            names = maps[0].names[1:]
            return {'score': _mean(means)} | {
                f'dice_{name}': round(mean, 4) for name, mean in zip(names, means, strict=True)
            }

        return validate

    def run(self, steps: int | None = None, minutes: float | None = None) -> Path:
        """Train as :meth:`Trainer.run` does, then print the scores of the best weights."""
        best = super().run(steps, minutes)
        state = torch.load(best, map_location=self.device, weights_only=True)
        self.average.load_state_dict(state['network'])
        rows = {scan.name: self._scores(self.average, scan) for scan in self.held_out}
        print(dice_table(self.held_out[0].names[1:], rows))
        return best


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not nan; nan if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def dice_table(names: Sequence[str], rows: dict[str, list[float]]) -> str:
    """Return a table of Dice (%), a row for each scan and a column for each class and the mean."""
    width = max(len(name) for name in (*rows, 'Dice, %'))
    columns = [*names, 'mean']
    lines = ['  '.join([f'{"Dice, %":<{width}}', *(f'{name:>6}' for name in columns)])]
    for name, values in rows.items():
        cells = [
            f'{100 * value:>{max(6, len(column))}.2f}'
            for value, column in zip([*values, _mean(values)], columns, strict=True)
        ]
        lines.append('  '.join([f'{name:<{width}}', *cells]))
    return '\n'.join(lines)
