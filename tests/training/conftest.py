# SPDX-License-Identifier: Apache-2.0
"""A small head made of ellipsoids with FreeSurfer numbers, so that training code always runs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


def make_head(size: int = 72) -> np.ndarray:
    """Return a label map in RAS+ order: skin, CSF, two hemispheres, deep grey matter."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing='ij'))

    def ellipsoid(centre, radii):
        return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1

    labels = np.zeros((size,) * 3, dtype=np.int16)
    labels[ellipsoid((0, 0, 0), (0.9, 0.95, 0.9))] = 515
    labels[ellipsoid((0, 0, 0), (0.8, 0.85, 0.8))] = 24
    brain = ellipsoid((0, 0, 0), (0.75, 0.8, 0.75))
    left = grid[0] < 0
    labels[brain & left], labels[brain & ~left] = 3, 42
    white = ellipsoid((0, 0, 0), (0.6, 0.65, 0.6))
    labels[white & left], labels[white & ~left] = 2, 41
    for sign, values in ((-1, (10, 12, 17)), (1, (49, 51, 53))):
        for value, (centre, radius) in zip(
            values, (((0.15, 0, 0), 0.12), ((0.4, 0.1, 0), 0.12), ((0.35, -0.2, -0.3), 0.12)),
            strict=True,
        ):  # fmt: skip
            labels[ellipsoid((sign * centre[0], *centre[1:]), (radius,) * 3)] = value
    return labels


@pytest.fixture(scope='session')
def head_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two label maps, one of them stored in LIA order as the public ones are."""
    folder = tmp_path_factory.mktemp('label_maps')
    labels = make_head()
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -36
    files = []
    for number, axcodes in enumerate(('RAS', 'LIA')):
        image = nib.Nifti1Image(labels, affine)
        target = nib.orientations.axcodes2ornt(axcodes)
        start = nib.io_orientation(affine)
        image = image.as_reoriented(nib.orientations.ornt_transform(start, target))
        file = folder / f'training_seg_{number:02d}.nii.gz'
        nib.save(image, file)
        files.append(file)
    return files
