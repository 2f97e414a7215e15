# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.filters import check_filters, read_filters
from bids_app.bids.inputs import collect_sessions
from bids_app.config import RunConfig
from bids_app.errors import NoInputError, UsageError


def collect(root: Path, **options):
    if 'bids_filters' in options:
        options['bids_filters'] = check_filters(options['bids_filters'], 'filter.json')
    return collect_sessions(RunConfig(root, root.parent / 'out', **options))


def names(record) -> dict[str, str | None]:
    return {
        use: None if scan is None else scan.path.name
        for use, scan in (('t1w', record.t1w), ('t2w', record.t2w), ('flair', record.flair))
    }


def reasons(record) -> dict[str, str]:
    return {skipped.path.name: skipped.reason for skipped in record.skipped}


def write_grid(path: Path, shape, zooms):
    """Write an image of zeros, which compress to nothing."""
    affine = np.diag([*zooms, 1.0])
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    image.set_sform(affine, 1)
    nib.save(image, path)


def test_sessions_are_apart_and_sorted(make_bids):
    root = make_bids(
        [
            'sub-02/anat/sub-02_T1w.nii.gz',
            'sub-01/ses-pre/anat/sub-01_ses-pre_T1w.nii.gz',
            'sub-01/ses-post/anat/sub-01_ses-post_T1w.nii.gz',
            'sub-01/ses-post/anat/sub-01_ses-post_T2w.nii.gz',
            'sub-01/ses-post/anat/sub-01_ses-post_FLAIR.nii.gz',
        ]
    )
    records = collect(root)
    assert [r.label for r in records] == ['sub-01_ses-post', 'sub-01_ses-pre', 'sub-02']
    assert names(records[0]) == {
        't1w': 'sub-01_ses-post_T1w.nii.gz',
        't2w': 'sub-01_ses-post_T2w.nii.gz',
        'flair': 'sub-01_ses-post_FLAIR.nii.gz',
    }
    assert all(r.problem is None for r in records)


def test_unit1_stands_in_only_without_t1w(make_bids):
    root = make_bids([
        'sub-01/anat/sub-01_UNIT1.nii.gz',
        'sub-02/anat/sub-02_UNIT1.nii.gz', 'sub-02/anat/sub-02_run-2_T1w.nii.gz',
    ])  # fmt: skip
    first, second = collect(root)
    assert first.t1w.suffix == 'UNIT1'
    assert second.t1w.path.name == 'sub-02_run-2_T1w.nii.gz'
    assert 'UNIT1' in reasons(second)['sub-02_UNIT1.nii.gz']


def test_parts_of_heads_and_foreign_images_are_skipped_with_a_reason(make_bids):
    root = make_bids([
        'sub-01/anat/sub-01_part-mag_T1w.nii.gz', 'sub-01/anat/sub-01_part-phase_T1w.nii.gz',
        'sub-01/anat/sub-01_acq-localizer_T1w.nii.gz', 'sub-01/anat/sub-01_inplaneT2.nii.gz',
        'sub-01/anat/sub-01_chunk-1_T1w.nii.gz', 'sub-01/anat/sub-01_inv-1_part-mag_MP2RAGE.nii',
        'sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz',
        'sub-01/anat/sub-01_space-x_desc-preproc_T1w.nii.gz',
        'sub-01/anat/sub-02_T1w.nii.gz',
    ])  # fmt: skip
    (record,) = collect(root)
    assert record.t1w.path.name == 'sub-01_part-mag_T1w.nii.gz'
    found = reasons(record)
    assert len(found) == 8
    assert 'magnitude' in found['sub-01_part-phase_T1w.nii.gz']
    assert 'localiser' in found['sub-01_acq-localizer_T1w.nii.gz']
    assert 'inplaneT2' in found['sub-01_inplaneT2.nii.gz']
    assert 'whole head' in found['sub-01_chunk-1_T1w.nii.gz']
    assert 'derivative' in found['sub-01_space-x_desc-preproc_T1w.nii.gz']
    assert 'folder' in found['sub-02_T1w.nii.gz']


def test_without_t1w_the_sharpest_other_image_is_the_reference(make_bids):
    names = ['T2w', 'FLAIR', 'acq-tse_PDw', 'inplaneT2', 'echo-1_MEGRE']
    root = make_bids([f'sub-01/anat/sub-01_{name}.nii.gz' for name in names])
    anat = root / 'sub-01' / 'anat'
    write_grid(anat / 'sub-01_T2w.nii.gz', (200, 200, 30), (1, 1, 5))
    write_grid(anat / 'sub-01_FLAIR.nii.gz', (200, 200, 60), (1.2, 1, 3))
    write_grid(anat / 'sub-01_acq-tse_PDw.nii.gz', (200, 200, 60), (1.3, 1, 3))
    write_grid(anat / 'sub-01_inplaneT2.nii.gz', (400, 400, 20), (0.5, 0.5, 2))  # a slab
    (record,) = collect(root)
    assert record.problem is None
    assert record.reference.path.name == 'sub-01_FLAIR.nii.gz'
    assert record.reference_name == 'FLAIR'
    assert [scan.suffix for scan in record.contrasts] == ['T2w']
    found = reasons(record)
    assert 'sub-01_FLAIR.nii.gz stands in for the T1w' in found['sub-01_acq-tse_PDw.nii.gz']
    assert 'sub-01_FLAIR.nii.gz stands in for the T1w' in found['sub-01_inplaneT2.nii.gz']
    assert found['sub-01_echo-1_MEGRE.nii.gz'] == 'MEGRE images are not used'


