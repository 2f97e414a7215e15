# SPDX-License-Identifier: Apache-2.0
"""The whole app on small heads in processes of its own, for tests.

A stand-in for the network (``tests/workflows/fake_site``) needs no torch; command line, BIDS,
Nipype with its workers, N4, tables, derivatives and report are real.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np

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


def pack(content):
    return gzip.compress(content, 1, mtime=0)


class App:
    """The app with a data set, a model folder and places to write."""

    def __init__(self, folder, project_dir):
        self.folder = folder
        self.project_dir = project_dir
        self.raw, self.out, self.work = folder / 'raw', folder / 'out', folder / 'work'
        self.work_option = ('-w', str(self.work))
        self.hold_dir = folder / 'hold'
        self.hold_dir.mkdir()
        for name in ('brain', 'symnet'):
            model = folder / 'models' / name
            model.mkdir(parents=True)
            card = dict.fromkeys(('version', 'description', 'licence'), 'x')
            sha256 = hashlib.sha256(name.encode()).hexdigest()
            card.update(name=name, stages={}, classes=[], sha256=sha256)
            (model / 'card.json').write_text(json.dumps(card))
            (model / 'weights.safetensors').write_bytes(name.encode())

    def add(self, subject, content, suffix='T1w'):
        path = self.raw / f'sub-{subject}' / 'anat' / f'sub-{subject}_{suffix}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        description = self.raw / 'dataset_description.json'
        description.write_text(json.dumps({'Name': 'heads', 'BIDSVersion': '1.8.0'}))
        return path

    def start(self, *options, env=None, before=(), **settings):
        """Start the app; without other wishes it writes nothing in template space.

        ``env`` are further variables, ``before`` is what comes before the command, ``settings``
        are those of ``subprocess.Popen``.
        """
        if '--output-spaces' not in options:
            options = (*options, '--output-spaces', 'T1w')
        command = [
            *before, sys.executable, str(self.project_dir / 'run.py'), str(self.raw),
            str(self.out), 'participant', *self.work_option,
            '--models-dir', str(self.folder / 'models'),
            '--device', 'cpu', '--nprocs', '2', '--omp-nthreads', '1', '--skip-bids-validation',
            '--sloppy', *options,
        ]  # fmt: skip
        environment = {
            **os.environ,
            'PYTHONPATH': str(self.project_dir / 'tests' / 'workflows' / 'fake_site'),
            'ANATNET_TEST_HOLD': str(self.hold_dir),
            **(env or {}),
        }
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, **settings,
        )  # fmt: skip

    def run(self, *options, timeout=120, **settings):
        process = self.start(*options, **settings)
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
        return list(self.out.rglob('.*.part'))


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
