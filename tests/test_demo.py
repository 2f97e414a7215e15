# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.inputs import collect_sessions
from bids_app.config import RunConfig
from bids_app.demo import NAME, main, make_demo
from bids_app.errors import UsageError


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp('demo') / 'bids'
    return folder, make_demo(folder, spacing=4.0)


def test_three_scans_of_two_people_are_found(demo, tmp_path):
    folder, _ = demo
    records = collect_sessions(RunConfig(folder, tmp_path))
    assert [r.label for r in records] == ['sub-01_ses-1', 'sub-02_ses-1', 'sub-02_ses-2']
    assert all(r.problem is None for r in records)


def test_second_session_is_the_first_with_turned_axes(demo):
    first, second = (nib.load(file) for file in demo[1][1:])
    assert nib.aff2axcodes(first.affine) == ('R', 'A', 'S')
    assert nib.aff2axcodes(second.affine) == ('P', 'I', 'L')
    turned = nib.as_closest_canonical(second)
    np.testing.assert_allclose(turned.affine, first.affine)
    np.testing.assert_array_equal(np.asarray(turned.dataobj), np.asarray(first.dataobj))


def test_scan_is_a_head_in_millimetres(demo):
    image = nib.load(demo[1][0])
    assert image.header.get_zooms() == (4.0, 4.0, 4.0)
    assert int(image.header['sform_code']) == int(image.header['qform_code']) == 1
    data = image.get_fdata()
    volume = (data > 100).sum() * 64 / 1000
    assert 1500 < volume < 5000  # cm^3: a brain and its wrapping
    assert 0 <= data.min() < data.max() < 2000


def test_again_changes_nothing_and_foreign_folders_are_refused(demo, tmp_path, capsys):
    folder, files = demo
    before = [file.stat().st_ino for file in files]
    assert make_demo(folder, spacing=4.0) == files
    assert [file.stat().st_ino for file in files] == before
    (tmp_path / 'x').touch()
    with pytest.raises(UsageError, match='not empty'):
        make_demo(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert 'not empty' in capsys.readouterr().err
    assert NAME.startswith('AnatNet demo')
