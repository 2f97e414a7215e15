# SPDX-License-Identifier: Apache-2.0
"""Tests of the choice among diffusion runs, with tiny images."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.inputs import collect_sessions
from bids_app.bids.outputs import SYNTHESIZED
from bids_app.bids.overview import overview
from bids_app.config import MODULES, RunConfig

DIRECTIONS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, -1, 0], [1, 0, -1]],
    float,
)


@pytest.fixture
def add(make_bids):
    """Return a function that adds a run of a number of directions to a data set."""
    root = make_bids(['README'])

    def make(
        name: str,
        directions: int = 6,
        *,
        b0: int = 1,
        zooms: tuple[float, ...] = (3, 3, 3),
        volumes: int | None = None,
        **sidecar: str,
    ) -> Path:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        bvals = [0.0] * b0 + [1000.0] * directions
        shape = (8, 8, 8, len(bvals) if volumes is None else volumes)
        image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([*zooms, 1.0]))
        nib.save(image, f'{place}.nii.gz')
        np.savetxt(f'{place}.bval', [bvals], fmt='%g')
        vectors = np.r_[np.zeros((b0, 3)), DIRECTIONS[:directions]]
        np.savetxt(f'{place}.bvec', vectors.T)
        if sidecar:
            Path(f'{place}.json').write_text(json.dumps(sidecar))
        return root

    return make


def collect(root: Path, **options):
    return collect_sessions(RunConfig(root, root.parent / 'out', **options))


def reasons(record) -> dict[str, str]:
    return {skipped.path.name: skipped.reason for skipped in record.skipped}


def names(record) -> list[str]:
    return [scan.path.name for scan in record.dwi]


def test_a_session_with_nothing_but_diffusion_images(add):
    root = add('sub-01/dwi/sub-01_dwi')
    (record,) = collect(root)
    assert record.problem is None
    assert record.dwi_alone
    assert record.reference.path.name == 'sub-01_dwi.nii.gz'
    assert record.reference_name == SYNTHESIZED
    assert record.contrasts == ()
    text = overview([record], root)
    assert 'a T1w is synthesised from it' in text
    assert '1 to process (1 of them without a T1w)' in text
    (record,) = collect(root, reference='T1w')
    assert record.problem == 'no anatomical image that can be used'


def test_a_t1w_or_another_anatomical_image_comes_first(add):
    root = add('sub-01/dwi/sub-01_dwi', 3)
    add('sub-02/dwi/sub-02_dwi')
    for subject, suffix in (('01', 'T1w'), ('02', 'FLAIR')):
        path = root / f'sub-{subject}/anat/sub-{subject}_{suffix}.nii.gz'
        path.parent.mkdir()
        path.touch()
    first, second = collect(root)
    assert not first.dwi_alone
    assert not second.dwi_alone
    assert second.reference_name == 'FLAIR'
    assert first.no_tensor == ''  # the tables are not read where they are not needed
    first, second = collect(root, modules=(*MODULES, 'dwi'))
    assert '3 different directions' in first.no_tensor
    assert second.no_tensor == ''


def test_runs_of_one_grid_and_encoding_are_joined(add):
    add('sub-01/dwi/sub-01_dir-AP_run-1_dwi', PhaseEncodingDirection='j-')
    add('sub-01/dwi/sub-01_dir-AP_run-2_dwi', 7, PhaseEncodingDirection='j-')
    root = add('sub-01/dwi/sub-01_dir-PA_dwi', 8, PhaseEncodingDirection='j')
    (record,) = collect(root)
    assert names(record) == ['sub-01_dir-PA_dwi.nii.gz']
    assert reasons(record)['sub-01_dir-AP_run-1_dwi.nii.gz'] == (
        'on another phase-encoding direction than sub-01_dir-PA_dwi.nii.gz, which was taken'
    )
    add('sub-01/dwi/sub-01_dir-PA_dwi', 6, PhaseEncodingDirection='j')
    (record,) = collect(root)
    assert names(record) == [f'sub-01_dir-AP_run-{run}_dwi.nii.gz' for run in (1, 2)]


def test_encoding_by_an_inherited_sidecar_or_by_the_name(add):
    add('sub-01/dwi/sub-01_run-1_dwi')
    root = add('sub-01/dwi/sub-01_run-2_dwi', PhaseEncodingDirection='i')
    (record,) = collect(root)
    assert names(record) == ['sub-01_run-1_dwi.nii.gz']
    (root / 'dwi.json').write_text('{"PhaseEncodingDirection": "i"}')
    (record,) = collect(root)
    assert len(names(record)) == 2
    add('sub-02/dwi/sub-02_dir-AP_dwi', 7)
    add('sub-02/dwi/sub-02_dir-PA_dwi')
    (root / 'dwi.json').unlink()
    assert names(collect(root)[1]) == ['sub-02_dir-AP_dwi.nii.gz']


def test_runs_on_different_grids_are_not_joined(add):
    add('sub-01/dwi/sub-01_run-1_dwi', 6)
    root = add('sub-01/dwi/sub-01_run-2_dwi', 7, zooms=(3, 3, 2))
    (record,) = collect(root)
    assert names(record) == ['sub-01_run-2_dwi.nii.gz']
    assert 'on another grid' in reasons(record)['sub-01_run-1_dwi.nii.gz']


def test_a_run_without_b0_joins_one_that_has_it(add):
    add('sub-01/dwi/sub-01_run-1_dwi', 0, b0=3)
    root = add('sub-01/dwi/sub-01_run-2_dwi', 6, b0=0)
    (record,) = collect(root)
    assert len(record.dwi) == 2
    assert record.no_tensor == ''


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'directions': 5}, '5 different directions, and a tensor needs six'),
        ({'b0': 0}, r'no volume with b up to 50 s/mm\^2 \(no b=0\)'),
        ({'directions': 0, 'b0': 2}, 'no diffusion-weighted volume'),
    ],
)
def test_what_allows_no_tensor_gives_mean_images(add, options, reason):
    root = add('sub-01/dwi/sub-01_dwi', **options)
    (record,) = collect(root)
    assert record.problem is None
    assert record.no_tensor
    assert re.search(reason, record.no_tensor)
    assert 'only its mean images are made' in overview([record], root)


@pytest.mark.parametrize(
    ('name', 'options', 'reason'),
    [
        ('sub-01_acq-trace_dwi', {}, 'acq-trace: a map made of diffusion images'),
        ('sub-01_rec-ADC_dwi', {}, 'rec-ADC: a map'),
        ('sub-01_dwi', {'volumes': 1}, r'1 volume \(a trace or ADC map\?\), but 7 b-values'),
        ('sub-01_dwi', {'volumes': 9}, '9 volumes, but 7 b-values'),
    ],
)
def test_what_is_no_series_is_skipped_and_said(add, name, options, reason):
    root = add(f'sub-01/dwi/{name}', **options)
    (record,) = collect(root)
    assert re.search(reason, reasons(record)[f'{name}.nii.gz'])
    assert record.problem.startswith('no anatomical image, and no usable diffusion image (')


def test_tables_that_do_not_belong_together(add):
    root = add('sub-01/dwi/sub-01_dwi')
    (root / 'sub-01/dwi/sub-01_dwi.bval').write_text('0 1000\n')
    (record,) = collect(root)
    assert '2 b-values, but sub-01_dwi.bvec has 7 vectors' in record.problem


def test_an_image_without_content_is_left_to_the_step_that_reads_it(add):
    root = add('sub-01/dwi/sub-01_dwi')
    (root / 'sub-01/dwi/sub-01_dwi.nii.gz').write_bytes(b'')
    (record,) = collect(root)
    assert record.problem is None
    assert 'a T1w is synthesised from it, empty file' in overview([record], root)


def test_a_session_with_an_anatomical_image_is_the_one_of_a_subject(add):
    root = add('sub-01/ses-1/dwi/sub-01_ses-1_dwi')
    anat = root / 'sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz'
    anat.parent.mkdir(parents=True)
    anat.touch()
    (record,) = collect(root, subject_anatomical_reference='first-lex')
    assert record.reference_name == 'FLAIR'
    assert 'one session per subject' in reasons(record)['sub-01_ses-1_dwi.nii.gz']
