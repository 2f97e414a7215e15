# SPDX-License-Identifier: Apache-2.0
"""Job scripts: what they hold, and what a shell does with them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bids_app import cli
from bids_app.cluster.script import gpu_count
from bids_app.errors import AnatNetError, UsageError

T1W = 'sub-{0}/anat/sub-{0}_T1w.nii.gz'

# Says what it was called with, and stops in order when it is asked to.
APP = """\
import json, os, signal, sys, time
work = sys.argv[sys.argv.index('--work-dir') + 1]
print(json.dumps({'argv': sys.argv[1:], 'logname': os.environ.get('LOGNAME'),
                  'work_is_there': os.path.isdir(work)}), flush=True)
if os.environ.get('SLOW'):
    def leave(number, frame):
        time.sleep(0.3)
        print('stopped in order', flush=True)
        sys.exit(143)
    signal.signal(signal.SIGTERM, leave)
    print('ready', flush=True)
    time.sleep(20)
"""


@pytest.fixture
def raw(make_bids, monkeypatch, tmp_path):
    saved = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield make_bids([T1W.format(f'{n:02d}') for n in range(1, 8)], name="my study's data")
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Put a stand-in of sbatch on the PATH; returns the file with its calls."""
    folder, calls = tmp_path / 'bin', tmp_path / 'calls'
    folder.mkdir()
    program = folder / 'sbatch'
    program.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$*" >> {calls}\n'
        f'echo "$((40 + $(wc -l < {calls})));cluster"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    return calls


def slurm(raw, *options):
    return cli.main(['slurm', str(raw), 'out', *options])


def scripts(tmp_path):
    (folder,) = (tmp_path / 'out' / 'logs' / 'slurm').iterdir()
    return (folder / 'participant.sbatch').read_text(), (folder / 'group.sbatch').read_text()


def asked(text):
    """Return the options of the lines of #SBATCH, unquoted as sbatch does it."""
    lines = re.findall(r'^#SBATCH (.*)$', text, flags=re.MULTILINE)
    return [word for line in lines for word in shlex.split(line)]


def with_app(text, tmp_path):
    """Put the stand-in in the place of AnatNet."""
    app = tmp_path / 'app.py'
    app.write_text(APP)
    changed = re.sub(r'^anatnet=\(.*\)$', f'anatnet=({sys.executable} {app})', text, flags=re.M)
    assert changed != text
    return changed


def test_submits_an_array_and_the_group_after_it(raw, sbatch, tmp_path, capsys):
    options = ('--partition', 'gpu', '--gres=gpu:1', '--time', '1:00:00', '--max-tasks', '3')
    assert slurm(raw, '--array', *options) == 0
    first, second = sbatch.read_text().splitlines()
    assert first.startswith('--parsable ')
    assert first.endswith('participant.sbatch')
    assert second.startswith('--parsable --dependency=afterany:41 ')
    assert second.endswith('group.sbatch')
    assert 'Submitted job 42' in capsys.readouterr().out
    participant, group = (asked(text) for text in scripts(tmp_path))
    wanted = {'--array=1-7%3', '--gres=gpu:1', '--partition=gpu', '--time=1:00:00', '--requeue',
              '--signal=B:USR1@120', '--cpus-per-task=4', '--job-name=anatnet'}  # fmt: skip
    assert wanted <= set(participant)
    assert {'--partition=gpu', '--time=1:00:00', '--job-name=anatnet-group'} <= set(group)
    assert not any(one.startswith(('--gres', '--array', '--signal')) for one in group)


def test_options_of_sbatch_come_before_the_first_command(raw, tmp_path):
    assert slurm(raw, '--array', '--no-submit', '--setup', 'module load x') == 0
    for text in scripts(tmp_path):
        first = next(n for n, line in enumerate(text.splitlines()) if line[:1] not in ('#', ''))
        assert all('#SBATCH' not in line for line in text.splitlines()[first:])
        assert 'module load x' in text.splitlines()[first:]


def test_options_of_anatnet_pass_through_and_are_checked_before(raw, tmp_path, capsys):
    options = ('--smooth-fwhm', '8', '--modules', 'mask', 'tissue', '--bids-database-dir', 'a b')
    assert slurm(raw, '--no-submit', '--array', *options) == 0
    text, group = scripts(tmp_path)
    assert (
        "--smooth-fwhm 8 \\\n    --modules mask tissue \\\n    --bids-database-dir 'a b'" in text
    )
    assert '--smooth-fwhm' not in group
    capsys.readouterr()
    assert slurm(raw, '--array', '--smooth-fwhm', 'wide') == 2
    assert '--smooth-fwhm' in capsys.readouterr().err
    assert slurm(raw, '--group-options', '--model brain') == 2
    assert 'has no ~' in capsys.readouterr().err


