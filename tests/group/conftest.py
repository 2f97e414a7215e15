# SPDX-License-Identifier: Apache-2.0
"""Small derivatives, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bids_app.bids.files import atomic_write_text
from bids_app.bids.outputs import Outputs
from bids_app.resume import SessionState

Session = Callable[..., Outputs]

MEASURES = {'snr_total': 8.0, 'cjv': 0.5, 'icvs_gm': 0.45}


def _table(rows: list[tuple[Any, ...]]) -> str:
    return ''.join('\t'.join(map(str, row)) + '\n' for row in rows)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return an empty derivatives folder."""
    folder = tmp_path / 'out'
    folder.mkdir()
    return folder


@pytest.fixture
def add_session(out: Path) -> Session:
    """Return a function that writes the results of one session."""

    def add(
        subject: str,
        session: str | None = None,
        *,
        status: str = 'done',
        error: str | None = None,
        volumes: tuple[float, float, float] = (700e3, 500e3, 300e3),
        structures: Mapping[int, tuple[str, float]] | None = None,
        measures: Mapping[str, float] = MEASURES,
        verdict: tuple[str, str] = ('ok', 'n/a'),
        version: str = '0.1.0',
        run: dict[str, Any] | None = None,
        outputs: dict[str, int] | None = None,
    ) -> Outputs:
        place = Outputs(out, subject, session)
        if status == 'done':
            gm, wm, csf = volumes
            rows = [('index', 'name', 'volume_mm3'), (1, 'GM', gm), (2, 'WM', wm), (3, 'CSF', csf),
                    ('n/a', 'TIV', gm + wm + csf)]  # fmt: skip
            atomic_write_text(place.path('tissue_morph'), _table(rows))
            rows = [('index', 'name', 'volume_mm3')]
            rows += [(i, n, v) for i, (n, v) in (structures or {}).items()]
            atomic_write_text(place.path('wholebrain_morph'), _table(rows))
            rows = [(*measures, 'qc_status', 'qc_reasons'), (*measures.values(), *verdict)]
            atomic_write_text(place.path('qc_stats'), _table(rows))
            atomic_write_text(place.path('report'), '<html></html>')
        state = SessionState(
            status, version, {}, {'sloppy': False}, ['mask'], {'brain': 'abc'}, outputs or {},
            error, run or {},
        )  # fmt: skip
        atomic_write_text(place.state_file, state.to_json())
        return place

    return add
