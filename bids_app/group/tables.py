# SPDX-License-Identifier: Apache-2.0
"""The tables of a study: volumes, regions and quality, one row per session."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.bids.files import atomic_write_text, read_json, write_sidecar
from bids_app.data import structures
from bids_app.group import phenotypes
from bids_app.group.derivatives import VOLUMES
from bids_app.group.quality import JUDGED, thresholds
from bids_app.reports.tables import number, read_tsv, total_intracranial_volume

if TYPE_CHECKING:
    from bids_app.group.assessment import Assessment
    from bids_app.group.derivatives import Study

LOGGER = logging.getLogger('anatnet.group')

VOLUMES_FILE = 'group_volumes.tsv'
REGIONS_FILE = 'group_regions.tsv'
QC_FILE = 'group_qc.tsv'
MISSING = 'n/a'

Column = list[str]
"""Values as they are written, ``n/a`` for what is missing."""


@dataclass
class Measurements:
    """What the sessions of a study have measured; every list has one entry per session.

    Attributes
    ----------
    phenotypes : dict of str to list
        Columns of ``participants.tsv`` and ``sessions.tsv`` as text, None where missing.
    volumes : dict of str to list
        The columns of :data:`~bids_app.group.derivatives.VOLUMES`, as text.
    structures : dict of str to list
        Volumes of brain structures by name, as text.
    regions : dict of str to list
        Volumes in the regions of atlases, by ``<atlas>_<region>_<tissue>``, as text.
    measures : dict of str to list
        Quality measures, as text.
    verdicts, reasons : list of str
        ``qc_status`` and ``qc_reasons`` of the participant level.
    descriptions : dict
        What columns mean: from the sidecars of the sessions and ``participants.json``.
    """

    phenotypes: dict[str, list[str | None]]
    volumes: dict[str, Column] = field(default_factory=dict)
    structures: dict[str, Column] = field(default_factory=dict)
    regions: dict[str, Column] = field(default_factory=dict)
    measures: dict[str, Column] = field(default_factory=dict)
    verdicts: Column = field(default_factory=list)
    reasons: Column = field(default_factory=list)
    descriptions: dict[str, dict[str, Any]] = field(default_factory=dict)


def numbers(column: Sequence[str | None]) -> np.ndarray:
    """Return the numbers of a column, NaN for everything else."""
    found = (number(text) for text in column)
    return np.array([np.nan if value is None else value for value in found], float)


def read_measurements(study: Study) -> Measurements:
    """Read the tables of all sessions; what cannot be read is missing, and a warning."""
    count = len(study.sessions)
    result = Measurements(
        phenotypes.columns_of(
            phenotypes.load(study.output_dir, study.bids_dir, study.sessions), study.sessions
        )
    )
    result.volumes = {name: [MISSING] * count for name in VOLUMES}
    named = {str(structure.index): structure.name for structure in structures()}
    result.structures = {name: [MISSING] * count for name in named.values()}
    result.verdicts = [MISSING] * count
    result.reasons = [MISSING] * count
    atlas: dict[tuple[str, int, str, str], Column] = {}
    for place, record in enumerate(study.sessions):
        if record.status != 'done':  # what a failed run left is not to be trusted
            continue
        for row in _rows(record.files.get('tissue_morph')):
            if (name := (row.get('name') or '').lower()) in result.volumes:
                result.volumes[name][place] = row.get('volume_mm3') or MISSING
            elif total_intracranial_volume([row]) is not None:
                result.volumes['tiv'][place] = row['volume_mm3']
        for row in _rows(record.files.get('wholebrain_morph')):
            name = named.get(row.get('index') or '') or row.get('name') or '?'
            column = result.structures.setdefault(name, [MISSING] * count)
            column[place] = row.get('volume_mm3') or MISSING
        for found in record.template_files:
            if found.kind == 'regions_morph':
                for key, value in _regions(_rows(record.folder / found.name), found.atlas):
                    atlas.setdefault(key, [MISSING] * count)[place] = value
        for row in _rows(record.files.get('qc_stats'))[:1]:
            for name, value in row.items():
                if name == 'qc_status':
                    result.verdicts[place] = value or MISSING
                elif name == 'qc_reasons':
                    result.reasons[place] = value or MISSING
                elif name:
                    column = result.measures.setdefault(name, [MISSING] * count)
                    column[place] = value or MISSING
    for (label, _, region, tissue), column in sorted(atlas.items()):
        result.regions['_'.join(part for part in (label, region, tissue) if part)] = column
    result.descriptions = _descriptions(study)
    return result


def _rows(path: Path | None) -> list[dict[str, str]]:
    if path is None:
        return []
    try:
        return read_tsv(path)
    except (OSError, ValueError) as error:
        LOGGER.warning('cannot read %s: %s', path, error)
        return []


def _regions(
    rows: Iterable[Mapping[str, str]], atlas: str
) -> Iterable[tuple[tuple[str, int, str, str], str]]:
    """Yield place in the order, and volume, of every region and tissue of an atlas."""
    for row in rows:
        index = int(number(row.get('index')) or 0)
        region = row.get('name') or str(index)
        for name, value in row.items():
            if name and name.endswith('_mm3') and value:
                tissue = name.removesuffix('_mm3').removesuffix('volume').rstrip('_')
                yield (atlas, index, region, tissue), value


def _descriptions(study: Study) -> dict[str, dict[str, Any]]:
    """Collect what the columns mean; of quality measures from the first sidecar that says."""
    found: dict[str, dict[str, Any]] = {}
    for record in study.done:
        path = record.files.get('qc_stats')
        if path is not None and not found:
            found.update(_dictionary(path.with_suffix('.json')))
    for name in ('Description', 'Sources'):
        found.pop(name, None)
    file = phenotypes.first_file(
        study.bids_dir, 'participants.json', study.output_dir, phenotypes.DICTIONARY_COPY
    )
    if file is not None:
        found.update(_dictionary(file))
    return found


def _dictionary(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = read_json(path, encoding='utf-8-sig')
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: fields for name, fields in content.items() if isinstance(fields, dict)}


def write_tables(
    study: Study, measured: Measurements, assessment: Assessment
) -> tuple[Path, Path, Path]:
    """Write the three tables and the JSON dictionary beside each.

    Returns
    -------
    tuple of Path
        ``group_volumes.tsv``, ``group_regions.tsv``, ``group_qc.tsv``.
    """
    volumes = {**measured.volumes, **_fractions(measured.volumes)}
    volume_texts = {name: _VOLUME_TEXTS[name] for name in volumes}
    regions = {**measured.structures, **measured.regions}
    region_texts = {
        name: {'Description': f'Volume of {name.replace("-", " ")}', 'Units': 'mm^3'}
        for name in regions
    }
    quality, quality_texts = _quality_columns(measured, assessment)
    return (
        _write(study, measured, VOLUMES_FILE, volumes, volume_texts),
        _write(study, measured, REGIONS_FILE, regions, region_texts),
        _write(study, measured, QC_FILE, quality, quality_texts),
    )


_VOLUME_TEXTS: dict[str, dict[str, Any]] = {
    'tiv': {'Description': 'Total intracranial volume: GM + WM + CSF', 'Units': 'mm^3'},
    'gm': {'Description': 'Volume of grey matter', 'Units': 'mm^3'},
    'wm': {'Description': 'Volume of white matter', 'Units': 'mm^3'},
    'csf': {'Description': 'Volume of cerebrospinal fluid', 'Units': 'mm^3'},
    'gm_of_tiv': {'Description': 'Share of grey matter in the intracranial volume'},
    'wm_of_tiv': {'Description': 'Share of white matter in the intracranial volume'},
    'csf_of_tiv': {'Description': 'Share of cerebrospinal fluid in the intracranial volume'},
}

_FIRST_TEXTS: dict[str, dict[str, Any]] = {
    'participant_id': {'Description': 'Participant'},
    'session_id': {'Description': 'Session, n/a in a data set without sessions'},
    'status': {
        'Description': 'How the participant level ended for this session',
        'Levels': {
            'done': 'finished',
            'failed': 'ended with an error',
            'incomplete': 'not finished, or outputs are missing',
        },
    },
    'reason': {'Description': 'Why the session is not done'},
}


def _fractions(volumes: Mapping[str, Column]) -> dict[str, Column]:
    total = numbers(volumes['tiv'])
    total[~(total > 0)] = np.nan
    return {
        f'{name}_of_tiv': [text(value) for value in numbers(volumes[name]) / total]
        for name in VOLUMES
        if name != 'tiv'
    }


def _quality_columns(
    measured: Measurements, assessment: Assessment
) -> tuple[dict[str, Column], dict[str, dict[str, Any]]]:
    """Return the columns of ``group_qc.tsv`` and what they mean."""
    rules = thresholds()
    ratings = assessment.ratings
    columns: dict[str, Column] = {
        'qc_score': [MISSING if r is None else f'{r.score:.1f}' for r in ratings],
        'qc_rating': [MISSING if r is None else r.rating for r in ratings],
        'qc_findings': [
            MISSING if r is None or not r.findings else '; '.join(r.reasons) for r in ratings
        ],
        'qc_status': measured.verdicts,
        'qc_reasons': measured.reasons,
        **measured.measures,
    }
    texts: dict[str, dict[str, Any]] = {
        'qc_score': {
            'Description': f'0 (bad) to 100 (good): {rules["score"]}. Cost of a measure: '
            f'{rules["cost"]}'
        },
        'qc_rating': {'Description': rules['rating']},
        'qc_findings': {'Description': 'What lowered the score, the worst first'},
        'qc_status': {'Description': 'Verdict of the participant level: ok, warn or fail'},
        'qc_reasons': {'Description': 'Reasons of that verdict'},
        **{name: measured.descriptions.get(name, {}) for name in measured.measures},
    }
    for name, values in assessment.homogeneity_columns.items():
        columns[name] = [text(value) for value in values]
        texts[name] = _HOMOGENEITY_TEXTS[name]
    for name, z in assessment.z.items():
        if name in columns:
            columns[f'{name}_z'] = [text(value, '.2f') for value in z]
            direction = {1: 'low values are bad', -1: 'high values are bad', 0: 'both sides count'}
            how = rules['comparison']
            if name == 'mahalanobis_distance':
                how = 'Normal deviate that is as rare as the distance'
            texts[f'{name}_z'] = {'Description': f'{how}; {direction[JUDGED[name].better]}'}
    return columns, texts


_HOMOGENEITY_TEXTS: dict[str, dict[str, Any]] = {
    'mean_correlation': {
        'Description': 'Mean correlation of the smoothed modulated grey matter map with those of '
        'the other sessions'
    },
    'mahalanobis_distance': {
        'Description': 'Squared Mahalanobis distance of the map to the mean of all maps, over '
        'their first principal components'
    },
    'mahalanobis_p': {
        'Description': 'Probability of such a distance or a larger one if maps are normally '
        'distributed'
    },
}


def text(value: float, spec: str = '.6g') -> str:
    """Write a number for a table."""
    return format(value, spec) if np.isfinite(value) else MISSING


def _write(
    study: Study,
    measured: Measurements,
    name: str,
    columns: Mapping[str, Column],
    texts: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write one table, the columns that tell who it is first."""
    records = study.sessions
    first: dict[str, Column] = {
        'participant_id': [record.participant_id for record in records],
        'session_id': [record.session_id or MISSING for record in records],
        'status': [record.status for record in records],
        'reason': [record.reason or MISSING for record in records],
    }
    theirs = {}
    dictionary: dict[str, Mapping[str, Any]] = dict(_FIRST_TEXTS)
    for own, values in measured.phenotypes.items():
        # A column of the data set must not take the place of one of ours.
        shown = f'{own}_participants' if own in first or own in columns else own
        theirs[shown] = [value or MISSING for value in values]
        given = measured.descriptions.get(own) if own not in columns else None
        dictionary[shown] = given or {'Description': f'{own}, from the data set'}
    everything = {**first, **theirs, **columns}
    dictionary.update((key, texts.get(key, {})) for key in columns)
    lines = ['\t'.join(map(cell, everything))]
    lines += ['\t'.join(map(cell, row)) for row in zip(*everything.values(), strict=True)]
    path = study.output_dir / name
    write_sidecar(path.with_suffix('.json'), {cell(k): dict(v) for k, v in dictionary.items()})
    return atomic_write_text(path, '\n'.join(lines) + '\n')


def cell(value: str) -> str:
    """Return a text that cannot break the lines and columns of a table."""
    return re.sub(r'[\s\x00-\x1f\x7f\x85\u2028\u2029]+', ' ', value).strip() or MISSING
