# SPDX-License-Identifier: Apache-2.0
"""From a segmentation to the maps of a template."""

from __future__ import annotations

import importlib

import nibabel as nib
import numpy as np
import pytest

from bids_app.images.templates import REGISTRATION_AFFINE, REGISTRATION_SHAPE
from bids_app.registration.make_template import brain_mask, make_maps

SHAPE = (176, 224, 176)
AFFINE = np.array([[1.0, 0, 0, -88], [0, 1, 0, -128], [0, 0, 1, -82], [0, 0, 0, 1]])


@pytest.fixture
def network(monkeypatch):
    """Stand in for the network: white matter left of x = 0.5 mm, cortex right of it."""

    def locate_brain(in_file, out_dir, **options):
        return {'coarse_file': str(out_dir / 'coarse.nii')}

    def segment_brain(in_file, coarse_file, native_file, out_dir, **options):
        assert nib.load(in_file).shape == SHAPE
        left = np.zeros(SHAPE, bool)
        left[30:89, 40:180, 40:150] = True  # x from -58 to 0
        right = np.zeros(SHAPE, bool)
        right[89:147, 40:180, 40:150] = True
        maps = {
            'wm': left.astype(np.float32),
            'gm': 0.5 * right.astype(np.float32),
            'csf': 0.25 * right.astype(np.float32),
            'wholebrain': np.uint8(2) * left + np.uint8(42) * right,
        }
        for name, data in maps.items():
            nib.save(nib.Nifti1Image(data, AFFINE), out_dir / f'{name}.nii')
        return {}

    # The module that an import finds now: other tests may have had it loaded anew.
    brain = importlib.import_module('bids_app.inference.brain')
    monkeypatch.setattr(brain, 'locate_brain', locate_brain)
    monkeypatch.setattr(brain, 'segment_brain', segment_brain)


@pytest.fixture
def t1w(tmp_path):
    data = np.random.default_rng(0).integers(0, 100, SHAPE, dtype=np.uint8)
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / 'T1w.nii')
    return tmp_path / 'T1w.nii'


def made(tmp_path, t1w, **options):
    files = tmp_path / 'tissues.nii.gz', tmp_path / 'labels.nii.gz'
    make_maps(t1w, *files, model=tmp_path, **options)
    return [np.asarray(nib.load(file).dataobj) for file in files], nib.load(files[0])


def test_maps_and_labels(tmp_path, network, t1w):
    (tissues, labels), image = made(tmp_path, t1w)
    assert tissues.shape == (*REGISTRATION_SHAPE, 3)
    np.testing.assert_allclose(image.affine, REGISTRATION_AFFINE)
    assert image.header['sform_code'] == image.header['qform_code'] == 4
    # At x = -0.75, 0.75 mm and y = z = 0: white matter reaches to x = 0.5.
    middle = (slice(None), 83, 52)
    assert tissues[middle][55].tolist() == [0, 255, 0]
    assert tissues[middle][56].tolist() == [96, 64, 48]  # three quarters of it right
    assert labels[middle][54:58].tolist() == [2, 2, 42, 42]
    assert labels[0].max() == 0
    volume = (tissues[..., 1] / 255).sum() * 1.5**3
    assert volume == pytest.approx(59 * 140 * 110, rel=0.01)


def test_symmetric_maps(tmp_path, network, t1w):
    (tissues, labels), _ = made(tmp_path, t1w, symmetric=True)
    np.testing.assert_array_equal(tissues, tissues[::-1])
    assert labels[0].max() == labels[-1].max() == 0
    assert tissues[30, 83, 52].tolist() == [64, 128, 32]
    # Both halves are cortex on one side and white matter on the other in equal parts; the tie
    # goes to the side of the voxel.
    assert set(np.unique(labels[:56])) == {0, 2}
    assert set(np.unique(labels[56:])) <= {0, 41, 42}


def test_brain_mask_fills_holes_and_drops_specks():
    data = np.zeros((12, 12, 12))
    data[2:9, 2:9, 2:9] = 5
    data[5, 5, 5] = 0
    data[11, 11, 11] = 1
    mask = brain_mask(data)
    assert mask.dtype == np.uint8
    assert mask.sum() == 7**3
