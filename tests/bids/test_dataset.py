# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os

import pytest

from bids_app import __version__
from bids_app.bids import dataset
from bids_app.bids.dataset import check_output_dir, dataset_description, write_dataset_files
from bids_app.config import RunConfig
from bids_app.errors import AnatNetError, UsageError

FILES = {
    'dataset_description.json', '.bidsignore', 'README.md', 'dseg.tsv', 'desc-wholebrain_dseg.tsv',
    'logs',
}  # fmt: skip


@pytest.fixture
def config(make_bids, tmp_path):
    raw = make_bids([], License='CC0', DatasetDOI='doi:10.1/x')
    return RunConfig(raw, tmp_path / 'out')


def test_top_level_files(config):
    write_dataset_files(config, methods='methods', bibliography='bib')
    out = config.output_dir
    assert {file.name for file in out.iterdir()} == FILES
    assert (out / 'logs/CITATION.md').read_text() == 'methods'
    assert (out / 'logs/CITATION.bib').read_text() == 'bib'
    assert (out / 'dseg.tsv').read_text().splitlines()[1].startswith('1\tGM\t#')
    ignored = (out / '.bidsignore').read_text().split()
    assert 'figures' in ignored  # 'figures/' does not match below a subject


def test_description_takes_over_what_the_source_says(config, monkeypatch):
    monkeypatch.setenv('ANATNET_DOCKER_TAG', 'anatnet:1')
    description = dataset_description(config)
    assert description['DatasetType'] == 'derivative'
    assert description['License'] == 'CC0'
    assert description['SourceDatasets'] == [{'DOI': 'doi:10.1/x'}]
    assert description['GeneratedBy'] == [
        {'Name': 'AnatNet', 'Version': __version__,
         'Container': {'Type': 'docker', 'Tag': 'anatnet:1'}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('value', 'uri'),
    [
        ('docker://anatnet/anatnet:1', 'docker://anatnet/anatnet:1'),
        ('/images/my study/anatnet.sif', 'file:///images/my%20study/anatnet.sif'),
    ],
)
def test_singularity_image_is_named_by_a_uri(config, monkeypatch, value, uri):
    monkeypatch.delenv('ANATNET_DOCKER_TAG', raising=False)
    monkeypatch.setenv('ANATNET_SINGULARITY_URL', value)
    (maker,) = dataset_description(config)['GeneratedBy']
    assert maker['Container'] == {'Type': 'singularity', 'URI': uri}


def test_files_that_are_right_are_not_touched(config):
    write_dataset_files(config)
    before = {file: file.stat().st_ino for file in config.output_dir.iterdir()}
    write_dataset_files(config)
    assert {file: file.stat().st_ino for file in config.output_dir.iterdir()} == before


def test_only_the_description_must_be_written(config, monkeypatch, caplog):
    original = dataset.write_if_different

    def refuse(path, text):
        if path.name == '.bidsignore':
            raise PermissionError(13, 'Permission denied', str(path))
        return original(path, text)

    monkeypatch.setattr(dataset, 'write_if_different', refuse)
    write_dataset_files(config)
    assert '.bidsignore' in caplog.text
    assert (config.output_dir / 'README.md').exists()


@pytest.mark.parametrize(
    ('description', 'message'),
    [
        ({'Name': 'x'}, 'another data set'),
        ({'Name': 'x', 'GeneratedBy': [{'Name': 'fMRIPrep'}]}, 'derivatives of fMRIPrep'),
    ],
)
def test_foreign_output_folder(tmp_path, description, message):
    (tmp_path / 'dataset_description.json').write_text(json.dumps(description))
    with pytest.raises(UsageError, match=message):
        check_output_dir(tmp_path)


def test_output_of_another_version_is_a_warning(tmp_path, caplog):
    description = {'GeneratedBy': [{'Name': 'AnatNet', 'Version': '0.0.1'}]}
    (tmp_path / 'dataset_description.json').write_text(json.dumps(description))
    check_output_dir(tmp_path)
    assert '0.0.1' in caplog.text


def test_output_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(AnatNetError, match='cannot write to the output folder'):
        check_output_dir(tmp_path / 'file' / 'out')


@pytest.mark.skipif(os.getuid() == 0, reason='the superuser may write anywhere')
def test_write_protected_output(tmp_path):
    out = tmp_path / 'out'
    out.mkdir(mode=0o500)
    with pytest.raises(AnatNetError, match='permissions'):
        check_output_dir(out)
