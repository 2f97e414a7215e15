# SPDX-License-Identifier: Apache-2.0
"""Disks that take no more: a clear line, nothing half-written, and the next call goes on."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess

import pytest
from small_app import App, head, nifti, pack

from bids_app.bids.files import atomic_write_text
from bids_app.errors import storage_error


@pytest.fixture
def app(tmp_path, project_dir):
    app = App(tmp_path, project_dir)
    app.add('01', pack(nifti(head()).to_bytes()))
    return app


@pytest.fixture
def small_disk():
    """Return a function that puts a disk of some kilobytes in the place of a folder."""
    if os.geteuid() != 0 or not shutil.which('mount'):
        pytest.skip('only the superuser may mount a small disk')
    mounted = []

    def mount(folder, kilobytes):
        again = folder in mounted
        folder.mkdir(exist_ok=True)
        options = f'{"remount," * again}size={kilobytes}k'
        command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f'cannot mount a small disk: {done.stderr.strip()}')
        if not again:
            mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def all_complete(folder):
    """Whether every file that has its name can be read to its end."""
    for path in folder.rglob('*'):
        if path.suffix == '.gz':
            gzip.decompress(path.read_bytes())
        elif path.suffix == '.json':
            json.loads(path.read_text())
    return not list(folder.rglob('.*.part'))


def test_full_output_then_a_report_that_cannot_be_written(app, small_disk):
    small_disk(app.out, 100)
    code, text = app.run()
    assert code == 1, text
    assert 'sub-01: failed: step publish: cannot write' in text
    assert 'No space left on device; check free space' in text
    assert 'Traceback' not in text
    assert 'Logging error' not in text
    assert all_complete(app.out)

    small_disk(app.out, 50_000)
    page = app.out / 'sub-01.html'
    page.mkdir()
    code, text = app.run()
    assert code == 1, text
    assert 'sub-01: the report was not written' in text
    page.rmdir()
    code, text = app.run()
    assert code == 0, text
    assert 'output missing: sub-01.html' in text
    assert page.is_file()
    assert app.state('01')['status'] == 'done'
    assert not list(app.work.glob('anatnet_*/*_wf'))


def test_output_without_room_for_a_log(app, small_disk):
    small_disk(app.out, 30)
    code, text = app.run()
    assert code == 1, text
    assert 'cannot write' in text
    assert 'Traceback' not in text
    assert all_complete(app.out)


def test_full_work_folder(app, small_disk):
    small_disk(app.work, 300)
    code, text = app.run()
    assert code == 1, text
    assert 'No space left on device: make room where --work-dir is' in text
    assert app.state('01')['status'] == 'failed'
    small_disk(app.work, 100_000)
    code, text = app.run('--modules', 'mask')
    assert code == 0, text
    assert all_complete(app.out)


def test_error_names_the_file_and_not_its_temporary_name(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left') as caught:
        atomic_write_text(tmp_path / 'x.json', '{}')
    assert caught.value.filename == str(tmp_path / 'x.json')
    assert list(tmp_path.iterdir()) == []
    error = storage_error(caught.value)
    assert str(error).startswith(f'cannot write {tmp_path / "x.json"}: No space left on device')
    assert error.exit_code == 1
    assert storage_error(PermissionError(errno.EACCES, 'Permission denied')) is None
