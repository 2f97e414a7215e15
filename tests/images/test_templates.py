# SPDX-License-Identifier: Apache-2.0
"""Files of templates, shipped, found and made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.data import structures
from bids_app.errors import UsageError
from bids_app.images.templates import (
    DEFAULT_SPACE,
    REGISTRATION_AFFINE,
    REGISTRATION_SHAPE,
    find_template,
    target_grid,
    template_files,
)
from bids_app.registration import make_template


def volume(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.fixture(scope='module')
def shipped():
    return find_template(DEFAULT_SPACE)


def test_shipped_maps_are_on_the_registration_grid(shipped):
    tissues, affine = volume(shipped.tissues)
    labels, label_affine = volume(shipped.labels)
    assert tissues.shape == (*REGISTRATION_SHAPE, 3)
    assert labels.shape == REGISTRATION_SHAPE
    assert tissues.dtype == labels.dtype == np.uint8
    np.testing.assert_allclose(affine, REGISTRATION_AFFINE, atol=1e-5)
    np.testing.assert_allclose(label_affine, REGISTRATION_AFFINE, atol=1e-5)
    assert set(np.unique(labels)) == {0, *(one.index for one in structures())}


def test_shipped_maps_are_plausible_and_symmetric(shipped):
    tissues = volume(shipped.tissues)[0].astype(float) / 255
    labels = volume(shipped.labels)[0]
    gm, wm, csf = tissues.sum(axis=(0, 1, 2)) * 1.5**3 / 1000
    assert 700 < gm < 1100
    assert 550 < wm < 850
    assert 150 < csf < 450
    np.testing.assert_array_equal(tissues, tissues[::-1])
    assert (labels[tissues.sum(axis=-1) < 0.2] == 0).all()
    assert (labels[tissues.sum(axis=-1) > 0.8] != 0).all()
    caudate = {one.side: one.index for one in structures() if one.kind == 'caudate'}
    left = np.argwhere(labels == caudate['left'])
    right = np.argwhere(labels == caudate['right'])
    assert left[:, 0].max() < REGISTRATION_SHAPE[0] / 2 <= right[:, 0].min()
    assert len(left) == len(right)
    cortex = {one.side: one.index for one in structures() if one.kind == 'cerebral-cortex'}
    assert (labels == cortex['left']).sum() == (labels == cortex['right']).sum()


def test_shipped_mask_lies_on_the_t1w(shipped):
    t1w, affine = volume(shipped.t1w)
    mask, mask_affine = volume(shipped.mask)
    np.testing.assert_array_equal(affine, mask_affine)
    assert set(np.unique(mask)) == {0, 1}
    assert 1.6e6 < mask.sum() < 2.1e6
    assert (t1w[mask == 0] == 0).all()


def test_template_of_nilearn_is_found_without_importing_it():
    from nilearn.datasets import MNI152_FILE_PATH

    assert template_files(DEFAULT_SPACE)[0] == Path(MNI152_FILE_PATH)
    code = (
        'import sys; from bids_app.images.templates import template_files\n'
        f'template_files({DEFAULT_SPACE!r}); sys.exit("nilearn" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_target_grid():
    assert target_grid(1.5)[0] == REGISTRATION_SHAPE
    np.testing.assert_array_equal(target_grid(1.5)[1], REGISTRATION_AFFINE)
    for size in (0.8, 1.0, 2.0):
        shape, affine = target_grid(size)
        first = affine[:3, 3] - size / 2
        last = affine[:3, 3] + (np.array(shape) - 0.5) * size
        assert (first <= [-84, -125.25, -78.75]).all()
        assert (last >= [84, 90.75, 89.25]).all()
        assert (last - first < np.array([168, 216, 168]) + size).all()


def test_missing_template_says_where_and_how(tmp_path, monkeypatch):
    with pytest.raises(UsageError) as caught:
        template_files('MNI152NLin2009cAsym', tmp_path)
    message = str(caught.value)
    assert str(tmp_path / 'tpl-MNI152NLin2009cAsym') in message
    assert "get('MNI152NLin2009cAsym', suffix='T1w', resolution=1)" in message
    assert '\n' not in message
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'elsewhere'))
    with pytest.raises(UsageError, match=r"elsewhere.*cohort='2'"):
        template_files('MNIPediatricAsym+2')
    monkeypatch.delenv('TEMPLATEFLOW_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(UsageError, match=r'\.cache/templateflow'):
        template_files('MNI152NLin6Asym')


def test_files_of_templateflow(tmp_path):
    """With a cohort, without a mask, and not what the client has left empty."""
    folder = tmp_path / 'tpl-MNIPediatricAsym' / 'cohort-2'
    folder.mkdir(parents=True)
    t1w = folder / 'tpl-MNIPediatricAsym_cohort-2_res-1_T1w.nii.gz'
    (folder / 'tpl-MNIPediatricAsym_cohort-2_res-01_T1w.nii.gz').touch()
    t1w.write_bytes(b'image')
    assert template_files('MNIPediatricAsym+2', tmp_path) == (t1w, None)
    mask = folder / 'tpl-MNIPediatricAsym_cohort-2_res-1_desc-brain_mask.nii.gz'
    mask.write_bytes(b'image')
    assert template_files('MNIPediatricAsym+2', tmp_path) == (t1w, mask)


def test_maps_are_made_once_for_each_content(tmp_path, monkeypatch):
    made = []

    def make_maps(t1w, tissues, labels, *, model, **options):
        made.append((t1w, options['threads']))
        for file in (tissues, labels):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b'map')

    monkeypatch.setattr(make_template, 'make_maps', make_maps)
    model = tmp_path / 'model'
    model.mkdir()
    weights = model / 'weights.safetensors'
    weights.write_bytes(b'one')
    t1w = tmp_path / 'tpl-X' / 'tpl-X_res-01_T1w.nii.gz'
    t1w.parent.mkdir()
    t1w.write_bytes(b'image')
    options = {
        'templateflow_home': tmp_path, 'cache_dir': tmp_path / 'cache', 'model': model,
        'threads': 3,
    }  # fmt: skip
    first = find_template('X', **options)
    assert first == find_template('X', **options)
    assert made == [(t1w, 3)]
    assert (first.space, first.t1w, first.mask) == ('X', t1w, None)
    assert first.tissues.parent == tmp_path / 'cache'
    assert first.tissues != first.labels
    weights.write_bytes(b'other')
    second = find_template('X', **options)
    os.utime(t1w, (1, 1))
    third = find_template('X', **options)
    assert len({first.labels, second.labels, third.labels}) == len(made) == 3
    with pytest.raises(ValueError, match='cache_dir'):
        find_template('X', templateflow_home=tmp_path, model=model)