def test_another_contrast_can_be_the_reference(make_bids):
    root = make_bids([f'sub-01/anat/sub-01_{name}.nii.gz' for name in ('FLAIR', 'PDw')])
    anat = root / 'sub-01' / 'anat'
    write_grid(anat / 'sub-01_FLAIR.nii.gz', (200, 200, 30), (1, 1, 5))
    write_grid(anat / 'sub-01_PDw.nii.gz', (200, 200, 160), (1, 1, 1))
    (record,) = collect(root)
    assert record.reference_name == 'PDw'
    assert [scan.suffix for scan in record.contrasts] == ['FLAIR']


def test_images_that_cannot_be_read_are_the_last_choice(make_bids):
    files = {'sub-01/anat/sub-01_T2w.nii.gz': 'x', 'sub-01/anat/sub-01_FLAIR.nii.gz': 'x'}
    root = make_bids(files)
    (record,) = collect(root)
    assert record.reference_name == 'T2w'
    write_grid(root / 'sub-01/anat/sub-01_FLAIR.nii.gz', (40, 40, 10), (5, 5, 8))
    (record,) = collect(root)
    assert record.reference_name == 'FLAIR'


def test_a_t1w_is_the_reference_and_other_images_may_be_refused_as_one(make_bids):
    root = make_bids(
        [
            'sub-01/anat/sub-01_T1w.nii.gz',
            'sub-01/anat/sub-01_T2w.nii.gz',
            'sub-01/anat/sub-01_PDw.nii.gz',
            'sub-02/anat/sub-02_PDw.nii.gz',
        ]
    )
    for options in ({}, {'reference': 'T1w'}):
        first, second = collect(root, **options)
        assert first.reference is first.t1w
        assert first.reference_name == 'T1w'
        assert [scan.suffix for scan in first.contrasts] == ['T2w']
        assert 'only where there is no T1w' in reasons(first)['sub-01_PDw.nii.gz']
        assert (second.problem is None) == (not options)


def test_a_session_without_t1w_says_so(make_bids):
    root = make_bids(
        [
            'sub-01/anat/sub-01_FLAIR.nii.gz',
            'sub-02/eeg/sub-02_task-rest_eeg.edf',
            'sub-03/anat/sub-03_chunk-1_T1w.nii.gz',
        ]
    )
    problems = [record.problem for record in collect(root, reference='T1w')]
    assert problems[0] == 'no T1w or UNIT1 image, which --reference T1w asks for'
    assert problems[1] == 'no anatomical image'
    assert 'chunk-1' in problems[2]


def test_other_files_of_the_root_and_derivatives_are_not_looked_at(make_bids):
    root = make_bids([
        'sub-01/anat/sub-01_T1w.nii.gz', 'sub-01.html', 'sub-notafolder',
        'derivatives/x/sub-09/anat/sub-09_T1w.nii.gz',
        'sourcedata/sub-08/anat/sub-08_T1w.nii.gz', 'code/sub-07_T1w.nii.gz',
    ])  # fmt: skip
    assert [r.label for r in collect(root)] == ['sub-01']


def test_dwi_has_inherited_gradients_or_is_skipped(make_bids):
    root = make_bids([
        'dwi.bval', 'sub-01/sub-01_dwi.bvec',
        'sub-01/anat/sub-01_T1w.nii.gz', 'sub-01/dwi/sub-01_dwi.nii.gz',
        'sub-02/anat/sub-02_T1w.nii.gz', 'sub-02/dwi/sub-02_dwi.nii.gz',
    ])  # fmt: skip
    first, second = collect(root)
    assert first.dwi[0].bval == root / 'dwi.bval'
    assert first.dwi[0].bvec == root / 'sub-01/sub-01_dwi.bvec'
    assert second.dwi == ()
    assert reasons(second)['sub-02_dwi.nii.gz'] == 'no bvec file'


def test_names_of_parent_folders_do_not_count(make_bids):
    root = make_bids(
        ['sub-01/anat/sub-01_T1w.nii.gz'], name='sub-99_ses-7/task-x_run-3/acq-scout/anat/raw'
    )
    (record,) = collect(root)
    assert record.label == 'sub-01'
    assert record.t1w.entities == {
        'subject': '01', 'suffix': 'T1w', 'datatype': 'anat', 'extension': '.nii.gz',
    }  # fmt: skip


# Participants and sessions


