# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.images.intensity import normalise_brain_zscore
from bids_app.networks import build_network
from bids_app.training.__main__ import main
from bids_app.training.contrast import draw_contrast
from bids_app.training.label_maps import LabelMaps, load_label_maps
from bids_app.training.lesions import draw_lesions
from bids_app.training.losses import TISSUE_LOSSES, tissue_loss
from bids_app.training.recipe import read_recipe
from bids_app.training.synthesis import Ranges
from bids_app.training.tissue import TISSUES, TissueSampler, TissueTrainer

STILL = Ranges(
    rotation=0, scaling=(1, 1), shear=0, elastic=0, elastic_fine=0, bias=0, noise=0, gamma=0,
    low_resolution=0, thick_slices=0, misalignment=0,
)  # fmt: skip


def head(size: int = 48) -> np.ndarray:
    """A ball of white matter with a ventricle, in grey matter, in CSF, in a skull."""
    grid = np.indices((size,) * 3) - (size - 1) / 2
    radius = np.sqrt((grid**2).sum(axis=0))
    labels = np.select([radius < 4, radius < 13, radius < 17, radius < 19, radius < 22],
                       [4, 2, 3, 24, 506])  # fmt: skip
    right = grid[0] > 0
    labels[right] = np.select([labels == 4, labels == 2, labels == 3], [43, 41, 42], labels)[right]
    return labels.astype(np.int16)


@pytest.fixture
def maps(tmp_path: Path) -> LabelMaps:
    path = tmp_path / 'training_seg_01.nii.gz'
    nib.Nifti1Image(head(), np.eye(4)).to_filename(path)
    return load_label_maps([path])


def sampler(maps: LabelMaps, ranges: Ranges = STILL, **other: object) -> TissueSampler:
    settings = {'contrasts': ('T1w', 'T2w', 'FLAIR'), 'lesions': True, **other}
    return TissueSampler(maps, ranges, (32, 32, 32), 1.0, 2, 7, **settings)


def test_sample_has_a_channel_per_contrast_and_shares_that_sum_to_one(maps: LabelMaps) -> None:
    sample = sampler(maps).draw()
    assert sample.image.shape == (3, 32, 32, 32)
    assert sample.target.shape == (5, 32, 32, 32)
    torch.testing.assert_close(sample.target.sum(dim=0), torch.ones(32, 32, 32))


def test_target_is_the_share_of_each_tissue_in_a_voxel(tmp_path: Path) -> None:
    labels = np.full((48, 48, 48), 3, np.int16)
    labels[:24] = 2
    path = tmp_path / 'training_seg_01.nii.gz'
    nib.Nifti1Image(labels, np.eye(4)).to_filename(path)
    draws = sampler(load_label_maps([path]), contrasts=('T1w',), target_draws=400)
    draws._lesion_field = lambda found: torch.zeros(found.shape)
    draws._mask = lambda found: torch.ones(found.shape, dtype=torch.bool)
    draws._centre = lambda index: torch.tensor([23.8, 24, 24])
    shares = draws.draw().target[3]  # centres at 8.3, 9.3 ... 23.3 ...: white matter to 23.5
    if float(shares[0].mean()) == 0:  # mirrored
        shares = shares.flip(0)
    assert float(shares[:15].min()) > 0.999
    assert float(shares[16:].max()) == 0
    assert float(shares[15].mean()) == pytest.approx(0.7, abs=0.02)
    assert float(shares[15].std()) < 0.05


def test_same_seed_gives_the_same_sample(maps: LabelMaps) -> None:
    first, second = sampler(maps, Ranges()).draw(), sampler(maps, Ranges()).draw()
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target, second.target)


def test_lesions_lie_in_white_matter_and_are_white_matter_without_the_class(
    maps: LabelMaps,
) -> None:
    found = 0.0
    for _ in range(6):
        with_class = sampler(maps)
        without = sampler(maps, lesions=False)
        seed = int(with_class.generator.initial_seed()) + _
        with_class.generator.manual_seed(seed)
        without.generator.manual_seed(seed)
        a, b = with_class.draw(), without.draw()
        found += float(a.target[4].sum())
        torch.testing.assert_close(a.target[3] + a.target[4], b.target[3])
        torch.testing.assert_close(a.target[:3], b.target[:3])
    assert found > 0


def test_lesion_is_brighter_than_white_matter_on_flair(maps: LabelMaps) -> None:
    draws = sampler(maps, contrasts=('FLAIR',))
    bright = 0
    counted = 0
    for _ in range(12):
        sample = draws.draw()
        lesion, white = sample.target[4] > 0, sample.target[3] > 0
        if lesion.sum() > 20 and sample.kinds == ('flair',):
            counted += 1
            bright += bool(sample.image[0][lesion].mean() > sample.image[0][white].mean())
    assert counted >= 3
    assert bright == counted


def test_missing_contrasts_are_zero_and_one_stays(maps: LabelMaps) -> None:
    draws = sampler(maps, replace(STILL, missing=0.9))
    for _ in range(5):
        sample = draws.draw()
        missing = [kind == 'missing' for kind in sample.kinds]
        assert not all(missing)
        for channel, gone in zip(sample.image, missing, strict=True):
            assert bool((channel == 0).all()) == gone


def test_contrasts_fit_without_misalignment_and_move_with_it(maps: LabelMaps) -> None:
    def border_error(misalignment: float) -> float:
        draws = sampler(maps, replace(STILL, misalignment=misalignment), contrasts=('T1w', 'T1w'))
        differences = []
        for _ in range(4):
            sample = draws.draw()
            csf = sample.target[1] > 0
            differences.append(float((sample.image[0] - sample.image[1])[csf].abs().mean()))
        return float(np.mean(differences))

    assert border_error(6.0) > 1.5 * border_error(0.0)


