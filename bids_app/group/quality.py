# SPDX-License-Identifier: Apache-2.0
"""Which sessions stand apart from the others: robust z-scores, and one score with its reasons.

Every measure is compared with the same measure of all finished sessions. A robust z-score is the
distance to the median in units of the scaled median absolute deviation, so that outliers do not
hide themselves by widening the spread (Iglewicz and Hoaglin, How to detect and handle outliers,
1993). The verdict of the participant level, with its fixed thresholds, counts as well: a whole
study of bad scans has no outliers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

MIN_SESSIONS = 5
"""Finished sessions below which nothing is compared with the others."""

Z_START, Z_LOOK, Z_DOUBT, Z_FULL = 2.5, 3.5, 5.0, 7.5
"""Robust z at which a measure begins to cost, asks for a look, is doubtful, and costs all."""

LOOK_BELOW, DOUBT_BELOW = 80.0, 50.0
"""Scores below which a session is rated ``look`` and ``doubtful``."""

CHECK_SEVERITY = {'warn': 0.25, 'fail': 0.6}
"""What a warning or failure of the participant level costs: enough for ``look`` or ``doubtful``,
as its own traffic light says."""

HIGHER, LOWER, MIDDLE = 1, -1, 0
"""Which values of a measure are good: high ones, low ones, those like the others."""

GROUPS = {
    'image': 'Image',
    'segmentation': 'Segmentation',
    'volumes': 'Volumes',
    'registration': 'Registration',
    'homogeneity': 'Homogeneity',
}
"""Groups of measures; the worst measure of each counts."""


@dataclass(frozen=True)
class Judged:
    """How a measure is judged: its group and which values are good."""

    group: str
    better: int


JUDGED = {
    'snr_total': Judged('image', HIGHER),
    'snrd_total': Judged('image', HIGHER),
    'cnr': Judged('image', HIGHER),
    'cjv': Judged('image', LOWER),
    'efc': Judged('image', LOWER),
    'fber': Judged('image', HIGHER),
    'wm2max': Judged('image', MIDDLE),
    'wm_gm_ratio': Judged('image', HIGHER),
    'overlap_mean': Judged('segmentation', HIGHER),
    'mean_entropy': Judged('segmentation', LOWER),
    'confidence': Judged('segmentation', HIGHER),
    'tiv_ml': Judged('volumes', MIDDLE),
    'icvs_gm': Judged('volumes', MIDDLE),
    'icvs_wm': Judged('volumes', MIDDLE),
    'icvs_csf': Judged('volumes', MIDDLE),
    'hemisphere_asymmetry': Judged('volumes', MIDDLE),
    'norm_affine_dice': Judged('registration', HIGHER),
    'norm_dice_gm': Judged('registration', HIGHER),
    'norm_dice_wm': Judged('registration', HIGHER),
    'norm_dice_csf': Judged('registration', HIGHER),
    'norm_correlation_gm': Judged('registration', HIGHER),
    'norm_inverse_error_mm': Judged('registration', LOWER),
    'mean_correlation': Judged('homogeneity', HIGHER),
    'mahalanobis_distance': Judged('homogeneity', LOWER),
}
"""The measures of ``desc-qc_stats.tsv`` (and of the homogeneity) that count for the score."""

# Scale of the median absolute deviation for few values, so that it estimates the standard
# deviation of a normal distribution without bias (Croux and Rousseeuw, Time-efficient algorithms
# for two highly robust estimators of scale, Computational Statistics 1:411-428, 1992).
_SMALL_SAMPLE = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}
_NORMAL = 1.4826
# The mean absolute deviation of a normal distribution is sqrt(2 / pi) of its standard deviation.
_MEAN_NORMAL = math.sqrt(math.pi / 2)


@dataclass(frozen=True)
class Finding:
    """Something that costs: the group of the measure, how much (0 to 1), and why."""

    group: str
    severity: float
    reason: str


@dataclass
class Rating:
    """Score (0 bad to 100 good), rating and reasons of one session."""

    score: float
    rating: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Reasons, the worst first."""
        return [finding.reason for finding in self.findings]


