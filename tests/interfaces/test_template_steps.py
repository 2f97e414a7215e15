# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.outputs import file_id
from bids_app.images.conform import load_array
from bids_app.images.templates import REGISTRATION_AFFINE, target_grid
from bids_app.interfaces.template_steps import modulate_files, region_files, warp_files
from bids_app.registration.normalisation import Normalisation

SPACE = 'MNI305'
SCALE = 0.8
SHAPE = (30, 36, 28)


@pytest.fixture
def scan(tmp_path):
    """Return a registration (a scaling by 0.8) and native maps: a block of two tissues."""
    matrix = np.diag([SCALE, SCALE, SCALE, 1.0])
    zero = np.zeros((3, 8, 8, 8), np.float32)
    normalisation = Normalisation(SPACE, matrix, REGISTRATION_AFFINE, zero, zero, 'refined')
    file = normalisation.save(tmp_path / 'n.npz')
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = 42, -50, -40
    brain = np.zeros(SHAPE, bool)
    brain[8:22, 8:28, 8:20] = True
    gm = brain & (np.arange(SHAPE[0])[:, None, None] < 15)
    maps = {
        'preproc': 10 + 90 * brain,
        'brain_mask': brain,
        'probseg_gm': 0.9 * gm + 0.1 * (brain & ~gm),
        'probseg_wm': 0.8 * (brain & ~gm),
        'probseg_csf': 0.1 * gm,
    }
    files = {}
    for key, data in maps.items():
        files[key] = tmp_path / f'{key}.nii'
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), files[key])
    return file, files, maps, affine


def test_warped_images_have_the_grid_and_the_tissues(scan, tmp_path):
    file, files, maps, _ = scan
    found = warp_files(file, files, tmp_path, voxel_sizes=[2.0, 4.0])['files']
    assert len(found) == 2 + 2 * 6
    for size in (2.0, 4.0):
        shape, affine = target_grid(size)
        images = {
            key: nib.load(found[file_id(f'std_{key}', space=SPACE, res=size)])
            for key in ('preproc', 'mask', 'dseg', 'probseg_gm', 'probseg_wm', 'probseg_csf')
        }
        for image in images.values():
            assert image.shape == shape
            np.testing.assert_allclose(image.affine, affine, atol=1e-5)
            assert int(image.header['sform_code']) == int(image.header['qform_code']) == 4
        data = {key: np.asarray(image.dataobj) for key, image in images.items()}
        assert data['mask'].dtype == data['dseg'].dtype == np.uint8
        # The block is 1 / 0.8 times as long in the template. Half a voxel per face is lost or
        # won where it is cut at one half.
        volume = maps['brain_mask'].sum() * 27 / SCALE**3
        assert data['mask'].sum() * size**3 == pytest.approx(volume, rel=0.1)
        np.testing.assert_array_equal(data['dseg'] > 0, data['mask'] > 0)
        assert set(np.unique(data['dseg'])) == {0, 1, 2}
        inside = data['mask'] > 0
        assert (data['dseg'] == 1)[inside].mean() == pytest.approx(0.5, abs=0.1)
        assert data['preproc'].max() == pytest.approx(100)


def test_transforms_are_written_in_both_directions(scan, tmp_path):
    file, files, _, _ = scan
    found = warp_files(file, files, tmp_path, voxel_sizes=[4.0])['files']
    for direction in ('forward', 'backward'):
        path = found[file_id(f'xfm_{direction}', space=SPACE)]
        with open(path, 'rb') as stream:
            assert stream.read(4) == b'\x89HDF'


def test_modulated_volume_is_that_of_the_scan(scan, tmp_path):
    file, files, maps, _ = scan
    found = modulate_files(file, files, tmp_path, voxel_sizes=[1.5, 3.0], smooth_fwhm=[6.0, 7.5])
    assert len(found['files']) == 2 * (1 + 2 * 3)
    for size, change in zip((1.5, 3.0), found['volumes'], strict=True):
        assert (change['space'], change['voxel_size']) == (SPACE, size)
        for name in ('gm', 'wm'):
            native = maps[f'probseg_{name}'].sum() * 27
            kept = change['tissues'][name]
            assert kept['native_mm3'] == pytest.approx(native, rel=1e-5)
            assert kept['modulated_mm3'] == pytest.approx(native, rel=0.01)
            for key, more in ((f'vbm_{name}', {}), (f'vbm_{name}_smooth', {'fwhm': 7.5})):
                path = found['files'][file_id(key, space=SPACE, res=size, **more)]
                assert load_array(path)[0].sum() * size**3 == pytest.approx(native, rel=0.01)
        jacobian = load_array(found['files'][file_id('jacobian', space=SPACE, res=size)])[0]
        np.testing.assert_allclose(jacobian, SCALE**3, rtol=1e-5)


def test_without_widths_nothing_is_smoothed(scan, tmp_path):
    file, files, _, _ = scan
    found = modulate_files(file, files, tmp_path, voxel_sizes=[4.0], smooth_fwhm=[])
    assert not any('smooth' in identifier for identifier in found['files'])


def test_regions_sum_to_the_tissue(scan, tmp_path):
    file, files, maps, affine = scan
    labels = np.ones((40, 40, 40), np.int16)
    labels[20:] = 7
    place = np.diag([6.0, 6.0, 6.0, 1.0])
    place[:3, 3] = -116  # the border lies between two voxels of the scan
    nib.save(nib.Nifti1Image(labels, place), tmp_path / 'atlas-sides.nii.gz')
    (tmp_path / 'names.tsv').write_text('index\tname\n7\tright\n1\tleft\n')
    text = f'{tmp_path}/atlas-sides.nii.gz:{tmp_path}/names.tsv'
    found = region_files(file, files, tmp_path, atlases=[text])
    assert found['atlases'] == [
        {
            'atlas': 'sides',
            'space': SPACE,
            'source': f'{tmp_path}/atlas-sides.nii.gz',
            'absent': [],
        }
    ]
    (identifier,) = found['files']
    assert identifier == 'regions_morph atlas-sides'
    text = Path(found['files'][identifier]).read_text()
    rows = [line.split('\t') for line in text.splitlines()]
    assert set(found['columns'][identifier]) == set(rows[0])
    table = {row[1]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    right = world[..., 0] > 0
    tiv = sum(maps[f'probseg_{name}'].sum() for name in ('gm', 'wm', 'csf')) * 27
    for name in ('gm', 'wm', 'csf'):
        volume = (maps[f'probseg_{name}'] * right).sum() * 27
        assert float(table['right'][f'{name}_mm3']) == pytest.approx(volume, abs=0.1)
        share = float(table['right'][f'{name}_fraction_of_tiv'])
        assert share == pytest.approx(volume / tiv, rel=1e-4)
