# SPDX-License-Identifier: Apache-2.0
"""Tests of tensor maps, labels on the diffusion grid, and the table of regions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bids_app.data import structures
from bids_app.diffusion.maps import (
    REGION_COLUMNS,
    direction_colours,
    majority_labels,
    region_table,
    tensor_maps,
)
from bids_app.diffusion.tensor import TensorFit


def test_maps_of_known_eigenvalues() -> None:
    values = np.array([1.7, 0.4, 0.3], np.float32).reshape(3, 1, 1, 1)
    empty = np.zeros((1, 1, 1), np.float32)
    maps = tensor_maps(TensorFit(empty, np.zeros((6, 1, 1, 1)), values, np.zeros((3, 3, 1, 1, 1))))
    assert maps['md'].item() == pytest.approx(0.8)
    assert maps['ad'].item() == pytest.approx(1.7)
    assert maps['rd'].item() == pytest.approx(0.35)
    # Basser & Pierpaoli's other formula, of differences.
    one, two, three = values.ravel().astype(float)
    other = ((one - two) ** 2 + (two - three) ** 2 + (three - one) ** 2) / 2
    assert maps['fa'].item() == pytest.approx((other / (one**2 + two**2 + three**2)) ** 0.5)


def test_colours_are_those_of_the_world() -> None:
    """Voxel axis 0 of this image runs from bottom to top: a fibre along it is blue."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 2, -3, 4, 1
    vectors = np.zeros((3, 1, 1, 1))
    vectors[0] = -1
    colours = direction_colours(np.full((1, 1, 1), 0.6), vectors, affine)
    assert_allclose(colours.ravel(), [0, 0, 0.6], atol=1e-6)


def test_labels_on_a_coarser_grid_are_those_of_the_majority() -> None:
    labels = np.zeros((8, 8, 8), np.int16)
    labels[:4], labels[4:, :4] = 10, 49
    labels[3, 0, 0] = 17  # one voxel of eight
    affine = np.diag([1.0, 1, 1, 1])
    coarse = np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = 0.5
    found = majority_labels(labels, affine, (4, 4, 4), coarse)
    assert (found[:2] == 10).all()
    assert (found[2:, :2] == 49).all()
    assert (found[2:, 2:] == 0).all()
    assert found.dtype == np.int16


def test_labels_follow_a_map_between_the_worlds() -> None:
    labels = np.zeros((10, 10, 10), np.int16)
    labels[5, 6, 7] = 4
    matrix = np.eye(4)
    matrix[:3, 3] = [2, 1, -1]  # a point of the other grid lies there among the labels
    found = majority_labels(labels, np.eye(4), (10, 10, 10), np.eye(4), matrix)
    assert np.argwhere(found == 4).tolist() == [[3, 5, 8]]


def test_table_of_regions() -> None:
    labels = np.zeros((4, 4, 4), np.int16)
    labels[0], labels[1, 0, 0] = 10, 17
    rng = np.random.default_rng(0)
    maps = {name: rng.uniform(0, 1, labels.shape) for name in ('fa', 'md', 'ad', 'rd')}
    valid = np.ones(labels.shape, bool)
    valid[0, 0] = False
    table = region_table(labels, maps, valid).set_index('index')
    assert list(table.reset_index().columns) == list(REGION_COLUMNS)
    assert len(table) == len(structures())
    inside = maps['md'][0, 1:]
    assert table.loc[10, 'voxels'] == 12
    assert table.loc[10, 'md_mean'] == pytest.approx(inside.mean())
    assert table.loc[10, 'md_sd'] == pytest.approx(inside.std(ddof=1))
    assert table.loc[17, 'fa_mean'] == pytest.approx(maps['fa'][1, 0, 0])
    assert np.isnan(table.loc[17, 'fa_sd'])
    assert table.loc[49, 'voxels'] == 0
    assert np.isnan(table.loc[49, 'rd_mean'])
