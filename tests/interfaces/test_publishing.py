# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json

import pytest

from bids_app.bids.outputs import Outputs
from bids_app.errors import AnatNetError
from bids_app.interfaces.publish import PUBLISHED
from bids_app.interfaces.publishing import publish
from bids_app.interfaces.report import report_content

STEPS = {
    'bias': {'skull_stripped': True},
    'mask': {'device': 'cpu', 'precision': 'float32', 'fallback': None},
    'segment': {'device': 'cuda:0', 'precision': 'bfloat16', 'fallback': 'tiles of 96'},
    'measure': {'columns': {'qc_stats': {'cjv': {'Description': 'joint variation'}}}},
}
MODELS = {
    'segmentation': {'name': 'brain', 'version': '1.0', 'sha256': 'abc'},
    'registration': {'name': 'symnet', 'version': '2.0', 'sha256': 'def'},
}


@pytest.fixture
def place(tmp_path):
    files = {}
    for key in PUBLISHED:
        files[key] = tmp_path / 'work' / key
        files[key].parent.mkdir(exist_ok=True)
        files[key].write_bytes(key.encode() * 1000)
    outputs = Outputs(tmp_path / 'out', '01', 'a')
    raw = tmp_path / 'raw'
    return files, outputs, raw / 'sub-01' / 'ses-a' / 'anat' / 'sub-01_ses-a_T1w.nii.gz', raw


def sidecar(outputs, key):
    return json.loads(outputs.sidecar_path(key).read_text())


def test_publish_writes_every_file_once_and_only_complete(place):
    files, outputs, scan, raw = place
    written = publish(files, outputs, scan, raw, steps=STEPS, models=MODELS, threads=2)
    assert len(written) == 2 * len(PUBLISHED)
    for name, size in written.items():
        assert (outputs.output_dir / name).stat().st_size == size
    assert gzip.decompress(outputs.path('dseg').read_bytes()) == b'dseg' * 1000
    found = {p for p in outputs.output_dir.rglob('*') if p.is_file()}
    assert found == {outputs.output_dir / name for name in written}


def test_publish_is_reproducible(place):
    files, outputs, scan, raw = place
    publish(files, outputs, scan, raw, steps=STEPS, models=MODELS)
    before = {key: outputs.path(key).read_bytes() for key in PUBLISHED}
    publish(files, outputs, scan, raw, steps=STEPS, models=MODELS)
    assert before == {key: outputs.path(key).read_bytes() for key in PUBLISHED}


def test_sidecars_say_where_things_come_from(place):
    files, outputs, scan, raw = place
    publish(files, outputs, scan, raw, steps=STEPS, models=MODELS)
    preproc, mask = sidecar(outputs, 'preproc'), sidecar(outputs, 'brain_mask')
    assert preproc['SkullStripped'] is True
    assert 'not skull-stripped' not in preproc['Description']
    assert preproc['Sources'] == ['bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz']
    assert mask['Type'] == 'Brain'
    dseg = sidecar(outputs, 'dseg')
    assert dseg['Sources'] == ['bids::sub-01/ses-a/anat/sub-01_ses-a_desc-preproc_T1w.nii.gz']
    assert dseg['Model'] == {'Name': 'brain', 'Version': '1.0', 'SHA256': 'abc'}
    assert (dseg['Device'], dseg['Precision']) == ('cuda:0', 'bfloat16')
    assert dseg['Fallback'] == 'tiles of 96'
    assert sidecar(outputs, 'qc_stats')['cjv'] == {'Description': 'joint variation'}


def test_only_what_is_given_is_written(place):
    files, outputs, scan, raw = place
    written = publish(
        {'brain_mask': files['brain_mask']}, outputs, scan, raw,
        steps={'mask': STEPS['mask']}, models=MODELS,
    )  # fmt: skip
    assert len(written) == 2
    fields = sidecar(outputs, 'brain_mask')
    assert fields['Sources'] == ['bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz']
    assert fields['Device'] == 'cpu'
    assert 'Fallback' not in fields


def test_contrasts_and_lesions_of_an_earlier_run_do_not_stay(place):
    files, outputs, scan, raw = place
    old = ['contrast_preproc contrast-FLAIR', 'xfm_to_reference contrast-T2w', 'lesion_mask']
    for key in old:
        outputs.path(key).parent.mkdir(parents=True, exist_ok=True)
        outputs.path(key).touch()
        outputs.sidecar_path(key).touch()
    kept = outputs.path('std_mask', space='MNI305', res=1)
    kept.touch()
    publish(files, outputs, scan, raw, steps=STEPS, models=MODELS)
    for key in old:
        assert not outputs.path(key).exists()
        assert not outputs.sidecar_path(key).exists()
    assert kept.exists()
    assert outputs.path('preproc').exists()


def test_the_reference_itself_stays(place):
    files, outputs, scan, raw = place
    outputs.reference = 'FLAIR'
    publish(files, outputs, scan, raw, steps=STEPS, models=MODELS)
    assert outputs.path('preproc').name.endswith('_desc-preproc_FLAIR.nii.gz')
    assert outputs.path('preproc').exists()


def test_what_cannot_be_written_is_one_clear_line(place):
    files, outputs, scan, raw = place
    outputs.output_dir.write_text('a file where a folder should be')
    with pytest.raises(AnatNetError, match=r'cannot write .*check free space and permissions'):
        publish(files, outputs, scan, raw, steps=STEPS, models=MODELS)


def test_report_content_names_only_files_of_this_run(place):
    _, outputs, _, _ = place
    name = outputs.path('dseg').relative_to(outputs.output_dir).as_posix()
    content = report_content(
        {'label': 'sub-01_ses-a', 'run': {'version': '1'}, 'files': {'scan': '/raw/t1w'}},
        {
            'steps': {
                'conform': {'notes': ['x'], 'seconds': 1.0, 'peak_gb': 1.5},
                'segment': {'device': 'cpu', 'fallback': None, 'seconds': 2.0, 'peak_gb': 2.5},
            },
            'outputs': {name: 1},
            'seconds': 3.0,
        },
        outputs,
    )
    assert content['files'] == {'dseg': str(outputs.path('dseg')), 'scan': '/raw/t1w'}
    assert content['run'] == {'version': '1', 'device': 'cpu', 'peak_memory_gb': 2.5}
    assert [step['name'] for step in content['steps']] == ['conform', 'segment', 'publish']
    assert content['conform'] == {'notes': ['x']}  # what a step costs is not geometry
