# SPDX-License-Identifier: Apache-2.0
"""Files and words of a general linear model: maps, tables of clusters, sidecars, methods."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_app import __version__
from bids_app.bids.files import atomic_save_nifti, write_sidecar
from bids_app.group.clusters import RegionMap, find_clusters
from bids_app.group.design import Contrast, Design
from bids_app.group.glm_figures import draw_design, draw_statistic
from bids_app.group.maps import MapMatrix
from bids_app.morphometry.volumes import write_table
from bids_app.reports.planes import Volume

LOGGER = logging.getLogger('anatnet.group')

ALPHA = 0.05
"""Corrected p value below which a voxel counts as significant."""

CORRECTIONS = {'fwe': 'logpfwe', 'tfce': 'logptfce', 'fdr': 'logpfdr'}
"""Corrections by the name of the map that holds -log10 of their p value."""

_STATISTICS = {
    't': 't statistic',
    'f': 'F statistic',
    'effect': 'Contrast of coefficients, in units of the maps per unit of the columns',
    'r': 'Partial correlation',
    'd': "Effect over the residual standard deviation (Cohen's d)",
    'etasq': 'Partial eta squared',
    'tfce': 'Threshold-free cluster enhancement of the statistic',
    'logp': '-log10 of the uncorrected p value',
    'logpfdr': '-log10 of p corrected for the false discovery rate (Benjamini-Hochberg)',
    'logpfwe': '-log10 of p, family-wise over all voxels (permutation, largest statistic)',
    'logptfce': '-log10 of p, family-wise over all voxels (permutation, largest TFCE)',
}

_MAP_WORDS = {
    'vbm_gm': 'modulated grey matter maps',
    'vbm_wm': 'modulated white matter maps',
    'jacobian': 'maps of the Jacobian determinant',
}

_CLUSTER_COLUMNS = {
    'correction': {
        'Description': 'Correction under which the cluster is significant (p < 0.05)',
        'Levels': {
            'fwe': 'Family-wise, largest statistic of permutations',
            'tfce': 'Family-wise, largest TFCE of permutations',
            'fdr': 'False discovery rate',
        },
    },
    'cluster': {'Description': 'Number, largest peak first'},
    'direction': {'Description': 'Sign of the statistic'},
    'voxels': {'Description': 'Voxels that share a face or an edge'},
    'size_mm3': {'Description': 'Volume', 'Units': 'mm^3'},
    'x': {'Description': 'Peak, world of the template, to the right', 'Units': 'mm'},
    'y': {'Description': 'Peak, world of the template, to the front', 'Units': 'mm'},
    'z': {'Description': 'Peak, world of the template, upward', 'Units': 'mm'},
    'peak': {'Description': 'Statistic (t or F) at the peak'},
    'p': {'Description': 'Uncorrected p value at the peak'},
    'p_fdr': {'Description': 'p value at the peak corrected for the false discovery rate'},
    'p_fwe': {'Description': 'p value at the peak, family-wise'},
    'p_tfce': {'Description': 'p value at the peak, family-wise after TFCE'},
    'effect': {'Description': 'Contrast of coefficients at the peak'},
    'r': {'Description': 'Partial correlation at the peak'},
    'd': {'Description': "Cohen's d at the peak"},
    'region': {'Description': 'Structure at the peak (or within 3 mm of it)'},
    'regions': {'Description': 'Structures that the cluster covers, in percent of its volume'},
}


def write_model(
    out_dir: Path, design: Design, names: list[str], matrix: MapMatrix
) -> dict[str, Path]:
    """Write what belongs to the model: design, mask and mean.

    Parameters
    ----------
    out_dir : Path
        Made if it is missing.
    design : Design
        The model.
    names : list of str
        Of the sessions, one per row of the design.
    matrix : MapMatrix
        The maps.

    Returns
    -------
    dict of str to Path
        ``design``, ``design_figure``, ``mask``, ``mean``.
    """
    import pandas as pd

    out_dir.mkdir(parents=True, exist_ok=True)

    table = pd.DataFrame(design.matrix, columns=list(design.columns))
    table.insert(0, 'session', names)
    return {
        'design': write_table(table, out_dir / 'design.tsv'),
        'design_figure': draw_design(design, out_dir / 'design.png'),
        'mask': _save(matrix.mask.astype(np.uint8), matrix, out_dir / 'desc-analysis_mask.nii.gz'),
        'mean': _save(matrix.mean, matrix, out_dir / 'stat-mean_statmap.nii.gz'),
    }


def write_contrast(
    out_dir: Path,
    contrast: Contrast,
    design: Design,
    matrix: MapMatrix,
    maps: dict[str, np.ndarray],
    regions: Sequence[RegionMap],
    model: dict[str, Any],
) -> dict[str, Any]:
    """Write maps, cluster table, sidecars and picture of a contrast.

    Parameters
    ----------
    out_dir : Path
        Existing folder.
    contrast, design, matrix
        What was tested.
    maps : dict of str to numpy.ndarray, shape (voxels,)
        By the name of the statistic.
    regions : sequence of RegionMap
        Atlases that name the clusters.
    model : dict
        Facts of the model, see :func:`bids_app.group.glm.analyse`.

    Returns
    -------
    dict
        An entry of ``contrasts``, see :func:`bids_app.group.glm.analyse`.
    """
    stem = f'contrast-{contrast.label}'
    written = {
        name: _save(matrix.volume(values), matrix, out_dir / f'{stem}_stat-{name}_statmap.nii.gz')
        for name, values in maps.items()
    }
    limit = -np.log10(ALPHA)
    significant = {
        correction: maps[name] > limit for correction, name in CORRECTIONS.items() if name in maps
    }
    statistic = maps['t' if contrast.is_t else 'f']
    two_sided = model['two_sided'] and contrast.is_t
    clusters = _clusters(statistic, maps, significant, matrix, regions)
    result: dict[str, Any] = {
        'name': contrast.name,
        'label': contrast.label,
        'test': 't' if contrast.is_t else 'F',
        'weights': [_weights(row, design) for row in contrast.weights],
        'significant': {name: int(chosen.sum()) for name, chosen in significant.items()},
        'largest': _place(statistic, two_sided, maps, matrix, regions),
        'clusters': clusters,
        'files': written,
        'table': _write_clusters(clusters, out_dir / f'{stem}_clusters.tsv'),
        'figure': _draw(
            out_dir / f'{stem}_statmap.png', contrast, statistic, significant, matrix, model
        ),
    }
    fields = {
        'Description': 'Voxelwise general linear model, one map per statistic',
        'Statistics': {name: _STATISTICS[name] for name in maps},
        'Contrast': contrast.name,
        'Test': result['test'],
        'Weights': result['weights'],
        **_model_fields(model),
        'Alpha': ALPHA,
        'SignificantVoxels': result['significant'],
    }
    write_sidecar(out_dir / f'{stem}_statmap.json', fields)
    counts = ', '.join(f'{count} ({name})' for name, count in result['significant'].items())
    LOGGER.info('Contrast %s: voxels with p < %g: %s', contrast.name, ALPHA, counts)
    return result


def _model_fields(model: dict[str, Any]) -> dict[str, Any]:
    """Return what a sidecar says of the model."""
    fields = {
        'Model': model['formula'],
        'Columns': model['columns'],
        'NumberOfSessions': model['n'],
        'DegreesOfFreedom': model['df'],
        'DroppedSessions': {entry['session']: entry['reason'] for entry in model['dropped']},
        'AbsoluteThreshold': model['threshold'],
        'ThresholdRule': model['mask_rule'],
        'MaskVoxels': model['mask_voxels'],
        'NumberOfPermutations': model['n_permutations'],
        'Seed': model['seed'],
        'TwoSided': model['two_sided'],
        'Software': f'AnatNet {__version__}',
    }
    names = {'map_kind': 'Maps', 'fwhm': 'FWHM', 'space': 'Space', 'res': 'Resolution'}
    return fields | {names[key]: model[key] for key in names if key in model}


def _clusters(
    statistic: np.ndarray,
    maps: dict[str, np.ndarray],
    significant: dict[str, np.ndarray],
    matrix: MapMatrix,
    regions: Sequence[RegionMap],
) -> list[dict[str, Any]]:
    """List the clusters of every correction."""
    height = matrix.volume(statistic)
    values = {
        'p': 'logp', 'p_fdr': 'logpfdr', 'p_fwe': 'logpfwe', 'p_tfce': 'logptfce',
        'effect': 'effect', 'r': 'r', 'd': 'd',
    }  # fmt: skip
    volumes = {
        column: matrix.volume(10.0 ** -maps[name] if column.startswith('p') else maps[name])
        for column, name in values.items() if name in maps
    }  # fmt: skip
    rows = []
    for correction, chosen in significant.items():
        inside = matrix.volume(chosen) > 0
        for row in find_clusters(inside, height, matrix.affine, volumes, regions):
            rows.append({'correction': correction, **row})
    return rows


def _write_clusters(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write the table of clusters with its dictionary; without clusters it has only a head."""
    import pandas as pd

    columns = list(rows[0]) if rows else list(_CLUSTER_COLUMNS)[:10]
    known = {name: _CLUSTER_COLUMNS[name] for name in columns if name in _CLUSTER_COLUMNS}
    write_sidecar(path.with_suffix('.json'), known)
    return write_table(pd.DataFrame(rows, columns=columns), path)


