# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from bids_app.bids.inputs import Scan, SessionRecord
from bids_app.config import RunConfig
from bids_app.errors import UsageError
from bids_app.workflows.execution import Executor, read_plugin_file
from bids_app.workflows.jobs import (
    ModelInUse,
    ModelsInUse,
    crash_step,
    make_jobs,
    tissue_problem,
    workflow_name,
)
from bids_app.workflows.participant import _summarise

CRASH = 'crash-20261121-015941-some-user-segment-66e85e8f-bcea-42d1-9861-14b2159e7a0a.txt'


def record(tmp_path, subject='01', session=None, scan=True):
    t1w = Scan(tmp_path / 'raw' / f'sub-{subject}_T1w.nii.gz', 'T1w', {}) if scan else None
    return SessionRecord(subject, session, t1w)


@pytest.fixture
def config(tmp_path):
    return RunConfig(tmp_path / 'raw', tmp_path / 'out', work_dir=tmp_path / 'work')


def test_workflow_names_differ_where_labels_do(tmp_path):
    names = [
        workflow_name(record(tmp_path, *labels))
        for labels in (('01', None), ('01', 'a'), ('01+a', None), ('01a', None), ('01', '1'))
    ]
    assert len(set(names)) == len(names)
    assert names[1] == 'sub_01_ses_a_wf'


def test_work_folders_of_other_data_sets_are_apart(config, tmp_path):
    (mine,) = make_jobs(config, [record(tmp_path)])
    (other,) = make_jobs(config.replace(output_dir=tmp_path / 'out2'), [record(tmp_path)])
    assert mine.work_dir != other.work_dir
    assert mine.work_dir.is_relative_to(config.work_dir)


def test_session_without_t1w_is_skipped_and_no_failure(config, tmp_path):
    jobs = make_jobs(config, [record(tmp_path), record(tmp_path, '02', scan=False)])
    assert [job.status for job in jobs] == ['waiting', 'skipped']
    assert jobs[1].reason
    jobs[0].end('finished', '')
    assert _summarise(config, jobs) == 0


@pytest.mark.parametrize('status', ['failed', 'stopped'])
def test_failure_is_exit_code_1(config, tmp_path, status):
    jobs = make_jobs(config, [record(tmp_path)])
    jobs[0].end(status, 'reason')
    assert _summarise(config, jobs) == 1


def test_report_that_could_not_be_written_is_exit_code_1(config, tmp_path):
    jobs = make_jobs(config, [record(tmp_path)])
    jobs[0].report_problem = 'disk full'
    jobs[0].end('finished', '')
    assert _summarise(config, jobs) == 1


def test_first_end_of_a_job_counts(config, tmp_path):
    (job,) = make_jobs(config, [record(tmp_path)])
    job.end('failed', 'one')
    job.end('stopped', 'two')
    assert (job.status, job.reason) == ('failed', 'one')


def test_crash_files_that_a_plugin_left_are_found_once(config, tmp_path):
    (job,) = make_jobs(config, [record(tmp_path)])
    job.log_dir.mkdir(parents=True)
    (job.log_dir / CRASH).write_text('bids_app.errors.ImageError: no brain was found\n')
    job.find_crash_files()
    job.find_crash_files()
    assert job.status == 'failed'
    assert job.step == crash_step(job.log_dir / CRASH) == 'segment'
    assert job.reason == 'step segment: no brain was found'
    assert len(job.crash_files) == 1


def test_sessions_of_a_subject_keep_their_crash_files_apart(config, tmp_path):
    jobs = make_jobs(config, [record(tmp_path, session='a'), record(tmp_path, session='b')])
    assert jobs[0].log_dir == jobs[1].log_dir
    jobs[0].log_dir.mkdir(parents=True)
    crash_file = jobs[0].log_dir / CRASH
    crash_file.write_text(
        'Node: anatnet_0123abcd.sub_01_ses_b_wf.segment\n'
        'bids_app.errors.ImageError: no brain was found\n'
    )
    for job in jobs:
        job.find_crash_files()
    assert [job.status for job in jobs] == ['waiting', 'failed']
    assert jobs[1].crash_files == [crash_file]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('plugin: Lineal', 'names "Lineal"'),
        ('[1, 2]', 'must hold'),
        ('plugin: [', 'not valid YAML'),
        ('plugin: Linear\nplugin_args: 3', 'must hold'),
    ],
)
def test_wrong_plugin_file_is_a_usage_error(tmp_path, text, message):
    file = tmp_path / 'plugin.yml'
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_plugin_file(file)


def test_plugin_of_a_cluster_refuses_a_work_folder_with_a_space(tmp_path, config):
    file = tmp_path / 'plugin.yml'
    arguments = {'status': print, 'on_crash': print, 'rank': len, 'environment': {}}
    config = config.replace(use_plugin=file, work_dir=tmp_path / 'my work')
    file.write_text('plugin: SLURM\n')
    with pytest.raises(UsageError, match='holds a space.*--work-dir'):
        Executor(config, **arguments)
    assert Executor(config.replace(work_dir=tmp_path), **arguments).name == 'SLURM'
    file.write_text('plugin: Linear\n')
    assert Executor(config, **arguments).name == 'Linear'


def test_plugin_file_wins_over_our_settings(tmp_path, config):
    file = tmp_path / 'plugin.yml'
    file.write_text('plugin: MultiProc\nplugin_args: {n_procs: 3, memory_gb: 5}\n')
    config = config.replace(use_plugin=file, nprocs=1, gpu_slots=2)
    with Executor(
        config, status=print, on_crash=print, rank=lambda node: 0, environment={}
    ) as executor:
        plugin = executor._steady
        assert (plugin.processors, plugin.memory_gb, plugin.n_gpu_procs) == (3, 5, 2)
        assert plugin.raise_insufficient is False


@pytest.mark.parametrize(
    ('cards', 'message'),
    [
        ([{'contrasts': ['T1w', 'FLAIR']}], None),
        ([{'contrasts': ['any']}], None),
        ([{'contrasts': ['T2w', 'FLAIR'], 'missing_contrasts': True}], None),
        (
            [{'contrasts': ['T1w', 'T2w', 'PDw']}],
            'm0 needs T2w and PDw, of which this session has',
        ),
        ([{'contrasts': ['T2w', 'PDw'], 'missing_contrasts': True}], 'm0 needs T2w or PDw, of'),
        ([{'contrasts': ['T2w']}, {'contrasts': ['PDw']}], 'no tissue model fits what'),
        ([{'contrasts': ['T2w']}, {'contrasts': ['any']}], None),
    ],
)
def test_what_a_session_lacks_for_a_tissue_model_is_said(config, tmp_path, cards, message):
    models = []
    for number, card in enumerate(cards):
        folder = tmp_path / f'm{number}'
        folder.mkdir()
        common = dict.fromkeys(('version', 'description', 'licence', 'sha256'), 'x')
        (folder / 'card.json').write_text(
            json.dumps({**common, 'name': folder.name, 'stages': {}, 'classes': [], **card})
        )
        models.append(ModelInUse(folder, folder.name, 'x', 'x', 'x'))
    both = SessionRecord(
        '01', None, Scan(tmp_path / 'x', 'T1w', {}), flair=Scan(tmp_path / 'y', 'FLAIR', {})
    )
    (job,) = make_jobs(config, [both])
    found = tissue_problem(job, ModelsInUse(models[0], tissue=tuple(models)))
    assert found is None if message is None else message in found
