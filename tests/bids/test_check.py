# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest

from bids_app.bids import check
from bids_app.bids.check import check_description, check_scans, run_validator
from bids_app.bids.inputs import collect_sessions
from bids_app.config import RunConfig
from bids_app.errors import InvalidBIDSError

T1W = 'sub-01/anat/sub-01_T1w.nii.gz'


def test_missing_description_names_the_folder_that_has_one(make_bids):
    root = make_bids([T1W])
    with pytest.raises(InvalidBIDSError, match=f'did you mean {root}'):
        check_description(root / 'sub-01')
    with pytest.raises(InvalidBIDSError, match=f'did you mean {root}'):
        check_description(root.parent)
    (root / 'dataset_description.json').unlink()
    with pytest.raises(InvalidBIDSError, match='--skip-bids-validation'):
        check_description(root)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"Name": ', 'not valid JSON'),
        ('[]', 'does not hold a JSON object'),
        ('{"DatasetType": "derivative"}', 'holds derivatives'),
    ],
)
def test_bad_descriptions(make_bids, text, message):
    root = make_bids([T1W])
    (root / 'dataset_description.json').write_text(text)
    with pytest.raises(InvalidBIDSError, match=message):
        check_description(root)


def test_missing_fields_are_a_warning(make_bids, caplog):
    root = make_bids([T1W])
    (root / 'dataset_description.json').write_text('{"Name": "x"}')
    check_description(root)
    assert 'BIDSVersion' in caplog.text


def test_content_that_is_not_there(make_bids):
    root = make_bids({T1W: 'x', 'sub-02/anat/sub-02_T1w.nii.gz': ''})
    link = root / 'sub-03/anat/sub-03_T1w.nii.gz'
    link.parent.mkdir(parents=True)
    link.symlink_to('../../.git/annex/objects/missing')
    lines = check_scans(collect_sessions(RunConfig(root, root.parent / 'out')))
    assert len(lines) == 2
    assert lines[0] == 'sub-02_T1w.nii.gz: empty file'
    assert 'datalad get' in lines[1]


@pytest.fixture
def fake_validator(monkeypatch, tmp_path):
    """Return a function that sets what the validator finds; it also keeps what it was given."""

    def set_issues(issues: list[dict]) -> Path:
        report = tmp_path / 'report.json'
        report.write_text(json.dumps({'issues': {'issues': issues}}))
        program = tmp_path / 'bids-validator-deno'
        program.write_text(f'#!/bin/sh\nfor a; do v="$a"; done\nls "$v" > {tmp_path}/seen\n'
                           f'cat {report}\nexit 16\n')  # fmt: skip
        program.chmod(0o755)
        monkeypatch.setattr(check.shutil, 'which', lambda name: str(program))
        monkeypatch.setattr(check.sys, 'executable', str(tmp_path / 'nowhere' / 'python'))
        return tmp_path / 'seen'

    return set_issues


def issue(code: str, location: str) -> dict:
    return {'code': code, 'location': location, 'severity': 'error'}


def test_only_wrong_names_of_images_stop(make_bids, fake_validator, caplog):
    root = make_bids([T1W, 'sub-02/anat/sub-02_T1w.nii.gz', 'participants.tsv'])
    seen = fake_validator([
        issue('NOT_INCLUDED', '/SOURCES.tsv'), issue('FILENAME_MISMATCH', '/sub-01/func/x.tsv'),
    ])  # fmt: skip
    with caplog.at_level(logging.INFO):
        run_validator(root, ['01'])
    assert '2 errors that do not matter' in caplog.text
    assert seen.read_text().split() == [
        'dataset_description.json', 'participants.tsv', 'sub-01',
    ]  # fmt: skip
    fake_validator([issue('FILENAME_MISMATCH', '/sub-01/anat/T1w_sub-01.nii.gz')])
    with pytest.raises(InvalidBIDSError, match='T1w_sub-01'):
        run_validator(root, ['01'])


def test_missing_or_broken_validator_is_one_line(make_bids, fake_validator, monkeypatch, caplog):
    root = make_bids([T1W])
    fake_validator([])
    monkeypatch.setattr(check.shutil, 'which', lambda name: None)
    with caplog.at_level(logging.INFO):
        run_validator(root, ['01'])
    assert 'not installed' in caplog.text
    monkeypatch.setattr(check.shutil, 'which', lambda name: '/bin/false')
    with caplog.at_level(logging.INFO):
        run_validator(root, ['01'])
    assert 'could not be run' in caplog.text


def test_real_validator_accepts_and_refuses(make_bids):
    beside = Path(sys.executable).with_name('bids-validator-deno')
    if not (beside.exists() or shutil.which('bids-validator-deno')):
        pytest.skip('bids-validator-deno is not installed')
    run_validator(make_bids({T1W: 'x'}), ['01'])
    wrong = 'sub-01/anat/sub-01_desc-x_acq-y_T1w.nii.gz'
    with pytest.raises(InvalidBIDSError, match='wrong file names'):
        run_validator(make_bids({wrong: 'x'}), ['01'])
