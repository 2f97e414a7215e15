# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bids_app.training.deepanat_gan import AdversarialTrainer, Adversary, block_planes
from bids_app.training.deepanat_samples import DiffusionSample
from bids_app.training.recipe import read_recipe

RECIPE = Path(__file__).parents[2] / 'models' / 'deepanat-gan' / 'recipe.toml'
SMALL = Adversary(base=2, planes=4, passes=2, batch=6, least_norm=1.0)


def sample(seed: int = 0) -> DiffusionSample:
    source = torch.Generator().manual_seed(seed)
    mask = torch.zeros((1, 16, 16, 16), dtype=torch.bool)
    mask[:, 2:14, 2:14, 2:14] = True
    channels = torch.randn((11, 16, 16, 16), generator=source) * mask
    return DiffusionSample(channels, channels[:1] * mask, mask)


def trainer(folder: Path, **other: object) -> AdversarialTrainer:
    recipe = read_recipe(RECIPE)
    stage = replace(recipe.stages['generator'], shape=(16, 16, 16), arguments={'base': 2})
    return AdversarialTrainer(
        stage, [], [], folder, validator=lambda _: {'score': 0.0}, adversary=SMALL, **other
    )


def test_planes_are_those_of_each_axis() -> None:
    block = torch.arange(4**3.0).view(1, 1, 4, 4, 4)
    chosen = torch.tensor([[0, 3], [1, 2], [2, 0]])
    planes = block_planes(block, chosen)
    assert planes.shape == (6, 1, 4, 4)
    wanted = [block[0, 0, 0], block[0, 0, 3], block[0, 0, :, 1], block[0, 0, :, 2]]
    wanted += [block[0, 0, :, :, 2], block[0, 0, :, :, 0]]
    assert all(torch.equal(a[0], b) for a, b in zip(planes, wanted, strict=True))
    every = torch.arange(4).repeat(3, 1)
    assert block_planes(block, every).shape == (12, 1, 4, 4)


def test_loss_is_the_error_and_a_share_of_the_cross_entropy(tmp_path: Path) -> None:
    loss, parts = trainer(tmp_path)._loss([sample()])
    assert loss.item() == pytest.approx(parts['l1'] + 1e-3 * parts['adversarial'], rel=1e-5)


def test_discriminator_learns_to_tell_planes_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = trainer(tmp_path)
    one.critic_optimizer.param_groups[0]['lr'] = 3e-3
    real = torch.randn(12, 1, 16, 16)
    losses = [one._train_critic(real, real.abs()) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_planes_without_brain_teach_nothing(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    before = [value.clone() for value in one.critic.parameters()]
    assert one._train_critic(torch.zeros(6, 1, 16, 16), torch.randn(6, 1, 16, 16)) == 0
    for old, new in zip(before, one.critic.parameters(), strict=True):
        assert torch.equal(old, new)


def test_only_the_generator_is_moved_by_its_loss(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    loss, _ = one._loss([sample()])
    one.critic_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    assert all(value.grad is None for value in one.critic.parameters())
    assert any(bool(value.grad.any()) for value in one.network.parameters())


def test_a_stopped_training_goes_on_with_its_discriminator(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first._train_step(iter([sample()]))
    first.step = 1
    first.checkpoint()
    second = trainer(tmp_path, seed=9)
    assert second.step == 1
    for old, new in zip(
        first.critic.state_dict().values(), second.critic.state_dict().values(), strict=True
    ):
        assert torch.equal(old, new)
    assert second.critic_optimizer.state_dict()['state']


def test_recipe_names_what_the_adversary_takes() -> None:
    recipe = read_recipe(RECIPE)
    assert Adversary(**recipe.data['adversarial']).weight == 1e-3
    assert recipe.stages['generator'].loss in AdversarialTrainer.losses
    published = Adversary()
    assert (published.base, published.planes, published.passes, published.batch) == (64, 64, 3, 10)
