# SPDX-License-Identifier: Apache-2.0
"""Rigid registration across contrasts, on a head of ellipsoids whose pose is known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from bids_app.errors import ImageError
from bids_app.registration.rigid import register_rigid, rigid_displacement
from bids_app.registration.similarity import (
    BINS,
    Comparison,
    Sampler,
    normalised_mutual_information,
    shrink,
)

CENTRE = np.array([0.0, -15.0, 10.0])
SHAPE, AFFINE = (56, 72, 56), np.array([[3.0, 0, 0, -84], [0, 3, 0, -123], [0, 0, 3, -74],
                                        [0, 0, 0, 1]])  # fmt: skip
# What the tissues look like: CSF, grey matter, white matter, on two contrasts.
T1W, FLAIR = (40, 90, 130), (25, 120, 95)
VENTRICLES, WHITE = (4, 43, 14), (2, 41, 16)


def paint(labels, values):
    csf, grey, white = values
    image = np.where(labels > 0, grey, 8).astype(np.float32)
    image[np.isin(labels, WHITE)] = white
    image[np.isin(labels, VENTRICLES)] = csf
    rng = np.random.default_rng(1)
    return image + rng.normal(0, 3, image.shape).astype(np.float32)


def rigid(vector, shift):
    """Turn by a vector of degrees about the head's centre, then shift by mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(vector, degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE + shift
    return matrix


def grid_about(centre, directions, sizes, shape):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) * sizes
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


@pytest.fixture(scope='module')
def scene(phantoms):
    """A head on a grid of 3 mm, and a function that scans it again after it has moved."""
    phantom, _ = phantoms
    labels = phantom(AFFINE, SHAPE)

    def scan(truth, *, tilt=(3, -6, 4), sizes=(1.8, 1.8, 6.0), shape=(100, 116, 24), signs=1):
        directions = Rotation.from_rotvec(tilt, degrees=True).as_matrix() * signs
        affine = grid_about(truth[:3, :3] @ CENTRE + truth[:3, 3], directions, sizes, shape)
        back = np.linalg.inv(truth)
        # Two sub-slices per slice: the mean is what a thick slice shows.
        found = []
        for part in (-0.25, 0.25):
            sub = affine.copy()
            sub[:3, 3] += part * affine[:3, 2]
            moved = phantom(sub, shape, lambda p: back[:3, :3] @ p + back[:3, 3:])
            found.append((paint(moved, FLAIR), moved > 0))
        return (found[0][0] + found[1][0]) / 2, affine, found[0][1]

    return paint(labels, T1W), labels > 0, scan


def errors(found, truth):
    points = CENTRE + np.random.default_rng(0).normal(0, 35, (200, 3))
    apart = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
    rest = Rotation.from_matrix(found[:3, :3] @ truth[:3, :3].T).magnitude()
    return np.linalg.norm(apart, axis=1).mean(), np.degrees(rest)


@pytest.mark.parametrize('masked', [False, True])
def test_thick_oblique_slices_of_a_moved_head(scene, masked):
    fixed, fixed_mask, scan = scene
    truth = rigid((12, -9, 10), (12, -9, 8))
    moving, affine, moving_mask = scan(truth, signs=np.array([-1, 1, -1]))
    masks = {'fixed_mask': fixed_mask, 'moving_mask': moving_mask} if masked else {}
    matrix, measures = register_rigid(fixed, AFFINE, moving, affine, **masks)
    distance, angle = errors(matrix, truth)
    assert distance < 0.5
    assert angle < 0.5
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    assert measures['similarity'] > measures['similarity_header'] + 0.02
    assert measures['shift_mm'] == pytest.approx(17, abs=1)
    assert measures['rotation_degrees'] == pytest.approx(18.0, abs=0.5)
    assert measures['coverage'] > 0.97
    if masked:
        assert measures['dice'] > 0.95
    else:
        assert np.isnan(measures['dice'])


def test_the_same_again(scene):
    fixed, mask, scan = scene
    moving, affine, _ = scan(np.eye(4))
    first, measures = register_rigid(fixed, AFFINE, moving, affine, fixed_mask=mask)
    second, _ = register_rigid(fixed, AFFINE, moving, affine, fixed_mask=mask)
    np.testing.assert_array_equal(first, second)
    assert errors(first, np.eye(4))[0] < 0.5
    assert measures['start'] == 'header'


def test_a_header_that_is_far_off(scene):
    """Origin 120 mm away, and the head upside down: the masks show the way."""
    fixed, fixed_mask, scan = scene
    truth = rigid((170, 0, 20), (120, -60, 40))
    moving, affine, moving_mask = scan(truth)
    matrix, measures = register_rigid(
        fixed, AFFINE, moving, affine, fixed_mask=fixed_mask, moving_mask=moving_mask
    )
    distance, angle = errors(matrix, truth)
    assert distance < 0.5
    assert angle < 0.5
    assert measures['start'] == 'centres, right angles'


def test_coverage_of_a_slab(scene):
    """A slab of 48 mm covers a part of the brain, and still finds its place."""
    fixed, fixed_mask, scan = scene
    truth = rigid((4, 3, -5), (3, 2, -4))
    moving, affine, moving_mask = scan(truth, tilt=(0, 0, 0), shape=(100, 116, 8))
    matrix, measures = register_rigid(
        fixed, AFFINE, moving, affine, fixed_mask=fixed_mask, moving_mask=moving_mask
    )
    assert errors(matrix, truth)[0] < 1.0
    assert 0.3 < measures['coverage'] < 0.65
    assert measures['dice'] > 0.9


