# SPDX-License-Identifier: Apache-2.0
"""Names of everything the app writes for one session.

``outputs.json`` beside this module is the single table of derivatives: folder, entities, suffix,
extension and the fields of the sidecar that never change. No other module spells a file name.

Files in template space exist once per space, voxel size and smoothing: the entities of their
entries hold ``{space}``, ``{res}``, ``{fwhm}`` and ``{atlas}``, which :meth:`Outputs.path` fills;
likewise ``{model}``, the classifier of a prediction, and ``{contrast}``, an image beside the
reference. ``{reference}`` and ``{preproc}`` are filled with what :class:`Outputs` knows: the
contrast of the image on whose grid everything is, nearly always ``T1w``, and what its corrected
image is called, nearly always ``preproc``.
Where such a file must be named in one word, it is its :func:`file_id`.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

# The order in which the BIDS specification wants entities after sub- and ses-.
ENTITY_ORDER = (
    'acq', 'rec', 'run', 'from', 'to', 'mode', 'space', 'atlas', 'seg', 'res', 'label', 'model',
    'param', 'desc',
)  # fmt: skip

SYNTHESIZED = 'synthesized T1w'
"""Reference of a session whose T1w was made from its diffusion images."""

SYNTHESIZED_AS_PREPROC = 'synthesized T1w as preproc'
"""The same with ``--synth-as-preproc``: its files are named like those of a measured T1w."""

_BLANK = re.compile(r'\{(\w+)\}')


@cache
def table() -> dict[str, dict[str, Any]]:
    """Read the table of derivatives: key -> folder, entities, suffix, extension, sidecar."""
    text = resources.files('bids_app.bids').joinpath('outputs.json').read_text('utf-8')
    return json.loads(text)


def parameters(key: str) -> tuple[str, ...]:
    """Return what has to be said besides the key to name a derivative.

    Examples
    --------
    >>> parameters('dseg'), parameters('vbm_gm_smooth')
    ((), ('space', 'res', 'fwhm'))
    """
    entry = table()[key]
    blanks = _BLANK.findall(' '.join([*entry['entities'].values(), entry['suffix']]))
    return tuple(blank for blank in blanks if blank not in ('reference', 'preproc'))


def reference_blanks(reference: str) -> dict[str, str]:
    """Return what the blanks ``{reference}`` and ``{preproc}`` are filled with.

    Examples
    --------
    >>> reference_blanks('FLAIR')
    {'reference': 'FLAIR', 'preproc': 'preproc'}
    >>> reference_blanks(SYNTHESIZED)
    {'reference': 'T1w', 'preproc': 'synthesized'}
    """
    if reference in (SYNTHESIZED, SYNTHESIZED_AS_PREPROC):
        named = 'preproc' if reference == SYNTHESIZED_AS_PREPROC else 'synthesized'
        return {'reference': 'T1w', 'preproc': named}
    return {'reference': reference, 'preproc': 'preproc'}


def number_label(value: float) -> str:
    """Write a number as a BIDS label, which may hold no point.

    Examples
    --------
    >>> number_label(1.5), number_label(2.0), number_label(0.75)
    ('1p5', '2', '0p75')
    """
    return f'{float(value):g}'.replace('.', 'p')


def file_id(key: str, **given: str | float) -> str:
    """Name a derivative in one line of text: its key and what fills the blanks of its entities.

    Parameters
    ----------
    key : str
        Key of the table of derivatives.
    **given : str or float
        ``space``, ``res`` (mm or label), ``fwhm`` (mm or label), ``atlas``, ``model`` and
        ``contrast``, as the entry asks.

    Returns
    -------
    str
        The key alone for a derivative of which there is one.

    Raises
    ------
    KeyError
        If the table does not hold ``key``, or something that its entities need is not given.

    Examples
    --------
    >>> file_id('dseg')
    'dseg'
    >>> file_id('vbm_gm_smooth', space='MNI152NLin2009aSym', res=1.5, fwhm=8)
    'vbm_gm_smooth space-MNI152NLin2009aSym res-1p5 fwhm-8'
    """
    labels = (f'{name}-{_label(given[name])}' for name in parameters(key))
    return ' '.join((key, *labels))


def parse_file_id(identifier: str) -> tuple[str, dict[str, str]]:
    """Return the key and the labels of a :func:`file_id`.

    Examples
    --------
    >>> parse_file_id('std_preproc space-MNI152NLin2009aSym res-1p5')
    ('std_preproc', {'space': 'MNI152NLin2009aSym', 'res': '1p5'})
    """
    key, *labels = identifier.split(' ')
    return key, dict(label.split('-', 1) for label in labels)


def _label(value: str | float) -> str:
    return value if isinstance(value, str) else number_label(value)


class Outputs:
    """Paths of one session in the derivatives folder.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives data set.
    subject, session : str
        Labels without ``sub-`` and ``ses-``; ``session`` is ``None`` for a data set without
        sessions.
    reference : str
        Contrast of the image on whose grid the results are, or :data:`SYNTHESIZED` or
        :data:`SYNTHESIZED_AS_PREPROC`.

    Examples
    --------
    >>> outputs = Outputs(Path('out'), '01', 'a')
    >>> outputs.path('probseg_gm').as_posix()
    'out/sub-01/ses-a/anat/sub-01_ses-a_label-GM_probseg.nii.gz'
    >>> outputs.path('std_mask', space='MNI152NLin2009aSym', res=1.5).name
    'sub-01_ses-a_space-MNI152NLin2009aSym_res-1p5_desc-brain_mask.nii.gz'
    >>> outputs.path('report').as_posix()
    'out/sub-01_ses-a.html'
    >>> outputs.figure('desc-brain_mask').as_posix()
    'out/sub-01/figures/sub-01_ses-a_desc-brain_mask.svg'
    """

    def __init__(
        self, output_dir: Path, subject: str, session: str | None = None, reference: str = 'T1w'
    ) -> None:
        self.output_dir = Path(output_dir)
        self.subject = subject
        self.session = session
        self.reference = reference

    @property
    def synthesized(self) -> bool:
        """Whether the reference was made from diffusion images."""
        return self.reference in (SYNTHESIZED, SYNTHESIZED_AS_PREPROC)

    @property
    def contrast(self) -> str:
        """Contrast of the reference, ``T1w`` also where it was synthesized."""
        return reference_blanks(self.reference)['reference']

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

    def path(self, key: str, **given: str | float) -> Path:
        """Return the path of a derivative, or of the ``report``.

        Parameters
        ----------
        key : str
            Key of the table of derivatives, or a :func:`file_id`.
        **given : str or float
            As for :func:`file_id`; not with a file id, which says it itself.

        Raises
        ------
        KeyError
            If the table does not hold ``key``, or something that its entities need is not given.
        """
        if key == 'report':
            return self.output_dir / f'{self.prefix}.html'
        key, labels = parse_file_id(file_id(key, **given) if given else key)
        entry = table()[key]
        return self.session_dir / entry['folder'] / self._name(entry, labels)

    def sidecar_path(self, key: str, **given: str | float) -> Path:
        """Return the path of the JSON file beside a derivative; arguments as for :meth:`path`."""
        path = self.path(key, **given)
        extension = table()[parse_file_id(key)[0]]['extension']
        return path.with_name(path.name.removesuffix(extension) + '.json')

    def sidecar(self, key: str, **extra: Any) -> dict[str, Any]:
        """Return the content of a derivative's sidecar: the table's fields, then ``extra``.

        ``key`` may be a :func:`file_id`. Fields that are ``None`` are left out. A reference that
        is not a T1w is one of the fields.
        """
        key, labels = parse_file_id(key)
        fields = {**table()[key]['sidecar'], **extra}
        if isinstance(text := fields.get('Description'), str):
            fields['Description'] = self._filled(text, labels)
        if self.synthesized and not key.startswith('dwi_'):
            fields['Reference'] = 'T1w synthesized from diffusion images, not measured'
        elif self.reference != 'T1w' and not self.synthesized:
            fields['Reference'] = self.reference
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

    def _name(self, entry: dict[str, Any], labels: dict[str, str]) -> str:
        entities = sorted(entry['entities'].items(), key=lambda pair: ENTITY_ORDER.index(pair[0]))
        parts = [f'{name}-{self._filled(value, labels)}' for name, value in entities]
        suffix = self._filled(entry['suffix'], labels)
        return '_'.join([self.prefix, *parts, suffix]) + entry['extension']

    def _filled(self, text: str, labels: dict[str, str]) -> str:
        """Fill the blanks of a text of the table."""
        known = {**reference_blanks(self.reference), **labels}
        return _BLANK.sub(lambda blank: known[blank[1]], text)
