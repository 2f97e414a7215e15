# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional

from bids_app.errors import ImageError, UsageError
from bids_app.inference.deepnat_classes import CLASSES, OTHER, class_values, mirrored_classes
from bids_app.inference.models import load_card, load_networks
from bids_app.networks.deepnat import OFFSETS
from bids_app.training import deepnat_scans
from bids_app.training.__main__ import main
from bids_app.training.deepnat import task_loss
from bids_app.training.deepnat_labels import UNKNOWN, label_table, to_classes
from bids_app.training.deepnat_sampling import (
    PatchSampler,
    Sampling,
    at_centres,
    eligible,
    sample_linear,
)
from bids_app.training.deepnat_scans import DeepNATScan, load_prepared, prepare_scan
from bids_app.training.synthesis import Ranges

STILL = Ranges(
    rotation=0, scaling=(1, 1), shear=0, elastic=0, elastic_fine=0, bias=0, noise=0, gamma=0,
    stripped=1,
)  # fmt: skip
RECIPE = """
seed = 1
[model]
name = "tiny"
version = "0.1"
description = "for tests"
licence = "none"
[data]
task = "deepnat"
pattern = "sub-*_labels.nii.gz"
replace = ["_labels", "_T1w"]
numbers = "freesurfer"
validation = ["sub-2_labels.nii.gz"]
test = ["sub-3_labels.nii.gz"]
coordinates = ["cartesian"]
sampling = { patches = 16 }
[stage.structures]
network = "DeepNAT"
arguments = { outputs = 27, coordinates = 3 }
shape = [30, 30, 30]
spacing = 1.0
draws = 1
steps = 3
batch = 2
optimizer = "sgd"
momentum = 0.9
loss = "ce-mean"
learning_rate = 1e-2
weight_decay = 0.0
warmup = 1
decay = 0.5
average = 0.9
validate_every = 2
"""


def make_scan(name: str = 'sub-1_labels.nii.gz') -> DeepNATScan:
    """A brain of two halves around a third ventricle; the image tells the classes apart."""
    shape = (60, 58, 56)
    classes = torch.zeros(shape, dtype=torch.uint8)
    classes[14:30, 14:44, 14:42] = 1  # left white matter
    classes[30:46, 14:44, 14:42] = int(mirrored_classes()[1])
    classes[28:32, 20:30, 20:30] = CLASSES.index('3rd-Ventricle')
    classes[28:32, 32:36, 20:30] = OTHER
    classes[14:18, 14:18, 14:18] = UNKNOWN
    wide = functional.max_pool3d((classes > 0).float()[None], 3, 1, 1)[0] > 0
    axes = [torch.linspace(-1, 1, n) for n in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing='ij'))
    image = (classes.float() / 40) * (classes > 0)
    return DeepNATScan(name, image.half(), wide, classes, torch.cat([place, place]).half())


def sampler(scan, ranges=STILL, *, foreground=False, seed=0, **sampling):
    kinds = ['cartesian', 'spectral']
    return PatchSampler(
        [scan], ranges, (30, 30, 30), seed,
        foreground=foreground, kinds=kinds, sampling=Sampling(**{'patches': 40, **sampling}),
    )  # fmt: skip


def test_classes_are_background_25_structures_and_the_rest():
    assert len(CLASSES) == 27
    assert CLASSES[0] == 'background'
    values = class_values()
    assert (values[1:26] > 0).all()
    assert len(set(values[1:26].tolist())) == 25
    mirrored = mirrored_classes()
    assert (mirrored[mirrored] == np.arange(27)).all()
    assert CLASSES[mirrored[CLASSES.index('Left-Caudate')]] == 'Right-Caudate'
    assert CLASSES[mirrored[CLASSES.index('Brain-Stem')]] == 'Brain-Stem'


def test_numbers_of_both_built_in_tables():
    manual, aseg = label_table('neuromorphometrics'), label_table('freesurfer')
    for numbers, value, name in (
        (manual, 47, 'Right-Hippocampus'), (manual, 48, 'Left-Hippocampus'),
        (manual, 100, 'Right-Cerebral-Cortex'), (manual, 101, 'Left-Cerebral-Cortex'),
        (manual, 33, 'Right-Amygdala'), (aseg, 17, 'Left-Hippocampus'),
        (aseg, 1035, 'Left-Cerebral-Cortex'), (aseg, 2035, 'Right-Cerebral-Cortex'),
    ):  # fmt: skip
        assert CLASSES[numbers[value]] == name
    labels = np.array([[0, -3, 71, 46, 44]])
    assert to_classes(labels, manual).tolist() == [
        [0, 0, OTHER, OTHER, CLASSES.index('Right-Cerebral-White-Matter')]
    ]
    assert to_classes(np.array([251, 24]), aseg).tolist() == [UNKNOWN, OTHER]


