# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from bids_app.interruption import MESSAGE, Interrupted, Interruption


def test_swallowed_interruption_is_raised_again():
    def step():  # Nipype could swallow what is raised here
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    with Interruption() as interruption:
        interruption.check()
        with pytest.raises(Interrupted):
            step()
        with pytest.raises(Interrupted):
            interruption.check()
    assert interruption.number == signal.SIGTERM
    assert before == {number: signal.getsignal(number) for number in before}
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_echo_of_a_signal_is_not_a_second_one():
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    with Interruption() as interruption:
        with pytest.raises(Interrupted):
            stop()
        stop()  # would end this process
    assert interruption.number == signal.SIGTERM


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.number is None
    finally:
        signal.signal(signal.SIGINT, before)


# A run that is busy in a pool of threads, which ends only when its last task is done.
THREADS = """
from concurrent.futures import ThreadPoolExecutor
import time
def level(config):
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(time.sleep, 60)
        print('busy', flush=True)
        task.result()
"""

SLEEP = """
import time
def level(config):
    print('busy', flush=True)
    time.sleep(60)
"""


def start(code, tmp_path, patience):
    program = f"""{code}
import bids_app.cli as cli, bids_app.interruption as interruption, sys
interruption.Interruption.__init__.__defaults__ = ({patience},)
cli.run = level
sys.argv[1:] = [{str(tmp_path)!r}, {str(tmp_path / 'derivatives' / 'out')!r}, 'group']
sys.exit(cli.main())
"""
    process = subprocess.Popen(
        [sys.executable, '-c', program], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == 'busy\n'
    return process


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=['SIGINT', 'SIGTERM']
)
@pytest.mark.parametrize(
    ('program', 'patience'), [(SLEEP, 60), (THREADS, 0.5)], ids=['sleep', 'threads']
)
def test_a_level_that_knows_nothing_of_signals_ends_with_one_line(
    tmp_path, program, patience, number, code
):
    process = start(program, tmp_path, patience)
    process.send_signal(number)
    try:
        _, text = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, text) == (code, f'{MESSAGE}\n')


def test_second_signal_ends_at_once(tmp_path):
    process = start(THREADS, tmp_path, 60)
    try:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGTERM
