# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
import torch

from bids_app.errors import ModelError, UsageError
from bids_app.inference.models import find_model, load_card, load_networks, model_checksum
from bids_app.training.__main__ import main
from bids_app.training.loop import learning_rate_factor
from bids_app.training.losses import segmentation_loss, soft_dice
from bids_app.training.recipe import read_recipe

RECIPE = """
seed = 1
[model]
name = "tiny"
version = "0.1"
description = "for tests"
licence = "Apache-2.0"
[data]
pattern = "training_seg_*.nii.gz"
validation = ["training_seg_01.nii.gz"]
[ranges]
rotation = 5.0
scaling = [0.95, 1.05]
[stage.coarse]
network = "ResidualUNet3D"
arguments = { in_channels = 1, out_channels = 20, widths = [4, 8], convolutions = 1 }
shape = [24, 24, 24]
spacing = 3.0
draws = 2
steps = 6
batch = 1
learning_rate = 1e-2
weight_decay = 1e-4
warmup = 2
decay = 0.5
average = 0.9
validate_every = 3
[stage.fine]
network = "ResidualUNet3D"
arguments = { in_channels = 1, out_channels = 20, widths = [4, 8], context_channels = 20 }
shape = [16, 16, 16]
spacing = 1.0
draws = 1
steps = 4
batch = 2
learning_rate = 1e-2
weight_decay = 1e-4
warmup = 2
decay = 0.5
average = 0.9
validate_every = 2
"""


@pytest.fixture
def recipe_file(tmp_path):
    folder = tmp_path / 'models' / 'tiny'
    folder.mkdir(parents=True)
    path = folder / 'recipe.toml'
    path.write_text(RECIPE)
    return path


def test_one_command_trains_resumes_and_exports(recipe_file, head_files, tmp_path, monkeypatch):
    data = head_files[0].parent
    assert main([str(recipe_file), '--data', str(data), '--stage', 'coarse', '--steps', '3']) == 0
    log = recipe_file.parent / 'checkpoints' / 'coarse' / 'log.jsonl'
    assert main([str(recipe_file), '--data', str(data), '--workers', '1']) == 0
    steps = [json.loads(line)['step'] for line in log.read_text().splitlines()]
    assert steps == [3, 6]  # the second call went on instead of starting again
    folder = find_model('tiny', tmp_path / 'models')
    card = load_card(folder)
    assert card.sha256 == model_checksum(folder)
    assert card.stages['coarse']['steps'] in (3, 6)
    networks = load_networks(folder)
    assert networks['fine'].context_channels == 20
    assert not networks['coarse'].training


def test_changed_weights_are_refused(recipe_file, head_files, tmp_path):
    assert main([str(recipe_file), '--data', str(head_files[0].parent), '--steps', '2']) == 0
    weights = recipe_file.parent / 'weights.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'\x01')
    with pytest.raises(ModelError, match='SHA-256'):
        load_networks(recipe_file.parent)


def test_model_without_weights_names_the_recipe(recipe_file, tmp_path):
    (recipe_file.parent / 'card.json').write_text('{}')
    with pytest.raises(ModelError, match=r'bids_app\.training .*recipe\.toml'):
        find_model('tiny', tmp_path / 'models')


def test_unknown_model_lists_those_that_are_there(tmp_path):
    with pytest.raises(ModelError, match='no model'):
        find_model('other', tmp_path)


def test_unknown_range_and_missing_entry_are_usage_errors(recipe_file):
    recipe_file.write_text(RECIPE.replace('rotation', 'rotatoin'))
    with pytest.raises(UsageError, match='rotatoin'):
        read_recipe(recipe_file)
    recipe_file.write_text(RECIPE.replace('spacing = 3.0', ''))
    with pytest.raises(UsageError, match='spacing'):
        read_recipe(recipe_file)


def test_no_data_is_one_line(recipe_file, tmp_path, capsys):
    assert main([str(recipe_file), '--data', str(tmp_path)]) == 1
    assert capsys.readouterr().err.count('\n') == 1


def test_weights_to_start_from_must_be_those_of_the_stage(
    recipe_file, head_files, tmp_path, capsys
):
    from safetensors.torch import save_file

    weights = tmp_path / 'weights.safetensors'
    command = [str(recipe_file), '--data', str(head_files[0].parent), '--stage', 'coarse']
    command += ['--steps', '1', '--init', str(weights)]
    for key, words in (('fine.weight', 'not for coarse'), ('coarse.weight', 'do not fit')):
        save_file({key: torch.zeros(2)}, str(weights))
        assert main(command) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count('\n') == 1


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1
    assert factors[80] == pytest.approx(0.5)
    assert factors[100] == 0


def test_perfect_prediction_has_no_loss_and_empty_classes_do_not_count():
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 0, :2] = 1
    target[:, 1, 2:] = 1
    side = torch.zeros(1, 2, 4, 4, 4)
    side[:, 1, 2:] = 1
    logits = torch.cat([(target - 0.5) * 100, torch.full((1, 1, 4, 4, 4), 50.0)], dim=1)
    loss, parts = segmentation_loss(logits, target, side)
    assert float(loss) < 1e-4
    assert float(soft_dice(target, target)) < 1e-6
    wrong, _ = segmentation_loss(-logits, target, side)
    assert float(wrong) > 10
    assert set(parts) == {'ce', 'dice', 'side'}
