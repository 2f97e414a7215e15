# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.training.evaluate import (
    apply_mapping,
    compare,
    compare_tissues,
    dice,
    hausdorff95,
    main,
    read_mapping,
)


def box(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


def test_dice_of_known_boxes():
    a, b = box((20,) * 3, (2, 2, 2), (10, 10, 10)), box((20,) * 3, (7, 2, 2), (10, 10, 10))
    assert dice(a, b) == pytest.approx(0.5)
    assert np.isnan(dice(np.zeros(3, bool), np.zeros(3, bool)))


def test_hausdorff_of_a_shift_is_the_shift_in_mm():
    a, b = box((30,) * 3, (5, 5, 5), (10, 10, 10)), box((30,) * 3, (9, 5, 5), (10, 10, 10))
    assert hausdorff95(a, b, (0.5, 1, 1)) == pytest.approx(2.0)
    assert hausdorff95(a, a, (1, 1, 1)) == 0
    assert np.isnan(hausdorff95(a, np.zeros_like(a), (1, 1, 1)))


def test_swapped_sides_score_zero():
    reference = np.zeros((12, 6, 6), dtype=np.int16)
    reference[1:4, 1:5, 1:5], reference[8:11, 1:5, 1:5] = 17, 53
    rows = compare(reference, reference[::-1], (1, 1, 1))
    assert rows[17]['dice'] == rows[53]['dice'] == 0
    assert compare(reference, reference, (1, 1, 1))[53]['dice'] == 1


def test_ignored_voxels_take_no_part():
    reference = np.zeros((6, 6, 6), dtype=np.int16)
    reference[:2], reference[2:4] = 8, -1
    prediction = np.zeros_like(reference)
    prediction[:4] = 8
    assert compare(reference, prediction, (1, 1, 1))[8]['dice'] == 1


def test_structures_mixed_up_within_a_tissue_cost_it_nothing():
    reference = np.zeros((8, 6, 6), dtype=np.int16)
    reference[:2], reference[2:4], reference[4:6] = 17, 2, -1  # hippocampus, white matter
    prediction = reference.copy()
    prediction[:2], prediction[4:6] = 18, 2  # amygdala: the same tissue
    found = compare_tissues(reference, prediction)
    assert found['GM'] == found['WM'] == 1
    assert np.isnan(found['CSF'])
    assert compare_tissues(reference, np.where(reference == 17, 2, reference))['GM'] == 0


def test_mapping_table_of_the_manual_protocol(tmp_path):
    from importlib.resources import files

    mapping = read_mapping(files('bids_app.data') / 'mappings' / 'neuromorphometrics.tsv')
    labels = np.array([47, 48, 100, 207, 71, 46, 35, 1])
    assert apply_mapping(labels, mapping).tolist() == [53, 17, 42, 3, -1, 24, 16, 0]
    bad = tmp_path / 'bad.tsv'
    bad.write_text('a\tb\n1\t2\n')
    with pytest.raises(UsageError, match='value and index'):
        read_mapping(bad)


def test_command_compares_two_folders(tmp_path, capsys):
    labels = np.zeros((16, 16, 16), dtype=np.uint8)
    labels[2:6, 4:9, 4:9], labels[10:14, 4:9, 4:9] = 10, 49
    for name in ('reference', 'prediction'):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / name / f'a_{name}.nii.gz')
    folders = [str(tmp_path / name) for name in ('reference', 'prediction')]
    names = ['--pattern', '*_reference.nii.gz', '--replace', 'reference', 'prediction']
    code = main([folders[0], '--predictions', folders[1], *names])
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert result['mean_dice_core'] == 1
    assert result['core_structures'] == 2
    assert result['structures']['Left-Thalamus']['hd95'] == 0


def test_synthetic_scan_and_truth_share_the_grid_and_the_sides(head_files):
    from bids_app.training.synthetic_scans import synthetic_scan

    image, labels = synthetic_scan(head_files[1])
    assert image.shape == labels.shape
    assert np.argwhere(labels == 10)[:, 0].mean() < np.argwhere(labels == 49)[:, 0].mean()
    assert image[labels == 2].mean() > image[labels == 3].mean() > image[labels == 24].mean()
    again, _ = synthetic_scan(head_files[0])
    np.testing.assert_array_equal(image, again)


def test_synthetic_scans_with_bright_fat_and_thick_slices(head_files):
    from bids_app.training.synthetic_scans import synthetic_scan

    plain, labels = synthetic_scan(head_files[1], seed=3)
    bright, _ = synthetic_scan(head_files[1], seed=3, bright_fat=6.0)
    # Intensities are relative to the brightest voxel, so compare with the white matter.
    outside = (labels == 0) & (plain > 40)
    ratio = [image[outside].mean() / image[labels == 2].mean() for image in (plain, bright)]
    assert ratio[1] > 1.3 * ratio[0]
    thick, same = synthetic_scan(head_files[1], seed=3, slices=8.0)
    np.testing.assert_array_equal(labels, same)
    assert thick.shape == plain.shape
    inner = labels > 0
    steps = [np.abs(np.diff(image, axis=2))[inner[..., 1:]].mean() for image in (plain, thick)]
    assert steps[1] < 0.9 * steps[0]


def test_scores_go_into_the_card_with_their_command(tmp_path):
    from bids_app.training.evaluate import summarise, write_into_card

    labels = np.zeros((12, 6, 6), dtype=np.int16)
    labels[1:4, 1:5, 1:5] = 17
    rows = compare(labels, labels, (1, 1, 1))
    tissues = compare_tissues(labels, labels)
    scans = {'a': {'structures': rows, 'tissues': tissues, 'brain_dice': 1.0, 'seconds': 2.0}}
    (tmp_path / 'card.json').write_text('{"name": "m"}')
    write_into_card(tmp_path, 'manual', summarise(scans), 'command')
    card = json.loads((tmp_path / 'card.json').read_text())
    assert card['name'] == 'm'
    assert card['validation']['manual']['command'] == 'command'
    assert card['validation']['manual']['structures']['Left-Hippocampus']['dice'] == 1


@pytest.mark.parametrize('option', [['--slices', '3'], ['--bright-fat', '2'], ['--seed', '1']])
def test_how_to_draw_scans_without_drawing_any_is_an_error(tmp_path, option, capsys):
    assert main([str(tmp_path), '--model', 'brain', *option]) == 2
    assert 'need --synthesise' in capsys.readouterr().err
