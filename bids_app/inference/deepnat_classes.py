# SPDX-License-Identifier: Apache-2.0
"""The classes of DeepNAT's structures network.

Class 0 is background, 1 to 25 are the structures in the order of their FreeSurfer numbers, 26 is
what else belongs to the foreground (the published network has 27 outputs and names 25 structures;
what the other two are is not published).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from bids_app.data import Structure, structures


@cache
def deepnat_structures() -> tuple[Structure, ...]:
    """Return the 25 structures of DeepNAT in the order of their classes, 1 to 25."""
    return tuple(structure for structure in structures() if structure.core)


CLASSES: tuple[str, ...] = (
    'background',
    *(structure.name for structure in deepnat_structures()),
    'other-foreground',
)
"""What the structures network predicts, in order."""

OTHER = len(CLASSES) - 1
"""Class of the foreground that is none of the 25 structures."""


def class_values() -> np.ndarray:
    """Return FreeSurfer's number of every class, shape (27,), int16; 0 for the first and last."""
    return np.array([0, *(one.index for one in deepnat_structures()), 0], dtype=np.int16)


def mirrored_classes() -> np.ndarray:
    """Return the class of the other side for every class, shape (27,), int64."""
    place = {(one.kind, one.side): row for row, one in enumerate(deepnat_structures(), start=1)}
    other = {'left': 'right', 'right': 'left', '': ''}
    rows = [place[one.kind, other[one.side]] for one in deepnat_structures()]
    return np.array([0, *rows, OTHER], dtype=np.int64)
