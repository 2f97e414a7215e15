# SPDX-License-Identifier: Apache-2.0
"""Files that lie about themselves: one clear line, and hardly more memory than an honest file."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.check import content_problem
from bids_app.bids.files import read_json, read_text
from bids_app.cli import main
from bids_app.errors import ImageError, UsageError
from bids_app.group.phenotypes import read_phenotype
from bids_app.images.scans import load_scan, open_image, read_voxels
from bids_app.inference.precomputed import read_on_grid
from bids_app.morphometry.regions import read_atlas
from bids_app.resume import file_record
from bids_app.workflows.execution import read_plugin_file
from bids_app.workflows.reporting import participant

MOST_MB = 400
GIGABYTE = 1 << 30


def header(shape=(32, 32, 32), bits=32, code=16, offset=352, extension=b'\0\0\0\0'):
    """Return a NIfTI-1 header that claims what it is told to, and its extensions."""
    made = nib.Nifti1Header()
    size = 6.0 if max(shape) < 100 else 0.5  # mm
    made.set_sform(np.diag([size, size, size, 1]), 1)
    raw = bytearray(made.binaryblock)
    raw[40:56] = struct.pack('<8h', len(shape), *shape, *[1] * (7 - len(shape)))
    raw[70:74] = struct.pack('<2h', code, bits)
    raw[76:92] = struct.pack('<4f', 1, size, size, size)
    raw[108:112] = struct.pack('<f', offset)
    raw[344:348] = b'n+1\0'
    return bytes(raw) + extension


def header2(shape, offset=544):
    """Return a NIfTI-2 header, whose axes may be as long as one likes."""
    made = nib.Nifti2Header()
    made.set_data_shape(shape)
    made.set_data_dtype(np.float64)
    made['vox_offset'] = offset
    made['magic'] = b'n+2\0'
    return made.binaryblock + b'\0\0\0\0'


def write_zeros(path, start, megabytes):
    """Write a compressed file that unpacks to many zeros; it is small itself."""
    block = bytes(1 << 20)
    with gzip.open(path, 'wb', compresslevel=1) as stream:
        stream.write(start)
        for _ in range(megabytes):
            stream.write(block)
    return path


def sparse(path, size=GIGABYTE, start=b'', end=b''):
    """Make a file of a gigabyte that takes no room on the disk."""
    with open(path, 'wb') as stream:
        stream.write(start)
        stream.seek(size - len(end))
        stream.write(end)
        stream.truncate(size)
    return path


SMALL = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
os.write(int(sys.argv[1]), f'{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}'.encode())
"""
"""A new process counts the memory of the one that it was forked from: this one is small."""


def run(code, *arguments, timeout=120):
    """Run Python code in a process of its own: exit code, messages and peak memory in MB."""
    measured, writing = os.pipe()
    with os.fdopen(measured) as stream:
        finished = subprocess.run(
            [sys.executable, '-S', '-c', SMALL, str(writing), sys.executable, '-c', code,
             *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2], pass_fds=(writing,), timeout=timeout, check=True,
            errors='replace',
        )  # fmt: skip
        os.close(writing)
        returncode, kilobytes = map(int, stream.read().split())
    return returncode, finished.stdout, kilobytes // 1024


READ = """
import sys
from pathlib import Path
from bids_app.errors import ImageError
from bids_app.images.scans import load_scan
try:
    scan = load_scan(Path(sys.argv[1]))
except ImageError as error:
    print(error)
    sys.exit(3)
"""


def test_honest_file_is_read_within_the_limit(tmp_path):
    data = np.random.default_rng(0).random((32, 32, 32), np.float32)
    path = tmp_path / 'honest.nii.gz'
    path.write_bytes(gzip.compress(header() + data.tobytes('F')))
    np.testing.assert_array_equal(load_scan(path).data, data)
    code, text, peak = run(READ, path)
    assert (code, text) == (0, '')
    assert peak < MOST_MB


