# SPDX-License-Identifier: Apache-2.0
"""Scans of every kind are read, conformed and written back, or refused in one clear line."""

from __future__ import annotations

import gzip
import os
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import ImageError
from bids_app.images.conform import conform_file, load_scan, read_grid, save_native

# Large enough in mm to give no notes.
SHAPE = (26, 30, 28)
AFFINE = np.array([[-4.0, 0, 0, 50], [0, 4, 0, -60], [0, 0, 4, -40], [0, 0, 0, 1]])


def head(shape=SHAPE, seed=0) -> np.ndarray:
    """Smooth blob with noise, float32."""
    grid = np.indices(shape).reshape(3, -1).T / np.array(shape) - 0.5
    values = 1000 * np.exp(-8 * (grid**2).sum(axis=1)).reshape(shape)
    return (values + np.random.default_rng(seed).normal(0, 5, shape)).astype(np.float32)


def write(path, data=None, affine=AFFINE, change=None, dtype=None):
    """Write a NIfTI file; `change` edits the 348 bytes of the header afterwards, unchecked."""
    data = head() if data is None else data
    image = nib.Nifti1Image(data, affine, dtype=dtype)
    if affine is not None:
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
    raw = bytearray(image.to_bytes())
    if change is not None:
        header = nib.Nifti1Header(bytes(raw[:348]), check=False)
        change(header)
        raw[:348] = header.binaryblock
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith('.gz') else raw)
    return path


def setter(**fields):
    """Return a function that writes header fields (``pixdim=[...]`` fills pixdim[1:4])."""

    def change(header):
        for name, value in fields.items():
            if name in ('pixdim',):
                header[name][1:4] = value
            else:
                header[name] = value

    return change


