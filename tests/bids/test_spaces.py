# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.bids.spaces import (
    STANDARD,
    OutputSpace,
    absolute_atlas,
    atlas_parts,
    atlas_space,
    output_spaces,
    parse_space,
    resolution_mm,
)
from bids_app.errors import UsageError


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('MNI152NLin2009aSym', ('MNI152NLin2009aSym', None)),
        ('MNI152NLin2009cAsym:res-2', ('MNI152NLin2009cAsym', '2')),
        ('MNIPediatricAsym:res-1:cohort-2', ('MNIPediatricAsym+2', '1')),
        ('MNIPediatricAsym+2', ('MNIPediatricAsym+2', None)),
    ],
)
def test_spaces_as_fmriprep_writes_them(text, expected):
    assert parse_space(text) == expected


@pytest.mark.parametrize(
    'text',
    [
        '',
        'a_b',
        'MNI305:',
        'MNI305:res',
        'MNI305:res-',
        'MNI305:den-10k',
        'X:res-1:res-2',
        'a+b+c',
    ],
)
def test_other_forms_are_errors(text):
    with pytest.raises(UsageError):
        parse_space(text)


@pytest.mark.parametrize('label', ['x', '1.5', '0p4', '5', 'p5'])
def test_resolutions_that_make_no_sense(label):
    with pytest.raises(UsageError):
        resolution_mm(label)


def test_spaces_are_listed_once_with_all_their_voxel_sizes():
    asked = ['anat', 'MNI305:res-native', 'X:res-1', 'MNI305:res-2', 'MNI305:res-1p5', 'X:res-01']
    assert output_spaces(asked, 1.5) == (
        OutputSpace('MNI305', (1.5, 2.0)),
        OutputSpace('X', (1.0,)),
    )
    assert output_spaces(['T1w', 'native'], 1.5) == ()


def test_default_space_is_one_that_bids_defines():
    assert {'MNI152NLin2009aSym', 'MNI152NLin2009cAsym', 'MNI152NLin6Asym'} <= STANDARD
    assert 'MNIPediatricAsym' not in STANDARD


def test_atlas_lies_where_its_name_says():
    spaces = output_spaces(['MNI305', 'MNIPediatricAsym:cohort-2'], 1.5)
    assert atlas_space(Path('/x/aal.nii.gz'), spaces) == 'MNI305'
    named = Path('/tpl-X/tpl-MNIPediatricAsym_cohort-2_atlas-y_dseg.nii.gz')
    assert atlas_space(named, spaces) == 'MNIPediatricAsym+2'
    with pytest.raises(UsageError, match='add it there, or rename'):
        atlas_space(Path('space-MNI152Lin_aal.nii'), spaces)


def test_atlas_and_its_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert atlas_parts('a.nii.gz:t.tsv') == [Path('a.nii.gz'), Path('t.tsv')]
    assert absolute_atlas('a.nii:t.tsv') == f'{tmp_path}/a.nii:{tmp_path}/t.tsv'
    assert absolute_atlas('a.mgz') == f'{tmp_path}/a.mgz'  # said by who reads it
