# SPDX-License-Identifier: Apache-2.0
"""DeepNAT on files: labels and volumes on the grid of the scan."""

from __future__ import annotations

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.errors import ImageError
from bids_app.inference import deepnat_files
from bids_app.inference.deepnat_classes import CLASSES, OTHER, class_values
from bids_app.inference.deepnat_files import (
    absent_structures,
    segment_structures,
    structures_to_native,
)
from bids_app.inference.deepnat_segment import DeepNATPosterior

SHAPE = (40, 44, 36)


def posterior(labels: np.ndarray, sure: float = 1.0) -> torch.Tensor:
    hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), len(CLASSES))
    return (hot.movedim(-1, 0) * sure + (1 - sure) / len(CLASSES)).float()


def scene() -> np.ndarray:
    """Return classes of a brain: left and right cortex, one caudate, the rest and background."""
    x, y, z = np.indices(SHAPE)
    labels = np.zeros(SHAPE, dtype=np.int64)
    brain = ((x - 20) / 18) ** 2 + ((y - 22) / 20) ** 2 + ((z - 18) / 16) ** 2 < 1
    left, right = map(CLASSES.index, ('Left-Cerebral-Cortex', 'Right-Cerebral-Cortex'))
    labels[brain] = np.where(x < 20, left, right)[brain]
    labels[12:16, 20:26, 16:20] = CLASSES.index('Left-Caudate')
    labels[18:22, 10:14, 10:14] = OTHER
    return labels


def test_labels_and_volumes_on_the_conformed_grid_itself():
    labels, affine = scene(), np.eye(4)
    found = DeepNATPosterior(
        posterior(labels, 0.9)[:, 2:38, 3:41, 2:34], torch.from_numpy(labels > 0), (2, 3, 2)
    )
    result = structures_to_native(found, affine, SHAPE, affine)
    assert result.labels.dtype == np.uint8
    expected = class_values()[labels]
    inside = np.zeros(SHAPE, bool)
    inside[2:38, 3:41, 2:34] = True
    np.testing.assert_array_equal(result.labels, np.where(inside, expected, 0))
    assert [row['index'] for row in result.rows] == [
        int(value) for value in class_values() if value
    ]
    caudate = next(row for row in result.rows if row['index'] == 11)
    # 96 voxels at 0.9, and what is left of the probability everywhere else in the box
    assert caudate['volume_mm3'] == pytest.approx(96 * 0.9 + inside.sum() * 0.1 / 27, rel=1e-4)
    assert caudate['mean_probability'] == pytest.approx(0.9 + 0.1 / 27, abs=1e-5)
    assert next(row for row in result.rows if row['index'] == 16)['volume_mm3'] < 250


@pytest.mark.parametrize('zooms', [(-1.0, 1.0, 1.0), (-0.8, 0.9, 1.2), (2.0, 2.0, 2.0)])
def test_labels_and_volumes_on_the_grid_of_the_scan(zooms):
    labels, affine = scene(), np.eye(4)
    affine[:3, 3] = (-20, -22, -18)
    shape = tuple(int(round(n / abs(size))) + 2 for n, size in zip(SHAPE, zooms, strict=True))
    native = np.diag([*zooms, 1.0])
    native[:3, 3] = -(np.array(shape) - 1) / 2 * zooms
    found = DeepNATPosterior(posterior(labels), torch.from_numpy(labels > 0), (0, 0, 0))
    result = structures_to_native(found, affine, shape, native)
    assert result.labels.shape == shape
    left = np.argwhere(result.labels == 3) @ np.diag(zooms) + native[:3, 3]
    right = np.argwhere(result.labels == 42) @ np.diag(zooms) + native[:3, 3]
    assert left[:, 0].max() < 1
    assert right[:, 0].min() > -1.5
    for row in result.rows:
        true = float((class_values()[labels] == row['index']).sum())
        assert row['volume_mm3'] == pytest.approx(true, rel=0.04, abs=5)
    assert np.isnan(result.rows[-1]['mean_probability'])  # no voxel


def test_what_deepnat_does_not_know():
    assert absent_structures() == [
        'Left-Inf-Lat-Vent', 'CSF', 'Left-Accumbens-area', 'Left-VentralDC', 'Right-Inf-Lat-Vent',
        'Right-Accumbens-area', 'Right-VentralDC',
    ]  # fmt: skip


def save(path, data, affine):
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


