#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Put templates of TemplateFlow into a folder while an image is built.

``fetch_templates.py FOLDER [SPACE[+COHORT] ...]`` writes the T1w image at 1 mm and, where there is
one, the brain mask, under the names that ``bids_app.images.templates`` looks for. It needs nothing
but Python, and ends with code 1 and one line on the first template that cannot be had.
"""

from __future__ import annotations

import gzip
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = 'https://templateflow.s3.amazonaws.com'
"""The archive of TemplateFlow; the variable ``TEMPLATEFLOW_URL`` names another place."""

RESOLUTIONS = ('_res-01', '_res-1', '')
SECONDS = 60


class FetchError(Exception):
    """A template that cannot be had."""


def fetch(space: str, folder: Path, root: str = ROOT) -> list[Path]:
    """Fetch one template.

    Parameters
    ----------
    space : str
        Name of TemplateFlow, for instance ``MNI152NLin2009cAsym`` or ``MNIPediatricAsym+3``.
    folder : Path
        Becomes ``TEMPLATEFLOW_HOME``.
    root : str
        Address of the archive.

    Returns
    -------
    list of Path
        The T1w image, and the brain mask if there is one.

    Raises
    ------
    FetchError
        If there is no T1w image of that name, or no network.
    """
    if not re.fullmatch(r'[0-9A-Za-z]+(\+[0-9A-Za-z]+)?', space):
        raise FetchError(f'"{space}" is no name of a template (NAME or NAME+COHORT)')
    name, _, cohort = space.partition('+')
    place, stem = f'tpl-{name}', f'tpl-{name}'
    if cohort:
        place, stem = f'{place}/cohort-{cohort}', f'{stem}_cohort-{cohort}'
    for resolution in RESOLUTIONS:
        files = []
        for suffix in ('T1w', 'desc-brain_mask'):
            path = f'{place}/{stem}{resolution}_{suffix}.nii.gz'
            content = _read(f'{root}/{path}')
            if content is None:
                break
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            files.append(file)
        if files:
            return files
    raise FetchError(
        f'{root} has no {place}/{stem}_res-01_T1w.nii.gz; check the name of the space'
    )


def _read(address: str) -> bytes | None:
    """Return the bytes of a file in the archive, ``None`` if it has no such file."""
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as reply:
            content = reply.read()
        gzip.decompress(content)
    except urllib.error.HTTPError as error:
        if error.code in (403, 404):  # the archive says 403 where nothing is
            return None
        raise FetchError(f'{address}: {error}') from None
    except (OSError, EOFError) as error:
        reason = getattr(error, 'reason', error)
        raise FetchError(
            f'{address}: {reason}; build where the network is, or without templates'
        ) from None
    return content


def main(arguments: list[str]) -> int:
    """Fetch all that is asked for."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for space in ' '.join(arguments[1:]).split():
        try:
            for file in fetch(space, folder, os.environ.get('TEMPLATEFLOW_URL') or ROOT):
                print(file)
        except FetchError as error:
            print(f'TemplateFlow: cannot fetch {space}: {error}', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
