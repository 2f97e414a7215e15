# SPDX-License-Identifier: Apache-2.0
"""Tests of the graph of sessions with diffusion images."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.bids.inputs import Scan, SessionRecord, Skipped
from bids_app.bids.outputs import SYNTHESIZED
from bids_app.config import MODULES, RunConfig
from bids_app.errors import ModelError
from bids_app.workflows.anat import anat_steps, init_anat_wf
from bids_app.workflows.dwi import DwiSettings, dwi_settings
from bids_app.workflows.jobs import ModelInUse, ModelsInUse, make_jobs, with_synthesis

ALL = ('mask', 'tissue', 'wholebrain')
MODELS = {'segmentation': {'name': 'brain', 'version': '1', 'sha256': 'abc'}}


@pytest.fixture
def files(tmp_path):
    """Return a T1w and the three files of a diffusion run, all empty."""
    paths = [tmp_path / f'sub-01_{end}' for end in ('T1w.nii.gz', 'dwi.nii.gz', 'dwi.bval',
                                                    'dwi.bvec')]  # fmt: skip
    for path in paths:
        path.touch()
    return paths


@pytest.fixture
def build(tmp_path, files):
    def make(modules=ALL, scan=files[0], **options):
        settings = DwiSettings((files[1],), (files[2],), (files[3],), **options)
        return init_anat_wf(
            subject='01', session=None, scan=scan, bids_dir=tmp_path, output_dir=tmp_path / 'out',
            model=tmp_path / 'model', models=MODELS, modules=modules, dwi=settings,
            reference=SYNTHESIZED if settings.alone else 'T1w',
        )  # fmt: skip

    return make


def edges(workflow):
    """Return (from, field, to, field) of all connections."""
    return {
        (source.name, one if isinstance(one, str) else one[0], target.name, two)
        for source, target, data in workflow._graph.edges(data=True)
        for one, two in data['connect']
    }


def test_beside_a_t1w_nothing_of_anatomy_depends_on_diffusion(build):
    found = edges(build())
    after = {target for source, _, target, _ in found if source.startswith('dwi_')}
    assert after == {'dwi_maps', 'dwi_regions', 'publish'}
    assert ('inputnode', 'scan', 'conform', 'in_file') in found
    assert ('bias', 'native_file', 'dwi_regions', 'reference') in found
    assert ('segment', 'wholebrain_dseg', 'dwi_regions', 'wholebrain_dseg') in found


def test_alone_everything_is_computed_on_the_synthesised_t1w(build):
    workflow = build(alone=True)
    found = edges(workflow)
    readers = {
        target for source, field, target, _ in found if (source, field) == ('dwi_maps', 't1w')
    }
    assert readers == {'conform', 'bias', 'measure'}
    # Only what names the source of the results still looks at the diffusion image.
    assert {t for s, _, t, _ in found if s == 'inputnode'} == {'publish'}
    maps = workflow.get_node('dwi_maps')
    assert (maps.inputs.one_mm, maps.inputs.required, maps.inputs.published) == (True, True, False)
    assert workflow.get_node('dwi_regions').inputs.same_space
    only_mask = edges(build(modules=('mask',), alone=True))
    assert ('dwi_maps', 't1w', 'restore', 'native_file') in only_mask
    assert ('dwi_maps', 't1w', 'publish', 'preproc') in only_mask


def test_without_a_tensor_there_are_mean_images_only(build):
    workflow = build(alone=True, tensor=False)
    names = {node.name for node in workflow._get_all_nodes()}
    assert names == {'dwi_series', 'dwi_maps', 'publish', 'report', 'outputnode'}
    settings = DwiSettings((), (), (), alone=True, tensor=False)
    assert anat_steps(ALL, dwi=settings) == ('dwi_series', 'dwi_maps', 'publish', 'report')
    beside = build(tensor=False)
    assert not beside.get_node('dwi_maps').inputs.one_mm
    assert not beside.get_node('dwi_series').inputs.required


def test_one_mm_beside_a_t1w_is_asked_for(build):
    maps = build(one_mm=True).get_node('dwi_maps')
    assert (maps.inputs.one_mm, maps.inputs.published) == (True, True)


def record(files, *, t1w=False, **fields):
    scan = Scan(files[1], 'dwi', {}, files[2], files[3])
    t1w = Scan(files[0], 'T1w', {}) if t1w else None
    return SessionRecord('01', None, t1w=t1w, dwi=(scan,), **fields)


def jobs(tmp_path, *records, **options):
    config = RunConfig(tmp_path, tmp_path / 'out', **options)
    return config, make_jobs(config, records)


def test_what_is_computed_of_a_session(tmp_path, files):
    plain = SessionRecord('02', None, t1w=Scan(files[0], 'T1w', {}))
    given = (
        record(files, t1w=True), record(files, dwi_alone=True),
        record(files, dwi_alone=True, no_tensor='no b=0'), plain,
    )  # fmt: skip
    _, found = jobs(tmp_path, *given)
    assert [job.modules for job in found] == [MODULES, (*MODULES, 'dwi'), ('dwi',), MODULES]
    _, asked = jobs(tmp_path, *given, modules=(*MODULES, 'dwi'))
    assert [job.modules for job in asked] == [
        (*MODULES, 'dwi'), (*MODULES, 'dwi'), ('dwi',), MODULES
    ]  # fmt: skip
    assert found[0].input_files == [files[0]]
    assert asked[0].input_files == files
    assert found[1].input_files == files[1:]


def test_names_of_a_synthesised_reference_follow_the_option(tmp_path, files):
    for option, name in ((False, 'desc-synthesized'), (True, 'desc-preproc')):
        _, (job,) = jobs(tmp_path, record(files, dwi_alone=True), synth_as_preproc=option)
        assert job.outputs.path('preproc').name == f'sub-01_{name}_T1w.nii.gz'


def test_a_missing_synthesis_model(tmp_path, files):
    """It is an error for who asks for diffusion; else it costs only the sessions that need it."""
    models = ModelsInUse(ModelInUse(tmp_path, 'brain', '1', 'abc', 'x'))
    (tmp_path / 'models').mkdir()
    config, found = jobs(
        tmp_path, record(files, dwi_alone=True), record(files, t1w=True),
        models_dir=tmp_path / 'models',
    )  # fmt: skip
    assert with_synthesis(models, config, found) is models
    assert found[0].status == 'failed'
    assert 'no T1w can be synthesised' in found[0].reason
    assert found[1].status == 'waiting'
    asked = config.replace(modules=(*MODULES, 'dwi'))
    with pytest.raises(ModelError, match='deepanat'):
        with_synthesis(models, asked, make_jobs(asked, [record(files, t1w=True)]))
    without = asked.replace(synth_model='none')
    made = make_jobs(without, [record(files, t1w=True), record(files, dwi_alone=True)])
    assert with_synthesis(models, without, made).synthesis is None
    assert [job.status for job in made] == ['waiting', 'failed']


def test_only_sessions_with_diffusion_depend_on_its_model(tmp_path, files):
    one = ModelInUse(tmp_path, 'deepanat', '1', 'def', 'x')
    models = ModelsInUse(ModelInUse(tmp_path, 'brain', '1', 'abc', 'x'), synthesis=one)
    _, (with_t1w, alone, mean) = jobs(
        tmp_path, record(files, t1w=True), record(files, dwi_alone=True),
        record(files, dwi_alone=True, no_tensor='x'),
    )  # fmt: skip
    assert 'deepanat' in alone.models(models).checksums
    assert 'deepanat' not in with_t1w.models(models).checksums
    assert 'deepanat' not in mean.models(models).checksums


def test_settings_of_a_session(tmp_path, files):
    config = RunConfig(tmp_path, tmp_path / 'out', modules=(*MODULES, 'dwi'), dwi_motion='rigid')
    found = dwi_settings(record(files, dwi_alone=True), config, Path('/m'), 'abc')
    assert found == DwiSettings(
        (files[1],), (files[2],), (files[3],), alone=True, synth_model=Path('/m'),
        synth_sha256='abc', motion='rigid',
    )  # fmt: skip
    assert dwi_settings(record(files), config.replace(modules=MODULES), None) is None


def test_problem_of_a_session_whose_diffusion_images_cannot_be_used(files):
    session = SessionRecord('01', None, skipped=(Skipped(files[1], 'no bvec file'),))
    assert session.problem == 'no anatomical image, and no usable diffusion image (no bvec file)'
