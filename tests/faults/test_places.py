# SPDX-License-Identifier: Apache-2.0
"""Strange places: names with spaces and letters of other languages, links, read-only data, a user
without rights or home, a clock that is wrong by decades; and scans that mean harm among good ones.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from small_app import App, head, nifti, pack

YEARS = 20
CLOCK = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
#define BACK ({YEARS}L * 365 * 86400)
int clock_gettime(clockid_t id, struct timespec *now) {{
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec -= BACK;
    return failed;
}}
time_t time(time_t *place) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}}
"""


def late_clock(folder):
    """Compile a library that sets the clock of a process back; None where that cannot be."""
    source, library = folder / 'clock.c', folder / 'clock.so'
    source.write_text(CLOCK)
    compiler = shutil.which('cc')
    if compiler is None:
        return None
    command = [compiler, '-shared', '-fPIC', '-o', str(library), str(source), '-ldl']
    if subprocess.run(command, capture_output=True).returncode:
        return None
    year = 'import time; print(time.gmtime().tm_year)'
    done = subprocess.run(
        [sys.executable, '-c', year], env={**os.environ, 'LD_PRELOAD': str(library)},
        capture_output=True, text=True,
    )  # fmt: skip
    return library if done.stdout.strip() == str(datetime.now().year - YEARS) else None


def powerless():
    """Return a command that takes from the superuser the right to write where nobody may."""
    if os.geteuid() != 0:
        return []
    command = ['setpriv', '--bounding-set=-all', '--inh-caps=-all']
    try:
        subprocess.run([*command, 'true'], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return command


def snapshot(folder):
    """Return name, size, time and content of everything below a folder."""
    return {
        (path.relative_to(folder).as_posix(), path.lstat().st_size, path.lstat().st_mtime_ns):
        hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
        for path in sorted(folder.rglob('*'))
    }  # fmt: skip


def harmful(app):
    """Put scans among the good ones that claim too much, unpack to too much or never end."""
    image = nifti(head())
    content = bytearray(image.to_bytes())
    content[42:48] = struct.pack('<3h', 32767, 32767, 32767)
    app.add('claims', pack(bytes(content)))
    block = gzip.compress(bytes(1 << 24), 1, mtime=0)
    app.add('bomb', pack(image.to_bytes()[:400]) + block * 32)
    pipe = app.raw / 'sub-pipe' / 'anat' / 'sub-pipe_T1w.nii.gz'
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    endless = app.raw / 'sub-endless' / 'anat' / 'sub-endless_T1w.nii.gz'
    endless.parent.mkdir(parents=True)
    endless.symlink_to('/dev/zero')
    absent = app.raw / 'sub-absent' / 'anat' / 'sub-absent_T1w.nii.gz'
    absent.parent.mkdir(parents=True)
    absent.symlink_to('../../.git/annex/objects/MD5E-s2.nii.gz')


@pytest.fixture(scope='module')
def strange(project_dir):
    """Run the app in such a place; return it, its exit code, its messages and more."""
    folder = Path(tempfile.mkdtemp(prefix='anatnet-test-'))
    place = folder / 'Bilder von Jürgen & 東京 (été)'
    place.mkdir()
    app = App(place, project_dir)
    app.add('good', pack(nifti(head()).to_bytes()))
    harmful(app)
    # As DataLad has it: the image is a link to an object that nobody may write.
    stored = place / 'annex objects' / 'MD5E-s1.nii.gz'
    stored.parent.mkdir()
    scan = app.raw / 'sub-good' / 'anat' / 'sub-good_T1w.nii.gz'
    scan.rename(stored)
    scan.symlink_to(os.path.relpath(stored, scan.parent))
    stored.chmod(0o444)
    for path in (app.raw, *app.raw.rglob('*')):
        if stat.S_ISDIR(path.lstat().st_mode):
            path.chmod(0o555)
    # The data set itself is reached through a link.
    app.raw = place / 'link to raw'
    app.raw.symlink_to('raw')
    (place / 'tmp').mkdir()
    before = snapshot(place / 'raw')
    clock = late_clock(folder)
    environment = {'HOME': '/nonexistent', 'TMPDIR': str(place / 'tmp')}
    if clock is not None:
        environment['LD_PRELOAD'] = str(clock)
    code, text = app.run('--modules', 'mask', env=environment, before=powerless())
    yield app, code, text, before, clock
    for path in (place / 'raw', *(place / 'raw').rglob('*')):
        if stat.S_ISDIR(path.lstat().st_mode):
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_good_scan_is_done_and_harmful_ones_are_named(strange):
    app, code, text, _, _ = strange
    assert code == 1, text
    assert '1 processed, 5 failed' in text, text
    assert 'Traceback' not in text
    assert app.state('good')['status'] == 'done'
    for subject, reason in (
        ('claims', 'voxels cannot be processed'), ('bomb', 'hold a signal'),
        ('pipe', 'a pipe or a device'), ('endless', 'a pipe or a device'),
        ('absent', 'the link points nowhere; fetch the data'),
    ):  # fmt: skip
        (line, _) = [line for line in text.splitlines() if f'sub-{subject}: failed:' in line]
        assert reason in line


def test_data_set_is_only_read(strange):
    app, _, _, before, _ = strange
    assert snapshot(app.raw.resolve()) == before


def test_results_lie_where_they_belong(strange):
    app, _, text, _, _ = strange
    assert app.temporary_files() == []
    mask = app.out / 'sub-good' / 'anat' / 'sub-good_desc-brain_mask.nii.gz'
    assert mask.is_file()
    assert str(app.out) in text
    assert sorted(path.name for path in app.folder.iterdir()) == [
        'annex objects', 'hold', 'link to raw', 'models', 'out', 'raw', 'tmp', 'work',
    ]  # fmt: skip


def test_clock_that_goes_on_is_no_reason_to_begin_again(strange):
    app, _, _, _, clock = strange
    if clock is None:
        pytest.skip('no compiler for a library that sets the clock back')
    (log,) = app.out.glob('logs/*_*')
    assert log.name.startswith(str((datetime.now() - timedelta(days=365 * YEARS)).year))
    code, text = app.run('--modules', 'mask', '--participant-label', 'good')
    assert code == 0, text
    assert '1 already done' in text
