# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_app.diffusion.channels import deepanat_channels
from bids_app.diffusion.tensor import fit_tensor, fractional_anisotropy
from bids_app.training.diffusion_simulation import (
    TISSUES,
    Microstructure,
    Scheme,
    axial_factor,
    draw_scheme,
    draw_tissues,
    fit_tensors,
    simulate_signals,
    spread_directions,
    stack_channels,
    tensor_eigenvalues,
    tissue_table,
)

WHITE, FLUID, CORTEX = 6, 3, 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def voxels(shares: dict[int, float], count: int = 50) -> Microstructure:
    table = torch.zeros(len(TISSUES), count)
    for tissue, share in shares.items():
        table[tissue] = share
    fibres = torch.nn.functional.normalize(torch.randn((3, count), generator=generator()), dim=0)
    one = torch.ones(count)
    return Microstructure(table, fibres, fibres, 0 * one, one, one)


def scheme(b: float = 100.0, count: int = 12) -> Scheme:
    """So weak a weighting that the decay is that of a tensor."""
    return Scheme(torch.full((count,), b), spread_directions(count, generator()), 1, 1, 0.0)


def eigenvalues(shares: dict[int, float]) -> np.ndarray:
    b0, weighted = simulate_signals(voxels(shares), draw_tissues(generator()), scheme())
    return tensor_eigenvalues(fit_tensors(b0, weighted, scheme())).numpy()


def test_every_label_has_its_tissue() -> None:
    table = tissue_table()
    for index, tissue in enumerate(TISSUES):
        assert all(int(table[label]) == index for label in tissue.labels)
    assert int(table[516]) == 1  # outside the brain


def test_axial_factor_gives_the_anisotropy() -> None:
    anisotropy = torch.linspace(0, 0.95, 20)
    k = axial_factor(anisotropy)
    found = fractional_anisotropy(torch.stack([1 + 2 * k, 1 - k, 1 - k]).numpy())
    np.testing.assert_allclose(found, anisotropy.numpy(), atol=1e-6)


@pytest.mark.parametrize('tissue', [WHITE, FLUID, CORTEX])
def test_pure_voxels_have_the_diffusivity_and_anisotropy_of_their_tissue(tissue: int) -> None:
    drawn = draw_tissues(generator())
    found = eigenvalues({tissue: 1.0})
    np.testing.assert_allclose(found.mean(axis=0), float(drawn.diffusivity[tissue]), rtol=0.03)
    wanted = 0 if tissue == FLUID else float(drawn.anisotropy[tissue])
    np.testing.assert_allclose(fractional_anisotropy(found), wanted, atol=0.03)


def test_mixtures_lie_between_their_tissues() -> None:
    white, both, fluid = (
        eigenvalues(shares).mean()
        for shares in ({WHITE: 1.0}, {WHITE: 0.5, FLUID: 0.5}, {FLUID: 1.0})
    )
    assert white < both < fluid


def test_crossing_fibres_lower_the_anisotropy() -> None:
    one = voxels({WHITE: 1.0})
    across = torch.linalg.cross(one.first, torch.tensor([[0.0], [0.0], [1.0]]), dim=0)
    across = torch.nn.functional.normalize(across, dim=0)
    tissues = draw_tissues(generator())
    found = [
        fractional_anisotropy(
            tensor_eigenvalues(
                fit_tensors(*simulate_signals(what, tissues, scheme()), scheme())
            ).numpy()
        ).mean()
        for what in (one, replace(one, second=across, crossing=torch.full((50,), 0.5)))
    ]
    assert found[1] < 0.75 * found[0]


def test_apparent_diffusivity_falls_at_high_b() -> None:
    tissues, what = draw_tissues(generator()), voxels({WHITE: 1.0})
    low, high = (
        tensor_eigenvalues(fit_tensors(*simulate_signals(what, tissues, one), one)).mean()
        for one in (scheme(100.0), scheme(3000.0))
    )
    assert 0.5 * low < high < 0.9 * low


def test_eigenvalues_are_those_of_lapack() -> None:
    tensors = torch.randn((6, 200), generator=generator())
    xx, xy, xz, yy, yz, zz = tensors
    matrices = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz]).T.reshape(-1, 3, 3)
    wanted = torch.linalg.eigvalsh(matrices.double()).flip(1).T.float()
    torch.testing.assert_close(tensor_eigenvalues(tensors), wanted, atol=2e-3, rtol=1e-3)


def test_directions_are_unit_vectors_all_over_the_sphere() -> None:
    directions = spread_directions(30, generator())
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(30))
    second = directions.T @ directions / 30
    torch.testing.assert_close(second, torch.eye(3) / 3, atol=0.03, rtol=0)


def test_schemes_determine_a_tensor() -> None:
    source = generator(3)
    for _ in range(50):
        drawn = draw_scheme(source)
        assert 300 <= float(drawn.bvals.min()) <= float(drawn.bvals.max()) <= 3000
        assert 6 <= len(drawn.bvals) <= 12
        x, y, z = drawn.bvecs.T
        products = torch.stack([x * x, x * y, x * z, y * y, y * z, z * z], dim=1)
        assert int(torch.linalg.matrix_rank(products, tol=1e-2)) == 6


def test_training_sees_the_channels_of_inference() -> None:
    """Without noise the fit of the application finds the same tensors; so do the channels."""
    shares = torch.rand((3, 64), generator=generator())
    shares = shares / shares.sum(dim=0)
    what = voxels({}, 64)
    for tissue, share in zip((WHITE, FLUID, CORTEX), shares, strict=True):
        what.shares[tissue] = share
    drawn = scheme(400.0)
    b0, weighted = simulate_signals(what, draw_tissues(generator()), drawn)
    raw = stack_channels(b0, weighted, fit_tensors(b0, weighted, drawn))
    trained = (raw - raw.mean(dim=1, keepdim=True)) / raw.std(dim=1, keepdim=True)
    trained[2:5] = raw[2:5]

    grid = (4, 4, 4)
    data = torch.cat([b0[None], weighted]).T.reshape(*grid, -1).numpy()
    bvals = np.concatenate([[0], drawn.bvals.numpy()])
    bvecs = np.concatenate([[[0, 0, 0]], drawn.bvecs.numpy()])
    mask = np.ones(grid)
    fit = fit_tensor(data, bvals, bvecs, mask)
    used = deepanat_channels(
        data[..., 0], data[..., 1:].mean(axis=3), fit.eigenvalues, fit.tensor, data[..., 0], mask
    )
    np.testing.assert_allclose(used.reshape(11, -1), trained.numpy(), atol=0.06)
