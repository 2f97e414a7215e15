# SPDX-License-Identifier: Apache-2.0
"""Many processes write the top-level files of one output folder at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from bids_app.bids.files import file_lock

# Writes the files of the root again and again, as a run of its own with derivatives of its own;
# all processes begin when a file says so.
WRITER = """
import sys, time
from pathlib import Path
from bids_app.bids.dataset import check_output_dir, write_dataset_files
from bids_app.bids.files import remove_leftovers
from bids_app.config import RunConfig
folder, number = Path(sys.argv[1]), sys.argv[2]
config = RunConfig(folder / 'raw', folder / 'out', derivatives={f'other{number}': folder})
(folder / f'ready{number}').touch()
while not (folder / 'go').exists():
    time.sleep(0.01)
for turn in range(25):
    check_output_dir(config.output_dir)
    write_dataset_files(config, methods=f'methods {number}', bibliography=f'works {number}')
    remove_leftovers(config.output_dir, recursive=False)
"""
WRITERS = 4


@pytest.fixture(scope='module')
def written(tmp_path_factory, project_dir):
    """Let processes write, and read what they write; returns the folder and what was read."""
    folder = tmp_path_factory.mktemp('shared')
    (folder / 'raw').mkdir()
    (folder / 'raw' / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1"}')
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', WRITER, str(folder), str(number)],
            env={**os.environ, 'PYTHONPATH': str(project_dir)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    deadline = time.monotonic() + 60
    while len(list(folder.glob('ready*'))) < WRITERS and time.monotonic() < deadline:
        time.sleep(0.02)
    (folder / 'go').touch()
    seen: dict[str, set[str]] = {}
    while any(process.poll() is None for process in processes):
        for name in ('dataset_description.json', 'README.md', '.bidsignore', 'dseg.tsv',
                     'desc-wholebrain_dseg.tsv', 'logs/CITATION.md'):  # fmt: skip
            file = folder / 'out' / name
            if file.exists():
                seen.setdefault(name, set()).add(file.read_text())
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
    return folder, seen


def test_no_reader_ever_sees_a_half_written_file(written):
    folder, seen = written
    for name in ('README.md', '.bidsignore', 'dseg.tsv', 'desc-wholebrain_dseg.tsv'):
        assert seen[name] == {(folder / 'out' / name).read_text()}
    for text in seen['dataset_description.json']:
        assert json.loads(text)['DatasetType'] == 'derivative'
    assert seen['logs/CITATION.md'] <= {f'methods {number}' for number in range(WRITERS)}


def test_data_sets_that_every_run_refers_to_stay_known(written):
    folder, _ = written
    links = json.loads((folder / 'out' / 'dataset_description.json').read_text())['DatasetLinks']
    assert set(links) == {'raw', *(f'other{number}' for number in range(WRITERS))}


def test_nothing_temporary_is_left(written):
    folder, _ = written
    left = {path.name for path in (folder / 'out').rglob('.*')}
    assert left == {'.bidsignore', '.lock'}


COUNTER = """
import sys, time
from pathlib import Path
from bids_app.bids.files import atomic_write_text, file_lock
file = Path(sys.argv[1])
for _ in range(40):
    with file_lock(file.with_name('.lock')) as held:
        assert held
        number = int(file.read_text())
        time.sleep(0.001)
        atomic_write_text(file, str(number + 1))
"""


def test_lock_lets_nobody_read_what_is_about_to_change(tmp_path, project_dir):
    file = tmp_path / 'number'
    file.write_text('0')
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', COUNTER, str(file)],
            env={**os.environ, 'PYTHONPATH': str(project_dir)},
        )
        for _ in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert file.read_text() == '120'


def test_lock_that_cannot_be_had_stops_nobody(tmp_path):
    with file_lock(tmp_path / 'lock') as first, file_lock(tmp_path / 'lock', 0.05) as second:
        assert (first, second) == (True, False)
    (tmp_path / 'file').touch()
    with file_lock(tmp_path / 'file' / 'lock') as held:
        assert not held


INDEXER = """
import sys, time
from pathlib import Path
from bids_app.bids.layout import open_layout
folder, number = Path(sys.argv[1]), int(sys.argv[2])
(folder / f'ready{number}').touch()
while len(list(folder.glob('ready*'))) < 3:
    time.sleep(0.01)
for turn in range(6):
    if number == turn % 3:  # as if a scan had come
        (folder / 'database' / 'anatnet' / 'files.json').unlink(missing_ok=True)
    layout = open_layout(folder / 'raw', ['01'] if turn % 2 else None, folder / 'database')
    names = {file.filename for file in layout.get(suffix='T1w', subject='01')}
    assert names == {'sub-01_T1w.nii.gz', 'sub-01_run-2_T1w.nii.gz'}, names
"""


def test_index_on_disk_may_be_made_by_several_processes_at_once(make_bids, project_dir):
    names = [f'sub-{n:02d}/anat/sub-{n:02d}{run}_T1w.nii.gz' for n in range(1, 9) for run in
             ('', '_run-2')]  # fmt: skip
    raw = make_bids(names)
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', INDEXER, str(raw.parent), str(number)],
            env={**os.environ, 'PYTHONPATH': str(project_dir)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert not list((raw.parent / 'database' / 'anatnet').glob('.new-*'))