def test_sides_are_those_of_the_names_of_the_data_set(data_dir):
    table = label_table('neuromorphometrics')
    with (data_dir / 'miccai2012' / 'labels.csv').open(newline='') as stream:
        names = {int(row['Label Number']): row['Label Name'] for row in csv.DictReader(stream)}
    sided = 0
    for value, number in table.items():
        side = CLASSES[number].partition('-')[0]
        if side in ('Left', 'Right'):
            assert names[value].startswith(side)
            sided += 1
    assert sided > 100


def test_own_tables_of_numbers(tmp_path):
    path = tmp_path / 'numbers.tsv'
    path.write_text('value\tindex\n1\t17\n2\t53\n3\t-1\n')
    table = label_table(str(path))
    assert to_classes(np.array([1, 2, 3, 4]), table).tolist() == [
        CLASSES.index('Left-Hippocampus'), CLASSES.index('Right-Hippocampus'), UNKNOWN, OTHER,
    ]  # fmt: skip
    path.write_text('value\tindex\n1\t24\n')
    with pytest.raises(UsageError, match='none of the 25'):
        label_table(str(path))


def test_targets_are_the_classes_around_each_centre():
    scan = make_scan()
    for seed in range(6):
        sample = sampler(scan, seed=seed, plain=1.0).draw()
        # The image is made of the classes, so that the crop itself says what the targets are.
        classes = (sample.image[0] * 40).round().long()
        for task, offset in enumerate(OFFSETS):
            wanted = at_centres(classes, offset)[tuple(sample.index.T)]
            known = sample.target[:, task] != UNKNOWN
            if abs(float(sample.coordinates[0, 0])) < 2:  # plain crops are mirrored at random
                left, other = wanted[known], torch.from_numpy(mirrored_classes())[wanted[known]]
                assert torch.equal(sample.target[known, task], left) or torch.equal(
                    sample.target[known, task], other
                )


def test_mirrored_crops_swap_sides_and_coordinates():
    scan = make_scan()
    right = int(mirrored_classes()[1])
    seen = set()
    for seed in range(12):
        one = sampler(scan, seed=seed)
        grid, flip = one._grid(torch.tensor([29.5, 29.0, 28.0]))
        seen.add(flip)
        sample = sampler(scan, seed=seed).draw()
        x = sample.coordinates[:, 0]
        centre = sample.target[:, 0]
        assert (x[centre == right] > 0).all()  # RAS: right is at the end of the x axis
        assert (x[centre == 1] < 0).all()
        torch.testing.assert_close(sample.coordinates[:, 3], x)
        assert grid.shape == (3, 30, 30, 30)
    assert seen == {True, False}


def test_rare_classes_are_drawn_more_often():
    scan = make_scan()
    rare = CLASSES.index('3rd-Ventricle')
    shares = []
    for power in (1.0, 0.0):
        one = sampler(scan, crops=power, centres=power, seed=2)
        found = torch.cat([one.draw().target[:, 0] for _ in range(30)])
        shares.append(float((found == rare).float().mean()))
    assert shares[1] > 2 * shares[0] > 0


def test_centres_lie_where_they_may():
    scan = make_scan()
    inner = eligible(scan.classes, scan.wide, foreground=False)
    assert not inner[scan.classes == UNKNOWN].any()
    assert inner[13, 30, 30]  # one voxel around the foreground
    assert not inner[12, 30, 30]
    assert torch.equal(
        eligible(scan.classes, scan.wide, foreground=True), scan.wide & (scan.classes != UNKNOWN)
    )
    targets = sampler(scan, foreground=True).draw().target
    assert set(targets.unique().tolist()) <= {0, 1, UNKNOWN}


def test_interpolation_follows_a_ramp_and_ends_at_the_border():
    x = torch.arange(8.0)
    ramp = (x[:, None, None] + 10 * x[None, :, None] + 100 * x[None, None, :])[None].half().float()
    grid = torch.tensor([[1.5, -3.0, 9.0], [2.0, 0.0, 7.0], [3.25, 0.0, 7.0]])
    found = sample_linear(ramp, grid)
    torch.testing.assert_close(found, torch.tensor([[346.5, 0.0, 777.0]]))