def test_resources_of_the_task_are_those_of_anatnet(raw, tmp_path):
    assert slurm(raw, '--no-submit', '--array', '--nprocs', '6', '--mem', '12G') == 0
    text, _ = scripts(tmp_path)
    assert {'--cpus-per-task=6', '--mem=12000M'} <= set(asked(text))
    assert '--nprocs "$cpus"' in text
    assert '--mem "${memory}M"' in text
    assert '12G' not in text


@pytest.mark.parametrize(
    ('options', 'variables', 'memory'),
    [
        ((), {}, '8000M'),
        (('--mem', '6G'), {}, '6000M'),
        (('--mem', '6G'), {'SLURM_MEM_PER_NODE': '6144'}, '6144M'),
        ((), {'SLURM_MEM_PER_CPU': '1000', 'SLURM_CPUS_PER_TASK': '3'}, '3000M'),
    ],
)
def test_memory_is_what_slurm_gives(raw, tmp_path, options, variables, memory):
    assert slurm(raw, '--no-submit', '--array', *options) == 0
    environment = {'SLURM_ARRAY_TASK_ID': '1', **variables}
    _, first, _, _ = run_script(scripts(tmp_path)[0], tmp_path, environment)
    assert first['argv'][first['argv'].index('--mem') + 1] == memory


@pytest.mark.parametrize(
    ('gres', 'device'),
    [('gpu:1', 'cuda'), ('gpu:a100:1', 'cuda'), ('gpu', 'cuda'), ('gpu:2', 'cuda:0,cuda:1')],
)
def test_gpus_that_were_asked_for_are_used(raw, tmp_path, gres, device):
    assert slurm(raw, '--no-submit', '--array', '--gres', gres) == 0
    assert f'--device {device}' in scripts(tmp_path)[0]


def test_device_that_was_asked_for_stays(raw, tmp_path):
    assert slurm(raw, '--no-submit', '--array', '--gres', 'gpu:1', '--device', 'auto') == 0
    assert re.findall(r'--device \S+', scripts(tmp_path)[0]) == ['--device auto']


def test_other_resources_are_no_gpu():
    assert [gpu_count(gres) for gres in ('license:2', 'tmpgpu:1', None)] == [0, 0, 0]


def test_several_participants_per_task(raw, tmp_path):
    assert slurm(raw, '--no-submit', '--array', '--per-task', '3') == 0
    text, _ = scripts(tmp_path)
    assert '--array=1-3' in asked(text)
    assert re.search(
        r'--batch "\$\{SLURM_ARRAY_TASK_ID:.*\}/3"', text
    )  # not the count of a resubmitted part


