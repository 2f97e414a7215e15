# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from bids_app.errors import ModelError
from bids_app.inference.models import load_card
from bids_app.inference.tissue import (
    bytes_per_voxel,
    choose_tile,
    choose_tissue_model,
    predict_tissue,
    tissue_models,
    usable_contrasts,
)
from bids_app.networks import ContextUNet3D, DenseNet3D, VNetLight


class Threshold(nn.Module):
    """Class 1 where the sum over the contrasts is positive, class 2 where it is negative."""

    divisor = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        total = self.scale * image.sum(dim=1, keepdim=True)
        return torch.cat([torch.full_like(total, 5.0), total, -total], dim=1)


def make_model(folder: Path, name: str, contrasts: list[str], **more: object) -> None:
    (folder / name).mkdir()
    card = {
        'name': name, 'version': '1', 'description': '', 'licence': '', 'sha256': '',
        'stages': {}, 'task': 'tissue', 'contrasts': contrasts, **more,
    }  # fmt: skip
    (folder / name / 'card.json').write_text(json.dumps(card))
    (folder / name / 'weights.safetensors').write_bytes(b'')


@pytest.fixture
def models(tmp_path: Path) -> Path:
    make_model(tmp_path, 'any', ['any'])
    make_model(tmp_path, 'one', ['T1w'])
    make_model(tmp_path, 'other', ['T1w'], priority=1)
    make_model(tmp_path, 'two', ['T1w', 'T2w'])
    make_model(tmp_path, 'three', ['T1w', 'T2w', 'FLAIR'], missing_contrasts=True)
    make_model(tmp_path, 'brain', ['T1w'], task='segmentation')
    (tmp_path / 'untrained').mkdir()
    (tmp_path / 'untrained' / 'card.json').write_text('{}')
    return tmp_path


@pytest.mark.parametrize(
    ('available', 'wanted'),
    [
        ({'T1w'}, 'other'),
        ({'T2w'}, 'any'),
        ({'FLAIR'}, 'any'),
        ({'PDw'}, 'any'),
        ({'T1w', 'T2w'}, 'two'),
        ({'T1w', 'FLAIR'}, 'three'),
        ({'T2w', 'FLAIR'}, 'three'),
        ({'T1w', 'T2w', 'FLAIR'}, 'three'),
    ],
)
def test_the_model_that_uses_most_is_chosen(models, available, wanted):
    assert choose_tissue_model(available, models_dir=models).name == wanted


def test_what_is_left_out_is_said(models, caplog):
    caplog.set_level(logging.INFO, logger='anatnet.inference')
    choose_tissue_model({'T2w', 'FLAIR'}, 'any', models_dir=models)
    assert caplog.messages == ['tissue model any, from T2w; FLAIR left out']
    caplog.clear()
    choose_tissue_model({'T1w', 'FLAIR'}, models_dir=models)
    assert caplog.messages == ['tissue model three, from T1w, FLAIR; without T2w, which it can do']


def test_only_tissue_models_with_weights_are_offered(models):
    assert [folder.name for folder in tissue_models(models)] == [
        'any', 'one', 'other', 'three', 'two',
    ]  # fmt: skip


def test_a_named_model_is_taken_if_it_fits(models):
    there = {'T1w', 'T2w', 'FLAIR'}
    assert choose_tissue_model(there, 'one', models_dir=models).name == 'one'
    assert choose_tissue_model(there, str(models / 'two')).name == 'two'
    with pytest.raises(ModelError, match='takes T1w, T2w, of which not enough'):
        choose_tissue_model({'T1w'}, 'two', models_dir=models)
    with pytest.raises(ModelError, match='no tissue model'):
        choose_tissue_model(there, 'brain', models_dir=models)
    with pytest.raises(ModelError, match='no model'):
        choose_tissue_model(there, 'four', models_dir=models)


def test_nothing_that_fits_is_an_error(tmp_path):
    make_model(tmp_path, 'one', ['T1w'])
    with pytest.raises(ModelError, match=r'takes what there is \(T2w\)'):
        choose_tissue_model({'T2w'}, models_dir=tmp_path)


