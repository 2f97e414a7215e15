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
    the seconds after its start at which it said something, the last one that of its end."""
    app = App(tmp_path_factory.mktemp('kill'), project_dir)
    for number in (1, 2):
        app.add(f'0{number}', pack(nifti(head(number)).to_bytes()))

    @functools.cache
    def run(*options):
        begin = time.monotonic()
        process = app.start(*options)
        lines = [(time.monotonic() - begin, line) for line in process.stderr]
        assert process.wait() == 0, ''.join(line for _, line in lines)
        found = content(app.out), [when for when, _ in lines]
        clean(app)
        return found

    return app, run


@pytest.fixture
def heads(undisturbed):
    """Give the same; whatever comes of a draw, the next one begins with empty folders."""
    app, run = undisturbed
    clean(app)
    yield app, run
    clean(app)


def clean(app):
    for folder in (app.out, app.work):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize('draw', range(DRAWS))
def test_killed_at_a_random_moment(heads, draw):
    app, run = heads
    options = SPACE if draw % 10 == 9 else () if draw % 3 == 0 else ('--modules', 'mask')
    expected, spoken = run(*options)
    chance = random.Random(draw)
    moment = chance.uniform(0.1, 0.95) * spoken[-1]
    everything = chance.random() < 0.5  # as by a scheduler; else the main process alone
    # Another run may be faster or slower: the moment is so long after a line as it was then.
    lines = sum(when < moment for when in spoken[:-2])
    process = app.start(*options)
    said = [process.stderr.readline() for _ in range(lines)]
    time.sleep(moment - (spoken[lines - 1] if lines else 0))
    (os.killpg if everything else os.kill)(process.pid, signal.SIGKILL)
    said += process.stderr  # the workers hold the pipe until they are gone
    ended = process.wait()
    assert ended in (-signal.SIGKILL, 0)
    last = [line[10:70].strip() for line in said if line[2:3] == ':'][-1:] or ['nothing said']
    how = 'finished before' if ended == 0 else 'killed all' if everything else 'killed main'
    print(f'draw {draw} {" ".join(options)}: {how} after {moment:.1f} of {spoken[-1]:.1f} s: '
          f'{last[0]}')  # fmt: skip
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
