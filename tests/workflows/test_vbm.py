# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.spaces import OutputSpace
from bids_app.config import RunConfig
from bids_app.errors import ModelError, UsageError
from bids_app.images.templates import find_template
from bids_app.workflows.jobs import ModelsInUse
from bids_app.workflows.vbm import vbm_settings


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a configuration with two models and a template in a folder of TemplateFlow."""
    for name in ('brain', 'symnet'):
        folder = tmp_path / 'models' / name
        folder.mkdir(parents=True)
        card = dict.fromkeys(('version', 'description', 'licence'), 'x')
        card.update(name=name, stages={}, classes=[])
        card['sha256'] = hashlib.sha256(name.encode()).hexdigest()
        (folder / 'card.json').write_text(json.dumps(card))
        (folder / 'weights.safetensors').write_bytes(name.encode())
    file = tmp_path / 'templateflow' / 'tpl-MNI305' / 'tpl-MNI305_T1w.nii.gz'
    file.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), file)
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'templateflow'))
    return RunConfig(
        tmp_path, tmp_path / 'out', models_dir=tmp_path / 'models', work_dir=tmp_path / 'work'
    )


def test_models_are_those_that_the_run_needs(config):
    assert ModelsInUse.find(config).checksums.keys() == {'brain', 'symnet'}
    for change in ({'registration': 'ants'}, {'modules': ('mask', 'tissue', 'wholebrain')}):
        assert ModelsInUse.find(config.replace(**change)).checksums.keys() == {'brain'}


def test_classifiers_belong_to_the_models_of_a_run(config):
    folder = config.models_dir / 'brain'  # any model folder will do
    with_one = config.replace(classifier=(str(folder),))
    models = ModelsInUse.find(with_one)
    assert models.checksums.keys() == {'brain', 'symnet', 'classifier brain'}
    assert models.infos['classifier brain']['name'] == 'brain'
    assert ModelsInUse.find(with_one.replace(registration='ants')).classifiers
    assert not ModelsInUse.find(with_one.replace(modules=('mask',))).classifiers
    found = vbm_settings(with_one, models.registration, classifiers=models.classifiers)
    assert found.steps == ('warp', 'modulate', 'predict')


def test_damaged_weights_are_refused_before_any_scan(config):
    weights = config.models_dir / 'symnet' / 'weights.safetensors'
    content = weights.read_bytes()
    weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ModelError, match='symnet: the weights are not those of the card'):
        ModelsInUse.find(config)


@pytest.mark.parametrize('text', ['[]', '{}', '{"name": 1', '[' * 100_000])
def test_card_that_is_none_is_one_line(config, text):
    (config.models_dir / 'brain' / 'card.json').write_text(text)
    with pytest.raises(ModelError, match='not a model card'):
        ModelsInUse.find(config)


def test_missing_model_is_an_error_only_where_it_is_needed(config):
    (config.models_dir / 'symnet' / 'weights.safetensors').unlink()
    with pytest.raises(ModelError, match='symnet'):
        ModelsInUse.find(config)
    assert ModelsInUse.find(config.replace(registration='ants')).registration is None


def test_nothing_is_wanted_without_the_module(config):
    assert vbm_settings(config.replace(modules=('mask',)), None) is None


def test_default_space_comes_with_the_app(config):
    model = ModelsInUse.find(config).registration
    found = vbm_settings(config, model)
    assert found.spaces == (OutputSpace('MNI152NLin2009aSym', (1.5,)),)
    template = found.templates['MNI152NLin2009aSym']
    assert template.t1w.is_file()
    assert template.tissues.is_file()
    assert (found.method, found.smooth_fwhm, found.steps) == (
        'refined', (6.0, 8.0), ('warp', 'modulate'),
    )  # fmt: skip
    assert (found.model, found.model_sha256) == (model.folder, model.sha256)


def test_maps_of_another_template_are_taken_from_the_work_folder(config, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        'bids_app.registration.make_template.make_maps',
        lambda t1w, tissues, labels, **options: made.extend([tissues, labels]),
    )
    folder = config.work_dir / 'templates'
    find_template('MNI305', cache_dir=folder, model=config.models_dir / 'brain')
    folder.mkdir(parents=True)
    for file in made:  # as if an earlier run had made them: no network is needed now
        file.touch()
    found = vbm_settings(config.replace(output_spaces=('MNI305:res-2',)), None)
    assert found.spaces == (OutputSpace('MNI305', (2.0,)),)
    assert [found.templates['MNI305'].tissues, found.templates['MNI305'].labels] == made


def test_atlases_go_with_their_space(config, tmp_path):
    image = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4))
    first, second = tmp_path / 'a.nii', tmp_path / 'tpl-MNI305_atlas-b_dseg.nii.gz'
    for file in (first, second):
        nib.save(image, file)
    both = config.replace(atlas=(str(first), str(second)))
    with pytest.raises(UsageError, match='lies in MNI305'):
        vbm_settings(both, None)
    found = vbm_settings(config.replace(atlas=(str(first),)), None)
    assert found.atlases == (('MNI152NLin2009aSym', 'a', str(first)),)
    assert found.steps == ('warp', 'modulate', 'regions')
