# SPDX-License-Identifier: Apache-2.0
"""Lesions of known size at known places."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.morphometry.lesions import (
    LESION_COLUMNS,
    corrected_tissue,
    find_lesions,
    lateral_ventricles,
    lesion_bed,
    lesion_rows,
    lesion_table,
)
from bids_app.morphometry.volumes import write_table

SHAPE, SIZES = (60, 60, 40), np.array([1.0, 1.0, 2.0])
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])


def sphere(centre, radius):
    """Voxels whose centre lies in a sphere, all in mm from the first voxel."""
    index = np.indices(SHAPE).reshape(3, -1).T * SIZES
    return (np.linalg.norm(index - centre, axis=1) <= radius).reshape(SHAPE)


def ball(radius):
    return 4 / 3 * np.pi * radius**3


@pytest.fixture(scope='module')
def scene():
    """A ventricle of 6 mm, a lesion that touches it, and a deep one 25 mm from its centre."""
    ventricle = sphere((20, 20, 40), 6)
    near, deep = sphere((28, 20, 40), 4), sphere((20, 45, 40), 5)
    probability = np.where(near, 0.8, np.where(deep, 0.7, 0.1)).astype(np.float32)
    return probability, ventricle, near, deep


def test_spheres(scene):
    probability, ventricle, near, deep = scene
    found = find_lesions(probability, AFFINE, ventricle)
    assert found.volumes == pytest.approx([ball(5), ball(4)], rel=0.08)
    assert found.volumes == pytest.approx([deep.sum() * 2.0, near.sum() * 2.0])
    assert found.mean_probability == pytest.approx([0.7, 0.8], rel=1e-5)
    np.testing.assert_array_equal(found.labels == 1, deep)
    np.testing.assert_array_equal(found.labels == 2, near)
    np.testing.assert_array_equal(found.mask, near | deep)
    assert found.periventricular == pytest.approx([0, near.sum() * 2.0])


def test_rows_and_table(scene, tmp_path):
    probability, ventricle, near, deep = scene
    found = find_lesions(probability, AFFINE, ventricle)
    rows = {row['name']: row for row in lesion_rows(found, tiv=1e6, wm=4e5)}
    assert [row['lesions'] for row in rows.values()] == [2, 1, 1]
    total = (near | deep).sum() * 2.0
    assert rows['all']['volume_mm3'] == pytest.approx(total)
    assert rows['all']['largest_mm3'] == pytest.approx(deep.sum() * 2.0)
    assert rows['all']['fraction_of_tiv'] == pytest.approx(total / 1e6)
    assert rows['all']['fraction_of_wm'] == pytest.approx(total / 4e5)
    assert rows['deep']['volume_mm3'] == pytest.approx(deep.sum() * 2.0)
    table = lesion_table(found, tiv=1e6, wm=4e5)
    assert list(table.columns) == list(LESION_COLUMNS)
    lines = write_table(table, tmp_path / 'a.tsv').read_text().splitlines()
    assert lines[1].split('\t')[:3] == ['all', '2', f'{total:.1f}']


def test_a_lesion_on_both_sides_of_the_border_is_split():
    """A bar along y from the ventricle's edge at y = 5 to y = 25: 10 mm near, 10 mm deep."""
    ventricle = np.zeros(SHAPE, bool)
    ventricle[10, :6, 10] = True
    bar = np.zeros(SHAPE, np.float32)
    bar[10, 6:26, 10] = 1
    rows = lesion_rows(find_lesions(bar, AFFINE, ventricle))
    assert [(row['name'], row['lesions'], row['volume_mm3']) for row in rows] == [
        ('all', 1, 40.0),
        ('periventricular', 1, 20.0),
        ('deep', 0, 20.0),
    ]
    assert rows[2]['largest_mm3'] == 20.0


def test_corners_connect_and_small_lesions_go():
    probability = np.zeros(SHAPE)
    probability[5, 5, 5] = probability[6, 6, 6] = 1  # 4 mm^3 together
    probability[20, 20, 20] = 1  # 2 mm^3
    found = find_lesions(probability, AFFINE)
    assert found.volumes == pytest.approx([4.0])
    assert found.mask.sum() == 2
    assert len(find_lesions(probability, AFFINE, smallest_mm3=2.0).volumes) == 2
    assert len(find_lesions(probability, AFFINE, smallest_mm3=4.1).volumes) == 0


def test_threshold_and_brain(scene):
    probability, ventricle, _near, deep = scene
    assert len(find_lesions(probability, AFFINE, threshold=0.75).volumes) == 1
    found = find_lesions(probability, AFFINE, within=deep)
    np.testing.assert_array_equal(found.mask, deep)
    with pytest.raises(ValueError, match='shape'):
        find_lesions(probability, AFFINE, ventricle[1:])


def test_without_ventricles_there_is_no_split(scene):
    probability, ventricle, *_ = scene
    for unknown in (None, np.zeros_like(ventricle)):
        rows = lesion_rows(find_lesions(probability, AFFINE, unknown))
        assert [row['name'] for row in rows] == ['all']


def test_no_lesion():
    rows = lesion_rows(find_lesions(np.zeros(SHAPE), AFFINE), tiv=1e6)
    assert rows[0]['lesions'] == 0
    assert rows[0]['volume_mm3'] == 0
    assert np.isnan(rows[0]['mean_probability'])


def test_ventricles_have_their_temporal_horns():
    labels = np.array([0, 2, 4, 5, 14, 15, 43, 44, 24]).reshape(3, 3, 1)
    assert labels[lateral_ventricles(labels)].tolist() == [4, 5, 43, 44]


def test_lesions_move_from_grey_to_white_matter():
    gm = np.array([1.0, 0.5, 0.0, 0.3]).reshape(2, 2, 1)
    wm = np.array([0.0, 0.5, 1.0, 0.2]).reshape(2, 2, 1)
    lesion = np.array([1.0, 0.5, 1.0, 0.0]).reshape(2, 2, 1)
    new_gm, new_wm = corrected_tissue(gm, wm, lesion)
    np.testing.assert_allclose(new_gm.ravel(), [0, 0.25, 0, 0.3], atol=1e-7)
    np.testing.assert_allclose(new_wm.ravel(), [1, 0.75, 1, 0.2], atol=1e-7)
    np.testing.assert_allclose(new_gm + new_wm, gm + wm, atol=1e-6)


def test_a_lesion_class_is_added_to_white_matter():
    gm, wm, lesion = (np.full((2, 2, 2), value) for value in (0.2, 0.5, 0.3))
    new_gm, new_wm = corrected_tissue(gm, wm, lesion, own_class=True)
    np.testing.assert_allclose(new_gm, 0.2)
    np.testing.assert_allclose(new_wm, 0.8)
    with pytest.raises(ValueError, match='shape'):
        corrected_tissue(gm, wm, lesion[1:])


def test_lesion_that_lies_mostly_outside_of_white_matter_is_none() -> None:
    labels = np.zeros(SHAPE, np.int16)
    labels[:8] = 2
    probability = np.zeros(SHAPE)
    probability[4:8, 4:8, 4:8] = 1  # in white matter
    probability[12:16, 4:8, 4:8] = 1  # far from it
    probability[7:9, 14:16, 4:8] = 1  # half in it
    bed = lesion_bed(labels, np.eye(4))
    assert bed[:9].all()
    assert not bed[9:].any()
    found = find_lesions(probability, np.eye(4), beside=bed)
    np.testing.assert_allclose(found.volumes, [64, 16])
    assert not found.labels[12:].any()
