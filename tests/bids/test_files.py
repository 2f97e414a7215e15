# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.files import (
    atomic_copy,
    atomic_open,
    atomic_save_nifti,
    atomic_write_text,
    remove_leftovers,
    write_if_different,
)


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / 'a' / 'b.txt'
    atomic_write_text(file, 'old')

    def write_half():
        with atomic_open(file) as stream:
            stream.write(b'half')
            raise RuntimeError('stop')

    with pytest.raises(RuntimeError, match='stop'):
        write_half()
    assert file.read_text() == 'old'
    assert list(file.parent.iterdir()) == [file]


def test_copy_compresses_to_the_same_bytes_every_time(tmp_path):
    source = tmp_path / 'image.nii'
    source.write_bytes(bytes(range(256)) * 5000)
    first = atomic_copy(source, tmp_path / 'a.nii.gz').read_bytes()
    time.sleep(1.1)  # a time in the gzip header would have seconds
    second = atomic_copy(source, tmp_path / 'b.nii.gz').read_bytes()
    assert first == second
    assert gzip.decompress(first) == source.read_bytes()
    plain = atomic_copy(source, tmp_path / 'c.nii')
    assert plain.read_bytes() == source.read_bytes()
    again = atomic_copy(tmp_path / 'a.nii.gz', tmp_path / 'd.nii.gz')
    assert again.read_bytes() == first


@pytest.mark.parametrize('name', ['x.nii', 'x.nii.gz'])
def test_nifti_comes_back(tmp_path, name):
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.diag([1.5, 2, 3, 1])
    path = atomic_save_nifti(nib.Nifti1Image(data, affine), tmp_path / name)
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_array_equal(image.affine, affine)


def test_a_right_file_is_not_written_again(tmp_path):
    file = tmp_path / 'x'
    assert write_if_different(file, 'a')
    before = file.stat().st_ino
    assert not write_if_different(file, 'a')
    assert file.stat().st_ino == before
    assert write_if_different(file, 'b')
    assert file.read_text() == 'b'


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path):
    finished = subprocess.Popen([sys.executable, '-c', ''])
    finished.wait()
    with atomic_open(tmp_path / 'probe') as stream:  # as this machine calls itself
        host = Path(stream.name).name.split('.')[2]
    dead = tmp_path / 'sub' / f'.x.nii.gz.{host}.{finished.pid}.0123abcd.part'
    alive = tmp_path / 'sub' / f'.x.nii.gz.{host}.{os.getpid()}.0123abcd.part'
    other = tmp_path / 'sub' / '.x.nii.gz.elsewhere.1.0123abcd.part'
    old = tmp_path / 'sub' / '.y.nii.gz.elsewhere.1.0123abcd.part'
    foreign = tmp_path / 'sub' / '.something.part'
    dead.parent.mkdir()
    for file in (dead, alive, other, old, foreign):
        file.touch()
    os.utime(old, (0, 0))
    assert set(remove_leftovers(tmp_path)) == {dead, old}
    assert alive.exists()
    assert other.exists()
    assert foreign.exists()


def test_leftovers_of_a_process_that_ended_and_was_not_waited_for_go(tmp_path):
    ended = subprocess.Popen([sys.executable, '-c', ''], stdout=subprocess.PIPE)
    ended.stdout.read()  # it is through, and a zombie until somebody asks for its exit code
    time.sleep(0.2)
    with atomic_open(tmp_path / 'probe') as stream:
        host = Path(stream.name).name.split('.')[2]
    left = tmp_path / f'.x.nii.gz.{host}.{ended.pid}.0123abcd.part'
    left.touch()
    assert remove_leftovers(tmp_path) == [left]
    ended.wait()


def test_leftovers_of_subfolders_stay_where_only_the_folder_is_asked(tmp_path):
    name = '.x.html.elsewhere.1.0123abcd.part'
    (tmp_path / 'sub').mkdir()
    for file in (tmp_path / name, tmp_path / 'sub' / name):
        file.touch()
        os.utime(file, (0, 0))
    assert remove_leftovers(tmp_path, recursive=False) == [tmp_path / name]
    assert remove_leftovers(tmp_path / 'missing') == []
