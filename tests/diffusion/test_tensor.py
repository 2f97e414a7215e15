# SPDX-License-Identifier: Apache-2.0
"""Tests of the tensor fit against tensors that are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from bids_app.diffusion.tensor import design_matrix, fit_tensor, fractional_anisotropy


@pytest.fixture
def scheme() -> tuple[np.ndarray, np.ndarray]:
    """Two volumes of b = 0 and 24 directions on two shells."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(26, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:2] = 0
    return np.r_[0, 0, np.full(12, 700.0), np.full(12, 1200.0)], vectors


def _tensors(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random tensors (n, 3, 3) with their eigenvalues (n, 3) and eigenvectors (n, 3, 3)."""
    rng = np.random.default_rng(2)
    values = np.sort(rng.uniform(0.1, 3, (count, 3)))[:, ::-1]
    vectors = Rotation.random(count, rng=3).as_matrix()
    return vectors @ (values[:, :, None] * vectors.transpose(0, 2, 1)), values, vectors


def _signals(tensors: np.ndarray, bvals: np.ndarray, bvecs: np.ndarray, s0: float) -> np.ndarray:
    """Straight from the physics: S0 exp(-b g'Dg), with D in um^2/ms and b in s/mm^2."""
    return s0 * np.exp(-bvals / 1000 * np.einsum('ni,vij,nj->vn', bvecs, tensors, bvecs))


def test_known_tensors_come_back(scheme: tuple[np.ndarray, np.ndarray]) -> None:
    bvals, bvecs = scheme
    tensors, values, vectors = _tensors(60)
    data = _signals(tensors, bvals, bvecs, 800.0).reshape(3, 4, 5, 26).astype(np.float32)
    fit = fit_tensor(data, bvals, bvecs)
    assert_allclose(fit.s0, 800, rtol=1e-4)
    expected = tensors[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]].T.reshape(6, 3, 4, 5)
    assert_allclose(fit.tensor, expected, atol=2e-4)
    assert_allclose(fit.eigenvalues, values.T.reshape(3, 3, 4, 5), atol=2e-4)
    found = fit.eigenvectors.reshape(3, 3, 60)
    assert_allclose(np.abs(np.einsum('aiv,via->av', found, vectors)), 1, atol=1e-3)
    assert {part.dtype for part in (fit.s0, fit.tensor, fit.eigenvalues)} == {np.dtype('f4')}


def test_weights_are_those_of_the_textbook(scheme: tuple[np.ndarray, np.ndarray]) -> None:
    """Noisy data: W = diag(S_ols^2), solved voxel by voxel with numpy's least squares."""
    bvals, bvecs = scheme
    tensors, _, _ = _tensors(20)
    clean = _signals(tensors, bvals, bvecs, 100.0)
    data = np.abs(clean + np.random.default_rng(4).normal(0, 6, clean.shape)) + 0.1
    design = design_matrix(bvals, bvecs)
    expected = []
    for signal in np.log(data):
        first = np.linalg.lstsq(design, signal, rcond=None)[0]
        weight = np.exp(design @ first)
        expected.append(np.linalg.lstsq(design * weight[:, None], signal * weight, rcond=None)[0])
    fit = fit_tensor(data.reshape(20, 1, 1, 26), bvals, bvecs)
    assert_allclose(fit.tensor.reshape(6, 20), np.array(expected).T[:6], atol=2e-4)
    assert_allclose(fit.s0.ravel(), np.exp(np.array(expected)[:, 6]), rtol=1e-4)
    assert (fit.eigenvalues >= 0).all()


def test_values_that_no_magnitude_image_has_do_not_count(
    scheme: tuple[np.ndarray, np.ndarray],
) -> None:
    bvals, bvecs = scheme
    tensors, values, _ = _tensors(4)
    data = _signals(tensors, bvals, bvecs, 500.0).reshape(4, 1, 1, 26)
    data[0, ..., 5], data[1, ..., 9], data[2, ..., 0], data[3] = 0, -40, np.nan, 0
    fit = fit_tensor(data, bvals, bvecs)
    assert_allclose(fit.eigenvalues[:, :3, 0, 0], values[:3].T, atol=2e-4)
    assert fit.s0[3] == 0
    assert not fit.tensor[:, 3].any()


def test_mask_and_layout(scheme: tuple[np.ndarray, np.ndarray]) -> None:
    bvals, bvecs = scheme
    tensors, _, _ = _tensors(60)
    data = _signals(tensors, bvals, bvecs, 50.0).reshape(3, 4, 5, 26)
    mask = np.random.default_rng(5).uniform(size=(3, 4, 5)) > 0.5
    whole = fit_tensor(data, bvals, bvecs)
    part = fit_tensor(np.asfortranarray(data), bvals, bvecs.T, mask)
    assert_allclose(part.tensor, np.where(mask, whole.tensor, 0), atol=1e-6)
    assert_allclose(part.s0, np.where(mask, whole.s0, 0), rtol=1e-6)


def test_scale_of_the_data_does_not_matter(scheme: tuple[np.ndarray, np.ndarray]) -> None:
    bvals, bvecs = scheme
    data = _signals(_tensors(8)[0], bvals, bvecs, 1.0).reshape(2, 2, 2, 26)
    small, large = (fit_tensor(data * scale, bvals, bvecs) for scale in (1e-4, 1e6))
    assert_allclose(small.tensor, large.tensor, atol=1e-4)


@pytest.mark.parametrize('count', [6, 7])
def test_too_few_measurements(scheme: tuple[np.ndarray, np.ndarray], count: int) -> None:
    bvals, bvecs = np.r_[0, np.full(count - 1, 1000.0)], scheme[1][1 : count + 1]
    data = np.full((2, 2, 2, count), 100.0)
    if count == 7:  # one b = 0 and six directions are just enough
        assert_allclose(fit_tensor(data, bvals, bvecs).eigenvalues, 0, atol=1e-5)
        return
    with pytest.raises(ValueError, match='fewer than six directions'):
        fit_tensor(data, bvals, bvecs)


def test_directions_in_a_plane_are_no_tensor() -> None:
    angles = np.linspace(0, np.pi, 10, endpoint=False)
    bvecs = np.c_[np.cos(angles), np.sin(angles), np.zeros(10)]
    bvals = np.r_[0, np.full(9, 1000.0)]
    with pytest.raises(ValueError, match='no tensor'):
        fit_tensor(np.ones((1, 1, 1, 10)), bvals, bvecs)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match='do not fit data'):
        fit_tensor(np.ones((1, 1, 1, 8)), np.zeros(7), np.ones((7, 3)))
    with pytest.raises(ValueError, match='do not fit b-vectors'):
        fit_tensor(np.ones((1, 1, 1, 8)), np.zeros(8), np.ones((7, 3)))


def test_anisotropy_of_a_stick_and_a_ball() -> None:
    values = np.array([[1.0, 1.0, 2.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.5, 0.0]])
    spread = np.sqrt(1.5 * ((values[:, 2] - 3.5 / 3) ** 2).sum() / 5.25)
    assert_allclose(fractional_anisotropy(values), [1, 0, spread, 0], atol=1e-12)
