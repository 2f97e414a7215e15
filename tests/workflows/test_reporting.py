# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.bids.inputs import Scan, SessionRecord, Skipped
from bids_app.config import RunConfig
from bids_app.workflows import reporting
from bids_app.workflows.jobs import ModelInUse, make_jobs


@pytest.fixture
def raw(make_bids):
    return make_bids({'sub-01/anat/sub-01_T1w.nii.gz': 'x', 'sub-02/anat/sub-02_T1w.nii.gz': 'x'})


def test_report_names_everything_that_was_found(raw, tmp_path):
    anat = raw / 'sub-01' / 'anat'
    record = SessionRecord(
        '01',
        None,
        t1w=Scan(anat / 'sub-01_run-1_T1w.nii.gz', 'T1w', {}),
        flair=Scan(anat / 'sub-01_FLAIR.nii.gz', 'FLAIR', {}),
        skipped=(Skipped(anat / 'sub-01_run-2_T1w.nii.gz', 'a later run'),),
    )
    config = RunConfig(raw, tmp_path / 'out', work_dir=tmp_path / 'work', sloppy=True)
    (job,) = make_jobs(config, [record])
    model = ModelInUse(tmp_path, 'brain', '1.0', 'ab' * 32, 'Apache-2.0')
    found = reporting.context(job, config, model, 'cpu (asked for)')
    assert found['inputs'] == [{'path': 'sub-01/anat/sub-01_run-1_T1w.nii.gz', 'suffix': 'T1w'}]
    assert found['skipped'] == [
        {'path': 'sub-01/anat/sub-01_run-2_T1w.nii.gz', 'reason': 'a later run'},
        {
            'path': 'sub-01/anat/sub-01_FLAIR.nii.gz',
            'reason': 'found, but this release does not process FLAIR images',
        },
    ]
    assert 'two resolutions' in found['methods']
    assert [text.split(':')[0] for text in found['warnings']] == ['Made with --sloppy']


def test_participant_is_what_the_table_says_of_it(raw):
    (raw / 'participants.tsv').write_text('participant_id\tage\tsex\nsub-01\t30\tn/a\n', 'utf-8')
    assert reporting.participant(raw, '01') == {'age': '30'}
    assert reporting.participant(raw, '02') == {}
