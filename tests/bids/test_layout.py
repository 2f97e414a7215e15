# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest

from bids_app.bids import layout
from bids_app.bids.inputs import collect_sessions
from bids_app.bids.layout import Unwanted
from bids_app.config import RunConfig


@pytest.mark.parametrize(
    ('path', 'wanted'),
    [
        ('sub-01', True),
        ('sub-02', False),
        ('sub-01.html', False),
        ('sub-01/ses-1', True),
        ('sub-01/anat', True),
        ('sub-01/func', False),
        ('sub-01/ses-1/dwi', True),
        ('sub-01/ses-1/func', False),
        ('sub-01/anat/sub-01_T1w.nii.gz', True),
        ('sub-01/anat/sub-01_T1w.nii', True),
        ('sub-01/anat/sub-01_T1w.json', False),
        ('sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz', True),
        ('sub-01/anat/deep/sub-01_T1w.nii.gz', False),
        ('sub-01/sub-01_scans.tsv', False),
        ('dwi.bval', True),
        ('sub-01/sub-01_dwi.bvec', True),
        ('participants.tsv', False),
        ('derivatives', False),
    ],
)
def test_what_is_indexed(path, wanted):
    assert Unwanted({'01'}).search('/' + path) is not wanted


T1W = 'sub-{0}/anat/sub-{0}_T1w.nii.gz'


@pytest.fixture
def indexed(make_bids, tmp_path):
    """Return a data set, and a function that lists its sessions through a database."""
    root = make_bids([T1W.format('01'), T1W.format('02')])

    def sessions(*participants: str) -> list[str]:
        config = RunConfig(
            root, tmp_path / 'out', bids_database_dir=tmp_path / 'db',
            participant_label=participants or None,
        )  # fmt: skip
        return [r.label for r in collect_sessions(config) if r.problem is None]

    return root, sessions


@pytest.fixture
def rebuilds(monkeypatch):
    """Count how often an index is made."""
    made = []
    original = layout._rebuild
    monkeypatch.setattr(layout, '_rebuild', lambda *a: made.append(a) or original(*a))
    return made


def test_database_is_made_once_and_reused(indexed, rebuilds):
    _, sessions = indexed
    assert sessions('02') == ['sub-02']
    assert sessions() == ['sub-01', 'sub-02']
    assert sessions('01') == ['sub-01']
    assert len(rebuilds) == 1


def test_stale_database_hides_nothing(indexed, rebuilds, make_bids):
    root, sessions = indexed
    sessions()
    make_bids([T1W.format('03')])
    assert sessions('03') == ['sub-03']
    make_bids(['sub-03/ses-b/anat/sub-03_ses-b_T1w.nii.gz'])
    assert sessions() == ['sub-01', 'sub-02', 'sub-03', 'sub-03_ses-b']
    (root / T1W.format('01')).rename(root / 'sub-01/anat/sub-01_run-1_T1w.nii.gz')
    assert 'sub-01' in sessions()
    (root / T1W.format('02')).unlink()
    assert sessions() == ['sub-01', 'sub-03', 'sub-03_ses-b']
    assert len(rebuilds) == 5
    sessions()
    assert len(rebuilds) == 5


def test_new_gradient_table_in_the_root_is_noticed(indexed, rebuilds):
    root, sessions = indexed
    sessions()
    (root / 'dwi.bval').touch()
    sessions()
    assert len(rebuilds) == 2


def test_broken_database_is_made_anew(indexed, tmp_path):
    _, sessions = indexed
    sessions()
    (tmp_path / 'db/anatnet/files.json').write_text('{')
    assert sessions() == ['sub-01', 'sub-02']


def test_what_a_killed_run_left_goes_and_what_another_makes_stays(indexed, tmp_path):
    _, sessions = indexed
    old, new = tmp_path / 'db/anatnet/.new-a', tmp_path / 'db/anatnet/.new-b'
    for folder in (old, new):
        (folder / 'index').mkdir(parents=True)
    os.utime(old, (1, 1))
    assert sessions() == ['sub-01', 'sub-02']
    assert not old.exists()
    assert new.exists()


def test_database_of_another_pipeline_is_left_alone(indexed, tmp_path):
    _, sessions = indexed
    foreign = tmp_path / 'db/layout_index.sqlite'
    foreign.parent.mkdir()
    foreign.write_bytes(b'not ours')
    assert sessions() == ['sub-01', 'sub-02']
    assert foreign.read_bytes() == b'not ours'


@pytest.mark.skipif(os.getuid() == 0, reason='the superuser may write anywhere')
def test_database_folder_that_cannot_be_written(indexed, tmp_path):
    _, sessions = indexed
    (tmp_path / 'db').mkdir(mode=0o500)
    assert sessions() == ['sub-01', 'sub-02']
