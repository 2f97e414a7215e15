# SPDX-License-Identifier: Apache-2.0
"""Mask operations against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_app.images.masks import (
    bounding_box,
    clean_mask,
    dilate_mm,
    erode_mm,
    fill_holes,
    largest_component,
    otsu_threshold,
    remove_small,
)


@pytest.fixture
def speckle() -> np.ndarray:
    rng = np.random.default_rng(0)
    return ndimage.gaussian_filter(rng.normal(size=(24, 26, 20)), 1.2) > 0.05


def test_bounding_box():
    mask = np.zeros((10, 11, 12), bool)
    mask[2:4, 5, 0:11] = True
    assert bounding_box(mask) == (slice(2, 4), slice(5, 6), slice(0, 11))
    assert bounding_box(mask, 2) == (slice(0, 6), slice(3, 8), slice(0, 12))
    assert bounding_box(mask, (0, 1, 0)) == (slice(2, 4), slice(4, 7), slice(0, 11))
    assert bounding_box(mask & False) == (slice(0, 10), slice(0, 11), slice(0, 12))


def test_largest_component(speckle):
    labels, count = ndimage.label(speckle)
    assert count > 1
    expected = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    np.testing.assert_array_equal(largest_component(speckle), expected)
    assert not largest_component(speckle & False).any()


def test_remove_small(speckle):
    labels, count = ndimage.label(speckle)
    sizes = np.bincount(labels.ravel())
    kept = remove_small(speckle, 20)
    assert kept.sum() == sizes[1:][sizes[1:] >= 20].sum()
    assert 0 < kept.sum() < speckle.sum()
    assert not remove_small(speckle & False, 1).any()


def test_fill_holes(speckle):
    np.testing.assert_array_equal(fill_holes(speckle), ndimage.binary_fill_holes(speckle))
    shell = np.zeros((9, 9, 9), bool)
    shell[1:8, 1:8, 1:8] = True
    shell[3:6, 3:6, 3:6] = False
    shell[0, 0, 0] = True
    assert clean_mask(shell).sum() == 7**3
    # A hole that touches the border of the array is outside.
    cup = np.ones((9, 9, 9), bool)
    cup[4, 4, 4:] = False
    np.testing.assert_array_equal(fill_holes(cup), cup)


@pytest.mark.parametrize('zooms', [(1, 1, 1), (0.7, 1.5, 3)])
@pytest.mark.parametrize('distance', [1.0, 2.5, 4.0])
def test_dilate_and_erode(speckle, zooms, distance):
    affine = np.diag([-zooms[0], zooms[1], zooms[2], 1])
    mask = largest_component(speckle)
    mask[:8] = mask[:, :8] = mask[:, :, :8] = False
    away = ndimage.distance_transform_edt(~mask, sampling=zooms)
    np.testing.assert_array_equal(dilate_mm(mask, affine, distance), away <= distance + 1e-6)
    depth = ndimage.distance_transform_edt(mask, sampling=zooms)
    expected = depth > distance + 1e-6
    np.testing.assert_array_equal(erode_mm(mask, affine, distance), expected)
    np.testing.assert_array_equal(dilate_mm(mask, affine, -distance), expected)


def test_otsu():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 9000), rng.normal(100, 10, 3000)])
    assert 20 < otsu_threshold(values) < 70
    assert otsu_threshold(np.full(10, 3.0)) == 3
    # The threshold of two separate values is halfway.
    assert otsu_threshold(np.repeat([0.0, 1.0], 5000)) == pytest.approx(0.5, abs=0.01)
