# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: where the real data lie, and small BIDS trees made on the spot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

# One thread per test process: the images are small, and the machine may be shared.
for variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ.setdefault(variable, '1')
os.environ['NO_ET'] = '1'

PROJECT = Path(__file__).resolve().parents[1]


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
