# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from bids_app.errors import ImageError, ModelError
from bids_app.inference.coordinates import brain_coordinates
from bids_app.inference.deepnat_classes import CLASSES
from bids_app.inference.deepnat_input import ODD_ROWS, RIM_MM, brain_image, coordinate_rows
from bids_app.inference.deepnat_segment import DeepNATStage, load_stage, segment_deepnat
from bids_app.networks.deepnat import DeepNAT


@pytest.fixture(scope='module')
def head():
    """An ellipsoid that has three brightnesses, its affine and its mask."""
    shape = (52, 60, 48)
    place = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in shape], indexing='ij'))
    radius = np.sqrt(((place / np.array([20, 24, 18])[:, None, None, None]) ** 2).sum(axis=0))
    mask = radius < 1
    data = np.where(mask, 500 + 200 * (place[0] > 0), 0).astype(np.float32)
    data[radius >= 1.3] = 90  # around the head
    affine = np.eye(4)
    affine[:3, 3] = -20
    return data, affine, mask


class Oracle:
    """Stands for a network: says what a function of image and coordinates says."""

    def __init__(self, rule, classes):
        self.rule, self.classes, self.seen = rule, classes, []

    def probabilities(self, image, coordinates, mask):
        self.seen.append((image, coordinates, mask))
        found = torch.where(mask, self.rule(image, coordinates), 0)
        return torch.nn.functional.one_hot(found.long(), self.classes).movedim(-1, 0).float()


def test_image_is_the_brain_and_a_rim(head):
    data, affine, mask = head
    image, wide = brain_image(data * 7, affine, mask)
    wide = wide.numpy()
    assert wide[mask].all()
    assert (image.numpy()[~wide] == 0).all()
    # 2 mm more along an axis, and the brightest tissue becomes 1
    line = wide[:, 30, 24].nonzero()[0]
    inner = mask[:, 30, 24].nonzero()[0]
    assert (inner[0] - line[0], line[-1] - inner[-1]) == (RIM_MM, RIM_MM)
    assert image.max() == pytest.approx(1, abs=1e-5)


def test_a_scan_without_a_brain_ends_before_any_network(head):
    data, affine, mask = head
    few = np.zeros_like(mask)
    few[20:24, 20:24, 20:24] = True
    with pytest.raises(ImageError, match='brain mask has 0.1 cm'):
        segment_deepnat(data, affine, few, None, None)


def test_rows_that_turn_their_sign_are_those_of_the_sides(head):
    _, affine, mask = head
    mask = mask.copy()
    mask[30:34, 20:30, 20:30] = False  # not symmetric
    one = brain_coordinates(mask, affine)
    other = brain_coordinates(mask[::-1], affine)[:, ::-1]
    signs = np.where(np.isin(np.arange(6), ODD_ROWS), -1, 1)[:, None, None, None]
    assert np.abs(other * signs - one)[:, mask].max() < 0.02
    assert coordinate_rows(['spectral']) == [3, 4, 5]
    assert coordinate_rows(['cartesian']) == [0, 1, 2]
    assert coordinate_rows(['spectral', 'cartesian']) == [0, 1, 2, 3, 4, 5]


def test_structures_are_sought_inside_the_foreground_that_is_found(head):
    data, affine, mask = head
    first = Oracle(lambda image, coordinates: image > 0.1, 2)
    second = Oracle(lambda image, coordinates: 1 + (coordinates[0] > 0).long(), 27)
    found = segment_deepnat(
        data, affine, mask,
        DeepNATStage(first, coordinate_rows(['cartesian', 'spectral'])),
        DeepNATStage(second, coordinate_rows(['spectral'])),
    )  # fmt: skip
    box = tuple(slice(c, c + n) for c, n in zip(found.corner, found.foreground.shape, strict=True))
    assert np.array_equal(found.foreground.numpy(), mask[box])
    assert mask[box].sum() == mask.sum()
    assert found.classes.shape == (len(CLASSES), *found.foreground.shape)
    assert first.seen[0][1].shape[0] == 6
    image, coordinates, inside = second.seen[0]
    assert coordinates.shape[0] == 3
    assert torch.equal(inside, found.foreground)
    labels = found.classes.argmax(dim=0).numpy()
    x = np.arange(mask.shape[0])[box[0]]
    # The first spectral coordinate rises from left to right and is 0 in the middle.
    assert (labels[x < 25][mask[box][x < 25]] == 1).all()
    assert (labels[x > 27][mask[box][x > 27]] == 2).all()
    refined = segment_deepnat(
        data, affine, mask, DeepNATStage(first, [0, 1, 2]), DeepNATStage(second, [3, 4, 5]),
        refine=lambda classes, image, inside: classes.flip(0),
    )  # fmt: skip
    assert torch.equal(refined.classes, found.classes.flip(0))


def test_the_mirrored_brain_gives_the_mirrored_answer(head):
    data, affine, mask = head
    left, right = CLASSES.index('Left-Putamen'), CLASSES.index('Right-Putamen')
    first = DeepNATStage(Oracle(lambda image, _: image > 0.1, 2), [0, 1, 2])
    second = DeepNATStage(
        Oracle(lambda _, place: torch.where(place[0] > 0, right, left), 27), [0, 1, 2]
    )
    one = segment_deepnat(data, affine, mask, first, second)
    both = segment_deepnat(data, affine, mask, first, second, mirror=True)
    middle = one.classes != both.classes  # coordinates of exactly 0 may go either way
    assert middle.any(dim=0).sum() <= one.foreground[0:1].numel()
    assert both.classes[:, one.foreground].sum(dim=0).allclose(torch.ones(()))


def test_no_foreground_is_an_error_with_its_volume(head):
    data, affine, mask = head
    nothing = DeepNATStage(Oracle(lambda image, _: torch.zeros_like(image), 2), [0, 1, 2])
    with pytest.raises(ImageError, match=r'found 0.0 cm\^3 of foreground'):
        segment_deepnat(data, affine, mask, nothing, nothing)


@pytest.fixture
def model(tmp_path):
    """A model folder with an untrained network that takes spectral coordinates."""
    from safetensors.torch import save

    network = DeepNAT(2, coordinates=3, tasks=1)
    content = save({f'foreground.{key}': v for key, v in network.state_dict().items()})
    (tmp_path / 'weights.safetensors').write_bytes(content)
    arguments = {'outputs': 2, 'coordinates': 3, 'tasks': 1}
    card = {
        'name': 'toy', 'version': '1', 'description': '', 'licence': 'none',
        'sha256': hashlib.sha256(content).hexdigest(),
        'stages': {'foreground': {'network': 'DeepNAT', 'arguments': arguments}},
        'training_data': {'coordinates': ['spectral']},
    }  # fmt: skip
    (tmp_path / 'card.json').write_text(json.dumps(card))
    return tmp_path


def test_a_model_folder_says_which_coordinates_it_takes(model):
    stage = load_stage(model, 2, low_mem=True, precision='float32')
    assert stage.rows == [3, 4, 5]
    assert stage.predictor.parities == 8  # one task reaches one voxel
    assert stage.predictor.tile == 64
    with pytest.raises(ModelError, match='27 outputs'):
        load_stage(model, 27)
