# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_app.data import structures
from bids_app.images.conform import load_scan, save_native
from bids_app.interfaces.measuring import measure

SHAPE = (40, 40, 40)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def session(folder, sform):
    """Write the images of a ball-shaped brain, whose scan has this sform; return the files."""
    radius = np.sqrt(((np.indices(SHAPE) - 19.5) ** 2).sum(axis=0))
    rng = np.random.default_rng(0)
    maps = {
        'probseg_wm': radius < 8,
        'probseg_gm': (radius >= 8) & (radius < 13),
        'probseg_csf': (radius >= 13) & (radius < 15),
    }
    scan = 900 * maps['probseg_wm'] + 600 * maps['probseg_gm'] + 200 * (radius >= 13)
    scan = scan * (radius < 18) + rng.normal(20, 4, SHAPE)
    image = nib.Nifti1Image(scan.astype(np.float32), AFFINE)
    image.set_qform(AFFINE, 1)
    image.header['srow_x'], image.header['srow_y'], image.header['srow_z'] = sform[:3]
    image.header['sform_code'] = 1
    image.header['vox_offset'] = 352
    raw = folder / 'raw.nii'
    raw.write_bytes(image.header.binaryblock + bytes(4) + scan.astype(np.float32).tobytes('F'))
    native = load_scan(raw)
    arrays = {
        'preproc': scan,
        **maps,
        'brain_mask': radius < 15,
        'uncertainty': 0.1 * (radius < 15),
        'dseg': 2 * maps['probseg_wm'] + maps['probseg_gm'] + 3 * maps['probseg_csf'],
    }
    files = {
        key: save_native(np.asarray(data, np.float32), native, folder / f'{key}.nii')
        for key, data in arrays.items()
    }
    volumes = {key: float(data.sum()) * 64 for key, data in maps.items()}
    return {**files, 'raw_file': raw}, volumes


@pytest.mark.parametrize('scale', [1.0, 1.2], ids=['agreeing', 'sform of another space'])
def test_volumes_of_the_quality_check_are_those_of_the_segmentation(tmp_path, scale):
    """Derivatives keep a wrong sform, but millimetres come from the rule for headers."""
    files, volumes = session(tmp_path, AFFINE @ np.diag([scale, scale, scale, 1]))
    tissues = [
        {'index': index, 'name': name, 'volume_mm3': volumes[f'probseg_{name.lower()}'],
         'mean_probability': 1.0}
        for index, name in ((1, 'GM'), (2, 'WM'), (3, 'CSF'))
    ]  # fmt: skip
    rows = [
        {'index': item.index, 'volume_mm3': 1000.0, 'mean_probability': 0.9}
        for item in structures()
    ]
    found = measure(
        files,
        tmp_path,
        located={'confidence': 0.9, 'orientation_suspect': 'upside down'},
        segmented={'structures': rows, 'tissues': tissues},
    )
    assert found['tiv_mm3'] == pytest.approx(sum(volumes.values()))
    qc = pd.read_csv(tmp_path / 'qc_stats.tsv', sep='\t').iloc[0]
    assert qc['tiv_ml'] == pytest.approx(found['tiv_mm3'] / 1000, rel=1e-4)
    assert qc['snr_wm'] > 100
    assert any('upside down' in reason for reason in found['qc']['reasons'])
    morph = pd.read_csv(tmp_path / 'tissue_morph.tsv', sep='\t')
    assert morph['volume_mm3'].iloc[-1] == pytest.approx(found['tiv_mm3'], rel=1e-4)
    assert found['columns']['qc_stats'].keys() == set(qc.index)
