# SPDX-License-Identifier: Apache-2.0
"""Everything that a run depends on, in one frozen dataclass.

The command line makes a :class:`RunConfig`, every later step receives it, nothing changes it.
It is written to and read from TOML, so that a run can be repeated from its own log folder.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_app.errors import UsageError

MODULES = ('mask', 'tissue', 'wholebrain', 'vbm')
"""What the participant level computes by default; a later module needs the ones before it."""

OPTIONAL_MODULES = ('dwi',)
"""What it computes where it is asked for, and ``dwi`` also where there is nothing else."""


CRF_BY_DEFAULT = True
"""Whether DeepNAT's conditional random field is used where nothing is said of it."""


def new_run_uuid() -> str:
    """Return a run id as the field writes it, ``YYYYmmdd-HHMMSS_<uuid4>``."""
    return f'{datetime.now().strftime("%Y%m%d-%H%M%S")}_{uuid.uuid4()}'


def brief_command_line(command_line: Sequence[str], most: int = 100) -> tuple[str, ...]:
    """Return a command line without most of the thousands of labels that it may hold.

    Examples
    --------
    >>> brief_command_line(['anatnet', 'in', 'out', '1', '2', '3', '4', '-v'], 6)
    ('anatnet', 'in', 'out', '1', '[3 more]', '-v')
    """
    if len(command_line) <= most:
        return tuple(command_line)
    last = most // 6
    first = most - 1 - last
    more = len(command_line) - first - last
    return (*command_line[:first], f'[{more} more]', *command_line[-last:])


@dataclass(frozen=True)
class RunConfig:
    """One run of the app.

    Labels are without their ``sub-`` and ``ses-`` prefixes; ``None`` means all of them.
    ``batch`` is ``i/n``, a part of the participants (:mod:`bids_app.cluster.batches`).
    ``mem_gb`` is in gigabytes, ``None`` leaves the limit to the machine.
    ``smooth_fwhm`` and ``voxel_size`` are in millimetres. ``derivatives`` are folders of other
    pipelines by the names they get here, ``atlas`` holds files in template space, each with its
    table of labels after a colon. ``classifier`` holds the folders of trained classifiers.
    ``bids_filters`` is kept as the JSON file wrote it (``None`` and ``'*'`` stand for pybids'
    ``Query.NONE`` and ``Query.ANY``), so that it can be written to TOML again.
    ``model`` is the segmentation model, ``formula`` the design of the group level; the command
    line calls both ``--model``. ``tissue_model`` is ``none``, ``auto``, or a name or folder,
    ``synth_model`` likewise without ``auto``. ``segmentation`` is what labels the structures,
    ``default`` or ``deepnat``; ``deepnat_model`` is its second network, name or folder,
    ``deepnat_tile`` is in voxels, 0 for the choice of the app. ``b0_threshold`` is in s/mm^2.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = 'participant'

    participant_label: tuple[str, ...] | None = None
    session_label: tuple[str, ...] | None = None
    batch: str | None = None
    bids_filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    derivatives: dict[str, Path] = field(default_factory=dict)
    subject_anatomical_reference: str = 'sessionwise'
    reference: str = 'auto'

    modules: tuple[str, ...] = MODULES
    model: str = 'brain'
    segmentation: str = 'default'
    deepnat_model: str = 'deepnat-structures-miccai2012'
    crf: bool = CRF_BY_DEFAULT
    deepnat_mirror: bool = False
    deepnat_parities: int = 2
    deepnat_tile: int = 0
    tissue_model: str = 'none'
    correct_lesions: bool = False
    models_dir: Path | None = None
    device: str = 'auto'
    precision: str = 'auto'
    random_seed: int = 0
    sloppy: bool = False

    registration: str = 'refined'
    output_spaces: tuple[str, ...] = ('MNI152NLin2009aSym',)
    voxel_size: float = 1.5
    smooth_fwhm: tuple[float, ...] = (6.0, 8.0)
    atlas: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()

    synth_model: str = 'deepanat'
    synth_1mm: bool = False
    synth_as_preproc: bool = False
    b0_threshold: float = 50.0
    dwi_motion: str = 'none'
    dwi_denoise: str = 'none'

    work_dir: Path = Path('work')
    clean_workdir: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float | None = None
    low_mem: bool = False
    gpu_slots: int = 1
    use_plugin: Path | None = None
    stop_on_first_crash: bool = False

    boilerplate_only: bool = False
    reports_only: bool = False
    dry_run: bool = False
    overwrite: bool = False
    skip_failed: bool = False

    formula: str | None = None
    contrasts: tuple[str, ...] = ()
    group_map: str = 'gm'
    n_permutations: int = 1000
    mask_threshold: float = 0.1
    tfce: bool = True
    repeated_sessions: str = 'error'
    classify: str | None = None
    force: bool = False

    debug: tuple[str, ...] = ()
    verbose: int = 0
    run_uuid: str = field(default_factory=new_run_uuid)
    command_line: tuple[str, ...] = ()

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def log_dir(self) -> Path:
        """Folder of this run's log and configuration in the output."""
        return self.output_dir / 'logs' / self.run_uuid

    def to_toml(self) -> str:
        """Write the configuration as TOML text, one table per group of options.

        TOML has no null: a field that is ``None`` is left out. The BIDS filters may hold null
        inside and are therefore kept as one string of JSON.
        """
        import tomli_w

        tables: dict[str, dict[str, Any]] = {}
        for table, names in _TABLES.items():
            tables[table] = {}
            for name in names:
                value = getattr(self, name)
                if name == 'bids_filters':
                    value = json.dumps(value, sort_keys=True) if value else None
                if value is not None:
                    tables[table][name] = _plain(value)
        return tomli_w.dumps(tables)

    @classmethod
    def from_toml(cls, text: str, **overrides: Any) -> RunConfig:
        """Make a configuration from TOML text; ``overrides`` win over what the text says.

        Raises
        ------
        UsageError
            If the text is not TOML, names an unknown option, or gives one a value of another
            type.
        """
        values = read_toml(text)
        values.update(overrides)
        missing = [name for name in ('bids_dir', 'output_dir') if name not in values]
        if missing:
            raise UsageError(f'the configuration does not say {" and ".join(missing)}')
        return cls(**values)


