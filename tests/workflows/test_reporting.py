# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.bids.inputs import Scan, SessionRecord, Skipped
from bids_app.bids.precomputed import Precomputed
from bids_app.bids.spaces import OutputSpace
from bids_app.config import RunConfig
from bids_app.images.templates import Template
from bids_app.workflows import reporting
from bids_app.workflows.jobs import ModelInUse, ModelsInUse, make_jobs
from bids_app.workflows.vbm import VbmSettings


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
    models = ModelsInUse(
        ModelInUse(tmp_path, 'brain', '1.0', 'ab' * 32, 'Apache-2.0'),
        ModelInUse(tmp_path, 'symnet', '1.0', 'cd' * 32, 'Apache-2.0'),
    )
    found = reporting.context(job, config, models, 'cpu (asked for)')
    assert found['inputs'] == [
        {'path': 'sub-01/anat/sub-01_run-1_T1w.nii.gz', 'suffix': 'T1w'},
        {
            'path': 'sub-01/anat/sub-01_FLAIR.nii.gz',
            'suffix': 'FLAIR',
            'note': 'registered to the T1w',
        },
    ]
    assert found['skipped'] == [
        {'path': 'sub-01/anat/sub-01_run-2_T1w.nii.gz', 'reason': 'a later run'}
    ]
    assert 'The FLAIR image was corrected in the same way, registered to' in found['methods']
    assert job.input_files == [record.t1w.path, record.flair.path]
    assert 'two resolutions' in found['methods']
    assert [model['name'] for model in found['models']] == ['brain', 'symnet']
    assert [text.split(':')[0] for text in found['warnings']] == ['Made with --sloppy']


def test_for_the_mask_alone_no_further_contrast_is_needed(raw, tmp_path):
    record = SessionRecord(
        '01', None, t1w=Scan(raw / 'x', 'T1w', {}), flair=Scan(raw / 'y', 'FLAIR', {})
    )
    config = RunConfig(raw, tmp_path / 'out', work_dir=tmp_path / 'work', modules=('mask',))
    (job,) = make_jobs(config, [record])
    assert job.contrasts == {}
    assert job.input_files == [raw / 'x']
    models = ModelsInUse(ModelInUse(tmp_path, 'brain', '1.0', 'ab' * 32, 'Apache-2.0'))
    found = reporting.context(job, config, models, 'cpu')
    assert [one['suffix'] for one in found['inputs']] == ['T1w']
    assert [one['path'] for one in found['skipped']] == ['y']
    assert 'FLAIR' not in found['methods']


def test_report_says_that_the_reference_is_no_t1w(raw, tmp_path):
    t2w = Scan(raw / 'x', 'T2w', {})
    record = SessionRecord('01', None, t2w=t2w, stand_in=t2w)
    config = RunConfig(raw, tmp_path / 'out', work_dir=tmp_path / 'work')
    (job,) = make_jobs(config, [record])
    assert job.outputs.path('preproc').name == 'sub-01_desc-preproc_T2w.nii.gz'
    models = ModelsInUse(ModelInUse(tmp_path, 'brain', '1.0', 'ab' * 32, 'Apache-2.0'))
    found = reporting.context(job, config, models, 'cpu')
    assert found['reference'] == 'T2w'
    assert 'no T1w image' in found['warnings'][0]
    assert 'less exact' in found['warnings'][0]
    assert found['inputs'][0]['note'].startswith('stands in for a T1w')
    assert 'There being no T1-weighted image, the T2-weighted image' in found['methods']


def test_report_tells_of_template_space_and_of_other_pipelines(raw, tmp_path):
    prep = tmp_path / 'prep'
    given = tuple(
        Precomputed(kind, 'prep', prep / f'{kind}.nii.gz')
        for kind in ('brain_mask', 'probseg_gm', 'probseg_wm', 'probseg_csf')
    )
    record = SessionRecord('01', None, t1w=Scan(raw / 'x', 'T1w', {}), precomputed=given)
    config = RunConfig(
        raw, tmp_path / 'out', work_dir=tmp_path / 'work', derivatives={'prep': prep}
    )
    (job,) = make_jobs(config, [record])
    assert job.input_files == [raw / 'x', *(one.path for one in given)]
    assert job.precomputed_uris(config.derivatives)['brain_mask'] == 'bids:prep:brain_mask.nii.gz'
    models = ModelsInUse(ModelInUse(tmp_path, 'brain', '1.0', 'ab' * 32, 'Apache-2.0'))
    template = Template(
        'MNI305', tmp_path / 't1w', None, tmp_path / 'tissues', tmp_path / 'labels'
    )
    vbm = VbmSettings(
        (OutputSpace('MNI305', (1.5, 2.0)),),
        {'MNI305': template},
        atlases=(('MNI305', 'aal', '/atlas/aal.nii:/atlas/aal.tsv'),),
        classifiers=(ModelInUse(tmp_path, 'sexpif', '1.0', 'ab', 'x'),),
    )
    found = reporting.context(job, config, models, 'cpu', vbm)
    assert found['spaces'] == [
        {
            'space': 'MNI305',
            'voxel_size': 1.5,
            'fwhm': [6.0, 8.0],
            'template': {'t1w': str(tmp_path / 't1w'), 'tissues': str(tmp_path / 'tissues')},
        }
    ]
    assert found['regions'] == [{'atlas': 'aal', 'space': 'MNI305', 'source': '/atlas/aal.nii'}]
    assert found['predictions'] == [{'model': 'sexpif', 'sha256': 'ab'}]
    assert [(one['what'], one['name']) for one in found['precomputed']] == [
        ('brain mask', 'prep'), ('tissue maps', 'prep'),
    ]  # fmt: skip
    assert 'brain mask ("prep") and tissue maps ("prep")' in found['methods']


def test_participant_is_what_the_table_says_of_it(raw):
    (raw / 'participants.tsv').write_text('participant_id\tage\tsex\nsub-01\t30\tn/a\n', 'utf-8')
    assert reporting.participant(raw, '01') == {'age': '30'}
    assert reporting.participant(raw, '02') == {}
