# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bids_app.config import RunConfig
from bids_app.resume import (
    ANY_SIZE,
    SessionState,
    decide,
    file_record,
    input_records,
    read_state,
    relevant_options,
    session_lock,
    unchanged,
)

MODELS = {'brain': 'abc'}


@pytest.fixture
def session(tmp_path):
    """Return configuration, state of a finished session, and its input file."""
    scan = tmp_path / 'raw' / 'sub-01_T1w.nii.gz'
    scan.parent.mkdir()
    scan.write_bytes(b'scan')
    result = tmp_path / 'out' / 'mask.nii.gz'
    result.parent.mkdir()
    result.write_bytes(b'mask')
    (tmp_path / 'out' / 'sub-01.html').write_bytes(b'page')
    config = RunConfig(tmp_path / 'raw', tmp_path / 'out')
    state = SessionState(
        status='done',
        version='1',
        inputs=input_records([scan], config.bids_dir),
        options=relevant_options(config),
        modules=list(config.modules),
        models=dict(MODELS),
        outputs={'mask.nii.gz': 4, 'sub-01.html': ANY_SIZE},
    )
    return config, state, scan


def verdict(config, state, scan, models=MODELS, version='1'):
    found = decide(state, config=config, inputs=[scan], models=models, version=version)
    return found.action, found.reason


def test_unchanged_session_is_left_alone(session):
    assert verdict(*session)[0] == 'done'


def test_state_survives_its_file(session, tmp_path):
    config, state, scan = session
    (tmp_path / 'state.json').write_text(state.to_json())
    assert read_state(tmp_path / 'state.json') == state


@pytest.mark.parametrize('text', ['', '{', '[]', '{"schema": 0}', '{"schema": 1}'])
def test_damaged_state_counts_as_none(tmp_path, text):
    (tmp_path / 'state.json').write_text(text)
    assert read_state(tmp_path / 'state.json') is None


def test_first_call_and_overwrite_run(session):
    config, state, scan = session
    assert verdict(config, None, scan) == ('run', 'not processed before')
    assert verdict(config.replace(overwrite=True), state, scan) == ('run', '--overwrite')


def test_changed_input_runs(session):
    config, state, scan = session
    scan.write_bytes(b'scam')
    os.utime(scan, ns=(1, 1))
    assert verdict(config, state, scan) == ('run', 'input changed: sub-01_T1w.nii.gz')


def test_copied_input_with_a_new_time_is_the_same(session):
    config, state, scan = session
    os.utime(scan, ns=(1, 1))
    assert verdict(config, state, scan)[0] == 'done'


def test_moved_data_set_is_the_same(session, tmp_path):
    config, state, scan = session
    (tmp_path / 'raw').rename(tmp_path / 'moved')
    moved = tmp_path / 'moved'
    assert verdict(config.replace(bids_dir=moved), state, moved / scan.name)[0] == 'done'


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'precision': 'float32'}, 'option changed: precision was auto, is float32'),
        ({'sloppy': True}, 'option changed: sloppy was False, is True'),
        ({'segmentation': 'deepnat'}, 'option changed: segmentation was default, is deepnat'),
    ],
)
def test_changed_option_runs(session, change, reason):
    config, state, scan = session
    assert verdict(config.replace(**change), state, scan) == ('run', reason)


@pytest.mark.parametrize(
    'change',
    [{'nprocs': 7}, {'device': 'cpu'}, {'low_mem': True}, {'random_seed': 1}, {'crf': False}],
)
def test_option_without_effect_on_results_does_not_run(session, change):
    config, state, scan = session
    assert verdict(config.replace(**change), state, scan)[0] == 'done'


def test_modules_may_be_fewer_but_not_more(session):
    config, state, scan = session
    assert verdict(config.replace(modules=('mask',)), state, scan)[0] == 'done'
    state.modules = ['mask']
    assert verdict(config, state, scan) == ('run', 'module added: tissue, vbm, wholebrain')


def test_what_belongs_to_a_module_counts_only_with_it(session):
    config, state, scan = session
    change = {'registration': 'ants', 'voxel_size': 2.0, 'smooth_fwhm': (), 'atlas': ('x.nii',)}
    native = config.replace(modules=('mask', 'tissue', 'wholebrain'), **change)
    assert verdict(native, state, scan)[0] == 'done'


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'registration': 'ants'}, 'option changed: registration was refined, is ants'),
        ({'smooth_fwhm': (8.0, 10.0)}, 'option changed: smooth_fwhm has 10.0 now'),
        ({'voxel_size': 2.0}, 'option changed: output_spaces has MNI152NLin2009aSym:2 now'),
        (
            {'output_spaces': ('MNI152NLin2009aSym', 'MNI305:res-1p5')},
            'option changed: output_spaces has MNI305:1.5 now',
        ),
    ],
)
def test_more_maps_than_before_run(session, change, reason):
    config, state, scan = session
    assert verdict(config.replace(**change), state, scan) == ('run', reason)