def test_a_real_flair_is_found_again(data_dir):
    """The header of a FLAIR of 4 mm slices is displaced; the same place is found, after it."""
    folder = data_dir / 'bids_real' / 'sub-ms01' / 'ses-1' / 'anat'
    images = []
    for suffix in ('T1w', 'FLAIR'):
        path = folder / f'sub-ms01_ses-1_{suffix}.nii.gz'
        if not path.is_file():
            pytest.skip(f'{path} is not there')
        image = nib.load(path)
        images.append((np.asarray(image.dataobj, dtype=np.float32), image.affine))
    fixed, (moving, affine) = images
    before, measures = register_rigid(*fixed, moving, affine)
    assert measures['displacement_mm'] < 2  # one session: the headers are nearly right
    truth = rigid((-11, 8, 12), (-10, 12, 9))
    after, _ = register_rigid(*fixed, moving, truth @ affine)
    distance, angle = errors(after, truth @ before)
    assert distance < 0.2
    assert angle < 0.2


def test_nothing_to_register(scene):
    fixed, mask, _ = scene
    with pytest.raises(ImageError, match='brain mask'):
        register_rigid(fixed, AFFINE, fixed, AFFINE, fixed_mask=np.zeros_like(mask))
    with pytest.raises(ImageError, match='moving image'):
        register_rigid(fixed, AFFINE, np.zeros_like(fixed), AFFINE)
    with pytest.raises(ImageError, match='single voxel'):
        register_rigid(fixed, AFFINE, fixed[:, :, :1], AFFINE)


def test_displacement():
    points = np.random.default_rng(2).normal(0, 30, (500, 3))
    points -= points.mean(axis=0)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0, 0, 10], degrees=True).as_matrix()
    shift, degrees, mean = rigid_displacement(matrix, points)
    assert shift == pytest.approx(0, abs=1e-9)
    assert degrees == pytest.approx(10)
    arc = 2 * np.sin(np.radians(5)) * np.hypot(points[:, 0], points[:, 1])
    assert mean == pytest.approx(arc.mean())


def test_mutual_information_of_equal_and_of_independent_images():
    assert normalised_mutual_information(np.eye(8) * 5)[0] == pytest.approx(2)
    assert normalised_mutual_information(np.outer(range(1, 9), range(1, 6)))[0] == pytest.approx(1)


def test_slope_of_mutual_information():
    rng = np.random.default_rng(3)
    histogram = rng.uniform(1, 9, (6, 7))
    change = rng.normal(size=(6, 7))
    change -= change.mean()  # the sum of the counts stays
    step = 1e-5
    values = [normalised_mutual_information(histogram + s * step * change)[0] for s in (1, -1)]
    slope = normalised_mutual_information(histogram)[1]
    assert (slope * change).sum() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_slope_of_the_comparison():
    """The derivative along a movement is that of the similarity itself."""
    rng = np.random.default_rng(4)
    image = gaussian_filter(rng.normal(size=(24, 26, 22)), 2).astype(np.float32)
    affine = grid_about([1, 2, 3], Rotation.from_rotvec([0.2, 0.1, -0.3]).as_matrix(),
                        (2.0, 1.5, 3.0), image.shape)  # fmt: skip
    points = rng.uniform(-14, 14, (3, 4000)) + [[1], [2], [3]]
    sampler = Sampler(image, affine)
    bins = np.rint(BINS / 2 + 4 * rng.normal(size=4000)).astype(int).clip(3, BINS - 4)
    bins += np.rint(40 * sampler(points)[0]).astype(int).clip(-3, 3)
    comparison = Comparison(points, bins, sampler, (float(image.min()), float(image.max())))
    direction = rng.normal(size=(3, 1)) * np.ones((1, 4000))
    step = 1e-4
    values = [comparison(points + s * step * direction)[0] for s in (1, -1)]
    slope = comparison(points)[1]
    expected = (values[0] - values[1]) / (2 * step)
    assert (slope * direction).sum() == pytest.approx(expected, rel=0.02)


def test_sampling_of_a_ramp():
    """Linear interpolation of a linear image is exact, and so is its derivative."""
    affine = grid_about([4, -3, 2], Rotation.from_rotvec([0.5, -0.2, 0.1]).as_matrix(),
                        (1.0, 2.0, 4.0), (20, 14, 9))  # fmt: skip
    slope = np.array([0.7, -1.1, 0.4])
    where = np.indices((20, 14, 9)).reshape(3, -1)
    image = (slope @ (affine[:3, :3] @ where + affine[:3, 3:])).reshape(20, 14, 9)
    points = np.array([[4.0, -3, 2], [6, -1, 1], [1, -4, 5]]).T
    values, found, inside = Sampler(image, affine)(points)
    np.testing.assert_allclose(values, slope @ points, atol=1e-4)
    np.testing.assert_allclose(found, np.tile(slope[:, None], 3), atol=1e-4)
    assert inside.all()
    assert not Sampler(image, affine)(points + 100)[2].any()


def test_shrinking_keeps_the_place():
    """Blocks are as long as fits; their centres lie where the affine says."""
    affine = grid_about([3, 2, 1], np.eye(3), (0.7, 1.0, 5.0), (31, 30, 8))
    where = np.indices((31, 30, 8)).reshape(3, -1)
    image = (affine[:3, :3] @ where + affine[:3, 3:])[0].reshape(31, 30, 8)
    small, grid = shrink(image, affine, 2.0)
    assert small.shape == (11, 15, 8)  # three voxels, two voxels, and slices that are longer
    along = grid[0, 0] * np.arange(11) + grid[0, 3]
    np.testing.assert_allclose(small[:10, 4, 4], along[:10], atol=1e-4)