def read_toml(text: str, source: str = 'configuration') -> dict[str, Any]:
    """Read TOML text into values for the fields of :class:`RunConfig`.

    Options may stand in any table or in none. ``analysis_level`` and the like come back in the
    type of their field (paths, tuples).

    Raises
    ------
    UsageError
        As for :meth:`RunConfig.from_toml`.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f'{source} is not valid TOML: {error}') from None
    except RecursionError:
        raise UsageError(f'{source} is not valid TOML: it is nested too deeply') from None
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if name in _TABLES and isinstance(value, dict):
            flat.update(value)
        else:
            flat[name] = value
    return {
        name.replace('-', '_'): _typed(name.replace('-', '_'), value, source)
        for name, value in flat.items()
    }


_TABLES: dict[str, tuple[str, ...]] = {
    'execution': (
        'bids_dir', 'output_dir', 'analysis_level', 'participant_label', 'session_label',
        'batch', 'bids_filters', 'bids_database_dir', 'skip_bids_validation', 'derivatives',
        'work_dir', 'clean_workdir', 'boilerplate_only', 'reports_only', 'dry_run', 'overwrite',
        'skip_failed', 'debug', 'verbose', 'run_uuid', 'command_line',
    ),
    'workflow': (
        'subject_anatomical_reference', 'reference', 'modules', 'model', 'segmentation',
        'deepnat_model', 'crf', 'deepnat_mirror', 'deepnat_parities', 'deepnat_tile',
        'tissue_model',
        'correct_lesions', 'models_dir', 'device', 'precision', 'random_seed', 'sloppy',
        'registration', 'output_spaces', 'voxel_size', 'smooth_fwhm', 'atlas', 'classifier',
        'synth_model', 'synth_1mm', 'synth_as_preproc', 'b0_threshold', 'dwi_motion',
        'dwi_denoise',
    ),
    'nipype': (
        'nprocs', 'omp_nthreads', 'mem_gb', 'low_mem', 'gpu_slots', 'use_plugin',
        'stop_on_first_crash',
    ),
    'group': (
        'formula', 'contrasts', 'group_map', 'n_permutations', 'mask_threshold', 'tfce',
        'repeated_sessions', 'classify', 'force',
    ),
}  # fmt: skip

_FIELDS = {f.name: str(f.type) for f in dataclasses.fields(RunConfig)}


def _plain(value: Any) -> Any:
    """Turn paths and tuples into what TOML can hold."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(name: str, value: Any, source: str) -> Any:
    """Turn a TOML value into the type of its field."""
    kind = _FIELDS.get(name)
    if kind is None:
        raise UsageError(f'{source} has an unknown option "{name}"')
    kind = kind.removesuffix(' | None')
    wrong = UsageError(f'{source} gives "{name}" the value {value!r}, which is not a {kind}')
    if name == 'bids_filters':
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise wrong from None
        if not isinstance(value, dict):
            raise wrong
        return value
    if kind.startswith('dict'):
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise wrong
        return {key: Path(item) for key, item in value.items()}
    if kind.startswith('tuple'):
        items = (int, float) if 'float' in kind else (str,)
        if not isinstance(value, list) or not all(type(item) in items for item in value):
            raise wrong
        return tuple(float(item) for item in value) if 'float' in kind else tuple(value)
    if kind == 'Path':
        if not isinstance(value, str):
            raise wrong
        return Path(value)
    if kind == 'float' and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = {'str': str, 'bool': bool, 'int': int, 'float': float}[kind]
    if not isinstance(value, expected) or (kind == 'int' and isinstance(value, bool)):
        raise wrong
    return value
