# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.bids.files import atomic_write_bytes, atomic_write_text
from bids_app.bids.outputs import SYNTHESIZED, SYNTHESIZED_AS_PREPROC, Outputs
from bids_app.errors import NoInputError, UsageError
from bids_app.group import derivatives
from bids_app.group.derivatives import load_study

SPACE = 'MNI152NLin2009aSym'


def smooth(place: Outputs, fwhm: float, res: float = 1.5, space: str = SPACE) -> None:
    path = place.path('vbm_gm_smooth', space=space, res=res, fwhm=fwhm)
    atomic_write_bytes(path, b'')


def test_every_session_is_there_in_order_with_its_status(out, add_session):
    add_session('02', 'b')
    add_session('02', 'a', status='failed', error='the file\nis truncated')
    add_session('01')
    (out / 'sub-03' / 'ses-x' / 'anat').mkdir(parents=True)
    (out / 'logs').mkdir()
    (out / 'sub-9.html').write_text('')
    study = load_study(out)
    assert [(r.prefix, r.status, r.reason) for r in study.sessions] == [
        ('sub-01', 'done', ''),
        ('sub-02_ses-a', 'failed', 'the file is truncated'),
        ('sub-02_ses-b', 'done', ''),
        ('sub-03_ses-x', 'incomplete', 'not finished: no state file (interrupted, or still '
         'running)'),
    ]  # fmt: skip
    assert [r.prefix for r in study.done] == ['sub-01', 'sub-02_ses-b']
    assert study.sessions[0].files['report'] == out / 'sub-01.html'
    assert 'dseg' not in study.sessions[0].files


def test_session_with_a_lost_output_is_incomplete(out, add_session):
    add_session('01', outputs={'sub-01/anat/sub-01_dseg.nii.gz': 5})
    (record,) = load_study(out).sessions
    assert (record.status, record.reason) == (
        'incomplete', 'output missing: sub-01/anat/sub-01_dseg.nii.gz',
    )  # fmt: skip


def test_labels_limit_the_study(out, add_session):
    add_session('01', 'a')
    add_session('01', 'b')
    add_session('02', 'a')
    chosen = load_study(out, participant_label=['01'], session_label=['b']).sessions
    assert [r.prefix for r in chosen] == ['sub-01_ses-b']
    with pytest.raises(UsageError, match='no results of participant 07'):
        load_study(out, participant_label=['01', '07'])
    with pytest.raises(UsageError, match='no session z'):
        load_study(out, session_label=['z'])


def test_nothing_there_is_no_input(tmp_path, out):
    for folder in (tmp_path / 'gone', out):
        with pytest.raises(NoInputError, match='run the participant level first'):
            load_study(folder)


def test_table_joins_both_files_and_the_volumes(out, tmp_path, add_session):
    raw = tmp_path / 'raw'
    atomic_write_text(
        raw / 'participants.tsv',
        '\ufeffparticipant_id\tage\tsex\tgm\nsub-02\t89+\tF\tx\n01\t30\tn/a\ty\n\n',
    )
    atomic_write_text(
        raw / 'sub-01' / 'sub-01_sessions.tsv',
        'session_id\tage\tscore\nses-a\t31\t1.5\nses-b\tn/a\t2\n',
    )
    add_session('01', 'a', volumes=(6e5, 5e5, 4e5))
    add_session('01', 'b', status='failed', error='x')
    add_session('02')
    table = load_study(out, raw).table()
    assert table['participant_id'].tolist() == ['sub-01', 'sub-01', 'sub-02']
    assert table['session_id'].tolist() == ['ses-a', 'ses-b', None]
    assert table['age'].tolist() == [31.0, 30.0, 89.0]
    assert table['sex'].tolist() == [None, None, 'F']
    assert table['score'].tolist()[:2] == [1.5, 2.0]
    assert table['gm_participants'].tolist() == ['y', 'y', 'x']
    assert table['gm'].tolist()[0] == 6e5
    assert table['tiv'].isna().tolist() == [False, True, False]
    assert table['tiv'].iloc[0] == 15e5


def test_maps_are_those_that_most_sessions_have(out, add_session):
    first, second, third = (add_session(label) for label in ('01', '02', '03'))
    smooth(first, 8)
    smooth(first, 4.5)
    smooth(second, 8)
    for place in (first, second, third):
        atomic_write_bytes(place.path('vbm_gm', space=SPACE, res=1.5), b'')
    failed = add_session('04', status='failed', error='x')
    smooth(failed, 8)
    study = load_study(out)
    assert study.map_choice() == ('vbm_gm', 8.0, SPACE, '1p5')
    assert [path and path.name for path in study.maps()] == [
        f'sub-01_space-{SPACE}_res-1p5_label-GM_desc-modulatedsmooth8mm_probseg.nii.gz',
        f'sub-02_space-{SPACE}_res-1p5_label-GM_desc-modulatedsmooth8mm_probseg.nii.gz',
        None, None,
    ]  # fmt: skip
    assert [path is not None for path in study.maps(fwhm=4.5)] == [True, False, False, False]
    assert [path is not None for path in study.maps(fwhm=0)] == [True, True, True, False]
    assert study.maps('vbm_wm') == [None] * 4
    assert study.maps(space='MNI305') == [None] * 4


def test_native_and_template_files_are_told_apart(out, add_session):
    place = add_session('01')
    atomic_write_bytes(place.path('dseg'), b'')
    atomic_write_bytes(place.path('std_dseg', space=SPACE, res=2), b'')
    atomic_write_bytes(place.path('regions_morph', atlas='AAL'), b'')
    (record,) = load_study(out).sessions
    assert record.files['dseg'].name == 'sub-01_dseg.nii.gz'
    kinds = {(found.key, found.space, found.res, found.atlas) for found in record.template_files}
    assert kinds == {('std_dseg', SPACE, '2', ''), ('regions_morph', '', '', 'AAL')}


def test_broken_table_leaves_values_missing(out, add_session):
    place = add_session('01')
    place.path('tissue_morph').write_bytes(b'\xff\xfe broken')
    table = load_study(out).table()
    assert table['gm'].isna().all()


def test_names_of_a_session_whose_t1w_was_synthesised():
    name = 'sub-01_space-MNI305_res-2_desc-{}_T1w.nii.gz'
    made = derivatives._template_file(name.format('synthesized'), 'sub-01', SYNTHESIZED)
    assert (made.key, made.space, made.res) == ('std_preproc', 'MNI305', '2')
    own = 'sub-01_desc-preproc_T1w.nii.gz'
    assert derivatives._template_file(own, 'sub-01', SYNTHESIZED_AS_PREPROC) is None
    as_measured = derivatives._template_file(
        name.format('preproc'), 'sub-01', SYNTHESIZED_AS_PREPROC
    )
    assert as_measured.key == 'std_preproc'