@pytest.mark.parametrize(
    ('start', 'reason'),
    [
        (header((32767, 32767, 32767)), 'voxels cannot be processed'),
        (header2((100_000, 100_000, 100_000)), 'voxels cannot be processed'),  # 8 petabytes
        (header2((10**6,) * 3), 'voxels cannot be processed'),
        (header((900, 900, 900), 64, 64), 'cut off'),  # 5.8 GB that would be allowed
        (header((32, 32, 32, 32767, 32767, 32767)), 'cut off'),
        (header2((32, 32, 32, 2**62, 4)), 'damaged|cut off|cannot be processed'),
        (header((-5, 32, 32)), 'damaged|not a volume'),
        (header(offset=1e15), 'damaged'),
        (header(offset=float('nan')), 'damaged'),
        (header(offset=-1e9), 'damaged'),
        (header(offset=1e6, extension=b'\1\0\0\0' + struct.pack('<2i', -64, 4)), 'damaged'),
        (header(offset=1e6, extension=b'\1\0\0\0' + struct.pack('<2i', 0, 4)), 'damaged'),
        (header(offset=1e6, extension=b'\1\0\0\0' + struct.pack('<2i', 2**31 - 1, 4)), 'damaged'),
    ],
)
@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
def test_header_that_claims_what_is_not_there(tmp_path, start, reason, ending):
    path = tmp_path / f'scan{ending}'
    content = start + bytes(5000)
    path.write_bytes(gzip.compress(content) if ending == '.nii.gz' else content)
    with pytest.raises(ImageError, match=reason) as caught:
        load_scan(path)
    assert '\n' not in str(caught.value)
    with pytest.raises(ImageError):
        read_on_grid(path, (32, 32, 32), np.eye(4))


@pytest.mark.parametrize(
    ('start', 'reason'),
    [
        (header2((100_000, 100_000, 100_000)), 'voxels cannot be processed'),  # 8 petabytes
        (header2((900, 900, 900)), 'cut off'),
        (header((32, 32, 32, 32767, 32767, 32767)), 'give one 3-D image'),
        (header(offset=1e15), 'damaged'),
    ],
)
@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
def test_atlas_that_claims_what_is_not_there(raw, start, reason, ending):
    path = raw.parent / f'labels{ending}'
    content = start + bytes(5000)
    path.write_bytes(gzip.compress(content) if ending == '.nii.gz' else content)
    with pytest.raises(UsageError, match=reason):
        read_atlas(path)
    if reason == 'voxels cannot be processed':
        code, text, peak = app(raw, '--dry-run', '--atlas', path)
        assert code == 2
        assert len(text.splitlines()) == 1
        assert f'--atlas {path}: ' in text
        assert peak < MOST_MB


@pytest.mark.parametrize(
    ('start', 'code'),
    [
        (header(), 3),  # more behind the voxels, which are zeros
        (header(offset=float(1 << 29)), 3),
        (header(offset=1e6, extension=b'\1\0\0\0' + struct.pack('<2i', -64, 4)), 3),
    ],
)
def test_small_file_that_unpacks_to_a_large_one(tmp_path, start, code):
    path = write_zeros(tmp_path / 'bomb.nii.gz', start, 700)
    assert path.stat().st_size < 10e6
    found, text, peak = run(READ, path)
    assert found == code
    assert len(text.splitlines()) == 1
    assert peak < MOST_MB, text


def test_freesurfer_image_that_is_not_there(tmp_path):
    made = nib.MGHImage(np.ones((32, 32, 32), np.float32), np.diag([6.0, 6, 6, 1]))
    content = bytearray(made.to_bytes())
    content[4:16] = struct.pack('>3i', 900, 900, 900)
    path = tmp_path / 'scan.mgz'
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(ImageError, match='cut off'):
        read_voxels(open_image(path), path, [])


def test_pipes_and_devices_are_not_read(tmp_path):
    pipe = tmp_path / 'sub-01_T1w.nii.gz'
    os.mkfifo(pipe)
    link = tmp_path / 'sub-02_T1w.nii.gz'
    link.symlink_to('/dev/zero')
    for path in (pipe, link):
        with pytest.raises(ImageError, match='a pipe or a device'):
            open_image(path)
        assert file_record(path)['sha256'] is None
        assert content_problem(path) == 'a folder, a pipe or a device'
        with pytest.raises(ValueError, match='not a regular file'):
            read_text(path)


