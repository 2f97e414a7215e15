# SPDX-License-Identifier: Apache-2.0
"""What is found in ``bids_examples``, ``bids_real`` and ``ds002748_subset``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bids_app.bids.inputs import SessionRecord, collect_sessions
from bids_app.config import RunConfig


@pytest.fixture
def collect(data_dir, tmp_path):
    """Return a function that lists the sessions of one of the data sets."""

    def run(name: str) -> dict[str, SessionRecord]:
        root = data_dir / name
        if not root.is_dir():
            pytest.skip(f'{root} is missing')
        return {r.label: r for r in collect_sessions(RunConfig(root, tmp_path / 'out'))}

    return run


@pytest.mark.parametrize(
    ('name', 'sessions', 't1w', 't2w', 'flair', 'dwi'),
    [
        ('bids_examples/ds005', 16, 16, 0, 0, 0),
        ('bids_examples/ds006', 28, 28, 0, 0, 0),
        ('bids_examples/ds051', 13, 13, 0, 0, 0),
        ('bids_examples/ds114', 20, 20, 0, 0, 20),
        ('bids_examples/7t_trt', 44, 22, 0, 0, 0),
        ('bids_examples/ds004332', 2, 2, 2, 1, 0),
        ('bids_examples/genetics_ukbb', 14, 14, 0, 14, 14),
        ('bids_examples/hcp_example_bids', 1, 1, 1, 0, 0),
        ('bids_examples/mri_chunk', 1, 0, 0, 0, 0),
        ('bids_examples/dwi_deriv', 1, 0, 0, 0, 1),
        ('bids_examples/pet001', 1, 1, 0, 0, 0),
        ('bids_examples/pet005', 2, 2, 0, 0, 0),
        ('bids_examples/qmri_mp2rage', 1, 1, 0, 0, 0),
        ('bids_examples/qmri_mpm', 1, 0, 0, 0, 0),
        ('bids_examples/qmri_qsm', 1, 1, 0, 0, 0),
        ('bids_real', 6, 5, 2, 4, 3),
        ('ds002748_subset', 10, 10, 0, 0, 0),
    ],
)
def test_counts(collect, name, sessions, t1w, t2w, flair, dwi):
    records = collect(name).values()
    found = Counter(
        use
        for record in records
        for use, scan in (('t1w', record.t1w), ('t2w', record.t2w), ('flair', record.flair))
        if scan is not None
    )
    assert len(records) == sessions
    assert (found['t1w'], found['t2w'], found['flair']) == (t1w, t2w, flair)
    assert sum(len(record.dwi) for record in records) == dwi
    stand_ins = {'bids_real': ['FLAIR']}.get(name, [])
    assert [record.reference_name for record in records if record.stand_in] == stand_ins
    alone = sum(record.dwi_alone for record in records)
    assert alone == (name == 'bids_examples/dwi_deriv')
    assert sum(record.problem is None for record in records) == t1w + len(stand_ins) + alone


@pytest.mark.parametrize(
    ('name', 'label', 't1w'),
    [
        ('bids_examples/ds051', 'sub-01', 'sub-01_run-01_T1w.nii.gz'),
        ('bids_examples/qmri_qsm', 'sub-01', 'sub-01_part-mag_T1w.nii'),
        ('bids_examples/qmri_mp2rage', 'sub-1', 'sub-1_UNIT1.nii'),
        ('bids_examples/ds004332', 'sub-01',
         'sub-01_task-still_acq-mpragePMCoff_rec-wore_T1w.nii'),
        ('bids_real', 'sub-xa30', 'sub-xa30_rec-norm_T1w.nii.gz'),
    ],
)  # fmt: skip
def test_which_t1w_is_taken(collect, name, label, t1w):
    assert collect(name)[label].t1w.path.name == t1w


@pytest.mark.parametrize(
    ('name', 'label', 'file', 'reason'),
    [
        ('bids_examples/ds005', 'sub-01', 'inplaneT2', 'used only where there is no T1w'),
        ('bids_examples/ds051', 'sub-01', 'run-02_T1w', 'a later run'),
        ('bids_examples/mri_chunk', 'sub-001', 'chunk-2', 'not a whole head'),
        ('bids_examples/qmri_qsm', 'sub-01', 'part-phase', 'not a magnitude image'),
        ('bids_examples/qmri_mp2rage', 'sub-1', 'defacemask', 'not used'),
        ('bids_examples/qmri_mp2rage', 'sub-1', 'inv-1_part-mag', 'not used'),
        ('bids_examples/dwi_deriv', 'sub-01', '_FA', 'not used'),
        ('bids_examples/7t_trt', 'sub-01_ses-1', 'T1map', 'not used'),
        ('bids_real', 'sub-xa30', 'rec-nonorm', 'reconstruction'),
    ],
)
def test_why_others_are_not(collect, name, label, file, reason):
    found = [s.reason for s in collect(name)[label].skipped if file in s.path.name]
    assert found
    assert all(reason in text for text in found)


def test_sessions_that_cannot_be_processed(collect):
    assert collect('bids_examples/7t_trt')['sub-01_ses-2'].problem == 'no anatomical image'
    assert collect('bids_examples/mri_chunk')['sub-001'].problem.startswith('no usable T1w image')


def test_what_stands_in_for_a_t1w(collect):
    records = collect('bids_real')
    assert records['sub-ms19_ses-1'].reference.path.name == 'sub-ms19_ses-1_FLAIR.nii.gz'
    assert [scan.suffix for scan in records['sub-ms01_ses-1'].contrasts] == ['T2w', 'FLAIR']


def test_gradients_of_the_root_are_inherited(collect, data_dir):
    record = collect('bids_examples/ds114')['sub-01_ses-test']
    assert record.dwi[0].bval == Path(data_dir / 'bids_examples/ds114/dwi.bval')
    assert record.dwi[0].bvec == Path(data_dir / 'bids_examples/ds114/dwi.bvec')
