# SPDX-License-Identifier: Apache-2.0
"""Thresholds for quality measures, and the verdict ok, warn or fail with its reasons.

The limits are wide on purpose: a warning should be worth a look, a failure should be sure. They
hold for T1w scans of children from about five years, adults and the elderly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

INF = math.inf
ORDER = ('ok', 'warn', 'fail')


@dataclass(frozen=True)
class Limit:
    """Range in which a measure is good, and the wider one in which it is bearable.

    Attributes
    ----------
    name : str
        Measure of :func:`bids_app.morphometry.qc.qc_measures` or :func:`registration_measures`.
    ok : tuple of float
        Lowest and highest value without a comment.
    bearable : tuple of float
        Lowest and highest value that is a warning and no failure.
    low, high : str
        What a value below or above the range probably means.
    unit : str
    """

    name: str
    ok: tuple[float, float]
    bearable: tuple[float, float]
    low: str = ''
    high: str = ''
    unit: str = ''

    def status(self, value: float) -> str:
        """Return ``ok``, ``warn`` or ``fail``."""
        if self.ok[0] <= value <= self.ok[1]:
            return 'ok'
        return 'warn' if self.bearable[0] <= value <= self.bearable[1] else 'fail'

    def threshold(self, status: str = 'ok') -> str:
        """Return the range that separates a status from the next better one, as text."""
        low, high = self.bearable if status == 'fail' else self.ok
        unit = f' {self.unit}' if self.unit else ''
        if low == -INF:
            return f'<= {high:g}{unit}'
        if high == INF:
            return f'>= {low:g}{unit}'
        return f'{low:g} to {high:g}{unit}'


LIMITS = (
    Limit(
        'brain_volume_ml', (800, 1750), (500, 2200), 'part of the brain is missing, or a very '
        'small one', 'more than the brain was taken', 'ml',
    ),
    Limit(
        'tiv_ml', (950, 2100), (600, 2700), 'part of the brain is missing, or a very small head',
        'more than the intracranial space was taken', 'ml',
    ),
    Limit(
        'gm_wm_ratio', (0.8, 2.6), (0.4, 5.0), 'grey matter was taken for white matter',
        'white matter was taken for grey matter',
    ),
    Limit(
        'icvs_csf', (-INF, 0.45), (-INF, 0.65), high='wide CSF spaces, or CSF taken for brain',
    ),
    Limit(
        'border_contact', (-INF, 0.05), (-INF, 0.5), high='the field of view cuts off brain',
    ),
    Limit(
        'hemisphere_asymmetry', (-8, 8), (-30, 30), 'the left hemisphere is much smaller: look '
        'for a lesion or a failure', 'the right hemisphere is much smaller: look for a lesion or '
        'a failure', '%',
    ),
    Limit(
        'missing_structures', (-INF, 0), (-INF, 4), high='structures were not found',
    ),
    Limit(
        'mean_entropy', (-INF, 0.25), (-INF, 0.5), high='the segmentation is unsure',
    ),
    Limit(
        'confidence', (0.55, INF), (0.4, INF), low='the brain was hard to recognise',
    ),
    Limit(
        'wm_gm_ratio', (1.04, INF), (-INF, INF), low='white matter is not brighter than grey '
        'matter: not a T1w scan, or hardly any contrast',
    ),
    Limit(
        'cjv', (-INF, 1.0), (-INF, INF), high='grey and white matter overlap: noise, movement or '
        'bias',
    ),
    Limit('cnr', (1.0, INF), (-INF, INF), low='little contrast of grey and white matter'),
    Limit('snr_total', (3, INF), (1.0, INF), low='noisy scan'),
    Limit(
        'overlap_mean', (0.45, INF), (0.2, INF), low='the tissue maps do not fit the intensities',
    ),
    Limit('efc', (-INF, 0.85), (-INF, INF), high='blur or ghosts, as from movement'),
    Limit('fber', (10, INF), (-INF, INF), low='much signal in the air: ghosts, noise or wrap'),
    Limit(
        'wm2max', (0.3, 1.0), (-INF, INF), 'few voxels are far brighter than the brain',
        'white matter is among the brightest of the image: clipped, or not a T1w scan',
    ),
)  # fmt: skip
"""The threshold table.

