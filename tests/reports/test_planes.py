# SPDX-License-Identifier: Apache-2.0
"""Display planes: sides, proportions, and independence of the order of the voxels."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app.reports.planes import (
    Frame,
    Volume,
    display_window,
    head_box,
    load_volume,
    make_frame,
    sample_grid,
)


def phantom(zooms=(1.0, 1.0, 1.0), extent=(60.0, 80.0, 70.0)) -> Volume:
    """Make a box of 100 with a marker of 200 in its left front upper corner, RAS, centred."""
    shape = [round(e / z) for e, z in zip(extent, zooms, strict=True)]
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = [-(n - 1) * z / 2 for n, z in zip(shape, zooms, strict=True)]
    data = np.zeros(shape, np.float32)
    grid = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = grid.T.reshape(3, *shape)
    data[(abs(x) < 20) & (abs(y) < 30) & (abs(z) < 25)] = 100
    data[(x < -8) & (x > -20) & (y > 18) & (y < 30) & (z > 13) & (z < 25)] = 200
    return Volume(data, affine)


def reordered(volume: Volume, code: str) -> Volume:
    """Return the same volume with its axes in another order, such as ``PIL``."""
    image = nib.Nifti1Image(volume.data, volume.affine)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(code)
    )
    image = image.as_reoriented(change)
    return Volume(np.asarray(image.dataobj), image.affine)


FRAME = Frame(np.array([-30.0] * 3), np.array([30.0] * 3), 1.0, {})


def test_left_is_left_and_front_is_up():
    """The marker lies left and front: left half, upper half of an axial picture."""
    axial = FRAME.sample(phantom(), 'axial', 20.0)
    rows, columns = np.nonzero(axial > 150)
    assert rows.max() < 30
    assert columns.max() < 30
    coronal = FRAME.sample(phantom(), 'coronal', 24.0)
    rows, columns = np.nonzero(coronal > 150)
    assert rows.max() < 30  # superior is up
    assert columns.max() < 30
    sagittal = FRAME.sample(phantom(), 'sagittal', -14.0)
    rows, columns = np.nonzero(sagittal > 150)
    assert rows.max() < 30
    assert columns.min() > 30  # anterior is at the right
    assert not (FRAME.sample(phantom(), 'sagittal', 14.0) > 150).any()


@pytest.mark.parametrize('code', ['LAS', 'PIR', 'SRA', 'LPI', 'ASL'])
@pytest.mark.parametrize('order', [0, 1])
def test_any_order_of_axes_looks_the_same(code, order):
    for plane, position in (('axial', 20.2), ('coronal', 23.7), ('sagittal', -13.6)):
        expected = FRAME.sample(phantom(), plane, position, order)
        found = FRAME.sample(reordered(phantom(), code), plane, position, order)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_anisotropic_voxels_keep_their_proportions():
    """A box of 40 x 60 x 50 mm is as large in the picture, whatever the slice thickness."""
    thick = phantom(zooms=(0.7, 0.7, 3.0))
    coronal = FRAME.sample(thick, 'coronal', 0.0) > 50
    height = coronal.any(1).sum()
    width = coronal.any(0).sum()
    assert abs(width - 40) <= 2
    assert abs(height - 50) <= 4  # one slice of 3 mm, and rounding


def test_oblique_agrees_with_aligned():
    """A phantom sampled on a turned grid shows upright again, up to interpolation."""
    angle = np.radians(17)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight = phantom()
    affine = turn @ straight.affine
    index = np.indices(straight.data.shape).reshape(3, -1).T
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inside = np.rint((world - straight.affine[:3, 3]) / 1.0).astype(int)
    valid = ((inside >= 0) & (inside < straight.data.shape)).all(1)
    data = np.zeros(straight.data.shape, np.float32)
    data.reshape(-1)[valid] = straight.data[tuple(inside[valid].T)]
    oblique = Volume(data, affine)
    expected = FRAME.sample(straight, 'axial', 20.0) > 50
    found = FRAME.sample(oblique, 'axial', 20.0) > 50
    overlap = 2 * (expected & found).sum() / (expected.sum() + found.sum())
    assert overlap > 0.95


def test_linear_interpolation_is_exact_on_a_ramp():
    shape = (9, 8, 7)
    data = np.fromfunction(lambda i, j, k: 2 * i + 3 * j - k, shape).astype(np.float32)
    affine = np.diag([2.0, -1.5, 3.0, 1.0])
    affine[:3, 3] = (-5, 9, -4)
    axes = [np.linspace(-4, 6, 5), np.linspace(0, 8, 6), np.array([2.3])]
    found = sample_grid(Volume(data, affine), axes)
    grid = np.stack(np.meshgrid(*axes, indexing='ij'), -1)
    voxel = (grid - affine[:3, 3]) / np.diag(affine)[:3]
    expected = voxel @ [2, 3, -1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_outside_is_zero():
    ones = Volume(np.ones((4, 4, 4), np.float32), np.eye(4))
    axis = np.array([-0.6, -0.4, 3.4, 3.6])
    found = sample_grid(ones, [axis, np.array([1.0]), np.array([1.0])])[:, 0, 0]
    np.testing.assert_array_equal(found, [0, 1, 1, 0])


def test_frame_follows_a_plausible_mask_and_ignores_an_absurd_one():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -100
    scan = np.full((100, 100, 100), 50.0, np.float32)
    mask = np.zeros(scan.shape, np.uint8)
    mask[20:75, 15:80, 20:70] = 1  # 1.4 litres
    frame = make_frame(Volume(scan, affine), Volume(mask, affine))
    assert (frame.high - frame.low).max() < 180
    for cuts in frame.cuts.values():
        assert len(cuts) == 7
        assert (np.diff(cuts) > 0).all()
    tiny = np.zeros_like(mask)
    tiny[48:52, 48:52, 48:52] = 1
    frame = make_frame(Volume(scan, affine), Volume(tiny, affine))
    assert (frame.high - frame.low).min() > 180


def test_large_grids_are_shown_coarsely():
    scan = Volume(np.ones((50, 50, 50), np.float32), np.diag([12.0, 12, 12, 1]))
    frame = make_frame(scan)
    assert max(frame.size('axial')) <= 301


def test_constant_and_empty_scans_have_a_window():
    for value in (0.0, 5.0):
        scan = Volume(np.full((8, 8, 8), value, np.float32), np.eye(4))
        low, high = display_window(scan)
        assert high > low
        assert np.isfinite(head_box(scan)).all()


def test_load_takes_the_first_volume_and_drops_what_is_not_finite(tmp_path):
    data = np.ones((4, 5, 6, 2), np.float32)
    data[0, 0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / 'a.nii.gz')
    volume = load_volume(tmp_path / 'a.nii.gz')
    assert volume.data.shape == (4, 5, 6)
    assert volume.data[0, 0, 0] == 0
    assert load_volume(tmp_path / 'a.nii.gz', labels=True).data.dtype.kind == 'i'
