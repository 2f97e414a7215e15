# SPDX-License-Identifier: Apache-2.0
"""Workers do not outlive the main process, whatever they are doing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from small_app import wait_for, wait_until_gone

SCRIPT = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from bids_app.workflows.workers import WorkerPool

class Node(SimpleNamespace):
    def output_dir(self):
        return self.folder / self.name

    def run(self, updatehash):
        (self.folder / self.name).write_text(str(os.getpid()))
        if self.name == 'deaf':
            sum(range(10**14))  # like ANTs, it never lets another thread of Python run
        elif self.name == 'stopped':
            while True:
                pass

if __name__ == '__main__':
    folder = Path(sys.argv[1])
    pool = WorkerPool(1, str(folder), {}, preload=['bids_app.workflows.workers'])
    for number, name in enumerate(['first', *sys.argv[2:]]):
        pool.submit(Node(folder=folder, name=name), False, number).result()
"""


@pytest.mark.parametrize('doing', ['deaf', 'stopped'])
def test_worker_ends_when_main_is_killed(tmp_path, project_dir, doing):
    (tmp_path / 'script.py').write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, 'script.py', str(tmp_path), doing],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(project_dir)},
        start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        worker = wait_for(tmp_path / doing)
        assert worker == int((tmp_path / 'first').read_text())  # a second task changes nothing
        process.kill()
        process.wait()
        wait_until_gone(worker)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
