# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.bids.gradients import GradientFinder

ROOT = Path('/raw')
IMAGE = ROOT / 'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_run-1_dwi.nii.gz'


@pytest.mark.parametrize(
    ('tables', 'expected'),
    [
        (['dwi.bval'], 'dwi.bval'),
        (['dwi.bval', 'sub-01/sub-01_dwi.bval'], 'sub-01/sub-01_dwi.bval'),
        (
            ['sub-01/ses-a/dwi/sub-01_ses-a_dwi.bval',
             'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_dwi.bval'],
            'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_dwi.bval',
        ),
        (['sub-01/ses-a/dwi/sub-01_ses-a_dir-PA_dwi.bval'], None),
        (['dir-PA_dwi.bval', 'dwi.bval'], 'dwi.bval'),
        (['dwi.bvec'], None),
        (['sub-02/sub-02_dwi.bval'], None),
        (['sub-01/ses-b/dwi/dwi.bval'], None),
        ([], None),
    ],
)  # fmt: skip
def test_nearest_applicable_table_is_found(tables, expected):
    found = GradientFinder(ROOT, [ROOT / table for table in tables]).find(IMAGE, '.bval')
    assert found == (None if expected is None else ROOT / expected)


def test_nothing_above_the_root_applies():
    finder = GradientFinder(ROOT, [Path('/dwi.bval')])
    assert finder.find(IMAGE, '.bval') is None
