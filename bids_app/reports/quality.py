# SPDX-License-Identifier: Apache-2.0
"""Quality measures as the report shows them: what each means, its threshold, the traffic light.

The verdicts come from :mod:`bids_app.morphometry.qc`; nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bids_app.reports.tables import number, read_tsv

LIGHTS = {
    'ok': ('ok', 'Passed', 'No quality check raised a concern.'),
    'warn': ('warn', 'Look at it', 'At least one check asks for a look at the pictures.'),
    'fail': ('fail', 'Doubtful', 'At least one check says that the result is not to be trusted.'),
    'failed': ('fail', 'Failed', 'The session was not processed to the end.'),
    'unknown': ('none', 'Not rated', 'There are no quality checks for this session.'),
}
"""Class, word and explanation of every light; the word keeps it readable without colour."""

_ALIASES = {'pass': 'ok', 'passed': 'ok', 'warning': 'warn', 'error': 'fail'}


class Measure(NamedTuple):
    """How a measure is presented: label, what it says, and which direction is better."""

    label: str
    meaning: str = ''
    better: str = ''


_MEASURES = {
    'snr': Measure('SNR', 'Signal-to-noise ratio', 'higher'),
    'cnr': Measure('CNR', 'Contrast of grey and white matter over noise', 'higher'),
    'cjv': Measure('CJV', 'Joint variation of grey and white matter: noise and bias', 'lower'),
    'efc': Measure('EFC', 'Entropy focus criterion: ghosting and blur by movement', 'lower'),
    'fber': Measure('FBER', 'Energy of the head over energy of the air', 'higher'),
    'wm2max': Measure('WM2MAX', 'White matter over the brightest intensities', 'about 0.6 to 0.8'),
    'snrd': Measure('SNR against air,', 'Signal over the noise of the air (Dietrich)', 'higher'),
    'overlap': Measure('Overlap', 'Tissue maps against what intensities alone say', 'higher'),
    'icvs': Measure('TIV share of', 'Share in the total intracranial volume'),
    'tiv_ml': Measure('Intracranial volume (ml)', 'GM, WM and CSF together'),
    'brain_volume_ml': Measure('Brain volume (ml)', 'GM and WM together'),
    'gm_wm_ratio': Measure('GM / WM volume', 'Balance of grey and white matter'),
    'wm_gm_ratio': Measure('WM / GM intensity', 'White matter is brighter in a T1w scan'),
    'border_contact': Measure('Border contact', 'Brain cut by the field of view', 'lower'),
    'hemisphere_asymmetry': Measure(
        'Hemisphere asymmetry (%)', 'Asymmetry index of cerebral cortex and white matter', 'near 0'
    ),
    'missing_structures': Measure('Missing structures', 'Of the 25, under 50 mm\u00b3', 'lower'),
    'mean_entropy': Measure('Mean uncertainty', 'Entropy of the labels inside the brain', 'lower'),
    'confidence': Measure('Confidence', 'Probability of the brain that was found', 'higher'),
    'coreg': Measure('Registration of', 'Of another contrast to the reference'),
    'norm_dice': Measure('Overlap with the template,', 'Soft Dice of the tissue', 'higher'),
    'norm_correlation': Measure('Correlation with the template,', 'Of the tissue maps', 'higher'),
    'norm_affine_dice': Measure('Overlap after the affine step', 'Dice', 'higher'),
    'norm_jacobian_min': Measure('Smallest Jacobian', 'Strongest shrinking; none may fold'),
    'norm_jacobian_p1': Measure('Jacobian, 1st percentile', 'Usual shrinking'),
    'norm_jacobian_p99': Measure('Jacobian, 99th percentile', 'Usual stretching'),
    'norm_jacobian_max': Measure('Largest Jacobian', 'Strongest stretching'),
    'norm_inverse_error_mm': Measure(
        'Inverse error (mm)', 'Mean way off after going there and back, in the brain', 'lower'
    ),
    'norm_seconds_affine': Measure('Time of the affine step (s)'),
    'norm_seconds_network': Measure('Time of the network (s)'),
    'norm_seconds_refine': Measure('Time of the optimisation (s)'),
}
"""By the beginning of the measure's name; the longest match counts."""


_RESTS = {
    'gm': 'GM', 'wm': 'WM', 'csf': 'CSF', 'bg': 'background', 'mean': '', 't2w': 'T2w:',
    'flair': 'FLAIR:', 'mm': '(mm)', 'dice': 'overlap', 'similarity': 'mutual information',
    'header': 'before', 'degrees': '(\N{DEGREE SIGN})',
}  # fmt: skip


