# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_app.errors import ModelError, UsageError
from bids_app.group.classifier_training import TrainingSettings
from bids_app.group.classify import Options, classify, load_maps, run_classification
from bids_app.group.classify_results import model_name, summarise
from bids_app.inference.classifier import load_classifier, predict_files
from bids_app.inference.models import model_checksum

SHAPE = (26, 28, 26)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = -39, -42, -39
PLACE = (slice(4, 10), slice(16, 22), slice(8, 14))
FAST = TrainingSettings(epochs=3, ignore=0, ignore_steps=0, batch=16, learning_rate=2e-3)
FACTS = {'kind': 'vbm_gm', 'fwhm': 6.0, 'space': 'MNI152NLin2009aSym', 'res': '1p5'}
NAME = (
    'sub-{:02d}_space-MNI152NLin2009aSym_res-1p5_label-GM_desc-modulatedsmooth6mm_probseg.nii.gz'
)


def write_maps(folder, loss):
    """Write one map per entry; each loses so much at PLACE."""
    rng = np.random.default_rng(0)
    distance = np.linalg.norm(np.indices(SHAPE) - 12.5, axis=0)
    paths = []
    for number, share in enumerate(loss):
        data = (distance < 12) * (0.6 + 0.08 * rng.standard_normal(SHAPE))
        data[PLACE] *= 1 - share
        paths.append(folder / NAME.format(number))
        nib.save(nib.Nifti1Image(data.astype(np.float32), AFFINE), paths[-1])
    return paths


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp('study')
    sex = ['F', 'M'] * 15 + [None, 'F']
    paths = write_maps(folder, [0.3 if value == 'M' else 0 for value in sex])
    paths[31] = None
    frame = pd.DataFrame(
        {
            'participant_id': [
                f'sub-{i // 2:02d}' if i < 4 else f'sub-{i:02d}' for i in range(32)
            ],
            'session_id': [f'ses-{i % 2}' for i in range(32)],
            'sex': sex,
        }
    )
    options = Options(folds=3, n_permutations=50, training=FAST, seed=1)
    result = classify(
        frame, paths, 'sex', options, out_dir=folder / 'out',
        reasons={31: 'no memory left'}, facts=FACTS,
    )  # fmt: skip
    return result, folder, paths


def test_result_says_what_was_done(found):
    result, *_ = found
    assert result['task'] == 'classes'
    assert result['classes'] == {'F': 15, 'M': 15}
    assert (result['n_sessions'], result['n_subjects'], result['folds']) == (30, 28, 3)
    assert result['excluded'] == [
        {'session': 'sub-30_ses-0', 'reason': 'no value of sex'},
        {'session': 'sub-31_ses-1', 'reason': 'no memory left'},
    ]
    assert result['warning'] == ''


def test_effect_is_found_and_where_it_is(found):
    result, folder, _ = found
    linear = result['methods']['linear']
    accuracy = linear['scores']['balanced_accuracy']
    assert accuracy['value'] > 0.9
    assert accuracy['low'] <= accuracy['value'] <= accuracy['high']
    assert linear['p'] == pytest.approx(1 / 51)
    assert linear['p_retrained'] == pytest.approx(1 / 51)
    assert result['methods']['pif']['p_retrained'] is None
    weight = nib.load(result['files']['linear_weight'])
    centre = AFFINE[:3, :3] @ [6.5, 18.5, 10.5] + AFFINE[:3, 3]
    peak = np.unravel_index(np.asarray(weight.dataobj).argmin(), weight.shape)
    assert np.linalg.norm(weight.affine[:3, :3] @ peak + weight.affine[:3, 3] - centre) < 17
    regions = pd.read_csv(result['files']['pif_regions'], sep='\t')
    assert (regions['importance'].diff().dropna() <= 0).all()


def test_predictions_are_of_sessions_that_were_not_trained_on(found):
    result, *_ = found
    table = pd.read_csv(result['files']['predictions'], sep='\t')
    assert len(table) == 30
    assert table.groupby('participant_id')['fold'].nunique().max() == 1
    total = table['pif_probability_F'] + table['pif_probability_M']
    np.testing.assert_allclose(total, 1, atol=1e-5)
    accuracy = (table['linear'] == table['truth']).mean()
    assert accuracy > 0.9


def test_section_of_the_page(found):
    result, *_ = found
    section = summarise(result)
    assert section.title == 'Classification: sex'
    assert all(path.is_file() for path in section.figures)
    assert all(path.is_file() for _, path in section.tables)
    assert 'not for clinical use' in section.summary[0]
    assert any('no memory left' in note for note in section.notes)
    assert 'independent of the values' in section.methods


def test_files_name_no_machine(found):
    result, folder, _ = found
    text = (folder / 'out' / 'classification.json').read_text()
    assert str(folder) not in text
    assert json.loads(text)['files']['scores'] == 'scores.tsv'
    assert str(folder) not in (folder / 'out' / 'models' / 'sexpif' / 'card.json').read_text()


