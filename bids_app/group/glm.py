# SPDX-License-Identifier: Apache-2.0
"""Voxelwise statistics of a study: from a formula and contrasts to maps, tables and pictures.

What is computed is in :mod:`~bids_app.group.linear`, :mod:`~bids_app.group.permutation` and
:mod:`~bids_app.group.tfce`; here the sessions are chosen, the steps put in order and the results
written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.errors import UsageError
from bids_app.group.clusters import RegionMap, structure_map
from bids_app.group.design import Contrast, Design, contrast_label, make_contrast, make_design
from bids_app.group.glm_results import methods, write_contrast, write_model
from bids_app.group.linear import false_discovery, fit, partition
from bids_app.group.maps import MapMatrix, check_maps, load_matrix, mean_map
from bids_app.group.options import REPEATED
from bids_app.group.permutation import corrected, null_distribution, permutations
from bids_app.group.tfce import Enhancer
from bids_app.morphometry.volumes import voxel_volume

if TYPE_CHECKING:
    import pandas as pd

    from bids_app.group.derivatives import Study

LOGGER = logging.getLogger('anatnet.group')


@dataclass(frozen=True)
class Settings:
    """What an analysis depends on besides the data.

    Attributes
    ----------
    formula : str
        Of the design, see :func:`~bids_app.group.design.make_design`.
    contrasts : tuple of str
        See :func:`~bids_app.group.design.make_contrast`; none: every column but the intercept.
    threshold : float
        Absolute, in the unit of the maps.
    mask : str
        ``mean``: voxels whose mean is above the threshold; ``all``: voxels above it in each map.
    n_permutations : int
        0 for no family-wise correction.
    seed : int
        Of the permutations.
    tfce : bool
        Whether to add threshold-free cluster enhancement.
    two_sided : bool
        For t contrasts.
    repeated : str
        Several sessions of a subject: ``error``, or take the ``first`` or ``last`` that has all
        values.
    n_jobs : int
        Threads.
    """

    formula: str
    contrasts: tuple[str, ...] = ()
    threshold: float = 0.1
    mask: str = 'mean'
    n_permutations: int = 1000
    seed: int = 0
    tfce: bool = True
    two_sided: bool = True
    repeated: str = 'error'
    n_jobs: int = 1

    def __post_init__(self) -> None:
        if self.n_permutations < 0:
            raise UsageError(f'{self.n_permutations} permutations: the number cannot be negative')
        if self.mask not in ('mean', 'all'):
            raise UsageError(f'mask {self.mask!r}: take mean or all')
        if self.repeated not in REPEATED:
            raise UsageError(f'repeated sessions {self.repeated!r}: take {", ".join(REPEATED)}')


def run_glm(
    study: Study,
    formula: str,
    contrasts: Sequence[str] = (),
    *,
    out_dir: Path,
    map_kind: str = 'vbm_gm',
    fwhm: float | None = None,
    work_dir: Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Fit a general linear model to the maps of a study and write the results.

    Parameters
    ----------
    study : Study
        Sessions, their table and maps.
    formula, contrasts : str and sequence of str
        See :func:`~bids_app.group.design.make_design` and
        :func:`~bids_app.group.design.make_contrast`.
    out_dir : Path
        Folder of this model's results.
    map_kind, fwhm : str and float, optional
        Which maps, see :meth:`~bids_app.group.derivatives.Study.maps`.
    work_dir : Path, optional
        Where a matrix of maps goes that is too large for memory.
    **settings
        Other fields of :class:`Settings`: ``threshold``, ``mask``, ``n_permutations``, ``seed``,
        ``tfce``, ``two_sided``, ``repeated``, ``n_jobs``.

    Returns
    -------
    dict
        See :func:`analyse`, with ``map_kind``, ``fwhm``, ``space`` and ``res``.

    Raises
    ------
    UsageError
        If the model cannot be fitted; the message says why.
    """
    chosen = Settings(formula, tuple(contrasts), **settings)
    choice = study.map_choice(map_kind, fwhm)
    if choice is None:
        smoothing = '' if fwhm is None else f' with a smoothing of {fwhm:g} mm'
        raise UsageError(
            f'no finished session has a map {map_kind}{smoothing} in template space: run the '
            'participant level with normalisation first'
        )
    kind, width, space, res = choice
    reasons = {
        number: f'{record.status}: {record.reason}' if record.reason else record.status
        for number, record in enumerate(study.sessions) if record.status != 'done'
    }  # fmt: skip
    facts = {'map_kind': kind, 'fwhm': width, 'space': space, 'res': res}
    result = analyse(
        study.table(), study.maps(kind, width, space, res), chosen, out_dir=Path(out_dir),
        work_dir=work_dir, reasons=reasons, regions=template_regions(space), facts=facts,
    )  # fmt: skip
    return result


def template_regions(space: str) -> list[RegionMap]:
    """Return the structures that the app knows in a space; none outside MNI space.

    The templates of the MNI152 family agree to within some millimetres: the labels of the
    default one name the peaks of all of them.
    """
    from bids_app.images.templates import DEFAULT_SPACE

    if not space.startswith('MNI152'):
        return []
    name = f'tpl-{DEFAULT_SPACE}_res-1p5_desc-wholebrain_dseg.nii.gz'
    with as_file(files('bids_app.data') / 'templates' / name) as path:
        return [structure_map(path)] if path.is_file() else []


