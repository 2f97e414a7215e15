# SPDX-License-Identifier: Apache-2.0
"""Tissue models on synthetic images of label maps that no training saw, as JSON.

    python benchmarks/tissue_synthetic.py MAPS [--models NAME ...] [--crops 24] [--threads 2]

MAPS holds the label maps of SynthSeg. Every model sees the same crops of the two maps that its
recipe keeps apart, twice: as in the late part of its training (thick slices, noise), and with all
contrasts at 1 mm. The truth is the class that fills most of a voxel. A model that can do without
contrasts is given each selection of them. Hard Dice over all crops together, without background;
``mean`` is that of CSF, grey and white matter.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from bids_app.inference.models import find_model, load_card, load_networks
from bids_app.inference.tissue import STAGE, tissue_models
from bids_app.training.label_maps import load_label_maps
from bids_app.training.overlap import class_overlaps
from bids_app.training.recipe import read_recipe
from bids_app.training.tissue import TISSUES, TissueSampler

DRAWS = 6
"""Sub-voxel positions: more than in training, so that partial volume is smooth as in scans."""
TRUTH_DRAWS = 26
"""More positions for the truth: the class that fills most of a voxel."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('maps', type=Path)
    parser.add_argument('--models', nargs='+')
    parser.add_argument('--crops', type=int, default=24)
    parser.add_argument('--threads', type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.models or [folder.name for folder in tissue_models()]
    found = {name: measure(name, options.maps, options.crops) for name in names}
    print(json.dumps({'crops': options.crops, 'models': found}, indent=2))


def measure(name: str, maps: Path, crops: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of a model by condition and by the contrasts that it was given."""
    folder = find_model(name)
    card, recipe = load_card(folder), read_recipe(folder / 'recipe.toml')
    network = load_networks(folder)[STAGE].eval()
    stage = recipe.stages[STAGE]
    kept = load_label_maps([maps / file for file in recipe.data['validation']])
    contrasts = recipe.data['contrasts']
    late = replace(stage.late_ranges, missing=0.0)
    clean = replace(late, low_resolution=0.0, thick_slices=0.0)
    result = {}
    for condition, ranges in (('thick slices', late), ('1 mm', clean)):
        sums: dict[str, list[torch.Tensor]] = {}
        sampler = TissueSampler(
            kept, ranges, stage.shape, stage.spacing, DRAWS, 20261121, contrasts,
            lesions=len(card.classes) > len(TISSUES), target_draws=TRUTH_DRAWS,
        )  # fmt: skip
        for _ in range(crops):
            sample = sampler.draw()
            for given in selections(len(contrasts), card.content.get('missing_contrasts', False)):
                label = '+'.join(contrasts[channel] for channel in given)
                image = torch.zeros_like(sample.image)
                image[list(given)] = sample.image[list(given)]
                with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
                    labels = network(image[None])[0].float().argmax(dim=0)
                truth = sample.target.argmax(dim=0)
                both, size = class_overlaps(labels, truth, len(card.classes))
                old = sums.setdefault(label, [torch.zeros_like(both), torch.zeros_like(size)])
                sums[label] = [old[0] + both, old[1] + size]
        result[condition] = {
            label: summary(card.classes, (2 * both / size.clamp_min(1)).tolist())
            for label, (both, size) in sums.items()
        }
    return result


def selections(count: int, missing: bool) -> Iterator[tuple[int, ...]]:
    """Return which channels are given: all, or every selection of them."""
    if not missing:
        yield tuple(range(count))
        return
    for number in range(1, count + 1):
        yield from itertools.combinations(range(count), number)


def summary(classes: list[str], dice: list[float]) -> dict[str, float]:
    """Name the scores; background does not count."""
    scores = {name: round(value, 4) for name, value in zip(classes, dice, strict=True)}
    del scores['background']
    scores['mean'] = round(sum(scores[name] for name in TISSUES[1:]) / (len(TISSUES) - 1), 4)
    return scores


if __name__ == '__main__':
    main()
