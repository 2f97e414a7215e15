# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from bids_app import environment
from bids_app.errors import UsageError


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    """Give every test its own copy of the environment."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


def test_nobody_is_phoned(monkeypatch):
    monkeypatch.delenv('NO_ET', raising=False)
    environment.prepare_environment()
    assert os.environ['NO_ET'] == '1'


@pytest.mark.parametrize('home', ['/nowhere/at/all', '/proc/1'])
def test_a_home_that_cannot_be_written_is_replaced(monkeypatch, tmp_path, home):
    monkeypatch.setenv('HOME', home)
    monkeypatch.setenv('MPLCONFIGDIR', home)
    monkeypatch.setenv('XDG_CACHE_HOME', f'{home}/.cache')
    monkeypatch.setattr(environment.tempfile, 'gettempdir', lambda: str(tmp_path))
    monkeypatch.setattr(environment.os, 'access', lambda path, mode: 'proc' not in str(path))
    environment.prepare_environment()
    assert Path(os.environ['HOME']).is_relative_to(tmp_path)
    assert Path(os.environ['HOME']).is_dir()
    assert 'MPLCONFIGDIR' not in os.environ
    assert 'XDG_CACHE_HOME' not in os.environ


def test_a_user_without_a_home(monkeypatch, tmp_path):
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(environment.os.path, 'expanduser', lambda path: path)
    monkeypatch.setattr(environment.tempfile, 'gettempdir', lambda: str(tmp_path))
    environment.prepare_environment()
    assert Path(os.environ['HOME']).is_relative_to(tmp_path)


def test_a_good_home_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    environment.prepare_environment()
    assert os.environ['HOME'] == str(tmp_path)


def test_without_any_temporary_folder_the_error_says_what_to_do(monkeypatch):
    def none():
        raise FileNotFoundError

    monkeypatch.setattr(environment.tempfile, 'gettempdir', none)
    with pytest.raises(UsageError, match='--tmpfs /tmp'):
        environment.prepare_environment()


def test_plugins_for_clusters_find_a_name_of_the_user(monkeypatch):
    for name in ('LOGNAME', 'USER', 'LNAME', 'USERNAME'):
        monkeypatch.delenv(name, raising=False)
    environment.prepare_environment()
    assert os.environ['LOGNAME']
    monkeypatch.setenv('LOGNAME', '')
    monkeypatch.setattr(environment.getpass, 'getuser', lambda: {}['no such user'])
    environment.prepare_environment()
    assert os.environ['LOGNAME'] == f'user{os.getuid()}'
    monkeypatch.setenv('LOGNAME', 'me')
    environment.prepare_environment()
    assert os.environ['LOGNAME'] == 'me'


def test_threads():
    environment.limit_threads(3)
    assert {os.environ[name] for name in environment.THREAD_VARIABLES} == {'3'}


def test_work_folder_is_never_in_the_data_set(monkeypatch, tmp_path):
    raw = tmp_path / 'raw'
    (raw / 'code').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert environment.default_work_dir(raw) == tmp_path / 'work'
    monkeypatch.chdir(raw / 'code')
    assert not environment.default_work_dir(raw).is_relative_to(raw)


def test_folders_that_others_could_fill_are_not_used(monkeypatch, tmp_path):
    raw = tmp_path / 'raw'
    raw.mkdir()
    monkeypatch.chdir(raw)
    monkeypatch.setattr(environment.tempfile, 'tempdir', str(tmp_path))
    ours = tmp_path / f'anatnet-work-{os.getuid()}'
    assert environment.default_work_dir(raw) == ours
    assert ours.stat().st_mode & 0o777 == 0o700
    assert environment.default_work_dir(raw) == ours
    ours.chmod(0o777)
    assert environment.default_work_dir(raw) != ours
    ours.rmdir()
    ours.symlink_to(raw)
    found = environment.default_work_dir(raw)
    assert found.parent == tmp_path
    assert found != ours
    ours.unlink()
    ours.mkdir()
    monkeypatch.setattr(environment, '_uid', lambda: os.getuid() + 1)
    (tmp_path / f'anatnet-work-{os.getuid() + 1}').mkdir()
    assert environment.default_work_dir(raw).name != f'anatnet-work-{os.getuid() + 1}'


@pytest.mark.parametrize('version', [1, 2])
def test_limits_of_the_job_and_of_all_groups_above_it(tmp_path, version):
    own = tmp_path / 'cgroup'
    root = tmp_path / 'sys'
    path = 'slurm/uid_0/job_3'
    if version == 1:
        own.write_text(f'5:devices:/other\n4:cpu,memory:/{path}\n')
        base, name, controller = root / 'memory', 'memory.limit_in_bytes', 'memory'
    else:
        own.write_text(f'0::/{path}\n')
        base, name, controller = root, 'memory.max', ''
    (base / path).mkdir(parents=True)
    (base / path / name).write_text('4000\n')
    (base / 'slurm' / name).write_text('max\n')
    (base / name).write_text('9000\n')
    (tmp_path / name).write_text('1\n')  # outside
    found = environment.cgroup_values(name, controller, own=own, root=root)
    assert sorted(text.strip() for text in found) == ['4000', '9000', 'max']


def test_memory_is_at_most_that_of_the_machine(monkeypatch):
    import psutil

    total = psutil.virtual_memory().total
    assert 0 < environment.memory_bytes() <= total
    values = {'memory.max': ['max\n', '5000\n'], 'memory.limit_in_bytes': ['9223372036854771712']}
    monkeypatch.setattr(environment, 'cgroup_values', lambda name, controller='': values[name])
    assert environment.memory_bytes() == 5000


def test_cores_of_a_job(monkeypatch):
    monkeypatch.setattr(environment.os, 'sched_getaffinity', lambda pid: set(range(8)))
    monkeypatch.setattr(environment, 'cgroup_values', lambda name: ['max 100000', '250000 100000'])
    assert environment.default_nprocs() == 2


def test_at_least_one_core():
    assert 1 <= environment.default_nprocs() <= (os.cpu_count() or 1)
