# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app.interfaces.steps import correct_bias, is_skull_stripped, restore_mask


def ball(shape, centre, radius):
    grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


def save(path, data, affine, dtype=np.float32):
    image = nib.Nifti1Image(np.asarray(data, dtype), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ('around', 'expected'), [(0.0, True), (80.0, False)], ids=['stripped', 'whole head']
)
def test_skull_stripped_is_what_has_nothing_around_the_brain(around, expected):
    brain = ball((60, 60, 60), (30, 30, 30), 15)
    head = ball((60, 60, 60), (30, 30, 30), 26)
    data = np.where(brain, 100.0, np.where(head, around, 0.0))
    assert is_skull_stripped(data, brain) is expected


def test_skull_stripped_survives_a_shifted_background_and_an_empty_mask():
    brain = ball((40, 40, 40), (20, 20, 20), 10)
    assert is_skull_stripped(np.where(brain, 100.0, -1000.0), brain)
    assert not is_skull_stripped(np.ones((10, 10, 10)), np.zeros((10, 10, 10), bool))


def test_correct_bias_divides_native_voxels_by_the_field(tmp_path, monkeypatch):
    """The native scan is flipped, permuted and coarser; a field linear in space is exact."""
    shape, native_shape = (24, 20, 16), (8, 12, 10)
    affine = np.eye(4)
    native_affine = np.array([[0, 0, -2.0, 21], [0, 1.5, 0, 1], [1.5, 0, 0, 2], [0, 0, 0, 1]])

    def field_at(world):
        return 1 + 0.02 * (world[..., 0] - 11.5)

    def world(shape, affine):
        return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))

    field = field_at(world(shape, affine)).astype(np.float32)
    monkeypatch.setattr('bids_app.images.bias.n4_bias_field', lambda *args, **options: field)
    mask = ball(shape, (12, 10, 8), 6)
    truth = 100 + 10 * np.random.default_rng(0).random(native_shape)
    native = truth * field_at(world(native_shape, native_affine))
    conformed = save(tmp_path / 'conformed.nii', 100 * field, affine)
    mask_file = save(tmp_path / 'mask.nii', mask, affine, np.uint8)
    native_file = save(tmp_path / 'native.nii.gz', native, native_affine)

    info = correct_bias(
        conformed, mask_file, native_file, tmp_path / 'out.nii', tmp_path / 'preproc.nii'
    )

    np.testing.assert_allclose(nib.load(tmp_path / 'out.nii').get_fdata(), 100, rtol=1e-5)
    corrected = nib.load(tmp_path / 'preproc.nii')
    assert corrected.shape == native_shape
    np.testing.assert_allclose(corrected.affine, native_affine, atol=1e-5)
    assert corrected.header['sform_code'] > 0
    # Linear interpolation of a linear field; float32 storage limits the agreement.
    np.testing.assert_allclose(corrected.get_fdata(), truth, rtol=1e-4)
    assert info['skull_stripped'] is False
    assert 0.8 < info['field_range'][0] < 1 < info['field_range'][1] < 1.2


def test_restored_mask_keeps_grid_and_volume(tmp_path):
    affine = np.diag([-2.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = 60, -30, -30
    native = save(tmp_path / 'native.nii.gz', np.random.rand(60, 60, 40), affine)
    conformed = np.eye(4)
    conformed[:3, 3] = -58, -30, -30
    mask = ball((120, 60, 60), (60, 30, 30), 20)
    mask_file = save(tmp_path / 'mask.nii', mask, conformed, np.uint8)

    info = restore_mask(mask_file, native, tmp_path / 'out.nii')

    restored = nib.load(tmp_path / 'out.nii')
    values = np.asarray(restored.dataobj)
    assert restored.shape == (60, 60, 40)
    assert restored.get_data_dtype() == np.uint8
    np.testing.assert_allclose(restored.affine, affine, atol=1e-5)
    assert set(np.unique(values)) == {0, 1}
    # A ball of 33,500 mm^3 on voxels of 3 mm^3: the surface rounds by less than 2 %.
    assert info['volume_mm3'] == pytest.approx(mask.sum(), rel=0.02)
    assert info['volume_mm3'] == pytest.approx(values.sum() * 3.0)
