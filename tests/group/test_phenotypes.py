# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil

from bids_app.bids.files import atomic_write_text
from bids_app.group import phenotypes
from bids_app.group.derivatives import load_study


def test_quotation_marks_are_characters_like_others(tmp_path):
    file = tmp_path / 'x.tsv'
    file.write_text('participant_id\tnote\theight\nsub-01\t"a ""b"""\t5"\nsub-02\tx\n')
    assert phenotypes.read_phenotype(file) == [
        {'participant_id': 'sub-01', 'note': 'a "b"', 'height': '5"'},
        {'participant_id': 'sub-02', 'note': 'x'},
    ]


def test_study_is_the_same_when_the_raw_data_are_gone(out, tmp_path, add_session):
    raw = tmp_path / 'raw'
    atomic_write_text(raw / 'participants.tsv', 'participant_id\tage\nsub-01\t30\n')
    atomic_write_text(raw / 'participants.json', '{"age": {"Units": "year"}}')
    atomic_write_text(raw / 'sub-01' / 'sub-01_sessions.tsv', 'session_id\tscore\nses-a\t7\n')
    add_session('01', 'a')
    with_raw = load_study(out, raw)
    phenotypes.keep_copy(with_raw)
    before = with_raw.table()
    shutil.rmtree(raw)
    after = load_study(out, raw)
    assert after.bids_dir is None
    assert after.table().equals(before)
    assert after.table()['score'].tolist() == [7.0]
    assert (out / phenotypes.DICTIONARY_COPY).is_file()


def test_first_of_two_rows_counts(out, tmp_path, add_session):
    raw = tmp_path / 'raw'
    atomic_write_text(raw / 'participants.tsv', 'participant_id\tage\nsub-01\t30\nsub-01\t31\n')
    add_session('01')
    assert load_study(out, raw).table()['age'].tolist() == [30.0]


def test_a_column_with_one_word_is_text():
    assert phenotypes.as_numbers(['1', None, '2.5']) == [1.0, None, 2.5]
    assert phenotypes.as_numbers(['1', 'two']) == ['1', 'two']
    assert phenotypes.as_numbers(['89+', '20'], 'age') == [89.0, 20.0]
    assert phenotypes.as_numbers(['89+', '20'], 'score') == ['89+', '20']
