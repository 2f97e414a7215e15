# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from bids_app.training.heads import Heads, tissues_of
from bids_app.training.recipe import StageRecipe
from bids_app.training.registration import PairSampler, RegistrationTrainer, registration_loss
from bids_app.training.synthesis import Ranges

SHAPE = (32, 40, 32)
RANGES = Ranges(rotation=3.0, scaling=(0.97, 1.03), elastic=1.5, control_spacing=30.0)


def ball(centre, radius):
    points = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing='ij'))
    distance = np.sqrt(((points - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0))
    return np.clip(radius + 0.5 - distance, 0, 1)


def head(shift=(0, 0, 0)):
    centre = np.array([15.5, 19.5, 15.5]) + shift
    outer, inner = ball(centre, 11), ball(centre, 7)
    shares = np.stack([outer - inner, inner])
    return torch.from_numpy((shares * 255).round().astype(np.uint8))


@pytest.fixture
def heads():
    return Heads(head(), [head((1.5, 0, 0)), head((0, -1.5, 1))], ['a', 'b'])


def stage(**changes):
    values = {
        'network': 'SymNet', 'arguments': {'in_channels': 4, 'widths': [4, 8, 8], 'reach': 3.0},
        'shape': SHAPE, 'spacing': 1.5, 'draws': 1, 'steps': 80, 'batch': 1,
        'learning_rate': 3e-3, 'weight_decay': 0.0, 'warmup': 1, 'decay': 0.3, 'average': 0.5,
        'validate_every': 80, 'ranges': RANGES, 'late_ranges': RANGES,
    }  # fmt: skip
    return StageRecipe(**{**values, **changes})


def test_same_seed_same_pairs(heads):
    first, second = (PairSampler(heads, RANGES, 7).draw() for _ in range(2))
    torch.testing.assert_close(first.scan, second.scan)
    assert first.scan.shape == first.template.shape == (2, *SHAPE)
    other = PairSampler(heads, RANGES, 8).draw()
    assert float((first.scan - other.scan).abs().mean()) > 1e-3


def test_deformed_head_keeps_its_tissue(heads):
    sampler = PairSampler(heads, RANGES, 0)
    totals = [float(sampler.draw().scan.sum()) for _ in range(10)]
    expected = float(heads.heads[0].float().sum()) / 255
    assert np.mean(totals) == pytest.approx(expected, rel=0.08)
    assert max(totals) > min(totals) * 1.01


def test_loss_of_zero_velocity_is_the_difference(heads):
    x, y = (t[None].float() / 255 for t in (heads.heads[0], heads.template))
    loss, parts = registration_loss(torch.zeros(1, 6, 8, 10, 8), x, y)
    small = [torch.nn.functional.avg_pool3d(t, 2) for t in (x, y)]
    difference = 100 * float((small[0] - small[1]).square().mean())
    assert parts['middle'] == pytest.approx(difference, rel=1e-3)
    assert parts['ends'] == pytest.approx(difference, rel=1e-3)
    assert parts['rough'] == parts['folding'] == 0
    assert float(loss) == pytest.approx(2 * difference, rel=1e-3)


def test_loss_falls_when_both_move_towards_each_other(heads):
    # The scan lies 1.5 voxels to the right: to sample it at the template is to look right.
    x, y = (t[None].float() / 255 for t in (heads.heads[0], heads.template))
    still = torch.zeros(1, 6, 8, 10, 8)
    right = still.clone()
    right[:, 0], right[:, 3] = 0.75 / 4, -0.75 / 4
    assert (
        registration_loss(right, x, y)[1]['ends'] < 0.2 * registration_loss(still, x, y)[1]['ends']
    )
    wrong = registration_loss(-right, x, y)[1]['ends']
    assert wrong > registration_loss(still, x, y)[1]['ends']


def test_training_lowers_the_loss_and_writes_its_files(tmp_path):
    # All heads lie too far forward: the first thing that there is to learn.
    heads = Heads(head(), [head((0, 4, 0)), head((0, 3, 0))], ['a', 'b'])
    trainer = RegistrationTrainer(stage(), heads, heads, tmp_path, seed=1)
    before = trainer.validator(trainer.average)
    best = trainer.run()
    after = trainer.validator(trainer.average)
    assert after['score'] > before['score'] + 0.01
    assert after['folded'] == 0
    assert best.exists()


def test_tissues_of_a_generation_map():
    labels = np.array([[[0, 2, 3, 507, 10, 16, 25, 53]]])
    gm, wm, structures = tissues_of(labels)
    assert gm[0, 0].tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
    assert wm[0, 0].tolist() == [0, 1, 0, 0, 0, 1, 1, 0]
    assert structures[0, 0].tolist() == [0, 2, 3, 0, 10, 16, 2, 53]
