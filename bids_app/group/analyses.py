# SPDX-License-Identifier: Apache-2.0
"""The analyses that a user may ask for, from the configuration to their section of the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
    if config.classify and config.classify not in table.columns:
        raise UsageError(
            f'there is no column "{config.classify}" to classify; there are '
            f'{", ".join(map(str, table.columns))}'
        )
    if config.formula:
        from bids_app.group.design import make_contrast, make_design

        usable = [place for place, path in enumerate(_maps(config, study)) if path is not None]
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
    found = run_glm(
        study,
        config.formula or '',
        contrasts,
        out_dir=study.output_dir / ANALYSES_FOLDER / f'glm_{place}',
        map_kind=kind,
        fwhm=fwhm,
        work_dir=_made(config.work_dir),
        n_permutations=config.n_permutations,
        seed=config.random_seed,
        threshold=config.mask_threshold,
        tfce=config.tfce,
        repeated=config.repeated_sessions,
        n_jobs=config.nprocs,
    )
    return glm_section(found)


def glm_section(found: Mapping[str, Any]) -> AnalysisResult:
    """Word the result of :func:`bids_app.group.glm.run_glm` for the page and the log."""
    result = AnalysisResult(f'Model {found["formula"]}', methods=found['methods'])
    smoothing = f', smoothed with {found["fwhm"]:g} mm' if found.get('fwhm') else ''
    result.summary.append(
        f'{found["n"]} sessions, {found["df"]} degrees of freedom, {found["mask_voxels"]:,} '
        f'voxels ({found["mask_mm3"] / 1000:,.0f} ml) of the maps {found.get("map_kind", "")}'
        f'{smoothing}.'
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


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
