# SPDX-License-Identifier: Apache-2.0
"""The command ``anatnet``: read the command line, check it, run the level, leave with a code."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app import __version__
from bids_app.cluster.batches import parse_batch
from bids_app.config import CRF_BY_DEFAULT, MODULES, OPTIONAL_MODULES, RunConfig, read_toml
from bids_app.environment import (
    default_nprocs,
    default_work_dir,
    limit_threads,
    prepare_environment,
)
from bids_app.errors import (
    AnatNetError,
    ModelError,
    NoInputError,
    SoftwareError,
    UsageError,
    storage_error,
)
from bids_app.group.options import check_group_options, resolve_level
from bids_app.interruption import MESSAGE, Interrupted, Interruption, leave
from bids_app.options import (
    DEBUG,
    DEEPNAT_PARITIES,
    DEVICE_PATTERN,
    DWI_DENOISE,
    DWI_MOTION,
    PRECISIONS,
    REFERENCE_CONTRASTS,
    REFERENCES,
    REGISTRATIONS,
    SEGMENTATIONS,
    build_parser,
    later,
    normalise,
)

if TYPE_CHECKING:
    from bids_app.bids.inputs import SessionRecord

LOGGER = logging.getLogger('anatnet')

# Without DeepNAT they have nothing to do.
_DEEPNAT_OPTIONS = (
    'deepnat_model', 'crf', 'deepnat_mirror', 'deepnat_parities', 'deepnat_tile',
)  # fmt: skip

# A configuration file describes a run, these belong to one call.
_NOT_FROM_FILE = ('run_uuid', 'command_line')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the name of the program, by default those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 a scan failed, 2 usage, 16 invalid BIDS, 66 no input, 70 a fault of
        the software, 130 and 143 interrupted by Ctrl-C and by SIGTERM.
    """
    if argv is not None:
        return _main(list(argv))
    code = _main(sys.argv[1:])
    if code in (130, 143):
        leave(code)
    return code


def _main(argv: list[str]) -> int:
    """Run the app and turn what is raised into a line and an exit code."""
    debug = False
    interruption = Interruption()
    try:
        with interruption:
            prepare_environment()
            if argv[:1] == ['slurm']:
                from bids_app.cluster.command import main as slurm

                return slurm(argv[1:])
            config = parse(argv)
            debug = 'traceback' in config.debug
            limit_threads(config.omp_nthreads)
            return _logged(config)
    except AnatNetError as error:
        if debug:
            raise
        print(f'anatnet: error: {error}', file=sys.stderr)
        return error.exit_code
    except (Interrupted, KeyboardInterrupt):
        print(MESSAGE, file=sys.stderr)
        return 128 + (interruption.number or signal.SIGINT)
    except BrokenPipeError:  # "anatnet --dry-run | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(argv: Sequence[str]) -> RunConfig:
    """Turn arguments, and the configuration file that they may name, into a configuration.

    Raises
    ------
    UsageError
        If something asked for cannot be; the message says how to ask for it.
    SystemExit
        After ``--help`` and ``--version``.
    """
    arguments = normalise(argv)
    has_file = any(a == '--config-file' or a.startswith('--config-file=') for a in arguments)
    parser = build_parser(positionals_needed=not has_file)
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    values: dict[str, Any] = {}
    if file := given.pop('config_file', None):
        values = _read_config_file(file)
    given = resolve_level(given, given.get('analysis_level', values.get('analysis_level')))
    values.update(_converted(given))
    values['command_line'] = (parser.prog, *argv)
    return _checked(values)


def run(config: RunConfig) -> int:
    """Do what a configuration asks for and return the exit code."""
    from bids_app.bids.check import check_description

    if config.analysis_level == 'group':
        from bids_app.group.run import run_group

        return _watched(config, lambda: run_group(config))
    if config.boilerplate_only:
        from bids_app.bids.dataset import check_output_dir

        check_output_dir(config.output_dir)
        _write_dataset_files(config)
        print(config.output_dir / 'logs' / 'CITATION.md')
        return 0
    if not config.skip_bids_validation:
        check_description(config.bids_dir)
    if 'vbm' in config.modules and not config.reports_only:
        _check_template_space(config)
    from bids_app.bids.inputs import collect_sessions
    from bids_app.bids.precomputed import add_precomputed

    records = add_precomputed(collect_sessions(config), config.derivatives)
    usable = [record for record in records if record.problem is None]
    if not records and config.batch:
        LOGGER.info('Nothing to do: batch %s has no participants', config.batch)
        return 0
    if config.dry_run:
        from bids_app.bids.overview import overview

        print(overview(records, config.bids_dir, config.segmentation), end='')
        return 0 if usable else NoInputError.exit_code
    if not usable:
        reasons = sorted({str(record.problem) for record in records})
        raise NoInputError(
            f'nothing to process in {config.bids_dir}: {"; ".join(reasons[:3])} '
            f'(sessions looked at: {len(records)}; --dry-run lists them)'
        )
    _watched(config, lambda: _prepare_output(config, usable))
    _announce(config, records)
    from bids_app.workflows.participant import run_participant

    return _watched(config, lambda: run_participant(config, records))