Where the limits come from: skull-stripped scans with manual or clustered tissues (MICCAI 2012,
ds002748) have CJV 0.40 to 0.48, CNR 2.9 to 3.6, SNR 6.9 to 8.2, overlap 0.61 to 0.86, GM over WM
0.96 to 1.54; two-dimensional T1w of 3 mm slices have CJV above 3, so that contrast alone never
fails a scan; EFC of whole heads is 0.47 to 0.68. Brain masks that were three times too large fail
by volume.
"""

T1W_ONLY = ('wm_gm_ratio', 'cjv', 'cnr', 'snr_total', 'overlap_mean', 'wm2max')
"""Measures whose limits say nothing of a scan of another contrast."""

REGISTRATION_PREFIX = 'norm_'
"""What the measures of a registration begin with, among those of the scan."""

REGISTRATION_LIMITS = (
    Limit(
        'norm_dice_gm', (0.55, INF), (0.3, INF), low='the scan does not lie on the template',
    ),
    Limit(
        'norm_dice_wm', (0.55, INF), (0.3, INF), low='the scan does not lie on the template',
    ),
    Limit(
        'norm_jacobian_min', (0.1, INF), (1e-3, INF), low='the deformation folds, or shrinks a '
        'part of the brain to next to nothing',
    ),
    Limit(
        'norm_jacobian_max', (-INF, 10), (-INF, INF), high='a part of the brain was stretched '
        'more than tenfold: look for a lesion, large ventricles or a failure',
    ),
    Limit(
        'norm_inverse_error_mm', (-INF, 0.2), (-INF, INF), high='there and back does not return '
        'to the start: the two transforms contradict each other', unit='mm',
    ),
)  # fmt: skip
"""The threshold table of registrations.

Folding is a determinant at or below zero, which no velocity field makes, and healthy brains differ
locally by less than a factor of ten from a template. Overlap of tissue with an average template
stays well below 1, since the average is blurred; two heads that lie on each other by their
outlines alone reach about half. A tenth of a millimetre is what the two directions are allowed to
differ by design; twice that is an eighth of a voxel of 1.5 mm.
"""


COREGISTRATION_PREFIX = 'coreg_'
"""What the measures of the registration of another contrast begin with."""

COREGISTRATION_LIMITS = (
    Limit(
        'dice', (0.85, INF), (0.7, INF), low='the brains do not lie on each other',
    ),
    Limit(
        'coverage', (0.7, INF), (0.3, INF), low='the image covers only a part of the brain',
    ),
    Limit(
        'shift_mm', (-INF, 40), (-INF, 80), high='the head lies elsewhere than the header says',
        unit='mm',
    ),
    Limit(
        'rotation_degrees', (-INF, 25), (-INF, 45), high='the head is turned against what the '
        'header says',
    ),
)  # fmt: skip
"""The threshold table of rigid registrations between the contrasts of a session."""


def judge_coregistration(measures: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Judge the registration of another contrast to the reference.

    Parameters
    ----------
    measures : mapping
        What :func:`bids_app.registration.rigid.register_rigid` says of itself.

    Returns
    -------
    status : str
        ``ok``, ``doubtful`` or ``failed``.
    reasons : list of str
        Why it is not ok.
    """
    worst, reasons = 'ok', []
    for limit in COREGISTRATION_LIMITS:
        value = measures.get(limit.name, math.nan)
        status = limit.status(value) if math.isfinite(value) else 'ok'
        if status != 'ok':
            worst = max(worst, status, key=ORDER.index)
            meaning = limit.low if value < limit.ok[0] else limit.high
            name = limit.name.replace('_', ' ')
            reasons.append(f'{name} is {value:.3g} (expected {limit.threshold()}): {meaning}')
    return {'warn': 'doubtful', 'fail': 'failed'}.get(worst, worst), reasons


