# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from bids_app.workflows.plugin import WORKER_DIED, SteadyMultiProcPlugin, reason_of_crash

SCRIPT = """
import sys, json
from pathlib import Path
from nipype import config
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from bids_app.workflows.plugin import SteadyMultiProcPlugin, reason_of_crash
from bids_app.workflows.workers import quiet_nipype

def good(x):
    import time
    time.sleep(0.3)
    return x + 1

def killed(x):
    import os, signal, time
    time.sleep(0.6)
    os.kill(os.getpid(), signal.SIGKILL)

def broken(x):
    from bids_app.errors import ImageError
    raise ImageError('/data/t1w.nii: is empty: fetch it again')

def chain(name, middle, folder):
    workflow = pe.Workflow(name=name)
    nodes = [
        pe.Node(niu.Function(function=f, input_names=['x'], output_names=['y']), name=n)
        for n, f in (('first', good), ('middle', middle), ('last', good))
    ]
    nodes[0].inputs.x = 1
    workflow.connect([(nodes[0], nodes[1], [('y', 'x')]), (nodes[1], nodes[2], [('y', 'x')])])
    for node in workflow._get_all_nodes():
        node.config = {'execution': {'crashdump_dir': str(folder / f'crash_{name}')}}
    return workflow

if __name__ == '__main__':
    folder = Path(sys.argv[1])
    quiet_nipype()
    config.update_config({'execution': {'poll_sleep_duration': '0.05', 'create_report': 'false',
                                        'crashfile_format': 'txt'}})
    top = pe.Workflow(name='top', base_dir=str(folder))
    top.add_nodes([chain(*pair, folder) for pair in
                   (('one', good), ('two', killed), ('three', good), ('four', broken))])
    order, crashes = [], {}
    def status(node, what):
        order.append([node._hierarchy.split('.')[1], node.name, what])
    def on_crash(node, file):
        crashes[f"{node._hierarchy.split('.')[1]}.{node.name}"] = reason_of_crash(file)
    arguments = {'n_procs': 2, 'memory_gb': 8, 'raise_insufficient': False,
                 'status_callback': status, 'on_crash': on_crash,
                 'rank': lambda node: (
                     'one two three four'.split().index(node._hierarchy.split('.')[1]),
                     -['first', 'middle', 'last'].index(node.name),
                 )}
    with SteadyMultiProcPlugin(arguments) as plugin:
        try:
            top.run(plugin=plugin)
        except RuntimeError:
            pass
    print(json.dumps({'order': order, 'crashes': crashes}))
"""


@pytest.fixture(scope='module')
def outcome(tmp_path_factory, project_dir):
    """Run four chains of three nodes, of which one is killed and one raises an error."""
    import json

    folder = tmp_path_factory.mktemp('plugin')
    (folder / 'script.py').write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, 'script.py', str(folder)],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(project_dir)},
        capture_output=True,
        text=True,
        timeout=60,  # Nipype's own plugin would wait for ever
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_killed_worker_fails_its_node_and_no_other(outcome):
    ended = {(scan, node) for scan, node, what in outcome['order'] if what == 'end'}
    for scan in ('one', 'three'):
        assert {(scan, node) for node in ('first', 'middle', 'last')} <= ended
    assert ('two', 'middle') not in ended
    assert ('four', 'middle') not in ended
    assert set(outcome['crashes']) == {'two.middle', 'four.middle'}


def test_killed_worker_is_told_with_a_hint_at_memory(outcome):
    reason, foreseen = outcome['crashes']['two.middle']
    assert 'killed' in reason
    assert 'memory' in reason
    assert foreseen


def test_foreseen_error_is_its_message_alone(outcome):
    assert outcome['crashes']['four.middle'] == ['/data/t1w.nii: is empty: fetch it again', True]


def test_first_scan_is_finished_before_later_ones(outcome):
    ends = [scan for scan, node, what in outcome['order'] if (node, what) == ('last', 'end')]
    assert ends == ['one', 'three']


@pytest.mark.parametrize(
    ('nodes', 'started'),
    [
        ([(2, 1, False), (1, 1, False)], [0]),  # takes all processors
        ([(1, 1, False), (2, 1, False), (1, 1, False)], [0]),  # the third must not overtake
        ([(1, 1, False), (1, 9, False), (1, 1, False)], [0]),  # nor where memory is short
        ([(1, 1, False), (1, 1, False), (1, 1, False)], [0, 1]),
        ([(1, 1, True), (1, 1, True), (1, 1, False)], [0, 2]),  # nobody waits for the GPU
        ([(2, 1, False), (1, 1, True)], [0, 1]),  # the GPU needs no processor
        ([(1, 1, True), (2, 1, False)], [0, 1]),
        ([(2, 9, False), (1, 1, True)], [0]),  # but memory
        ([(9, 99, False)], [0]),  # more than there is: it gets all
    ],
)
def test_small_nodes_do_not_overtake(nodes, started):
    plugin = object.__new__(SteadyMultiProcPlugin)
    plugin.processors, plugin.memory_gb, plugin.n_gpu_procs = 2, 8, 1
    plugin.pending_tasks = []
    plugin.procs = [
        SimpleNamespace(n_procs=n, mem_gb=gb, mem_gb_runtime=gb, is_gpu_node=lambda gpu=gpu: gpu)
        for n, gb, gpu in nodes
    ]
    plugin._rank = plugin.procs.index
    assert plugin._sort_jobs(range(len(nodes))[::-1]) == started


MORE_MEMORY = 'give the job more memory, or use --low-mem or fewer --nprocs'


@pytest.mark.parametrize(
    ('text', 'reason', 'foreseen'),
    [
        ('Traceback:\n  File "x"\nValueError: bad shape\n', 'ValueError: bad shape', False),
        (
            'RuntimeError: first\n\nDuring handling:\n\tbids_app.errors.ImageError: is empty\n',
            'is empty',
            True,
        ),
        (f'{WORKER_DIED}: the worker process was killed\n', 'the worker process was killed', True),
        ('torch.cuda.OutOfMemoryError: CUDA\n', f'CUDA; {MORE_MEMORY}', True),
        ('MemoryError\n', f'memory ran out; {MORE_MEMORY}', True),
        ('MemoryError: no room: use --low-mem\n', 'no room: use --low-mem', True),
        (
            'numpy._core._exceptions._ArrayMemoryError: Unable to allocate 4. GiB\n',
            f'Unable to allocate 4. GiB; {MORE_MEMORY}',
            True,
        ),
        (
            "OSError: [Errno 28] No space left on device: '/w/x.nii'\n",
            "[Errno 28] No space left on device: '/w/x.nii': make room where --work-dir is, or "
            'give another',
            True,
        ),
        (
            "FileNotFoundError: [Errno 2] No such file: 'x'\n",
            "FileNotFoundError: [Errno 2] No such file: 'x'",
            False,
        ),
        ('KeyError\n', 'KeyError', False),
    ],
)
def test_reason_of_crash(tmp_path, text, reason, foreseen):
    file = tmp_path / 'crash.txt'
    file.write_text(textwrap.dedent(text))
    assert reason_of_crash(file) == (reason, foreseen)


def test_reason_of_an_empty_crash_file_names_the_file(tmp_path):
    file = tmp_path / 'crash.txt'
    file.write_text('')
    assert reason_of_crash(file) == (f'see {file}', False)
    assert reason_of_crash(tmp_path / 'none.txt')[1] is False
