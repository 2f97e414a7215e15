# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import logging
from random import Random
from types import SimpleNamespace

import pytest

from bids_app.progress import Progress, clock_time, scan_of

STEPS = ('conform', 'mask', 'segment')
EXPECTED = {'conform': 2.0, 'mask': 4.0, 'segment': 10.0}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def progress(clock, **options):
    scans = {'sub_01_wf': ('sub-01', STEPS), 'sub_02_wf': ('sub-02', STEPS)}
    return Progress(scans, EXPECTED, clock=clock, stream=io.StringIO(), **options)


def test_remaining_time_counts_down_and_learns(clock):
    follow = progress(clock)
    scan = follow.scans['sub_01_wf']
    follow.note('sub_01_wf', 'conform', 'start')
    assert follow.remaining(scan, clock.now) == 16
    clock.now += 1
    assert follow.remaining(scan, clock.now) == 15
    clock.now += 5
    assert follow.remaining(scan, clock.now) == 14  # late: the step counts no more
    follow.note('sub_01_wf', 'conform', 'end')
    assert follow.expected('conform') == 6  # as measured
    assert follow.remaining(follow.scans['sub_02_wf'], clock.now) == 20
    assert follow.remaining_all(clock.now) == 34


def test_cached_step_teaches_nothing(clock):
    follow = progress(clock)
    follow.note('sub_01_wf', 'conform', 'end')
    assert follow.expected('conform') == 2
    assert follow.scans['sub_01_wf'].done == ['conform']


def test_end_of_a_scan_is_told_once(clock):
    ended = []
    follow = progress(clock, on_scan_end=ended.append)
    for step in STEPS:
        follow.note('sub_01_wf', step, 'start')
        follow.note('sub_01_wf', step, 'end')
        follow.note('sub_01_wf', step, 'end')
    assert ended == ['sub_01_wf']
    assert follow.remaining(follow.scans['sub_01_wf'], clock.now) == 0


def test_failed_scan_is_over_and_not_told_as_finished(clock):
    ended = []
    follow = progress(clock, on_scan_end=ended.append)
    follow.note('sub_01_wf', 'mask', 'start')
    follow.note('sub_01_wf', 'mask', 'exception')
    follow.note('sub_01_wf', 'mask', 'end')  # Nipype's serial plugin says this, too
    assert not ended
    assert follow.scans['sub_01_wf'].failed == 'mask'


def test_live_lines_fit_the_terminal(clock):
    follow = progress(clock)
    follow.note('sub_01_wf', 'mask', 'start')
    clock.now += 75
    lines = follow.lines(clock.now, width=40)
    assert all(len(line) < 40 for line in lines)
    first, last = follow.lines(clock.now, width=120)
    assert first.startswith('sub-01')
    assert 'mask' in first
    assert '1:15 elapsed' in first
    assert last.startswith('0 of 2 scans over')


def test_plain_log_lines_without_a_terminal(clock, caplog):
    follow = progress(clock)
    with caplog.at_level(logging.INFO, 'anatnet.progress'), follow:
        follow.note('sub_01_wf', 'conform', 'start')
        clock.now += 3
        follow.note('sub_01_wf', 'conform', 'end')
    assert caplog.messages == ['sub-01: conform done (1/3), elapsed 0:03, about 0:14 left']
    assert follow._stream.getvalue() == ''


def test_log_lines_appear_above_live_lines(clock):
    stream = io.StringIO()
    scans = {'a': ('sub-01', STEPS)}
    logger = logging.getLogger('anatnet')
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        with Progress(scans, EXPECTED, stream=stream, live=True, clock=clock) as follow:
            follow.note('a', 'conform', 'start')
            follow._draw()
            logger.warning('something happened')
            follow._draw()
        assert handler.stream is stream
    finally:
        logger.removeHandler(handler)
    text = stream.getvalue()
    drawn, rest = text.split('something happened')
    assert drawn.endswith('\x1b[1A\x1b[J')  # one line up and cleared before the message
    assert 'sub-01' in rest
    assert rest.endswith('\x1b[J')  # nothing is left at the end


def test_node_belongs_to_the_workflow_below_the_outermost():
    assert scan_of(SimpleNamespace(_hierarchy='anatnet.sub_01_wf')) == 'sub_01_wf'
    assert scan_of(SimpleNamespace(_hierarchy='anatnet.sub_01_wf.inner')) == 'sub_01_wf'


@pytest.mark.parametrize(
    ('seconds', 'text'), [(-1, '0:00'), (59.6, '1:00'), (3599, '59:59'), (3661, '1:01:01')]
)
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


def test_whole_is_the_sum_of_the_scans_whatever_happens(clock):
    random = Random(0)
    scans = {f'sub_{n}_wf': (f'sub-{n}', STEPS) for n in range(30)}
    follow = Progress(scans, EXPECTED, clock=clock, stream=io.StringIO())
    for _ in range(400):
        clock.now += random.random()
        follow.note(
            random.choice(list(scans)), random.choice(STEPS),
            random.choice(['start', 'end', 'start', 'end', 'exception']),
        )  # fmt: skip
        one_by_one = sum(follow.remaining(scan, clock.now) for scan in follow.scans.values())
        assert follow.remaining_all(clock.now) == pytest.approx(one_by_one)
    over = sum(scan.ended is not None for scan in follow.scans.values())
    failed = sum(scan.failed is not None for scan in follow.scans.values())
    assert 0 < failed < 30
    assert f'{over} of 30 scans over, {failed} failed' in follow.lines(clock.now)[-1]


def test_a_look_at_thousands_of_scans_visits_only_those_at_work(clock, monkeypatch):
    scans = {f'sub_{n}_wf': (f'sub-{n}', STEPS) for n in range(5000)}
    follow = Progress(scans, EXPECTED, clock=clock, stream=io.StringIO())
    for name in list(scans)[:3000]:
        for step in STEPS:
            follow.note(name, step, 'start')
            follow.note(name, step, 'end')
    follow.note('sub_3000_wf', 'mask', 'start')
    visited = []
    monkeypatch.setattr(follow, 'expected', lambda step: visited.append(step) or 1.0)
    assert '3000 of 5000 scans over' in follow.lines(clock.now)[-1]
    assert len(visited) < 30