@pytest.mark.parametrize('method', ['pif', 'baseline', 'linear'])
def test_model_folder_predicts_new_maps(found, method):
    result, folder, paths = found
    model = folder / 'out' / 'models' / f'sex{method}'
    classifier = load_classifier(model)
    assert list(classifier.networks) == ['fold1', 'fold2', 'fold3']
    assert classifier.card['sha256'] == model_checksum(model)
    name = 'vbm_gm_smooth space-MNI152NLin2009aSym res-1p5 fwhm-6'
    table = predict_files({name: paths[1], name[:-1] + '8': paths[0]}, model)
    row = table.iloc[0]
    assert row['target'] == 'sex'
    assert row['caveat'] == 'not for clinical use'
    assert row['probability'] == pytest.approx(max(row['probability_F'], row['probability_M']))
    assert row['version'].startswith('1.0.0+')
    assert 'balanced accuracy' in row['validation']
    if method == 'linear':
        assert row['prediction'] == 'M'
        assert predict_files({'vbm_gm_smooth': paths[0]}, model)['prediction'][0] == 'F'


def test_maps_of_another_kind_are_refused(found, tmp_path):
    result, folder, paths = found
    model = folder / 'out' / 'models' / 'sexlinear'
    with pytest.raises(ModelError, match='smoothed with 6 mm'):
        predict_files({'vbm_gm': paths[0]}, model)
    other = tmp_path / paths[0].name.replace('6mm', '8mm')
    other.write_bytes(paths[0].read_bytes())
    with pytest.raises(ModelError, match='8mm'):
        predict_files({'vbm_gm_smooth': other}, model)
    coarse = tmp_path / 'coarse.nii.gz'
    nib.save(nib.Nifti1Image(np.zeros((10, 10, 10), np.float32), AFFINE), coarse)
    with pytest.raises(ModelError, match='voxel size'):
        predict_files({'vbm_gm_smooth': coarse}, model)


def test_a_segmentation_model_is_no_classifier(project_dir):
    with pytest.raises(ModelError, match='not a classifier'):
        load_classifier(project_dir / 'models' / 'brain')


def test_number_with_few_subjects_needs_force(tmp_path):
    ages = np.linspace(20, 75, 18)
    paths = write_maps(tmp_path, 0.015 * ages - 0.3)
    frame = pd.DataFrame({'participant_id': [p.name[:6] for p in paths], 'age': ages})
    options = Options(folds=3, n_permutations=20, methods=('pif', 'linear'), training=FAST)
    with pytest.raises(UsageError, match='--force'):
        classify(frame, paths, 'age', options, out_dir=tmp_path / 'out', facts=FACTS)
    assert not (tmp_path / 'out').exists()
    forced = Options(**{**vars(options), 'force': True})
    result = classify(frame, paths, 'age', forced, out_dir=tmp_path / 'out', facts=FACTS)
    assert 'means nothing' in result['warning']
    assert result['methods']['linear']['scores']['r']['value'] > 0.7
    assert summarise(result).notes[0] == result['warning']
    row = predict_files({'vbm_gm_smooth': paths[-1]}, tmp_path / 'out' / 'models' / 'agelinear')
    assert row['prediction'][0] == pytest.approx(75, abs=20)
    assert row['sd'][0] > 0
    assert 'means nothing' in row['validation'][0]


def test_the_same_seed_gives_the_same_files(tmp_path):
    paths = write_maps(tmp_path, [0.0, 0.3] * 4)
    frame = pd.DataFrame({'participant_id': [p.name[:6] for p in paths], 'sex': list('fm' * 4)})
    options = Options(folds=2, n_permutations=5, methods=('pif', 'linear'), training=FAST,
                      force=True)  # fmt: skip
    for name in ('one', 'two'):
        classify(frame, paths, 'sex', options, out_dir=tmp_path / name, facts=FACTS)
    written = [p.relative_to(tmp_path / 'one') for p in (tmp_path / 'one').rglob('*.*')]
    assert any(path.name == 'weights.safetensors' for path in written)
    for path in written:
        if (tmp_path / 'one' / path).is_file():
            assert (tmp_path / 'one' / path).read_bytes() == (tmp_path / 'two' / path).read_bytes()


def test_blocks_are_averaged_where_they_are(tmp_path):
    data = np.random.default_rng(0).random((64, 60, 63)).astype(np.float32) * 0.01
    data[10:60, 4:58, 6:58] += 0.5
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = -48, -45, -47
    path = tmp_path / 'map.nii.gz'
    nib.save(nib.Nifti1Image(data, affine), path)
    maps, grid = load_maps([path], Options(), FACTS)
    assert grid.factor == (2, 2, 2)
    assert grid.box == ((4, 31), (1, 30), (2, 30))
    assert maps.shape == (1, *grid.input_shape)
    np.testing.assert_allclose(grid.input_affine[:3, 3], affine[:3, 3] + [12.75, 3.75, 6.75])
    np.testing.assert_allclose(maps[0, 3, 4, 5], data[14:16, 10:12, 14:16].mean(), rtol=1e-3)
    np.testing.assert_allclose(grid.read(path), maps[0], atol=1e-3)


def test_maps_that_are_too_coarse_are_an_error(tmp_path):
    path = tmp_path / 'map.nii.gz'
    nib.save(nib.Nifti1Image(np.ones((20, 30, 30), np.float32), AFFINE), path)
    with pytest.raises(UsageError, match='smaller voxels'):
        load_maps([path], Options(), FACTS)


def test_study_without_maps_is_an_error(tmp_path):
    class Study:
        def map_choice(self, kind, fwhm):
            return None

    with pytest.raises(UsageError, match='--modules vbm'):
        run_classification(Study(), 'sex', out_dir=tmp_path)


def test_names_of_models_are_letters_and_digits():
    assert model_name('handedness_2 (EHI)', 'linear') == 'handedness2EHIlinear'