def coregistration_measures(contrast: str, measures: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a coregistration under the names of the quality table.

    Parameters
    ----------
    contrast : str
        ``FLAIR`` or another one.
    measures : mapping
        What :func:`bids_app.registration.rigid.register_rigid` says of itself; overlap,
        coverage, displacement and similarity are kept.
    """
    return {
        f'{COREGISTRATION_PREFIX}{contrast.lower()}_{name}': float(measures[name])
        for name in _COREGISTRATION
        if name in measures and math.isfinite(measures[name])
    }


def registration_measures(measures: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a registration under the names that :func:`assess` knows.

    Parameters
    ----------
    measures : mapping
        As a ``Normalisation`` says of itself: ``dice_gm``, ``jacobian_min`` and so on; what is
        not a finite number is left out.
    """
    return {
        f'{REGISTRATION_PREFIX}{name}': float(value)
        for name, value in measures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def assess(measures: Mapping[str, float], notes: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """Judge quality measures.

    Parameters
    ----------
    measures : mapping of str to float
        As from :func:`bids_app.morphometry.qc.qc_measures`; what is missing or NaN is not judged.
    notes : iterable of (str, str)
        Further findings as status (``warn`` or ``fail``) and reason, such as an orientation that
        does not fit the header.

    Returns
    -------
    dict
        ``status`` (the worst of all: ``ok``, ``warn``, ``fail``), ``reasons`` (list of str, the
        worst first) and ``checks`` (list of dict with ``name``, ``value``, ``status``,
        ``threshold`` and ``reason``).
    """
    checks: list[dict[str, Any]] = []
    found = [(status, reason) for status, reason in notes]
    for limit in (*LIMITS, *REGISTRATION_LIMITS):
        value = measures.get(limit.name, math.nan)
        if not math.isfinite(value):
            continue
        status = limit.status(value)
        threshold = limit.threshold(status)
        reason = ''
        if status != 'ok':
            meaning = limit.low if value < limit.ok[0] else limit.high
            shown = f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
            reason = f'{limit.name} is {shown} (expected {threshold}): {meaning}'
            found.append((status, reason))
        checks.append(
            {
                'name': limit.name,
                'value': float(value),
                'status': status,
                'threshold': threshold,
                'reason': reason,
            }
        )
    found.sort(key=lambda item: -ORDER.index(item[0]))
    return {
        'status': found[0][0] if found else 'ok',
        'reasons': [reason for _, reason in found],
        'checks': checks,
    }


def merge_verdicts(*verdicts: Mapping[str, Any]) -> dict[str, Any]:
    """Join verdicts of :func:`assess` to one: the worst status, every reason once.

    Checks that have the same name in several verdicts are kept from the first one.
    """
    status = max((v['status'] for v in verdicts), key=ORDER.index, default='ok')
    checks: dict[str, Any] = {}
    for verdict in verdicts:
        for check in verdict['checks']:
            checks.setdefault(check['name'], check)
    reasons = [(v['status'], reason) for v in verdicts for reason in v['reasons']]
    reasons.sort(key=lambda item: -ORDER.index(item[0]))
    return {
        'status': status,
        'reasons': list(dict.fromkeys(reason for _, reason in reasons)),
        'checks': list(checks.values()),
    }


_TISSUE_NAMES = {'gm': 'grey matter', 'wm': 'white matter', 'csf': 'CSF'}
_COLUMNS = {
    'snr': 'Signal-to-noise ratio within {}: median over standard deviation',
    'snrd': 'Signal-to-noise ratio of {} with the noise of the air (Dietrich 2007)',
    'overlap': 'Overlap (fuzzy Jaccard index) of the map of {} with what intensities alone say',
    'icvs': 'Share of {} in the total intracranial volume',
    'norm_dice': 'Soft overlap (Dice) of {} of the scan with that of the template',
    'norm_correlation': 'Correlation of {} of the scan with that of the template',
}
_COREGISTRATION = {
    'dice': 'Overlap (Dice) of the brain of the {} scan with that of the reference',
    'coverage': 'Share of the brain of the reference in the field of view of the {} scan',
    'shift_mm': 'How far the {} scan was shifted against what the headers say',
    'rotation_degrees': 'How far the {} scan was turned against what the headers say',
    'similarity_header': 'Normalised mutual information (1 to 2) of the {} scan with the '
    'reference where the headers put it',
    'similarity': 'Normalised mutual information (1 to 2) of the {} scan with the reference after '
    'registration',
}
_SINGLE = {
    'snr_total': 'Mean of the signal-to-noise ratios of the tissues',
    'snrd_total': 'Mean of the signal-to-noise ratios (Dietrich) of the tissues',
    'cnr': 'Contrast-to-noise ratio of white and grey matter (Magnotta 2006)',
    'cjv': 'Coefficient of joint variation of white and grey matter (Ganzetti 2016); low is good',
    'efc': 'Entropy focus criterion (Atkinson 1997); low is good',
    'fber': 'Foreground-background energy ratio (Shehzad 2015); high is good',
    'wm2max': 'Median of white matter over the 99.95th percentile of the image',
    'wm_gm_ratio': 'Median of white matter over median of grey matter',
    'overlap_mean': 'Mean of the overlaps of the tissues',
    'tiv_ml': 'Total intracranial volume: GM + WM + CSF',
    'brain_volume_ml': 'GM + WM',
    'gm_wm_ratio': 'Volume of grey matter over volume of white matter',
    'border_contact': 'Area of brain at the border of the field of view over its largest '
    'cross-section',
    'hemisphere_asymmetry': '200 (left - right) / (left + right) of cerebral WM and cortex',
    'missing_structures': 'Number of the 25 structures with less than 50 mm^3',
    'mean_entropy': 'Mean uncertainty (normalised entropy) inside the brain, 0 to 1',
    'confidence': 'Mean probability of the network for the brain that it found, 0 to 1',
    'norm_affine_dice': 'Overlap (Dice) of scan and template after the affine registration',
    'norm_jacobian_min': 'Smallest Jacobian determinant of the nonlinear deformation',
    'norm_jacobian_p1': 'First percentile of the Jacobian determinant',
    'norm_jacobian_p99': '99th percentile of the Jacobian determinant',
    'norm_jacobian_max': 'Largest Jacobian determinant of the nonlinear deformation',
    'norm_inverse_error_mm': 'Mean distance in the brain between a point and where both '
    'directions of the deformation, one after the other, take it',
    'norm_seconds_affine': 'Duration of the affine registration',
    'norm_seconds_network': 'Duration of the prediction by the network',
    'norm_seconds_refine': 'Duration of the optimisation',
    'qc_status': 'Worst of all checks: ok, warn or fail',
    'qc_reasons': 'What the checks found, separated by semicolons',
}
_UNITS = {
    'tiv_ml': 'mL', 'brain_volume_ml': 'mL', 'hemisphere_asymmetry': '%',
    'norm_inverse_error_mm': 'mm', 'norm_seconds_affine': 's', 'norm_seconds_network': 's',
    'norm_seconds_refine': 's',
}  # fmt: skip


def qc_columns(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what columns of the quality table mean, for its JSON sidecar.

    Parameters
    ----------
    names : iterable of str
        Measures, ``qc_status`` and ``qc_reasons``.
    """
    columns = {}
    for name in names:
        text = _SINGLE.get(name)
        if text is None and name.startswith(COREGISTRATION_PREFIX):
            contrast, _, measure = name.removeprefix(COREGISTRATION_PREFIX).partition('_')
            text = _COREGISTRATION[measure].format(contrast.upper())
        elif text is None:
            stem, _, tissue = name.rpartition('_')
            if stem not in _COLUMNS and name.startswith(REGISTRATION_PREFIX):
                text = f'Registration: {name.removeprefix(REGISTRATION_PREFIX).replace("_", " ")}'
            else:
                text = _COLUMNS[stem].format(_TISSUE_NAMES[tissue])
        columns[name] = {'Description': text}
        if name in _UNITS:
            columns[name]['Units'] = _UNITS[name]
        elif name.startswith(COREGISTRATION_PREFIX) and name.endswith(('_mm', '_degrees')):
            columns[name]['Units'] = 'mm' if name.endswith('_mm') else 'deg'
    return columns


def qc_table(measures: Mapping[str, float], verdict: Mapping[str, Any]) -> pd.DataFrame:
    """Return the quality table: one row, one column per measure, then verdict and reasons.

    Parameters
    ----------
    measures : mapping of str to float
    verdict : mapping
        As from :func:`assess`.
    """
    import pandas as pd

    row: dict[str, Any] = dict(measures)
    row['qc_status'] = verdict['status']
    row['qc_reasons'] = '; '.join(verdict['reasons'])
    return pd.DataFrame([row])
