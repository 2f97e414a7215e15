# SPDX-License-Identifier: Apache-2.0
"""Small files in the layouts of the public data sets."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.errors import ImageError, UsageError
from bids_app.networks import build_network
from bids_app.networks.pif import parameter_count
from bids_app.training.__main__ import main
from bids_app.training.losses import TISSUE_LOSSES
from bids_app.training.recipe import read_recipe
from bids_app.training.scan_training import dice_table
from bids_app.training.scans import (
    LAYOUTS,
    UNKNOWN,
    Scan,
    ScanSampler,
    class_dice,
    find_layout,
    load_scans,
)
from bids_app.training.tissue import TISSUES

SIZE = (14, 16, 12)


def tissues(seed: int) -> np.ndarray:
    """White matter in grey matter in CSF in background, as indices into TISSUES."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SIZE], indexing='ij'))
    shift = 0.1 * np.random.default_rng(seed).standard_normal((3, 1, 1, 1))
    radius = np.sqrt(((grid - shift) ** 2).sum(axis=0))
    return np.select([radius < 0.4, radius < 0.65, radius < 0.8], [3, 2, 1], 0)


def intensities(classes: np.ndarray, means: tuple[float, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 5, classes.shape)
    return np.where(classes > 0, np.take(means, classes) + noise, 0).astype(np.float32)


@pytest.fixture(scope='session')
def iseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Analyze 7.5 pairs with a fourth axis of length one, as those of the challenge."""
    folder = tmp_path_factory.mktemp('iseg') / 'iSeg-2017-Training'
    folder.mkdir()
    for number in (1, 2, 10):
        classes = tissues(number)
        for name, data in {
            'T1': intensities(classes, (0, 50, 120, 180), number),
            'T2': intensities(classes, (0, 200, 120, 80), number),
            'label': np.take((0, 10, 150, 250), classes),
        }.items():
            kind = np.uint8 if name == 'label' else np.int16
            image = nib.AnalyzeImage(data.astype(kind)[..., None], np.eye(4))
            nib.save(image, folder / f'subject-{number}-{name}.hdr')
    return folder.parent


@pytest.fixture(scope='session')
def mrbrains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('mrbrains') / 'training'
    for name in ('1', '14', '070'):
        classes = tissues(int(name))
        (folder / name / 'pre').mkdir(parents=True)
        labels = np.take((0, 5, 1, 3), classes).astype(np.int16)
        labels[0] = 7
        labels[1, 0] = np.resize((2, 4, 6, 8, 9, 10), labels.shape[2])
        contrasts = {'reg_T1': (0, 50, 120, 180), 'reg_IR': (0, 9, 6, 3), 'FLAIR': (0, 1, 9, 7)}
        affine = np.diag([-0.958, 0.958, 3.0, 1.0])
        nib.save(nib.Nifti1Image(labels, affine), folder / name / 'segm.nii.gz')
        for file, means in contrasts.items():
            image = nib.Nifti1Image(intensities(classes, means, 0), affine)
            nib.save(image, folder / name / 'pre' / f'{file}.nii.gz')
    return folder.parent


def recipe(path: Path, data: str, arguments: str, network: str = 'ContextUNet3D') -> Path:
    path.mkdir(parents=True)
    (path / 'recipe.toml').write_text(f"""
seed = 1
[model]
name = "tiny"
version = "0.1"
description = "for tests"
licence = "none"
[data]
task = "tissue-scans"
{data}
[stage.tissue]
network = "{network}"
arguments = {{ {arguments} }}
shape = [16, 16, 16]
spacing = 1.0
draws = 1
steps = 30
batch = 1
optimizer = "sgd"
momentum = 0.9
loss = "dice"
learning_rate = 0.1
weight_decay = 1e-8
warmup = 1
decay = 0.0
average = 0.0
validate_every = 30
""")
    return path / 'recipe.toml'


def test_iseg_labels_and_contrasts(iseg):
    files = sorted(iseg.glob('*/subject-*-label.hdr'))
    scans = load_scans(files, 'iseg2017', ['T1w', 'T2w'])
    assert [scan.name for scan in scans] == ['subject-1', 'subject-10', 'subject-2']
    for scan, number in zip(scans, (1, 10, 2), strict=True):
        # Analyze has no orientation; nibabel takes the first axis to run to the left.
        expected = tissues(number)[::-1].copy()
        torch.testing.assert_close(scan.classes, torch.from_numpy(expected))
        assert scan.image.shape == (2, *SIZE)
        inside = scan.image[:, scan.classes > 0]
        torch.testing.assert_close(inside.mean(dim=1), torch.zeros(2), atol=0.05, rtol=0)
        torch.testing.assert_close(inside.std(dim=1), torch.ones(2), atol=0.05, rtol=0)
        assert not bool(scan.image[:, scan.classes == 0].any())
        t1w, t2w = (inside[channel] for channel in (0, 1))
        white = scan.classes[scan.classes > 0] == 3
        assert t1w[white].mean() > 0 > t2w[white].mean()


@pytest.mark.parametrize('classes', [4, 9])
def test_mrbrains_labels(mrbrains, classes):
    (file,) = mrbrains.glob('training/14/segm.nii.gz')
    (scan,) = load_scans([file], 'mrbrains2018', ['T1w', 'IR', 'FLAIR'], classes)
    assert scan.name == '14'
    assert scan.image.shape == (3, *SIZE)
    raw = np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj)
    table = [0, 2, 2, 3, 3, 1, 1, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    if classes == 9:
        table = [0, 1, 2, 3, 4, 5, 6, 7, 8, UNKNOWN, UNKNOWN]
    np.testing.assert_array_equal(scan.classes.numpy(), np.take(table, raw))


def test_miccai_labels_are_tissues_of_structures(tmp_path):
    labels = np.zeros((4, 4, 4), np.int16)
    labels[0], labels[1], labels[2, :2], labels[2, 2:] = 45, 60, 4, 71  # WM, thalamus, 3rd, vermis
    labels[3, 0] = 44
    for name, data in {'labels': labels, 'T1w': np.ones((4, 4, 4))}.items():
        image = nib.Nifti1Image(data.astype(np.float32), np.eye(4))
        nib.save(image, tmp_path / f'sub-1_{name}.nii.gz')
    (scan,) = load_scans([tmp_path / 'sub-1_labels.nii.gz'], 'miccai', ['T1w'])
    assert scan.name == 'sub-1'
    csf, gm, wm = (TISSUES.index(name) for name in ('csf', 'gm', 'wm'))
    assert set(scan.classes[0].flatten().tolist()) == {wm}
    assert set(scan.classes[1].flatten().tolist()) == {gm}
    assert set(scan.classes[2, :2].flatten().tolist()) == {csf}
    assert set(scan.classes[2, 2:].flatten().tolist()) == {UNKNOWN}
    assert set(scan.classes[3, 0].flatten().tolist()) == {wm}


def test_tissues_of_a_real_scan_have_the_intensities_of_t1w(data_dir):
    file = data_dir / 'miccai2012' / 'sub-1000_labels.nii.gz'
    (scan,) = load_scans([file], 'miccai', ['T1w'])
    means = [float(scan.image[0][scan.classes == number].mean()) for number in (1, 2, 3)]
    assert means == sorted(means)
    share = [float((scan.classes == number).sum()) / 1e6 for number in (1, 2, 3)]
    assert 0.005 < share[0] < share[2] < share[1] < 1.5  # CSF without sulci, WM, GM, in litres


def test_missing_files_contrasts_and_layouts_are_named(iseg, tmp_path):
    file = iseg / 'iSeg-2017-Training' / 'subject-1-label.hdr'
    with pytest.raises(UsageError, match='the layout has T1w, T2w'):
        load_scans([file], 'iseg2017', ['FLAIR'])
    with pytest.raises(UsageError, match='iseg2017 or mrbrains2018'):
        load_scans([file], 'brats', ['T1w'])
    with pytest.raises(UsageError, match='4 or 9 classes'):
        find_layout('mrbrains2018', 5)
    with pytest.raises(ImageError, match='held out'):
        load_scans([], 'iseg2017', ['T1w'])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), tmp_path / 'sub-1_labels.nii.gz')
    with pytest.raises(ImageError, match='sub-1_T1w'):
        load_scans([tmp_path / 'sub-1_labels.nii.gz'], 'miccai', ['T1w'])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 5)), np.eye(4)), tmp_path / 'sub-1_T1w.nii.gz')
    with pytest.raises(ImageError, match='the labels have'):
        load_scans([tmp_path / 'sub-1_labels.nii.gz'], 'miccai', ['T1w'])


def scan_of(classes: torch.Tensor) -> Scan:
    where = torch.stack(torch.meshgrid(*map(torch.arange, classes.shape), indexing='ij'))
    return Scan('one', where.float(), classes, TISSUES)


def test_corners_reach_both_ends_and_whole_axes():
    """The published rule never draws the last place, and fails on a second axis that is full."""
    sampler = ScanSampler([scan_of(torch.ones(6, 4, 4, dtype=torch.int64))], (4, 4, 4), 0, least=0)
    firsts = [sampler.draw().image[:, 0, 0, 0].tolist() for _ in range(60)]
    assert {first[0] for first in firsts} == {0, 1, 2}
    assert {tuple(first[1:]) for first in firsts} == {(0, 0)}


@pytest.mark.parametrize(('least', 'held'), [(0.1, 10), (0.0, 1)])
def test_crops_hold_enough_of_the_labelled_voxels(least, held):
    classes = torch.zeros(20, 5, 5, dtype=torch.int64)
    classes[9:13] = 2
    sampler = ScanSampler([scan_of(classes)], (3, 5, 5), 0, least)
    counts = [int(sampler.draw().target[1:].sum()) for _ in range(40)]
    assert min(counts) >= held
    assert len(set(counts)) > 1


def test_the_fullest_crop_is_taken_where_none_holds_enough():
    classes = torch.zeros(12, 1, 1, dtype=torch.int64)
    classes[4:8] = 1
    sampler = ScanSampler([scan_of(classes)], (2, 1, 1), 0, least=0.9)
    assert [int(sampler.draw().target[1].sum()) for _ in range(5)] == [2] * 5


def test_unknown_voxels_and_those_beyond_a_small_scan_have_no_target():
    classes = torch.ones(4, 4, 4, dtype=torch.int64)
    classes[0] = UNKNOWN
    sample = ScanSampler([scan_of(classes)], (4, 4, 6), 0).draw()
    assert sample.image.shape == (3, 4, 4, 6)
    assert sample.target.shape == (4, 4, 4, 6)
    known = torch.zeros(4, 4, 6)
    known[1:, :, :4] = 1
    torch.testing.assert_close(sample.target.sum(dim=0), known)
    torch.testing.assert_close(sample.target[1], known)


def test_dice_is_hard_and_leaves_background_and_unknown_out():
    truth = torch.tensor([0, 1, 1, 2, 2, UNKNOWN]).view(6, 1, 1)
    found = torch.tensor([1, 1, 1, 2, 0, 2]).view(6, 1, 1)
    csf, gm, wm = class_dice(found, truth, 4)
    assert csf == pytest.approx(2 * 2 / 5)
    assert gm == pytest.approx(2 * 1 / 3)
    assert np.isnan(wm)


def test_table_has_a_row_for_each_scan_and_the_mean_of_what_is_there():
    lines = dice_table(['csf', 'gm'], {'one': [0.5, 1.0], 'two': [0.25, float('nan')]}).split('\n')
    assert [line.split() for line in lines] == [
        ['Dice,', '%', 'csf', 'gm', 'mean'],
        ['one', '50.00', '100.00', '75.00'],
        ['two', '25.00', 'nan', '25.00'],
    ]


def test_one_command_trains_on_iseg_and_prints_the_table(iseg, tmp_path, capsys):
    file = recipe(
        tmp_path / 'models' / 'iseg',
        'layout = "iseg2017"\ncontrasts = ["T1w", "T2w"]\n'
        'pattern = ["subject-*-label.hdr", "iSeg-2017-Training/subject-*-label.hdr"]\n'
        'validation = ["subject-1-label.hdr"]',
        'in_channels = 2, out_channels = 4, head_dropout = 0.0',
        'DenseNet3D',
    )
    text = file.read_text().replace('[16, 16, 16]', '[9, 9, 9]')
    file.write_text(text.replace('steps = 30', 'steps = 12').replace('every = 30', 'every = 12'))
    assert main([str(file), '--data', str(iseg)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ['Dice,', '%', 'csf', 'gm', 'wm', 'mean']
    name, *cells = row.split()
    assert name == 'subject-1'
    log = (file.parent / 'checkpoints' / 'tissue' / 'log.jsonl').read_text().splitlines()
    scores = json.loads(log[-1])['validation']
    assert float(cells[-1]) == pytest.approx(100 * scores['score'], abs=0.01)
    assert scores['score'] > 0.3
    card = json.loads((file.parent / 'card.json').read_text())
    assert card['task'] == 'tissue'
    assert card['classes'] == list(TISSUES)
    assert card['stages']['tissue']['parameters'] == 2_697_811


def test_one_command_trains_on_mrbrains(mrbrains, tmp_path, capsys):
    file = recipe(
        tmp_path / 'models' / 'mrbrains',
        'layout = "mrbrains2018"\ncontrasts = ["T1w", "IR", "FLAIR"]\nclasses = 9\n'
        'pattern = ["*/segm.nii.gz", "training/*/segm.nii.gz"]\nvalidation = ["1"]',
        'in_channels = 3, out_channels = 9, base = 2, dropout = 0.0',
    )
    file.write_text(file.read_text().replace('[16, 16, 16]', '[32, 32, 16]'))
    assert main([str(file), '--data', str(mrbrains), '--steps', '3']) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert len(header.split()) == 2 + 8 + 1
    assert row.split()[0] == '1'
    card = json.loads((file.parent / 'card.json').read_text())
    assert card['task'] == 'structures'
    assert card['classes'][1] == 'cortical-gm'


def test_classes_of_network_and_data_must_agree(iseg, tmp_path, capsys):
    file = recipe(
        tmp_path / 'models' / 'wrong',
        'layout = "iseg2017"\ncontrasts = ["T1w"]\npattern = "*/subject-*-label.hdr"\n'
        'validation = ["subject-1-label.hdr"]',
        'in_channels = 1, out_channels = 3, base = 2',
    )
    assert main([str(file), '--data', str(iseg)]) == 2
    assert 'out_channels' in capsys.readouterr().err


def test_every_layout_names_background_first():
    for layout in LAYOUTS.values():
        for count, (names, table) in layout.classes.items():
            assert len(names) == count
            assert names[0] == 'background'
            assert table()[0] == 0
            assert set(table().values()) - {UNKNOWN} == set(range(count))


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('iseg2017-vnet', 45_611_956),
        ('mrbrains2018-unet', 1_781_960),
        ('miccai2012-unet', 1_781_528),
    ],
)
def test_recipes_for_manual_labels_are_complete(name, parameters, request):
    path = request.config.rootpath / 'benchmarks' / 'medicalzoo' / name / 'recipe.toml'
    recipe = read_recipe(path)
    (stage,) = recipe.stages.values()
    with torch.device('meta'):
        network = build_network(stage.network, stage.arguments)
    assert parameter_count(network) == parameters
    assert stage.loss in TISSUE_LOSSES
    layout = find_layout(recipe.data['layout'], stage.arguments['out_channels'])
    assert set(recipe.data['contrasts']) <= set(layout.images)
    assert all(n % network.divisor == 0 for n in stage.shape)
