# SPDX-License-Identifier: Apache-2.0
"""The whole app with untrained networks of DeepNAT on a small head."""

from __future__ import annotations

import csv
import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
from small_app import App, head, nifti, pack

NAMES = {
    'foreground': 'deepnat-foreground-miccai2012',
    'structures': 'deepnat-structures-miccai2012',
}
OUTPUTS = {'foreground': 2, 'structures': 27}


def add_model(folder, stage):
    """Write a network that takes all for foreground, and all for left white matter."""
    import torch
    from safetensors.torch import save

    from bids_app.networks.deepnat import DeepNAT

    torch.manual_seed(0)
    network = DeepNAT(OUTPUTS[stage])
    network.heads.bias.data.view(7, -1)[:, 1] = 30
    content = save({f'{stage}.{key}': value for key, value in network.state_dict().items()})
    folder = folder / NAMES[stage]
    folder.mkdir()
    (folder / 'weights.safetensors').write_bytes(content)
    arguments = {'outputs': OUTPUTS[stage], 'coordinates': 6, 'tasks': 7}
    card = {
        'name': NAMES[stage], 'version': '0', 'description': '', 'licence': 'not for sale',
        'sha256': hashlib.sha256(content).hexdigest(),
        'stages': {stage: {'network': 'DeepNAT', 'arguments': arguments}},
        'training_data': {'coordinates': ['cartesian', 'spectral']},
    }  # fmt: skip
    (folder / 'card.json').write_text(json.dumps(card))


@pytest.fixture
def app(tmp_path, project_dir):
    app = App(tmp_path, project_dir)
    app.add('01', pack(nifti(head()).to_bytes()))
    return app


def test_deepnat_labels_a_head_and_says_so_everywhere(app):
    code, text = app.run('--segmentation', 'deepnat')
    assert code == 1
    assert 'no model' in text
    assert NAMES['foreground'] in text
    assert not (app.out / 'sub-01').exists()  # said before any scan

    for stage in NAMES:
        add_model(app.folder / 'models', stage)
    code, text = app.run('--segmentation', 'deepnat', '--deepnat-parities', '1')
    assert code == 0, text
    assert 'Weights of DeepNAT: not for sale' in text
    anat = app.out / 'sub-01' / 'anat'
    labels = nib.load(anat / 'sub-01_desc-wholebrain_dseg.nii.gz')
    mask = np.asarray(nib.load(anat / 'sub-01_desc-brain_mask.nii.gz').dataobj) > 0
    data = np.asarray(labels.dataobj)
    assert set(np.unique(data)) == {0, 2}
    assert np.array_equal(labels.affine, nib.load(next(app.raw.rglob('*.nii.gz'))).affine)
    assert (data[mask] == 2).mean() > 0.95
    with (anat / 'sub-01_desc-wholebrain_morph.tsv').open() as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert len(rows) == 25
    assert set(rows[0]) == {
        'index', 'name', 'volume_mm3', 'fraction_of_tiv', 'mean_probability', 'side', 'tissue',
        'asymmetry_index',
    }  # fmt: skip
    assert float(rows[0]['volume_mm3']) == pytest.approx((data == 2).sum() * 8, rel=0.1)
    sidecar = json.loads((anat / 'sub-01_desc-wholebrain_dseg.json').read_text())
    assert sidecar['Segmentation'] == 'DeepNAT'
    assert sidecar['Model']['Name'] == NAMES['structures']
    assert sidecar['License'] == 'not for sale'
    page = (app.out / 'sub-01.html').read_text()
    assert 'Weights of DeepNAT: not for sale' in page
    assert 'DeepNAT, with conditional random field' in page
    assert 'eigenfunctions of the Laplace operator' in page
    state = app.state('01')
    assert state['options']['segmentation'] == 'deepnat'
    assert set(NAMES.values()) <= set(state['models'])

    code, text = app.run()
    assert code == 0
    assert 'option changed: segmentation was deepnat, is default' in text
    sidecar = json.loads((anat / 'sub-01_desc-wholebrain_dseg.json').read_text())
    assert sidecar['Model']['Name'] == 'brain'
    assert 'License' not in sidecar
