# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at any moment, and the same command again, end like an undisturbed run.

``ANATNET_KILL_DRAWS=30 pytest -s tests/faults/test_sigkill.py`` draws thirty moments, not two.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from small_app import App, head, nifti, pack

SPACE = ('--output-spaces', 'MNI152NLin2009aSym:res-4', '--smooth-fwhm', '8')
DRAWS = int(os.environ.get('ANATNET_KILL_DRAWS', 2))


def content(folder):
    """Return the checksum of every file whose content does not tell time and run."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file() and not {'log', 'logs'} & set(path.relative_to(folder).parts)
        and path.suffix != '.html'
    }  # fmt: skip


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, project_dir):
    """Return a function that gives the app with two heads, what an undisturbed run writes, and
    how many seconds it takes."""
    app = App(tmp_path_factory.mktemp('kill'), project_dir)
    for number in (1, 2):
        app.add(f'0{number}', pack(nifti(head(number)).to_bytes()))

    @functools.cache
    def run(*options):
        begin = time.monotonic()
        code, text = app.run(*options)
        assert code == 0, text
        found = content(app.out), time.monotonic() - begin
        clean(app)
        return found

    return app, run


def clean(app):
    for folder in (app.out, app.work):
        shutil.rmtree(folder)


@pytest.mark.parametrize('draw', range(DRAWS))
def test_killed_at_a_random_moment(undisturbed, draw):
    app, run = undisturbed
    options = SPACE if draw % 10 == 9 else () if draw % 3 == 0 else ('--modules', 'mask')
    expected, seconds = run(*options)
    chance = random.Random(draw)
    moment = chance.uniform(0.1, 0.95) * seconds
    everything = chance.random() < 0.5  # as by a scheduler; else the main process alone
    process = app.start(*options)
    try:
        _, text = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        (os.killpg if everything else os.kill)(process.pid, signal.SIGKILL)
        _, text = process.communicate()  # the workers hold the pipe until they are gone
        assert process.returncode == -signal.SIGKILL
    said = [line[10:70] for line in text.splitlines() if line[2:3] == ':']
    last = said[-1] if said else 'nothing said'
    how = 'finished before' if process.returncode == 0 else 'all' if everything else 'main'
    print(f'draw {draw} {" ".join(options)}: killed {how} after '
          f'{moment:.1f} of {seconds:.1f} s: {last}')  # fmt: skip
    for name, checksum in content(app.out).items():  # nobody sees half a file, not even now
        assert name.endswith('.part') or checksum == expected[name]

    code, text = app.run(*options)
    assert code == 0, text
    assert content(app.out) == expected
    assert app.temporary_files() == []
    assert [app.state(subject)['status'] for subject in ('01', '02')] == ['done', 'done']
    assert all((app.out / f'sub-0{number}.html').is_file() for number in (1, 2))
    assert not list(app.work.glob('anatnet_*/*_wf'))
    assert 'Traceback' not in text
    clean(app)
