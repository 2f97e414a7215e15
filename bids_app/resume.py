# SPDX-License-Identifier: Apache-2.0
"""What is already done, and whether it is still valid.

Every session has one small JSON file, written last and atomically, that says what its outputs
were made from. A later call reads it and either leaves the session alone or says why not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from bids_app.bids.spaces import atlas_parts, output_spaces
from bids_app.config import RunConfig

STATE_SCHEMA = 1
ANY_SIZE = -1
"""Recorded size of an output that may be written again, such as a report."""

RELEVANT_OPTIONS = (
    'model', 'segmentation', 'tissue_model', 'correct_lesions', 'precision', 'sloppy',
)  # fmt: skip
"""Options that change what is written; devices, threads and memory do not count (nor the seed, as
long as nothing is random), nor do the
options that choose scans: those act through the inputs. Modules are compared apart, because a
session with more of them than asked for is done."""

DEEPNAT_OPTIONS = ('crf', 'deepnat_mirror', 'deepnat_parities')
"""Options of ``--segmentation deepnat``; its models are compared by their checksums."""

DWI_OPTIONS = (
    'synth_model', 'synth_1mm', 'synth_as_preproc', 'b0_threshold', 'dwi_motion', 'dwi_denoise',
)  # fmt: skip
"""Options of the module ``dwi``."""

LISTS = ('output_spaces', 'smooth_fwhm', 'atlas')
"""Options of the module ``vbm`` of which a session may have more than is asked for."""


@dataclass
class SessionState:
    """What one session was made from and how it went.

    Attributes
    ----------
    status : str
        ``done`` or ``failed``.
    version : str
        Version of AnatNet.
    inputs : dict
        For every input file, relative to the BIDS folder: ``size`` in bytes, ``mtime_ns`` and
        ``sha256``.
    options : dict
        The options that change what is written, see :func:`relevant_options`.
    modules : list of str
        What was computed.
    models : dict
        Name of every model used, with its SHA-256.
    outputs : dict
        Files written, relative to the output folder, with their size in bytes.
    error : str, optional
        Why the session failed, in one line.
    run : dict
        What the report needs and no output file holds: device, seconds per step and the like.
    """

    status: str
    version: str
    inputs: dict[str, dict[str, Any]]
    options: dict[str, Any]
    modules: list[str]
    models: dict[str, str]
    outputs: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    schema: int = STATE_SCHEMA

    def to_json(self) -> str:
        """Write the state as JSON text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + '\n'


@dataclass(frozen=True)
class Decision:
    """What to do with a session: ``run``, ``done`` or ``failed-before``, and the reason."""

    action: str
    reason: str