def analyse(
    table: pd.DataFrame,
    paths: Sequence[Path | None],
    settings: Settings,
    *,
    out_dir: Path,
    work_dir: Path | None = None,
    reasons: dict[int, str] | None = None,
    regions: Sequence[RegionMap] = (),
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fit a model to maps and write the results.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per session: ``participant_id``, ``session_id`` (optional) and the columns that
        the formula uses.
    paths : sequence of Path or None
        The map of every row.
    settings : Settings
        Model, contrasts and corrections.
    out_dir : Path
        Folder of the results.
    work_dir : Path, optional
        Where a matrix of maps goes that is too large for memory.
    reasons : dict of int to str, optional
        Why rows have no map, by row.
    regions : sequence of RegionMap
        Atlases that name the clusters.
    facts : dict, optional
        More about the maps, for the sidecars.

    Returns
    -------
    dict
        ``formula``, ``columns``, ``variables``, ``n``, ``df``, ``dropped`` (list of ``session``
        and ``reason``), ``threshold``, ``mask_rule``, ``mask_voxels``, ``mask_mm3``,
        ``n_permutations``, ``seed``, ``tfce``, ``two_sided``, ``seconds``, ``notes`` (list of
        str), ``methods`` (text), ``files`` (dict of Path: ``design``, ``design_figure``,
        ``mask``, ``mean``) and ``contrasts``: list of dict with ``name``, ``label``, ``test``
        (t or F), ``weights`` (dict by column or list of them), ``significant`` (voxels by
        correction), ``largest`` (``statistic`` and ``p_fwe`` of the strongest voxel, place in
        mm, ``region``), ``clusters`` (list of dict, see the cluster table), ``files`` (dict of
        Path by statistic), ``table`` and ``figure`` (Path).
    """
    begin = time.perf_counter()
    reasons = dict(reasons or {})
    for row, problem in check_maps(paths).items():
        reasons.setdefault(row, problem)
    usable = [row for row in range(len(table)) if row not in reasons]
    rows, design = _choose(table, usable, settings, reasons)
    contrasts = _contrasts(settings, design)
    for contrast in contrasts:
        partition(design.matrix, contrast.weights)  # what cannot be tested is said before reading
    LOGGER.info('Model %s: reading %d maps', settings.formula, len(rows))
    mean, mask, affine, broken = mean_map(
        [paths[row] for row in rows], every=settings.mask == 'all', threshold=settings.threshold,
        n_jobs=settings.n_jobs,
    )  # fmt: skip
    if broken:
        reasons.update({rows[number]: problem for number, problem in broken.items()})
        rows, design = _choose(
            table, [row for row in rows if row not in reasons], settings, reasons
        )
        contrasts = _contrasts(settings, design)
    if not mask.any():
        raise UsageError(
            f'no voxel is above the threshold of {settings.threshold:g} in '
            f'{"every map" if settings.mask == "all" else "the mean map"}: lower it'
        )
    matrix = load_matrix(
        [paths[row] for row in rows], mean, mask, affine, work_dir=work_dir, n_jobs=settings.n_jobs
    )
    left = sorted(reasons)
    result: dict[str, Any] = {
        'formula': settings.formula,
        'columns': list(design.columns),
        'variables': list(design.variables),
        'n': len(rows),
        'df': design.degrees_of_freedom,
        'dropped': [
            {'session': name, 'reason': reasons[row]}
            for row, name in zip(left, session_names(table, left), strict=True)
        ],
        'threshold': settings.threshold,
        'mask_rule': settings.mask,
        'mask_voxels': int(mask.sum()),
        'mask_mm3': float(mask.sum() * voxel_volume(affine)),
        'n_permutations': settings.n_permutations,
        'seed': settings.seed,
        'tfce': settings.tfce and settings.n_permutations > 0,
        'two_sided': settings.two_sided,
        **(facts or {}),
        'notes': _notes(design, settings, reasons),
    }  # fmt: skip
    out_dir = Path(out_dir)
    result['files'] = write_model(out_dir, design, session_names(table, rows), matrix)
    enhancer = Enhancer(mask) if result['tfce'] else None
    result['contrasts'] = []
    for contrast in contrasts:
        maps = _test(contrast, design, matrix, settings, enhancer)
        result['contrasts'].append(
            write_contrast(out_dir, contrast, design, matrix, maps, regions, result)
        )
    result['methods'] = methods(result)
    result['seconds'] = round(time.perf_counter() - begin, 1)
    return result


def _choose(
    table: pd.DataFrame, usable: list[int], settings: Settings, reasons: dict[int, str]
) -> tuple[list[int], Design]:
    """Choose the rows that enter the model, note why others do not, and build the design."""
    if not usable:
        first = next(iter(reasons.values()), 'there are no sessions')
        raise UsageError(f'no session can enter the model: {first}')
    design = make_design(table.iloc[usable], settings.formula)
    reasons.update({usable[row]: reason for row, reason in design.dropped.items()})
    rows = [usable[row] for row in design.kept]
    sessions: dict[str, list[int]] = {}
    for row in rows:
        sessions.setdefault(str(table['participant_id'].iloc[row]), []).append(row)
    repeated = {subject: own for subject, own in sessions.items() if len(own) > 1}
    if not repeated:
        return rows, design
    if settings.repeated == 'error':
        subject, own = next(iter(repeated.items()))
        raise UsageError(
            f'{len(repeated)} of {len(sessions)} subjects have several sessions ({subject}: '
            f'{", ".join(session_names(table, own))}), which are not independent: choose one per '
            'subject with --session-label, or --repeated-sessions first (or last)'
        )
    at = 0 if settings.repeated == 'first' else -1
    for own in repeated.values():
        for row in own:
            if row != own[at]:
                reasons[row] = f'not the {settings.repeated} session of its subject'
    rows = [row for row in rows if row not in reasons]
    return rows, make_design(table.iloc[rows], settings.formula)


def _contrasts(settings: Settings, design: Design) -> list[Contrast]:
    """Read the contrasts; labels that are the same but for their signs get a number."""
    names = settings.contrasts or tuple(name for name in design.columns if name != 'Intercept')
    contrasts: list[Contrast] = []
    for name in names:
        contrast = make_contrast(name, design)
        taken = {other.label for other in contrasts}
        same = 1
        while contrast.label in taken:
            same += 1
            contrast = replace(contrast, label=f'{contrast_label(name)}n{same}')
        contrasts.append(contrast)
    return contrasts


def session_names(table: pd.DataFrame, rows: Sequence[int]) -> list[str]:
    """Return ``sub-01_ses-a`` for rows of a table with ``participant_id`` and ``session_id``."""
    names = []
    for row in rows:
        session = table['session_id'].iloc[row] if 'session_id' in table.columns else None
        subject = str(table['participant_id'].iloc[row])
        names.append(f'{subject}_{session}' if isinstance(session, str) else subject)
    return names


def _notes(design: Design, settings: Settings, reasons: dict[int, str]) -> list[str]:
    """Say what a reader of the results must know."""
    notes = []
    if reasons:
        notes.append(f'{len(reasons)} sessions are not in the model (see the list of reasons).')
    if design.degrees_of_freedom < 20:
        notes.append(
            f'{design.degrees_of_freedom} degrees of freedom: only very strong effects can be '
            'found, and the sizes of those that are found are overestimates.'
        )
    if settings.n_permutations == 0:
        notes.append('No permutations: there is no family-wise correction.')
    elif settings.n_permutations < 500:
        notes.append(
            f'{settings.n_permutations} permutations: corrected p values are rough, and none is '
            f'below {1 / (settings.n_permutations + 1):.2g}.'
        )
    if 'tiv' not in design.variables:
        notes.append(
            'The model has no total intracranial volume (tiv): modulated maps also differ by the '
            'size of the head.'
        )
    if len(settings.contrasts) > 1:
        notes.append('p values are corrected over voxels, not over contrasts.')
    return notes


def _test(
    contrast: Contrast,
    design: Design,
    matrix: MapMatrix,
    settings: Settings,
    enhancer: Enhancer | None,
) -> dict[str, np.ndarray]:
    """Test one contrast: maps of shape (voxels,) by the name of their statistic."""
    part = partition(design.matrix, contrast.weights)
    two_sided = settings.two_sided and contrast.is_t
    found = fit(matrix.values, part, two_sided=two_sided)
    maps = {'t' if contrast.is_t else 'f': found.statistic}
    if found.effect is not None:
        maps['effect'] = found.effect
    if found.d is not None and design.compares_levels(contrast):
        maps['d'] = found.d
    maps['r' if contrast.is_t else 'etasq'] = found.partial
    maps['logp'] = found.log_p
    maps['logpfdr'] = false_discovery(found.log_p)
    if not settings.n_permutations:
        return maps
    LOGGER.info('Contrast %s: %d permutations', contrast.name, settings.n_permutations)
    orders = permutations(len(design.matrix), settings.n_permutations, settings.seed)
    null = null_distribution(
        matrix.values, part, orders, two_sided=two_sided, enhancer=enhancer,
        n_jobs=settings.n_jobs, progress=_reporter(contrast.name, settings.n_permutations),
    )  # fmt: skip
    maps['logpfwe'] = corrected(found.statistic, null.voxel, two_sided=two_sided)
    if enhancer is not None and null.tfce is not None:
        maps['tfce'] = enhancer(found.statistic, two_sided=two_sided)
        maps['logptfce'] = corrected(maps['tfce'], null.tfce, two_sided=two_sided)
    return maps


def _reporter(name: str, total: int) -> Callable[[int], None]:
    """Return a function that logs the progress every tenth of the way."""
    state = {'next': total // 10}

    def report(done: int) -> None:
        if done >= state['next'] and done < total:
            LOGGER.info('Contrast %s: %d of %d permutations', name, done, total)
            state['next'] = done + total // 10

    return report
