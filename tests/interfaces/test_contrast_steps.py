# SPDX-License-Identifier: Apache-2.0
"""Further contrasts of a session on small heads; networks are stood in for."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import ImageError, ModelError
from bids_app.images.transforms import read_linear
from bids_app.interfaces.contrast_steps import (
    coregister_contrasts,
    segment_tissues,
    tissues_of,
    without_background,
)
from bids_app.morphometry.checks import (
    coregistration_measures,
    judge_coregistration,
    qc_columns,
)

SHIFT = np.array([3.0, -4.0, 2.0])


def head(affine, shape, centre=(0, 0, 0)):
    """Return an ellipsoid with an off-centre bright part, and where its brain is."""
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) - centre
    radius = np.sqrt(((world / (30, 36, 28)) ** 2).sum(axis=-1))
    inner = np.sqrt((((world - (6, 8, 4)) / (12, 10, 9)) ** 2).sum(axis=-1))
    data = np.select([inner < 1, radius < 0.7, radius < 1], [180.0, 120.0, 60.0], 5.0)
    return data.astype(np.float32), radius < 0.7


def save(path, data, affine, dtype=np.float32):
    image = nib.Nifti1Image(np.asarray(data, dtype), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


def grid(shape, zooms):
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * zooms
    return affine


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Return the reference, and a T2w of thicker slices that lies elsewhere in the world."""
    shape, zooms = (36, 42, 32), (-2.0, 2.0, 2.0)
    affine = grid(shape, zooms)
    data, mask = head(affine, shape)
    conformed = grid((72, 84, 64), (1.0, 1.0, 1.0))
    files = {
        'reference': save(tmp_path / 'reference.nii', data, affine),
        'mask': save(tmp_path / 'mask.nii', mask, affine, np.uint8),
        'conformed': save(tmp_path / 'conformed.nii', head(conformed, (72, 84, 64))[0], conformed),
    }
    t2w_shape = (40, 44, 16)
    t2w_affine = grid(t2w_shape, (2.0, 2.0, 4.0))
    moving, _ = head(t2w_affine, t2w_shape, SHIFT)
    files['T2w'] = save(tmp_path / 'T2w.nii.gz', 200 - moving, t2w_affine)

    def locate(in_file, out_dir, **options):
        image = nib.load(in_file)
        _, brain = head(image.affine, image.shape, SHIFT)
        path = save(out_dir / 'located.nii', brain, image.affine, np.uint8)
        return {'mask_file': str(path), 'device': 'cpu', 'precision': 'float32', 'fallback': None}

    monkeypatch.setattr(import_module('bids_app.inference.brain'), 'locate_brain', locate)
    monkeypatch.setattr(
        'bids_app.images.bias.n4_bias_field', lambda data, *args, **options: np.ones_like(data)
    )
    return files


def run(session, tmp_path, **scans):
    return coregister_contrasts(
        scans or {'T2w': session['T2w']},
        session['reference'],
        session['mask'],
        session['conformed'],
        tmp_path / 'work',
    )


def test_contrast_comes_to_the_grid_of_the_reference(session, tmp_path):
    found = run(session, tmp_path)
    result = found['contrasts']['T2w']
    assert result['status'] == 'ok', result
    assert result['measures']['shift_mm'] == pytest.approx(np.linalg.norm(SHIFT), abs=0.7)
    files = found['files']
    assert set(files) == {
        'contrast_preproc contrast-T2w',
        'xfm_to_reference contrast-T2w',
        'xfm_from_reference contrast-T2w',
    }
    reference = nib.load(session['reference'])
    image = nib.load(files['contrast_preproc contrast-T2w'])
    assert image.shape == reference.shape
    np.testing.assert_allclose(image.affine, reference.affine)
    inside = nib.load(session['mask']).get_fdata() > 0
    both = np.corrcoef(image.get_fdata()[inside], reference.get_fdata()[inside])[0, 1]
    assert both < -0.7  # the contrast is inverted
    # Points of the reference go to points of the T2w, and back.
    forward = read_linear(files['xfm_to_reference contrast-T2w'])
    backward = read_linear(files['xfm_from_reference contrast-T2w'])
    np.testing.assert_allclose(forward[:3, 3], SHIFT, atol=1.0)
    np.testing.assert_allclose(forward @ backward, np.eye(4), atol=1e-6)
    conformed = nib.load(result['conformed'])
    assert conformed.shape == nib.load(session['conformed']).shape


