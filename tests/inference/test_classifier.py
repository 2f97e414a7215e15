# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bids_app.bids.outputs import file_id
from bids_app.inference.classifier import InputGrid, probabilities, shrink

GRID = InputGrid(
    'vbm_gm', 'MNI152NLin2009aSym', '1p5', 6.0, (8, 9, 10),
    ((1.5, 0.0, 0.0, -10.0), (0.0, 1.5, 0.0, 5.0), (0.0, 0.0, 1.5, 0.0), (0.0, 0.0, 0.0, 1.0)),
    (2, 3, 1), ((1, 4), (0, 2), (2, 9)),
)  # fmt: skip


def test_one_logit_is_that_of_the_second_class():
    logits = torch.tensor([[0.0], [2.0], [-40.0]])
    found = probabilities(logits)
    torch.testing.assert_close(found[:, 1], torch.sigmoid(logits[:, 0]))
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    torch.testing.assert_close(probabilities(logits, 4)[:, 1], torch.sigmoid(logits[:, 0] / 4))


def test_blocks_are_means_and_the_rest_is_dropped():
    data = np.arange(7 * 4 * 3, dtype=float).reshape(7, 4, 3)
    out = shrink(data, (3, 2, 1))
    assert out.shape == (2, 2, 3)
    assert out.dtype == np.float32
    assert out[1, 1, 2] == pytest.approx(data[3:6, 2:4, 2].mean())


def test_world_of_the_input_is_that_of_its_blocks():
    world = np.stack(np.indices(GRID.shape), -1) @ np.array(GRID.affine)[:3, :3].T
    world = world + np.array(GRID.affine)[:3, 3]
    for axis in range(3):
        prepared = GRID.prepare(world[..., axis])
        assert prepared.shape == GRID.input_shape == (3, 2, 7)
        expected = np.stack(np.indices(prepared.shape), -1) @ GRID.input_affine[:3, :3].T
        np.testing.assert_allclose(prepared, expected[..., axis] + GRID.input_affine[axis, 3])


def test_grid_survives_its_card():
    assert InputGrid.from_card(json.loads(json.dumps(GRID.as_card()))) == GRID
    assert GRID.key == 'vbm_gm_smooth'
    assert GRID.file_id == file_id('vbm_gm_smooth', space=GRID.space, res=1.5, fwhm=6.0)