def refused(path) -> str:
    """Message of the ImageError for a file, checked for form."""
    with pytest.raises(ImageError) as caught:
        load_scan(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: ')
    assert '\n' not in message
    assert len(message) < 300 + len(str(path))
    return message


# -- files that are no scans -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'content', 'expected'),
    [
        ('a.nii.gz', b'<!DOCTYPE html><html><body>404</body></html>' * 20, 'web page'),
        ('a.nii', b'\n\n<html lang="en">' + b' ' * 400, 'web page'),
        ('a.nii.gz', b'', 'empty'),
        ('a.nii.gz', b'\n', 'too short'),
        ('a.nii', b'../../.git/annex/objects/xx/MD5E-s1--d41d8', 'datalad get'),
        ('a.nii.gz', b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
        ('a.nii.gz', gzip.compress(os.urandom(5000))[:300], 'cut off'),
        ('a.nii.gz', gzip.compress(b'hello' * 500), 'not a NIfTI'),
        ('a.nii', os.urandom(2000), 'not a NIfTI'),
        ('a.dcm', b'x' * 400, 'unknown kind'),
    ],
)
def test_not_an_image(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in refused(path)


def test_missing_files_folders_and_links(tmp_path):
    assert 'no such file' in refused(tmp_path / 'none.nii.gz')
    (tmp_path / 'folder.nii').mkdir()
    assert 'folder' in refused(tmp_path / 'folder.nii')
    (tmp_path / 'link.nii.gz').symlink_to(tmp_path / 'annexed')
    assert 'datalad get' in refused(tmp_path / 'link.nii.gz')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_permission(tmp_path):
    path = write(tmp_path / 'a.nii.gz')
    path.chmod(0)
    assert 'permissions' in refused(path)


@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
@pytest.mark.parametrize('share', [0.3, 0.9, 0.9999])
def test_truncated(tmp_path, ending, share):
    path = write(tmp_path / f'a{ending}')
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert 'cut off' in refused(path)


def test_flipped_byte_in_gzip_is_seen(tmp_path):
    path = write(tmp_path / 'a.nii.gz')
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # the checksum
    path.write_bytes(content)
    assert 'damaged' in refused(path)


def test_gzip_by_name_or_by_content(tmp_path):
    packed, plain = write(tmp_path / 'a.nii.gz'), write(tmp_path / 'b.nii')
    packed.rename(tmp_path / 'c.nii')
    plain.rename(tmp_path / 'd.nii.gz')
    assert 'rename it to .nii.gz' in refused(tmp_path / 'c.nii')
    assert 'not gzip-compressed' in refused(tmp_path / 'd.nii.gz')


# -- voxels ----------------------------------------------------------------------------------


@pytest.mark.parametrize('value', [0, 7, -3])
def test_constant(tmp_path, value):
    data = np.full(SHAPE, value, np.float32)
    expected = 'only zeros' if value == 0 else 'same value'
    assert expected in refused(write(tmp_path / 'a.nii.gz', data))


def test_almost_empty_and_nothing_finite(tmp_path):
    data = np.zeros(SHAPE, np.float32)
    data[3, 3, 3] = 1
    assert 'hold a signal' in refused(write(tmp_path / 'a.nii', data))
    data[:] = np.nan
    assert 'finite' in refused(write(tmp_path / 'b.nii', data))


def test_nan_and_infinity_become_zero(tmp_path):
    data = head()
    data[0, :4, 0] = (np.nan, np.inf, -np.inf, 1)
    scan = load_scan(write(tmp_path / 'a.nii.gz', data))
    assert np.isfinite(scan.data).all()
    assert scan.data[0, :4, 0].tolist() == [0, 0, 0, 1]
    assert '3 voxels' in scan.notes[0]


def test_four_dimensions(tmp_path):
    data = head()
    single = load_scan(write(tmp_path / 'a.nii.gz', data[..., np.newaxis]))
    np.testing.assert_array_equal(single.data, data)
    assert not single.notes
    for name in ('b.nii', 'b.nii.gz'):
        several = load_scan(write(tmp_path / name, np.stack([data, 2 * data, 0 * data], -1)))
        np.testing.assert_array_equal(several.data, data)
        assert several.notes == ['the file holds 3 volumes; the first was used']
    five = load_scan(write(tmp_path / 'c.nii', data[..., None, None] * np.array([1.0, 2.0])))
    np.testing.assert_allclose(five.data, data)


@pytest.mark.parametrize(
    'shape', [(64, 64), (64, 64, 1), (1, 64, 64), (64, 64, 1, 30), (64, 5, 64)]
)
def test_not_a_volume(tmp_path, shape):
    assert 'not a volume' in refused(write(tmp_path / 'a.nii', np.random.rand(*shape)))


@pytest.mark.parametrize('dtype', ['i1', 'u1', '>i2', 'u2', 'i4', 'i8', 'u8', 'f4', '>f8'])
def test_number_types(tmp_path, dtype):
    data = (head() / 10).clip(0).astype(dtype)
    scan = load_scan(write(tmp_path / 'a.nii.gz', data, dtype=np.dtype(dtype)))
    assert scan.data.dtype == np.float32
    assert scan.data.dtype.isnative
    np.testing.assert_allclose(scan.data, data.astype(np.float32))


def test_complex_and_colour(tmp_path):
    data = head()
    scan = load_scan(write(tmp_path / 'a.nii.gz', (data * np.exp(0.7j)).astype(np.complex64)))
    np.testing.assert_allclose(scan.data, np.abs(data), rtol=1e-5)
    assert 'magnitude' in scan.notes[0]
    colour = np.zeros(SHAPE, np.dtype([('R', 'u1'), ('G', 'u1'), ('B', 'u1')]))
    assert 'colour' in refused(write(tmp_path / 'b.nii', colour))


@pytest.mark.parametrize(
    ('slope', 'inter', 'factor'),
    [(0, 0, 1), (np.nan, np.nan, 1), (np.inf, 0, 1), (2.5, 0, 2.5), (1e-30, 0, 1e-30)],
)
def test_scaling(tmp_path, slope, inter, factor):
    data = head().astype(np.int16)
    path = write(tmp_path / 'a.nii.gz', data, change=setter(scl_slope=slope, scl_inter=inter))
    scan = load_scan(path)
    np.testing.assert_allclose(scan.data, data * np.float32(factor), rtol=1e-5)


def test_strange_scaling(tmp_path):
    data = head().clip(0).astype(np.int16)
    negative = load_scan(write(tmp_path / 'a.nii', data, change=setter(scl_slope=-2)))
    assert any('negative' in note for note in negative.notes)
    overflow = write(tmp_path / 'b.nii', data, change=setter(scl_slope=3e38))
    assert 'hold a signal' in refused(overflow)
    broken = write(tmp_path / 'c.nii', data, change=setter(scl_slope=1, scl_inter=np.inf))
    assert 'damaged' in refused(broken)


def test_label_map_is_noted(tmp_path):
    scan = load_scan(write(tmp_path / 'a.nii', (head() > 300).astype(np.uint8)))
    assert any('mask' in note for note in scan.notes)


# -- header ----------------------------------------------------------------------------------


@pytest.mark.parametrize('pixdim', [(0, 4, 4), (4, np.nan, 4), (4, 4, np.inf)])
def test_impossible_voxel_sizes(tmp_path, pixdim):
    assert 'voxel size' in refused(write(tmp_path / 'a.nii', change=setter(pixdim=pixdim)))


@pytest.mark.parametrize('size', [0.02, 25.0])
def test_absurd_voxel_sizes(tmp_path, size):
    affine = np.diag([size, size, size, 1])
    assert 'not those of a head' in refused(write(tmp_path / 'a.nii', affine=affine))


def test_negative_voxel_size(tmp_path):
    path = write(tmp_path / 'a.nii', change=setter(pixdim=(-4, 4, 4)))
    scan = load_scan(path)
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert 'negative' in scan.notes[0]
    change = setter(pixdim=(-4, 4, 4), sform_code=0)
    assert 'left and right are unknown' in refused(write(tmp_path / 'b.nii', change=change))


def test_no_orientation(tmp_path):
    path = write(tmp_path / 'a.nii.gz', change=setter(sform_code=0, qform_code=0))
    scan = load_scan(path)
    assert any('LEFT AND RIGHT ARE UNKNOWN' in note for note in scan.notes)
    np.testing.assert_allclose(scan.affine, nib.load(path).affine)
    saved = nib.load(save_native(scan.data, scan, tmp_path / 'b.nii.gz'))
    np.testing.assert_allclose(saved.affine, scan.affine)
    assert saved.header['qform_code'] > 0
    assert saved.header['sform_code'] > 0


def test_only_one_matrix(tmp_path):
    for fields in ({'sform_code': 0}, {'qform_code': 0}):
        scan = load_scan(write(tmp_path / 'a.nii', change=setter(**fields)))
        assert not scan.notes
        np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)
        saved = nib.load(save_native(scan.data, scan, tmp_path / 'b.nii'))
        np.testing.assert_allclose(saved.get_sform(), AFFINE, atol=1e-5)
        np.testing.assert_allclose(saved.get_qform(), AFFINE, atol=1e-5)
        assert saved.header['qform_code'] == saved.header['sform_code'] == 1


def test_contradiction_sform_wins(tmp_path):
    path = write(tmp_path / 'a.nii', change=setter(qoffset_x=20))
    scan = load_scan(path)
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert 'disagree by up to 30.0 mm; the sform was used' in scan.notes[0]
    mirrored = write(tmp_path / 'b.nii', change=lambda h: h['pixdim'].__setitem__(0, 1))
    assert 'LEFT AND RIGHT ARE DOUBTFUL' in load_scan(mirrored).notes[0]
    rounding = write(tmp_path / 'c.nii', change=setter(qoffset_x=50.01))
    assert not load_scan(rounding).notes


@pytest.mark.parametrize('row', [(0, 0, 0, 0), (np.nan, 0, 0, 50), (1e30, 0, 0, 50)])
def test_broken_sform(tmp_path, row):
    scan = load_scan(write(tmp_path / 'a.nii', change=setter(srow_x=row)))
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)
    assert 'sform is singular or not finite' in scan.notes[0]
    saved = nib.load(save_native(scan.data, scan, tmp_path / 'c.nii'))
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-5)
    path = write(tmp_path / 'b.nii', change=setter(srow_x=row, qform_code=0))
    assert 'neither the sform nor the qform' in refused(path)


