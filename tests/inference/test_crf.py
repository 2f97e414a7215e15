# SPDX-License-Identifier: Apache-2.0
"""The conditional random field by fast filters against the mean field with all pairs of voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.inference import crf
from bids_app.inference.crf import CRFParameters, dense_crf

SHAPE = (13, 12, 10)


def brute_force(probabilities, image, mask, parameters: CRFParameters) -> torch.Tensor:
    """Mean field with the kernels as full matrices, in double precision."""
    points = mask.nonzero().double()
    grey = image[mask].double()
    away = torch.cdist(points, points) ** 2
    apart = (grey[:, None] - grey[None]) ** 2
    near = torch.exp(-away / (2 * parameters.smoothness_mm**2))
    near.fill_diagonal_(0)
    alike = torch.exp(
        -away / (2 * parameters.appearance_mm**2)
        - apart / (2 * parameters.appearance_brightness**2)
    )
    joint = parameters.smoothness_weight * near / near.sum(dim=1, keepdim=True)
    joint += parameters.appearance_weight * alike / alike.sum(dim=1, keepdim=True)
    evidence = probabilities[:, mask].double().clamp_min(1e-5).log().T
    believed = evidence.softmax(dim=1)
    for _ in range(parameters.iterations):
        believed = (evidence + joint @ believed).softmax(dim=1)
    result = probabilities.clone()
    result[:, mask] = believed.T.float()
    return result


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return probabilities of four noisy classes, an image with three of them, and a mask."""
    generator = torch.Generator().manual_seed(4)
    grid = np.indices(SHAPE)
    labels = (grid[0] > 6).astype(int) + 2 * ((grid[1] > 5) & (grid[2] > 4))
    labels = torch.from_numpy(labels)
    image = torch.tensor([0.2, 0.5, 0.9, 0.9])[labels]
    image = image + 0.03 * torch.randn(SHAPE, generator=generator)
    logits = 1.5 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 0).float()
    logits = logits + torch.randn((4, *SHAPE), generator=generator)
    mask = torch.from_numpy(((grid - 5.5) ** 2).sum(axis=0) < 40)
    return logits.softmax(dim=0), image, mask


@pytest.mark.parametrize(
    ('parameters', 'cells', 'limit'),
    [
        (CRFParameters(2.0, 1.2, 0.0, iterations=5), 1.0, 1e-3),
        (CRFParameters(0.0, 1.0, 3.0, 3.0, 0.1, iterations=5), 1.0, 0.05),
        (CRFParameters(0.0, 1.0, 3.0, 3.0, 0.1, iterations=5), 3.0, 0.01),
        (CRFParameters(1.5, 1.0, 2.0, 4.0, 0.15, iterations=5), 1.0, 0.05),
    ],
)
def test_fast_filters_agree_with_all_pairs(scene, parameters, cells, limit):
    expected = brute_force(*scene, parameters)
    found = dense_crf(*scene, parameters=parameters, cells_per_sigma=cells)
    mask = scene[2]
    change = (expected - scene[0])[:, mask].abs()
    error = (found - expected)[:, mask].abs()
    assert change.max() > 0.3
    assert error.max() < limit
    assert error.mean() < 0.05 * change.mean()
    assert torch.equal(found[:, ~mask], scene[0][:, ~mask])
    assert found.sum(dim=0) == pytest.approx(torch.ones(SHAPE), abs=1e-5)


def test_certain_voxels_only_send(scene):
    probabilities, image, mask = scene
    sure = torch.zeros_like(mask)
    sure[:6] = True
    given = torch.where(sure, torch.tensor([0.9997, 1e-4, 1e-4, 1e-4])[:, None, None, None],
                        probabilities)  # fmt: skip
    parameters = CRFParameters(1.5, 1.0, 2.0, 3.0, 0.2)
    expected = brute_force(given, image, mask, parameters)
    found = dense_crf(given, image, mask, parameters=parameters, cells_per_sigma=3)
    assert torch.equal(found[:, sure & mask], given[:, sure & mask].log().softmax(dim=0))
    assert (found - expected)[:, mask].abs().max() < 0.02
    # All certain, and none: nothing to do, and nothing to send from.
    alone = dense_crf(given, image, mask & sure, parameters=parameters)
    assert torch.allclose(alone[:, mask & sure], given[:, mask & sure], atol=1e-3)


def test_groups_of_classes_change_nothing(scene, monkeypatch):
    whole = dense_crf(*scene)
    monkeypatch.setattr(crf, '_GRID_VALUES', 1)
    assert torch.allclose(dense_crf(*scene), whole, atol=1e-6)


def test_mirrored_brain_has_mirrored_probabilities(scene):
    probabilities, image, mask = scene
    whole = dense_crf(probabilities, image, mask)
    mirrored = dense_crf(probabilities.flip(1), image.flip(0), mask.flip(0))
    assert torch.allclose(mirrored.flip(1), whole, atol=1e-4)


def test_speckles_go_and_edges_of_the_image_stay():
    labels = torch.zeros((20, 20, 20), dtype=torch.long)
    labels[11:] = 1
    image = torch.where(labels == 1, 0.9, 0.5)
    given = torch.nn.functional.one_hot(labels, 3).movedim(-1, 0) * 0.7 + 0.1
    # The network puts the border two voxels too far to the left, without being sure, and a
    # speckle of the third class into the middle of the first.
    given[:, 9:11] = torch.tensor([0.42, 0.48, 0.1])[:, None, None, None]
    given[:, 4, 10, 10] = torch.tensor([0.3, 0.1, 0.6])
    mask = torch.ones_like(labels, dtype=torch.bool)
    found = dense_crf(given, image, mask, parameters=CRFParameters()).argmax(dim=0)
    assert torch.equal(found, labels)


@pytest.mark.parametrize('voxels', [0, 1, 2])
def test_masks_with_hardly_a_voxel(scene, voxels):
    probabilities, image, mask = scene
    few = torch.zeros_like(mask)
    few[4, 5, 5 : 5 + voxels] = True
    found = dense_crf(probabilities, image, few)
    assert torch.isfinite(found).all()
    assert torch.equal(found[:, ~few], probabilities[:, ~few])


def test_nothing_to_do_leaves_probabilities_alone(scene):
    found = dense_crf(*scene, parameters=CRFParameters(iterations=0))
    assert torch.equal(found, scene[0])
    assert found is not scene[0]
