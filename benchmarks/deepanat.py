# SPDX-License-Identifier: Apache-2.0
"""How good synthesised T1w are, as JSON.

    python benchmarks/deepanat.py simulated MAPS DERIVATIVES [--models deepanat deepanat-gan]
    python benchmarks/deepanat.py real BIDS OUT [--alone OUT_ALONE]

``simulated``: MAPS holds the label maps of SynthSeg, DERIVATIVES what AnatNet made of OpenNeuro
ds002748. All models see the same blocks of the heads that their recipes keep apart. Error, peak
signal-to-noise ratio and structural similarity are those inside the brain, of z-scores with a
range of 6. ``constant`` predicts the mean of the brain everywhere; ``linear`` is the linear
mixture of the eleven channels that fits the block itself best, which no method can know: what
there is to be gained beyond intensities shows above it.

``real``: OUT is what the app wrote for sessions with T1w and diffusion images, BIDS its input.
Correlation and mutual information (nats) of the T1w, brought to the diffusion images, with the
synthesised T1w and with each of its channels. OUT_ALONE comes of the same diffusion images without
T1w: Dice of the tissues that were found in the synthesised T1w with those of the measured one.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_app.bids.files import atomic_write_text
from bids_app.data import structures
from bids_app.diffusion.channels import CHANNELS, channels_of_series, deepanat_channels
from bids_app.diffusion.maps import majority_labels
from bids_app.diffusion.series import join_runs, read_run
from bids_app.images.grids import canonical
from bids_app.inference.deepanat import STAGE, synthesis_model
from bids_app.inference.models import load_card, load_networks
from bids_app.training.__main__ import find_files
from bids_app.training.deepanat import image_scores
from bids_app.training.deepanat_samples import DiffusionSampler, Scene, load_anatomies
from bids_app.training.recipe import read_recipe

CONDITIONS = {
    '1.5 mm': (1.5, 1.5),
    '2 mm': (2.0, 2.0),
    '3 mm': (3.0, 3.0),
    '1 mm of 1.5 mm': (1.0, 1.5),
    '1 mm of 2.5 mm': (1.0, 2.5),
}
"""Voxel size of the T1w and of the diffusion images, mm."""

SEED = 20261121
TISSUES = ('CSF', 'GM', 'WM')
B0_THRESHOLD = 50.0
BINS = 32
TABLES = ('bval', 'bvec')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    simulated = commands.add_parser('simulated')
    simulated.add_argument('data', type=Path, nargs='+')
    simulated.add_argument('--models', nargs='+', default=['deepanat', 'deepanat-gan'])
    simulated.add_argument('--blocks', type=int, default=8, help='of each kind and condition')
    real = commands.add_parser('real')
    real.add_argument('bids', type=Path)
    real.add_argument('derivatives', type=Path)
    real.add_argument('--alone', type=Path)
    for command in (simulated, real):
        command.add_argument('--threads', type=int, default=1)
        command.add_argument('--out', type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == 'simulated':
        found = measure_simulated(options.data, options.models, options.blocks)
    else:
        found = measure_real(options.bids, options.derivatives, options.alone)
    text = json.dumps(found, indent=2) + '\n'
    if options.out:
        atomic_write_text(options.out, text)
    print(text, end='')


def measure_simulated(data: list[Path], models: list[str], blocks: int) -> dict[str, Any]:
    """Return mean scores by condition, kind of head and model."""
    folders = {name: synthesis_model(name) for name in models}
    recipe = read_recipe(next(iter(folders.values())) / 'recipe.toml')
    networks = {name: load_networks(folder)[STAGE] for name, folder in folders.items()}
    apart = set(recipe.data['validation'])
    files = [f for f in find_files(data, recipe.data['pattern']) if f.name in apart]
    anatomies = load_anatomies(files)
    kinds = {
        'label maps': [one for one in anatomies if one.t1w is None],
        'real T1w': [one for one in anatomies if one.t1w is not None],
    }
    stage = recipe.stages[STAGE]
    # More sub-voxel positions than in training: partial volume is smooth in scans.
    sampler = DiffusionSampler(
        anatomies, stage.late_ranges, stage.shape, stage.spacing, stage.draws + 1, SEED
    )
    result: dict[str, Any] = {}
    for condition, (voxel, measured) in CONDITIONS.items():
        result[condition] = {}
        for kind, heads in kinds.items():
            rows: dict[str, list[dict[str, float]]] = {}
            while len(rows.get('constant', [])) < blocks and heads:
                head = heads[len(rows.get('constant', [])) % len(heads)]
                scene = Scene(head, stage.late_ranges, sampler.generator)
                size = torch.full((3,), voxel)
                room = (head.reach - 0.6 * size * torch.tensor(stage.shape) / 2).clamp_min(0)
                centre = room * (2 * torch.rand(3, generator=sampler.generator) - 1)
                sample = sampler.block(scene, centre, size, torch.full((3,), measured))
                if sample is None:  # hardly any brain
                    continue
                for name, image in predictions(sample.channels, sample, networks).items():
                    scores = image_scores(image[None], sample.target[None], sample.mask[None])
                    rows.setdefault(name, []).append(scores)
            result[condition][kind] = {
                name: {k: round(float(np.mean([row[k] for row in all_])), 4) for k in all_[0]}
                for name, all_ in rows.items()
            }
    cards = {name: load_card(folder) for name, folder in folders.items()}
    return {
        'blocks': blocks,
        'steps': {name: card.stages[STAGE]['steps'] for name, card in cards.items()},
        'sha256': {name: card.sha256 for name, card in cards.items()},
        'conditions': result,
    }


def predictions(channels: torch.Tensor, sample: Any, networks: dict[str, Any]) -> dict[str, Any]:
    """Return what each model, and the two that are none, make of a block: (1, x, y, z) each."""
    found = {'constant': torch.zeros_like(sample.target)}
    mask = sample.mask[0]
    given = torch.cat([channels[:, mask], torch.ones(1, int(mask.sum()))]).T
    weights = torch.linalg.lstsq(given, sample.target[0, mask][:, None]).solution
    found['linear'] = torch.zeros_like(sample.target)
    found['linear'][0, mask] = (given @ weights)[:, 0]
    for name, network in networks.items():
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
            found[name] = network(channels[None])[0].float()
    return found


def measure_real(bids: Path, derivatives: Path, alone: Path | None) -> dict[str, Any]:
    """Return the agreement of measured and synthesised T1w for every session that has both."""
    result = {}
    for path in sorted(derivatives.glob('sub-*/**/anat/*_space-dwi_desc-synthesized_T1w.nii.gz')):
        stem = path.name.split('_space-dwi')[0]
        if '_res-' in path.name:
            continue
        folder = path.parents[1]
        measured = next((path.parent).glob('*_space-dwi_desc-preproc_T1w.nii.gz'), None)
        if measured is None:
            continue
        t1w = ras(measured)[0]
        mask = ras(one(folder, 'dwi', 'desc-brain_mask'))[0] > 0
        inside = mask & (t1w > 0)
        channels = input_channels(bids, folder, mask)
        images = {'synthesised': ras(path)[0], **dict(zip(CHANNELS, channels, strict=True))}
        result[stem] = {
            'voxels': int(inside.sum()),
            'correlation': {k: correlation(v[inside], t1w[inside]) for k, v in images.items()},
            'mutual_information': {
                k: mutual_information(v[inside], t1w[inside]) for k, v in images.items()
            },
        }
        if alone:
            result[stem]['dice'] = tissue_dice(folder, alone / folder.relative_to(derivatives))
    return result


def one(folder: Path, kind: str, end: str) -> Path:
    """Return the image of a session with this end of its name."""
    return next((folder / kind).glob(f'*_{end}.nii.gz'))


def input_channels(bids: Path, folder: Path, mask: np.ndarray) -> np.ndarray:
    """Return what the network saw: mean images of the app, tensor of its sources."""
    sidecar = json.loads(
        Path(re.sub('nii.gz$', 'json', str(one(folder, 'dwi', 'desc-b0_dwiref')))).read_text()
    )
    series = join_runs(
        [
            read_run(bids / name, *(bids / re.sub('nii.gz$', end, name) for end in TABLES))
            for name in (source.rsplit(':', 1)[-1] for source in sidecar['Sources'])
        ],
        B0_THRESHOLD,
    )
    table = series.gradients
    fit = channels_of_series(series.data, table.bvals, table.bvecs, mask).fit
    b0, mean_dwi = (ras(one(folder, 'dwi', f'desc-{d}_dwiref'))[0] for d in ('b0', 'meandwi'))
    return deepanat_channels(b0, mean_dwi, fit.eigenvalues, fit.tensor, b0, mask)


def ras(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return an image in RAS+ order and its voxel-to-world matrix."""
    image = nib.load(path)
    data, affine, _ = canonical(np.asarray(image.dataobj), image.affine)
    return data, affine


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation."""
    return round(float(np.corrcoef(a, b)[0, 1]), 4)


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mutual information of two lists, nats; each has bins of equal counts."""
    ranks = [np.argsort(np.argsort(x, kind='stable'), kind='stable') for x in (a, b)]
    joint = np.zeros((BINS, BINS))
    np.add.at(joint, tuple(rank * BINS // len(a) for rank in ranks), 1 / len(a))
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return round(float((joint[there] * np.log(joint[there] / alone[there])).sum()), 4)


def tissue_dice(both: Path, alone: Path) -> dict[str, float]:
    """Compare tissues found in the synthesised and in the measured T1w, on the diffusion grid."""
    wanted, affine = ras(one(both, 'dwi', 'desc-wholebrain_dseg'))
    found, place = ras(one(alone, 'anat', 'desc-wholebrain_dseg'))
    found = majority_labels(found.astype(np.int16), place, wanted.shape, affine, np.eye(4))
    table = np.zeros(1024, dtype=int)
    for structure in structures():
        table[structure.index] = TISSUES.index(structure.tissue) + 1
    a, b = table[found.astype(int)], table[wanted.astype(int)]
    return {
        name: round(2 * float(((a == n) & (b == n)).sum() / ((a == n).sum() + (b == n).sum())), 4)
        for n, name in enumerate(TISSUES, start=1)
    }


if __name__ == '__main__':
    main()
