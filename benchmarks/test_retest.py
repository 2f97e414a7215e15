# SPDX-License-Identifier: Apache-2.0
"""The same head twice: volumes of a scan and of its moved and scaled copy, as JSON.

    python benchmarks/test_retest.py SCAN.nii.gz --out FOLDER [--zoom 1.05]

The copy is resampled (cubic spline) after a rotation, a shift and a scaling that are known. Both
go through the whole participant level, and after division by the known change of volume the
volumes of all structures, tissues and atlas regions are compared. The atlas is the label map of
the template itself. ``registration_alone`` leaves out what the segmentation adds: the maps of the
first scan are moved by the same known map, both sets are registered, and the volumes of the
atlas' regions (sum of the Jacobian) and of the tissues in them are compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.cli import main as anatnet
from bids_app.images.templates import find_template


def moved(image: nib.Nifti1Image, zoom: float, order: int) -> nib.Nifti1Image:
    """Rotate an image by (6, -4, 8) degrees, shift it by (5, -7, 4) mm and scale it."""
    from scipy.ndimage import affine_transform

    data = np.asarray(image.dataobj, dtype=np.float32)
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad([6.0, -4.0, 8.0])):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    matrix[:3, :3] *= zoom
    centre = image.affine @ [*((np.array(data.shape[:3]) - 1) / 2), 1]
    matrix[:3, 3] = centre[:3] - matrix[:3, :3] @ centre[:3] + [5, -7, 4]
    back = np.linalg.inv(image.affine) @ np.linalg.inv(matrix) @ image.affine
    copy = affine_transform(data, back[:3, :3], back[:3, 3], order=order, mode='constant')
    return nib.Nifti1Image(np.maximum(copy, 0), image.affine)


def registration_alone(anat: Path, zoom: float) -> dict:
    """Register the maps of a session, and the same maps moved and scaled; compare regions."""
    from bids_app.inference.models import find_model, load_networks
    from bids_app.morphometry.regions import read_atlas, regional_volumes
    from bids_app.registration.run import normalise, read_template
    from bids_app.registration.shares import scan_shares

    found = find_template('MNI152NLin2009aSym')
    template = read_template(found)[0]
    atlas = read_atlas(found.labels)
    network = load_networks(find_model('symnet'))['symnet']
    images = {
        tissue: nib.load(next(anat.glob(f'sub-first_label-{tissue}_probseg.nii.gz')))
        for tissue in ('GM', 'WM', 'CSF')
    }
    images['labels'] = nib.load(anat / 'sub-first_desc-wholebrain_dseg.nii.gz')
    tables, volumes = [], []
    labels = np.asarray(nib.load(found.labels).dataobj)
    values = sorted(atlas.names)
    for copied in (False, True):
        given = {
            name: moved(image, zoom, 0 if name == 'labels' else 1) if copied else image
            for name, image in images.items()
        }
        maps = {name: np.asarray(image.dataobj, np.float32) for name, image in given.items()}
        affine = given['labels'].affine
        scan = scan_shares(maps['GM'], maps['WM'], maps['labels'].round().astype(np.int16), affine)
        registered = normalise(scan, template, space='MNI152NLin2009aSym', network=network)
        tissues = {name.lower(): maps[name] for name in ('GM', 'WM', 'CSF')}
        tables.append(regional_volumes(atlas, registered, tissues, affine))
        change = registered.jacobian() * abs(np.linalg.det(registered.affine[:3, :3]))
        volumes.append(np.array([change[labels == value].sum() for value in values]))
    percent = 100 * (volumes[1] / zoom**3 / volumes[0] - 1)
    return {
        'regions': len(values),
        'mean_absolute_percent': round(float(np.abs(percent).mean()), 2),
        'below_1_percent': int((np.abs(percent) < 1).sum()),
        'largest': {values[i]: round(float(percent[i]), 2)
                    for i in np.abs(percent).argsort()[::-1][:3]},
        'tissue_in_regions': compare(*tables, zoom**3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('scan', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--zoom', type=float, default=1.05)
    options = parser.parse_args()
    raw, out = options.out / 'raw', options.out / 'derivatives'
    for name in ('first', 'second'):
        (raw / f'sub-{name}' / 'anat').mkdir(parents=True, exist_ok=True)
    description = {'Name': 'test and retest', 'BIDSVersion': '1.9.0'}
    (raw / 'dataset_description.json').write_text(json.dumps(description))
    nib.save(nib.load(options.scan), raw / 'sub-first' / 'anat' / 'sub-first_T1w.nii.gz')
    copy = moved(nib.load(options.scan), options.zoom, 3)
    copy.to_filename(raw / 'sub-second' / 'anat' / 'sub-second_T1w.nii.gz')
    atlas = find_template('MNI152NLin2009aSym').labels
    code = anatnet([
        str(raw), str(out), 'participant', '--atlas', str(atlas), '--nprocs', '2',
        '--work-dir', str(options.out / 'work'),
    ])  # fmt: skip
    if code:
        raise SystemExit(code)
    result = {'zoom': options.zoom, 'tables': {}}
    for first in sorted((out / 'sub-first' / 'anat').glob('*_morph.tsv')):
        second = out / 'sub-second' / 'anat' / first.name.replace('sub-first', 'sub-second')
        result['tables'][first.name.removeprefix('sub-first_')] = compare(
            pd.read_csv(first, sep='\t'), pd.read_csv(second, sep='\t'), options.zoom**3
        )
    result['registration_alone'] = registration_alone(out / 'sub-first' / 'anat', options.zoom)
    print(json.dumps(result, indent=2))


def compare(first: pd.DataFrame, second: pd.DataFrame, factor: float) -> dict:
    """Percent change of every volume column, after division by the known factor."""
    both = first.merge(second, on='index', suffixes=('_1', '_2'))
    names = [c for c in first.columns if c.endswith('_mm3') and c != 'size_mm3']
    result = {}
    for name in names:
        a, b = both[f'{name}_1'], both[f'{name}_2'] / factor
        large = a > 100  # mm^3: percentages of next to nothing say nothing
        change = (100 * (b[large] / a[large] - 1)).round(2)
        label = 'name_1' if 'name_1' in both else 'index'
        result[name] = {
            'total_percent': round(float(100 * (b.sum() / a.sum() - 1)), 2),
            'mean_absolute_percent': round(float(change.abs().mean()), 2),
            'largest': {str(both.loc[i, label]): float(change[i])
                        for i in change.abs().sort_values().index[::-1][:3]},
        }  # fmt: skip
    return result


if __name__ == '__main__':
    main()