@pytest.fixture
def files(tmp_path):
    labels = scene()
    affine = np.eye(4)
    image = (100 * (labels > 0) + 50 * (labels == OTHER)).astype(np.float32)
    for name in ('foreground', 'structures'):
        (tmp_path / name).mkdir()
        card = {'name': name, 'version': '1', 'description': '', 'licence': 'CC BY-NC',
                'sha256': '', 'stages': {}}  # fmt: skip
        (tmp_path / name / 'card.json').write_text(json.dumps(card))
    return {
        'in_file': save(tmp_path / 'scan.nii', image, affine),
        'mask_file': save(tmp_path / 'mask.nii', (labels > 0).astype(np.uint8), affine),
        'native_file': save(tmp_path / 'native.nii', image, affine),
        'out_dir': tmp_path / 'out',
        'foreground': tmp_path / 'foreground',
        'model': tmp_path / 'structures',
    }


@pytest.fixture
def networks(monkeypatch):
    """Put stand-ins in the place of both networks; they note what they are given."""
    seen = SimpleNamespace(options=[], images=[])

    def load_stage(folder, outputs, **options):
        seen.options.append((folder.name, outputs, options))

        def probabilities(image, coordinates, mask):
            seen.images.append((image, coordinates, mask))
            if outputs == 2:
                return torch.stack([1 - mask.float(), mask.float()])
            place = torch.where(coordinates[0] > 0, *map(CLASSES.index, (
                'Right-Cerebral-Cortex', 'Left-Cerebral-Cortex')))  # fmt: skip
            return posterior(torch.where(mask, place, 0).numpy())

        predictor = SimpleNamespace(
            probabilities=probabilities, fallback=None, device='cpu', precision='float32'
        )
        return SimpleNamespace(predictor=predictor, rows=[0, 1, 2, 3, 4, 5])

    monkeypatch.setattr(deepnat_files, 'load_stage', load_stage)
    return seen


@pytest.mark.parametrize('suspect', [None, 'upside down', 'back to front'])
def test_files_of_a_scan(files, networks, suspect):
    found = segment_structures(**files, crf=False, suspect=suspect, parities=8, tile=32)
    labels = np.asarray(nib.load(files['out_dir'] / 'wholebrain.nii').dataobj)
    known = labels[labels > 0]
    assert set(known) == {3, 42}
    assert (labels > 0).sum() > 0.95 * (scene() > 0).sum()
    # A head that is turned is segmented as it should stand: then left is where right was.
    left = np.argwhere(labels == 3)[:, 0].mean()
    assert bool(left < 20) == (suspect is None)
    assert found['crf'] is False
    assert found['absent'] == absent_structures()
    assert found['licences'] == ['CC BY-NC']
    assert found['fallback'] is None
    assert {row['index'] for row in found['structures']} == {int(v) for v in class_values() if v}
    assert [(name, outputs) for name, outputs, _ in networks.options] == [
        ('foreground', 2), ('structures', 27),
    ]  # fmt: skip
    assert networks.options[0][2]['parities'] == 8
    assert networks.options[0][2]['tile'] == 32


def test_mask_on_another_grid_serves_as_well(files, networks, tmp_path):
    mask = (scene() > 0)[::-1, ::2, ::2].astype(np.uint8)
    affine = np.diag([-1.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (SHAPE[0] - 1, 0, 0)
    given = segment_structures(**files, crf=False)['foreground_mm3']
    files['mask_file'] = save(tmp_path / 'other.nii', mask, affine)
    assert segment_structures(**files, crf=False)['foreground_mm3'] == pytest.approx(
        given, rel=0.08
    )


def test_random_field_follows_where_asked_for(files, networks, monkeypatch):
    calls = []

    def dense_crf(classes, image, mask, **options):
        calls.append(options)
        return classes

    monkeypatch.setattr(deepnat_files, 'dense_crf', dense_crf)
    assert segment_structures(**files, crf=True)['crf'] is True
    assert [call['device'] for call in calls] == ['cpu']
    segment_structures(**files, crf=False)
    assert len(calls) == 1


def test_no_usable_mask_is_an_error_before_any_network(files, networks, tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:20, 10:20, 10:20] = 1
    files['mask_file'] = save(tmp_path / 'small.nii', mask, np.eye(4))
    with pytest.raises(ImageError, match='brain mask has 1.0 cm'):
        segment_structures(**files)
    assert not networks.images
    assert not (files['out_dir'] / 'wholebrain.nii').exists()
