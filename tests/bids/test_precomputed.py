# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.bids.inputs import Scan, SessionRecord
from bids_app.bids.precomputed import add_precomputed


@pytest.fixture
def folder(tmp_path):
    """Return a function that makes the derivatives of a pipeline."""

    def make(name, *files):
        root = tmp_path / name
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return root

    return make


def record(name='sub-01_T1w.nii.gz', session=None):
    from pathlib import Path

    subject = name.split('_')[0].removeprefix('sub-')
    return SessionRecord(subject, session, t1w=Scan(Path('/raw') / name, 'T1w', {}))


def found(records, derivatives):
    return [
        {one.kind: (one.name, one.path.name) for one in result.precomputed}
        for result in add_precomputed(records, derivatives)
    ]


MAPS = [f'sub-01/anat/sub-01_label-{label}_probseg.nii.gz' for label in ('GM', 'WM', 'CSF')]
MASK = 'sub-01/anat/sub-01_desc-brain_mask.nii.gz'


def test_mask_and_tissues_are_found(folder):
    root = folder('prep', MASK, *MAPS)
    (result,) = found([record()], {'prep': root})
    assert result == {
        'brain_mask': ('prep', 'sub-01_desc-brain_mask.nii.gz'),
        'probseg_gm': ('prep', 'sub-01_label-GM_probseg.nii.gz'),
        'probseg_wm': ('prep', 'sub-01_label-WM_probseg.nii.gz'),
        'probseg_csf': ('prep', 'sub-01_label-CSF_probseg.nii.gz'),
    }


@pytest.mark.parametrize(
    'file',
    [
        'sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz',
        'sub-01/anat/sub-01_res-2_desc-brain_mask.nii.gz',
        'sub-01/anat/sub-01_desc-lesion_mask.nii.gz',
        'sub-01/anat/sub-01_label-GM_desc-modulated_probseg.nii.gz',
        'sub-01/anat/sub-01_run-2_desc-brain_mask.nii.gz',
        'sub-01/func/sub-01_desc-brain_mask.nii.gz',
        'sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz',
        'sub-01/anat/sub-02_desc-brain_mask.nii.gz',
        'sub-01/anat/sub-01_desc-brain_mask.json',
    ],
)
def test_what_does_not_belong_to_the_scan_is_not_taken(folder, file):
    assert found([record()], {'prep': folder('prep', file)}) == [{}]


def test_space_of_the_scan_may_be_named_and_files_not_compressed(folder):
    root = folder('prep', 'sub-01/anat/sub-01_space-T1w_desc-brain_mask.nii')
    assert list(found([record()], {'prep': root})[0]) == ['brain_mask']


def test_sessions_are_kept_apart(folder):
    root = folder('prep', 'sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz')
    records = [record(f'sub-01_ses-{s}_T1w.nii.gz', s) for s in ('a', 'b')]
    assert [len(result) for result in found(records, {'prep': root})] == [1, 0]


def test_one_session_per_subject_finds_both_ways_of_naming(folder):
    first = record('sub-01_ses-a_T1w.nii.gz', None)
    root = folder('prep', MASK)
    assert found([first], {'prep': root})[0]['brain_mask'][1] == MASK.split('/')[-1]
    folder('prep', 'sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz')
    assert 'ses-a' in found([first], {'prep': root})[0]['brain_mask'][1]


def test_best_fit_is_taken_and_the_other_is_named(folder):
    root = folder(
        'prep',
        'sub-01/anat/sub-01_acq-x_run-01_desc-brain_mask.nii.gz',
        'sub-01/anat/sub-01_acq-x_desc-brain_mask.nii.gz',
        MASK,
    )
    (result,) = add_precomputed([record('sub-01_acq-x_run-1_T1w.nii.gz')], {'prep': root})
    assert result.precomputed[0].path.name == 'sub-01_acq-x_run-01_desc-brain_mask.nii.gz'
    assert len(result.skipped) == 2
    assert all('fits the scan better' in one.reason for one in result.skipped)


def test_tissues_are_taken_together_or_not_at_all(folder):
    root = folder('prep', *MAPS[:2])
    (result,) = add_precomputed([record()], {'prep': root})
    assert result.precomputed == ()
    assert [one.path.name for one in result.skipped] == [path.split('/')[-1] for path in MAPS[:2]]


def test_first_folder_wins_for_mask_and_tissues_apart(folder):
    derivatives = {'a': folder('a', MASK), 'b': folder('b', MASK, *MAPS)}
    (result,) = add_precomputed([record()], derivatives)
    assert [one.name for one in result.precomputed] == ['a', 'b', 'b', 'b']
    assert [one.reason for one in result.skipped] == ['that of a was taken']


def test_session_without_scan_is_left_alone(folder):
    nothing = SessionRecord('01', None)
    assert add_precomputed([nothing], {'prep': folder('prep', MASK)}) == [nothing]
