# SPDX-License-Identifier: Apache-2.0
"""Tissue models on real scans with manual labels, beside the default model, as JSON.

    python benchmarks/tissue_scans.py DERIVATIVES REFERENCES --mapping TABLE.tsv
        [--models tissue-t1w tissue-t1w-t2w-flair] [--scans N] [--threads N]

DERIVATIVES is what AnatNet's participant level wrote (one session per subject), REFERENCES holds
sub-<label>_labels.nii.gz. Every model sees the bias-corrected T1w inside our brain mask; models of
several contrasts that can do without the others see the T1w alone. Hard Dice of grey matter, white
matter and CSF (the ventricles, and what the protocol calls so) over voxels that the mapping keeps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.data import structures
from bids_app.images.conform import conform_file
from bids_app.inference.models import find_model
from bids_app.interfaces.contrast_steps import segment_tissues
from bids_app.training.evaluate import apply_mapping, read_mapping

TISSUES = ('GM', 'WM', 'CSF')
"""1, 2 and 3 of a dseg."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('derivatives', type=Path)
    parser.add_argument('references', type=Path)
    parser.add_argument('--mapping', type=Path, required=True)
    parser.add_argument('--models', nargs='+', default=['tissue-t1w', 'tissue-t1w-t2w-flair'])
    parser.add_argument('--scans', type=int)
    parser.add_argument('--threads', type=int, default=2)
    options = parser.parse_args()
    masks = sorted(options.derivatives.glob('sub-*/**/anat/sub-*_desc-brain_mask.nii.gz'))
    masks = [mask for mask in masks if 'space-' not in mask.name][: options.scans]
    found: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for mask in masks:
        truth = reference(options.references / f'{mask.name.split("_")[0]}_labels.nii.gz',
                          options.mapping)  # fmt: skip
        own = mask.with_name(mask.name.replace('desc-brain_mask', 'dseg'))
        found.setdefault('brain', []).append(scores(own, truth))
        for name in options.models:
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                dseg = segmented(name, mask, Path(folder), options.threads)
                seconds.setdefault(name, []).append(time.monotonic() - started)
                found.setdefault(name, []).append(scores(dseg, truth))
    result = {'scans': len(masks), 'threads': options.threads, 'models': {}}
    for name, rows in found.items():
        means = np.mean(rows, axis=0)
        result['models'][name] = {
            **{t: round(float(v), 4) for t, v in zip(TISSUES, means, strict=True)},
            'GM_worst': round(float(np.min(rows, axis=0)[0]), 4),
        }
        if name in seconds:
            result['models'][name]['seconds'] = round(float(np.median(seconds[name])), 1)
    print(json.dumps(result, indent=2))


def reference(path: Path, mapping: Path) -> np.ndarray:
    """Return manual tissues on the grid of the scan: 0 outside, -1 where they do not count."""
    labels = np.asarray(nib.load(path).dataobj).astype(np.int32)
    numbers = apply_mapping(labels, read_mapping(mapping))
    tissue_of = {s.index: TISSUES.index(s.tissue) + 1 for s in structures()}
    out = np.where(numbers < 0, -1, 0)
    for index, tissue in tissue_of.items():
        out[numbers == index] = tissue
    return out


def segmented(name: str, mask: Path, folder: Path, threads: int) -> Path:
    """Run a tissue model on a session; return its label map."""
    t1w = mask.with_name(mask.name.replace('desc-brain_mask', 'desc-preproc_T1w'))
    structure_map = mask.with_name(mask.name.replace('desc-brain_mask', 'desc-wholebrain_dseg'))
    conform_file(t1w, folder / 'conformed.nii')
    segment_tissues(
        folder / 'conformed.nii', {}, {'mask': mask, 'wholebrain': structure_map}, {}, folder,
        reference='T1w', model=find_model(name), threads=threads,
    )  # fmt: skip
    return folder / 'dseg.nii'


def scores(dseg: Path, truth: np.ndarray) -> list[float]:
    """Dice of the three tissues."""
    given = np.asarray(nib.load(dseg).dataobj)
    kept = truth >= 0
    return [
        float(2 * ((given == t) & (truth == t)).sum()
              / max(1, ((given == t) & kept).sum() + (truth == t).sum()))
        for t in (1, 2, 3)
    ]  # fmt: skip


if __name__ == '__main__':
    main()
