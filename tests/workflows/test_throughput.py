# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time

import pytest

from bids_app.bids.inputs import Scan, SessionRecord
from bids_app.config import RunConfig
from bids_app.workflows.jobs import make_jobs
from bids_app.workflows.participant import _summarise, fallbacks
from bids_app.workflows.throughput import Meter, Throughput, Usage, busy_seconds


def test_busy_time_counts_overlaps_once():
    assert busy_seconds([]) == 0
    assert busy_seconds([(4, 5), (0, 3), (1, 2), (2, 3.5)]) == pytest.approx(4.5)


@pytest.fixture
def clock(monkeypatch):
    """Let the run end 100 s after its start at 0."""
    monkeypatch.setattr(time, 'monotonic', lambda: 100.0)


def test_throughput_of_two_devices(clock):
    usage = Usage()
    usage.note('cuda:0', (0, 30), 5.0)
    usage.note('cuda:0', (20, 50), 5.0)
    usage.note('', (0, 90), 150.0)
    found = Throughput.measure(0.0, ['01', '01', '02'], usage, 4, ['cuda:0', 'cuda:1'])
    assert (found.sessions, found.subjects) == (3, 2)
    assert found.subjects_per_hour == pytest.approx(72)
    assert found.busy == {'cuda:0': 0.5, 'cuda:1': 0.0, 'cpu': pytest.approx(0.4)}
    assert found.line() == (
        '3 sessions in 1:40, 72 subjects per hour; cuda:0 busy 50 %; cuda:1 busy 0 %; '
        'processors busy 40 %'
    )


def test_many_subjects_are_written_out(clock):
    labels = [str(number) for number in range(50)]
    assert '1800 subjects per hour' in Throughput.measure(0.0, labels, None, 1).line()


def test_other_plugins_have_no_busy_share(clock):
    found = Throughput.measure(0.0, ['01'], None, 4, ['cpu'])
    assert found.line() == '1 session in 1:40, 36 subjects per hour'


def test_networks_on_the_cpu_count_as_processors(clock):
    usage = Usage()
    usage.note('cpu', (0, 50), 80.0)
    assert Throughput.measure(0.0, ['01'], usage, 1, ['cpu']).busy == {'cpu': 0.8}


def test_nothing_is_measured_before_the_start():
    assert Meter().read(2, []) is None


def test_summary_of_a_run(tmp_path, clock):
    config = RunConfig(tmp_path / 'raw', tmp_path / 'out', work_dir=tmp_path / 'work')
    scan = Scan(tmp_path / 'raw' / 'x_T1w.nii.gz', 'T1w', {})
    jobs = make_jobs(config, [SessionRecord('01', None, scan), SessionRecord('02', None)])
    jobs[0].end('finished', '')
    meter = Meter()
    meter.start(['cpu'], Usage(cpu_seconds=0.0))
    meter._started = 64.0
    assert _summarise(config, jobs, meter.read(2, jobs)) == 0
    content = json.loads((config.log_dir / 'summary.json').read_text())
    assert content['counts'] == {'finished': 1, 'skipped': 1}
    assert content['sessions']['sub-01'] == {'status': 'finished'}
    assert content['sessions']['sub-02']['reason']
    assert content['throughput']['subjects_per_hour'] == 100
    assert content['throughput']['busy'] == {'cpu': 0.0}


def test_fallbacks_are_found_wherever_a_step_tells_them():
    steps = {
        'mask': {'fallback': None},
        'normalise': {'spaces': {'A': {'fallback': 'cpu'}, 'B': {'fallback': None}}},
        'segment': {'fallback': 'cuda:0, tiles of 96 voxels', 'seconds': 3},
    }
    assert list(fallbacks(steps)) == ['cpu', 'cuda:0, tiles of 96 voxels']
