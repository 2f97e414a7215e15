# SPDX-License-Identifier: Apache-2.0
"""Names of everything the app writes for one session.

``outputs.json`` beside this module is the single table of derivatives: folder, entities, suffix,
extension and the fields of the sidecar that never change. No other module spells a file name.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

# The order in which the BIDS specification wants entities after sub- and ses-.
ENTITY_ORDER = ('acq', 'rec', 'run', 'from', 'to', 'mode', 'space', 'seg', 'res', 'label', 'desc')


@cache
def table() -> dict[str, dict[str, Any]]:
    """Read the table of derivatives: key -> folder, entities, suffix, extension, sidecar."""
    text = resources.files('bids_app.bids').joinpath('outputs.json').read_text('utf-8')
    return json.loads(text)


class Outputs:
    """Paths of one session in the derivatives folder.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives data set.
    subject, session : str
        Labels without ``sub-`` and ``ses-``; ``session`` is ``None`` for a data set without
        sessions.

    Examples
    --------
    >>> outputs = Outputs(Path('out'), '01', 'a')
    >>> outputs.path('probseg_gm').as_posix()
    'out/sub-01/ses-a/anat/sub-01_ses-a_label-GM_probseg.nii.gz'
    >>> outputs.path('report').as_posix()
    'out/sub-01_ses-a.html'
    >>> outputs.figure('desc-brain_mask').as_posix()
    'out/sub-01/figures/sub-01_ses-a_desc-brain_mask.svg'
    """

    def __init__(self, output_dir: Path, subject: str, session: str | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.subject = subject
        self.session = session

    @property
    def prefix(self) -> str:
        """First part of every file name, ``sub-01_ses-a``."""
        return f'sub-{self.subject}' + (f'_ses-{self.session}' if self.session else '')

    @property
    def subject_dir(self) -> Path:
        """Folder of the subject."""
        return self.output_dir / f'sub-{self.subject}'

    @property
    def session_dir(self) -> Path:
        """Folder of the session, or of the subject where there is no session."""
        return self.subject_dir / f'ses-{self.session}' if self.session else self.subject_dir

    def path(self, key: str) -> Path:
        """Return the path of a derivative, or of the ``report``.

        Raises
        ------
        KeyError
            If the table does not hold ``key``.
        """
        if key == 'report':
            return self.output_dir / f'{self.prefix}.html'
        entry = table()[key]
        return self.session_dir / entry['folder'] / self._name(entry)

    def sidecar_path(self, key: str) -> Path:
        """Return the path of the JSON file beside a derivative."""
        path = self.path(key)
        return path.with_name(path.name.removesuffix(table()[key]['extension']) + '.json')

    def sidecar(self, key: str, **extra: Any) -> dict[str, Any]:
        """Return the content of a derivative's sidecar: the table's fields, then ``extra``.

        Fields that are ``None`` are left out.
        """
        fields = {**table()[key]['sidecar'], **extra}
        return {name: value for name, value in fields.items() if value is not None}

    def figure(self, name: str, extension: str = '.svg') -> Path:
        """Return the path of a figure of the report, for instance ``desc-brain_mask``."""
        return self.figures_dir / f'{self.prefix}_{name}{extension}'

    @property
    def figures_dir(self) -> Path:
        """Folder of the report's figures (of all sessions of the subject)."""
        return self.subject_dir / 'figures'

    def log_dir(self, run_uuid: str) -> Path:
        """Return the folder of one run's crash files and configuration."""
        return self.subject_dir / 'log' / run_uuid

    @property
    def state_file(self) -> Path:
        """File that says what a finished session was made from; written last."""
        return self.subject_dir / 'log' / f'{self.prefix}_state.json'

    def _name(self, entry: dict[str, Any]) -> str:
        entities = sorted(entry['entities'].items(), key=lambda pair: ENTITY_ORDER.index(pair[0]))
        parts = [self.prefix, *(f'{name}-{value}' for name, value in entities)]
        return '_'.join([*parts, entry['suffix']]) + entry['extension']
