# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from bids_app.config import RunConfig, new_run_uuid, read_toml
from bids_app.errors import UsageError

FULL = RunConfig(
    Path('/raw'),
    Path('/out'),
    participant_label=('01', '02'),
    session_label=('a',),
    batch='2/5',
    bids_filters={'t1w': {'acquisition': None, 'run': 1, 'part': ['mag', None]}},
    bids_database_dir=Path('/db'),
    derivatives={'masks': Path('/masks')},
    modules=('mask',),
    models_dir=Path('/models'),
    reference='T1w',
    segmentation='deepnat',
    crf=False,
    deepnat_model='/models/own',
    deepnat_parities=8,
    tissue_model='auto',
    correct_lesions=True,
    registration='ants',
    output_spaces=('MNI152NLin6Asym:res-2', 'T1w'),
    voxel_size=2.0,
    smooth_fwhm=(7.5,),
    atlas=('/a.nii:/a.tsv',),
    classifier=('/models/sexpif',),
    mem_gb=7.5,
    use_plugin=Path('/plugin.yml'),
    debug=('workdir',),
    overwrite=True,
    verbose=2,
    formula='~ age',
    contrasts=('age',),
    group_map='wm:8',
    n_permutations=5,
    mask_threshold=0.2,
    tfce=False,
    repeated_sessions='first',
    classify='sex',
    force=True,
    command_line=('anatnet', '/raw', '/out', 'participant'),
)


def test_toml_there_and_back_is_the_same():
    assert RunConfig.from_toml(FULL.to_toml()) == FULL
    plain = RunConfig(Path('/raw'), Path('/out'))
    assert RunConfig.from_toml(plain.to_toml()) == plain


def test_every_field_is_written():
    written = read_toml(FULL.to_toml())
    assert set(written) == {field.name for field in dataclasses.fields(RunConfig)}


def test_overrides_win():
    assert RunConfig.from_toml(FULL.to_toml(), verbose=0).verbose == 0


def test_options_may_stand_outside_tables_and_with_dashes():
    assert read_toml('mem-gb = 4\n[nipype]\nnprocs = 2\n') == {'mem_gb': 4.0, 'nprocs': 2}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x =', 'not valid TOML'),
        ('colour = 1', 'unknown option "colour"'),
        ('nprocs = "two"', '"nprocs"'),
        ('nprocs = true', '"nprocs"'),
        ('participant_label = "01"', '"participant_label"'),
        ('participant_label = [1]', '"participant_label"'),
        ('work_dir = 3', '"work_dir"'),
        ('overwrite = 1', '"overwrite"'),
        ('bids_filters = "{"', '"bids_filters"'),
        ('derivatives = 1', '"derivatives"'),
        ('derivatives = {a = 1}', '"derivatives"'),
        ('smooth_fwhm = 8', '"smooth_fwhm"'),
        ('smooth_fwhm = [true]', '"smooth_fwhm"'),
        ('atlas = [1]', '"atlas"'),
        ('x = ' + '[' * 100_000, 'nested too deeply'),
        ('bids_filters = "' + '[' * 100_000 + '"', '"bids_filters"'),
    ],
)
def test_bad_toml(text, message):
    with pytest.raises(UsageError, match=message):
        read_toml(text)


def test_configuration_without_input():
    with pytest.raises(UsageError, match='bids_dir and output_dir'):
        RunConfig.from_toml('')


def test_whole_numbers_may_stand_for_millimetres():
    assert read_toml('smooth_fwhm = [6, 7.5]\nvoxel_size = 2\n') == {
        'smooth_fwhm': (6.0, 7.5), 'voxel_size': 2.0,
    }  # fmt: skip


def test_frozen_and_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.verbose = 1
    assert FULL.replace(verbose=1).verbose == 1


def test_run_ids_have_the_form_of_the_field_and_differ():
    first, second = new_run_uuid(), new_run_uuid()
    assert re.fullmatch(r'\d{8}-\d{6}_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', first)
    assert first != second
