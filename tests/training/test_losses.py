# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from bids_app.errors import UsageError
from bids_app.training.loop import make_optimizer
from bids_app.training.losses import TISSUE_LOSSES, class_dice_loss, soft_dice, tissue_loss
from bids_app.training.recipe import StageRecipe
from bids_app.training.synthesis import Ranges


def stage(**other: object) -> StageRecipe:
    return StageRecipe(
        network='ContextUNet3D', arguments={}, shape=(32, 32, 32), spacing=1.0, draws=1, steps=1,
        batch=1, learning_rate=0.1, weight_decay=1e-8, warmup=0, decay=0.0, average=0.0,
        validate_every=1, ranges=Ranges(), late_ranges=Ranges(), **other,
    )  # fmt: skip


@pytest.fixture
def target() -> torch.Tensor:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 4, 5, 6))
    return nn.functional.one_hot(labels, 3).movedim(-1, 1).float()


def test_dice_of_even_probabilities_is_the_analytic_one(target):
    """p = 1/3 everywhere: 2 n/3 / (N/9 + n) for a class with n of N voxels."""
    counts, total = target.sum((0, 2, 3, 4)), target[:, 0].numel()
    dice = (2 * counts / 3) / (total / 9 + counts)
    logits = torch.zeros_like(target)
    for background, wanted in ((True, 1 - dice.mean()), (False, 1 - dice[1:].mean())):
        loss, parts = class_dice_loss(logits, target, background=background)
        torch.testing.assert_close(loss, wanted)
        assert parts['dice'] == pytest.approx(float(wanted))
    dice = counts / (total / 4 + counts)  # a sigmoid of 0 is 1/2
    loss, _ = class_dice_loss(logits, target, 'sigmoid', background=True)
    torch.testing.assert_close(loss, 1 - dice.mean())


def test_sums_are_over_batch_and_space_together(target):
    logits = torch.randn(target.shape)
    one, _ = class_dice_loss(logits, target)
    joined = [torch.cat(list(x), dim=1)[None] for x in (logits, target)]
    torch.testing.assert_close(class_dice_loss(*joined)[0], one)


@pytest.mark.parametrize('name', TISSUE_LOSSES)
def test_every_loss_is_small_for_the_truth_and_falls_along_its_gradient(name, target):
    loss = TISSUE_LOSSES[name]
    assert float(loss(40 * target - 20, target)[0]) < 1e-3
    logits = torch.zeros_like(target, requires_grad=True)
    before, _ = loss(logits, target)
    before.backward()
    after, _ = loss(logits - 10 * logits.grad, target)
    assert after < before


@pytest.mark.parametrize('name', TISSUE_LOSSES)
def test_voxels_without_target_do_not_count(name, target):
    target[:, :, :2] = 0
    logits = torch.randn(target.shape)
    changed = logits.clone()
    changed[:, :, :2] += torch.randn(changed[:, :, :2].shape)
    loss = TISSUE_LOSSES[name]
    torch.testing.assert_close(loss(changed, target)[0], loss(logits, target)[0])


def test_a_class_that_is_not_there_counts_only_in_the_published_dice(target):
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[:, :2] = 1
    target = nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    logits = 40 * target - 20
    assert float(class_dice_loss(logits, target)[0]) == pytest.approx(0.5, abs=1e-3)
    assert float(soft_dice(logits.softmax(dim=1), target)) == pytest.approx(0, abs=1e-3)
    assert float(tissue_loss(logits, target)[0]) == pytest.approx(0, abs=1e-3)


def test_optimisers_have_the_settings_of_the_recipe():
    network = nn.Linear(1, 1)
    adam = make_optimizer(stage(), network)
    assert isinstance(adam, torch.optim.AdamW)
    sgd = make_optimizer(stage(optimizer='sgd', momentum=0.5), network)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults['momentum'] == 0.5
    for optimizer in (adam, sgd):
        assert optimizer.defaults['lr'] == 0.1
        assert optimizer.defaults['weight_decay'] == 1e-8
    with pytest.raises(UsageError, match='adagrad'):
        make_optimizer(stage(optimizer='adagrad'), network)
