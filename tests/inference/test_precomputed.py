# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import ImageError
from bids_app.inference.precomputed import mask_only, read_on_grid, replace

SHAPE = (20, 24, 18)
AFFINE = np.array([[0, 0, -2.0, 17], [1.5, 0, 0, -14], [0, 1.0, 0, -12], [0, 0, 0, 1]])
VOXEL = 3.0
STRUCTURES = [
    {'index': 2, 'volume_mm3': 300.0, 'mean_probability': 0.8},
    {'index': 41, 'volume_mm3': 200.0, 'mean_probability': 0.9},
    {'index': 77, 'volume_mm3': 50.0, 'mean_probability': 0.5},
]


def box(*corners):
    inside = np.zeros(SHAPE, bool)
    inside[tuple(slice(*pair) for pair in corners)] = True
    return inside


BRAIN = box((4, 16), (4, 20), (4, 14))


@pytest.fixture
def own():
    gm = np.where(BRAIN, 0.6, 0).astype(np.float32)
    labels = np.where(BRAIN, 2, 0).astype(np.uint8)
    labels[:10][labels[:10] > 0] = 41
    return {
        'mask': BRAIN.astype(np.uint8),
        'gm': gm,
        'wm': (gm / 2).astype(np.float32),
        'csf': np.zeros(SHAPE, np.float32),
        'dseg': BRAIN.astype(np.uint8),
        'wholebrain': labels,
        'entropy': np.where(BRAIN, 0.3, 0).astype(np.float32),
    }


def save(path, data, affine):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return path


def test_mask_limits_everything_of_ours(own):
    mask = BRAIN & box((0, 8), (0, 24), (0, 18))
    maps, found, notes = replace(own, AFFINE, STRUCTURES, mask=mask)
    np.testing.assert_array_equal(maps['mask'], mask)
    for name in ('gm', 'wm', 'csf', 'dseg', 'wholebrain', 'entropy'):
        assert not maps[name][~mask].any()
        np.testing.assert_array_equal(maps[name][mask], own[name][mask])
    volumes = {row['name']: row['volume_mm3'] for row in found['tissues']}
    count = mask.sum() * VOXEL
    assert volumes == pytest.approx({'GM': 0.6 * count, 'WM': 0.3 * count, 'CSF': 0})
    assert found['tiv_mm3'] == pytest.approx(0.9 * count)
    # Label 2 is gone, 4 of the 6 planes of label 41 are left; 77 has no voxel to count.
    kept = {row['index']: row['volume_mm3'] for row in found['structures']}
    assert kept == pytest.approx({2: 0.0, 41: 200 * 4 / 6, 77: 50.0})
    assert any('Dice 0.50' in note for note in notes)
    assert own['gm'][BRAIN].all()  # ours are left as they are


def test_tissues_replace_ours_and_define_the_brain(own):
    other = box((4, 17), (4, 20), (4, 14))
    tissues = {
        'gm': np.where(other, 0.2, 0),
        'wm': np.where(other, 0.7, 0),
        'csf': np.where(other, 0.1, 0),
    }
    maps, found, notes = replace(own, AFFINE, STRUCTURES, tissues=tissues)
    np.testing.assert_array_equal(maps['mask'], other)
    np.testing.assert_array_equal(maps['dseg'], np.where(other, 2, 0))
    np.testing.assert_array_equal(maps['wholebrain'], own['wholebrain'])
    assert found['structures'] == STRUCTURES
    count = other.sum() * VOXEL
    assert [row['volume_mm3'] for row in found['tissues']] == pytest.approx(
        [0.2 * count, 0.7 * count, 0.1 * count]
    )
    assert found['tissues'][1]['mean_probability'] == pytest.approx(0.7)
    assert np.isnan(found['tissues'][0]['mean_probability'])
    assert len(notes) == 1
    assert 'outside the brain that the network found' in notes[0]


def test_mask_and_tissues_together(own):
    tissues = {name: np.where(BRAIN, 0.5, 0) for name in ('gm', 'wm', 'csf')}
    mask = box((4, 15), (4, 20), (4, 14))
    maps, found, notes = replace(own, AFFINE, STRUCTURES, mask=mask, tissues=tissues)
    total = maps['gm'] + maps['wm'] + maps['csf']
    np.testing.assert_allclose(total[mask], 1, rtol=1e-6)  # their sum of 1.5 is scaled
    assert not total[~mask].any()
    assert found['tiv_mm3'] == pytest.approx(mask.sum() * VOXEL, rel=1e-6)
    assert notes == []


def test_what_lies_elsewhere_is_an_error(own):
    with pytest.raises(ImageError, match='another space'):
        replace(own, AFFINE, STRUCTURES, mask=box((0, 3), (0, 24), (0, 18)))
    with pytest.raises(ImageError, match='another space'):
        mask_only(own['mask'], AFFINE, box((16, 20), (0, 24), (0, 18)))


def test_mask_alone(own):
    maps, found, notes = mask_only(own['mask'], AFFINE, BRAIN * 0.9)
    np.testing.assert_array_equal(maps['mask'], BRAIN)
    assert found == {'volume_mm3': BRAIN.sum() * VOXEL}
    assert notes == []


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'PIL'])
def test_other_orientation_is_the_same_voxels(tmp_path, axes):
    image = nib.Nifti1Image(BRAIN.astype(np.float32), AFFINE)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
    )
    nib.save(image.as_reoriented(turn), tmp_path / 'mask.nii.gz')
    data, note = read_on_grid(tmp_path / 'mask.nii.gz', SHAPE, AFFINE)
    np.testing.assert_array_equal(data, BRAIN)
    assert note is None


def test_other_voxels_are_resampled_with_a_note(tmp_path):
    """A plane wave of probability on twice as fine a grid comes back where it was."""
    fine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] = (AFFINE @ [-0.25, -0.25, -0.25, 1])[:3]
    shape = tuple(2 * n for n in SHAPE)
    data = np.broadcast_to(np.linspace(0, 1, shape[1])[:, np.newaxis], shape)
    save(tmp_path / 'gm.nii.gz', data, fine)
    found, note = read_on_grid(tmp_path / 'gm.nii.gz', SHAPE, AFFINE)
    expected = data.reshape(*[n for size in SHAPE for n in (size, 2)]).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 'resampled' in note
    assert '0.75 x 0.5 x 1 mm' in note


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (np.full(SHAPE, 255.0), 'values from 255'),
        (np.zeros(SHAPE), 'empty'),
        (np.full(SHAPE, np.nan), 'values from nan'),
        (np.ones((*SHAPE, 2)), 'not a volume'),
    ],
)
def test_what_is_no_map_of_probabilities(tmp_path, data, message):
    with pytest.raises(ImageError, match=message):
        read_on_grid(save(tmp_path / 'x.nii', data, AFFINE), SHAPE, AFFINE)


def test_what_cannot_be_read(tmp_path):
    (tmp_path / 'x.nii').write_text('<html>')
    with pytest.raises(ImageError, match='x.nii: is a web page'):
        read_on_grid(tmp_path / 'x.nii', SHAPE, AFFINE)
