# SPDX-License-Identifier: Apache-2.0
"""The command line, from arguments to exit codes; the workflow itself is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from bids_app import __version__, cli
from bids_app.config import RunConfig
from bids_app.errors import ImageError, UsageError
from bids_app.options import build_parser

T1W = 'sub-{0}/anat/sub-{0}_T1w.nii.gz'


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """Run in a folder of our own and leave the environment as it was."""
    saved = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def raw(make_bids) -> Path:
    return make_bids({T1W.format('01'): 'x', T1W.format('02'): 'x'})


@pytest.fixture
def workflow(monkeypatch):
    """Stand in for the participant workflow; keeps what it is called with."""
    calls = []
    module = types.ModuleType('bids_app.workflows.participant')

    def run_participant(config, records):
        calls.append((config, records))
        result = module.result
        if isinstance(result, BaseException):
            raise result
        return result

    module.result = 0
    module.run_participant = run_participant
    module.calls = calls
    monkeypatch.setitem(sys.modules, 'bids_app.workflows.participant', module)
    return module


def parse(raw: Path, *options: str) -> RunConfig:
    return cli.parse([str(raw), 'out', 'participant', *options])


# Parsing


def test_defaults(raw, tmp_path):
    config = parse(raw)
    assert config.bids_dir == raw
    assert config.output_dir == tmp_path / 'out'
    assert config.work_dir == tmp_path / 'work'
    assert config.modules == ('mask', 'tissue', 'wholebrain', 'vbm')
    assert config.output_spaces == ('MNI152NLin2009aSym',)
    assert config.registration == 'refined'
    assert (config.voxel_size, config.smooth_fwhm, config.atlas) == (1.5, (6.0, 8.0), ())
    assert config.participant_label is None
    assert config.subject_anatomical_reference == 'sessionwise'
    assert config.device == 'auto'
    assert config.random_seed == 0
    assert 1 <= config.omp_nthreads <= config.nprocs
    assert not config.overwrite


def long_options() -> list[str]:
    parser = build_parser()
    return sorted({s for a in parser._actions for s in a.option_strings if s.startswith('--')})


VALUES = {
    '--participant-label': '01', '--session-label': 'a', '--modules': 'mask', '--model': 'brain',
    '--subject-anatomical-reference': 'first-lex', '--device': 'cpu', '--precision': 'float32',
    '--random-seed': '1', '--nprocs': '2', '--nthreads': '2', '--n-cpus': '2',
    '--omp-nthreads': '2', '--mem-gb': '4', '--mem': '4G', '--mem-mb': '4000',
    '--gpu-slots': '2', '--debug': 'workdir', '--work-dir': 'w', '--models-dir': 'm',
    '--bids-database-dir': 'd', '--registration': 'ants', '--output-spaces': 'MNI305:res-2',
    '--reference': 'T1w', '--tissue-model': 'none', '--segmentation': 'deepnat',
    '--voxel-size': '2', '--smooth-fwhm': '8', '--atlas': 'a.nii', '--derivatives': 'x=raw',
    '--batch': '1/2', '--synth-model': 'none', '--b0-threshold': '10', '--dwi-motion': 'rigid',
    '--dwi-denoise': 'none',
}  # fmt: skip
GROUP = {
    '--contrast', '--map', '--n-permutations', '--no-tfce', '--mask-threshold',
    '--repeated-sessions', '--classify', '--force',
}  # fmt: skip
WITH_FILE = {
    '--classifier',
    '--bids-filter-file',
    '--use-plugin',
    '--nipype-plugin-file',
    '--config-file',
}
WITH_ANOTHER = {
    '--correct-lesions', '--crf', '--no-crf', '--deepnat-mirror', '--deepnat-model',
    '--deepnat-parities', '--deepnat-tile',
}  # fmt: skip
LATER = {'--resource-monitor', '--write-graph', '--lesion-mask'}


@pytest.mark.parametrize(
    'option',
    [
        option
        for option in long_options()
        if option not in {'--help', '--version'} | LATER | WITH_FILE | WITH_ANOTHER | GROUP
    ],
)
def test_both_spellings_mean_the_same(raw, option):
    value = [VALUES[option]] if option in VALUES else []
    words = option[2:]
    dashes = parse(raw, '--' + words, *value)
    underscores = parse(raw, '--' + words.replace('-', '_'), *value)
    same = {'run_uuid': 'x', 'command_line': ()}
    assert dashes.replace(**same) == underscores.replace(**same)


@pytest.mark.parametrize('option', sorted(LATER))
def test_options_of_later_releases_say_so(raw, option):
    with pytest.raises(UsageError, match='later release'):
        parse(raw, option.replace('-', '_').replace('__', '--'), 'x')


@pytest.mark.parametrize(
    'options',
    [
        ('--subject-anatomical-reference', 'unbiased'),
    ],
)  # fmt: skip
def test_values_of_later_releases_say_so(raw, options):
    with pytest.raises(UsageError, match='later release'):
        parse(raw, *options)


def test_model_is_a_formula_at_the_group_level(raw):
    options = ['--model', '~ age', '--contrast', 'age', 'b - a']
    config = cli.parse([str(raw), 'out', 'group', *options])
    assert (config.formula, config.model) == ('~ age', 'brain')
    assert config.contrasts == ('age', 'b - a')
    with pytest.raises(UsageError, match='has no ~'):
        cli.parse([str(raw), 'out', 'group', '--model', 'brain'])


@pytest.mark.parametrize(
    'options',
    [('--model', '~ age'), ('--contrast', 'age'), ('--classify', 'sex'), ('--force',),
     ('--map', 'wm'), ('--n-permutations', '5')],
)  # fmt: skip
def test_options_of_the_group_level_are_errors_at_the_other(raw, options):
    with pytest.raises(UsageError, match='belongs to the group level'):
        parse(raw, *options)


def test_group_level_needs_no_raw_data(raw):
    config = cli.parse([str(raw / 'gone'), str(raw.parent / 'out'), 'group'])
    assert config.analysis_level == 'group'
    with pytest.raises(UsageError, match='there is no folder'):
        parse(raw / 'gone')


@pytest.mark.parametrize(
    'options', [('--contrast', 'age'), ('--map', 'bone'), ('--map', 'gm:wide'),
                ('--n-permutations', '-1')],
)  # fmt: skip
def test_group_options_are_checked(raw, options):
    with pytest.raises(UsageError):
        cli.parse([str(raw), 'out', 'group', *options])


def test_labels_lose_prefixes_and_duplicates(raw):
    config = parse(raw, '--participant-label', 'sub-02', '01', '02', '--session-label', 'ses-a,b')
    assert config.participant_label == ('02', '01')
    assert config.session_label == ('a', 'b')


@pytest.mark.parametrize(
    ('options', 'memory'),
    [
        (('--mem-gb', '8'), 8.0),
        (('--mem', '8000'), 8.0),
        (('--mem-mb', '8000'), 8.0),
        (('--mem', '8G'), 8.0),
        (('--mem', '8GB'), 8.0),
        (('--mem-gb', '500M'), 0.5),
    ],
)
def test_memory_has_units(raw, options, memory):
    assert parse(raw, *options).mem_gb == pytest.approx(memory)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--modules', 'spine'), 'no module "spine"'),
        (('--modules', 'classify'), 'no module "classify"'),
        (('--classifier', './missing'), 'missing has no card.json'),
        (('--classifier', 'missing'), "no model 'missing'"),
        (('--classifier', 'brain'), 'not a classifier'),
        (('--device', 'gpu'), 'cuda:N'),
        (('--nprocs', '0'), 'above 0'),
        (('--mem', 'much'), 'amount of memory'),
        (('--participant-label', 'a_b'), 'not a label'),
        (('--colour',), '--colour'),
        (('--overwrite', '--resume'), 'not allowed'),
        (('--use-plugin', 'missing.yml'), 'no plugin file'),
        (('--bids-filter-file', 'missing.json'), 'cannot read the filter file'),
        (('--config-file', 'missing.toml'), 'cannot read the configuration'),
        (('--precision', 'int8'), 'float32'),
        (('--registration', 'flirt'), 'refined'),
        (('--output-spaces', 'MNI305:res-x'), 'res-x is not a voxel size'),
        (('--output-spaces', 'MNI305:hemi-L'), 'only :res-SIZE and :cohort-LABEL'),
        (('--output-spaces', 'MNI 305'), 'not the name of an output space'),
        (('--output-spaces', 'MNI305:res-9'), '0.5 to 4 mm, not 9'),
        (('--output-spaces', 'T1w', '--modules', 'vbm'), 'needs a template'),
        (('--voxel-size', '0.2'), '0.5 to 4 mm, not 0.2'),
        (('--smooth-fwhm', 'wide'), 'not a width in mm'),
        (('--smooth-fwhm', '-1'), 'must be above 0'),
        (('--smooth-fwhm', '6', '90'), 'at most 30 mm, not 90'),
        (('-d', 'x=missing'), 'there is no folder'),
        (('-d', 'raw=raw'), 'cannot be the name'),
        (('-d', 'a=raw', 'a=raw'), 'two folders the name "a"'),
    ],
)
def test_usage_errors(raw, options, message):
    with pytest.raises(UsageError, match=message):
        parse(raw, *options)


def test_mask_is_always_computed(raw):
    assert parse(raw, '--modules', 'wholebrain').modules == ('mask', 'wholebrain')


def test_vbm_needs_what_it_is_made_from(raw):
    assert parse(raw, '--modules', 'vbm').modules == ('mask', 'tissue', 'wholebrain', 'vbm')


@pytest.mark.parametrize('space', ['T1w', 'anat', 'native'])
def test_without_a_template_nothing_is_registered(raw, space):
    config = parse(raw, '--output-spaces', space)
    assert config.modules == ('mask', 'tissue', 'wholebrain')


@pytest.mark.parametrize(
    ('given', 'widths'),
    [(['none'], ()), (['0'], ()), (['8', '6', '8'], (6.0, 8.0)), (['7.5'], (7.5,))],
)
def test_widths_of_kernels(raw, given, widths):
    assert parse(raw, '--smooth-fwhm', *given).smooth_fwhm == widths


def test_folders_of_other_pipelines_have_names(raw, tmp_path):
    for name in ('fmri_prep', 'b'):
        (tmp_path / name).mkdir()
    config = parse(raw, '-d', 'fmri_prep', '--derivatives', f'masks={tmp_path / "b"}')
    assert config.derivatives == {'fmriprep': tmp_path / 'fmri_prep', 'masks': tmp_path / 'b'}


def test_output_cannot_replace_itself(raw, tmp_path):
    (tmp_path / 'out').mkdir()
    with pytest.raises(UsageError, match='cannot replace'):
        cli.parse([str(raw), 'out', 'participant', '-d', 'own=out'])


def write_classifier(folder: Path, name: str = 'sexlinear', **changes) -> Path:
    """Write a model folder whose networks are never built."""
    from bids_app.images.templates import target_grid
    from bids_app.inference.classifier import InputGrid

    shape, affine = target_grid(1.5)
    grid = InputGrid(
        'vbm_gm', 'MNI152NLin2009aSym', '1p5', 6.0, shape, tuple(map(tuple, affine.tolist())),
        (2, 2, 2), ((0, 40), (0, 50), (0, 40)),
    )  # fmt: skip
    weights = b'weights'
    card = {
        'name': name, 'version': '1', 'description': '', 'licence': '', 'classes': ['F', 'M'],
        'sha256': hashlib.sha256(weights).hexdigest(), 'stages': {}, 'target': {'column': 'sex'},
        'input': {**grid.as_card(), **changes},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'card.json').write_text(json.dumps(card))
    (folder / 'weights.safetensors').write_bytes(weights)
    return folder


def test_classifiers_are_folders_or_names(raw, tmp_path):
    folder = write_classifier(tmp_path / 'models' / 'sexlinear')
    for options in (
        ['models/sexlinear'], [str(folder)], ['sexlinear', '--models-dir', 'models'],
        ['models/sexlinear', '--classifier', str(folder)],
    ):  # fmt: skip
        config = parse(raw, '--classifier', *options)
        assert config.classifier == (str(folder),)
    assert RunConfig.from_toml(config.to_toml()) == config


@pytest.mark.parametrize(
    ('changes', 'options', 'message'),
    [
        ({}, ['--modules', 'tissue'], 'needs the module vbm'),
        ({}, ['--output-spaces', 'T1w'], 'add it to --modules, and the template MNI152NLin2009aS'),
        ({}, ['--smooth-fwhm', '8'], 'does not make: add 6 to --smooth-fwhm$'),
        ({}, ['--voxel-size', '2'], 'add MNI152NLin2009aSym:res-1p5 to --output-spaces$'),
        ({'space': 'MNIPediatricAsym+3', 'fwhm': 4.0}, [],
         'add MNIPediatricAsym:cohort-3:res-1p5 to --output-spaces and add 4 to --smooth-fwhm$'),
        ({'shape': [100, 140, 100]}, [], 'another field of view'),
        ({'kind': ''}, [], 'does not say which maps'),
        ({'factor': None}, [], 'not a classifier'),
    ],
)  # fmt: skip
def test_a_classifier_needs_its_map(raw, tmp_path, changes, options, message):
    write_classifier(tmp_path / 'c', **changes)
    with pytest.raises(UsageError, match=message) as caught:
        parse(raw, '--classifier', './c', *options)
    assert '\n' not in str(caught.value)


def test_unsmoothed_maps_need_no_kernel(raw, tmp_path):
    folder = write_classifier(tmp_path / 'c', fwhm=0)
    assert parse(raw, '--classifier', './c', '--smooth-fwhm', '0').classifier == (str(folder),)


def test_classifiers_that_are_not_whole_or_not_apart(raw, tmp_path):
    folder = write_classifier(tmp_path / 'a')
    write_classifier(tmp_path / 'b')
    with pytest.raises(UsageError, match='the same name "sexlinear"'):
        parse(raw, '--classifier', './a', './b')
    write_classifier(tmp_path / 'b', name='sex_linear')
    with pytest.raises(UsageError, match='cannot be part of a file name'):
        parse(raw, '--classifier', './b')
    (folder / 'weights.safetensors').write_bytes(b'others')
    with pytest.raises(UsageError, match='SHA-256 differs'):
        parse(raw, '--classifier', './a')
    (folder / 'weights.safetensors').unlink()
    with pytest.raises(UsageError, match='a has no weights.safetensors'):
        parse(raw, '--classifier', './a')


def test_classifiers_are_applied_at_the_participant_level(raw):
    with pytest.raises(UsageError, match='belongs to the participant level'):
        cli.parse([str(raw), 'out', 'group', '--classifier', 'x'])


def test_atlases_are_found_from_any_folder(raw, tmp_path):
    config = parse(raw, '--atlas', 'a.nii.gz:b.tsv', '--atlas', 'c.nii')
    assert config.atlas == (f'{tmp_path}/a.nii.gz:{tmp_path}/b.tsv', f'{tmp_path}/c.nii')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--output-spaces', 'MNI152NLin6Asym'), 'templateflow'),
        (('--atlas', 'missing.nii.gz'), 'missing.nii.gz'),
        (('--atlas', 'atlas.txt'), 'atlas.txt'),
        (('--atlas', 'tpl-MNI305_atlas-x.nii'), 'not among --output-spaces'),
    ],
)
def test_templates_and_atlases_are_checked_before_any_scan(
    raw, tmp_path, workflow, capsys, monkeypatch, options, message
):
    import nibabel as nib
    import numpy as np

    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'nowhere'))
    image = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4))
    nib.save(image, tmp_path / 'tpl-MNI305_atlas-x.nii')
    assert cli.main([str(raw), 'out', 'participant', *options]) == 2
    assert message in capsys.readouterr().err
    assert workflow.calls == []
    assert not (tmp_path / 'out').exists()


def test_dry_run_shows_what_other_pipelines_have(raw, tmp_path, workflow, capsys):
    mask = tmp_path / 'prep/sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b'x')
    options = ('--dry-run', '-d', 'other=prep')
    assert cli.main([str(raw), 'out', 'participant', *options]) == 0
    text = capsys.readouterr().out
    assert str(mask) in text
    assert 'of other, instead of ours' in text


# Folders


def test_missing_input_hints_at_mounts(tmp_path):
    with pytest.raises(UsageError, match='mounted'):
        parse(tmp_path / 'missing')


@pytest.mark.parametrize('output', ['', 'results', 'sub-01', 'derivatives'])
def test_output_inside_the_input_suggests_derivatives(raw, output):
    with pytest.raises(UsageError, match=f'{raw}/derivatives/anatnet'):
        cli.parse([str(raw), str(raw / output), 'participant'])


def test_output_through_a_link_is_seen(raw, tmp_path):
    (tmp_path / 'link').symlink_to(raw)
    with pytest.raises(UsageError, match='same folder'):
        cli.parse([str(raw), str(tmp_path / 'link'), 'participant'])


def test_output_in_derivatives_is_allowed(raw):
    output = raw / 'derivatives' / 'anatnet'
    assert cli.parse([str(raw), str(output), 'participant']).output_dir == output


def test_work_folder_inside_the_input(raw):
    with pytest.raises(UsageError, match='choose another, for instance -w'):
        parse(raw, '-w', str(raw / 'work'))


def test_database_inside_the_input(raw):
    with pytest.raises(UsageError, match='only read'):
        parse(raw, '--bids-database-dir', str(raw / 'db'))


# Configuration file


def test_config_file_alone_repeats_a_run(raw, tmp_path):
    first = parse(raw, '--participant-label', '01', '--mem-gb', '4', '--modules', 'tissue')
    (tmp_path / 'config.toml').write_text(first.to_toml())
    again = cli.parse(['--config-file', 'config.toml'])
    same = {'run_uuid': 'x', 'command_line': ()}
    assert again.replace(**same) == first.replace(**same)
    assert again.run_uuid != first.run_uuid


def test_diffusion_is_asked_for(raw):
    everything = ('mask', 'tissue', 'wholebrain', 'vbm')
    assert parse(raw).modules == everything
    assert parse(raw, '--dwi').modules == (*everything, 'dwi')
    assert parse(raw, '--modules', 'dwi').modules == ('mask', 'tissue', 'wholebrain', 'dwi')
    assert parse(raw, '--modules', 'mask', '--dwi').modules == (
        'mask', 'tissue', 'wholebrain', 'dwi'
    )  # fmt: skip
    config = parse(raw, '--dwi', '--synth-model', './nets/mine', '--b0-threshold', '100')
    assert config.synth_model == os.path.abspath('nets/mine')
    assert config.b0_threshold == 100
    with pytest.raises(UsageError, match='b0_threshold must be'):
        parse(raw, '--b0-threshold', '-1')


def test_command_line_wins_over_the_file(raw, tmp_path):
    (tmp_path / 'c.toml').write_text('nprocs = 3\nmem_gb = 2\nmodules = ["mask"]\n')
    config = parse(raw, '--config_file=c.toml', '--nprocs', '1')
    assert (config.nprocs, config.mem_gb, config.modules) == (1, 2.0, ('mask',))


def test_values_of_the_file_are_checked(raw, tmp_path):
    (tmp_path / 'c.toml').write_text('modules = ["synth"]\n')
    with pytest.raises(UsageError, match='no module "synth"; there are mask, .*, vbm, dwi'):
        parse(raw, '--config-file', 'c.toml')
    (tmp_path / 'c.toml').write_text('nprocs = 1\n')
    with pytest.raises(UsageError, match='bids_dir, output_dir, analysis_level'):
        cli.parse(['--config-file', 'c.toml'])


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('precision = "half"', 'precision cannot be "half"; use one of auto, float32'),
        ('device = "gpu"', 'device cannot be "gpu"'),
        ('debug = ["everything"]', 'debug cannot be "everything"'),
        ('subject_anatomical_reference = "mean"', 'cannot be "mean"; use one of sessionwise'),
        ('nprocs = 0', 'nprocs must be above 0, not 0'),
        ('mem_gb = -1.5', 'mem_gb must be above 0, not -1.5'),
        ('mem_gb = nan', 'mem_gb must be above 0, not nan'),
        ('mem_gb = inf', 'mem_gb must be above 0, not inf'),
        ('participant_label = ["../../etc"]', "'../../etc' is not a label"),
        ('session_label = ["a b"]', "'a b' is not a label"),
        ('bids_filters = {t1w = {run = {a = 1}}}', '"run" of t1w'),
    ],
)
def test_the_file_may_ask_for_no_more_than_the_command_line(raw, line, message):
    Path('c.toml').write_text(line + '\n')
    with pytest.raises(UsageError, match=message):
        parse(raw, '--config-file', 'c.toml')


def test_debug_all_is_each_of_them(raw):
    assert (
        parse(raw, '--debug', 'all').debug
        == parse(raw, '--debug', 'workdir', 'nipype', 'traceback').debug
    )
    Path('c.toml').write_text('debug = ["all"]\n')
    assert 'workdir' in parse(raw, '--config-file', 'c.toml').debug


# Running


def test_success(raw, tmp_path, workflow):
    assert cli.main([str(raw), 'out', 'participant', '--skip_bids_validation']) == 0
    ((config, records),) = workflow.calls
    assert [r.label for r in records] == ['sub-01', 'sub-02']
    assert (tmp_path / 'out/dataset_description.json').exists()
    assert (tmp_path / 'out/logs/CITATION.md').exists()
    logs = tmp_path / 'out/logs' / config.run_uuid
    assert RunConfig.from_toml((logs / 'config.toml').read_text()) == config
    assert '2 of 2 sessions' in (logs / 'anatnet.log').read_text()
    assert config.command_line[0] == 'anatnet'


@pytest.mark.parametrize(
    ('result', 'code', 'message'),
    [
        (1, 1, ''),
        (ImageError('bad scan'), 1, 'anatnet: error: bad scan'),
        (ValueError('surprise'), 70, 'unexpected ValueError: surprise'),
        (KeyboardInterrupt(), 130, 'interrupted'),
    ],
)
def test_failures_of_the_workflow(raw, workflow, capsys, result, code, message):
    workflow.result = result
    assert cli.main([str(raw), 'out', 'participant', '--skip-bids-validation']) == code
    assert message in capsys.readouterr().err


def test_usage_error_is_one_line_and_2(raw, capsys):
    assert cli.main([str(raw), 'out', 'participant', '--colour']) == 2
    error = capsys.readouterr().err
    assert error.startswith('anatnet: error: ')
    assert error.count('\n') == 1


def test_missing_description_is_16_unless_not_asked(raw, workflow, capsys):
    (raw / 'dataset_description.json').unlink()
    assert cli.main([str(raw), 'out', 'participant']) == 16
    assert 'dataset_description.json' in capsys.readouterr().err
    assert cli.main([str(raw), 'out', 'participant', '--skip-bids-validation']) == 0


@pytest.mark.parametrize(
    'options',
    [('--participant-label', '9'), ('--session-label', 'x'), ('--bids-filter-file', 'f')],
)
def test_nothing_matches_is_66(raw, tmp_path, workflow, options):
    (tmp_path / 'f').write_text(json.dumps({'t1w': {'acquisition': 'x'}}))
    assert cli.main([str(raw), 'out', 'participant', *options]) == 66
    assert workflow.calls == []
    assert not (tmp_path / 'out').exists()


def test_dry_run_writes_nothing(raw, tmp_path, workflow, capsys):
    assert cli.main([str(raw), 'out', 'participant', '--dry-run']) == 0
    assert 'sub-02_T1w.nii.gz' in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ['raw']
    assert workflow.calls == []


def test_dry_run_without_any_t1w_is_66(make_bids, capsys):
    root = make_bids(['sub-01/anat/sub-01_chunk-1_T1w.nii.gz'])
    assert cli.main([str(root), 'out', 'participant', '--dry-run']) == 66
    assert 'chunk-1' in capsys.readouterr().out


def test_boilerplate_needs_neither_scan_nor_model(make_bids, tmp_path, workflow, capsys):
    arguments = [str(make_bids([])), 'out', 'participant', '--boilerplate-only']
    assert cli.main([*arguments, '--models-dir', 'missing']) == 0
    citation = tmp_path / 'out/logs/CITATION.md'
    assert capsys.readouterr().out.strip() == str(citation)
    assert 'AnatNet' in citation.read_text()
    assert '@article{' in citation.with_suffix('.bib').read_text()
    assert workflow.calls == []


def test_output_that_is_a_file(raw, tmp_path, workflow, capsys):
    (tmp_path / 'out').touch()
    assert cli.main([str(raw), 'out', 'participant']) == 1
    assert 'cannot write to the output folder' in capsys.readouterr().err


def test_input_is_only_read(raw, workflow):
    before = {p: p.stat().st_mtime_ns for p in (raw, *raw.rglob('*'))}
    folders = [p for p in before if p.is_dir()]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert cli.main([str(raw), 'out', 'participant']) == 0
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    assert {p: p.stat().st_mtime_ns for p in (raw, *raw.rglob('*'))} == before


@pytest.mark.parametrize('option', ['--help', '--version'])
def test_help_and_version_are_fast(project_dir, option):
    started = time.monotonic()
    finished = subprocess.run(
        [sys.executable, str(project_dir / 'run.py'), option],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert time.monotonic() - started < 3  # half a second on an idle machine
    assert __version__ in finished.stdout or 'participant' in finished.stdout


def test_nothing_heavy_is_loaded_for_the_help(project_dir):
    code = (
        'import sys; from bids_app.options import build_parser; import bids_app.cli;'
        'build_parser().format_help();'
        'heavy = {"torch", "numpy", "nibabel", "nipype", "bids", "ants", "matplotlib", "scipy"};'
        'sys.exit(", ".join(heavy & set(sys.modules)))'
    )
    finished = subprocess.run(
        [sys.executable, '-c', code], cwd=project_dir, capture_output=True, text=True, check=False
    )
    assert finished.stderr.strip() == ''


def test_every_option_is_explained():
    parser = build_parser()
    assert all(action.help for action in parser._actions)
    text = parser.format_help()
    for option in set(long_options()) - LATER:
        assert option in text
