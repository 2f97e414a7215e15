# SPDX-License-Identifier: Apache-2.0
"""DeepNAT as a choice: options, models, what it needs of a session, its place in the graph."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bids_app import cli
from bids_app.bids.inputs import Scan, SessionRecord, collect_sessions
from bids_app.bids.overview import overview
from bids_app.bids.precomputed import Precomputed
from bids_app.config import CRF_BY_DEFAULT, RunConfig
from bids_app.errors import ModelError, UsageError
from bids_app.resume import SessionState, decide, relevant_options
from bids_app.workflows.anat import anat_steps, init_anat_wf
from bids_app.workflows.deepnat import DeepNATSettings, deepnat_settings
from bids_app.workflows.jobs import ModelsInUse, deepnat_problem, make_jobs

ALL = ('mask', 'tissue', 'wholebrain')
STRUCTURES = 'deepnat-structures-miccai2012'


@pytest.fixture
def models(tmp_path):
    """Return a folder of models whose weights are empty words."""

    def add(name, stage, network, **arguments):
        folder = tmp_path / 'models' / name
        folder.mkdir(parents=True)
        (folder / 'weights.safetensors').write_bytes(name.encode())
        card = {
            'name': name, 'version': '1', 'description': '', 'licence': f'licence of {stage}',
            'sha256': hashlib.sha256(name.encode()).hexdigest(),
            'stages': {stage: {'network': network, 'arguments': arguments}},
        }  # fmt: skip
        (folder / 'card.json').write_text(json.dumps(card))

    add('brain', 'fine', 'ResidualUNet')
    add('deepnat-foreground-miccai2012', 'foreground', 'DeepNAT', outputs=2)
    add(STRUCTURES, 'structures', 'DeepNAT', outputs=27)
    return tmp_path / 'models'


@pytest.fixture
def config(tmp_path, models):
    return RunConfig(
        tmp_path / 'raw', tmp_path / 'out', work_dir=tmp_path / 'work', models_dir=models,
        modules=ALL, segmentation='deepnat',
    )  # fmt: skip


@pytest.fixture
def parse(make_bids, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = make_bids({'sub-01/anat/sub-01_T1w.nii.gz': 'x'})
    return lambda *options: cli.parse([str(raw), 'out', 'participant', *options])


def test_options_of_the_command_line(parse, tmp_path):
    plain = parse()
    assert (plain.segmentation, plain.crf) == ('default', CRF_BY_DEFAULT)
    config = parse('--segmentation', 'deepnat')
    assert (config.segmentation, config.crf, config.deepnat_parities) == (
        'deepnat', CRF_BY_DEFAULT, 2,
    )  # fmt: skip
    chosen = parse(
        '--segmentation', 'deepnat', '--no-crf', '--deepnat-mirror', '--deepnat-parities', '8',
        '--deepnat-tile', '48', '--deepnat-model', './own',
    )  # fmt: skip
    assert (chosen.crf, chosen.deepnat_mirror) == (False, True)
    assert (chosen.deepnat_parities, chosen.deepnat_tile) == (8, 48)
    assert chosen.deepnat_model == str(tmp_path / 'own')
    assert parse('--segmentation', 'deepnat', '--crf').crf is True
    assert RunConfig.from_toml(chosen.to_toml()) == chosen


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--segmentation', 'deepnat', '--modules', 'tissue'], 'add wholebrain to --modules'),
        (['--deepnat-tile', '64'], '--deepnat-tile needs --segmentation deepnat'),
        (['--deepnat-mirror'], '--deepnat-mirror needs --segmentation deepnat'),
        (['--no-crf' if CRF_BY_DEFAULT else '--crf'], 'crf needs --segmentation deepnat'),
    ],
)
def test_options_that_make_no_sense(parse, options, message):
    with pytest.raises(UsageError, match=message):
        parse(*options)


@pytest.mark.parametrize(
    'line', ['segmentation = "other"', 'deepnat_parities = 3', 'deepnat_tile = -1']
)
def test_configuration_files_are_checked_as_well(parse, tmp_path, line):
    file = tmp_path / 'run.toml'
    file.write_text(f'segmentation = "deepnat"\n{line}\n' if 'segm' not in line else line)
    with pytest.raises(UsageError, match=line.split(' =')[0]):
        parse('--config-file', str(file))


def test_both_models_are_found_with_their_roles(config):
    found = ModelsInUse.find(config)
    assert {'segmentation', 'foreground', 'structures'} == set(found.by_role)
    assert found.checksums[STRUCTURES] == hashlib.sha256(STRUCTURES.encode()).hexdigest()
    assert [model['name'] for model in found.certain][1:] == [
        'deepnat-foreground-miccai2012', STRUCTURES,
    ]  # fmt: skip
    assert ModelsInUse.find(config.replace(segmentation='default')).deepnat == ()
    assert ModelsInUse.find(config.replace(modules=('mask', 'tissue'))).deepnat == ()
    settings = deepnat_settings(config.replace(deepnat_tile=32), found)
    assert settings.model.name == STRUCTURES
    assert (settings.crf, settings.parities, settings.tile) == (CRF_BY_DEFAULT, 2, 32)
    assert deepnat_settings(config, ModelsInUse(found.segmentation)) is None


def test_models_that_lack_weights_or_are_others(config, models):
    with pytest.raises(ModelError, match='brain: not a DeepNAT network with 27 outputs'):
        ModelsInUse.find(config.replace(deepnat_model='brain'))
    folder = models / STRUCTURES
    (folder / 'weights.safetensors').unlink()
    with pytest.raises(ModelError, match='no weights.safetensors: train them'):
        ModelsInUse.find(config)
    # As in a checkout whose weights were never trained.
    (folder / 'card.json').unlink()
    (folder / 'recipe.toml').touch()
    with pytest.raises(ModelError, match=r'train them with "python -m bids_app.training'):
        ModelsInUse.find(config)
    (folder / 'recipe.toml').unlink()
    with pytest.raises(ModelError, match='no model'):
        ModelsInUse.find(config)


def test_a_stand_in_for_a_t1w_is_not_labelled(config, tmp_path):
    t1w = SessionRecord('01', None, Scan(tmp_path / 'sub-01_T1w.nii.gz', 'T1w', {}))
    flair = Scan(tmp_path / 'sub-02_FLAIR.nii.gz', 'FLAIR', {})
    jobs = make_jobs(config, [t1w, SessionRecord('02', None, None, flair=flair, stand_in=flair)])
    models = ModelsInUse.find(config)
    assert deepnat_problem(jobs[0], models) is None
    assert 'FLAIR would stand in' in deepnat_problem(jobs[1], models)
    assert deepnat_problem(jobs[1], ModelsInUse(models.segmentation)) is None


def test_what_is_done_is_done_again_for_another_engine(config, tmp_path):
    models = {'brain': 'a', STRUCTURES: 'b'}
    state = SessionState('done', '1', {}, relevant_options(config), list(ALL), models)
    asked = {'inputs': [], 'models': models, 'version': '1'}
    assert decide(state, config=config, **asked).action == 'done'
    assert decide(state, config=config.replace(deepnat_tile=64), **asked).action == 'done'
    for change in ({'segmentation': 'default'}, {'crf': not CRF_BY_DEFAULT},
                   {'deepnat_parities': 8}, {'deepnat_mirror': True}):  # fmt: skip
        (name,) = change
        decision = decide(state, config=config.replace(**change), **asked)
        assert (decision.action, name in decision.reason) == ('run', True)
    # Options of DeepNAT count only with it.
    plain = config.replace(segmentation='default')
    state.options = relevant_options(plain)
    assert decide(state, config=plain.replace(crf=not CRF_BY_DEFAULT), **asked).action == 'done'


def test_dry_run_says_what_deepnat_cannot_label(make_bids):
    root = make_bids({
        'sub-01/anat/sub-01_T1w.nii.gz': 'x', 'sub-02/anat/sub-02_T2w.nii.gz': 'x',
    })  # fmt: skip
    records = collect_sessions(RunConfig(root, root.parent / 'out'))
    text = overview(records, root, 'deepnat')
    assert text.count('DeepNAT cannot label it: there is no T1w') == 1
    assert 'structures are labelled by DeepNAT' in text
    assert 'DeepNAT' not in overview(records, root)


SETTINGS = DeepNATSettings(
    Path('/m/foreground'), Path('/m/structures'), ('a', 'b'), crf=False, mirror=True, parities=8
)


@pytest.fixture
def build(tmp_path):
    scan = tmp_path / 'raw' / 'sub-01_T1w.nii.gz'
    scan.parent.mkdir()
    scan.touch()

    def make(**options):
        settings = {
            'subject': '01', 'session': None, 'scan': scan, 'bids_dir': scan.parent,
            'output_dir': tmp_path / 'out', 'model': tmp_path / 'model',
            'models': {'segmentation': {'name': 'brain', 'version': '1', 'sha256': 'abc'}},
            'deepnat': SETTINGS, **options,
        }  # fmt: skip
        return init_anat_wf(**settings)

    return make


def sources(workflow, name):
    """Return the node that every input of a node comes from."""
    node = workflow.get_node(name)
    return {
        target: source.name
        for source, _, data in workflow._graph.in_edges(node, data=True)
        for _, target in data['connect']
    }


def test_its_labels_are_measured_and_published(build):
    workflow = build()
    steps = anat_steps(ALL, deepnat=SETTINGS)
    assert steps.index('segment') < steps.index('structures') < steps.index('measure')
    assert 'structures' not in anat_steps(('mask', 'tissue'), deepnat=SETTINGS)
    measure, publish = sources(workflow, 'measure'), sources(workflow, 'publish')
    assert measure['wholebrain_dseg'] == publish['wholebrain_dseg'] == 'structures'
    assert measure['segment_info'] == 'structures'
    assert publish['structures_info'] == 'structures'
    for key in ('brain_mask', 'dseg', 'probseg_gm', 'uncertainty'):
        assert measure[key] == publish[key] == 'segment'
    assert sources(workflow, 'structures') == {
        'in_file': 'bias', 'native_file': 'bias', 'mask_file': 'mask', 'mask_info': 'mask',
        'info': 'segment',
    }  # fmt: skip
    inputs = workflow.get_node('structures').inputs
    assert (inputs.foreground, inputs.model) == ('/m/foreground', '/m/structures')
    assert inputs.sha256 == ['a', 'b']
    assert (inputs.crf, inputs.mirror, inputs.parities, inputs.tile) == (False, True, 8, 0)


def test_a_given_mask_is_where_it_looks(build):
    given = (Precomputed('brain_mask', 'prep', Path('/prep/mask.nii')),)
    workflow = build(precomputed=given, precomputed_uris={'brain_mask': 'bids:prep:mask.nii'})
    found = sources(workflow, 'structures')
    assert found['mask_file'] == found['info'] == 'precomputed'
    assert sources(workflow, 'publish')['wholebrain_dseg'] == 'structures'
    assert sources(workflow, 'publish')['brain_mask'] == 'precomputed'