def test_channels_are_in_the_order_of_the_model(models):
    card = load_card(models / 'three')
    assert usable_contrasts(card, {'FLAIR', 'T1w'}) == ['T1w', '', 'FLAIR']
    assert usable_contrasts(card, {'FLAIR', 'T2w'}) == ['', 'T2w', 'FLAIR']
    assert usable_contrasts(card, {'PDw'}) is None
    assert usable_contrasts(load_card(models / 'two'), {'T1w'}) is None
    anything = load_card(models / 'any')
    assert usable_contrasts(anything, {'FLAIR', 'T2w'}) == ['T2w']
    assert usable_contrasts(anything, {'FLAIR', 'T2w'}, 'FLAIR') == ['FLAIR']


@pytest.mark.parametrize('low_mem', [False, True])
def test_prediction_is_that_of_the_network_and_background_beyond_the_margin(low_mem):
    torch.manual_seed(0)
    image = torch.zeros(2, 40, 33, 30)
    image[:, 10:30, 12:20, 11:19] = torch.randn(2, 20, 8, 8)
    network = Threshold()
    found, used = predict_tissue(
        image, network, shape=(16, 16, 12), classes=3, precision='float32', low_mem=low_mem
    )
    assert used == {'device': 'cpu', 'precision': 'float32', 'fallback': None}
    total = image.sum(dim=0)
    logits = torch.stack([torch.full_like(total, 5.0), 20 * total, -20 * total])
    torch.testing.assert_close(
        found[:, 10:30, 12:20, 11:19], logits.softmax(0)[:, 10:30, 12:20, 11:19]
    )
    torch.testing.assert_close(found.sum(dim=0), torch.ones_like(total))
    assert bool((found[0, 39] == 1).all())
    assert (network.sizes[-1] == (16, 16, 16)) == low_mem
    if not low_mem:  # 36 x 24 x 24 voxels are the brain and its margin
        assert network.sizes[-1] == (36, 24, 24)


def test_empty_image_is_background():
    found, _ = predict_tissue(torch.zeros(1, 4, 5, 6), Threshold(), shape=(4, 4, 4), classes=3)
    assert bool((found[0] == 1).all())
    assert not bool(found[1:].any())


def test_small_volumes_are_padded_for_a_u_net():
    torch.manual_seed(0)
    network = ContextUNet3D(1, 4, base=2).eval()
    found, _ = predict_tissue(torch.randn(1, 9, 17, 5), network, shape=(32, 32, 32), classes=4)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(9, 17, 5))


def test_wrong_number_of_classes_is_a_model_error():
    with pytest.raises(ModelError, match='3 classes'):
        predict_tissue(torch.ones(1, 4, 4, 4), Threshold(), shape=(4, 4, 4), classes=4)


def test_memory_is_estimated_from_the_largest_layer():
    # The block of the single stream grows to 451 channels; its last layer goes from 376 to 451.
    with torch.device('meta'):
        dense, light = DenseNet3D(1, 4), VNetLight(1, 4)
    assert bytes_per_voxel(dense, 1) == 2 * 4 * (451 + 400)
    assert bytes_per_voxel(light, 1) < bytes_per_voxel(dense, 1) / 5


def test_tiles_follow_memory_and_normalisation():
    size, plenty = (160, 192, 160), 1e15
    with torch.device('meta'):
        context, dense = ContextUNet3D(1, 4), DenseNet3D(1, 4)
    assert choose_tile(context, size, 1, (80, 80, 80), plenty) == 80
    assert choose_tile(dense, size, 1, (28, 28, 28), plenty) is None
    assert choose_tile(dense, size, 1, (28, 28, 28), 128**3 * 7000) == 128
    assert choose_tile(dense, size, 1, (28, 28, 28), 1) == 28
    assert choose_tile(context, size, 1, (80, 80, 80), 1) == 64
    assert choose_tile(dense, size, 1, (96, 96, 96), plenty, low_mem=True) == 64
