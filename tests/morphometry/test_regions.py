# SPDX-License-Identifier: Apache-2.0
"""Volumes per region of an atlas, joined by value and never by order."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.morphometry.regions import (
    REGION_COLUMNS,
    read_atlas,
    read_atlases,
    regional_volumes,
)
from bids_app.registration.normalisation import Normalisation

GRID = np.array([[2.0, 0, 0, -40], [0, 2, 0, -40], [0, 0, 2, -40], [0, 0, 0, 1]])
SHAPE = (40, 40, 40)


@pytest.fixture
def image(tmp_path):
    """Return a function that writes an atlas of three boxes of 40 mm x 20 mm x 20 mm."""

    def write(values=(7, 300, 40_000), name='atlas.nii.gz', dtype=np.uint16, channels=0):
        data = np.zeros(SHAPE, dtype)
        for number, value in enumerate(values):
            data[10:30, 5 + 10 * number : 15 + 10 * number, 10:20] = value
        if channels:
            data = np.stack([data] * channels, axis=-1)
        nib.save(nib.Nifti1Image(data, GRID), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def table(tmp_path):
    def write(text, name='labels.tsv'):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


NAMES = 'index\tname\n40000\tlast\n7\tfirst\n300\tmiddle\n'


@pytest.fixture
def scaled():
    """Template to scan: twice as long in x, shifted."""
    affine = np.diag([2.0, 1, 1, 1])
    affine[:3, 3] = [5, 0, -3]
    still = np.zeros((3, *SHAPE), np.float32)
    return Normalisation('test', affine, GRID, still, still, 'network')


def scan(affine, shape):
    """Return tissue maps: GM is 1 where y < 0 in the scan, else WM is 1 in half of the voxels."""
    index = np.indices(shape)
    y = np.tensordot(affine[1, :3], index, 1) + affine[1, 3]
    gm = (y < 0).astype(np.float32)
    return {'gm': gm, 'wm': (1 - gm) * 0.5, 'csf': np.zeros_like(gm)}


def test_volumes_in_the_space_of_the_scan(image, table, scaled):
    """A box of 16 cm^3 in the template is one of 32 cm^3 in a scan twice as long."""
    atlas = read_atlas(f'{image()}:{table(NAMES)}')
    shape = (120, 90, 90)
    affine = np.array([[-1.0, 0, 0, 60], [0, 1, 0, -45], [0, 0, 1, -45], [0, 0, 0, 1]])
    found = regional_volumes(atlas, scaled, scan(affine, shape), affine, tiv=1e6)
    assert found['index'].tolist() == [7, 300, 40_000]
    assert found['name'].tolist() == ['first', 'middle', 'last']
    np.testing.assert_allclose(found['size_mm3'], [32_000] * 3, rtol=0.01)
    # The boxes run over y from -31 to -11, -11 to 9 and 9 to 29.
    np.testing.assert_allclose(found['gm_mm3'] / found['size_mm3'], [1, 0.55, 0], atol=0.03)
    np.testing.assert_allclose(found['wm_mm3'] / found['size_mm3'], [0, 0.225, 0.5], atol=0.03)
    assert found['csf_mm3'].tolist() == [0, 0, 0]
    np.testing.assert_allclose(found['gm_fraction_of_tiv'], found['gm_mm3'] / 1e6)
    assert found['flag'].tolist() == ['', '', '']
    assert set(found.columns) == set(REGION_COLUMNS)


def test_order_of_rows_and_axes_makes_no_difference(image, table, scaled):
    first = read_atlas(f'{image()}:{table(NAMES)}')
    rows = NAMES.splitlines()
    other = '\n'.join([rows[0], rows[2], rows[3], rows[1]])
    second = read_atlas(f'{image()}:{table(other, "other.tsv")}')
    affine = np.array([[0, 0, 1.5, -60], [-1.2, 0, 0, 45], [0, -1.2, 0, 45], [0, 0, 0, 1]])
    maps = scan(affine, (75, 75, 80))
    found = regional_volumes(first, scaled, maps, affine)
    assert found.equals(regional_volumes(second, scaled, maps, affine))
    flipped = affine @ np.array([[-1, 0, 0, 74], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    turned = {name: data[::-1] for name, data in maps.items()}
    np.testing.assert_allclose(
        regional_volumes(first, scaled, turned, flipped)['gm_mm3'], found['gm_mm3']
    )


def test_absent_regions_are_zero_and_flagged(image, table, scaled):
    names = table(NAMES + '9\tnowhere\n')
    atlas = read_atlas(f'{image((7, 300, 0))}:{names}')
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = [-60, -45, -45]
    maps = scan(affine, (120, 90, 90))
    found = regional_volumes(atlas, scaled, maps, affine).set_index('index')
    assert found.index.tolist() == [7, 9, 300, 40_000]
    assert found['flag'].to_dict() == {7: '', 9: 'absent', 300: '', 40_000: 'absent'}
    assert found.loc[9, 'size_mm3'] == found.loc[9, 'gm_mm3'] == 0
    assert found.loc[7, 'gm_mm3'] > 0
    part = {name: data[:, 60:] for name, data in maps.items()}  # y from 15: not the first box
    affine[1, 3] = 15
    found = regional_volumes(atlas, scaled, part, affine).set_index('index')
    assert found['flag'].to_dict()[7] == 'not covered'


def test_values_that_the_table_lacks_get_a_name(image, table):
    names = table('index,name\n300,middle\n0,Background\n')
    atlas = read_atlas(f'{image()}:{names}')
    assert atlas.names == {7: 'region-7', 300: 'middle', 40_000: 'region-40000'}
    assert read_atlas(image()).names[7] == 'region-7'


@pytest.mark.parametrize(
    'text',
    [
        'value\troi\n300\tmiddle\n7\tfirst\n',
        'Label\tName\n300\tmiddle\n7\tfirst\n',
        'id\tcolor\tregion\n300\tred\tmiddle\n7.0\tblue\tfirst\n',
        'index\tlabel\n300\tmiddle\n7\tfirst\n\n',
        '\ufeffIndex\tName\r\n300\tmiddle\r\n7\tfirst\r\n',
    ],
)
def test_tables_of_many_makes(image, table, text):
    names = read_atlas(f'{image()}:{table(text)}').names
    assert (names[7], names[300]) == ('first', 'middle')


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('AAL3v1_1mm.nii.gz', 'AAL3v11mm'),
        (
            'tpl-MNI152_res-01_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz',
            'Schaefer2018400Parcels7Networks',
        ),
        ('a-b.nii', 'ab'),
    ],
)
def test_name_for_the_entity(image, name, expected):
    assert read_atlas(image(name=name)).name == expected


def test_kinds_of_images(image):
    assert read_atlas(image(dtype=np.float32)).names.keys() == {7, 300, 40_000}
    assert read_atlas(image(channels=1)).load()[0].shape == SHAPE
    largest = 2**31 - 1  # a float32 cannot hold it
    assert read_atlas(image((1, 2, largest), dtype=np.int32)).names.keys() == {1, 2, largest}


def test_what_cannot_be_an_atlas(image, table, tmp_path):
    cases = {
        str(image(dtype=np.float32, values=(0.5, 1, 2))): 'not whole numbers',
        str(image(dtype=np.int16, values=(-1, 1, 2), name='negative.nii')): 'from 0',
        str(image(channels=2, name='4d.nii')): '4 dimensions',
        str(image(values=(), name='empty.nii')): 'no label',
        str(tmp_path / 'missing.nii.gz'): 'no file',
        f'{image(name="good.nii")}:{tmp_path / "missing.tsv"}': 'no file',
        str(table(NAMES, 'table.tsv')): 'FILE.nii.gz',
        str(table('not an image', 'broken.nii')): 'too short for an image',
    }
    for number, (text, reason) in enumerate({
        'index\tname\n7\ta\n7\tb\n': 'twice',
        'name\tcolor\na\tred\n': 'column names',
        'index\tname\n': 'column names',
        'index\tname\nseven\ta\n': 'no label',
        'index\tname\n-7\ta\n': 'no label',
        'index\tname\n8\ta\n': 'none of its values',
    }.items()):  # fmt: skip
        cases[f'{tmp_path / "good.nii"}:{table(text, f"{number}.tsv")}'] = reason
    for text, reason in cases.items():
        with pytest.raises(UsageError, match=reason) as caught:
            read_atlas(text)
        assert '\n' not in str(caught.value), text


def test_two_atlases_of_one_name(image, tmp_path):
    first = image(name='My_atlas.nii.gz')
    second = image(name='Myatlas.nii')
    with pytest.raises(UsageError, match='rename'):
        read_atlases([first, second])
    third = image(name='other.nii')
    assert [atlas.name for atlas in read_atlases([first, third])] == ['Myatlas', 'other']


def test_tissues_of_different_shapes(image, scaled):
    maps = scan(np.eye(4), (8, 8, 8)) | {'csf': np.zeros((8, 8, 9))}
    with pytest.raises(ValueError, match='shape'):
        regional_volumes(read_atlas(image()), scaled, maps, np.eye(4))
