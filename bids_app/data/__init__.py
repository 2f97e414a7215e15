# SPDX-License-Identifier: Apache-2.0
"""Label tables: the structures and tissues that the app writes, with their numbers and colours.

The numbers, names and most colours are FreeSurfer's (``FreeSurferColorLUT.txt``); the colours of
the right side are slightly shifted so that a swap of the sides is visible.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Structure:
    """One label of ``desc-wholebrain_dseg``.

    Attributes
    ----------
    index : int
        The voxel value, FreeSurfer's number.
    name : str
        FreeSurfer's name.
    color : str
        ``#RRGGBB``.
    tissue : str
        ``GM``, ``WM`` or ``CSF``: the tissue that the whole structure counts as.
    side : str
        ``left``, ``right`` or an empty string for structures of the midline.
    kind : str
        The structure without its side, for example ``caudate``.
    core : bool
        Whether it is one of the 25 structures of DeepNAT.
    """

    index: int
    name: str
    color: str
    tissue: str
    side: str
    kind: str
    core: bool


@dataclass(frozen=True)
class Tissue:
    """One label of the tissue ``dseg``: 1 GM, 2 WM, 3 CSF, with its colour as ``#RRGGBB``."""

    index: int
    name: str
    color: str


def _rows(name: str) -> list[dict[str, str]]:
    with (files(__name__) / name).open(encoding='utf-8', newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


@cache
def structures() -> tuple[Structure, ...]:
    """Return all structures in the order of their numbers."""
    return tuple(
        Structure(**{**row, 'index': int(row['index']), 'core': row['core'] == '1'})
        for row in _rows('structures.tsv')
    )


@cache
def tissues() -> tuple[Tissue, ...]:
    """Return the tissues in the order of their numbers."""
    return tuple(Tissue(**{**row, 'index': int(row['index'])}) for row in _rows('tissues.tsv'))


@cache
def kinds() -> tuple[str, ...]:
    """Return every kind of structure once, in the order of the table (both sides together)."""
    return tuple(dict.fromkeys(structure.kind for structure in structures()))
