# SPDX-License-Identifier: Apache-2.0
"""The whole app in processes of its own, on small heads, with a network that needs no torch.

The stand-in of ``tests/workflows/fake_site`` takes the place of the network, everything else is
real: command line, BIDS, Nipype with its workers, N4, tables, derivatives and report.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

VOXEL_MM = 2.0


def head(seed=0, size=32):
    """Return a ball of three shells with noise."""
    random = np.random.default_rng(seed)
    grid = (np.indices((size,) * 3) - (size - 1) / 2) / size
    radius = np.sqrt((grid**2).sum(axis=0))
    shells = [radius < 0.22, radius < 0.33, radius < 0.4]
    image = np.select(shells, [300.0, 220.0, 150.0], 0.0)
    return np.clip(image + random.normal(0, 4, image.shape), 0, None).astype(np.float32)


def nifti(data, zooms=(VOXEL_MM,) * 3):
    affine = np.diag([*zooms[:3], 1.0])
    affine[:3, 3] = -(np.array(data.shape[:3]) - 1) / 2 * np.diag(affine)[:3]
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image


def zero_voxel_size():
    image = nifti(head())
    image.header['pixdim'][1:4] = 0
    image.header['sform_code'] = image.header['qform_code'] = 0
    content = bytearray(image.to_bytes())
    content[80:92] = bytes(12)  # nibabel would repair the field while writing
    content[252:256] = bytes(4)
    return bytes(content)


def pack(content):
    return gzip.compress(content, 1, mtime=0)


def with_nan():
    data = head(1)
    data[0, 0, :5] = np.nan, np.inf, -np.inf, np.nan, np.nan
    return data


def turned():
    """Return a head with permuted, flipped and oblique axes."""
    image = nifti(head(4))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt('PIL')
    )
    image = image.as_reoriented(turn)
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.15))
    affine = tilt @ image.affine
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image


def sform_of_another_space():
    image = nifti(head(5))
    image.set_sform(np.diag([1.25, 1.25, 1.25, 1]) @ image.affine, 4)
    return image


# Content of a scan, and what its line says; None for scans that are processed.
SCANS = {
    'good': (lambda: pack(nifti(head()).to_bytes()), None),
    'nan': (lambda: pack(nifti(with_nan()).to_bytes()), None),
    'volumes': (lambda: pack(nifti(np.stack([head(2), head(3)], -1)).to_bytes()), None),
    'turned': (lambda: pack(turned().to_bytes()), None),
    'othersform': (lambda: pack(sform_of_another_space().to_bytes()), None),
    'thick': (lambda: pack(nifti(head()[..., ::3], (2, 2, 6)).to_bytes()), None),
    'html': (lambda: b'<!DOCTYPE html><html><body>404</body></html>' * 20, 'web page'),
    'empty': (lambda: b'', 'is empty'),
    'cut': (lambda: pack(nifti(head()).to_bytes())[:-2000], 'cut off'),
    'constant': (lambda: pack(nifti(np.full((32,) * 3, 7.0)).to_bytes()), 'the same value'),
    'zero': (lambda: pack(nifti(np.zeros((32,) * 3)).to_bytes()), 'only zeros'),
    'allnan': (lambda: pack(nifti(np.full((32,) * 3, np.nan)).to_bytes()), 'no voxel'),
    'slice': (lambda: pack(nifti(head()[:, :, :1]).to_bytes()), 'not a volume'),
    'novoxel': (lambda: pack(zero_voxel_size()), 'voxel'),
    'huge': (lambda: pack(nifti(head(), (900.0,) * 3).to_bytes()), 'voxels of 900'),
    'nobrain': (lambda: pack(nifti(head() * 0.1 + 100).to_bytes()), 'no brain'),
}
GOOD = [name for name, (_, reason) in SCANS.items() if reason is None]
BAD = [name for name in SCANS if name not in GOOD]


class App:
    """The app with a data set, a model folder and places to write."""

    def __init__(self, folder, project_dir):
        self.folder = folder
        self.project_dir = project_dir
        self.raw, self.out, self.work = folder / 'raw', folder / 'out', folder / 'work'
        self.hold_dir = folder / 'hold'
        self.hold_dir.mkdir()
        model = folder / 'models' / 'brain'
        model.mkdir(parents=True)
        card = dict.fromkeys(('version', 'description', 'licence', 'sha256'), 'x')
        card.update(name='brain', stages={}, classes=[])
        (model / 'card.json').write_text(json.dumps(card))
        (model / 'weights.safetensors').write_bytes(b'weights')

    def add(self, subject, content, suffix='T1w'):
        path = self.raw / f'sub-{subject}' / 'anat' / f'sub-{subject}_{suffix}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        description = self.raw / 'dataset_description.json'
        description.write_text(json.dumps({'Name': 'heads', 'BIDSVersion': '1.8.0'}))
        return path

    def start(self, *options):
        command = [
            sys.executable, str(self.project_dir / 'run.py'), str(self.raw), str(self.out),
            'participant', '-w', str(self.work), '--models-dir', str(self.folder / 'models'),
            '--device', 'cpu', '--nprocs', '2', '--omp-nthreads', '1', '--skip-bids-validation',
            '--sloppy', *options,
        ]  # fmt: skip
        environment = {
            **os.environ,
            'PYTHONPATH': str(self.project_dir / 'tests' / 'workflows' / 'fake_site'),
            'ANATNET_TEST_HOLD': str(self.hold_dir),
        }
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, *options, timeout=120):
        process = self.start(*options)
        return self.finish(process, timeout)

    def finish(self, process, timeout=60):
        try:
            _, text = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, text

    def hold(self, step):
        """Make a step of the next run wait; return the file that will hold its process id."""
        (self.hold_dir / f'{step}.hold').touch()
        pid_file = self.hold_dir / f'{step}.pid'
        pid_file.unlink(missing_ok=True)
        return pid_file

    def release(self, step):
        (self.hold_dir / f'{step}.hold').unlink(missing_ok=True)

    def state(self, subject):
        return json.loads((self.out / f'sub-{subject}/log/sub-{subject}_state.json').read_text())

    def temporary_files(self):
        return [p for p in self.out.rglob('.*') if p.name != '.bidsignore']


def wait_for(path, seconds=40):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f'{path} did not appear')


def wait_until_gone(pid, seconds=15):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f'process {pid} is still there')


@pytest.fixture(scope='module')
def bad_data(tmp_path_factory, project_dir):
    """Run good and bad scans once; return the app, its exit code and its messages."""
    app = App(tmp_path_factory.mktemp('bad'), project_dir)
    for subject, (content, _) in SCANS.items():
        app.add(subject, content())
    app.add('flair', pack(nifti(head()).to_bytes()), 'FLAIR')
    code, text = app.run()
    return app, code, text


def test_exit_code_and_summary_tell_of_the_bad_scans(bad_data):
    app, code, text = bad_data
    assert code == 1, text
    assert f'{len(GOOD)} processed, 1 skipped, {len(BAD)} failed' in text
    assert 'Traceback' not in text


@pytest.mark.parametrize('subject', BAD)
def test_bad_scan_is_one_clear_line_a_crash_file_and_a_report(bad_data, subject):
    app, _, text = bad_data
    summary = [line for line in text.splitlines() if f'sub-{subject}: failed:' in line]
    assert len(summary) == 2  # when it happens, and at the end with the crash file
    assert SCANS[subject][1] in summary[0]
    (crash_file,) = (app.out / f'sub-{subject}' / 'log').glob('*/crash-*.txt')
    assert str(crash_file) in summary[1]
    assert 'Traceback' in crash_file.read_text()
    page = (app.out / f'sub-{subject}.html').read_text()
    assert SCANS[subject][1] in page
    assert app.state(subject)['status'] == 'failed'
    assert not (app.out / f'sub-{subject}' / 'anat').exists()


@pytest.mark.parametrize('subject', GOOD)
def test_other_scans_are_finished(bad_data, subject):
    app, _, text = bad_data
    state = app.state(subject)
    assert state['status'] == 'done', text
    for name, size in state['outputs'].items():
        file = app.out / name
        assert file.is_file()
        assert size in (-1, file.stat().st_size)
    assert len(state['outputs']) == 23  # 11 derivatives with their sidecars, and the report
    scan = nib.load(app.raw / f'sub-{subject}' / 'anat' / f'sub-{subject}_T1w.nii.gz')
    for file in (app.out / f'sub-{subject}' / 'anat').glob('*.nii.gz'):
        image = nib.load(file)
        assert image.shape == scan.shape[:3]
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        assert np.isfinite(image.get_fdata()).all()


def test_what_is_unusual_is_a_warning_and_in_the_report(bad_data):
    app, _, text = bad_data
    assert 'WARNING: sub-volumes: the file holds 2 volumes; the first was used' in text
    assert 'WARNING: sub-good: quality check: fail: ' in text  # 32 mm is no human brain
    assert '2 volumes; the first was used' in (app.out / 'sub-volumes.html').read_text()
    assert 'WARNING: sub-othersform: the sform has voxels of 2.5 x' in text
    assert 'WARNING: sub-turned: sform' not in text
    assert 'WARNING: sub-thick: slices are 6 mm thick' in text
    assert 'NaN or infinite' in (app.out / 'sub-nan.html').read_text()


def test_nothing_half_written_and_work_folders_removed(bad_data):
    app, _, _ = bad_data
    assert app.temporary_files() == []
    left = {folder.name for folder in app.work.glob('anatnet_*/*_wf')}
    assert left == {f'sub_{subject}_wf' for subject in BAD}


def test_session_without_t1w_is_named_with_the_reason(bad_data):
    _, _, text = bad_data
    assert any('sub-flair' in line and 'T1w' in line for line in text.splitlines())


def test_output_is_a_valid_derivative(bad_data):
    validator = shutil.which('bids-validator-deno') or str(
        Path(sys.executable).with_name('bids-validator-deno')
    )
    if not Path(validator).exists():
        pytest.skip('bids-validator-deno is not installed')
    app, _, _ = bad_data
    done = subprocess.run(
        [validator, '--format', 'json', '--datasetTypes', 'derivative', str(app.out)],
        capture_output=True, text=True,
    )  # fmt: skip
    issues = json.loads(done.stdout)['issues']['issues']
    assert [issue for issue in issues if issue['severity'] == 'error'] == []


def test_unchanged_sessions_are_not_done_again(bad_data):
    app, _, _ = bad_data
    before = {p: p.stat().st_mtime_ns for p in app.out.rglob('anat/*')}
    code, text = app.run('--skip-failed')
    assert code == 0, text
    assert f'{len(GOOD)} already done' in text
    assert f'{len(BAD)} failed before and left alone' in text
    assert before == {p: p.stat().st_mtime_ns for p in app.out.rglob('anat/*')}


def test_serial_plugin_repairs_a_lost_output(bad_data):
    app, _, _ = bad_data
    (app.folder / 'serial.yml').write_text('plugin: Linear\n')
    lost = app.out / 'sub-good' / 'anat' / 'sub-good_dseg.nii.gz'
    content = lost.read_bytes()
    lost.unlink()
    options = ('--participant-label', 'good', 'html', '--use-plugin', 'serial.yml')
    code, text = app.run(*options)
    assert code == 1
    assert 'output missing: sub-good/anat/sub-good_dseg.nii.gz' in text
    assert '1 processed, 1 failed' in text
    assert lost.read_bytes() == content


def test_reports_alone_can_be_made_again(bad_data):
    app, _, _ = bad_data
    page = app.out / 'sub-nan.html'
    page.unlink()
    code, text = app.run('--reports-only', '--participant-label', 'nan')
    assert code == 0, text
    assert 'NaN or infinite' in page.read_text()


@pytest.fixture
def two_heads(tmp_path, project_dir):
    app = App(tmp_path, project_dir)
    for number in (1, 2):
        app.add(f'0{number}', pack(nifti(head(number)).to_bytes()))
    return app


def test_killed_worker_ends_with_a_hint_and_the_next_call_goes_on(two_heads):
    app = two_heads
    pid_file = app.hold('mask')
    process = app.start('--modules', 'mask')
    worker = wait_for(pid_file)
    app.release('mask')
    os.kill(worker, signal.SIGKILL)
    code, text = app.finish(process)
    assert code == 1
    (failed,) = {
        line.split('failed:')[0].split()[-1] for line in text.splitlines() if 'failed:' in line
    }
    assert 'step mask: the worker process was killed' in text
    assert 'memory' in text
    assert '1 processed, 1 failed' in text
    code, text = app.run('--modules', 'mask')
    assert code == 0, text
    assert '1 processed, 1 already done' in text
    assert app.temporary_files() == []


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_stopped_run_leaves_nothing_and_the_next_call_goes_on(two_heads, number, code):
    app = two_heads
    pid_file = app.hold('mask')
    process = app.start('--modules', 'mask')
    worker = wait_for(pid_file)
    process.send_signal(number)
    assert app.finish(process, 20)[0] == code
    wait_until_gone(worker)
    assert not list(app.out.rglob('anat/*'))
    assert app.temporary_files() == []
    app.release('mask')
    if number == signal.SIGKILL:  # the others go on in the same way
        again, text = app.run('--modules', 'mask')
        assert again == 0, text
        assert '2 processed' in text


def test_two_runs_at_once_do_not_disturb_each_other(two_heads):
    app = two_heads
    pid_file = app.hold('mask')
    first = app.start('--modules', 'mask', '--participant-label', '01')
    wait_for(pid_file)
    second = app.start('--modules', 'mask')
    pid_file.unlink()
    wait_for(pid_file)
    app.release('mask')
    code, text = app.finish(second)
    assert code == 0, text
    assert 'sub-01: skipped: another process is working on it' in text
    assert '1 processed, 1 skipped' in text
    assert app.finish(first)[0] == 0
    assert [app.state(subject)['status'] for subject in ('01', '02')] == ['done', 'done']


def test_unwritable_output_is_one_clear_line(two_heads):
    app = two_heads
    app.out.write_text('a file where the folder should be')
    code, text = app.run()
    assert code != 0
    assert 'cannot write' in text
    assert 'Traceback' not in text
