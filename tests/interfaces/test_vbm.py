# SPDX-License-Identifier: Apache-2.0
"""A tiny classifier, written as the group level writes one, applied through the interface."""

from __future__ import annotations

import csv
import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.bids.outputs import Outputs, file_id
from bids_app.errors import ModelError
from bids_app.inference.classifier import InputGrid
from bids_app.interfaces.anat import read_info
from bids_app.interfaces.publishing import publish
from bids_app.interfaces.sidecars import classifier_role
from bids_app.interfaces.vbm import PredictFromMaps
from bids_app.networks.pif import LinearClassifier3D

SHAPE = (8, 6, 6)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
GRID = InputGrid(
    'vbm_gm', 'MNI152NLin2009aSym', '3', 6.0, SHAPE, tuple(map(tuple, AFFINE.tolist())),
    (2, 2, 2), ((1, 3), (0, 3), (1, 3)),
)  # fmt: skip


def write_classifier(folder, name='sexlinear', classes=('F', 'M'), bias=-1.0):
    """Write a linear model whose output is the sum of the prepared map plus a bias."""
    from safetensors.torch import save

    network = LinearClassifier3D(GRID.input_shape)
    with torch.no_grad():
        network.standardise.mean.zero_()
        network.standardise.scale.fill_(1)
        network.head.weight.fill_(1)
        network.head.bias.fill_(bias)
    state = network.state_dict()
    weights = save({f'fold1.{key}': value.contiguous() for key, value in state.items()})
    stage = {'network': 'LinearClassifier3D', 'arguments': {'shape': list(GRID.input_shape)}}
    stage |= {'temperature': 2.0} if classes else {'mean': 40.0, 'sd': 10.0, 'error_sd': 5.0}
    card = {
        'name': name, 'version': '1.0.0+x', 'description': '', 'licence': '', 'stages':
        {'fold1': stage}, 'classes': list(classes), 'sha256': hashlib.sha256(weights).hexdigest(),
        'input': GRID.as_card(), 'target': {'column': 'sex' if classes else 'age'},
        'validation_summary': 'balanced accuracy 0.61',
    }  # fmt: skip
    folder.mkdir()
    (folder / 'weights.safetensors').write_bytes(weights)
    (folder / 'card.json').write_text(json.dumps(card))
    return folder


@pytest.fixture
def maps(tmp_path):
    """Return the findings of the step that modulates, with a map of 0.25 everywhere."""
    path = tmp_path / 'MNI_3_gm_6mm.nii'
    nib.save(nib.Nifti1Image(np.full(SHAPE, 0.25, np.float32), AFFINE), path)
    info = tmp_path / 'modulate.json'
    info.write_text(json.dumps({'files': {GRID.file_id: str(path)}}))
    return info


def predict(info, folders, cwd):
    interface = PredictFromMaps(
        modulate_info=str(info), classifiers=[str(folder) for folder in folders],
        sha256=['x'] * len(folders),
    )  # fmt: skip
    cwd.mkdir()
    return read_info(interface.run(cwd=str(cwd)).outputs.info)


def rows(path):
    with open(path, newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


def test_classes_and_numbers_are_predicted_and_published(maps, tmp_path):
    sex = write_classifier(tmp_path / 'sex')
    age = write_classifier(tmp_path / 'age', 'agelinear', (), bias=0.0)
    found = predict(maps, [sex, age], tmp_path / 'predict')
    identifiers = [file_id('predictions', model=name) for name in ('sexlinear', 'agelinear')]
    assert list(found['files']) == identifiers
    total = 0.25 * 12  # voxels of the box
    (row,) = rows(found['files'][identifiers[0]])
    expected = 1 / (1 + np.exp(-(total - 1) / 2))
    assert row['prediction'] == 'M'
    assert float(row['probability']) == pytest.approx(expected, abs=1e-4)
    assert float(row['probability_F']) == pytest.approx(1 - expected, abs=1e-4)
    assert (row['model'], row['version'], row['sd']) == ('sexlinear', '1.0.0+x', 'n/a')
    assert row['caveat'] == 'not for clinical use'
    (row,) = rows(found['files'][identifiers[1]])
    assert (float(row['prediction']), float(row['sd'])) == (40 + 10 * total, 5)
    assert row['probability'] == 'n/a'

    raw, outputs = tmp_path / 'raw', Outputs(tmp_path / 'out', '01')
    model = {'name': 'sexlinear', 'version': '1.0.0+x', 'sha256': 'ab'}
    written = publish(
        {identifiers[0]: found['files'][identifiers[0]]}, outputs, raw / 'scan.nii', raw,
        steps={'predict': found}, models={classifier_role('sexlinear'): model},
    )  # fmt: skip
    assert sorted(written) == [
        f'sub-01/anat/sub-01_desc-sexlinear_predictions.{kind}' for kind in ('json', 'tsv')
    ]
    (row,) = rows(outputs.path(identifiers[0]))
    sidecar = json.loads(outputs.sidecar_path(identifiers[0]).read_text())
    assert set(row) <= set(sidecar)  # every column is explained
    assert sidecar['Model'] == {'Name': 'sexlinear', 'Version': '1.0.0+x', 'SHA256': 'ab'}
    assert sidecar['Caveat'] == 'not for clinical use'
    assert sidecar['Sources'][0].endswith('_label-GM_desc-modulatedsmooth6mm_probseg.nii.gz')


def test_a_map_that_was_not_made_is_an_error(maps, tmp_path):
    model = write_classifier(tmp_path / 'sex')
    maps.write_text(json.dumps({'files': {'vbm_gm space-MNI152NLin2009aSym res-3': 'x.nii'}}))
    with pytest.raises(ModelError, match='smoothed with 6 mm'):
        predict(maps, [model], tmp_path / 'predict')
