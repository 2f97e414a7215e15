# SPDX-License-Identifier: Apache-2.0
"""An array on a real Slurm: one task is stopped, and the same script then does only its scan."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest
from small_app import App, head, nifti, pack, wait_for

SECONDS = 180


def slurm_answers():
    return (
        shutil.which('sbatch') is not None
        and not subprocess.run(['scontrol', 'ping'], capture_output=True).returncode
    )


pytestmark = pytest.mark.skipif(not slurm_answers(), reason='there is no Slurm')


def wait_for_jobs(numbers):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        there = subprocess.run(
            ['squeue', '--noheader', '--format=%A %F'], capture_output=True, text=True
        ).stdout.split()
        if not set(numbers) & set(there):
            return
        time.sleep(0.3)
    raise AssertionError(f'the jobs {numbers} are not over')


def test_only_what_was_stopped_is_done_again(tmp_path, project_dir):
    folder = tmp_path / "a study's folder"
    folder.mkdir()
    app = App(folder, project_dir)
    for number in (1, 2):
        app.add(f'0{number}', pack(nifti(head(number)).to_bytes()))
    environment = {
        **{name: value for name, value in os.environ.items() if name != 'LOGNAME'},
        'PYTHONPATH': str(project_dir / 'tests' / 'workflows' / 'fake_site'),
        'ANATNET_TEST_HOLD': str(app.hold_dir),
    }
    command = [
        sys.executable, str(project_dir / 'run.py'), 'slurm', str(app.raw), str(app.out),
        '--array', '--max-tasks', '1', '--nprocs', '1', '--mem', '1G', '--time', '5',
        '--scratch', str(tmp_path), '--models-dir', str(folder / 'models'), '--device', 'cpu',
        '--modules', 'mask', '--skip-bids-validation', '--output-spaces', 'T1w', '--sloppy',
    ]  # fmt: skip
    pid_file = app.hold('mask')
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    script, _, first, second = done.stdout.splitlines()
    job, group = first.split()[2], second.split()[2]
    try:
        wait_for(pid_file, SECONDS)
        app.release('mask')
        subprocess.run(['scancel', f'{job}_1'], check=True)
        wait_for_jobs([job, group])
        again = subprocess.run(
            ['sbatch', '--parsable', script], env=environment, capture_output=True, text=True
        ).stdout.strip()
        wait_for_jobs([again])
    finally:
        subprocess.run(['scancel', job, group])
    (logs,) = app.out.glob('logs/slurm/*')
    texts = {file.stem: file.read_text() for file in logs.glob('*.log')}
    assert '1 processed' not in texts[f'participant-{job}_1']
    assert '1 processed' in texts[f'participant-{job}_2']
    assert '1 done, 1 incomplete' in texts[f'group-{group}']
    assert '1 processed' in texts[f'participant-{again}_1']
    assert '1 already done' in texts[f'participant-{again}_2']
    assert [app.state(subject)['status'] for subject in ('01', '02')] == ['done', 'done']
    assert app.temporary_files() == []
    assert not list(tmp_path.glob('anatnet-*'))  # nothing is left on the node
