# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from bids_app.bids.inputs import collect_sessions
from bids_app.bids.overview import overview
from bids_app.config import RunConfig


def test_every_session_and_file_has_its_line(make_bids):
    root = make_bids({
        'sub-01/anat/sub-01_UNIT1.nii.gz': 'x', 'sub-01/dwi/sub-01_dwi.nii.gz': 'x',
        'dwi.bval': 'x', 'dwi.bvec': 'x', 'sub-02/anat/sub-02_T2w.nii.gz': 'x',
        'sub-03/anat/sub-03_T1w.nii.gz': '',
        **{f'sub-01/anat/sub-01_echo-{n}_MEGRE.nii.gz': 'x' for n in range(1, 6)},
    })  # fmt: skip
    records = collect_sessions(RunConfig(root, root.parent / 'out'))
    lines = [' '.join(line.split()) for line in overview(records, root).splitlines()]
    assert 'T1w sub-01/anat/sub-01_UNIT1.nii.gz UNIT1 taken as T1w' in lines
    assert 'DWI sub-01/dwi/sub-01_dwi.nii.gz gradients of dwi.bval and dwi.bvec' in lines
    assert 'skipped 5 files, sub-01_echo-1_MEGRE.nii.gz ... MEGRE images are not used' in lines
    assert 'T2w sub-02/anat/sub-02_T2w.nii.gz the reference: there is no T1w' in lines
    assert any('where there is no T1w, whole heads' in line for line in lines)
    assert 'T1w sub-03/anat/sub-03_T1w.nii.gz empty file' in lines
    assert lines[-1] == '3 participants, 3 sessions: 3 to process (1 of them without a T1w)'


def test_sessions_without_t1w_may_be_refused(make_bids):
    root = make_bids({'sub-02/anat/sub-02_T2w.nii.gz': 'x'})
    records = collect_sessions(RunConfig(root, root.parent / 'out', reference='T1w'))
    lines = [' '.join(line.split()) for line in overview(records, root).splitlines()]
    problem = 'no T1w or UNIT1 image, which --reference T1w asks for'
    assert 'sub-02 NOT PROCESSED' in lines
    assert f'problem {problem}' in lines
    assert 'T2w sub-02/anat/sub-02_T2w.nii.gz' in lines
    assert lines[-1] == f'1 participant, 1 session: 0 to process, 1 with {problem}'
