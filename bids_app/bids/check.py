# SPDX-License-Identifier: Apache-2.0
"""A light check of the input: what would make AnatNet take the wrong images, and nothing else.

The full validator stops many a usable data set for reasons that do not matter here, and is not
installed everywhere. It is run where it is at hand, on the asked participants only.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bids_app.bids.files import read_json
from bids_app.bids.inputs import Scan, SessionRecord
from bids_app.errors import InvalidBIDSError

LOGGER = logging.getLogger('anatnet.bids')

VALIDATOR = 'bids-validator-deno'
MAX_PARTICIPANTS = 100
TIMEOUT = 120.0

# Errors of names: with these, a file may be taken for what it is not.
FATAL_CODES = frozenset({
    'ALL_FILENAME_RULES_HAVE_ISSUES', 'CASE_COLLISION', 'ENTITY_WITH_NO_LABEL',
    'FILENAME_MISMATCH', 'INVALID_ENTITY_LABEL', 'INVALID_LOCATION',
})  # fmt: skip
# Left to the step that reads the scan: one bad scan must not stop the others.
IGNORED_CODES = ('EMPTY_FILE', 'NIFTI_HEADER_UNREADABLE', 'SIDECAR_KEY_RECOMMENDED',
                 'TOO_FEW_AUTHORS', 'README_FILE_MISSING', 'README_FILE_SMALL')  # fmt: skip

_HINT = 'or go on with --skip-bids-validation'


def check_description(bids_dir: Path) -> None:
    """Check that a folder says of itself that it is a raw BIDS data set.

    Raises
    ------
    InvalidBIDSError
        If ``dataset_description.json`` is missing, is not JSON, or is that of derivatives.
    """
    file = Path(bids_dir) / 'dataset_description.json'
    try:
        description = read_json(file)
    except FileNotFoundError:
        raise InvalidBIDSError(
            f'{bids_dir} has no dataset_description.json, so it is not the root of a BIDS data '
            f'set{_elsewhere(Path(bids_dir))}; add the file, {_HINT}'
        ) from None
    except OSError as error:
        raise InvalidBIDSError(f'cannot read {file}: {error.strerror}') from None
    except ValueError as error:
        raise InvalidBIDSError(f'{file} is not valid JSON ({error}); mend it, {_HINT}') from None
    if not isinstance(description, dict):
        raise InvalidBIDSError(f'{file} does not hold a JSON object; mend it, {_HINT}')
    if description.get('DatasetType') == 'derivative':
        raise InvalidBIDSError(
            f'{bids_dir} holds derivatives (DatasetType in its dataset_description.json); '
            f'give the raw data set, {_HINT}'
        )
    for key in ('Name', 'BIDSVersion'):
        if key not in description:
            LOGGER.warning('%s has no "%s", which BIDS requires', file, key)


def check_scans(records: Iterable[SessionRecord]) -> list[str]:
    """Warn about chosen files whose content is not there.

    Such a scan fails when it is read, with its own line in the summary; the warning comes
    before hours of work on the others.

    Returns
    -------
    list of str
        One line per file.
    """
    warnings = []
    for record in records:
        scans = [scan for scan in (record.reference, *record.contrasts, *record.dwi) if scan]
        for file in dict.fromkeys(file for scan in scans for file in _files_of(scan)):
            if problem := content_problem(file):
                warnings.append(f'{file.name}: {problem}')
    return warnings


def content_problem(file: Path) -> str | None:
    """Say why the content of a file cannot be there; ``None`` if it may be."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        if file.is_symlink():
            return 'a link whose content is not here (for git-annex: datalad get)'
        return 'does not exist'
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    if not stat.S_ISREG(status.st_mode):
        return 'a folder, a pipe or a device'
    return 'empty file' if status.st_size == 0 else None


def run_validator(bids_dir: Path, participants: Sequence[str]) -> None:
    """Run the BIDS validator on the asked participants, if it is installed.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw data set; it is only read.
    participants : sequence of str
        Labels without ``sub-``.

    Raises
    ------
    InvalidBIDSError
        If the name of an anatomical or diffusion file is wrong in a way that may make AnatNet
        take it for another. Everything else that the validator finds is counted in the log.
    """
    beside = Path(sys.executable).with_name(VALIDATOR)
    program = str(beside) if beside.exists() else shutil.which(VALIDATOR)
    if program is None:
        LOGGER.info('%s is not installed: only the light check of the input was made', VALIDATOR)
        return
    if len(participants) > MAX_PARTICIPANTS:
        LOGGER.info(
            'The BIDS validator is not run on %d participants (at most %d); run it by hand',
            len(participants), MAX_PARTICIPANTS,
        )  # fmt: skip
        return
    try:
        issues = _validate(program, bids_dir, participants)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        LOGGER.info('The BIDS validator could not be run (%s); going on', type(error).__name__)
        return
    errors = [issue for issue in issues if issue.get('severity') == 'error']
    fatal = [issue for issue in errors if _matters(issue)]
    if fatal:
        shown = '; '.join(f'{i["location"]} ({i["code"]})' for i in fatal[:3])
        more = f' and {len(fatal) - 3} more' if len(fatal) > 3 else ''
        raise InvalidBIDSError(f'wrong file names: {shown}{more}; rename them, {_HINT}')
    if errors:
        codes = ', '.join(sorted({issue['code'] for issue in errors}))
        LOGGER.info('The BIDS validator found %d error%s that do not matter here (%s)',
                    len(errors), 's'[: len(errors) > 1], codes)  # fmt: skip


def _validate(program: str, bids_dir: Path, participants: Sequence[str]) -> list[dict[str, Any]]:
    """Return the validator's issues on a folder of links to the asked participants."""
    with tempfile.TemporaryDirectory(prefix='anatnet-validate-') as folder:
        config = Path(folder) / 'config.json'
        config.write_text(json.dumps({'ignore': [{'code': code} for code in IGNORED_CODES]}))
        view = Path(folder) / 'data'
        view.mkdir()
        wanted = {f'sub-{label}' for label in participants}
        for entry in os.scandir(bids_dir):
            if entry.name in wanted or entry.is_file() or entry.name == 'stimuli':
                (view / entry.name).symlink_to(os.path.abspath(entry.path))
        finished = subprocess.run(
            [program, '--format', 'json', '--ignoreNiftiHeaders', '--ignoreWarnings',
             '--datasetTypes', 'raw', '-c', str(config), str(view)],
            capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
    return json.loads(finished.stdout)['issues']['issues']


def _matters(issue: dict[str, Any]) -> bool:
    location = str(issue.get('location', ''))
    return issue.get('code') in FATAL_CODES and bool(
        re.search(r'/(anat|dwi)/[^/]+\.nii(\.gz)?$', location)
    )


def _files_of(scan: Scan) -> list[Path]:
    return [file for file in (scan.path, scan.bval, scan.bvec) if file is not None]


def _elsewhere(folder: Path) -> str:
    """Look for the data set just above or below the folder that was named."""
    name = 'dataset_description.json'
    candidates = [folder.parent] if folder.name.startswith('sub-') else []
    try:
        candidates += sorted(child for child in folder.iterdir() if child.is_dir())[:50]
    except OSError:
        return ''
    found = next((c for c in candidates if (c / name).is_file()), None)
    return f' (did you mean {found}?)' if found else ''