def test_sform_of_another_space(tmp_path):
    """An sform with other voxel sizes than pixdim would falsify every volume."""
    stretched = AFFINE.copy()
    stretched[:3] *= 1.2
    change = setter(srow_x=stretched[0], srow_y=stretched[1], srow_z=stretched[2], sform_code=4)
    path = write(tmp_path / 'a.nii', change=change)
    scan = load_scan(path)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)
    assert 'the qform was used' in scan.notes[0]
    # Viewers draw the scan by its sform, so the derivatives keep it.
    saved = nib.load(save_native(scan.data, scan, tmp_path / 'b.nii'))
    np.testing.assert_allclose(saved.affine, nib.load(path).affine)
    np.testing.assert_allclose(saved.get_qform(), AFFINE, atol=1e-5)


def test_broken_quaternion(tmp_path):
    scan = load_scan(write(tmp_path / 'a.nii', change=setter(quatern_b=9, quatern_c=np.nan)))
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert 'qform' in scan.notes[0]


def test_shear(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    scan = load_scan(write(tmp_path / 'a.nii', affine=sheared))
    assert any('sheared by' in note for note in scan.notes)
    np.testing.assert_allclose(scan.affine, sheared, atol=1e-6)
    report = conform_file(tmp_path / 'a.nii', tmp_path / 'c.nii', 2.5)
    np.testing.assert_allclose(nib.load(tmp_path / 'c.nii').affine, report['affine'], atol=1e-4)


def test_thick_slices_and_size_notes(tmp_path):
    affine = np.diag([4.0, 4.0, 5.0, 1])
    assert any(
        '5 mm thick' in n for n in load_scan(write(tmp_path / 'a.nii', affine=affine)).notes
    )
    affine = np.diag([2.0, 4.0, 4.0, 1])
    notes = load_scan(write(tmp_path / 'b.nii', affine=affine)).notes
    assert len(notes) == 1
    assert 'field of view is only 52 x 120 x 112 mm' in notes[0]
    long = np.zeros((8, 8, 200), np.uint8)
    assert 'field of view' in refused(write(tmp_path / 'c.nii', long, np.diag([9.0, 9, 9, 1])))
    change = setter(dim=(3, 2000, 2000, 2000, 1, 1, 1, 1))
    assert 'cannot be processed' in refused(write(tmp_path / 'd.nii', change=change))


def test_mgz(tmp_path):
    nib.MGHImage(head(), AFFINE).to_filename(tmp_path / 'a.mgz')
    scan = load_scan(tmp_path / 'a.mgz')
    np.testing.assert_array_equal(scan.data, head())
    np.testing.assert_allclose(scan.affine, AFFINE)
    assert not scan.notes


def test_damaged_header(tmp_path):
    for fields in ({'datatype': 999}, {'dim': (3, -4, 5, 6, 1, 1, 1, 1)}, {'vox_offset': 1e7}):
        refused(write(tmp_path / 'a.nii', change=setter(**fields)))
        refused(write(tmp_path / 'a.nii.gz', change=setter(**fields)))


# -- conform and back ------------------------------------------------------------------------


def test_conform_is_exact_for_a_scan_of_the_right_size(tmp_path):
    data = head()
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) * signs)[:, order] * 4
        path = write(tmp_path / 'a.nii', data, affine)
        report = conform_file(path, tmp_path / 'c.nii', voxel_size=4)
        conformed = nib.load(tmp_path / 'c.nii')
        expected = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(conformed.get_fdata(), expected.get_fdata())
        np.testing.assert_allclose(conformed.affine, expected.affine)
        assert not report['interpolated']
        assert report['native_orientation'] == ''.join(nib.aff2axcodes(affine))