def test_loss_is_the_mean_or_the_sum_over_tasks_of_known_voxels():
    logits = torch.randn(5, 7, 4)
    target = torch.randint(4, (5, 7))
    target[0, 3] = UNKNOWN
    terms = [
        functional.cross_entropy(logits[target[:, t] < 4, t], target[target[:, t] < 4, t])
        for t in range(7)
    ]
    total, parts = task_loss(logits, target, mean=False)
    torch.testing.assert_close(total, torch.stack(terms).sum())
    torch.testing.assert_close(task_loss(logits, target)[0], total / 7)
    assert parts['ce'] == pytest.approx(float(terms[0]))
    single, _ = task_loss(logits[:, :1], target)
    torch.testing.assert_close(single, terms[0])


@pytest.fixture
def trained_on_toys(tmp_path, monkeypatch):
    """A recipe, a folder of three named scans, and the names of those that were read."""
    read = []

    def prepare(labels, scan_file, numbers, *, model):
        read.append(labels.name)
        return make_scan(labels.name)

    monkeypatch.setattr(deepnat_scans, 'prepare_scan', prepare)
    data = tmp_path / 'data'
    data.mkdir()
    for number in (1, 2, 3):
        (data / f'sub-{number}_labels.nii.gz').write_bytes(b'')
        (data / f'sub-{number}_T1w.nii.gz').write_bytes(b'')
    folder = tmp_path / 'tiny'
    folder.mkdir()
    (folder / 'recipe.toml').write_text(RECIPE)
    return folder, data, read


def test_command_trains_resumes_exports_and_fine_tunes(trained_on_toys, tmp_path):
    folder, data, read = trained_on_toys
    command = [str(folder / 'recipe.toml'), '--data', str(data)]
    assert main([*command, '--steps', '2']) == 0
    assert sorted(read) == ['sub-1_labels.nii.gz', 'sub-2_labels.nii.gz']  # not the test scan
    assert main(command) == 0
    assert len(read) == 2  # prepared scans are kept
    log = (folder / 'checkpoints' / 'structures' / 'log.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in log] == [2, 3]
    card = load_card(folder)
    assert card.classes == list(CLASSES)
    assert card.content['training_data']['coordinates'] == ['cartesian']
    (network,) = load_networks(folder).values()
    assert network.coordinates == 3
    weights = folder / 'weights.safetensors'
    tuned = [*command, '--init', str(weights), '--out', str(tmp_path / 'tuned'), '--steps', '1']
    assert main(tuned) == 0


def test_wrong_recipes_are_usage_errors(trained_on_toys, capsys):
    folder, data, _ = trained_on_toys
    for old, new, words in (
        ('coordinates = 3', 'coordinates = 6', 'make them agree'),
        ('["cartesian"]', '["polar"]', 'polar'),
        ('patches = 16', 'patch = 16', 'data.sampling'),
        ('outputs = 27', 'outputs = 9', '27'),
        ('"_T1w"]', '"_labels"]', 'data.replace'),
    ):
        (folder / 'recipe.toml').write_text(RECIPE.replace(old, new))
        assert main([str(folder / 'recipe.toml'), '--data', str(data)]) != 0
        error = capsys.readouterr().err
        assert words in error
        assert error.count('\n') == 1


def test_prepared_scans_of_other_files_are_not_used(trained_on_toys, tmp_path):
    _, data, read = trained_on_toys
    files, how = [data / 'sub-1_labels.nii.gz'], {'replace': ('_labels', '_T1w')}
    load_prepared(files, tmp_path / 'cache', numbers='freesurfer', **how)
    load_prepared(files, tmp_path / 'cache', numbers='freesurfer', **how)
    assert len(read) == 1
    load_prepared(files, tmp_path / 'cache', numbers='neuromorphometrics', **how)
    files[0].write_bytes(b'changed')
    load_prepared(files, tmp_path / 'cache', numbers='freesurfer', **how)
    assert len(read) == 3


def test_labels_on_another_grid_are_refused(tmp_path):
    data = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / 'scan.nii.gz')
    moved = np.diag([1.0, 1.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(data.round(), moved), tmp_path / 'labels.nii.gz')
    with pytest.raises(ImageError, match='not on the grid'):
        prepare_scan(
            tmp_path / 'labels.nii.gz', tmp_path / 'scan.nii.gz', 'freesurfer', model=tmp_path
        )


def test_rim_is_filled_only_outside_the_labels():
    scan = make_scan()
    filled = sampler(scan, replace(STILL, stripped=0.0), seed=3, plain=1.0)
    bare = sampler(scan, seed=3, plain=1.0)
    one, other = filled.draw().image[0], bare.draw().image[0]
    assert ((one > 0) & (other == 0)).any()
    ratio = (one / other)[other > 0]  # the intensities change by one factor
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
