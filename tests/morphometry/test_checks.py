# SPDX-License-Identifier: Apache-2.0
"""Verdicts on registrations, and verdicts joined."""

from __future__ import annotations

import math

import pytest

from bids_app.morphometry.checks import (
    REGISTRATION_LIMITS,
    assess,
    merge_verdicts,
    qc_columns,
    qc_table,
    registration_measures,
)

GOOD = {
    'affine_dice': 0.9, 'dice_gm': 0.7, 'dice_wm': 0.75, 'dice_csf': 0.5, 'correlation_gm': 0.9,
    'jacobian_min': 0.3, 'jacobian_p1': 0.6, 'jacobian_p99': 1.8, 'jacobian_max': 3.0,
    'inverse_error_mm': 0.03, 'seconds_affine': 2.0, 'seconds_network': 1.0, 'seconds_refine': 9,
}  # fmt: skip


def test_measures_get_their_prefix_and_lose_what_is_no_number():
    found = registration_measures({'dice_gm': 1, 'method': 'ants', 'x': math.nan, 'y': True})
    assert found == {'norm_dice_gm': 1.0}


def test_good_registration_passes():
    verdict = assess(registration_measures(GOOD))
    assert verdict['status'] == 'ok'
    assert {c['name'] for c in verdict['checks']} == {lim.name for lim in REGISTRATION_LIMITS}


@pytest.mark.parametrize(
    ('name', 'value', 'status'),
    [
        ('dice_gm', 0.5, 'warn'),
        ('dice_gm', 0.1, 'fail'),
        ('jacobian_min', 0.05, 'warn'),
        ('jacobian_min', 0.0, 'fail'),
        ('jacobian_min', -0.2, 'fail'),
        ('jacobian_max', 11.0, 'warn'),
        ('inverse_error_mm', 0.25, 'warn'),
    ],
)
def test_bad_registrations_are_found(name, value, status):
    verdict = assess(registration_measures({**GOOD, name: value}))
    assert verdict['status'] == status
    assert len(verdict['reasons']) == 1
    assert f'norm_{name}' in verdict['reasons'][0]


def test_joined_verdicts_keep_the_worst_and_every_reason_once():
    good, bad = assess({'cjv': 0.4}), assess({'cjv': 2.0, 'norm_jacobian_min': -1.0})
    joined = merge_verdicts(good, bad, bad)
    assert joined['status'] == 'fail'
    assert joined['reasons'] == bad['reasons']
    values = {check['name']: check['value'] for check in joined['checks']}
    assert values == {'cjv': 0.4, 'norm_jacobian_min': -1.0}
    assert merge_verdicts() == {'status': 'ok', 'reasons': [], 'checks': []}


def test_columns_of_registration_measures_are_explained():
    measures = registration_measures({**GOOD, 'something_new': 1.0})
    columns = qc_columns(qc_table(measures, assess(measures)).columns)
    assert all(entry['Description'] for entry in columns.values())
    assert columns['norm_inverse_error_mm']['Units'] == 'mm'
    assert columns['norm_something_new']['Description'] == 'Registration: something new'
