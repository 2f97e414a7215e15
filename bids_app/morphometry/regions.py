# SPDX-License-Identifier: Apache-2.0
"""Tissue volumes in the regions of an atlas, measured in the space of the scan."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_app.bids.files import MAX_TABLE_BYTES, read_text
from bids_app.errors import ImageError, UsageError
from bids_app.images.grids import slab
from bids_app.images.scans import open_image, read_grid, read_voxels
from bids_app.registration.normalisation import Normalisation
from bids_app.registration.warp import to_native

from .volumes import voxel_volume

if TYPE_CHECKING:
    import pandas as pd

TISSUES = ('gm', 'wm', 'csf')
ABSENT = 'absent'
NOT_COVERED = 'not covered'

_VALUE_COLUMNS = ('index', 'value', 'id', 'number', 'label')
_NAME_COLUMNS = ('name', 'label', 'roi', 'region', 'structure')


@dataclass(frozen=True)
class Atlas:
    """An atlas in the world of a template.

    Attributes
    ----------
    name : str
        Letters and digits, for the entity ``atlas-<name>``.
    path : Path
        The 3-D label image.
    names : dict
        Name of every region by its label value, in the order of the values. It holds what the
        table lists and what the image has.
    """

    name: str
    path: Path
    names: dict[int, str]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels, int32 of shape (x, y, z), and the voxel-to-world matrix in mm."""
        return _read_labels(self.path)


def read_atlas(text: str | Path) -> Atlas:
    """Read what a user gives as atlas.

    Parameters
    ----------
    text : str or Path
        ``FILE.nii.gz`` or ``FILE.nii.gz:TABLE.tsv``. The table has a column with label values
        (``index``, ``value``, ``id``, ``number`` or ``label``) and one with names (``name``,
        ``label``, ``roi``, ``region`` or ``structure``), in any order of rows. Regions without a
        name are called ``region-<value>``. The value 0 is background.

    Returns
    -------
    Atlas

    Raises
    ------
    UsageError
        If a file is missing or unreadable, the image is no 3-D image of whole numbers from 0, or
        the table lacks a column or gives a value twice.
    """
    image, table = _split(str(text))
    labels, _ = _read_labels(image)
    named = _read_names(table) if table else {}
    present = [int(value) for value in np.unique(labels) if value]
    if not present:
        raise UsageError(f'--atlas {image}: the image holds no label; give an atlas with regions')
    if named and not set(named) & set(present):
        raise UsageError(
            f'--atlas {image}: none of its values is in {table}; give the table of this atlas'
        )
    values = sorted({*named, *present})
    names = {value: named.get(value, f'region-{value}') for value in values}
    return Atlas(atlas_label(image), image, names)


def read_atlases(texts: Sequence[str | Path]) -> tuple[Atlas, ...]:
    """Read several atlases, whose names have to differ because their tables bear them.

    Raises
    ------
    UsageError
        As :func:`read_atlas`, and if two atlases have one name.
    """
    atlases: dict[str, Atlas] = {}
    for text in texts:
        atlas = read_atlas(text)
        if atlas.name in atlases:
            raise UsageError(
                f'--atlas {atlas.path}: its tables would have the same name (atlas-{atlas.name}) '
                f'as those of {atlases[atlas.name].path}; rename one of the files'
            )
        atlases[atlas.name] = atlas
    return tuple(atlases.values())


