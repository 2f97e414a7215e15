# SPDX-License-Identifier: Apache-2.0
"""Judges every session of a study: all measures compared, one score each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bids_app.data import structures
from bids_app.group.homogeneity import normal_z, unusual_distance
from bids_app.group.quality import (
    CHECK_SEVERITY,
    FISHER,
    JUDGED,
    LOGARITHM,
    MIDDLE,
    MIN_SESSIONS,
    Z_LOOK,
    Finding,
    Judged,
    Rating,
    Scale,
    bounds,
    check_findings,
    compare,
    rate,
    severity,
)
from bids_app.group.tables import MISSING, Measurements, numbers
from bids_app.reports.quality import describe, spelled_out

if TYPE_CHECKING:
    from bids_app.group.derivatives import Study
    from bids_app.group.homogeneity import Homogeneity


@dataclass
class Assessment:
    """Ratings of a study; every list and array has one entry per session.

    Attributes
    ----------
    ratings : list of Rating or None
        None for sessions that are not done.
    z : dict of str to ndarray
        Robust z-scores by measure, or by structure for volumes relative to TIV.
    bounds : dict of str to (float or None, float or None)
        Values beyond which a measure asks for a look.
    homogeneity_columns : dict of str to ndarray
        ``mean_correlation``, ``mahalanobis_distance``, ``mahalanobis_p``; empty without maps.
    notes : list of str
        What could not be computed, and why.
    """

    ratings: list[Rating | None]
    z: dict[str, np.ndarray] = field(default_factory=dict)
    bounds: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    homogeneity_columns: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def assess_study(
    study: Study, measured: Measurements, homogeneity: Homogeneity | None = None
) -> Assessment:
    """Compare all sessions and rate each.

    Parameters
    ----------
    study : Study
    measured : Measurements
        From :func:`bids_app.group.tables.read_measurements`.
    homogeneity : Homogeneity, optional
        Resemblance of the maps.
    """
    findings: list[list[Finding]] = [[] for _ in study.sessions]
    result = Assessment([])
    count = len(study.done)
    if count < MIN_SESSIONS:
        result.notes.append(
            f'Sessions are compared with each other from {MIN_SESSIONS} finished ones; there '
            f'{"is" if count == 1 else "are"} {count}. Scores rest on the checks of each session '
            'alone'
        )

    def take(key: str, label: str, values: np.ndarray, judged: Judged, scale: Scale | None = None):
        z, found = compare(label, values, judged.group, judged.better, scale)
        result.z[key] = z
        result.bounds[key] = bounds(values, judged.better, scale)
        for own, finding in zip(findings, found, strict=True):
            if finding is not None:
                own.append(finding)

    for name, judged in JUDGED.items():
        if name in measured.measures:
            values = numbers(measured.measures[name])
            if np.isfinite(values).any():
                take(name, describe(name).label, values, judged)
    _compare_structures(measured, take)
    if homogeneity is not None:
        _compare_maps(homogeneity, result, findings, take)
    for place, own in enumerate(findings):
        status, reasons = measured.verdicts[place], measured.reasons[place]
        parts = [] if reasons == MISSING else reasons.split('; ')
        own += check_findings(status, [spelled_out(part) for part in parts])
    result.ratings = [
        rate(own) if record.status == 'done' else None
        for record, own in zip(study.sessions, findings, strict=True)
    ]
    return result


def _compare_structures(measured: Measurements, take) -> None:
    """Compare the volumes of the 25 structures, relative to the intracranial volume.

    Volumes, above all those of the ventricles, are skewed: their logarithms are compared.
    """
    tiv = numbers(measured.volumes['tiv'])
    for structure in structures():
        if not structure.core or structure.name not in measured.structures:
            continue
        values = numbers(measured.structures[structure.name])
        share = np.full(values.shape, np.nan)
        good = (values > 0) & (tiv > 0)
        share[good] = 100 * values[good] / tiv[good]
        if good.any():
            label = f'{structure.name.replace("-", " ")} (% of TIV)'
            take(structure.name, label, share, Judged('volumes', MIDDLE), LOGARITHM)


def _compare_maps(homogeneity: Homogeneity, result: Assessment, findings, take) -> None:
    """Compare the mean correlations, and judge the distances."""
    result.homogeneity_columns = {
        'mean_correlation': homogeneity.mean_correlation,
        'mahalanobis_distance': homogeneity.distance,
        'mahalanobis_p': homogeneity.probability,
    }
    result.notes += homogeneity.notes
    take(
        'mean_correlation', 'Mean correlation of the grey matter map',
        homogeneity.mean_correlation, JUDGED['mean_correlation'], FISHER,
    )  # fmt: skip
    for place, problem in homogeneity.problems.items():
        findings[place].append(Finding('homogeneity', CHECK_SEVERITY['warn'], problem))
    if not homogeneity.components:
        return
    unusual = normal_z(homogeneity.probability)
    result.z['mahalanobis_distance'] = unusual
    limit = unusual_distance(Z_LOOK, int(homogeneity.used.sum()), homogeneity.components)
    result.bounds['mahalanobis_distance'] = (None, limit)
    costs = severity(np.nan_to_num(unusual, nan=0.0))
    for place, (z, cost) in enumerate(zip(unusual, costs, strict=True)):
        if cost > 0:
            findings[place].append(
                Finding(
                    'homogeneity',
                    float(cost),
                    'Grey matter map is far from the others (squared Mahalanobis distance '
                    f'{homogeneity.distance[place]:.1f} over {homogeneity.components} components, '
                    f'p = {homogeneity.probability[place]:.1g}, as rare as z = {z:.1f})',
                )
            )
