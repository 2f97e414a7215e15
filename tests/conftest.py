# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: where the real data lie, and small BIDS trees made on the spot."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bids_app.registration.normalisation import Normalisation

# One thread per test process: the images are small, and the machine may be shared.
for variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ.setdefault(variable, '1')
os.environ['NO_ET'] = '1'
# A job in the background ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / 'tests'))  # for small_app


@pytest.fixture(scope='session')
def project_dir() -> Path:
    """Root of the project."""
    return PROJECT


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Folder of the real data sets: ``ANATNET_DATA``, or ``../shared/data`` of the project."""
    folder = Path(os.environ.get('ANATNET_DATA') or PROJECT.parent / 'shared' / 'data')
    if not folder.is_dir():
        pytest.skip(f'no real data in {folder} (set ANATNET_DATA)')
    return folder


@pytest.fixture
def make_bids(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a BIDS tree of empty files.

    It takes paths relative to the root, or the content of files by their path.
    """

    def make(
        files: Iterable[str] | dict[str, str | bytes], name: str = 'raw', **description: str
    ) -> Path:
        root = tmp_path / name
        root.mkdir(parents=True, exist_ok=True)
        content = {'Name': 'test', 'BIDSVersion': '1.8.0', **description}
        (root / 'dataset_description.json').write_text(json.dumps(content))
        items = files if isinstance(files, dict) else dict.fromkeys(files, b'')
        for path, text in items.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode() if isinstance(text, str) else text)
        return root

    return make


@pytest.fixture(scope='session')
def normalisation() -> Normalisation:
    """Return a normalisation made of a known affine and a smooth random displacement.

    The displacement reaches 4 mm on a grid of 3 mm and falls to 0 at its border; the backward
    one is its inverse by fixed-point iteration, v(q) = -u(q + v(q)).
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter, map_coordinates

    from bids_app.registration.normalisation import Normalisation

    shape, spacing = (40, 48, 36), 3.0
    grid = np.array([[3.0, 0, 0, -58], [0, 3, 0, -70], [0, 0, 3, -50], [0, 0, 0, 1]])
    affine = np.array([[1.05, 0.1, -0.04, 4], [-0.12, 0.95, 0.08, -7], [0.05, -0.06, 1.1, 11],
                       [0, 0, 0, 1]])  # fmt: skip
    rng = np.random.default_rng(0)
    window = np.ones(shape)
    for axis, count in enumerate(shape):
        profile = np.sin(np.pi * np.linspace(0, 1, count)) ** 2
        window = window * np.moveaxis(profile[:, None, None], 0, axis)
    forward = np.stack([gaussian_filter(rng.standard_normal(shape), 6) * window for _ in range(3)])
    forward *= 4.0 / np.abs(forward).max()
    backward = np.zeros_like(forward)
    for _ in range(20):
        place = np.indices(shape) + backward / spacing
        backward = -np.stack([map_coordinates(one, place, order=1) for one in forward])
    return Normalisation(
        'test', affine, grid, forward.astype('f4'), backward.astype('f4'), 'refined'
    )
