# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from bids_app.errors import ModelError
from bids_app.inference.models import load_networks, resident_networks
from bids_app.networks import build_network

ARGUMENTS = {'widths': [2, 2, 2]}


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path, 0)
    return tmp_path


def write_model(folder, seed):
    """Write a model folder with random weights."""
    torch.manual_seed(seed)
    network = build_network('SymNet', ARGUMENTS)
    weights = folder / 'weights.safetensors'
    save_file({f'only.{key}': value for key, value in network.state_dict().items()}, weights)
    os.utime(weights, (seed, seed))  # the clock of the file system may be too coarse
    card = dict.fromkeys(('name', 'version', 'description', 'licence'), 'x')
    card['sha256'] = hashlib.sha256(weights.read_bytes()).hexdigest()
    card['stages'] = {'only': {'network': 'SymNet', 'arguments': ARGUMENTS}}
    (folder / 'card.json').write_text(json.dumps(card))


def first_weight(networks):
    return next(networks['only'].parameters())


def test_networks_stay_in_the_process(folder):
    assert resident_networks(folder)['only'] is resident_networks(folder)['only']
    assert load_networks(folder)['only'] is not resident_networks(folder)['only']


def test_changed_weights_are_loaded_anew(folder):
    before = resident_networks(folder)
    write_model(folder, 1)
    after = resident_networks(folder)
    assert not torch.equal(first_weight(before), first_weight(after))
    torch.testing.assert_close(first_weight(after), first_weight(load_networks(folder)))


def test_weights_that_are_not_those_of_the_card_are_refused(folder):
    resident_networks(folder)
    weights = folder / 'weights.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'\x01')
    with pytest.raises(ModelError, match='SHA-256'):
        resident_networks(folder)
