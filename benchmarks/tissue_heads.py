# SPDX-License-Identifier: Apache-2.0
"""Tissues of whole synthetic heads, from one, two and three contrasts alike, as JSON.

    python benchmarks/tissue_heads.py MAPS [--models NAME ...] [--draws 2] [--threads 2]

MAPS holds the label maps of SynthSeg. The two that the recipes keep apart are deformed and painted
as whole heads at 1 mm in T1w, T2w and FLAIR, the last two with the small misalignment that
coregistration leaves, no lesions added. Every model is given what the app gives it: ``brain`` one
whole head, the tissue models the contrasts inside the mask that ``brain`` finds on the first of
them, without bias correction. The truth is the tissue that fills most of a voxel, of the whole
brain with all CSF around it, wherever the mask ends.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bids_app.images.intensity import normalise_brain_zscore
from bids_app.inference.brain import load_predictors, locate
from bids_app.inference.cascade import segment
from bids_app.inference.models import find_model, load_card, resident_networks
from bids_app.inference.native import to_native
from bids_app.inference.tissue import STAGE, predict_tissue, usable_contrasts
from bids_app.interfaces.contrast_steps import tissues_of, without_background
from bids_app.training.label_maps import load_label_maps
from bids_app.training.recipe import read_recipe
from bids_app.training.tissue import TissueSampler

SHAPE = (176, 208, 192)
CONTRASTS = ('T1w', 'T2w', 'FLAIR')
TISSUES = ('gm', 'wm', 'csf')
"""Order of the maps that :func:`bids_app.interfaces.contrast_steps.tissues_of` returns."""
TRUTH = (2, 3, 1)
"""Where they are among the classes of the sampler."""
GIVEN = (('T1w',), ('T2w',), ('FLAIR',), ('T1w', 'T2w'), ('T1w', 'FLAIR'), CONTRASTS)


class HeadSampler(TissueSampler):
    """Draws whole heads, not stripped, in the middle of the grid, without added lesions."""

    def _mask(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.ones(labels.shape, dtype=torch.bool)

    def _centre(self, index: int) -> torch.Tensor:
        return self.maps.brain_boxes[index].mean(dim=0)

    def _lesion_field(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(labels.shape)


def main() -> None:
    """Read the command line, draw heads, and score the models on them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('maps', type=Path)
    parser.add_argument(
        '--models',
        nargs='+',
        default=['brain', 'tissue-t1w', 'tissue-t1w-t2w', 'tissue-t1w-t2w-flair'],
    )
    parser.add_argument('--draws', type=int, default=2, help='heads of each map and condition')
    parser.add_argument('--threads', type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    recipe = read_recipe(find_model('tissue-t1w-t2w-flair') / 'recipe.toml')
    late = replace(recipe.stages[STAGE].late_ranges, missing=0.0)
    conditions = {
        '1 mm': replace(late, low_resolution=0.0, thick_slices=0.0),
        'thick slices': replace(late, low_resolution=0.0, thick_slices=1.0),
    }
    sums: dict[tuple[str, str, str], np.ndarray] = {}
    for name in recipe.data['validation']:
        kept = load_label_maps([options.maps / name])
        for condition, ranges in conditions.items():
            sampler = HeadSampler(
                kept, ranges, SHAPE, 1.0, 6, 20261121, CONTRASTS, target_draws=14
            )
            for _ in range(options.draws):
                sample = sampler.draw()
                for (model, given), found in predictions(sample.image, options.models).items():
                    key = (condition, model, given)
                    counts = overlaps(found, sample.target.argmax(dim=0).numpy())
                    sums[key] = sums.get(key, 0) + counts
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for (condition, model, given), (both, size) in sums.items():
        dice = dict(zip((*TISSUES, 'mask'), (2 * both / size).round(4).tolist(), strict=True))
        dice['mean'] = round(sum(dice[name] for name in TISSUES) / len(TISSUES), 4)
        result.setdefault(condition, {}).setdefault(model, {})[given] = dice
    heads = options.draws * len(recipe.data['validation'])
    print(json.dumps({'heads': heads, 'dice': result}, indent=2))


def overlaps(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count voxels in both, and in either once or twice: shape (2, tissues + mask)."""
    pairs = [(found == n + 1, truth == t) for n, t in enumerate(TRUTH)]
    pairs.append((found > 0, truth > 0))
    return np.array([[(a & b).sum() for a, b in pairs], [a.sum() + b.sum() for a, b in pairs]])


def predictions(images: torch.Tensor, models: list[str]) -> dict[tuple[str, str], np.ndarray]:
    """Return the tissues, 1 to 3, that every model finds in every selection of the images."""
    found, masks = {}, {}
    for number, contrast in enumerate(CONTRASTS):
        labels, masks[contrast] = find_brain(images[number] - images[number].min())
        if 'brain' in models:
            found['brain', contrast] = labels
    for name in models:
        folder = find_model(name)
        card = load_card(folder)
        if card.content.get('task') != 'tissue':
            continue
        network = resident_networks(folder)[STAGE]
        for given in GIVEN:
            channels = usable_contrasts(card, given, given[0])
            if channels is None or len(set(channels) - {''}) < len(given):
                continue
            mask = masks[given[0]]
            image = torch.zeros((len(channels), *mask.shape))
            for number, contrast in enumerate(channels):
                if contrast:
                    data = images[CONTRASTS.index(contrast)]
                    image[number] = normalise_brain_zscore(data - data.min(), mask)
            probabilities, _ = predict_tissue(
                image, network, shape=card.stages[STAGE]['shape'], classes=len(card.classes)
            )
            maps = dict(zip(card.classes, probabilities.numpy(), strict=True))
            tissues = tissues_of(without_background(maps, mask.numpy()), correct_lesions=True)
            found[name, '+'.join(given)] = np.where(mask, tissues.argmax(axis=0) + 1, 0)
    return found


def find_brain(image: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Return the tissues and the mask that the default model finds, as the app does."""
    folder = find_model('brain')
    predictors = load_predictors(folder)
    coarse = locate(image, folder, predictors)
    posterior = segment(image, coarse, predictors['fine'])
    result = to_native(posterior, np.eye(4), tuple(image.shape), np.eye(4))
    return result.dseg, torch.from_numpy(result.mask > 0)


if __name__ == '__main__':
    main()