def robust_z(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Compare every value with all others.

    Parameters
    ----------
    values : array-like, shape (n,)
        NaN for what is missing.

    Returns
    -------
    ndarray, shape (n,)
        Distance to the median over the median absolute deviation, scaled to the standard
        deviation of a normal distribution. Where more than half of the values are equal, the
        mean absolute deviation takes its place; if all are equal, 0. NaN for missing values, and
        for all where fewer than :data:`MIN_SESSIONS` are there.

    Notes
    -----
    The spread of few values is itself uncertain: of ten normally distributed ones, 1.3 % are
    beyond 3.5 of these units (simulated), not 0.05 %. The distance is therefore taken as Student's
    t with (n - 1) / 2 degrees of freedom and expressed as the normal deviate that is as rare.
    """
    from scipy.special import ndtri, stdtr

    values = np.asarray(values, float)
    there = np.isfinite(values)
    result = np.full(values.shape, np.nan)
    count = int(there.sum())
    middle, spread = _middle_and_spread(values[there])
    if math.isnan(spread):
        return result
    result[there] = 0.0
    if spread > 0:
        distance = (values[there] - middle) / spread
        tail = stdtr((count - 1) / 2, -np.abs(distance))
        result[there] = -np.sign(distance) * ndtri(np.maximum(tail, 1e-300))
    return result


def _middle_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Return the median and the scaled median absolute deviation; NaN for too few values."""
    count = values.size
    if count < MIN_SESSIONS:
        return math.nan, math.nan
    middle = float(np.median(values))
    deviation = np.abs(values - middle)
    small = _SMALL_SAMPLE.get(count, count / (count - 0.8))
    spread = small * _NORMAL * float(np.median(deviation))
    # Rounding of the values in a table must not make a spread of its own.
    if spread <= 1e-9 * max(float(np.abs(values).max()), 1e-300):
        spread = _MEAN_NORMAL * float(np.mean(deviation))
    return middle, spread


@dataclass(frozen=True)
class Scale:
    """A growing function under which a measure is spread evenly to both sides, and its inverse."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


LOGARITHM = Scale(np.log, np.exp)
"""For volumes, which differ by factors."""

FISHER = Scale(lambda r: np.arctanh(np.clip(r, -0.999999, 0.999999)), np.tanh)
"""For correlations."""


def bounds(
    values: np.ndarray, better: int, scale: Scale | None = None, z: float = Z_LOOK
) -> tuple[float | None, float | None]:
    """Return the values that have a robust z of minus and plus `z`.

    None where nothing lies beyond: on the good side, and where there is no comparison.
    """
    from scipy.special import ndtr, stdtrit

    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if scale is not None:
        values = scale.forward(values)
    middle, spread = _middle_and_spread(values)
    if not spread > 0:
        return None, None
    reach = -spread * float(stdtrit((values.size - 1) / 2, ndtr(-z)))
    ends = np.array([middle - reach, middle + reach])
    low, high = ends if scale is None else scale.backward(ends)
    return (
        float(low) if better != LOWER else None,
        float(high) if better != HIGHER else None,
    )


def badness(z: np.ndarray, better: int) -> np.ndarray:
    """Turn z-scores into how far a value is on the bad side: never below 0."""
    z = np.asarray(z, float)
    return np.abs(z) if better == MIDDLE else np.maximum(-better * z, 0)


def severity(z: float | np.ndarray) -> np.ndarray:
    """Return what a z-score on the bad side costs: 0 up to 2.5, 1 from 7.5, a line between.

    Examples
    --------
    >>> severity([2, 3.5, 5, 9]).tolist()
    [0.0, 0.2, 0.5, 1.0]
    """
    return np.clip((np.asarray(z, float) - Z_START) / (Z_FULL - Z_START), 0, 1)


def rate(findings: Sequence[Finding]) -> Rating:
    """Combine findings to a score.

    The worst finding of every group counts; the score is 100 times the product of one minus
    these. One measure at z = 3.5 gives 80, at z = 5 gives 50.
    """
    worst: dict[str, float] = {}
    for finding in findings:
        worst[finding.group] = max(worst.get(finding.group, 0.0), finding.severity)
    score = 100.0 * math.prod(1.0 - cost for cost in worst.values())
    return Rating(score, _word(score), sorted(findings, key=lambda f: (-f.severity, f.reason)))


def _word(score: float) -> str:
    # A hair of rounding must not turn 80 into a rating below 80.
    if score < DOUBT_BELOW - 1e-9:
        return 'doubtful'
    return 'look' if score < LOOK_BELOW - 1e-9 else 'ok'


def compare(
    label: str,
    values: np.ndarray,
    group: str,
    better: int,
    scale: Scale | None = None,
) -> tuple[np.ndarray, list[Finding | None]]:
    """Compare one measure between sessions.

    Parameters
    ----------
    label : str
        How a reason calls the measure.
    values : ndarray, shape (n,)
        One value per session, NaN where there is none.
    group : str
        Key of :data:`GROUPS`.
    better : int
        :data:`HIGHER`, :data:`LOWER` or :data:`MIDDLE`.
    scale : Scale, optional
        On which values are compared; the reasons show the values themselves.

    Returns
    -------
    z : ndarray, shape (n,)
        Robust z-scores, signed.
    findings : list of Finding or None
        For every session.
    """
    z = robust_z(values if scale is None else scale.forward(values))
    costs = severity(np.nan_to_num(badness(z, better), nan=0.0))
    median = float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan
    findings: list[Finding | None] = []
    for value, distance, cost in zip(values, z, costs, strict=True):
        if cost <= 0:
            findings.append(None)
            continue
        side = 'above' if distance > 0 else 'below'
        shown = f'{label} {value:.4g} is {side} the others'
        findings.append(
            Finding(
                group,
                float(cost),
                f'{shown} (median {median:.4g}, robust z {distance:+.1f})',
            )
        )
    return z, findings


def check_findings(status: str, reasons: Sequence[str]) -> list[Finding]:
    """Turn the verdict of the participant level (``ok``, ``warn``, ``fail``) into findings.

    The severity is that of the worst check; the reasons come in the order of the verdict, the
    worst first.
    """
    cost = CHECK_SEVERITY.get(status)
    if cost is None:
        return []
    return [
        Finding('segmentation', cost if index == 0 else CHECK_SEVERITY['warn'], reason)
        for index, reason in enumerate(reasons or [f'quality check: {status}'])
    ]


def thresholds() -> Mapping[str, str]:
    """Return the rules of the score in words, for dictionaries, page and methods."""
    return {
        'comparison': f'robust z: distance to the median over 1.4826 times the median absolute '
        "deviation of all finished sessions, made smaller for few sessions (as Student's t with "
        f'(n - 1) / 2 degrees of freedom); from {MIN_SESSIONS} sessions',
        'cost': f'0 up to a robust z of {Z_START:g} on the bad side, growing in a straight line '
        f'to 1 at {Z_FULL:g}; a check of the participant level that warns costs '
        f'{CHECK_SEVERITY["warn"]:g}, one that fails {CHECK_SEVERITY["fail"]:g}',
        'score': '100 times the product, over the groups of measures '
        f'({", ".join(GROUPS.values()).lower()}), of one minus the cost of the worst measure of '
        'the group',
        'rating': f'ok from {LOOK_BELOW:g} (no measure beyond z = {Z_LOOK:g}), look below, '
        f'doubtful below {DOUBT_BELOW:g} (as one measure beyond z = {Z_DOUBT:g}); failed '
        'sessions have no score',
    }