def _place(
    statistic: np.ndarray,
    two_sided: bool,
    maps: dict[str, np.ndarray],
    matrix: MapMatrix,
    regions: Sequence[RegionMap],
) -> dict[str, Any]:
    """Describe the strongest voxel: its statistic, corrected p value and place."""
    at = int((np.abs(statistic) if two_sided else statistic).argmax())
    voxel = np.argwhere(matrix.mask)[at]
    point = matrix.affine[:3, :3] @ voxel + matrix.affine[:3, 3]
    return {
        'statistic': float(statistic[at]),
        'p_fwe': float(10.0 ** -maps['logpfwe'][at]) if 'logpfwe' in maps else None,
        **{axis: round(float(mm), 2) for axis, mm in zip('xyz', point, strict=True)},
        'region': regions[0].name_at(point) if regions else '',
    }


def _draw(
    path: Path,
    contrast: Contrast,
    statistic: np.ndarray,
    significant: dict[str, np.ndarray],
    matrix: MapMatrix,
    model: dict[str, Any],
) -> Path:
    """Draw the statistic with an outline around what survives the best correction there is."""
    from scipy import stats

    words = {'tfce': 'TFCE, family-wise', 'fwe': 'family-wise', 'fdr': 'false discovery rate'}
    outline = next(name for name in words if name in significant)
    said = f'p < {ALPHA:g} ({words[outline]})'
    said = f'outline: {said}' if significant[outline].any() else f'nothing with {said}'
    df, k = model['df'], len(contrast.weights)
    if contrast.is_t:
        full = float(stats.t.isf(0.0005 if model['two_sided'] else 0.001, df))
    else:
        full = float(stats.f.isf(0.001, k, df))
    return draw_statistic(
        Volume(matrix.volume(statistic), matrix.affine),
        Volume(matrix.mean.astype(np.float32), matrix.affine),
        Volume(matrix.volume(significant[outline]), matrix.affine),
        path,
        title=f'{contrast.name}   ({model["formula"]}, n = {model["n"]}; {said})',
        unit=f't({df})' if contrast.is_t else f'F({k}, {df})',
        full=full,
    )