def test_more_participants_than_an_array_may_have_tasks(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('bids_app.cluster.command.LONGEST_ARRAY', 3)
    assert slurm(raw, '--no-submit', '--array') == 0
    assert '--array=1-3' in asked(scripts(tmp_path)[0])  # three participants per task
    assert capsys.readouterr().err == ''
    assert slurm(raw, '--dry-run', '--array', '--per-task', '1') == 0
    assert '--per-task 3 would do' in capsys.readouterr().err


def test_one_job_without_array(raw, tmp_path):
    assert slurm(raw, '--no-submit') == 0
    text, _ = scripts(tmp_path)
    assert not any(one.startswith('--array') for one in asked(text))
    assert '--batch' not in text


def test_dry_run_writes_nothing(raw, tmp_path, capsys):
    assert slurm(raw, '--array', '--dry-run') == 0
    assert '#SBATCH --array=1-7' in capsys.readouterr().out
    assert not (tmp_path / 'out').exists()


def test_container_sees_what_options_name(raw, tmp_path):
    image, models, own = (tmp_path / name for name in ('my image.sif', 'models', 'own'))
    image.touch()
    models.mkdir()
    own.mkdir()
    options = ('--models-dir', str(models), '--gres', 'gpu:1', '--bind', '/opt/x:/opt/x:ro')
    options = (*options, '--segmentation', 'deepnat', '--deepnat-model', str(own))
    assert slurm(raw, '--no-submit', '--array', '--container', str(image), *options) == 0
    text, group = scripts(tmp_path)
    for bind in (f'{raw}:{raw}:ro', f'{tmp_path}/out:{tmp_path}/out', f'{models}:{models}:ro',
                 f'{own}:{own}:ro', '/opt/x:/opt/x:ro'):  # fmt: skip
        assert f'--bind {shlex.quote(bind)}' in text
    assert '--nv' in text
    assert shlex.quote(str(image)) in group
    with pytest.raises(UsageError, match='no container image'):
        cli_error(raw, '--container', 'none.sif')


def cli_error(raw, *options):
    from bids_app.cluster.command import main

    main([str(raw), 'out', *options])


@pytest.mark.parametrize(
    ('options', 'message'),
    [(('--batch', '1/2'), 'leave out --batch'), (('--time',), 'needs a value'),
     (('--per-task', '0'), 'above 0'), (('group',), '--group-options')],
)  # fmt: skip
def test_wrong_use_is_one_line(raw, options, message):
    with pytest.raises(UsageError, match=message):
        cli_error(raw, *options)


def test_without_slurm_the_error_says_what_to_do(raw, monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(AnatNetError, match='--no-submit'):
        cli_error(raw, '--array')


def test_refusal_of_slurm_is_passed_on(raw, sbatch):
    program = sbatch.parent / 'bin' / 'sbatch'
    program.write_text('#!/bin/bash\necho "sbatch: error: invalid partition" >&2\nexit 1\n')
    with pytest.raises(AnatNetError, match='invalid partition'):
        cli_error(raw, '--array')


def test_output_of_another_pipeline_is_left_alone(raw, make_bids, tmp_path):
    make_bids([], name='out', GeneratedBy=[{'Name': 'other'}])
    with pytest.raises(UsageError, match='derivatives of other'):
        cli_error(raw, '--array')
    assert not (tmp_path / 'out' / 'logs').exists()


def run_script(text, tmp_path, environment, signals=()):
    """Run a script as Slurm would; returns exit code, output and folder of the work."""
    import json

    file = tmp_path / 'script'
    file.write_text(with_app(text, tmp_path))
    scratch = tmp_path / 'scratch'
    scratch.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ('LOGNAME', 'SLURM_TMPDIR')}
    env |= {'TMPDIR': str(scratch), 'SLURM_JOB_ID': '77', **environment}
    process = subprocess.Popen(
        ['bash', str(file)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    first = json.loads(process.stdout.readline())
    if signals:
        assert process.stdout.readline() == 'ready\n'
    for number in signals:
        os.kill(process.pid, number)
        time.sleep(0.05)
    rest = process.communicate(timeout=20)[0]
    return process.returncode, first, rest, list(scratch.iterdir())


def test_script_calls_the_app_with_its_batch_and_cleans_up(raw, tmp_path):
    assert slurm(raw, '--no-submit', '--array', '--mem', '8G', '--models-dir', "o'my dir") == 0
    text, group = scripts(tmp_path)
    environment = {'SLURM_ARRAY_TASK_ID': '5', 'SLURM_CPUS_PER_TASK': '3'}
    code, first, _, left = run_script(text, tmp_path, environment)
    assert code == 0
    assert left == []
    assert first['work_is_there']
    assert first['logname']
    assert first['argv'] == [
        str(raw), str(tmp_path / 'out'), 'participant', '--nprocs', '3', '--mem', '6000M',
        '--work-dir', f'{tmp_path}/scratch/anatnet-{os.getuid()}-local-77', '--batch', '5/7',
        '--models-dir', "o'my dir",
    ]  # fmt: skip
    code, first, _, left = run_script(group, tmp_path, {})
    assert (code, left) == (0, [])
    assert first['argv'][:3] == [str(raw), str(tmp_path / 'out'), 'group']


def test_work_folder_that_tasks_share_is_made_and_stays(raw, tmp_path):
    work = tmp_path / 'shared' / 'work'
    assert slurm(raw, '--no-submit', '--array', '-w', str(work)) == 0
    code, first, _, _ = run_script(scripts(tmp_path)[0], tmp_path, {'SLURM_ARRAY_TASK_ID': '5'})
    assert code == 0
    assert first['work_is_there']  # a container could not be given it otherwise
    assert work.is_dir()


@pytest.mark.parametrize('runtime', ['apptainer', 'singularity', None])
def test_script_runs_the_container(raw, tmp_path, runtime):
    image = tmp_path / 'my image.sif'
    image.touch()
    options = ('--container', str(image), '--gres', 'gpu:1', '--atlas', f'{raw}/a.nii')
    assert slurm(raw, '--no-submit', '--array', *options) == 0
    folder = tmp_path / 'programs'
    folder.mkdir()
    for name in ('bash', 'id', 'rm', 'mkdir'):  # nothing else is on the PATH
        (folder / name).symlink_to(shutil.which(name))
    if runtime:
        names = (f'{runtime.upper()}ENV_{name}' for name in ('TMPDIR', 'CUDA_VISIBLE_DEVICES'))
        see = 'echo ' + ' '.join(f'"${{{name}}}"' for name in names)
        (folder / runtime).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@"\n{see}\n')
        (folder / runtime).chmod(0o755)
    file = tmp_path / 'script'
    file.write_text(scripts(tmp_path)[0])
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    done = subprocess.run(
        [shutil.which('bash'), str(file)],
        env={'PATH': str(folder), 'TMPDIR': str(scratch), 'SLURM_JOB_ID': '9',
             'SLURM_ARRAY_TASK_ID': '2', 'CUDA_VISIBLE_DEVICES': '2,3'},
        capture_output=True, text=True,
    )  # fmt: skip
    assert list(scratch.iterdir()) == []
    if runtime is None:
        assert done.returncode == 127
        assert 'no apptainer or singularity' in done.stderr
        return
    assert done.returncode == 0, done.stderr
    *words, visible = done.stdout.splitlines()
    work = f'{scratch}/anatnet-{os.getuid()}-local-9'
    assert visible == f'{work} 2,3'
    assert words[:4] == ['run', '--containall', '--cleanenv', '--nv']
    binds = [second for first, second in zip(words, words[1:], strict=False) if first == '--bind']
    assert binds == [
        f'{tmp_path}:{tmp_path}', f'{raw}:{raw}:ro', f'{tmp_path}/out:{tmp_path}/out', work,
    ]  # fmt: skip
    assert words[words.index('--pwd') + 1] == str(tmp_path)  # options may hold relative paths
    assert words[words.index(str(image)) :] == [
        str(image), str(raw), f'{tmp_path}/out', 'participant', '--nprocs', '4', '--mem',
        '8000M', '--work-dir', work, '--batch', '2/7', '--atlas', f'{raw}/a.nii', '--device',
        'cuda',
    ]  # fmt: skip


@pytest.mark.parametrize('answers', [True, False])
def test_script_removes_what_killed_tasks_have_left(raw, tmp_path, answers):
    assert slurm(raw, '--no-submit', '--array') == 0
    scratch = tmp_path / 'scratch'
    prefix = f'anatnet-{os.getuid()}'
    names = {f'{prefix}-here-{number}' for number in (70, 71, 7)} | {f'{prefix}-there-70', 'other'}
    for name in names:
        (scratch / name).mkdir(parents=True)
    program = tmp_path / 'squeue'
    program.write_text(f'#!/bin/bash\nprintf "71\\n77\\n"; {"exit 0" if answers else "exit 1"}\n')
    program.chmod(0o755)
    environment = {
        'SLURM_ARRAY_TASK_ID': '1', 'SLURM_CLUSTER_NAME': 'here',
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
    }  # fmt: skip
    code, _, _, left = run_script(scripts(tmp_path)[0], tmp_path, environment)
    assert code == 0
    gone = {f'{prefix}-here-70', f'{prefix}-here-7'} if answers else set()
    assert {folder.name for folder in left} == names - gone


@pytest.mark.parametrize(
    ('number', 'restarts', 'again'),
    [(signal.SIGUSR1, '0', True), (signal.SIGUSR1, '3', False), (signal.SIGTERM, '0', False)],
)
def test_script_lets_the_app_stop_in_order(raw, tmp_path, number, restarts, again):
    assert slurm(raw, '--no-submit', '--array') == 0
    program = tmp_path / 'scontrol'
    program.write_text('#!/bin/bash\necho "scontrol $*"\n')
    program.chmod(0o755)
    environment = {
        'SLURM_ARRAY_TASK_ID': '1', 'SLOW': '1', 'SLURM_RESTART_COUNT': restarts,
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
    }  # fmt: skip
    code, _, rest, left = run_script(
        scripts(tmp_path)[0], tmp_path, environment, signals=(number, number)
    )
    assert code == 143
    assert 'stopped in order' in rest
    assert ('scontrol requeue 77' in rest) is again
    assert left == []
