# SPDX-License-Identifier: Apache-2.0
"""What the page says of voxel-based morphometry."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from bids_app.reports import vbm
from bids_app.reports.session import SessionReport, with_paths, write_report
from bids_app.reports.tables import region_table

REGIONS = (
    'index\tname\tgm_mm3\twm_mm3\tcsf_mm3\tsize_mm3\tflag\n'
    '17\tHippo <campus>\t4000.0\t500.0\t500.0\t5000.0\tn/a\n'
    '2\tLost\t0.0\t0.0\t0.0\t0.0\tabsent\n'
    '5\tOutside\t0.0\t0.0\t0.0\t0.0\tnot covered\n'
)


@pytest.fixture
def report(space, tmp_path) -> SessionReport:
    table = tmp_path / 'sub-01_ses-1_atlas-My_desc-regions_morph.tsv'
    table.write_text(REGIONS)
    tissue = tmp_path / 'tissue.tsv'
    tissue.write_text('index\tname\tvolume_mm3\n1\tGM\t600000\nn/a\tTIV\t1000000\n')
    return SessionReport(
        'sub-01_ses-1',
        files={'tissue_morph': str(tissue)},
        qc={'status': 'ok', 'reasons': [], 'checks': []},
        spaces=[copy.deepcopy(space)],
        regions=[{'atlas': 'My', 'file': str(table), 'space': space['space']}],
        precomputed=[{'what': 'brain mask', 'name': 'other <tool>', 'path': '/x/y',
                      'figure': 'mask'}],
    )  # fmt: skip


def test_page_with_two_spaces(parse, report, space, tmp_path):
    other = copy.deepcopy(space)
    other['space'] = 'MNI152NLin2009cAsym'
    other['measures'].update(dice_gm=0.41, jacobian_min=-0.1)
    other['method'] = 'ants'
    other['notes'] = ['SyN took the place of the <network>']
    report.spaces.append(other)
    path = write_report(report, tmp_path / 'a.html')
    text = path.read_text()
    page = parse(text)
    assert not page.stack
    assert len(page.ids) == len(set(page.ids))
    labels = [values['for'] for tag, values in page.tags if tag == 'label' and 'for' in values]
    assert set(labels) <= set(page.ids)
    used = [values['href'] for tag, values in page.tags if tag == 'use']
    assert used
    assert {address[1:] for address in used} <= set(page.ids)
    folds = [values for tag, values in page.tags if values.get('class') == 'space']
    assert [('open' in values) for values in folds] == [True, False, True, False, True]
    for words in (
        'Normalisation', 'VBM maps', 'Regional volumes', 'Both', 'Flicker',
        'This registration looks wrong', 'Overlap with the template, GM is 0.41',
        'MNI152NLin2009cAsym: Smallest Jacobian is -0.1', 'SyN took the place of the &lt;network',
        'Doubtful', 'smoothed with 6 mm', 'Also written: 8 mm', 'other &lt;tool&gt;',
        'Taken from elsewhere', '1st percentile', 'mm³ of the scan per mm³ of the template',
    ):  # fmt: skip
        assert words in text, words
    assert path.stat().st_size < 5e6
    figures = {p.name for p in (tmp_path / 'sub-01' / 'figures').iterdir()}
    assert 'sub-01_ses-1_space-MNI152NLin2009aSym_T1w.svg' in figures
    assert (
        'sub-01_ses-1_space-MNI152NLin2009aSym_res-3_label-GM_desc-modulated_probseg.svg'
        in figures
    )
    assert len(figures) == 5  # the second space has the same maps


def test_good_registrations_leave_the_light_alone(report, tmp_path):
    text = write_report(report, tmp_path / 'a.html').read_text()
    assert 'Passed' in text
    assert 'This registration' not in text
    report.spaces[0]['measures']['inverse_error_mm'] = 0.3
    text = write_report(report, tmp_path / 'a.html').read_text()
    assert 'Look at it' in text
    assert 'This registration may be wrong' in text


def test_a_check_that_the_run_made_too_is_shown_once(report, tmp_path):
    from bids_app.morphometry.checks import assess, merge_verdicts, registration_measures

    measures = report.spaces[0]['measures']
    measures['dice_gm'] = 0.4
    found = assess(registration_measures(measures))
    report.qc = merge_verdicts(assess({'cjv': 0.4}), found)
    assert report.qc['status'] == 'warn'
    text = write_report(report, tmp_path / 'a.html').read_text()
    summary = text[text.index('id="summary"') : text.index('id="input"')]
    assert summary.count('Overlap with the template, GM') == 1
    quality = text[text.index('<section id="quality"') : text.index('<section id="run"')]
    assert 'Overlap with the template' not in quality
    assert 'CJV' in quality


def test_missing_and_broken_files_become_notes(parse, report, tmp_path):
    broken = tmp_path / 'broken.nii.gz'
    broken.write_bytes(b'not an image')
    space = report.spaces[0]
    space['files']['jacobian'] = str(broken)
    space['files']['vbm_gm'] = str(tmp_path / 'absent.nii.gz')
    space['template']['tissues'] = str(broken)
    text = write_report(report, tmp_path / 'a.html').read_text()
    assert 'The map broken.nii.gz could not be shown' in text
    assert 'The tissue maps of the template' in text
    assert 'Registration to MNI152NLin2009aSym' in text  # without contours
    assert 'registration-0-line' not in text
    assert 'Smoothed grey matter' in text
    assert 'Modulated grey matter' not in text
    space['template'] = {}
    text = write_report(report, tmp_path / 'a.html').read_text()
    assert 'The T1w image of the template MNI152NLin2009aSym could not be shown' in text
    assert 'Measures of the registration' in text
    assert not parse(text).stack


def test_a_space_without_measures_is_not_rated(report, tmp_path):
    report.spaces = [{'space': 'X'}]
    text = write_report(report, tmp_path / 'a.html').read_text()
    assert 'The registration says nothing of itself' in text
    assert 'Passed' in text


def test_pictures_beyond_the_limit_are_left_out(report, tmp_path, monkeypatch):
    monkeypatch.setattr(vbm, 'PICTURE_BYTES', 1000)
    text = write_report(report, tmp_path / 'a.html').read_text()
    assert 'left out to keep the page small' in text
    assert 'id="registration-0-scan"' not in text
    assert len(list((tmp_path / 'sub-01' / 'figures').iterdir())) == 4


def test_region_table():
    rows = [
        dict(zip(REGIONS.splitlines()[0].split('\t'), line.split('\t'), strict=True))
        for line in REGIONS.splitlines()[1:]
    ]
    first, lost, outside = region_table(rows, 1_000_000)
    assert (first['gm'], first['wm'], first['csf']) == (4000, 500, 500)
    assert first['percent'] == pytest.approx(0.5)
    assert [row['flag'] for row in (first, lost, outside)] == ['', 'absent', 'not covered']
    assert region_table([{'index': '3', 'gm_mm3': '0'}])[0]['flag'] == 'no tissue'
    assert region_table(rows)[0]['percent'] is None


def test_region_section(report, tmp_path):
    text = write_report(report, tmp_path / 'a.html').read_text()
    section = text[text.index('<section id="regions"') : text.index('<section id="quality"')]
    assert 'Hippo &lt;campus&gt;' in section
    assert '>4,000<' in section
    assert '0.50 %' in section
    assert '2 without volume' in section
    assert section.count('class="sort"') == 7


PREDICTIONS = {
    'sexpif': 'model\tversion\ttarget\tprediction\tprobability\tsd\tprobability_F\t'
    'probability_M\tcalibration\tvalidation\tcaveat\n'
    'sexpif\t1.0.0+ab\tsex\t<M>\t0.8125\tn/a\t0.1875\t0.8125\tn/a\t'
    'balanced accuracy 0.61\tnot for clinical use\n',
    'agepif': 'model\tversion\ttarget\tprediction\tprobability\tsd\n'
    'agepif\t1\tage\t41.5\tn/a\t9.25\n',
}


def test_prediction_section(parse, report, tmp_path):
    assert '<section id="predictions"' not in write_report(report, tmp_path / 'a.html').read_text()
    for name, text in PREDICTIONS.items():
        (tmp_path / f'{name}.tsv').write_text(text)
        entry = {'model': name, 'file': str(tmp_path / f'{name}.tsv'), 'sha256': 'cd' * 32}
        report.predictions.append(entry)
    report.predictions.append({'model': 'lost', 'file': str(tmp_path / 'lost.tsv')})
    text = write_report(report, tmp_path / 'a.html').read_text()
    assert not parse(text).stack
    section = text[text.index('<section id="predictions"') : text.index('<section id="quality"')]
    for words in (
        'For research, not for clinical use', 'sex: &lt;M&gt;', '81.2 %', '18.8 %', 'width:81.2%',
        'balanced accuracy 0.61', '1.0.0+ab', 'cdcdcd', 'age: 41.5 ± 9.25',
    ):  # fmt: skip
        assert words in section, words
    assert 'Calibration' not in section
    assert 'n/a' not in section
    assert 'The prediction of lost could not be shown' in text


def test_paths_travel_with_the_folder(report, tmp_path):
    inside = tmp_path / 'sub-01_ses-1_atlas-My_desc-regions_morph.tsv'
    saved = report.to_dict(tmp_path)
    assert saved['regions'][0]['file'] == inside.name
    assert saved['spaces'][0]['template']['t1w'].startswith('/')  # not in the folder
    again = SessionReport.from_dict(saved, tmp_path)
    assert again.spaces == report.spaces
    assert again.regions == report.regions
    listed = {'label': 'sub-1', 'predictions': [{'model': 'a', 'file': 'a.tsv'}]}
    assert with_paths(listed, str.upper)['predictions'] == [{'model': 'a', 'file': 'A.TSV'}]
    moved = with_paths(saved, lambda path: f'<{Path(path).name}>')
    assert moved['regions'][0]['file'] == f'<{inside.name}>'
    assert moved['precomputed'] == saved['precomputed']
    assert with_paths({'label': 'sub-1'}, str.upper) == {'label': 'sub-1'}
