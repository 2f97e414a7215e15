# SPDX-License-Identifier: Apache-2.0
"""Tests of gradient tables: files, FSL's convention, and vectors that turn with the image."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from bids_app.diffusion.channels import DIRECTIONS
from bids_app.diffusion.gradients import (
    Gradients,
    count_directions,
    ras_directions,
    read_gradients,
    shells,
    tensor_problem,
    voxel_directions,
    world_directions,
)
from bids_app.diffusion.series import read_run
from bids_app.diffusion.tensor import fit_tensor
from bids_app.errors import ImageError
from bids_app.images.grids import canonical_affine

OBLIQUE = Rotation.from_euler('xyz', [12, -17, 25], degrees=True).as_matrix()
ORIENTATIONS = [
    np.eye(3)[list(order)] * np.array(signs)
    for order in permutations(range(3))
    for signs in product([1, -1], repeat=3)
]


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fsl_vectors(world: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Write world directions as FSL documents it: image axes, x negated for det > 0."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    vectors = world @ axes  # the axes are orthonormal: components along them
    if np.linalg.det(axes) > 0:
        vectors = vectors * [-1, 1, 1]
    return vectors


@pytest.mark.parametrize('oblique', [False, True])
@pytest.mark.parametrize('axes', ORIENTATIONS)
def test_the_world_direction_is_invariant(axes: np.ndarray, oblique: bool) -> None:
    """All 48 ways to permute and flip the axes of a file, straight and oblique."""
    affine = np.eye(4)
    affine[:3, :3] = (OBLIQUE if oblique else np.eye(3)) @ axes * [2.0, 2.5, 3.0]
    world = unit(9)
    ras = ras_directions(fsl_vectors(world, affine), affine)
    _, affine_ras, _ = canonical_affine((4, 5, 6), affine)
    assert_allclose(world_directions(ras, affine_ras), world, atol=1e-12)
    assert_allclose(voxel_directions(world, affine_ras), ras, atol=1e-12)


@pytest.mark.parametrize('axes', ORIENTATIONS[::7])
def test_a_fibre_keeps_its_place_and_direction(tmp_path: Path, axes: np.ndarray) -> None:
    """A stick at a known place of the world, from a file of any orientation to the tensor."""
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ axes * [2.0, 2.5, 3.0]
    shape = (9, 8, 10)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    world = np.r_[[[0, 0, 0]], unit(20, 1)]
    bvals = np.r_[0, np.full(20, 1000.0)]
    fibre = unit(1, 2)[0]
    place = np.array([4.0, -3.0, 5.0])
    where = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    tensor = 0.3 * np.eye(3) + 1.4 * np.outer(fibre, fibre)
    stick = 500 * np.exp(-bvals / 1000 * np.einsum('ni,ij,nj->n', world, tensor, world))
    ball = 500 * np.exp(-bvals / 1000)
    near = np.linalg.norm(where - place, axis=1) < 4
    data = np.where(near[:, None], stick, ball).reshape(*shape, 21)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), tmp_path / 'sub-01_dwi.nii.gz')
    np.savetxt(tmp_path / 'bval', bvals[None])
    np.savetxt(tmp_path / 'bvec', fsl_vectors(world, affine).T)
    series = read_run(tmp_path / 'sub-01_dwi.nii.gz', tmp_path / 'bval', tmp_path / 'bvec')

    fit = fit_tensor(series.data, series.gradients.bvals, series.gradients.bvecs)
    found = np.argwhere(fit.eigenvalues[0] > 1.4)
    assert len(found) == near.sum()
    points = found @ series.affine[:3, :3].T + series.affine[:3, 3]
    assert (np.linalg.norm(points - place, axis=1) < 4).all()
    vectors = fit.eigenvectors[0][:, found[:, 0], found[:, 1], found[:, 2]].T
    assert_allclose(np.abs(world_directions(vectors, series.affine) @ fibre), 1, atol=1e-3)
    assert_allclose(series.to_file_order(series.data[..., 3]), data[..., 3], rtol=1e-6)
    channels = np.moveaxis(series.data, 3, 0)
    assert_allclose(series.to_file_order(channels), data, rtol=1e-6)


def write(folder: Path, bval: str, bvec: str) -> tuple[Path, Path]:
    (folder / 'x.bval').write_text(bval)
    (folder / 'x.bvec').write_text(bvec)
    return folder / 'x.bval', folder / 'x.bvec'


def test_rows_or_columns(tmp_path: Path) -> None:
    rows = read_gradients(*write(tmp_path, '0 1000\n', '0 0\n0 3\n0 4\n'))
    columns = read_gradients(*write(tmp_path, '0\n1000\n', '0 0 0\n0 3 4\n'))
    assert_allclose(rows.bvecs, [[0, 0, 0], [0, 0.6, 0.8]])
    assert_allclose(columns.bvecs, rows.bvecs)
    assert rows.bvals.tolist() == columns.bvals.tolist() == [0, 1000]
    square = read_gradients(*write(tmp_path, '0,5,9', '1 0 0\n2 0 0\n2 0 NaN'))
    assert_allclose(square.bvecs, [[1 / 3, 2 / 3, 2 / 3], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ('bval', 'bvec', 'message'),
    [
        ('0 1000 1000', '0 1\n0 0\n0 0', '3 b-values, but x.bvec has 2 vectors'),
        ('0 1000', '0 1\n0 0', 'not three rows'),
        ('', '0 1\n0 0\n0 0', 'is empty'),
        ('0 b1000', '0 1\n0 0\n0 0', 'not a table of numbers'),
        ('0 1000', '0 1\n0 0 1\n0 0', 'not a table of numbers'),
        ('0 -1000', '0 1\n0 0\n0 0', 'numbers from 0'),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, bval: str, bvec: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_gradients(*write(tmp_path, bval, bvec))


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match='cannot be read'):
        read_gradients(tmp_path / 'no.bval', tmp_path / 'no.bvec')


def test_shells() -> None:
    bvals = np.array([0, 5, 995, 1005, 2000, 1000, 2005, 60.0])
    assert shells(bvals, 50) == [(60.0, 1), (1000.0, 3), (2002.5, 2)]


def table(vectors: np.ndarray, b: float = 1000, b0: int = 1) -> Gradients:
    return Gradients(
        np.r_[np.zeros(b0), np.full(len(vectors), b)], np.r_[np.zeros((b0, 3)), vectors]
    )


def test_what_a_tensor_needs() -> None:
    assert tensor_problem(table(DIRECTIONS), 50) is None
    assert 'no b=0' in tensor_problem(table(DIRECTIONS, b0=0), 50)
    assert '5 different directions' in tensor_problem(table(np.r_[unit(5), -unit(5)]), 50)
    assert 'are zero' in tensor_problem(table(np.zeros((7, 3))), 50)
    assert 'no diffusion-weighted' in tensor_problem(table(DIRECTIONS, b=20), 50)
    angles = np.linspace(0, 3, 9)
    plane = np.c_[np.cos(angles), np.sin(angles), 0 * angles]
    assert 'plane' in tensor_problem(table(plane), 50)


def test_opposite_directions_count_once() -> None:
    vectors = unit(4)
    assert count_directions(table(np.r_[vectors, -vectors, vectors]), 50) == 4
