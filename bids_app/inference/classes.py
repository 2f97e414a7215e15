# SPDX-License-Identifier: Apache-2.0
"""From the values of a generation label map to the classes that a network predicts.

A network predicts *kinds* of structure (``caudate``) and, apart, the side of the brain. This
halves the number of classes, makes a left-right flip an exact symmetry of the task, and leaves
one question, "which side?", to be answered once instead of in every class.
"""

from __future__ import annotations

import numpy as np

from bids_app.data import kinds, structures

CLASSES: tuple[str, ...] = ('background', *kinds())
"""What a network predicts: everything outside the brain, then every kind of structure."""

# Labels of the generation maps beyond the structures that the app writes, and what they count as.
# Lesions lie in white matter; the choroid plexus lies in the ventricles, and the manual protocols
# count it to them; vessels and the fifth ventricle are dark spots that behave like CSF.
_EXTRA_KINDS = {
    25: 'cerebral-white-matter', 57: 'cerebral-white-matter',
    30: 'csf', 62: 'csf', 72: 'csf', 85: 'ventral-dc',
    136: 'lateral-ventricle', 137: 'inferior-lateral-ventricle',
    163: 'lateral-ventricle', 164: 'inferior-lateral-ventricle',
}  # fmt: skip

_EXTRA_SIDES = {25: -1, 57: 1, 30: -1, 62: 1, 136: -1, 137: -1, 163: 1, 164: 1}

SIDE_VALUE = {'left': -1, 'right': 1, '': 0}


def class_table(size: int = 1024) -> np.ndarray:
    """Return the class index of every label value, as a look-up table.

    Parameters
    ----------
    size : int
        Length of the table; label values must be below it.

    Returns
    -------
    numpy.ndarray, shape (size,), uint8
        Index into :data:`CLASSES`; labels outside the brain give 0.
    """
    table = np.zeros(size, dtype=np.uint8)
    for structure in structures():
        table[structure.index] = CLASSES.index(structure.kind)
    for value, kind in _EXTRA_KINDS.items():
        table[value] = CLASSES.index(kind)
    return table


def side_table(size: int = 1024) -> np.ndarray:
    """Return -1 for every label value of the left side, 1 for the right, 0 otherwise (int8)."""
    table = np.zeros(size, dtype=np.int8)
    for structure in structures():
        table[structure.index] = SIDE_VALUE[structure.side]
    for value, side in _EXTRA_SIDES.items():
        table[value] = side
    return table


def sided_classes() -> np.ndarray:
    """Return which classes have a left and a right, shape (classes,), bool."""
    sided = {structure.kind for structure in structures() if structure.side}
    return np.array([name in sided for name in CLASSES])


def output_values() -> np.ndarray:
    """Return FreeSurfer's number of every class and side.

    Returns
    -------
    numpy.ndarray, shape (classes, 2), int16
        Columns left and right; classes of the midline have the same number in both.
    """
    values = np.zeros((len(CLASSES), 2), dtype=np.int16)
    for structure in structures():
        row = CLASSES.index(structure.kind)
        if structure.side in ('left', ''):
            values[row, 0] = structure.index
        if structure.side in ('right', ''):
            values[row, 1] = structure.index
    return values