def _weights(row: np.ndarray, design: Design) -> dict[str, float]:
    return {
        name: float(weight) for name, weight in zip(design.columns, row, strict=True) if weight
    }


def _save(data: np.ndarray, matrix: MapMatrix, path: Path) -> Path:
    import nibabel as nib

    data = data if data.dtype == np.uint8 else data.astype(np.float32)
    image = nib.Nifti1Image(data, matrix.affine)
    image.header.set_xyzt_units('mm')
    image.set_sform(matrix.affine, 4)  # 4: MNI 152
    image.set_qform(matrix.affine, 4)
    return atomic_save_nifti(image, path)


def methods(model: dict[str, Any]) -> str:
    """Describe an analysis for the methods section of a paper.

    Parameters
    ----------
    model : dict
        From :func:`analyse`.
    """
    kind = _MAP_WORDS.get(model.get('map_kind', ''), 'maps')
    width = f', smoothed with {model["fwhm"]:g} mm FWHM,' if model.get('fwhm') else ''
    rule = 'of which every map' if model['mask_rule'] == 'all' else 'whose mean'
    text = (
        f'A general linear model ({model["formula"]}; {model["n"]} sessions, {model["df"]} '
        f'degrees of freedom) was fitted at {model["mask_voxels"]} voxels {rule} was above '
        f'{model["threshold"]:g} to the {kind}{width} with AnatNet {__version__}. '
    )
    if model['n_permutations']:
        sides = 'two-sided' if model['two_sided'] else 'one-sided'
        text += (
            f'p values ({sides}) were corrected for all voxels with the largest statistic of '
            f'{model["n_permutations"]} permutations of the residuals [@freedmanlane; '
            f'@permutation] (seed {model["seed"]})'
        )
        if model['tfce']:
            text += ', and after threshold-free cluster enhancement (E = 0.5, H = 2) [@tfce]'
        text += '. '
    return text + 'The false discovery rate was controlled after Benjamini and Hochberg [@fdr].'
