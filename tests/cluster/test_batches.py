# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest

from bids_app.bids.inputs import collect_sessions
from bids_app.cluster.batches import parse_batch, take_batch
from bids_app.config import RunConfig
from bids_app.errors import UsageError

T1W = 'sub-{0}/ses-{1}/anat/sub-{0}_ses-{1}_T1w.nii.gz'


@pytest.mark.parametrize('count', [1, 2, 3, 7, 11, 40])
def test_batches_are_disjoint_cover_all_and_are_of_one_size(count):
    labels = [f'{number:03d}' for number in range(23)]
    batches = [take_batch(labels, f'{i}/{count}') for i in range(1, count + 1)]
    together = [label for batch in batches for label in batch]
    assert sorted(together) == labels
    assert len(together) == len(set(together))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1


def test_batches_depend_on_the_labels_alone():
    labels = [f'{number:02d}' for number in range(20)]
    shuffled = random.Random(0).sample(labels, 20) + ['03', '04']
    assert take_batch(shuffled, '2/3') == take_batch(labels, '2/3')


def test_participant_added_behind_the_others_moves_none():
    labels = [f'{number:02d}' for number in range(20)]
    before = [set(take_batch(labels, f'{i}/6')) for i in range(1, 7)]
    after = [set(take_batch([*labels, '20', '21'], f'{i}/6')) for i in range(1, 7)]
    assert all(old <= new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize('text', ['0/3', '4/3', '1', '1/0', '-1/3', 'a/b', '1/3 ', '1/3/5', ''])
def test_other_forms_are_errors(text):
    with pytest.raises(UsageError, match='NUMBER/COUNT'):
        parse_batch(text)


def test_sessions_of_a_participant_stay_together(make_bids):
    subjects = ('01', '02', '03', '05', '08')
    raw = make_bids([T1W.format(subject, session) for subject in subjects for session in 'ab'])
    config = RunConfig(raw, raw.parent / 'out')
    batches = [
        [(r.subject, r.session) for r in collect_sessions(config.replace(batch=f'{i}/2'))]
        for i in (1, 2)
    ]
    assert batches[0] == [(subject, session) for subject in subjects[::2] for session in 'ab']
    assert sorted(batches[0] + batches[1]) == [(s, t) for s in subjects for t in 'ab']


def test_batch_is_taken_of_the_participants_that_were_asked_for(make_bids):
    raw = make_bids([T1W.format(subject, 'a') for subject in ('01', '02', '03', '04')])
    config = RunConfig(raw, raw.parent / 'out', participant_label=('04', '02'))
    assert [r.subject for r in collect_sessions(config.replace(batch='2/2'))] == ['04']
    assert collect_sessions(config.replace(batch='3/3')) == []


def test_batch_survives_the_configuration_file(tmp_path):
    config = RunConfig(tmp_path / 'raw', tmp_path / 'out', batch='2/5')
    assert RunConfig.from_toml(config.to_toml()).batch == '2/5'
