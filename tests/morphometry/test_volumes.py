# SPDX-License-Identifier: Apache-2.0
"""Volumes of bodies whose volume is known, and the tables made of them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from bids_app.data import structures
from bids_app.morphometry.volumes import (
    STRUCTURE_COLUMNS,
    TISSUE_COLUMNS,
    asymmetry_index,
    probability_volumes,
    structure_table,
    tissue_table,
    voxel_volume,
    write_table,
)

TISSUES = [
    {'index': 1, 'volume_mm3': 600_000.0, 'mean_probability': 0.9},
    {'index': 2, 'volume_mm3': 500_000.0, 'mean_probability': 0.95},
    {'index': 3, 'volume_mm3': 300_000.0},
]


@pytest.mark.parametrize('zooms', [(1, 1, 1), (0.5, 1, 2), (2, 2, 2)])
def test_sphere(zooms):
    """The soft edge of a sphere of 20 mm makes its volume right on any grid."""
    shape = [int(50 / zoom) for zoom in zooms]
    indices = np.indices(shape)
    place = [(axis + 0.5) * zoom - 25.3 for axis, zoom in zip(indices, zooms, strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in place))
    inside = np.clip(0.5 + (20 - distance) / max(zooms), 0, 1)
    affine = np.diag([-zooms[0], zooms[1], zooms[2], 1.0])
    volumes = probability_volumes(np.stack([1 - inside, inside]).astype(np.float32), affine)
    assert volumes[1] == pytest.approx(4 / 3 * math.pi * 20**3, rel=0.005)
    assert volumes.sum() == pytest.approx(np.prod(shape) * np.prod(zooms))


def test_voxel_volume_of_rotated_and_sheared_axes():
    affine = np.diag([-0.5, 2, 3, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    assert voxel_volume(turn @ affine) == pytest.approx(3)
    affine[0, 1] = 1.0
    assert voxel_volume(affine) == pytest.approx(3)


def test_asymmetry():
    assert asymmetry_index(100, 100) == 0
    assert asymmetry_index(110, 90) == pytest.approx(20)
    assert asymmetry_index(90, 110) == pytest.approx(-20)
    assert math.isnan(asymmetry_index(0, 0))


def test_tissue_table(tmp_path):
    table = tissue_table(TISSUES)
    assert table['name'].tolist() == ['GM', 'WM', 'CSF', 'TIV']
    assert table['volume_mm3'].iloc[-1] == 1_400_000
    assert table['fraction_of_tiv'].iloc[0] == pytest.approx(6 / 14)
    assert list(table.columns) == list(TISSUE_COLUMNS)
    text = write_table(table, tmp_path / 't.tsv').read_text()
    assert text.splitlines()[0].split('\t') == list(TISSUE_COLUMNS)
    assert text.splitlines()[1] == '1\tGM\t600000.0\t0.428571\t0.9'
    assert text.splitlines()[-1] == 'n/a\tTIV\t1400000.0\t1\tn/a'
    assert [path.name for path in tmp_path.iterdir()] == ['t.tsv']


def test_structure_table(tmp_path):
    rows = [
        {'index': item.index, 'volume_mm3': 110.0 if item.side == 'left' else 90.0}
        for item in structures()
    ]
    table = structure_table(rows, tiv=1.4e6).set_index('index')
    assert len(table) == len(structures())
    assert table.loc[17, 'name'] == 'Left-Hippocampus'
    assert table.loc[17, 'asymmetry_index'] == table.loc[53, 'asymmetry_index'] == 20
    assert math.isnan(table.loc[16, 'asymmetry_index'])
    assert table.loc[17, 'fraction_of_tiv'] == pytest.approx(110 / 1.4e6)
    back = pd.read_csv(
        write_table(table.reset_index(), tmp_path / 's.tsv'), sep='\t', na_values='n/a'
    )
    assert list(back.columns) == list(STRUCTURE_COLUMNS)
    assert back['volume_mm3'].sum() == pytest.approx(table['volume_mm3'].sum(), abs=0.1)
    # Without one side there is nothing to compare.
    assert structure_table(rows[:1])['asymmetry_index'].isna().all()


def test_empty_segmentation(tmp_path):
    table = tissue_table([{'index': n, 'volume_mm3': 0.0} for n in (1, 2, 3)])
    text = write_table(table, tmp_path / 't.tsv').read_text()
    assert 'nan' not in text
    assert 'inf' not in text