def test_json_is_read_up_to_a_limit(tmp_path):
    file = tmp_path / 'x.json'
    file.write_text('{"a": [1]}')
    assert read_json(file) == {'a': [1]}
    with pytest.raises(ValueError, match=r'0\.0 MB, at most 0\.0 MB'):
        read_json(file, limit=9)
    assert read_json(file, limit=10) == {'a': [1]}
    for text in ('{', '[' * 100_000, '1' * 100_000):
        file.write_text(text)
        with pytest.raises(ValueError):  # noqa: PT011
            read_json(file)
    file.write_bytes(b'"\xff"')
    with pytest.raises(ValueError, match='utf-8'):
        read_json(file)


COMMAND = 'import sys; from bids_app.cli import main; sys.exit(main(sys.argv[1:]))'


def app(raw, *options):
    return run(
        COMMAND, raw, raw.parent / 'out', 'participant', '-w', raw.parent / 'work', *options
    )


@pytest.fixture
def raw(make_bids):
    return make_bids(['sub-01/anat/sub-01_T1w.nii.gz'])


@pytest.mark.parametrize('options', [(), ('--skip-bids-validation',)])
def test_description_of_a_gigabyte(raw, options):
    sparse(raw / 'dataset_description.json', start=b'{"Name": "', end=b'"}')
    code, text, peak = app(raw, '--dry-run', *options)
    assert code == 16
    assert 'dataset_description.json' in text
    assert '1,073.7 MB' in text
    assert len(text.splitlines()) == 1
    assert peak < MOST_MB


@pytest.mark.parametrize('option', ['--bids-filter-file', '--config-file'])
def test_option_that_names_a_file_of_a_gigabyte(raw, option):
    file = sparse(raw.parent / 'given', start=b'{"t1w": "')
    code, text, peak = app(raw, option, file)
    assert code == 2
    assert len(text.splitlines()) == 1
    assert 'given' in text
    assert '1,073.7 MB' in text
    assert peak < MOST_MB


def test_large_files_of_the_data_set_are_left_alone(raw):
    for name in ('participants.tsv', 'participants.json', 'sub-01/anat/sub-01_T1w.json', 'x.bval'):
        sparse(raw / name, start=b'participant_id\t')
    code, text, peak = app(raw, '--dry-run')
    assert code == 0, text
    assert peak < MOST_MB


def test_tables_of_a_gigabyte_are_a_warning(raw, caplog):
    table = sparse(raw / 'participants.tsv', start=b'participant_id\n')
    assert read_phenotype(table) == []
    assert 'participants.tsv: it has 1,073.7 MB' in caplog.text
    assert participant(raw, '01') == {}


@pytest.mark.parametrize(
    'content', [b'\xff\xfe', b'nprocs = ', b'[' * 50_000, b'nprocs = 1e400', b'nprocs = []']
)
def test_configuration_that_is_none(raw, content, capsys):
    file = raw.parent / 'c.toml'
    file.write_bytes(content)
    assert main([str(raw), 'out', 'participant', '--config-file', str(file)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    'content',
    [
        b'plugin: [', b'\xff\xfe\x00', b'[' * 50_000, b'plugin: Nothing', b'{' + b'a: ' * 100,
        b'plugin: !!python/object/apply:os.system ["touch owned"]',
    ],
)  # fmt: skip
def test_plugin_file_runs_no_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'p.yml'
    file.write_bytes(content)
    with pytest.raises(UsageError, match='plugin file') as caught:
        read_plugin_file(file)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path('owned').exists()


def test_strange_names_neither_leave_the_folder_nor_write_control_characters(make_bids):
    names = ['01', '..', 'a b', '$(touch owned)', '<b>', 'x\x1b[31m', 'new\nline', 'ü', 'a_ses-1']
    files = [f'sub-{name}/anat/sub-{name}_T1w.nii.gz' for name in names]
    files.append('sub-02/ses-../anat/sub-02_ses-.._T1w.nii.gz')
    files.append('sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz')
    raw = make_bids(files)
    os.mkdir(os.fsencode(raw) + b'/sub-\xff')
    code, text, _ = app(raw, '--dry-run')
    assert code == 0, text
    assert '\x1b' not in text
    assert 'Traceback' not in text
    assert '2 to process' in text.splitlines()[-1]
    assert text.count('not a label of letters and digits') >= len(names)
    assert json.loads((raw / 'dataset_description.json').read_text())['Name'] == 'test'
