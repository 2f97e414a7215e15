# SPDX-License-Identifier: Apache-2.0
"""Workers that keep networks loaded; the GPUs are names, nothing is computed on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bids_app.config import RunConfig
from bids_app.errors import UsageError
from bids_app.workflows.execution import Executor, network_lanes

SCRIPT = """
import json, os, sys
from pathlib import Path
from nipype import config
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from bids_app.workflows.plugin import SteadyMultiProcPlugin, reason_of_crash
from bids_app.workflows.workers import quiet_nipype

def meet(mine, other):
    # Two steps wait for each other, which ends only if they run at the same time.
    import pathlib, time
    pathlib.Path(mine).touch()
    for _ in range(600):
        if list(pathlib.Path(other).parent.glob(pathlib.Path(other).name)):
            return
        time.sleep(0.1)
    raise TimeoutError(f'{mine} has waited for {other}')

def cpu(x, folder, number):
    import os
    from script import meet
    if number == 4:
        meet(f'{folder}/processor', f'{folder}/network-*')
    return os.getpid()

def network(x, folder, number, device, use_gpu, kill):
    import os, signal
    from bids_app.inference.device import device_here
    from script import meet
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    device = device_here(device)
    if device != 'cpu':
        meet(f'{folder}/network-{device}', f'{folder}/processor')
        meet(f'{folder}/network-{device}', f'{folder}/network-cuda:{1 - int(device[-1])}')
    return f'{os.getpid()} {device}'

def chain(number, folder, device, kill):
    name = f'scan{number}'
    workflow = pe.Workflow(name=name)
    first, last = (
        pe.Node(niu.Function(function=cpu, input_names=['x', 'folder', 'number'],
                             output_names=['y']), name=n)
        for n in ('first', 'last')
    )
    middle = pe.Node(
        niu.Function(
            function=network, output_names=['y'],
            input_names=['x', 'folder', 'number', 'device', 'use_gpu', 'kill']),
        name='middle')
    first.inputs.x = 1
    middle.inputs.device, middle.inputs.use_gpu = device, device != 'cpu'
    middle.inputs.kill = kill
    for node in (first, middle, last):
        node.inputs.folder, node.inputs.number = str(folder), number if device != 'cpu' else 0
    workflow.connect([(first, middle, [('y', 'x')]), (middle, last, [('y', 'x')])])
    for node in workflow._get_all_nodes():
        node.config = {'execution': {'crashdump_dir': str(folder / f'crash_{name}')}}
    return workflow

if __name__ == '__main__':
    folder, lanes = Path(sys.argv[1]), json.loads(sys.argv[2])
    device = 'cpu' if 'cpu' in lanes else 'cuda:0'
    quiet_nipype()
    config.update_config({'execution': {'poll_sleep_duration': '0.02', 'create_report': 'false',
                                        'crashfile_format': 'txt'}})
    top = pe.Workflow(name='top', base_dir=str(folder))
    kill = sys.argv[3] == 'kill'
    top.add_nodes([chain(i, folder, device, kill and i == 0) for i in range(5)])
    failed, values = [], {}
    def status(node, what):
        if what == 'end':
            values[node.fullname] = str(node.result.outputs.y)
    arguments = {'n_procs': 2, 'n_gpu_procs': len(lanes), 'memory_gb': 8, 'lanes': lanes,
                 'raise_insufficient': False, 'rank': lambda node: node.fullname,
                 'status_callback': status,
                 'on_crash': lambda node, file: failed.append(node.fullname)}
    with SteadyMultiProcPlugin(arguments) as plugin:
        try:
            top.run(plugin=plugin)
        except RuntimeError:
            pass
    print(json.dumps({'values': values, 'failed': failed, 'spans': plugin.usage.spans}))
"""


def run(folder, project_dir, lanes, kill=''):
    (folder / 'script.py').write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, 'script.py', str(folder), json.dumps(lanes), kill],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': f'{project_dir}:{folder}'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope='module')
def two_gpus(tmp_path_factory, project_dir):
    """Run five scans on two processors and two devices; the first network step is killed."""
    folder = tmp_path_factory.mktemp('lanes')
    return run(folder, project_dir, {'cuda:0': 1, 'cuda:1': 1}, 'kill')


def test_every_gpu_has_one_worker_that_keeps_its_networks(two_gpus):
    steps = [v.split() for k, v in two_gpus['values'].items() if 'middle' in k]
    assert len(steps) == 4
    by_device = {device: {pid for pid, d in steps if d == device} for _, device in steps}
    assert set(by_device) == {'cuda:0', 'cuda:1'}
    assert all(len(pids) == 1 for pids in by_device.values())
    others = {v for k, v in two_gpus['values'].items() if 'middle' not in k}
    assert not others & set.union(*by_device.values())


def test_killed_worker_of_a_gpu_fails_its_node_and_is_replaced(two_gpus):
    (failed,) = two_gpus['failed']
    assert failed.endswith('scan0.middle')
    assert len(two_gpus['values']) == 13  # of 15; the node after it is lost as well


def test_networks_run_beside_each_other_and_beside_other_steps(two_gpus):
    # Two steps on two GPUs and one on the processor have waited for each other.
    assert {'top.scan4.first', 'top.scan4.last'} <= set(two_gpus['values'])
    assert set(two_gpus['spans']) == {'', 'cuda:0', 'cuda:1'}


def test_networks_on_the_cpu_stay_in_few_workers(tmp_path, project_dir):
    outcome = run(tmp_path, project_dir, {'cpu': 1})
    assert outcome['failed'] == []
    steps = [v.split() for k, v in outcome['values'].items() if 'middle' in k]
    assert len({pid for pid, _ in steps}) == 1
    assert {device for _, device in steps} == {'cpu'}
    assert len(outcome['spans']['cpu']) == 5


def test_lanes_of_a_run(tmp_path):
    config = RunConfig(tmp_path, tmp_path / 'out', nprocs=6, omp_nthreads=4)
    assert network_lanes(config, ['cpu']) == {'cpu': 1}
    assert network_lanes(config.replace(omp_nthreads=8), ['cpu']) == {'cpu': 1}
    assert network_lanes(config.replace(gpu_slots=2), ['cuda:1']) == {'cuda:1': 2}


def test_other_plugins_cannot_spread_over_devices(tmp_path):
    file = tmp_path / 'plugin.yml'
    file.write_text('plugin: Linear\n')
    config = RunConfig(tmp_path, tmp_path / 'out', use_plugin=file)
    arguments = {'status': print, 'on_crash': print, 'rank': len, 'environment': {}}
    with pytest.raises(UsageError, match='cuda:0, cuda:1'):
        Executor(config, **arguments, devices=['cuda:0', 'cuda:1'])
    assert Executor(config, **arguments, devices=['cuda:1']).usage is None