def _check_template_space(config: RunConfig) -> None:
    """Check that templates and atlases are there and can be read, before any scan is touched."""
    from bids_app.bids.spaces import atlas_space, output_spaces
    from bids_app.images.templates import template_files

    spaces = output_spaces(config.output_spaces, config.voxel_size)
    for space in spaces:
        template_files(space.space)
    if config.atlas:
        from bids_app.morphometry.regions import read_atlases

        for atlas in read_atlases(config.atlas):
            atlas_space(atlas.path, spaces)


def _logged(config: RunConfig) -> int:
    """Run with the logger of the app, and close its files."""
    from bids_app.logs import close_logging, setup_logging

    setup_logging(config.verbose)
    try:
        return run(config)
    finally:
        close_logging()


def _announce(config: RunConfig, records: list[SessionRecord]) -> None:
    """Say what will be done and what will not, and check the chosen input."""
    from bids_app.bids.check import check_scans, run_validator

    usable = [record for record in records if record.problem is None]
    LOGGER.info('AnatNet %s: %d of %d sessions to process from %s', __version__, len(usable),
                len(records), config.bids_dir)  # fmt: skip
    LOGGER.info('Output in %s, log in %s', config.output_dir, config.log_dir)
    for record in usable:
        if record.stand_in is not None:
            LOGGER.warning(
                '%s: there is no T1w: the %s stands in for it, so volumes are less exact',
                record.label, record.reference_name,
            )  # fmt: skip
        elif record.dwi_alone and not record.no_tensor:
            LOGGER.warning(
                '%s: there is no anatomical image: a T1w is synthesised from the diffusion '
                'images; its volumes are not those of a measured T1w', record.label,
            )  # fmt: skip
        elif record.dwi and record.no_tensor:
            LOGGER.warning(
                '%s: diffusion: %s: only the mean images are made', record.label, record.no_tensor
            )
    for record in usable if config.derivatives else ():
        if not record.precomputed:
            LOGGER.warning(
                '%s: --derivatives holds no brain mask and no tissue maps of it: ours are used',
                record.label,
            )
    if not config.skip_bids_validation:
        for line in check_scans(usable):
            LOGGER.warning('%s', line)
        run_validator(config.bids_dir, sorted({record.subject for record in usable}))


def _watched(config: RunConfig, level: Callable[[], Any]) -> Any:
    """Run a level; what nobody foresaw becomes one line, its traceback is logged."""
    try:
        return level()
    except (AnatNetError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, OSError) and (known := storage_error(error)) is not None:
            raise known from error
        LOGGER.exception('Unexpected error')
        raise SoftwareError(
            f'unexpected {type(error).__name__}: {error}; this is a fault of AnatNet, please '
            f'report it with {config.log_dir / "anatnet.log"}'
        ) from error


def _prepare_output(config: RunConfig, records: list[SessionRecord]) -> None:
    """Make the output a data set, open the log file and keep the configuration beside it."""
    from bids_app.bids.dataset import check_output_dir
    from bids_app.bids.files import atomic_write_text
    from bids_app.logs import add_log_file

    check_output_dir(config.output_dir)
    _write_dataset_files(config, records)
    everything = 'nipype' in config.debug
    add_log_file(config.log_dir / 'anatnet.log', 2 if everything else config.verbose)
    atomic_write_text(config.log_dir / 'config.toml', config.to_toml())