def test_no_lesions_without_white_matter() -> None:
    empty = torch.zeros((8, 8, 8), dtype=torch.bool)
    assert not draw_lesions(empty, empty, 1.0, torch.Generator().manual_seed(1)).any()


def test_flair_has_dark_fluid_and_bright_lesions() -> None:
    values = [0, 2, 3, 4, 25]
    generator = torch.Generator().manual_seed(3)
    means = torch.stack([draw_contrast(values, 'flair', generator).mean for _ in range(50)]).mean(
        0
    )
    assert means[3] < means[1] < means[2] < means[4]


def test_brain_has_mean_zero_and_deviation_one_and_the_rest_is_zero() -> None:
    image = torch.arange(1000.0).view(10, 10, 10) + 5
    mask = torch.zeros((10, 10, 10), dtype=torch.bool)
    mask[2:8] = True
    image[7] = 0  # outside the field of view
    found = normalise_brain_zscore(image, mask)
    inside = found[2:7]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inside.std()) == pytest.approx(1, abs=1e-5)
    assert not found[:2].any()
    assert not found[7:].any()
    assert not normalise_brain_zscore(image, torch.zeros_like(mask)).any()


def test_loss_is_small_for_the_truth_and_large_for_its_opposite(maps: LabelMaps) -> None:
    shares = sampler(maps).draw().target
    target = torch.nn.functional.one_hot(shares.argmax(0), 5).movedim(-1, 0)[None].float()
    good, _ = tissue_loss(20 * target, target)
    bad, _ = tissue_loss(-20 * target, target)
    assert float(good) < 0.01
    assert float(bad) > 1


def test_training_writes_a_model_that_says_what_it_takes(tmp_path: Path) -> None:
    for number in (1, 2):
        nib.Nifti1Image(head(), np.eye(4)).to_filename(tmp_path / f'training_seg_0{number}.nii.gz')
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'recipe.toml').write_text(
        '[model]\nname = "m"\nversion = "1.0.0"\ndescription = "d"\nlicence = "Apache-2.0"\n'
        '[data]\ntask = "tissue"\ncontrasts = ["T1w", "FLAIR"]\npattern = "*.nii.gz"\n'
        'validation = ["training_seg_02.nii.gz"]\n'
        '[stage.tissue]\nnetwork = "ContextUNet3D"\n'
        'arguments = { in_channels = 2, out_channels = 5, base = 2 }\n'
        'shape = [32, 32, 32]\nspacing = 1.0\ndraws = 1\nsteps = 2\nbatch = 1\n'
        'learning_rate = 1e-3\nweight_decay = 0\nwarmup = 1\ndecay = 0.5\naverage = 0.9\n'
        'validate_every = 2\n'
    )
    assert main([str(folder / 'recipe.toml'), '--data', str(tmp_path)]) == 0
    from bids_app.inference.models import load_card, load_networks

    card = load_card(folder)
    assert card.content['task'] == 'tissue'
    assert card.content['contrasts'] == ['T1w', 'FLAIR']
    assert card.classes == [*TISSUES, 'lesion']
    assert load_networks(folder)['tissue'](torch.zeros(1, 2, 32, 32, 32)).shape[1] == 5


def test_a_step_with_an_infinite_gradient_is_left_out(
    maps: LabelMaps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / 'models' / 'tissue-t1w' / 'recipe.toml')
    stage = replace(recipe.stages['tissue'], shape=(32, 32, 32), draws=1)
    trainer = TissueTrainer(
        stage, maps, None, tmp_path, validator=lambda _: {'score': 0.0}, contrasts=['T1w']
    )
    before = [value.clone() for value in trainer.network.parameters()]

    def endless(drawn: list[object]) -> tuple[torch.Tensor, dict[str, float]]:
        return sum((float('inf') * value).sum() for value in trainer.network.parameters()), {}

    monkeypatch.setattr(trainer, '_loss', endless)
    trainer._train_step(iter([None]))
    for old, new in zip(before, trainer.network.parameters(), strict=True):
        assert torch.equal(old, new)


RECIPES = sorted(
    path.parent
    for folder in ('benchmarks/medicalzoo/synthetic-*', 'models/tissue-*')
    for path in (Path(__file__).parents[2]).glob(f'{folder}/recipe.toml')
)


@pytest.mark.parametrize('folder', RECIPES, ids=lambda path: path.name)
def test_recipes_are_complete(folder: Path) -> None:
    recipe = read_recipe(folder / 'recipe.toml')
    stage = recipe.stages['tissue']
    assert recipe.name == folder.name
    assert recipe.data['task'] == 'tissue'
    assert stage.arguments['in_channels'] == len(recipe.data['contrasts'])
    assert stage.loss in TISSUE_LOSSES
    with torch.device('meta'):
        network = build_network(stage.network, stage.arguments)
    assert all(n % network.divisor == 0 for n in stage.shape)


def test_there_is_a_recipe_for_every_network_of_the_family() -> None:
    found = {read_recipe(folder / 'recipe.toml').stages['tissue'].network for folder in RECIPES}
    assert found == {
        'ContextUNet3D', 'VNet', 'VNetLight', 'DenseNet3D', 'LateFusionDenseNet3D',
        'EarlyFusionDenseNet3D', 'HyperDenseNet3D',
    }  # fmt: skip
