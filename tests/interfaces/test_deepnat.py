# SPDX-License-Identifier: Apache-2.0
"""DeepNAT as a step: what it hands on, and what sidecars, report and methods say of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.bids.outputs import Outputs
from bids_app.interfaces.anat import read_info
from bids_app.interfaces.deepnat import SegmentStructures
from bids_app.interfaces.report import report_content
from bids_app.interfaces.sidecars import Session, describe
from bids_app.reports.methods import cited, methods_text

FOUND = {
    'device': 'cuda:0', 'precision': 'bfloat16', 'fallback': None, 'crf': True, 'mirror': False,
    'absent': ['CSF', 'Left-VentralDC'], 'licences': ['CC BY-NC'], 'structures': [],
}  # fmt: skip


@pytest.fixture
def session(tmp_path):
    return Session(
        Outputs(tmp_path / 'out', '01'),
        tmp_path / 'raw' / 'sub-01_T1w.nii.gz',
        tmp_path / 'raw',
        ('preproc', 'brain_mask', 'wholebrain_dseg'),
        {
            'segment': {'device': 'cpu', 'precision': 'float32', 'fallback': None},
            'precomputed': {'sources': {'brain_mask': 'bids:prep:mask.nii.gz'}},
            'structures': FOUND,
        },
        {
            'segmentation': {'name': 'brain', 'version': '1', 'sha256': 'a'},
            'foreground': {'name': 'deepnat-foreground', 'version': '2', 'sha256': 'b'},
            'structures': {'name': 'deepnat-structures', 'version': '3', 'sha256': 'c'},
        },
    )


def test_findings_are_those_of_the_tissues_with_other_structures(tmp_path, monkeypatch):
    asked = {}

    def segment_structures(in_file, mask_file, native_file, out_dir, **options):
        asked.update(options, mask_file=mask_file)
        (out_dir / 'wholebrain.nii').touch()
        return {**FOUND, 'structures': [{'index': 2, 'volume_mm3': 1.0}]}

    monkeypatch.setattr('bids_app.inference.deepnat_files.segment_structures', segment_structures)
    monkeypatch.chdir(tmp_path)
    for name in ('scan', 'mask', 'native'):
        (tmp_path / f'{name}.nii').touch()
    before = {'tissues': ['x'], 'tiv_mm3': 5.0, 'structures': ['old'], 'device': 'cpu',
              'files': {'lesion_mask': '/x.nii'}, 'columns': {'lesion_morph': {}}}  # fmt: skip
    (tmp_path / 'info.json').write_text(json.dumps(before))
    (tmp_path / 'mask.json').write_text(json.dumps({'orientation_suspect': 'upside down'}))
    result = SegmentStructures(
        in_file=str(tmp_path / 'scan.nii'), mask_file=str(tmp_path / 'mask.nii'),
        native_file=str(tmp_path / 'native.nii'), mask_info=str(tmp_path / 'mask.json'),
        info=str(tmp_path / 'info.json'), foreground='/m/f', model='/m/s', sha256=['a', 'b'],
        crf=False, parities=8,
    ).run()  # fmt: skip
    found = read_info(result.outputs.info)
    assert (found['tissues'], found['tiv_mm3']) == (['x'], 5.0)
    assert found['structures'] == [{'index': 2, 'volume_mm3': 1.0}]
    assert found['device'] == 'cuda:0'
    assert not {'files', 'columns'} & set(found)  # the step before publishes them itself
    assert result.outputs.wholebrain_dseg == str(tmp_path / 'wholebrain.nii')
    assert asked['suspect'] == 'upside down'
    assert (asked['crf'], asked['parities'], asked['tile']) == (False, 8, None)
    assert (asked['foreground'], asked['model']) == (Path('/m/f'), Path('/m/s'))


def test_sidecars_name_both_models_and_the_licence(session):
    for key in ('wholebrain_dseg', 'wholebrain_morph'):
        fields = describe(key, session)
        assert fields['Model'] == {
            'Name': 'deepnat-structures', 'Version': '3', 'SHA256': 'c'
        }  # fmt: skip
        assert fields['ForegroundModel']['SHA256'] == 'b'
        assert fields['Segmentation'] == 'DeepNAT'
        assert fields['ConditionalRandomField'] is True
        assert fields['License'] == 'CC BY-NC'
        assert fields['Device'] == 'cuda:0'
        assert fields['Description'].endswith('which does not know CSF, Left-VentralDC')
        assert fields['Sources'] == [
            'bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz',
            'bids::sub-01/anat/sub-01_desc-brain_mask.nii.gz',
        ]
    assert describe('uncertainty', session)['Model']['Name'] == 'brain'
    assert 'License' not in describe('uncertainty', session)


def test_report_names_engine_and_licence(tmp_path):
    outputs = Outputs(tmp_path, '01')
    content = report_content({'label': 'sub-01'}, {'steps': {'structures': FOUND}}, outputs)
    assert content['run']['structures'] == (
        'DeepNAT, with conditional random field; it does not know CSF, Left-VentralDC'
    )
    assert content['warnings'] == ['Weights of DeepNAT: CC BY-NC']
    plain = report_content({'label': 'sub-01'}, {'steps': {}}, outputs)
    assert 'structures' not in plain['run']
    assert plain['warnings'] == []


def test_methods_tell_of_deepnat_where_it_labels():
    text = methods_text('1', deepnat=True)
    assert 'eigenfunctions of the Laplace operator' in text
    assert 'non-commercial use only' in text
    assert {'deepnat', 'shapedna', 'densecrf', 'oasis'} <= {one.key for one in cited(text)}
    assert 'labels of 25 brain structures, the set of DeepNAT' not in text
    without = methods_text('1', deepnat=True, crf=False, mirror=True)
    assert 'densecrf' not in without
    assert 'They were averaged with those of the mirrored image' in without
    assert 'eigenfunctions' not in methods_text('1')
    assert 'eigenfunctions' not in methods_text('1', modules=('mask', 'tissue'), deepnat=True)
    alone = methods_text('1', modules=('mask', 'wholebrain'), deepnat=True)
    assert 'which gave the brain mask.' in alone