def test_scan_that_fails_or_does_not_fit_is_named_and_costs_nothing_else(
    session, tmp_path, monkeypatch
):
    broken = tmp_path / 'broken.nii.gz'
    broken.write_bytes(b'')
    monkeypatch.setattr(
        'bids_app.registration.rigid.register_rigid',
        lambda *args, **options: (np.eye(4), {'dice': 0.75, 'coverage': 0.9}),
    )
    found = run(session, tmp_path, T2w=session['T2w'], FLAIR=broken)
    assert found['files'] == {}
    doubtful, failed = found['contrasts']['T2w'], found['contrasts']['FLAIR']
    assert doubtful['status'] == 'doubtful'
    assert 'dice is 0.75' in doubtful['reasons'][0]
    assert 'conformed' not in doubtful
    assert failed['status'] == 'failed'
    assert 'is empty' in failed['reasons'][0]


def test_no_brain_in_a_contrast_is_no_end_of_the_session(session, tmp_path, monkeypatch):
    def nothing(*args, **options):
        raise ImageError('no brain was found')

    monkeypatch.setattr(import_module('bids_app.inference.brain'), 'locate_brain', nothing)
    found = run(session, tmp_path)
    assert found['contrasts'] == {'T2w': {'status': 'failed', 'reasons': ['no brain was found']}}


@pytest.mark.parametrize(
    ('measures', 'status', 'count'),
    [
        ({'dice': 0.95, 'coverage': 0.99, 'shift_mm': 3.0, 'rotation_degrees': 2.0}, 'ok', 0),
        ({'dice': float('nan'), 'coverage': 0.9}, 'ok', 0),
        ({'dice': 0.8, 'coverage': 0.5}, 'doubtful', 2),
        ({'dice': 0.4, 'coverage': 0.5}, 'failed', 2),
    ],
)
def test_verdict_on_a_coregistration(measures, status, count):
    found, reasons = judge_coregistration(measures)
    assert (found, len(reasons)) == (status, count)


def test_measures_have_columns_with_a_meaning():
    found = coregistration_measures('FLAIR', {'dice': 0.9, 'shift_mm': 2, 'start': 'header'})
    assert found == {'coreg_flair_dice': 0.9, 'coreg_flair_shift_mm': 2.0}
    columns = qc_columns(found)
    assert 'FLAIR' in columns['coreg_flair_dice']['Description']
    assert columns['coreg_flair_shift_mm']['Units'] == 'mm'


# Tissues


