# SPDX-License-Identifier: Apache-2.0
"""Volumes in mm^3 from probabilities, and the tables that hold them.

A volume is the sum of a class's probabilities times the volume of a voxel: partial volumes count
as far as they belong to the class, so that volumes do not depend on how the border happens to
fall on the voxel grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import structures, tissues

if TYPE_CHECKING:
    import pandas as pd

TIV = 'TIV'
MISSING = 'n/a'


def voxel_volume(affine: np.ndarray) -> float:
    """Return the volume of a voxel in mm^3, sheared axes included.

    Parameters
    ----------
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.

    Examples
    --------
    >>> voxel_volume(np.diag([-1.0, 2.0, 3.0, 1.0]))
    6.0
    """
    return round(abs(float(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3]))), 9)


def probability_volumes(probabilities: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the volume of every class.

    Parameters
    ----------
    probabilities : ndarray, shape (class, x, y, z)
        Values between 0 and 1.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.

    Returns
    -------
    ndarray of float64, shape (class,)
        mm^3.
    """
    sums = [float(channel.sum(dtype=np.float64)) for channel in np.asarray(probabilities)]
    return np.array(sums) * voxel_volume(affine)


def asymmetry_index(left: float, right: float) -> float:
    """Return the difference of the sides in percent of their mean.

    Parameters
    ----------
    left, right : float
        Volumes in the same unit.

    Returns
    -------
    float
        ``200 (L - R) / (L + R)``: positive if the left side is larger; NaN without volume.

    Examples
    --------
    >>> asymmetry_index(110.0, 90.0)
    20.0
    """
    total = left + right
    return 200.0 * (left - right) / total if total > 0 else math.nan


def total_intracranial_volume(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return the sum of GM, WM and CSF in mm^3.

    Parameters
    ----------
    rows : iterable of mapping
        One per tissue, with ``index`` and ``volume_mm3``.
    """
    known = {tissue.index for tissue in tissues()}
    return float(sum(row['volume_mm3'] for row in rows if row['index'] in known))


def tissue_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Build the table of tissues with the total intracranial volume as last line.

    Parameters
    ----------
    rows : iterable of mapping
        One per tissue, with ``index`` (1 GM, 2 WM, 3 CSF), ``volume_mm3`` and optionally
        ``mean_probability``.

    Returns
    -------
    pandas.DataFrame
        Columns ``index``, ``name``, ``volume_mm3``, ``fraction_of_tiv``, ``mean_probability``.
        The index of the total is missing.
    """
    import pandas as pd

    by_index = {int(row['index']): row for row in rows}
    tiv = total_intracranial_volume(by_index.values())
    lines = [
        _line(tissue.index, tissue.name, by_index.get(tissue.index, {}), tiv)
        for tissue in tissues()
    ]
    lines.append(_line(None, TIV, {'volume_mm3': tiv}, tiv))
    table = pd.DataFrame(lines)
    return table.astype({'index': 'Int64'})


def structure_table(rows: Iterable[Mapping[str, Any]], tiv: float | None = None) -> pd.DataFrame:
    """Build the table of structures.

    Parameters
    ----------
    rows : iterable of mapping
        One per structure, with ``index`` (FreeSurfer's number), ``volume_mm3`` and optionally
        ``mean_probability``.
    tiv : float, optional
        Total intracranial volume in mm^3.

    Returns
    -------
    pandas.DataFrame
        Columns ``index``, ``name``, ``volume_mm3``, ``fraction_of_tiv``, ``mean_probability``,
        ``side``, ``tissue`` and ``asymmetry_index`` (percent, see :func:`asymmetry_index`; the
        same on both lines of a pair, missing for structures of the midline). Structures without
        a row in `rows` are left out.
    """
    import pandas as pd

    by_index = {int(row['index']): row for row in rows}
    present = [structure for structure in structures() if structure.index in by_index]
    pairs: dict[str, dict[str, float]] = {}
    for structure in present:
        volume = float(by_index[structure.index]['volume_mm3'])
        pairs.setdefault(structure.kind, {})[structure.side] = volume
    lines = []
    for structure in present:
        line = _line(structure.index, structure.name, by_index[structure.index], tiv)
        pair = pairs[structure.kind]
        both = 'left' in pair and 'right' in pair
        line |= {
            'side': structure.side or MISSING,
            'tissue': structure.tissue,
            'asymmetry_index': asymmetry_index(pair['left'], pair['right']) if both else math.nan,
        }
        lines.append(line)
    return pd.DataFrame(lines)


def _line(
    index: int | None, name: str, row: Mapping[str, Any], tiv: float | None
) -> dict[str, Any]:
    volume = float(row.get('volume_mm3', math.nan))
    return {
        'index': index,
        'name': name,
        'volume_mm3': volume,
        'fraction_of_tiv': volume / tiv if tiv else math.nan,
        'mean_probability': float(row.get('mean_probability', math.nan)),
    }


TISSUE_COLUMNS = {
    'index': {'Description': 'Value in the tissue segmentation; n/a for the total'},
    'name': {'Description': 'Tissue, or TIV for the total intracranial volume (GM + WM + CSF)'},
    'volume_mm3': {'Description': 'Sum of probabilities times voxel volume', 'Units': 'mm^3'},
    'fraction_of_tiv': {'Description': 'Volume over total intracranial volume'},
    'mean_probability': {'Description': 'Mean probability over the voxels labelled with it'},
}
"""What the columns of :func:`tissue_table` mean, for its JSON sidecar."""

STRUCTURE_COLUMNS = {
    **TISSUE_COLUMNS,
    'index': {'Description': "Value in the segmentation (FreeSurfer's number)"},
    'name': {'Description': "Structure (FreeSurfer's name)"},
    'side': {'Description': 'left, right, or n/a for structures of the midline'},
    'tissue': {'Description': 'Tissue that the structure counts as'},
    'asymmetry_index': {
        'Description': '200 (left - right) / (left + right); positive if the left is larger',
        'Units': '%',
    },
}
"""What the columns of :func:`structure_table` mean, for its JSON sidecar."""


def write_table(table: pd.DataFrame, path: Path | str) -> Path:
    """Write a BIDS table: tab-separated, ``n/a`` for what is missing, at once or not at all.

    Parameters
    ----------
    table : pandas.DataFrame
        Volumes (``*_mm3``) are written with one decimal, other numbers with up to six digits.
    path : Path or str
        The ``.tsv`` file.

    Returns
    -------
    Path
    """
    from bids_app.bids.files import atomic_write_text

    shown = table.astype(object)
    for name in table.columns:
        shown[name] = [_cell(value, name) for value in table[name].tolist()]
    return atomic_write_text(Path(path), shown.to_csv(sep='\t', index=False, lineterminator='\n'))


def _cell(value: Any, column: str) -> str:
    if value is None or str(value) in ('', 'nan', '<NA>'):
        return MISSING
    if isinstance(value, float):
        if not math.isfinite(value):
            return MISSING
        return f'{value:.1f}' if column.endswith('_mm3') else f'{value:.6g}'
    # A tab or line break inside a text would break the table.
    return ' '.join(str(value).split())
