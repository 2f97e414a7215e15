# SPDX-License-Identifier: Apache-2.0
"""Overlap of manual labels in template space, and seconds: AnatNet against SyN of antspyx.

    python benchmarks/registration.py DERIVATIVES REFERENCES --mapping TABLE.tsv --out FOLDER
        [--threads 2] [--methods affine network refined syn]

DERIVATIVES is what AnatNet's participant level wrote, with one session per subject; REFERENCES
holds sub-<label>_labels.nii.gz. Every scan is registered to MNI152NLin2009aSym by each method,
its manual labels are brought to the template at 1 mm by nearest neighbour, and for every method
the Dice of all pairs of scans is averaged over the 25 structures. SyN is antspyx's default (type
``SyN``, affine included) on the skull-stripped T1w at 1 mm. Results of single scans are kept in
FOLDER, so that an interrupted run goes on; the summary is printed as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.data import structures
from bids_app.images.templates import find_template, target_grid
from bids_app.training.evaluate import apply_mapping, read_mapping

SPACE = 'MNI152NLin2009aSym'
METHODS = ('affine', 'network', 'refined', 'syn')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('derivatives', type=Path)
    parser.add_argument('references', type=Path)
    parser.add_argument('--mapping', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    parser.add_argument('--model', default='symnet')
    parser.add_argument('--precision', default='auto')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    masks = sorted(options.derivatives.glob('sub-*/**/anat/sub-*_desc-brain_mask.nii.gz'))
    masks = [mask for mask in masks if 'space-' not in mask.name]
    names = [mask.name.split('_')[0] for mask in masks]
    for method in options.methods:
        for name, mask in zip(names, masks, strict=True):
            kept = options.out / f'{name}_{method}.npz'
            if not kept.exists():
                labels = reference(options.references / f'{name}_labels.nii.gz', options.mapping)
                found, seconds = register(method, mask, labels, options)
                np.savez_compressed(kept, labels=found, seconds=seconds)
    print(json.dumps(summary(options.out, names, options), indent=2))


def reference(path: Path, mapping: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    labels = apply_mapping(np.asarray(image.dataobj).astype(np.int32), read_mapping(mapping))
    return np.where(labels < 0, 0, labels).astype(np.uint8), image.affine


def register(
    method: str, mask: Path, labels: tuple[np.ndarray, np.ndarray], options: argparse.Namespace
) -> tuple[np.ndarray, float]:
    """Return the labels on the template's 1 mm grid and the seconds of the registration."""
    return (syn if method == 'syn' else anatnet)(method, mask, labels, options)


def sibling(mask: Path, rest: str) -> Path:
    return mask.with_name(mask.name.replace('desc-brain_mask.nii.gz', rest))


def anatnet(
    method: str, mask: Path, labels: tuple[np.ndarray, np.ndarray], options: argparse.Namespace
) -> tuple[np.ndarray, float]:
    import torch

    from bids_app.inference.device import resolve_precision
    from bids_app.inference.models import find_model, load_networks
    from bids_app.registration.normalisation import Normalisation
    from bids_app.registration.run import normalise, read_template
    from bids_app.registration.shares import scan_shares
    from bids_app.registration.warp import to_template

    torch.set_num_threads(options.threads)
    network = None
    if method != 'affine':
        network = load_networks(find_model(options.model))['symnet']
    template = read_template(find_template(SPACE))[0]
    dseg = nib.load(sibling(mask, 'desc-wholebrain_dseg.nii.gz'))
    gm, wm = (
        np.asarray(nib.load(sibling(mask, f'label-{t}_probseg.nii.gz')).dataobj, np.float32)
        for t in ('GM', 'WM')
    )
    started = time.monotonic()
    scan = scan_shares(gm, wm, np.asarray(dseg.dataobj), dseg.affine)
    if method == 'affine':
        from bids_app.registration.affine import register_affine

        zero = np.zeros((3, *template.data.shape[1:]), np.float32)
        matrix = register_affine(template, scan)
        found = Normalisation(SPACE, matrix, template.affine, zero, zero, 'network')
    else:
        precision = resolve_precision(options.precision, 'cpu')
        found = normalise(
            scan, template, space=SPACE, method=method, network=network, precision=precision
        )
    seconds = time.monotonic() - started
    warped = to_template(*labels, found, *target_grid(1.0), order='nearest')
    return warped.astype(np.uint8), seconds


def syn(
    method: str, mask: Path, labels: tuple[np.ndarray, np.ndarray], options: argparse.Namespace
) -> tuple[np.ndarray, float]:
    import ants

    template = find_template(SPACE)
    t1w = ants.image_read(str(sibling(mask, 'desc-preproc_T1w.nii.gz')))
    moving = t1w * ants.image_read(str(mask))
    fixed = ants.image_read(str(template.t1w))
    started = time.monotonic()
    found = ants.registration(fixed, moving, type_of_transform='SyN')
    seconds = time.monotonic() - started
    shape, affine = target_grid(1.0)
    grid = ants.from_numpy(
        np.zeros(shape, np.float32),
        origin=[-affine[0, 3], -affine[1, 3], affine[2, 3]],
        spacing=[1.0, 1.0, 1.0],
        direction=np.diag([-1.0, -1.0, 1.0]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/labels.nii'
        nib.Nifti1Image(labels[0], labels[1]).to_filename(path)
        image = ants.image_read(path)
    warped = ants.apply_transforms(
        grid, image, found['fwdtransforms'], interpolator='nearestNeighbor'
    )
    for file in {*found['fwdtransforms'], *found['invtransforms']}:
        Path(file).unlink(missing_ok=True)
    return warped.numpy().astype(np.uint8), seconds


def summary(folder: Path, names: list[str], options: argparse.Namespace) -> dict:
    core = [s for s in structures() if s.core]
    result: dict = {'scans': len(names), 'threads': options.threads, 'methods': {}}
    for method in options.methods:
        kept = [np.load(folder / f'{name}_{method}.npz') for name in names]
        maps = [entry['labels'] for entry in kept]
        seconds = [float(entry['seconds']) for entry in kept]
        scores = np.array([pair_dice(a, b, core) for a, b in itertools.combinations(maps, 2)])
        result['methods'][method] = {
            'pairwise_dice': round(float(scores.mean()), 4),
            'worst_pair': round(float(scores.mean(axis=1).min()), 4) if len(scores) else None,
            'structures': {
                s.name: round(float(value), 3)
                for s, value in zip(core, scores.mean(axis=0), strict=True)
            },
            'seconds_median': round(float(np.median(seconds)), 2),
            'seconds_max': round(max(seconds), 2),
        }
    if 'syn' in result['methods']:
        syn_seconds = result['methods']['syn']['seconds_median']
        for entry in result['methods'].values():
            entry['syn_seconds_over_own'] = round(syn_seconds / entry['seconds_median'], 2)
    result['peak_gb_of_this_process'] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2
    )
    return result


def pair_dice(first: np.ndarray, second: np.ndarray, core: list) -> list[float]:
    """Dice of every structure, from one joint count of both maps."""
    both = np.bincount(first[first == second], minlength=256)
    sizes = np.bincount(first.ravel(), minlength=256) + np.bincount(second.ravel(), minlength=256)
    return [2 * both[s.index] / max(1, sizes[s.index]) for s in core]


if __name__ == '__main__':
    main()