def test_background_is_shared_out_inside_the_mask_only():
    maps = {
        'background': np.array([0.5, 0.9, 0.0, 0.5]),
        'gm': np.array([0.25, 0.05, 1.0, 0.5]),
        'wm': np.array([0.25, 0.05, 0.0, 0.0]),
    }
    found = without_background(maps, np.array([True, True, True, False]))
    np.testing.assert_allclose(found['gm'], [0.5, 0.2, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(found['wm'], [0.5, 0.2, 0.0, 0.0], atol=1e-6)


def test_lesions_are_white_matter_if_asked_else_what_comes_next():
    maps = {
        'gm': np.array([0.3, 0.0, 0.5], np.float32),
        'wm': np.array([0.1, 0.0, 0.5], np.float32),
        'csf': np.array([0.0, 0.0, 0.0], np.float32),
        'lesion': np.array([0.6, 1.0, 0.0], np.float32),
    }
    plain, corrected = tissues_of(maps), tissues_of(maps, correct_lesions=True)
    np.testing.assert_allclose(corrected, [[0.3, 0, 0.5], [0.7, 1, 0.5], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(plain[:2], [[0.75, 0, 0.5], [0.25, 1, 0.5]], atol=2e-3)
    np.testing.assert_allclose(plain.sum(axis=0), 1, atol=1e-6)


CLASSES = ['background', 'csf', 'gm', 'wm', 'lesion']


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Return a function that makes the folder of a model which knows where everything is."""
    seen = {}

    def make(contrasts, classes=CLASSES, **card):
        folder = tmp_path / 'models' / 'mine'
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            'name': 'mine', 'version': '1', 'description': 'x', 'licence': 'x', 'sha256': 'x',
            'stages': {'tissue': {'shape': [32, 32, 32]}}, 'classes': classes,
            'contrasts': contrasts, 'task': 'tissue', **card,
        }  # fmt: skip
        (folder / 'card.json').write_text(json.dumps(content))
        return folder

    def predict(image, network, *, shape, classes, **options):
        import torch

        seen['image'] = image.numpy()
        probabilities = torch.zeros((classes, *image.shape[1:]))
        inside = image[0] != 0
        probabilities[0][~inside] = 1
        probabilities[2][inside] = 0.6
        probabilities[3][inside] = 0.4
        if classes == 5:
            spot = tuple(slice(n // 2 - 3, n // 2 + 3) for n in inside.shape)
            probabilities[(slice(None), *spot)] = 0
            probabilities[(4, *spot)] = 1
        return probabilities, {'device': 'cpu', 'precision': 'float32', 'fallback': None}

    monkeypatch.setattr('bids_app.inference.tissue.predict_tissue', predict)
    monkeypatch.setattr(
        'bids_app.inference.models.resident_networks', lambda folder: {'tissue': None}
    )
    return SimpleNamespace(make=make, seen=seen)


def segment(session, tmp_path, folder, contrasts=None, **options):
    labels = 2 * nib.load(session['mask']).get_fdata()  # cerebral white matter
    labels[16:20, 18:22, 20:24] = 4  # left lateral ventricle
    own = {
        'mask': session['mask'],
        'wholebrain': save(
            tmp_path / 'labels.nii', labels, nib.load(session['mask']).affine, np.uint8
        ),
    }
    work = tmp_path / 'tissues'
    work.mkdir(exist_ok=True)
    findings = {'structures': [{'index': 4}], 'tissues': [], 'seconds': 3}
    options = {'reference': 'T1w', **options}
    return segment_tissues(
        session['conformed'], contrasts or {}, own, findings, work, model=folder, **options
    ), work  # fmt: skip


def test_tissue_maps_fill_the_mask_on_the_grid_of_the_reference(session, tmp_path, model):
    found, work = segment(session, tmp_path, model.make(['any'], CLASSES[:4]))
    mask = nib.load(session['mask']).get_fdata() > 0
    maps = {name: nib.load(work / f'{name}.nii') for name in ('gm', 'wm', 'csf', 'dseg')}
    for image in maps.values():
        np.testing.assert_allclose(image.affine, nib.load(session['mask']).affine)
    total = sum(maps[name].get_fdata() for name in ('gm', 'wm', 'csf'))
    np.testing.assert_allclose(total[mask], 1, atol=1e-3)
    assert not total[~mask].any()
    assert set(np.unique(maps['dseg'].get_fdata()[mask])) == {1}
    volumes = {row['name']: row['volume_mm3'] for row in found['tissues']}
    assert volumes['GM'] == pytest.approx(0.6 * mask.sum() * 8, rel=1e-3)
    assert found['tiv_mm3'] == pytest.approx(mask.sum() * 8, rel=1e-3)
    assert found['structures'] == [{'index': 4}]
    assert found['tissue_model'] == {
        'name': 'mine', 'contrasts': ['T1w'], 'unused': [], 'lesions': False, 'corrected': False,
    }  # fmt: skip
    brain = model.seen['image'][0][model.seen['image'][0] != 0]
    assert brain.mean() == pytest.approx(0, abs=1e-3)
    assert 'files' not in found


def test_lesions_are_measured_where_there_is_a_flair(session, tmp_path, model):
    flair = save(
        tmp_path / 'flair.nii', nib.load(session['conformed']).get_fdata() + 3,
        nib.load(session['conformed']).affine,
    )  # fmt: skip
    folder = model.make(['T1w', 'T2w', 'FLAIR'], missing_contrasts=True)
    found, work = segment(session, tmp_path, folder, {'FLAIR': flair})
    assert found['tissue_model']['contrasts'] == ['T1w', 'FLAIR']
    assert not model.seen['image'][1].any()
    assert set(found['files']) == {'lesion_probseg', 'lesion_mask', 'lesion_morph'}
    mask = nib.load(work / 'lesion_mask.nii').get_fdata()
    assert mask.sum() * 8 == pytest.approx(6**3, rel=0.3)
    lines = (work / 'lesions.tsv').read_text().splitlines()
    assert lines[1].split('\t')[:2] == ['all', '1']
    assert set(found['columns']['lesion_morph']) == set(lines[0].split('\t'))
    wm = {row['name']: row['volume_mm3'] for row in found['tissues']}['WM']
    corrected, _ = segment(session, tmp_path, folder, {'FLAIR': flair}, correct_lesions=True)
    assert corrected['tissue_model']['corrected']
    assert corrected['tiv_mm3'] == pytest.approx(found['tiv_mm3'], rel=1e-4)
    assert {row['name']: row['volume_mm3'] for row in corrected['tissues']}['WM'] >= wm


def test_without_flair_no_lesions_are_said_to_be_found(session, tmp_path, model):
    folder = model.make(['T1w', 'T2w', 'FLAIR'], missing_contrasts=True)
    found, work = segment(session, tmp_path, folder, correct_lesions=True)
    assert 'files' not in found
    assert not found['tissue_model']['lesions']
    assert not found['tissue_model']['corrected']
    assert not (work / 'lesions.tsv').exists()


def test_missing_contrast_of_a_named_model_is_said(session, tmp_path, model):
    with pytest.raises(ModelError, match='takes T1w, FLAIR, of which too little is there'):
        segment(session, tmp_path, model.make(['T1w', 'FLAIR']))
