# SPDX-License-Identifier: Apache-2.0
"""The analyses that a user may ask for, from the configuration to their section of the page."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.errors import UsageError
from bids_app.group.options import parse_map
from bids_app.group.results import AnalysisResult

if TYPE_CHECKING:
    from bids_app.config import RunConfig
    from bids_app.group.derivatives import Study

LOGGER = logging.getLogger('anatnet.group')

ANALYSES_FOLDER = 'group'
"""Folder of their results in the output folder."""

_MAP_WORDS = {
    'vbm_gm': 'modulated maps of grey matter',
    'vbm_wm': 'modulated maps of white matter',
    'jacobian': 'maps of local volume (Jacobian)',
}
_CORRECTION_WORDS = {
    'fwe': 'family-wise',
    'tfce': 'family-wise after TFCE',
    'fdr': 'false discovery rate',
}


def check_request(config: RunConfig, study: Study) -> tuple[str, ...]:
    """Check the asked analyses before anything is computed.

    Returns
    -------
    tuple of str
        The contrasts: those asked for, or every column of the design but the intercept.

    Raises
    ------
    UsageError
        If a formula, contrast, column or kind of map does not fit the data.
    """
    contrasts: tuple[str, ...] = ()
    if not (config.formula or config.classify):
        return contrasts
    table = study.table()
    maps = _maps(config, study)
    usable = [place for place, path in enumerate(maps) if path is not None]
    if config.classify:
        from bids_app.group.targets import read_target

        missing = {place: 'no map' for place in range(len(maps)) if place not in set(usable)}
        read_target(table, config.classify, missing, force=config.force)
    if config.formula:
        from bids_app.group.design import make_contrast, make_design

        design = make_design(table.iloc[usable], config.formula)
        contrasts = config.contrasts or tuple(
            column for column in design.columns if column != 'Intercept'
        )
        if not contrasts:
            contrasts = ('Intercept',)
        for contrast in contrasts:
            make_contrast(contrast, design)
    return contrasts


def _maps(config: RunConfig, study: Study) -> list[Path | None]:
    """Find the maps to analyse."""
    kind, fwhm = parse_map(config.group_map)
    maps = study.maps(kind, fwhm)
    if all(path is None for path in maps):
        raise UsageError(
            f'no finished session has maps "{config.group_map}" in template space; run the '
            'participant level with --modules vbm first'
        )
    return maps


def linear_model(config: RunConfig, study: Study, contrasts: tuple[str, ...]) -> AnalysisResult:
    """Fit the general linear model of ``--model``."""
    from bids_app.group.design import contrast_label
    from bids_app.group.glm import run_glm

    kind, fwhm = parse_map(config.group_map)
    place = f'{kind.removeprefix("vbm_")}-{contrast_label(config.formula or "")}'
    with _work_folder(config.work_dir) as work_dir:
        found = run_glm(
            study,
            config.formula or '',
            contrasts,
            out_dir=study.output_dir / ANALYSES_FOLDER / f'glm_{place}',
            map_kind=kind,
            fwhm=fwhm,
            work_dir=work_dir,
            n_permutations=config.n_permutations,
            seed=config.random_seed,
            threshold=config.mask_threshold,
            tfce=config.tfce,
            repeated=config.repeated_sessions,
            n_jobs=config.nprocs,
        )
    return glm_section(found)


def classification(config: RunConfig, study: Study) -> AnalysisResult:
    """Train and cross-validate the classifiers of ``--classify``."""
    from bids_app.group.classify import run_classification
    from bids_app.group.classify_results import summarise
    from bids_app.group.design import contrast_label
    from bids_app.inference.device import resolve_device

    kind, fwhm = parse_map(config.group_map)
    choice = resolve_device(config.device)
    LOGGER.info('Device: %s', choice.reason)
    place = f'classify_{kind.removeprefix("vbm_")}-{contrast_label(config.classify or "")}'
    found = run_classification(
        study,
        config.classify or '',
        out_dir=study.output_dir / ANALYSES_FOLDER / place,
        map_kind=kind,
        fwhm=fwhm,
        seed=config.random_seed,
        device=choice.device,
        force=config.force,
        n_permutations=config.n_permutations,
        n_jobs=config.nprocs,
    )
    return summarise(found)


def glm_section(found: Mapping[str, Any]) -> AnalysisResult:
    """Word the result of :func:`bids_app.group.glm.run_glm` for the page and the log."""
    result = AnalysisResult(f'Model {found["formula"]}', methods=found['methods'])
    smoothing = f', smoothed with {found["fwhm"]:g} mm' if found.get('fwhm') else ''
    result.summary.append(
        f'{found["n"]} sessions, {found["df"]} degrees of freedom, {found["mask_voxels"]:,} '
        f'voxels ({found["mask_mm3"] / 1000:,.0f} ml) of '
        f'{_MAP_WORDS.get(found.get("map_kind", ""), "maps")}{smoothing}.'
    )
    result.notes += found['notes']
    result.notes += [f'Left out: {e["session"]}: {e["reason"]}' for e in found['dropped'][:10]]
    if len(found['dropped']) > 10:
        result.notes.append(f'{len(found["dropped"]) - 10} more sessions were left out.')
    if design := found['files'].get('design_figure'):
        result.figures.append(design)
    for contrast in found['contrasts']:
        significant = ', '.join(
            f'{count:,} ({_CORRECTION_WORDS.get(name, name)})'
            for name, count in contrast['significant'].items()
        )
        best = contrast['largest']
        place = f'({best["x"]:.0f}, {best["y"]:.0f}, {best["z"]:.0f}) mm'
        region = f', {best["region"]}' if best.get('region') else ''
        chance = f', corrected p = {best["p_fwe"]:.3g}' if best.get('p_fwe') is not None else ''
        result.summary.append(
            f'{contrast["name"]}: significant voxels: {significant or "not tested"}. Strongest '
            f'{contrast["test"]} = {best["statistic"]:.2f} at {place}{region}{chance}.'
        )
        result.figures.append(contrast['figure'])
        result.tables.append((f'Clusters of {contrast["name"]}', contrast['table']))
    return result


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Make the work folder; remove it again if it is still empty."""
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    with contextlib.suppress(OSError):
        folder.rmdir()
