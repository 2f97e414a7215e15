# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bids_app.errors import ModelError
from bids_app.inference.deepanat import (
    T1W_MEAN,
    T1W_SPREAD,
    regrid_channels,
    synthesis_model,
    synthesise_t1w,
    t1w_intensities,
)


class Mix(nn.Module):
    """A network that looks at one voxel only: tiles must not change what it says."""

    divisor = 16

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert all(n % self.divisor == 0 for n in image.shape[2:])
        return image[:, :1] - 2 * image[:, 1:2] + 0.5


def brain(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(2, n - 2) for n in shape)] = True
    channels = np.random.default_rng(seed).normal(size=(11, *shape)).astype(np.float32)
    return channels * mask, mask


@pytest.mark.parametrize('shape', [(9, 12, 7), (40, 70, 33)])
@pytest.mark.parametrize('tile', [None, 32])
def test_brains_of_any_size_are_covered(shape: tuple[int, ...], tile: int | None) -> None:
    channels, mask = brain(shape)
    found = synthesise_t1w(channels, mask, Mix(), precision='float32', tile=tile)
    wanted = np.where(mask, channels[0] - 2 * channels[1] + 0.5, 0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_empty_mask_gives_an_empty_image() -> None:
    channels, mask = brain((16, 16, 16))
    assert not synthesise_t1w(channels, mask & False, Mix()).any()


def test_intensities_are_positive_in_the_brain_and_zero_outside() -> None:
    mask = np.array([1, 1, 1, 0])
    found = t1w_intensities(np.array([-9.0, 0.0, 1.0, 5.0]), mask)
    np.testing.assert_allclose(found, [1, T1W_MEAN, T1W_MEAN + T1W_SPREAD, 0])


def test_a_finer_grid_keeps_the_border_and_the_values_beside_it() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[3:7, 3:7, 3:7] = True
    channels = np.full((11, 10, 10, 10), 3.0, np.float32) * mask
    affine, fine = np.diag([2.0, 2.0, 2.0, 1.0]), np.eye(4)
    fine[:3, 3] = -0.5  # every voxel is cut into eight
    found, inside = regrid_channels(channels, mask, affine, (20, 20, 20), fine)
    np.testing.assert_allclose(found[:, inside], 3.0, atol=1e-5)
    assert not found[:, ~inside].any()
    assert inside.sum() == pytest.approx(8 * mask.sum(), rel=0.2)


def test_the_same_grid_changes_nothing() -> None:
    channels, mask = brain((9, 8, 7))
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    found, inside = regrid_channels(channels, mask, affine, (9, 8, 7), affine)
    np.testing.assert_array_equal(inside, mask)
    np.testing.assert_allclose(found, channels, atol=1e-6)


def test_models_for_something_else_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / 'other'
    folder.mkdir()
    (folder / 'weights.safetensors').touch()
    card = {'name': 'o', 'version': '1', 'description': '', 'licence': '', 'sha256': ''}
    (folder / 'card.json').write_text(json.dumps({**card, 'stages': {}, 'task': 'tissue'}))
    with pytest.raises(ModelError, match='does not synthesise'):
        synthesis_model('other', tmp_path)
