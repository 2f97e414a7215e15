# SPDX-License-Identifier: Apache-2.0
"""From the numbers of manual or automatic label maps to the classes of DeepNAT."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from bids_app.errors import UsageError
from bids_app.inference.deepnat_classes import OTHER, deepnat_structures
from bids_app.training.evaluate import IGNORE, read_mapping

UNKNOWN = 255
"""Class of voxels that take no part in training and scores."""

# White matter lesions with a side, in FreeSurfer's aseg. The corpus callosum (251 to 255) and
# lesions without a side (77) are white matter of which the labels do not say the side.
_FREESURFER_PARTS = {78: 2, 79: 41} | dict.fromkeys((77, 251, 252, 253, 254, 255), IGNORE)


def label_table(numbers: str) -> dict[int, int]:
    """Return the class of the label values of a numbering.

    Parameters
    ----------
    numbers : str
        ``freesurfer`` (aseg or aparc+aseg), ``neuromorphometrics`` (MICCAI 2012), or the path of
        a TSV file with the columns ``value`` (in the label maps) and ``index`` (FreeSurfer's
        number; -1 for voxels that take no part).

    Returns
    -------
    dict
        Value to class. Other values above 0 are the remaining foreground.

    Raises
    ------
    UsageError
        If the file is no such table, or none of the 25 structures is in it.
    """
    class_of = {one.index: row for row, one in enumerate(deepnat_structures(), start=1)}
    if numbers == 'freesurfer':
        cortex = {base + n: index for base, index in ((1000, 3), (2000, 42)) for n in range(1000)}
        mapping = {index: index for index in class_of} | _FREESURFER_PARTS | cortex
    elif numbers == 'neuromorphometrics':
        with as_file(files('bids_app.data') / 'mappings' / 'neuromorphometrics.tsv') as path:
            mapping = read_mapping(path)
        # The vermis belongs to the brain and to none of the structures, which all have a side.
        mapping = {value: index for value, index in mapping.items() if index != IGNORE}
    else:
        mapping = read_mapping(Path(numbers))
    class_of |= {IGNORE: UNKNOWN, 0: 0}
    table = {value: class_of.get(index, OTHER) for value, index in mapping.items()}
    if not set(table.values()) - {0, OTHER, UNKNOWN}:
        raise UsageError(f'{numbers}: none of the 25 structures of DeepNAT is in this table')
    return {0: 0} | table


def to_classes(labels: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """Translate a label map; see :func:`label_table`. Negative values are background.

    Parameters
    ----------
    labels : ndarray of int, shape (x, y, z)
        Values of a numbering.
    table : dict
        Value to class.

    Returns
    -------
    ndarray of uint8, shape (x, y, z)
    """
    labels = np.maximum(labels, 0)
    lookup = np.full(max(int(labels.max()), *table) + 1, OTHER, dtype=np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[labels]
