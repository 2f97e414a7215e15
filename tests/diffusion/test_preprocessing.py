# SPDX-License-Identifier: Apache-2.0
"""Tests of the correction of head motion."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from bids_app.diffusion.gradients import Gradients
from bids_app.diffusion.preprocessing import correct_motion, turned_direction
from bids_app.diffusion.series import Series
from bids_app.diffusion.tensor import fit_tensor
from bids_app.images.resample import resample_rigid
from bids_app.images.scans import Grid


def test_a_direction_turns_with_the_head() -> None:
    """The head has turned by 90 degrees about z: what lay along x lies along y now."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('z', 90, degrees=True).as_matrix()
    straight, oblique = np.eye(4), np.eye(4)
    assert_allclose(
        turned_direction(np.array([0.0, 1, 0]), straight, matrix), [1, 0, 0], atol=1e-12
    )
    oblique[:3, :3] = Rotation.from_euler('z', 30, degrees=True).as_matrix() * [2, 2, 3]
    # The map is about the axis that both have in common: the same in these axes.
    assert_allclose(
        turned_direction(np.array([0.0, 1, 0]), oblique, matrix), [1, 0, 0], atol=1e-12
    )
    assert not turned_direction(np.zeros(3), oblique, matrix).any()


def test_motion_is_found_and_taken_out() -> None:
    """One volume of a head with fibres along x is turned and shifted."""
    rng = np.random.default_rng(0)
    shape, size = (34, 38, 30), 5.0
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * size
    where = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    head = np.linalg.norm(where / [65, 75, 60], axis=-1) < 1
    texture = gaussian_filter(rng.normal(size=shape), 1.5)
    s0 = np.where(head, 300 + 150 * texture / texture.std(), 0).clip(0)
    bvecs = rng.normal(size=(9, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1, keepdims=True)
    bvecs[0] = 0
    bvals = np.r_[0, np.full(8, 1000.0)]
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler('xyz', [4, -6, 9], degrees=True).as_matrix()
    move[:3, 3] = [3, -2, 4]
    data = np.empty((*shape, 9), np.float32)
    tensor = np.diag([1.7, 0.3, 0.3])
    for index, (b, g) in enumerate(zip(bvals, bvecs, strict=True)):
        turned = move[:3, :3] @ tensor @ move[:3, :3].T if index == 5 else tensor
        volume = s0 * np.exp(-b / 1000 * g @ turned @ g)
        if index == 5:  # the head is at `move` of where it was
            volume, _ = resample_rigid(volume, affine, np.linalg.inv(move), shape, affine)
        data[..., index] = volume
    grid = Grid('x', shape, affine, None)
    series = Series(data, affine, Gradients(bvals, bvecs), grid, np.array([[0, 1]] * 3))
    corrected, measures = correct_motion(series, 50)
    found = np.array(measures['displacement_mm'])
    assert found.argmax() == 5
    assert np.delete(found, 5).max() < 1.0
    expected = bvecs[5] @ move[:3, :3]
    assert_allclose(corrected.gradients.bvecs[5], expected, atol=0.03)
    inner = np.linalg.norm(where / [45, 55, 40], axis=-1) < 1
    before = fit_tensor(series.data, bvals, bvecs, inner).eigenvectors[0][0][inner]
    after = fit_tensor(corrected.data, bvals, corrected.gradients.bvecs, inner)
    assert np.abs(after.eigenvectors[0][0][inner]).mean() > np.abs(before).mean()
    assert abs(np.median(after.eigenvalues[0][inner]) - 1.7) < 0.15
