# SPDX-License-Identifier: Apache-2.0
"""A real label map (axes LIA) against the template: sides, overlap, volume, other libraries."""

import numpy as np
import pytest

from bids_app.images.templates import find_template, target_grid
from bids_app.inference.models import find_model, load_networks
from bids_app.morphometry.modulation import modulated
from bids_app.registration.run import normalise, read_template
from bids_app.registration.shares import scan_shares
from bids_app.registration.warp import to_template
from bids_app.training.heads import tissues_of

SPACE = 'MNI152NLin2009aSym'


@pytest.fixture(scope='module')
def head(data_dir):
    import nibabel as nib

    folder = data_dir / 'synthseg_label_maps'
    files = sorted(folder.glob('training_seg_*.nii.gz'))
    if not files:
        pytest.skip(f'no label maps in {folder}')
    image = nib.load(files[0])
    return (*tissues_of(np.asarray(image.dataobj).astype(np.int16)), image.affine)


@pytest.fixture(scope='module')
def found(head):
    gm, wm, labels, affine = head
    network = load_networks(find_model('symnet'))['symnet']
    template = read_template(find_template(SPACE))[0]
    return normalise(scan_shares(gm, wm, labels, affine), template, space=SPACE, network=network)


def test_inverse_and_folding(found):
    assert found.measures['inverse_error_mm'] < 0.1
    assert found.measures['jacobian_min'] > 0
    assert found.measures['dice_wm'] > 0.8


@pytest.mark.parametrize(('left', 'right'), [(17, 53), (10, 49), (12, 51), (8, 47)])
def test_left_stays_left(head, found, left, right):
    import nibabel as nib

    _, _, labels, affine = head
    warped = to_template(labels, affine, found, found.shape, found.grid_affine, order='nearest')
    fixed = np.asarray(nib.load(find_template(SPACE).labels).dataobj)
    for own, other in ((left, right), (right, left)):
        size = (warped == own).sum() + (fixed == own).sum()
        assert 2 * ((warped == own) & (fixed == own)).sum() / size > 0.6
        # The halves of the cerebellum meet in the middle.
        assert ((warped == own) & (fixed == other)).sum() < 0.01 * size


def test_modulation_keeps_the_volume(head, found):
    gm, wm, _, affine = head
    shape, grid = target_grid(1.5)
    voxel = abs(np.linalg.det(affine[:3, :3]))
    for tissue in (gm, wm):
        kept = modulated(tissue, affine, found, shape, grid).sum() * 1.5**3
        assert kept == pytest.approx(tissue.sum() * voxel, rel=0.01)
