# SPDX-License-Identifier: Apache-2.0
"""Tests of reading and joining diffusion runs, and of what bad input gets."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose

from bids_app.diffusion.series import (
    coverage_notes,
    join_runs,
    read_run,
    without_undirected,
)
from bids_app.errors import ImageError

BVALS = np.r_[0, np.full(7, 1000.0)]


def make_run(
    folder: Path, name: str = 'sub-01_dwi', *, shape=(10, 10, 8), volumes: int = 8,
    scale: float = 1.0, zooms=(3.0, 3.0, 3.0), bvecs: np.ndarray | None = None,
    data: np.ndarray | None = None,
) -> tuple[Path, Path, Path]:  # fmt: skip
    rng = np.random.default_rng(7)
    if data is None:
        data = scale * rng.uniform(50, 100, (*shape, volumes))
    if bvecs is None:
        bvecs = rng.normal(size=(8, 3))
        bvecs[0] = 0
    image, bval, bvec = (folder / f'{name}{end}' for end in ('.nii.gz', '.bval', '.bvec'))
    nib.save(nib.Nifti1Image(np.squeeze(data).astype(np.float32), np.diag([*zooms, 1])), image)
    np.savetxt(bval, BVALS[None])
    np.savetxt(bvec, bvecs.T)
    return image, bval, bvec


def test_runs_are_joined_at_the_level_of_the_first(tmp_path: Path) -> None:
    one = read_run(*make_run(tmp_path, 'sub-01_run-1_dwi'))
    two = read_run(*make_run(tmp_path, 'sub-01_run-2_dwi', scale=3.0))
    joined = join_runs([one, two], 50)
    assert joined.data.shape == (10, 10, 8, 16)
    assert len(joined.gradients) == 16
    assert_allclose(joined.data[..., 8:], joined.data[..., :8], rtol=1e-5)
    assert join_runs([one], 50) is one


def test_runs_on_different_grids(tmp_path: Path) -> None:
    one = read_run(*make_run(tmp_path, 'sub-01_run-1_dwi'))
    two = read_run(*make_run(tmp_path, 'sub-01_run-2_dwi', zooms=(3, 3, 3.2)))
    with pytest.raises(ImageError, match='run-2_dwi.nii.gz: not on the grid of sub-01_run-1'):
        join_runs([one, two], 50)


def test_a_trace_image_named_dwi(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r'1 volume \(a trace or ADC map\?\), but 8 b-values'):
        read_run(*make_run(tmp_path, volumes=1))


def test_an_image_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match='6 volumes, but 8 b-values'):
        read_run(*make_run(tmp_path, volumes=6))


def test_values_that_are_not_finite_or_all_the_same(tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(1, 2, (10, 10, 8, 8))
    data[3, 3, 3, 3] = np.nan
    series = read_run(*make_run(tmp_path, data=data))
    assert series.data[3, 3, 3, 3] == 0
    assert 'NaN' in series.notes[0]
    with pytest.raises(ImageError, match='same value everywhere'):
        read_run(*make_run(tmp_path, data=np.full((10, 10, 8, 8), 4.0)))


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    image, bval, bvec = make_run(tmp_path)
    image.write_bytes(image.read_bytes()[:-2000])
    with pytest.raises(ImageError, match='cut off or damaged'):
        read_run(image, bval, bvec)


def test_weighted_volumes_without_direction_are_left_out(tmp_path: Path) -> None:
    bvecs = np.random.default_rng(1).normal(size=(8, 3))
    bvecs[[0, 4, 6]] = 0
    series = without_undirected(read_run(*make_run(tmp_path, bvecs=bvecs)), 50)
    assert len(series.gradients) == series.data.shape[3] == 6
    assert '2 weighted volumes without a direction' in series.notes[-1]
    zero = read_run(*make_run(tmp_path, bvecs=np.zeros((8, 3))))
    assert without_undirected(zero, 50) is zero
    assert 'are zero' in zero.tensor_problem(50)


def test_partial_coverage_is_flagged(tmp_path: Path) -> None:
    slab = read_run(*make_run(tmp_path, shape=(40, 40, 20), zooms=(4, 4, 4)))
    mask = np.zeros((40, 40, 20), bool)
    assert (
        'partial coverage: the images reach 80 mm from bottom to top'
        in (coverage_notes(slab, mask)[0])
    )
    whole = read_run(*make_run(tmp_path, shape=(40, 40, 30), zooms=(4, 4, 4)))
    mask = np.zeros((40, 40, 30), bool)
    mask[10:30, 10:30, 5:28] = True
    assert coverage_notes(whole, mask) == []
    mask[10:30, 10:30, 28:] = True
    assert 'cut off at the upper end' in coverage_notes(whole, mask)[0]