@pytest.mark.parametrize(
    'change', [{'smooth_fwhm': (8.0,)}, {'smooth_fwhm': ()}, {'output_spaces': ('T1w',)}]
)
def test_fewer_maps_than_before_are_there(session, change):
    config, state, scan = session
    assert verdict(config.replace(**change), state, scan)[0] == 'done'


def test_atlas_counts_by_its_content(session, tmp_path):
    config, state, scan = session
    atlas = tmp_path / 'atlas.nii'
    atlas.write_bytes(b'labels')
    config = config.replace(atlas=(str(atlas),))
    found, reason = verdict(config, state, scan)
    assert found == 'run'
    assert reason.startswith('option changed: atlas has atlas.nii ')
    state.options = relevant_options(config)
    assert verdict(config, state, scan)[0] == 'done'
    atlas.write_bytes(b'others')
    os.utime(atlas, ns=(1, 1))
    assert verdict(config, state, scan)[0] == 'run'


def test_state_with_lists_is_the_same_after_its_file(session, tmp_path):
    config, state, scan = session
    (tmp_path / 'state.json').write_text(state.to_json())
    assert verdict(config, read_state(tmp_path / 'state.json'), scan)[0] == 'done'


def test_model_of_a_module_that_is_not_asked_for_does_not_count(session):
    config, state, scan = session
    state.models = {'brain': 'abc', 'symnet': 'def'}
    assert verdict(config, state, scan)[0] == 'done'
    models = {'brain': 'abc', 'symnet': 'xyz'}
    assert verdict(config, state, scan, models=models) == ('run', 'model changed: symnet')


def test_other_classifiers_run_and_fewer_are_there(session):
    config, state, scan = session
    one = {**MODELS, 'classifier sexpif': 'def'}
    assert verdict(config, state, scan, models=one) == ('run', 'model added: classifier sexpif')
    state.models = {**one, 'classifier agepif': 'ghi'}
    assert verdict(config, state, scan, models=one)[0] == 'done'
    assert verdict(config, state, scan)[0] == 'done'
    again = {**one, 'classifier sexpif': 'xyz'}
    assert verdict(config, state, scan, models=again) == (
        'run', 'model changed: classifier sexpif',
    )  # fmt: skip


def test_changed_model_or_version_runs(session):
    config, state, scan = session
    assert verdict(config, state, scan, models={'brain': 'def'})[1] == 'model changed: brain'
    assert verdict(config, state, scan, version='2') == ('run', 'made by AnatNet 1')


def test_lost_or_damaged_output_runs(session):
    config, state, scan = session
    result = config.output_dir / 'mask.nii.gz'
    result.write_bytes(b'cut')
    assert verdict(config, state, scan) == ('run', 'output changed: mask.nii.gz')
    result.unlink()
    assert verdict(config, state, scan) == ('run', 'output missing: mask.nii.gz')


def test_report_may_be_rewritten_but_not_lost(session):
    config, state, scan = session
    page = config.output_dir / 'sub-01.html'
    page.write_bytes(b'another page')
    assert verdict(config, state, scan)[0] == 'done'
    page.unlink()
    assert verdict(config, state, scan) == ('run', 'output missing: sub-01.html')


def test_failed_session_runs_again_unless_it_is_to_be_skipped(session):
    config, state, scan = session
    state.status, state.error = 'failed', 'it is empty'
    assert verdict(config, state, scan) == ('run', 'failed before')
    skipping = config.replace(skip_failed=True)
    assert verdict(skipping, state, scan) == ('failed-before', 'it is empty')
    scan.write_bytes(b'repaired')
    assert verdict(skipping, state, scan)[0] == 'run'


def test_missing_file_is_recorded_and_never_unchanged(tmp_path):
    record = file_record(tmp_path / 'nothing')
    assert record['sha256'] is None
    assert not unchanged(tmp_path / 'nothing', record)


def test_lock_is_held_against_other_processes_and_released(tmp_path):
    lock = tmp_path / 'work' / '.a.lock'
    code = (
        'import sys; from pathlib import Path; from bids_app.resume import session_lock\n'
        'with session_lock(Path(sys.argv[1])) as free: print(free)'
    )

    def other():
        done = subprocess.run(
            [sys.executable, '-c', code, str(lock)], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    with session_lock(lock) as free:
        assert free
        assert other() == 'False'
    assert other() == 'True'
    assert not lock.exists()


def test_lock_that_is_removed_is_never_held_twice(tmp_path):
    code = (
        'import os, sys; from pathlib import Path; from bids_app.resume import session_lock\n'
        'lock, inside, got = Path(sys.argv[1]), sys.argv[2], 0\n'
        'while got < 200:\n'
        '    with session_lock(lock) as free:\n'
        '        if free:\n'
        '            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))\n'
        '            os.unlink(inside)\n'
        '            got += 1\n'
    )
    command = [sys.executable, '-c', code, str(tmp_path / '.a.lock'), str(tmp_path / 'inside')]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, text = process.communicate()
        assert process.returncode == 0, text.decode()
    assert list(tmp_path.iterdir()) == []