def read_state(path: Path) -> SessionState | None:
    """Read a state file; None if there is none that this version understands."""
    try:
        values = json.loads(path.read_text())
        if values.get('schema') != STATE_SCHEMA:
            return None
        return SessionState(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def file_record(path: Path) -> dict[str, Any]:
    """Describe a file by its size in bytes, time of change and SHA-256 (None if unreadable)."""
    try:
        stat = path.stat()
        if not path.is_file():  # reading a pipe or a device may never end
            raise OSError
        digest: str | None = _sha256(path)
    except OSError:
        return {'size': -1, 'mtime_ns': 0, 'sha256': None}
    return {'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns, 'sha256': digest}


def unchanged(path: Path, record: Mapping[str, Any]) -> bool:
    """Tell whether a file is the recorded one.

    Size and time of change are compared first; a file of the same size but another time, such as
    that of a data set that was copied, is read and compared by its SHA-256.
    """
    try:
        stat = path.stat()
        if stat.st_size != record['size']:
            return False
        if stat.st_mtime_ns == record['mtime_ns']:
            return True
        return _sha256(path) == record['sha256']
    except (OSError, KeyError):
        return False


def relevant_options(config: RunConfig) -> dict[str, Any]:
    """Return the options that change what is written, as JSON types.

    Of the module ``vbm``, these are the registration, the output spaces with their voxel sizes,
    the widths of the kernels, and the atlases with the checksums of their files.
    """
    options: dict[str, Any] = {name: getattr(config, name) for name in RELEVANT_OPTIONS}
    if config.segmentation == 'deepnat':
        options |= {name: getattr(config, name) for name in DEEPNAT_OPTIONS}
    if 'dwi' in config.modules:
        options |= {name: getattr(config, name) for name in DWI_OPTIONS}
    if 'vbm' in config.modules:
        options['registration'] = config.registration
        options['output_spaces'] = [
            f'{space.space}:{size:g}'
            for space in output_spaces(config.output_spaces, config.voxel_size)
            for size in space.voxel_sizes
        ]
        options['smooth_fwhm'] = list(config.smooth_fwhm)
        options['atlas'] = [
            ' '.join(f'{path.name} {_known_sha256(path)}' for path in atlas_parts(text))
            for text in config.atlas
        ]
    return options


def relative(path: Path, root: Path) -> str:
    """Write a path relative to its data set, so that the data set may be moved."""
    # Links are not followed: in a DataLad data set every image is a link to an object.
    try:
        return Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        return str(path)


def input_records(paths: Iterable[Path], bids_dir: Path) -> dict[str, dict[str, Any]]:
    """Describe all input files of a session."""
    return {relative(path, bids_dir): file_record(path) for path in paths}


def decide(
    state: SessionState | None,
    *,
    config: RunConfig,
    inputs: Iterable[Path],
    models: Mapping[str, str],
    version: str,
) -> Decision:
    """Decide whether a session must be computed.

    Parameters
    ----------
    state : SessionState or None
        What an earlier call left.
    config : RunConfig
        The options of this call.
    inputs : iterable of Path
        The input files of this call.
    models : mapping
        Names of the models of this call with their SHA-256.
    version : str
        The version of AnatNet.
    """
    if config.overwrite:
        return Decision('run', '--overwrite')
    if state is None:
        return Decision('run', 'not processed before')
    change = _change(state, config, list(inputs), models, version)
    if state.status == 'failed':
        if config.skip_failed and change is None:
            return Decision('failed-before', state.error or 'failed before')
        return Decision('run', 'failed before' if change is None else change)
    if change is None:
        change = _lost_output(state, config.output_dir)
    if change is None:
        return Decision('done', 'unchanged since it was processed')
    return Decision('run', change)


def _change(
    state: SessionState,
    config: RunConfig,
    inputs: list[Path],
    models: Mapping[str, str],
    version: str,
) -> str | None:
    names = {relative(path, config.bids_dir): path for path in inputs}
    before = set(state.inputs)
    if 'dwi' not in config.modules:  # a session with more modules than asked for is done
        before = {name for name in before if not _of_diffusion(name)}
    if set(names) != before:
        return 'other input files'
    for name, path in names.items():
        if not unchanged(path, state.inputs[name]):
            return f'input changed: {name}'
    if not set(config.modules) <= set(state.modules):
        return f'module added: {", ".join(sorted(set(config.modules) - set(state.modules)))}'
    for name, value in relevant_options(config).items():
        # An option that did not exist when the session was processed had its default then.
        before = state.options.get(name, getattr(RunConfig, name, None))
        if name in LISTS:
            new = [str(item) for item in value if item not in (before or ())]
            if new:
                return f'option changed: {name} has {", ".join(new)} now'
        elif before != value:
            return f'option changed: {name} was {before}, is {value}'
    for name, checksum in models.items():
        if name not in state.models:
            return f'model added: {name}'
        if state.models[name] != checksum:
            return f'model changed: {name}'
    if state.version != version:
        return f'made by AnatNet {state.version}'
    return None


def _of_diffusion(name: str) -> bool:
    """Tell whether an input file is a diffusion image or its gradient table."""
    return '/dwi/' in name or name.endswith(('.bval', '.bvec'))


def _lost_output(state: SessionState, output_dir: Path) -> str | None:
    for name, size in state.outputs.items():
        path = output_dir / name
        if not path.is_file():
            return f'output missing: {name}'
        if size not in (ANY_SIZE, path.stat().st_size):
            return f'output changed: {name}'
    return None


@contextlib.contextmanager
def session_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a session's work folder; yields False if another process has it.

    The lock belongs to the process: the operating system lifts it when the process ends, however
    it ends. Its file is removed with it, so that thousands of sessions leave none. Where the file
    system cannot lock, the answer is True.
    """
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                stream = stack.enter_context(path.open('w'))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_open_file(path, stream):
                    break
                stream.close()  # who had it has removed it meanwhile: another may make it anew
        except BlockingIOError:
            yield False
            return
        except OSError:
            yield True
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_open_file(path: Path, stream: IO[str]) -> bool:
    """Tell whether a path still leads to the file that was opened there."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _known_sha256(path: Path) -> str | None:
    """Return the checksum of a file that many sessions share; None if it cannot be read."""
    try:
        stat = path.stat()
        return _cached_sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=64)
def _cached_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