def _write_dataset_files(config: RunConfig, records: Sequence[SessionRecord] = ()) -> None:
    """Write the top-level files, with a methods text for what the run computes of sessions."""
    from bids_app.bids.dataset import write_dataset_files
    from bids_app.reports.methods import citation_bibtex, citation_markdown
    from bids_app.workflows.jobs import ModelsInUse
    from bids_app.workflows.wording import run_methods

    try:
        models = ModelsInUse.find(config).certain
    except ModelError:  # an error for who computes, not for who only wants the text
        models = []
    given = ['brain masks and tissue maps where there were any'] if config.derivatives else []
    references = dict.fromkeys(record.reference_name for record in records)
    contrasts = dict.fromkeys(scan.suffix for record in records for scan in record.contrasts)
    text = citation_markdown(
        run_methods(
            config,
            models,
            given,
            references=sorted(references, key=lambda name: name != 'T1w') or ['T1w'],
            contrasts=sorted(contrasts, reverse=True),
        )
    )
    write_dataset_files(config, methods=text, bibliography=citation_bibtex())


def _read_config_file(file: Path) -> dict[str, Any]:
    from bids_app.bids.files import read_text

    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f'cannot read the configuration {file}: {reason}') from None
    values = read_toml(text, str(file))
    if 'bids_filters' in values:
        from bids_app.bids.filters import check_filters

        values['bids_filters'] = check_filters(values['bids_filters'], str(file))
    return {name: value for name, value in values.items() if name not in _NOT_FROM_FILE}


def _converted(given: dict[str, Any]) -> dict[str, Any]:
    """Turn what argparse returns into the types of the configuration."""
    values = {name: value for name, value in given.items() if name != 'notrack'}
    for name in ('participant_label', 'session_label'):
        if name in values:
            values[name] = tuple(dict.fromkeys(chain.from_iterable(values[name])))
    for name in ('modules', 'debug', 'contrasts', 'output_spaces', 'atlas', 'classifier'):
        if name in values:
            values[name] = tuple(values[name])
    if 'smooth_fwhm' in values:
        widths = values['smooth_fwhm']
        values['smooth_fwhm'] = () if widths == [0.0] else tuple(widths)
    if 'derivatives' in values:
        values['derivatives'] = _named(values['derivatives'])
    if file := values.pop('bids_filter_file', None):
        from bids_app.bids.filters import read_filters

        values['bids_filters'] = read_filters(file)
    return values


