# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, read from the derivatives' TSV files and made ready to show."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_app.data import structures, tissues

ASYMMETRY_TO_NOTE = 20.0
"""Absolute asymmetry index (%) from which a structure is marked in the table."""

Row = Mapping[str, str]


def read_tsv(path: str | Path) -> list[dict[str, str]]:
    """Read a BIDS table: one dict per line, all values as text.

    Raises
    ------
    OSError, UnicodeDecodeError
        If the file cannot be read.
    """
    with Path(path).open(encoding='utf-8-sig', newline='') as stream:
        return [dict(row) for row in csv.DictReader(stream, delimiter='\t')]


def number(text: Any) -> float | None:
    """Read a number; ``None`` for ``n/a``, nothing, text and what is not finite."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def asymmetry_index(left: float | None, right: float | None) -> float | None:
    """Return ``200 (L - R) / (L + R)`` in percent: positive if the left side is larger."""
    if left is None or right is None or left + right <= 0:
        return None
    return 200.0 * (left - right) / (left + right)


def total_intracranial_volume(rows: Sequence[Row]) -> float | None:
    """Find the total intracranial volume (mm^3) in a tissue table."""
    for row in rows:
        name = (row.get('name') or '').lower().replace('-', ' ').replace('_', ' ')
        if name in ('tiv', 'etiv', 'icv') or 'intracranial' in name:
            return number(row.get('volume_mm3'))
    return None


def _name_of(row: Row) -> str:
    return row.get('name') or row.get('index') or '?'


def _readable(kind: str) -> str:
    words = kind.replace('-', ' ').capitalize()
    return {'Csf': 'Other CSF', 'Ventral dc': 'Ventral DC'}.get(words, words)


def tissue_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the tissues with volume (ml), share of the intracranial volume and a bar.

    Parameters
    ----------
    rows : sequence of mapping
        Lines of ``desc-tissue_morph.tsv``.

    Returns
    -------
    list of dict
        ``name``, ``ml``, ``percent``, ``probability``, ``color`` (empty for totals) and ``bar``
        (0 to 100, relative to the largest tissue).
    """
    by_number = {str(tissue.index): tissue for tissue in tissues()}
    long_names = {'GM': 'Grey matter', 'WM': 'White matter', 'CSF': 'Cerebrospinal fluid'}
    tiv = total_intracranial_volume(rows)
    table = []
    for row in rows:
        volume = number(row.get('volume_mm3'))
        tissue = by_number.get(row.get('index') or '')
        is_total = tissue is None
        name = 'Intracranial volume' if _name_of(row) == 'TIV' else _name_of(row)
        table.append(
            {
                'name': name if is_total else long_names.get(tissue.name, tissue.name),
                'ml': None if volume is None else volume / 1000,
                'percent': 100 * volume / tiv if volume is not None and tiv else None,
                'probability': number(row.get('mean_probability')),
                'color': '' if is_total else tissue.color,
            }
        )
    largest = max((r['ml'] for r in table if r['color'] and r['ml']), default=0)
    for row in table:
        row['bar'] = 100 * row['ml'] / largest if row['color'] and row['ml'] and largest else None
    return table


def structure_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the structures, one line for both sides, with asymmetry index and bars.

    Parameters
    ----------
    rows : sequence of mapping
        Lines of ``desc-wholebrain_morph.tsv``.

    Returns
    -------
    list of dict
        ``name``, ``core`` (whether it counts to the 25 structures), ``left``, ``right`` or
        ``middle`` (each a dict with ``index``, ``color``, ``ml``, ``probability``, ``bar``; or
        ``None``), ``asymmetry`` (%), ``marked`` and ``group`` (``gm``, ``wm``, ``csf``). Bars are
        on a square-root scale (0 to 100), so that small structures stay visible.
    """
    by_number = {str(structure.index): structure for structure in structures()}
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        structure = by_number.get(row.get('index') or '')
        volume = number(row.get('volume_mm3'))
        cell = {
            'index': row.get('index', ''),
            'color': structure.color if structure else '#808080',
            'ml': None if volume is None else volume / 1000,
            'probability': number(row.get('mean_probability')),
        }
        kind = structure.kind if structure else _name_of(row)
        entry = table.setdefault(
            kind,
            {
                'name': _readable(kind) if structure else _name_of(row),
                'core': bool(structure and structure.core),
                'group': structure.tissue.lower() if structure else '',
                'left': None,
                'right': None,
                'middle': None,
            },
        )
        entry[(structure.side if structure else '') or 'middle'] = cell
    cells = [e[s] for e in table.values() for s in ('left', 'right', 'middle') if e[s]]
    largest = max((cell['ml'] for cell in cells if cell['ml']), default=0)
    for cell in cells:
        cell['bar'] = 100 * math.sqrt(max(cell['ml'], 0) / largest) if cell['ml'] else 0
    for entry in table.values():
        left, right = entry['left'], entry['right']
        index = asymmetry_index(left and left['ml'], right and right['ml'])
        entry['asymmetry'] = index
        entry['marked'] = index is not None and abs(index) >= ASYMMETRY_TO_NOTE
    order = {'gm': 0, 'wm': 1, 'csf': 2}
    return sorted(table.values(), key=lambda e: (not e['core'], order.get(e['group'], 3)))


def region_table(rows: Sequence[Row], tiv: float | None = None) -> list[dict[str, Any]]:
    """Return the regions of an atlas with their tissue volumes.

    Parameters
    ----------
    rows : sequence of mapping
        Lines of ``desc-regions_morph.tsv``, see
        :func:`bids_app.morphometry.regions.regional_volumes`.
    tiv : float, optional
        Total intracranial volume in mm^3.

    Returns
    -------
    list of dict
        ``index``, ``name``, ``gm``, ``wm``, ``csf`` (mm^3 or ``None``), ``percent`` (all three
        together, of the intracranial volume) and ``flag``: why the region has no volume
        (``absent``, ``not covered``, ``no tissue``), empty for all others.
    """
    table = []
    for row in rows:
        gm, wm, csf = (number(row.get(f'{tissue}_mm3')) for tissue in ('gm', 'wm', 'csf'))
        total = sum(volume for volume in (gm, wm, csf) if volume is not None)
        flag = (row.get('flag') or '').strip().replace('n/a', '')
        table.append(
            {
                'index': row.get('index') or '',
                'name': _name_of(row),
                'gm': gm,
                'wm': wm,
                'csf': csf,
                'percent': 100 * total / tiv if tiv else None,
                'flag': flag or ('no tissue' if total <= 0 else ''),
            }
        )
    return table
