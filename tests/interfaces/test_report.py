# SPDX-License-Identifier: Apache-2.0
"""What the findings of the steps become in the content of a report."""

from __future__ import annotations

from bids_app.bids.outputs import Outputs
from bids_app.interfaces.report import report_content
from bids_app.reports.session import SessionReport

SPACE = {'space': 'MNI152NLin2009aSym', 'voxel_size': 1.5, 'fwhm': [6, 8],
         'template': {'t1w': '/t/T1w.nii.gz', 'tissues': '/t/tissues.nii.gz'}}  # fmt: skip


def test_spaces_and_regions(tmp_path):
    outputs = Outputs(tmp_path, '01')
    labels = {'space': SPACE['space'], 'res': 1.5}
    smooth = outputs.path('vbm_gm_smooth', **labels, fwhm=6)
    written = [outputs.path('dseg'), outputs.path('std_preproc', **labels), smooth,
               outputs.path('regions_morph', atlas='A'),
               outputs.path('predictions', model='sexpif')]  # fmt: skip
    context = {
        'label': 'sub-01',
        'spaces': [SPACE, {**SPACE, 'space': 'Other'}],
        'regions': [{'atlas': 'A', 'space': SPACE['space']}, {'atlas': 'B'}],
        'predictions': [{'model': 'sexpif', 'sha256': 'ab'}, {'model': 'agepif'}],
    }
    found = {'method': 'ants', 'fallback': 'no memory', 'measures': {'dice_gm': 0.7}}
    info = {
        'steps': {'normalise': {'spaces': {SPACE['space']: found}, 'seconds': 3.0}},
        'outputs': {path.relative_to(tmp_path).as_posix(): 1 for path in written},
    }
    content = report_content(context, info, outputs)
    (space,) = content['spaces']  # of the other one there is nothing
    assert space['method'] == 'ants'
    assert space['measures'] == {'dice_gm': 0.7}
    assert space['notes'] == ['Fallback of the registration: no memory']
    assert space['files'] == {
        'std_preproc': str(outputs.path('std_preproc', **labels)), 'vbm_gm_smooth': str(smooth)
    }  # fmt: skip
    assert space['template'] == SPACE['template']
    assert content['regions'] == [
        {'atlas': 'A', 'space': SPACE['space'],
         'file': str(outputs.path('regions_morph', atlas='A'))}
    ]  # fmt: skip
    assert content['predictions'] == [
        {'model': 'sexpif', 'sha256': 'ab',
         'file': str(outputs.path('predictions', model='sexpif'))}
    ]  # fmt: skip
    assert SessionReport.from_dict(content).spaces == content['spaces']


def test_without_morphometry_there_are_no_spaces(tmp_path):
    content = report_content({'label': 'sub-01'}, {}, Outputs(tmp_path, '01'))
    assert content['spaces'] == []
    assert content['regions'] == []
    assert content['predictions'] == []
