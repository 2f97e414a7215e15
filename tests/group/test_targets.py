# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_app.errors import UsageError
from bids_app.group.targets import read_target


def study(values, sessions=1, name='group'):
    number = len(values)
    return pd.DataFrame(
        {
            'participant_id': np.repeat([f'sub-{i:03d}' for i in range(number)], sessions),
            name: pd.Series(np.repeat(np.array(values, object), sessions)).infer_objects(),
        }
    )


def test_text_is_classes_in_order():
    target = read_target(study(['m', 'f'] * 10), 'group', {})
    assert target.classes == ('f', 'm')
    assert target.values.tolist() == [1, 0] * 10
    assert target.counts() == {'f': 10, 'm': 10}
    assert target.warning == ''


def test_missing_values_and_maps_are_left_out_with_their_reason():
    frame = study(['m', 'f'] * 12 + [None])
    target = read_target(frame, 'group', {0: 'no map'})
    assert dict(target.excluded) == {0: 'no map', 24: 'no value of group'}
    assert 0 not in target.rows
    assert len(target.rows) == 23


def test_codes_are_classes_and_ages_are_numbers():
    assert read_target(study([0.0, 1.0] * 10), 'group', {}).classes == ('0', '1')
    ages = [float(v) for v in range(20, 45)]
    target = read_target(study(ages), 'group', {})
    assert target.classes == ()
    assert target.values.tolist() == ages
    assert read_target(study([1.0, 2.0] * 12), 'group', {}, task='number').classes == ()


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        (['a', 'b'] * 5, 'too few subjects'),
        (['a'] * 30 + ['b'] * 5, 'b 5'),
        ([float(v) for v in range(30, 48)], 'too few subjects to predict'),
    ],
)
def test_too_few_subjects_is_an_error_that_force_turns_into_a_warning(values, words):
    with pytest.raises(UsageError, match=words) as error:
        read_target(study(values), 'group', {})
    assert '--force' in str(error.value)
    target = read_target(study(values), 'group', {}, force=True)
    assert 'means nothing' in target.warning


def test_sessions_do_not_make_up_for_subjects():
    with pytest.raises(UsageError, match='a 5, b 5'):
        read_target(study(['a', 'b'] * 5, sessions=6), 'group', {})


def test_with_force_a_class_of_one_is_left_out():
    target = read_target(study(['a', 'a', 'b', 'b', 'c']), 'group', {}, force=True)
    assert target.classes == ('a', 'b')
    assert 'only subject' in dict(target.excluded)[4]


@pytest.mark.parametrize('values', [['a'] * 30, [5.5] * 30])
def test_one_value_alone_cannot_be_predicted_even_by_force(values):
    with pytest.raises(UsageError, match='cannot'):
        read_target(study(values), 'group', {}, force=True)


def test_an_unknown_column_names_the_known_ones():
    with pytest.raises(UsageError, match='group'):
        read_target(study(['a', 'b']), 'sex', {})