def regional_volumes(
    atlas: Atlas,
    normalisation: Normalisation,
    tissues: Mapping[str, np.ndarray],
    native_affine: np.ndarray,
    *,
    tiv: float | None = None,
) -> pd.DataFrame:
    """Measure the tissues in every region of an atlas.

    The atlas is brought to the grid of the scan (nearest neighbour); the probabilities of the
    scan, which stay as they are, are summed over the voxels of each region. Everything is joined
    by label value.

    Parameters
    ----------
    atlas : Atlas
        In the world of the template of `normalisation`.
    normalisation : Normalisation
    tissues : mapping of ndarray, shape (x, y, z)
        ``gm``, ``wm`` and ``csf``: probabilities on the grid of the scan, in any axis order.
    native_affine : array-like, shape (4, 4)
        Voxel-to-world matrix of the scan, mm, RAS+.
    tiv : float, optional
        Total intracranial volume, mm^3.

    Returns
    -------
    pandas.DataFrame
        One row per region in the order of the label values: ``index``, ``name``, ``gm_mm3``,
        ``wm_mm3``, ``csf_mm3``, ``size_mm3`` (all voxels of the region), with `tiv` also
        ``gm_fraction_of_tiv`` and so on, and ``flag``: ``absent`` if the image of the atlas does
        not have the region, ``not covered`` if it does but no voxel of the scan lies in it, else
        empty. Both have volumes of 0.

    Raises
    ------
    ValueError
        If the tissues differ in shape.
    """
    import pandas as pd

    shape = tissues[TISSUES[0]].shape
    if any(tissues[name].shape != shape for name in TISSUES):
        raise ValueError('the tissue maps must have one shape')
    labels, atlas_affine = atlas.load()
    values = np.array(list(atlas.names), dtype=np.int64)
    # Numbers 1, 2, ... instead of values: sums then need no more room than there are regions.
    numbers = np.searchsorted(values, labels) + 1
    numbers[labels == 0] = 0
    numbers = numbers.astype(np.int32)
    present = np.bincount(numbers.ravel(), minlength=len(values) + 1)[1:] > 0
    counts = np.zeros(len(values) + 1, dtype=np.int64)
    sums = {name: np.zeros(len(values) + 1) for name in TISSUES}
    # Plane by plane, so that only a part of the scan is in memory more than once.
    planes = max((1 << 22) // max(shape[1] * shape[2], 1), 1)
    for first in range(0, shape[0], planes):
        part, place = slab(shape, native_affine, first, first + planes)
        found = to_native(numbers, atlas_affine, normalisation, part, place, order='nearest')
        found = found.ravel()
        counts += np.bincount(found, minlength=len(counts))
        for name in TISSUES:
            weights = tissues[name][first : first + planes].ravel()
            sums[name] += np.bincount(found, weights, minlength=len(counts))
    size = voxel_volume(native_affine)
    table = pd.DataFrame({'index': values, 'name': [atlas.names[value] for value in values]})
    for name in TISSUES:
        table[f'{name}_mm3'] = sums[name][1:] * size
    table['size_mm3'] = counts[1:] * size
    if tiv:
        for name in TISSUES:
            table[f'{name}_fraction_of_tiv'] = table[f'{name}_mm3'] / tiv
    table['flag'] = np.where(present, np.where(counts[1:] > 0, '', NOT_COVERED), ABSENT)
    return table


REGION_COLUMNS = {
    'index': {'Description': 'Value in the image of the atlas'},
    'name': {'Description': 'Region'},
    **{
        f'{name}_mm3': {
            'Description': f'Sum of {name.upper()} probabilities in the region times voxel volume',
            'Units': 'mm^3',
        }
        for name in TISSUES
    },
    'size_mm3': {'Description': 'Volume of the region in the space of the scan', 'Units': 'mm^3'},
    **{
        f'{name}_fraction_of_tiv': {
            'Description': f'{name.upper()} volume over total intracranial volume'
        }
        for name in TISSUES
    },
    'flag': {
        'Description': 'What is special about the region, n/a if nothing is',
        'Levels': {
            ABSENT: 'The table of the atlas lists the region, its image does not have it',
            NOT_COVERED: 'No voxel of the scan lies in the region',
        },
    },
}
"""What the columns of :func:`regional_volumes` mean, for the JSON sidecar of its table."""


def _split(text: str) -> tuple[Path, Path | None]:
    """Separate the image from the table and see that both are there."""
    match = re.fullmatch(r'(?P<image>.+?\.nii(\.gz)?)(:(?P<table>.+))?', text)
    if match is None:
        raise UsageError(f'--atlas {text}: give FILE.nii.gz or FILE.nii.gz:TABLE.tsv')
    image = Path(match['image'])
    table = Path(match['table']) if match['table'] else None
    for path in (image, table):
        if path is not None and not path.is_file():
            raise UsageError(f'--atlas {text}: there is no file {path}; check the path')
    return image, table


def atlas_label(path: Path) -> str:
    """Return a name of letters and digits: that of the entities atlas and desc, or the file's."""
    stem = re.sub(r'\.nii(\.gz)?$', '', path.name)
    entities = dict(part.split('-', 1) for part in stem.split('_') if '-' in part)
    if 'atlas' in entities:
        stem = entities['atlas'] + entities.get('desc', '')
    return re.sub('[^A-Za-z0-9]', '', stem) or 'atlas'


def _read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read labels and voxel-to-world matrix; nothing that the header claims is taken on trust."""
    try:
        image = open_image(path)
        if math.prod(image.shape[3:]) > 1:
            raise UsageError(
                f'--atlas {path}: the image has {len(image.shape)} dimensions; give one 3-D image '
                'of labels (a probabilistic atlas has to be turned into labels first)'
            )
        grid = read_grid(path)
        data = read_voxels(image, path, [], np.float64)
    except ImageError as error:
        raise UsageError(f'--atlas {error}') from error
    limit = np.iinfo(np.int32).max
    if not (np.isfinite(data).all() and data.min() >= 0 and data.max() <= limit):
        raise UsageError(f'--atlas {path}: labels must be whole numbers from 0 to {limit}')
    labels = data.astype(np.int32)
    if not np.array_equal(labels, data):
        raise UsageError(
            f'--atlas {path}: the values are not whole numbers; give an image of labels, not of '
            'probabilities or intensities'
        )
    return labels, grid.affine


def _read_names(path: Path) -> dict[int, str]:
    """Read the names of the regions by value."""
    try:
        text = read_text(path, MAX_TABLE_BYTES, encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        raise UsageError(f'--atlas {path}: cannot be read ({error}); give a TSV file') from error
    first_line = text.partition('\n')[0]
    delimiter = ',' if '\t' not in first_line and ',' in first_line else '\t'
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    rows = [row for row in reader if any(row.values())]
    columns = {name.strip().lower(): name for name in reader.fieldnames or () if name}
    value_column = next((columns[name] for name in _VALUE_COLUMNS if name in columns), None)
    name_column = next(
        (columns[one] for one in _NAME_COLUMNS if columns.get(one, value_column) != value_column),
        None,
    )
    if value_column is None or name_column is None or not rows:
        raise UsageError(
            f'--atlas {path}: the table needs a line of column names, with index and name, and '
            'one line per region'
        )
    names: dict[int, str] = {}
    for row in rows:
        value, name = (row[value_column] or '').strip(), (row[name_column] or '').strip()
        if not re.fullmatch(r'\d+(\.0+)?', value):
            raise UsageError(f'--atlas {path}: {value!r} in column {value_column} is no label')
        number = int(float(value))
        if number in names:
            raise UsageError(f'--atlas {path}: the value {number} is there twice; name it once')
        names[number] = name or f'region-{number}'
    names.pop(0, None)
    return names
