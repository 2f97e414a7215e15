# SPDX-License-Identifier: Apache-2.0
"""How far tissues from a T2w or a FLAIR alone agree with those from the T1w, as JSON.

    anatnet BIDS ALL participant --participant-label ms01 ms19
    anatnet BIDS ALONE participant --participant-label ms01 ms19 --bids-filter-file only_t2w.json
    python benchmarks/stand_ins.py ALL ALONE [ALONE ...]

with a filter such as {"t1w": {"acquisition": "none"}, "flair": {"acquisition": "none"}}. For every
session that has a T1w in ALL and another reference in an ALONE, the probability maps and the brain
mask made without the T1w are brought to its grid with the transform that ALL wrote, the label of
a voxel is decided there, and compared (Dice) with what the T1w gave.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_app.bids.outputs import Outputs
from bids_app.group.derivatives import load_study
from bids_app.images.resample import resample_rigid
from bids_app.images.transforms import read_linear
from bids_app.morphometry.volumes import voxel_volume

TISSUES = ('gm', 'wm', 'csf')


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return the overlap of two masks, to three digits."""
    return round(float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1)), 3)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the affine of an image."""
    image = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def millilitres(outputs: Outputs) -> dict[str, int]:
    """Return the volumes of the tissues."""
    volumes = {}
    for name in TISSUES:
        data, affine = read(outputs.path(f'probseg_{name}'))
        volumes[name] = round(float(data.sum(dtype=float)) * voxel_volume(affine) / 1000)
    return volumes


def compare(whole: Outputs, alone: Outputs) -> dict[str, Any]:
    """Compare the tissues of one session where both images were acquired."""
    matrix = read_linear(whole.path('xfm_to_reference', contrast=alone.reference))
    labels, affine = read(whole.path('dseg'))
    mask = read(whole.path('brain_mask'))[0] > 0.5

    def bring(key: str) -> tuple[np.ndarray, np.ndarray]:
        data, own = read(alone.path(key))
        return resample_rigid(data, own, matrix, labels.shape, affine, order=1)

    part, covered = bring('brain_mask')
    inside = part >= 0.5
    maps = np.stack([bring(f'probseg_{name}')[0] for name in TISSUES])
    found = np.where(inside, maps.argmax(axis=0) + 1, 0)
    return {
        'session': whole.prefix,
        'reference': alone.reference,
        'dice_mask': dice(inside & covered, mask & covered),
        **{
            f'dice_{name}': dice((found == number) & covered, (labels == number) & covered)
            for number, name in enumerate(TISSUES, start=1)
        },
        'ml': millilitres(alone),
        'ml_t1w': millilitres(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('all', type=Path, help='derivatives made with all contrasts')
    parser.add_argument('alone', type=Path, nargs='+', help='derivatives made without the T1w')
    args = parser.parse_args()
    with_t1w = {record.prefix: record for record in load_study(args.all).done}
    rows = []
    for folder in args.alone:
        for record in load_study(folder).done:
            reference = record.run.get('reference', 'T1w')
            other = with_t1w.get(record.prefix)
            if reference == 'T1w' or other is None or other.run.get('reference', 'T1w') != 'T1w':
                continue
            place = (record.subject, record.session)
            rows.append(compare(Outputs(args.all, *place), Outputs(folder, *place, reference)))
    print(json.dumps(rows, indent=1))


if __name__ == '__main__':
    main()