def test_conform_report(tmp_path):
    import json

    turn = np.radians(10)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= (5, 4, 6)
    report = conform_file(write(tmp_path / 'a.nii.gz', affine=affine), tmp_path / 'c.nii', 2.0)
    assert json.loads(json.dumps(report)) == report
    assert report['shape'] == [65, 60, 84]
    assert report['zooms'] == [2, 2, 2]
    assert report['native_shape'] == list(SHAPE)
    assert report['interpolated']
    assert report['obliquity_degrees'] == pytest.approx(10, abs=0.01)
    image = nib.load(tmp_path / 'c.nii')
    assert image.get_data_dtype() == np.float32
    assert nib.aff2axcodes(image.affine) == ('R', 'A', 'S')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.nii.gz', 'c.nii']


def test_save_native(tmp_path):
    path = write(tmp_path / 'a.nii.gz')
    grid = read_grid(path)
    mask = head() > 500
    first = save_native(mask, path, tmp_path / 'm.nii.gz', np.uint8)
    second = save_native(mask, grid, tmp_path / 'n.nii.gz', np.uint8)
    assert first.read_bytes() == second.read_bytes()
    saved = nib.load(first)
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(saved.affine, nib.load(path).affine)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), mask)
    for field in ('quatern_b', 'qoffset_x', 'srow_x', 'qform_code', 'sform_code'):
        np.testing.assert_array_equal(saved.header[field], nib.load(path).header[field])
    rounded = save_native(np.full(SHAPE, 2.6), grid, tmp_path / 'r.nii', np.int16)
    assert np.asarray(nib.load(rounded).dataobj).max() == 3
    with pytest.raises(ValueError, match='fit uint8'):
        save_native(np.full(SHAPE, 300.0), grid, tmp_path / 'x.nii', np.uint8)
    with pytest.raises(ValueError, match='shape'):
        save_native(np.zeros((3, 3, 3)), grid, tmp_path / 'x.nii')
    assert not list(tmp_path.glob('*x.nii*'))