def test_unknown_participant_is_named_with_a_guess(make_bids):
    root = make_bids(['sub-01/anat/sub-01_T1w.nii.gz'])
    with pytest.raises(NoInputError, match=r'sub-1 in .*mean 01.*mounted'):
        collect(root, participant_label=('1',))


def test_of_thousands_of_unknown_participants_the_first_are_named(make_bids):
    root = make_bids(['sub-01/anat/sub-01_T1w.nii.gz'])
    with pytest.raises(NoInputError, match=r'sub-x4 and 4995 more in .*1 participants') as caught:
        collect(root, participant_label=tuple(f'x{n}' for n in range(5000)))
    assert len(str(caught.value)) < 500


def test_only_asked_participants_are_listed(make_bids):
    root = make_bids([f'sub-{n}/anat/sub-{n}_T1w.nii.gz' for n in ('a', 'b', 'c')])
    assert [r.subject for r in collect(root, participant_label=('c', 'a', 'c'))] == ['a', 'c']


def test_unknown_session_is_an_error_only_where_nobody_has_it(make_bids):
    root = make_bids(
        [
            'sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz',
            'sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz',
        ]
    )
    with pytest.raises(NoInputError, match='no session ses-3'):
        collect(root, session_label=('3',))
    with pytest.raises(NoInputError, match='no session ses-2 for sub-01'):
        collect(root, session_label=('2',), participant_label=('01',))
    first, second = collect(root, session_label=('2',))
    assert first.problem == 'there is no folder ses-2'
    assert second.problem is None


def test_no_subjects_at_all(make_bids):
    with pytest.raises(NoInputError, match=r'no sub-\* folder'):
        collect(make_bids([]))


def test_first_lex_gives_one_record_per_subject(make_bids):
    root = make_bids(
        [
            'sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz',
            'sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz',
            'sub-01/ses-3/anat/sub-01_ses-3_T1w.nii.gz',
        ]
    )
    (record,) = collect(root, subject_anatomical_reference='first-lex')
    assert record.label == 'sub-01'
    assert record.t1w.path.name == 'sub-01_ses-2_T1w.nii.gz'
    assert 'one session per subject' in reasons(record)['sub-01_ses-3_T1w.nii.gz']


# Filters

MANY = [
    'sub-01/anat/sub-01_T1w.nii.gz', 'sub-01/anat/sub-01_acq-a_run-1_T1w.nii.gz',
    'sub-01/anat/sub-01_acq-b_run-02_T1w.nii.gz', 'sub-01/anat/sub-01_part-phase_T1w.nii.gz',
    'sub-01/anat/sub-01_inv-2_MP2RAGE.nii.gz',
]  # fmt: skip


@pytest.mark.parametrize(
    ('query', 'expected'),
    [
        ({}, 'sub-01_T1w.nii.gz'),
        ({'acquisition': 'b'}, 'sub-01_acq-b_run-02_T1w.nii.gz'),
        ({'acq': 'a'}, 'sub-01_acq-a_run-1_T1w.nii.gz'),
        ({'acquisition': '*', 'run': 2}, 'sub-01_acq-b_run-02_T1w.nii.gz'),
        ({'run': '02'}, 'sub-01_acq-b_run-02_T1w.nii.gz'),
        ({'acquisition': ['a', None], 'run': '*'}, 'sub-01_acq-a_run-1_T1w.nii.gz'),
        ({'acquisition': None}, 'sub-01_T1w.nii.gz'),
        ({'part': 'phase'}, 'sub-01_part-phase_T1w.nii.gz'),
        ({'suffix': 'MP2RAGE', 'inv': 2}, 'sub-01_inv-2_MP2RAGE.nii.gz'),
        ({'acquisition': 'c'}, None),
    ],
)
def test_filters_choose(make_bids, query, expected):
    (record,) = collect(make_bids(MANY), bids_filters={'t1w': query})
    assert names(record)['t1w'] == expected


def test_filtered_images_are_listed(make_bids):
    (record,) = collect(make_bids(MANY), bids_filters={'t1w': {'acquisition': 'a'}})
    assert reasons(record)['sub-01_T1w.nii.gz'] == 'does not pass the filter of t1w'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'not valid JSON'),
        ('[]', 'must look like'),
        ('{"t1w": 1}', 'must look like'),
        ('{"t3w": {}}', '"t3w"'),
        ('{"t1w": {"colour": "x"}}', 'colour'),
        ('{"t1w": {"run": {"1": 2}}}', '"run" of t1w'),
        ('{"t1w": {"run": [1, [2]]}}', '"run" of t1w'),
        ('[' * 100_000, 'nested too deeply'),
    ],
)
def test_bad_filter_files(tmp_path, text, message):
    file = tmp_path / 'filter.json'
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_filters(file)
    with pytest.raises(UsageError, match='cannot read'):
        read_filters(tmp_path / 'missing.json')


def test_keys_of_other_pipelines_are_ignored(tmp_path):
    file = tmp_path / 'filter.json'
    file.write_text(json.dumps({'bold': {'task': 'x'}, 't1w': {'ses': 'a'}}))
    assert read_filters(file) == {'t1w': {'session': 'a'}}