def describe(name: str) -> Measure:
    """Return how to present a measure; unknown ones keep their own name.

    Examples
    --------
    >>> describe('snr_wm').label
    'SNR WM'
    """
    key = max((k for k in _MEASURES if name == k or name.startswith(f'{k}_')), key=len, default='')
    if not key:
        return Measure(name.replace('_', ' ').capitalize())
    measure = _MEASURES[key]
    rest = [_RESTS.get(word, word) for word in name[len(key) :].strip('_').split('_')]
    return measure._replace(label=' '.join([measure.label, *rest]).strip())


def read_metrics(path: str | Path) -> dict[str, str]:
    """Read ``desc-qc_stats.tsv``: one row with a column per measure."""
    rows = read_tsv(path)
    if not rows:
        return {}
    return {name: value for name, value in rows[0].items() if name and value is not None}


def checks(metrics: Mapping[str, str], verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Merge measures and verdicts to the lines of the table.

    Parameters
    ----------
    metrics : mapping
        Measures by name, as text.
    verdict : mapping
        ``checks``: list of dict with ``name``, ``value``, ``status`` (``ok``, ``warn``,
        ``fail``), ``threshold`` (as text) and ``reason``, or a dict of these by name.

    Returns
    -------
    list of dict
        ``name``, ``label``, ``meaning``, ``better``, ``value`` (text), ``status`` (empty for
        measures without threshold), ``threshold`` and ``reason``; the rated ones first.
    """
    given = verdict.get('checks') or ()
    if isinstance(given, Mapping):
        given = [{'name': name, **check} for name, check in given.items()]
    rated = {str(check.get('name')): check for check in given}
    names = [*rated, *(name for name in metrics if name not in rated)]
    lines = []
    for name in names:
        check = rated.get(name, {})
        value = check.get('value', metrics.get(name))
        as_number = number(value)
        if as_number is None and name not in rated:
            continue  # text columns such as the overall status are shown elsewhere
        lines.append(
            {
                'name': name,
                **describe(name)._asdict(),
                'value': _shown(value, as_number),
                'status': status_of(check.get('status')) if check else '',
                'threshold': str(check.get('threshold') or ''),
                'reason': spelled_out(str(check.get('reason') or '')),
            }
        )
    return lines


def spelled_out(reason: str) -> str:
    """Let a reason begin with the measure's label instead of its column name.

    Examples
    --------
    >>> spelled_out('snr_total is 2 (expected above 4): noisy scan')
    'SNR total is 2 (expected above 4): noisy scan'
    """
    name, separator, rest = reason.partition(' is ')
    if not separator or ' ' in name or '_' not in name and name not in _MEASURES:
        return reason
    return f'{describe(name).label}{separator}{rest}'


def verdict_of(verdict: Mapping[str, Any], metrics: Mapping[str, str]) -> dict[str, Any]:
    """Complete a verdict from the table's own columns ``qc_status`` and ``qc_reasons``."""
    status = verdict.get('status') or metrics.get('qc_status')
    reasons = verdict.get('reasons')
    if reasons is None:
        text = metrics.get('qc_reasons') or ''
        reasons = [] if text == 'n/a' else [part for part in text.split('; ') if part]
    elif isinstance(reasons, str):
        reasons = [reasons]
    reasons = [spelled_out(str(reason)) for reason in reasons]
    return {**verdict, 'status': status, 'reasons': reasons}


def status_of(text: Any) -> str:
    """Bring the words for a verdict to ``ok``, ``warn``, ``fail`` or ``unknown``."""
    word = str(text or 'unknown').strip().lower()
    word = _ALIASES.get(word, word)
    return word if word in ('ok', 'warn', 'fail') else 'unknown'


def traffic_light(
    session_status: str, verdict: Mapping[str, Any], lines: list[dict[str, Any]]
) -> dict[str, str]:
    """Return the class, word and explanation of the session's light."""
    if session_status == 'failed':
        key = 'failed'
    else:
        key = status_of(verdict.get('status'))
        if key == 'unknown':
            found = {line['status'] for line in lines}
            key = next((status for status in ('fail', 'warn', 'ok') if status in found), key)
    css, word, meaning = LIGHTS[key]
    return {'css': css, 'word': word, 'meaning': meaning}


def _shown(value: Any, as_number: float | None) -> str:
    if as_number is None:
        return '–' if value in (None, '', 'n/a') else str(value)
    if as_number and not 1e-3 <= abs(as_number) < 1e5:
        return f'{as_number:.3g}'
    return f'{as_number:.4g}'
