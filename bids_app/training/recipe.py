# SPDX-License-Identifier: Apache-2.0
"""Recipes: everything that a training run depends on, read from ``models/<name>/recipe.toml``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bids_app.errors import UsageError
from bids_app.training.synthesis import Ranges


@dataclass(frozen=True)
class StageRecipe:
    """How one network of a model is trained.

    Attributes
    ----------
    network : str
        Class name in :data:`bids_app.networks.NETWORKS`.
    arguments : dict
        Its keyword arguments.
    shape : tuple of int
        Voxels of a training sample.
    spacing : float
        Voxel size, mm.
    draws : int
        Sub-voxel draws for each voxel of a training image.
    steps : int
        Optimiser steps, one sample each times ``batch``.
    batch : int
        Samples of a step.
    learning_rate, weight_decay : float
        Of the optimiser.
    warmup : int
        Steps of linear warm-up.
    decay : float
        Share of the steps, at the end, over which the learning rate falls to zero.
    average : float
        Decay of the exponential moving average of the weights.
    validate_every : int
        Steps between validations.
    ranges : Ranges
        Ranges of the synthesis.
    late_ranges : Ranges
        Ranges while the learning rate falls: milder and closer to the scans that matter most.
    optimizer : {'adamw', 'sgd'}
        Adam with decoupled weight decay, or stochastic gradient descent.
    momentum : float
        Of the latter.
    loss : str
        For tissue networks: a key of :data:`bids_app.training.losses.TISSUE_LOSSES`.
    """

    network: str
    arguments: dict[str, Any]
    shape: tuple[int, int, int]
    spacing: float
    draws: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    warmup: int
    decay: float
    average: float
    validate_every: int
    ranges: Ranges
    late_ranges: Ranges
    optimizer: str = 'adamw'
    momentum: float = 0.0
    loss: str = 'dice-ce'

    def falling(self, step: int, steps: int) -> bool:
        """Return whether the learning rate falls at a step of a schedule of so many steps."""
        return step >= steps * (1 - self.decay)


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes
    ----------
    name, version, description, licence : str
        For the model card.
    data : dict
        ``pattern`` of the label maps, ``validation`` file names kept apart, ``source``,
        ``licence``.
    seed : int
        Seed of weights and samples.
    stages : dict of StageRecipe
        By name, in order of training.
    card : dict
        Further entries of the card, copied as they are.
    """

    name: str
    version: str
    description: str
    licence: str
    data: dict[str, Any]
    seed: int
    stages: dict[str, StageRecipe]
    card: dict[str, Any]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path : pathlib.Path
        ``recipe.toml``.

    Returns
    -------
    Recipe

    Raises
    ------
    UsageError
        If the file is missing, is not TOML, or has an unknown or a missing entry.
    """
    table = _read_toml(path)
    common = table.get('ranges', {})
    try:
        stages = {}
        for name, entries in table['stage'].items():
            ranges = {**common, **entries.get('ranges', {})}
            late = {**ranges, **entries.get('late_ranges', {})}
            stages[name] = StageRecipe(
                **{
                    **entries,
                    'shape': tuple(entries['shape']),
                    'ranges': _ranges(path, ranges),
                    'late_ranges': _ranges(path, late),
                }
            )
        return Recipe(
            **table['model'],
            data=table['data'],
            seed=table.get('seed', 0),
            stages=stages,
            card=table.get('card', {}),
        )
    except (KeyError, TypeError) as error:
        raise UsageError(
            f'{path}: not a complete recipe ({error}): see docs/training.md'
        ) from error


def _ranges(path: Path, values: dict[str, Any]) -> Ranges:
    unknown = set(values) - {entry.name for entry in fields(Ranges)}
    if unknown:
        raise UsageError(f'{path}: unknown range {sorted(unknown)[0]!r}')
    return Ranges(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UsageError(f'{path}: cannot be read ({error.strerror})') from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f'{path}: not TOML ({error})') from error
