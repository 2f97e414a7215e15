# SPDX-License-Identifier: Apache-2.0
"""The whole app with two GPUs that are only names; nothing is computed on them."""

from __future__ import annotations

import json
import time

import pytest
from small_app import App, head, nifti, pack

TWO_GPUS = {'ANATNET_TEST_GPUS': '2'}


@pytest.fixture
def app(tmp_path, project_dir):
    app = App(tmp_path, project_dir)
    for number in (1, 2):
        app.add(f'0{number}', pack(nifti(head(number)).to_bytes()))
    return app


def test_two_scans_use_two_gpus_at_a_time(app):
    app.hold('mask')
    less = {'ANATNET_TEST_FALLBACK': 'cpu, tiles of 96 voxels'}
    options = ('--device', 'cuda:0,cuda:1', '--modules', 'mask')
    process = app.start(*options, env={**TWO_GPUS, **less})
    deadline = time.monotonic() + 60
    while len(waiting := list(app.hold_dir.glob('mask-*'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    app.release('mask')
    code, text = app.finish(process)
    assert code == 0, text
    assert len(waiting) == 2
    assert 'Device: cuda:0 (asked for: GPU 0), cuda:1 (asked for: GPU 1)' in text
    sidecars = [json.loads(f.read_text()) for f in app.out.rglob('*_desc-brain_mask.json')]
    assert {sidecar['Device'] for sidecar in sidecars} == {'cuda:0', 'cuda:1'}
    assert [sidecar['Fallback'] for sidecar in sidecars] == ['cpu, tiles of 96 voxels'] * 2
    assert 'sub-02: memory ran out in step mask: done on cpu, tiles of 96 voxels' in text
    (summary,) = app.out.glob('logs/*/summary.json')
    throughput = json.loads(summary.read_text())['throughput']
    assert throughput['sessions'] == throughput['subjects'] == 2
    assert set(throughput['busy']) == {'cuda:0', 'cuda:1', 'cpu'}
    assert all(0 < share <= 1 for share in throughput['busy'].values())
    assert '2 sessions in' in text
    assert 'subjects per hour; cuda:0 busy' in text


def test_gpu_that_is_not_there_is_an_error_before_anything_is_written(app):
    code, text = app.run('--device', 'cuda:1,cuda:2', '--modules', 'mask', env=TWO_GPUS)
    assert code == 2
    assert text.splitlines()[-1].endswith('only 2 found: use --device auto or cpu')
    assert not list(app.out.glob('sub-*'))
