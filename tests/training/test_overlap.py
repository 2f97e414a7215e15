# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from bids_app.training.overlap import class_overlaps


def test_voxels_of_every_class_are_counted() -> None:
    found = torch.tensor([[0, 1, 1], [2, 2, 0]])
    truth = torch.tensor([[0, 1, 2], [2, 1, 1]])
    both, size = class_overlaps(found, truth, 4)
    assert both.tolist() == [1, 1, 1, 0]
    assert size.tolist() == [3, 5, 4, 0]