# -- real files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('pet001/sub-01/ses-01/anat/sub-01_ses-01_T1w.nii', 'web page'),
        ('pet005/sub-01/ses-baseline/anat/sub-01_ses-baseline_T1w.nii.gz', 'only zeros'),
        ('pet005/sub-01/ses-baseline/pet/sub-01_ses-baseline_pet.nii.gz', 'too short'),
        ('mri_chunk/sub-001/anat/sub-001_chunk-1_T1w.nii.gz', 'no voxels'),
        ('ds006/sub-04/ses-pre/anat/sub-04_ses-pre_T1w.nii.gz', 'empty'),
    ],
)
def test_placeholders_of_bids_examples(data_dir, name, expected):
    assert expected in refused(data_dir / 'bids_examples' / name)


def test_large_real_scan(data_dir, tmp_path):
    """37 million voxels of 1 x 0.5 x 0.5 mm: left stays left and nothing moves."""
    path = data_dir / 'bids_real' / 'sub-uihA' / 'anat' / 'sub-uihA_T1w.nii.gz'
    if not path.is_file():
        pytest.skip(f'{path} is missing')
    report = conform_file(path, tmp_path / 'c.nii')
    assert report['native_shape'] == [160, 460, 512]
    assert report['shape'] == [160, 230, 256]
    scan, conformed = nib.load(path), nib.load(tmp_path / 'c.nii')
    expected = np.asarray(scan.dataobj[40:42]).reshape(2, 230, 2, 256, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(conformed.dataobj[40:42], expected, atol=0.01)
    corner = nib.affines.apply_affine(scan.affine, (40, 0.5, 0.5))
    np.testing.assert_allclose(
        nib.affines.apply_affine(conformed.affine, (40, 0, 0)), corner, atol=1e-4
    )
