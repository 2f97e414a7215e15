# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.diffusion.channels import CHANNELS
from bids_app.inference.deepanat import regrid_channels
from bids_app.inference.models import load_card, load_networks
from bids_app.training.__main__ import main
from bids_app.training.deepanat import SynthesisTrainer, image_scores, masked_error
from bids_app.training.deepanat_samples import (
    Anatomy,
    DiffusionSampler,
    Scene,
    interpolate,
    load_anatomies,
)
from bids_app.training.diffusion_simulation import AIR, HEAD, OUTER_FLUID, TISSUES
from bids_app.training.recipe import read_recipe
from bids_app.training.synthesis import Ranges

RECIPES = Path(__file__).parents[2] / 'models'
STILL = Ranges(rotation=0, scaling=(1, 1), shear=0, elastic=0, elastic_fine=0, bias=0)


def head(size: int = 56) -> np.ndarray:
    """A ball of white matter with a ventricle, in grey matter, in CSF, in a skull."""
    grid = np.indices((size,) * 3) - (size - 1) / 2
    radius = np.sqrt((grid**2).sum(axis=0))
    labels = np.select(
        [radius < 4, radius < 13, radius < 17, radius < 20, radius < 24], [4, 2, 3, 24, 506]
    )
    return labels.astype(np.int16)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A label map, and a session of derivatives with larger voxels."""
    label_map = tmp_path / 'training_seg_01.nii.gz'
    nib.Nifti1Image(head(), np.eye(4)).to_filename(label_map)
    folder = tmp_path / 'sub-1' / 'anat'
    folder.mkdir(parents=True)
    labels = np.where(head(50) == 506, 0, head(50))
    affine = np.diag([-1.0, 1.2, 1.2, 1.0])
    for end, data in (
        ('desc-wholebrain_dseg', labels),
        ('desc-brain_mask', (labels > 0).astype(np.uint8)),
        (
            'desc-preproc_T1w',
            np.select([labels == 2, labels == 3, labels > 0], [1600.0, 1000, 400]),
        ),
    ):
        nib.Nifti1Image(data, affine).to_filename(folder / f'sub-1_{end}.nii.gz')
    return [label_map, folder / 'sub-1_desc-wholebrain_dseg.nii.gz']


@pytest.fixture
def anatomies(files: list[Path]) -> list[Anatomy]:
    return load_anatomies(files)


def sampler(anatomies: list[Anatomy], seed: int = 1, ranges: Ranges = STILL) -> DiffusionSampler:
    return DiffusionSampler(anatomies, ranges, (32, 32, 32), 1.0, 2, seed)


def test_anatomies_have_their_middle_size_and_image(anatomies: list[Anatomy]) -> None:
    painted, real = anatomies
    assert painted.t1w is None
    np.testing.assert_allclose(painted.reach, [16.5] * 3, atol=0.6)
    np.testing.assert_allclose(real.zooms, [1.0, 1.2, 1.2], rtol=1e-6)
    np.testing.assert_allclose(real.reach, [19.5, 23.4, 23.4], atol=0.8)
    brain = real.tissues > HEAD
    assert float(real.t1w[brain].float().mean()) == pytest.approx(1, abs=0.01)
    assert not real.t1w[~brain].any()
    for one in anatomies:
        assert int(one.tissues.flatten()[0]) == AIR


def test_fluid_outside_is_told_from_fluid_inside(anatomies: list[Anatomy]) -> None:
    tissues = anatomies[0].tissues
    middle = tuple(int(n) for n in anatomies[0].centre)
    assert int(tissues[middle]) == OUTER_FLUID + 1
    assert int((tissues == OUTER_FLUID).sum()) > 10_000


def test_samples_have_the_form_of_what_inference_sees(anatomies: list[Anatomy]) -> None:
    draws = sampler(anatomies, ranges=Ranges())
    for _ in range(6):
        sample = draws.draw()
        assert sample.channels.shape == (11, 32, 32, 32)
        assert sample.target.shape == sample.mask.shape == (1, 32, 32, 32)
        outside = ~sample.mask[0]
        assert not sample.channels[:, outside].any()
        assert not sample.target[:, outside].any()
        first, second, third = sample.channels[2:5]
        assert bool((first >= second).all() and (second >= third).all() and (third >= 0).all())
        assert torch.isfinite(sample.channels).all()


def test_same_seed_gives_the_same_sample(anatomies: list[Anatomy]) -> None:
    first, second = (sampler(anatomies, ranges=Ranges()).draw() for _ in range(2))
    assert torch.equal(first.channels, second.channels)
    assert torch.equal(first.target, second.target)


@pytest.mark.parametrize('which', [0, 1])
def test_tissues_have_the_intensities_of_a_t1w_and_of_a_b0(
    anatomies: list[Anatomy], which: int
) -> None:
    anatomy = anatomies[which]
    draws = sampler(anatomies)
    scene = Scene(anatomy, STILL, draws.generator)
    scene.bottom, scene.top = -np.inf, np.inf
    scene.distortion_size = scene.texture = scene.coil_size = 0.0
    size = torch.full((3,), 1.5)
    sample = draws.block(scene, torch.zeros(3), size, size)
    shares, _ = scene.shares([size[0] * (torch.arange(32) - 15.5)] * 3, size, 2, image=False)
    white, cortex, fluid = (shares[i] > 0.99 for i in (6, 8, OUTER_FLUID + 1))
    t1w, b0 = sample.target[0], sample.channels[0]
    assert float(t1w[white].mean()) > float(t1w[cortex].mean()) + 0.5
    assert float(t1w[cortex].mean()) > float(t1w[fluid].mean()) + 0.5
    assert float(b0[fluid].mean()) > float(b0[white].mean()) + 1


def test_coils_brighten_the_surface_of_the_brain_but_not_the_t1w(
    anatomies: list[Anatomy],
) -> None:
    draws = sampler(anatomies)
    scene = Scene(anatomies[0], STILL, draws.generator)
    scene.bottom, scene.top, scene.distortion_size = -np.inf, np.inf, 0.0
    scene.coil_centre = torch.zeros(3)
    axes = [1.5 * (torch.arange(32) - 15.5)] * 3
    shares, image = scene.shares(axes, torch.full((3,), 1.5), 2, image=True)
    white = shares[6] > 0.99
    ratios = []
    for size in (0.0, 1.0):
        scene.coil_size = size
        b0 = torch.zeros(white.shape)
        b0[white] = scene.diffusion(shares, axes, white)[0]
        middle = torch.zeros_like(white)
        middle[11:21, 11:21, 11:21] = True
        ratios.append(float(b0[white & ~middle].mean() / b0[white & middle].mean()))
    assert ratios[1] > 1.1 * ratios[0]
    painted = scene.t1w(shares, image)
    assert float(painted[white].std()) < 0.06 * float(painted[white].mean())


def test_z_scores_are_those_of_the_whole_brain(anatomies: list[Anatomy]) -> None:
    draws = sampler(anatomies)
    scene = Scene(anatomies[0], STILL, draws.generator)
    scene.bottom, scene.top, scene.border = -np.inf, np.inf, 0.5
    whole = draws.block(scene, torch.zeros(3), torch.full((3,), 1.5), torch.full((3,), 1.5))
    inside = whole.mask[0]
    means = whole.channels[:, inside].mean(dim=1)
    assert whole.target[0][inside].mean().abs() < 0.15
    assert means[[0, 1, *range(5, 11)]].abs().max() < 0.2
    # A block inside white matter keeps the scale of the brain: it is brighter than the mean.
    part = draws.block(
        scene, torch.tensor([0.0, 0.0, 8.0]), torch.full((3,), 0.4), torch.full((3,), 1.5)
    )
    assert float(part.target[0][part.mask[0]].mean()) > 0.2


def test_interpolation_is_that_of_inference(anatomies: list[Anatomy]) -> None:
    torch.manual_seed(0)
    channels, mask = torch.randn(11, 9, 8, 7), torch.rand(9, 8, 7) > 0.3
    given = [2.5 * torch.arange(n) - 3 for n in mask.shape]
    wanted = [torch.arange(n) + 0.4 for n in (14, 12, 10)]
    found, inside = interpolate(channels, mask, given, wanted)
    affine, fine = np.diag([2.5, 2.5, 2.5, 1]), np.eye(4)
    affine[:3, 3], fine[:3, 3] = -3, 0.4
    used, there = regrid_channels(channels.numpy(), mask.numpy(), affine, (14, 12, 10), fine)
    np.testing.assert_array_equal(there, inside.numpy())
    np.testing.assert_allclose(used, found.numpy(), atol=1e-4)


def test_the_same_grid_changes_nothing() -> None:
    channels, mask = torch.randn(2, 6, 6, 6), torch.rand(6, 6, 6) > 0.5
    axes = [2.0 * torch.arange(6) for _ in range(3)]
    found, inside = interpolate(channels, mask, axes, axes)
    assert torch.equal(inside, mask)
    torch.testing.assert_close(found, channels * mask)


def test_error_and_scores_count_the_brain_alone() -> None:
    target = torch.randn(1, 1, 16, 16, 16)
    mask = torch.zeros_like(target, dtype=torch.bool)
    mask[..., 4:12] = True
    wrong = torch.where(mask, target + 0.5, target + 9)
    assert float(masked_error(wrong, target, mask)) == pytest.approx(0.5, abs=1e-5)
    scores = image_scores(wrong, target, mask)
    assert scores['psnr'] == pytest.approx(20 * np.log10(6 / 0.5), abs=1e-3)
    same = image_scores(target, target, mask)
    assert same['ssim'] == pytest.approx(1, abs=1e-5)
    assert scores['ssim'] < 0.999


def test_training_learns_and_writes_a_model(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / 'model'
    folder.mkdir()
    text = (RECIPES / 'deepanat' / 'recipe.toml').read_text()
    for old, new in (
        ('base = 12', 'base = 2'), ('[64, 64, 64]', '[16, 16, 16]'), ('steps = 2100', 'steps = 2'),
        ('validate_every = 200', 'validate_every = 2'), ('training_seg_05', 'training_seg_01'),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (folder / 'recipe.toml').write_text(text)
    assert main([str(folder / 'recipe.toml'), '--data', str(tmp_path)]) == 0
    card = load_card(folder)
    assert card.content['task'] == 'synthesis'
    assert card.content['channels'] == list(CHANNELS)
    found = load_networks(folder)['generator'](torch.zeros(1, 11, 16, 16, 16))
    assert found.shape == (1, 1, 16, 16, 16)


def test_a_few_steps_lower_the_error(anatomies: list[Anatomy], tmp_path: Path) -> None:
    stage = read_recipe(RECIPES / 'deepanat' / 'recipe.toml').stages['generator']
    stage = replace(
        stage, shape=(16, 16, 16), arguments={'base': 4}, learning_rate=3e-3, warmup=1, steps=40
    )
    trainer = SynthesisTrainer(
        stage, anatomies, anatomies, tmp_path, validator=lambda _: {'score': 0.0}
    )
    fixed = [sampler(anatomies, ranges=STILL).draw()]
    before = trainer._loss(fixed)[0].item()
    for _ in range(15):
        trainer._train_step(iter(fixed))
    assert trainer._loss(fixed)[0].item() < 0.8 * before


def test_tissues_of_the_table_have_distinct_labels() -> None:
    labels = [label for tissue in TISSUES for label in tissue.labels]
    assert len(labels) == len(set(labels))