def _named(folders: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Put the folders of ``--derivatives`` under their names."""
    named: dict[str, Path] = {}
    for name, path in folders:
        if name in named:
            raise UsageError(f'--derivatives gives two folders the name "{name}"; use NAME=PATH')
        named[name] = path
    return named


def _checked(values: dict[str, Any]) -> RunConfig:
    """Fill in what depends on the machine and check what can be checked without the data."""
    missing = [name for name in ('bids_dir', 'output_dir', 'analysis_level') if name not in values]
    if missing:
        raise UsageError(f'neither the command line nor the file gives {", ".join(missing)}')
    for name in ('bids_dir', 'output_dir', 'work_dir', 'bids_database_dir', 'models_dir',
                 'use_plugin'):  # fmt: skip
        if name in values:
            values[name] = Path(os.path.abspath(os.path.expanduser(values[name])))
    bids_dir, output_dir = values['bids_dir'], values['output_dir']
    _check_level(values)
    _check_choices(values)
    gone = not bids_dir.is_dir()
    if gone and values['analysis_level'] != 'group':  # which reads the derivatives
        raise UsageError(
            f'there is no folder {bids_dir}; in a container, check that it is mounted '
            '(-v/--bind HOST_FOLDER:CONTAINER_FOLDER:ro)'
        )
    if not gone and not os.access(bids_dir, os.R_OK | os.X_OK):
        raise UsageError(f'the folder {bids_dir} cannot be read; check its permissions')
    _check_output_place(bids_dir, output_dir)
    values.setdefault('work_dir', default_work_dir(bids_dir))
    if _inside(values['work_dir'], bids_dir):
        raise UsageError(
            f'the work folder {values["work_dir"]} lies inside the data set; '
            f'choose another, for instance -w {bids_dir.parent / "work"}'
        )
    if 'bids_database_dir' in values and _inside(values['bids_database_dir'], bids_dir):
        raise UsageError(
            f'the database folder {values["bids_database_dir"]} lies inside the data set, which '
            f'is only read; choose another, for instance {bids_dir.parent / "bids-database"}'
        )
    if 'use_plugin' in values and not values['use_plugin'].is_file():
        raise UsageError(f'there is no plugin file {values["use_plugin"]}')
    _check_vbm(values)
    _check_derivatives(values)
    values.setdefault('nprocs', default_nprocs())
    values.setdefault('omp_nthreads', min(values['nprocs'], 8))
    _check_classifiers(values)
    _check_tissue_model(values)
    _check_deepnat(values)
    _check_dwi(values)
    return RunConfig(**values)


def _check_level(values: dict[str, Any]) -> None:
    if values['analysis_level'] == 'group':
        check_group_options(values)
        return
    if values['analysis_level'] != 'participant':
        raise UsageError(f'there is no analysis level "{values["analysis_level"]}"')
    if values.get('subject_anatomical_reference') == 'unbiased':
        raise UsageError(later('--subject-anatomical-reference unbiased'))


def _check_choices(values: dict[str, Any]) -> None:
    """Check what argparse has checked on the command line but nobody in a configuration file."""
    values['debug'] = tuple(values.get('debug', ()))
    if 'all' in values['debug']:
        values['debug'] = DEBUG
    for name, choices in (
        ('precision', PRECISIONS),
        ('segmentation', SEGMENTATIONS),
        ('registration', REGISTRATIONS),
        ('subject_anatomical_reference', REFERENCES),
        ('reference', REFERENCE_CONTRASTS),
        ('dwi_motion', DWI_MOTION),
        ('dwi_denoise', DWI_DENOISE),
        ('debug', DEBUG),
    ):
        asked = values.get(name, ())
        for choice in (asked,) if isinstance(asked, str) else asked:
            if choice not in choices:
                raise UsageError(f'{name} cannot be "{choice}"; use one of {", ".join(choices)}')
    if values.get('batch') is not None:
        parse_batch(values['batch'])
    if not re.fullmatch(DEVICE_PATTERN, values.get('device', 'auto')):
        raise UsageError(
            f'device cannot be "{values["device"]}"; use auto, cpu, cuda, cuda:N or '
            'several as cuda:0,cuda:1'
        )
    for name in ('nprocs', 'omp_nthreads', 'gpu_slots', 'mem_gb'):
        if not 0 < values.get(name, 1) < math.inf:
            raise UsageError(f'{name} must be above 0, not {values[name]}')
    for name in ('participant_label', 'session_label'):
        for label in values.get(name) or ():
            if not re.fullmatch(r'[0-9a-zA-Z+]+', label):
                raise UsageError(f'{name}: {label!r} is not a label of letters and digits')


def _check_modules(asked: Sequence[str]) -> tuple[str, ...]:
    """Return the modules in the order in which they run, with those they need."""
    for module in asked:
        if module not in MODULES + OPTIONAL_MODULES:
            there = ', '.join(MODULES + OPTIONAL_MODULES)
            raise UsageError(f'there is no module "{module}"; there are {there}')
    needed = {'mask', *asked}
    if 'dwi' in asked:
        needed |= {'tissue', 'wholebrain'}
    if 'vbm' in asked:
        needed |= set(MODULES)
    return tuple(module for module in MODULES + OPTIONAL_MODULES if module in needed)


def _check_vbm(values: dict[str, Any]) -> None:
    """Check what is asked for in template space, as far as no file need be opened for it."""
    from bids_app.bids.spaces import absolute_atlas, check_voxel_size, output_spaces

    spaces = output_spaces(
        values.get('output_spaces', RunConfig.output_spaces),
        check_voxel_size(values.get('voxel_size', RunConfig.voxel_size)),
    )
    asked = values.get('modules')
    if asked is not None and 'vbm' in asked and not spaces:
        raise UsageError(
            'the module vbm needs a template: add one to --output-spaces, for instance '
            f'{RunConfig.output_spaces[0]}'
        )
    if asked is None:
        asked = [module for module in MODULES if module != 'vbm' or spaces]
    values['modules'] = _check_modules([*asked, *(['dwi'] if values.pop('dwi', False) else [])])
    for width in values.get('smooth_fwhm', ()):
        if not 0 < width <= 30:
            raise UsageError(f'smooth_fwhm must be above 0 and at most 30 mm, not {width:g}')
    values['smooth_fwhm'] = tuple(sorted(set(values.get('smooth_fwhm', RunConfig.smooth_fwhm))))
    if 'atlas' in values:
        values['atlas'] = tuple(absolute_atlas(text) for text in values['atlas'])


def _check_tissue_model(values: dict[str, Any]) -> None:
    """Check that a tissue model has something to do, and make a path of it absolute."""
    model = values.get('tissue_model', 'none')
    if values.get('correct_lesions') and model == 'none':
        raise UsageError(
            '--correct-lesions needs a tissue model that finds lesions: add --tissue-model auto'
        )
    if model != 'none' and 'tissue' not in values['modules']:
        raise UsageError('--tissue-model makes the tissue maps: add tissue to --modules')
    _make_absolute(values, 'tissue_model')


def _make_absolute(values: dict[str, Any], option: str) -> None:
    """Make a model that is given as a path, not by its name, an absolute path."""
    if os.sep in (model := values.get(option, '')):
        values[option] = os.path.abspath(os.path.expanduser(model))


def _check_deepnat(values: dict[str, Any]) -> None:
    """Check that DeepNAT has something to do, and make a path of its model absolute."""
    asked = values.get('segmentation', 'default') == 'deepnat'
    if asked and 'wholebrain' not in values['modules']:
        raise UsageError('--segmentation deepnat labels structures: add wholebrain to --modules')
    options = [
        f'--{name.replace("_", "-")}'
        for name in _DEEPNAT_OPTIONS
        if values.get(name, getattr(RunConfig, name)) != getattr(RunConfig, name)
    ]
    if options and not asked:
        what = ', '.join(options).replace('--crf', '--no-crf' if CRF_BY_DEFAULT else '--crf')
        raise UsageError(f'{what} needs --segmentation deepnat')
    if values.get('deepnat_parities', 2) not in DEEPNAT_PARITIES:
        raise UsageError(f'deepnat_parities is 1, 2 or 8, not {values["deepnat_parities"]}')
    if values.get('deepnat_tile', 0) < 0:
        raise UsageError(f'deepnat_tile is a number of voxels, not {values["deepnat_tile"]}')
    _make_absolute(values, 'deepnat_model')


def _check_dwi(values: dict[str, Any]) -> None:
    """Check the options of diffusion images, and make a path of the model absolute."""
    threshold = values.get('b0_threshold', RunConfig.b0_threshold)
    if not 0 <= threshold < 1000:
        raise UsageError(
            f'b0_threshold must be from 0 to below 1000 s/mm^2, not {threshold:g}; 50 is usual'
        )
    _make_absolute(values, 'synth_model')


def _check_classifiers(values: dict[str, Any]) -> None:
    """Check that classifiers can be used and that the run makes their maps."""
    if not values.get('classifier') or values['analysis_level'] != 'participant':
        return
    limit_threads(values['omp_nthreads'])  # what follows loads numpy
    from bids_app.bids.spaces import output_spaces
    from bids_app.inference.classifier_choice import choose_classifiers

    spaces = values.get('output_spaces', RunConfig.output_spaces)
    values['classifier'] = choose_classifiers(
        values['classifier'],
        values.get('models_dir'),
        modules=values['modules'],
        spaces=output_spaces(spaces, values.get('voxel_size', RunConfig.voxel_size)),
        smooth_fwhm=values['smooth_fwhm'],
    )


def _check_derivatives(values: dict[str, Any]) -> None:
    """Check the folders with results of other pipelines and their names."""
    folders = {
        name: Path(os.path.abspath(os.path.expanduser(folder)))
        for name, folder in values.get('derivatives', {}).items()
    }
    for name, folder in folders.items():
        if not re.fullmatch('[0-9a-zA-Z_-]+', name) or name == 'raw':
            raise UsageError(
                f'"{name}" cannot be the name of derivatives: use letters and digits, and not '
                f'"raw", for instance --derivatives other={folder}'
            )
        if not folder.is_dir():
            raise UsageError(f'--derivatives {name}: there is no folder {folder}')
        if folder.resolve() == values['output_dir'].resolve():
            raise UsageError(
                f'--derivatives {name} is the output folder {folder}; results cannot replace '
                'themselves, so write to another one'
            )
    values['derivatives'] = folders


def _check_output_place(bids_dir: Path, output_dir: Path) -> None:
    """Allow an output folder outside the data set or in a folder of its ``derivatives``."""
    suggestion = bids_dir / 'derivatives' / 'anatnet'
    if output_dir.resolve() == bids_dir.resolve():
        raise UsageError(
            f'output and input are the same folder; choose another, for instance {suggestion}'
        )
    if not _inside(output_dir, bids_dir):
        return
    parts = output_dir.resolve().relative_to(bids_dir.resolve()).parts
    if parts[0] != 'derivatives' or len(parts) < 2:
        raise UsageError(
            f'the output folder {output_dir} lies inside the data set; inside it, only a folder '
            f'of derivatives is allowed, for instance {suggestion}'
        )


def _inside(folder: Path, parent: Path) -> bool:
    return folder.resolve().is_relative_to(parent.resolve())
