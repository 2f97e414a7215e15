# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from bids_app.bids.files import atomic_write_text
from bids_app.group.assessment import assess_study
from bids_app.group.derivatives import load_study
from bids_app.group.homogeneity import Homogeneity
from bids_app.group.tables import cell, read_measurements, write_tables


def read(path):
    with path.open(newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


def tables(out, raw=None, homogeneity=None):
    study = load_study(out, raw)
    measured = read_measurements(study)
    assessment = assess_study(study, measured, homogeneity)
    return [read(path) for path in write_tables(study, measured, assessment)], assessment


def test_one_row_per_session_failed_ones_included(out, tmp_path, add_session):
    raw = tmp_path / 'raw'
    atomic_write_text(raw / 'participants.tsv', 'participant_id\tage\ttiv\nsub-01\t39\tx\n')
    atomic_write_text(raw / 'participants.json', '{"age": {"Units": "year"}}')
    add_session('01', volumes=(6e5, 3e5, 1e5), structures={17: ('Left-Hippocampus', 4000.5)})
    add_session('02', status='failed', error='too\tsmall')
    (volumes, regions, quality), _ = tables(out, raw)
    assert [row['participant_id'] for row in volumes] == ['sub-01', 'sub-02']
    assert volumes[0]['gm'] == '600000.0'
    assert volumes[0]['gm_of_tiv'] == '0.6'
    assert volumes[0]['age'] == '39'
    assert volumes[0]['tiv_participants'] == 'x'
    assert {'status': 'failed', 'reason': 'too small', 'gm': 'n/a', 'age': 'n/a'}.items() <= (
        volumes[1].items()
    )
    assert regions[0]['Left-Hippocampus'] == '4000.5'
    assert regions[0]['Right-Hippocampus'] == 'n/a'
    assert quality[0]['qc_score'] == '100.0'
    assert quality[1]['qc_score'] == 'n/a'
    for name, rows in (('volumes', volumes), ('regions', regions), ('qc', quality)):
        dictionary = json.loads((out / f'group_{name}.json').read_text())
        assert list(dictionary) == list(rows[0])
        assert all(text.get('Description') or text.get('Units') for text in dictionary.values()
                   if text)  # fmt: skip
    assert dictionary['age'] == {'Units': 'year'}


def test_same_study_same_bytes(out, add_session):
    for label in ('03', '01', '02'):
        add_session(label)
    tables(out)
    files = sorted(out.glob('group_*'))
    before = [file.read_bytes() for file in files]
    tables(out)
    assert [file.read_bytes() for file in files] == before


def test_regions_of_atlases_have_a_column_per_tissue(out, add_session):
    for label, volume in (('01', 5), ('02', 6)):
        place = add_session(label)
        text = f'index\tname\tgm_mm3\twm_mm3\n10\tB x\t{volume}\t1\n2\tA\t7\t2\n'
        atomic_write_text(place.path('regions_morph', atlas='AAL'), text)
    add_session('03')
    (_, regions, _), _ = tables(out)
    ours = [name for name in regions[0] if name.startswith('AAL')]
    assert ours == ['AAL_A_gm', 'AAL_A_wm', 'AAL_B x_gm', 'AAL_B x_wm']
    assert [row['AAL_B x_gm'] for row in regions] == ['5', '6', 'n/a']


def test_odd_characters_break_nothing(out, tmp_path, add_session):
    raw = tmp_path / 'raw'
    odd = '<b>"ä\u2028\x0b%'
    atomic_write_text(raw / 'participants.tsv', f'participant_id\ta {odd}\nsub-01\t{odd}\n')
    add_session('01')
    (volumes, _, _), _ = tables(out, raw)
    assert len(volumes) == 1
    assert all(None not in row for row in volumes)
    assert cell('a\tb\r\nc') == 'a b c'
    assert cell(' ') == 'n/a'


def test_outlier_is_found_and_explained(out, add_session):
    random = np.random.default_rng(0)
    for number in range(12):
        measures = {'snr_total': random.normal(8, 0.2), 'cjv': random.normal(0.5, 0.01)}
        measures['icvs_gm'] = random.normal(0.45, 0.01)
        hippocampus = float(random.normal(4000, 50))
        if number == 4:
            measures['snr_total'] = 2.0
            hippocampus = 400.0
        add_session(f'{number:02d}', measures=measures, structures={17: ('x', hippocampus)})
    (_, _, quality), assessment = tables(out)
    ratings = [row['qc_rating'] for row in quality]
    assert ratings[4] == 'doubtful'
    assert ratings.count('ok') == 11
    assert 'SNR total 2 is below the others' in quality[4]['qc_findings']
    assert 'Left Hippocampus (% of TIV)' in quality[4]['qc_findings']
    assert float(quality[4]['snr_total_z']) < -3.5
    low, high = assessment.bounds['snr_total']
    assert 6 < low < 8
    assert high is None


@pytest.mark.parametrize('count', [1, 2, 3])
def test_few_sessions_are_not_compared(out, add_session, count):
    for number in range(count):
        verdict = ('fail', 'snr_total is 1 (expected above 3): noisy scan') if not number else (
            'ok', 'n/a')  # fmt: skip
        add_session(f'{number}', verdict=verdict)
    (_, _, quality), assessment = tables(out)
    assert 'from 5 finished ones' in assessment.notes[0]
    assert float(quality[0]['qc_score']) == 40
    assert quality[0]['qc_findings'].startswith('SNR total is 1')
    assert all(row['qc_score'] == '100.0' for row in quality[1:])


def test_maps_count_for_the_score(out, add_session):
    for number in range(12):
        add_session(f'{number:02d}')
    correlation = np.linspace(0.90, 0.92, 12)
    correlation[3] = 0.2
    probability = np.full(12, 0.5)
    probability[5] = 1e-8
    maps = Homogeneity(
        np.ones(12, bool), correlation, np.full(12, 2.0), probability, 2, np.ones((2, 2, 2)),
        np.ones((2, 2, 2)), np.eye(4), {7: 'map is broken'}, ('a note',),
    )  # fmt: skip
    (_, _, quality), assessment = tables(out, homogeneity=maps)
    assert 'Mean correlation of the grey matter map 0.2' in quality[3]['qc_findings']
    assert 'Mahalanobis' in quality[5]['qc_findings']
    assert quality[7]['qc_findings'] == 'map is broken'
    assert quality[7]['qc_score'] == '75.0'
    assert quality[3]['mean_correlation'] == '0.2'
    assert 'a note' in assessment.notes
