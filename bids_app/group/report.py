# SPDX-License-Identifier: Apache-2.0
"""The page of a study: one HTML file that needs no other and loads nothing from the network."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from bids_app import __version__
from bids_app.bids.files import atomic_write_text
from bids_app.data import structures
from bids_app.group import provenance
from bids_app.group.phenotypes import as_numbers
from bids_app.group.quality import GROUPS, JUDGED, LOOK_BELOW, thresholds
from bids_app.group.tables import QC_FILE, REGIONS_FILE, VOLUMES_FILE, numbers
from bids_app.reports import methods
from bids_app.reports.page import load_template
from bids_app.reports.quality import describe
from bids_app.reports.tables import asymmetry_index, read_tsv

if TYPE_CHECKING:
    from bids_app.config import RunConfig
    from bids_app.group.assessment import Assessment
    from bids_app.group.derivatives import Study
    from bids_app.group.homogeneity import Homogeneity
    from bids_app.group.results import AnalysisResult
    from bids_app.group.tables import Measurements

LOGGER = logging.getLogger('anatnet.group')

PAGE_FILE = 'group.html'
MAX_LEVELS = 8
"""Values of a column of text up to which it can colour the points."""
MAX_COLUMNS = 60
"""Columns of the data set that the page offers."""
SHOWN_COLUMNS = 3
"""Columns of the data set in the table of sessions."""
TABLE_ROWS = 50
"""Rows that the page shows of the table of an analysis."""
PICTURE_BYTES = 600_000
"""Largest picture of an analysis that is embedded."""

_WORDS = {
    'ok': 'ok', 'look': 'look', 'doubtful': 'doubtful', 'failed': 'failed',
    'incomplete': 'incomplete',
}  # fmt: skip
_TISSUES = {
    'tiv': 'Intracranial volume', 'gm': 'Grey matter', 'wm': 'White matter',
    'csf': 'Cerebrospinal fluid',
}  # fmt: skip
_IMAGE_TYPES = {'.svg': 'image/svg+xml', '.png': 'image/png', '.jpg': 'image/jpeg'}


def write_group_page(
    config: RunConfig,
    study: Study,
    measured: Measurements,
    assessment: Assessment,
    homogeneity: Homogeneity | None = None,
    analyses: Sequence[AnalysisResult] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write ``group.html``.

    Parameters
    ----------
    config : RunConfig
        The run, for the command line.
    study, measured, assessment, homogeneity
        What is shown.
    analyses : sequence of AnalysisResult
        Statistics and classifications.
    notes : sequence of str
        What the reader must know, besides the notes of the assessment.

    Returns
    -------
    Path
    """
    started = time.perf_counter()
    facts = provenance.facts(study)
    texts = provenance.methods_texts(study)
    paragraphs = [
        texts[0][0] if texts else '',
        provenance.group_methods(study, __version__, homogeneity),
        *(analysis.methods for analysis in analyses),
    ]
    varying = [fact for fact in facts if fact.varies]
    notes = [*assessment.notes, *notes]
    if any(not fact.of_scan for fact in varying):
        notes.append(
            'Not all sessions were made in the same way: differences between them may come from '
            'the processing. See Methods'
        )
    columns = {name: as_numbers(values, name) for name, values in measured.phenotypes.items()}
    data = page_data(study, measured, assessment, columns)
    values = {
        'version': __version__,
        'name': _name(study),
        'when': time.strftime('%Y-%m-%d %H:%M'),
        'light': _light(study, assessment),
        'cards': _cards(study, measured, columns),
        'notes': list(dict.fromkeys(notes)),
        'rows': _rows(study, measured, assessment, columns),
        'shown': _shown(columns),
        'words': _WORDS,
        'data': data,
        'strips': _strips(data),
        'rules': thresholds(),
        'rest': [
            (record.prefix, record.status, record.reason)
            for record in study.sessions
            if record.status != 'done'
        ],
        'figure': _mean_figure(homogeneity),
        'maps': int(homogeneity.used.sum()) if homogeneity is not None else 0,
        'analyses': [_analysis(number, analysis) for number, analysis in enumerate(analyses)],
        'methods_html': methods.to_html(
            methods.citation_markdown('\n\n'.join(part for part in paragraphs if part))
        ),
        'facts': facts,
        'varying': varying,
        'other_methods': [
            (methods.to_html(methods.citation_markdown(text)), sessions)
            for text, sessions in texts[1:]
        ],
        'command_line': list(config.command_line),
        'files': [VOLUMES_FILE, REGIONS_FILE, QC_FILE],
    }
    values['seconds'] = time.perf_counter() - started
    page = load_template('group.html.jinja').render(values)
    return atomic_write_text(study.output_dir / PAGE_FILE, page)


def page_data(
    study: Study,
    measured: Measurements,
    assessment: Assessment,
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """Return what the script of the page draws; every list of values has one per session.

    Returns
    -------
    dict
        ``sessions`` (labels), ``links`` (addresses of their reports or None), ``states``,
        ``scores``; ``numeric``: list of dict with ``key``, ``label``, ``group``, ``values``
        and, where it is compared, ``z`` and ``bounds``; ``classes``: list of dict with ``key``,
        ``label``, ``levels`` and ``values`` (number of the level, None for missing);
        ``pairs``: asymmetry of structures, list of dict with ``label`` and ``values`` (%).
    """
    numeric: list[dict[str, Any]] = []

    def add(key: str, label: str, group: str, values: Any, judged: str = '') -> None:
        entry = {'key': key, 'label': label, 'group': group, 'values': _plain(values)}
        if all(value is None for value in entry['values']):
            return
        if judged in assessment.z:
            entry['z'] = _plain(assessment.z[judged], 3)
            entry['bounds'] = _plain(assessment.bounds[judged], 5)
        numeric.append(entry)

    tiv = numbers(measured.volumes['tiv'])
    tiv[~(tiv > 0)] = np.nan
    for name, label in _TISSUES.items():
        add(name, f'{label} (ml)', 'Volumes', numbers(measured.volumes[name]) / 1000)
    for structure in structures():
        if structure.core and structure.name in measured.structures:
            values = numbers(measured.structures[structure.name])
            label = structure.name.replace('-', ' ')
            add(f's{structure.index}', f'{label} (ml)', 'Structures', values / 1000)
            share = f'{label} (% of TIV)'
            add(f'p{structure.index}', share, 'Shares', 100 * values / tiv, structure.name)
    for name, column in measured.measures.items():
        if '_seconds_' not in name:
            add(name, describe(name).label, 'Quality', numbers(column), name)
    for name, values in assessment.homogeneity_columns.items():
        label = {
            'mean_correlation': 'Mean correlation of the map',
            'mahalanobis_distance': 'Squared Mahalanobis distance of the map',
        }.get(name)
        if label:
            add(name, label, 'Quality', values, name)
    classes = []
    for number, (name, values) in enumerate(columns.items()):
        if number >= MAX_COLUMNS:
            LOGGER.warning('The page offers the first %d columns of the data set', MAX_COLUMNS)
            break
        if any(isinstance(value, str) for value in values):
            levels = sorted({str(value) for value in values if value is not None})
            if 1 < len(levels) <= MAX_LEVELS:
                place = {level: at for at, level in enumerate(levels)}
                classes.append(
                    {
                        'key': f'c{number}',
                        'label': name,
                        'levels': levels,
                        'values': [None if v is None else place[str(v)] for v in values],
                    }
                )
        else:
            add(f'c{number}', name, 'Participants', values)
    ratings = assessment.ratings
    return {
        'sessions': [record.prefix for record in study.sessions],
        'links': [
            quote(record.files['report'].name) if 'report' in record.files else None
            for record in study.sessions
        ],
        'states': [_state(record, rating) for record, rating in zip(study.sessions, ratings,
                                                                    strict=True)],
        'scores': [None if rating is None else round(rating.score, 1) for rating in ratings],
        'numeric': numeric,
        'classes': classes,
        'pairs': _pairs(measured),
    }  # fmt: skip


def _pairs(measured: Measurements) -> list[dict[str, Any]]:
    """Return the asymmetry index (%) of every structure that has two sides."""
    sides: dict[str, dict[str, np.ndarray]] = {}
    for structure in structures():
        if structure.side and structure.core and structure.name in measured.structures:
            values = numbers(measured.structures[structure.name])
            sides.setdefault(structure.kind, {})[structure.side] = values
    result = []
    for kind, own in sides.items():
        if len(own) < 2:
            continue
        index = [
            asymmetry_index(left, right) if np.isfinite(left + right) else None
            for left, right in zip(own['left'].tolist(), own['right'].tolist(), strict=True)
        ]
        if any(value is not None for value in index):
            result.append({'label': kind.replace('-', ' ').capitalize(), 'values': _plain(index)})
    return result


def _plain(values: Any, digits: int = 5) -> list[float | None]:
    """Round to some significant digits; None for what is not a number."""
    result: list[float | None] = []
    for value in values:
        if value is None or not np.isfinite(value):
            result.append(None)
        else:
            rounded = float(f'{value:.{digits}g}')
            result.append(int(rounded) if rounded.is_integer() else rounded)
    return result


def _state(record: Any, rating: Any) -> str:
    return record.status if rating is None else rating.rating


def _name(study: Study) -> str:
    """Return the name of the data set."""
    from bids_app.bids.dataset import read_description

    if study.bids_dir is not None:
        name = read_description(study.bids_dir).get('Name')
        if isinstance(name, str) and name.strip():
            return name.strip()
        return study.bids_dir.name
    return study.output_dir.name


def _light(study: Study, assessment: Assessment) -> dict[str, Any]:
    """Return the lamp of the page with its lines."""
    states = [
        _state(record, rating)
        for record, rating in zip(study.sessions, assessment.ratings, strict=True)
    ]
    counts = {state: states.count(state) for state in _WORDS}
    lines = []
    for state, words in (
        ('failed', 'failed'),
        ('incomplete', 'not finished'),
        ('doubtful', 'doubtful: not to be trusted before a look at the report'),
        ('look', 'worth a look'),
    ):
        if counts[state]:
            lines.append(f'{counts[state]} {"session" if counts[state] == 1 else "sessions"} '
                         f'{words}')  # fmt: skip
    css = 'fail' if counts['doubtful'] or counts['failed'] else 'warn' if lines else 'ok'
    done = len(study.done)
    word = f'{done} of {len(states)} sessions finished'
    return {'css': css, 'word': word, 'lines': lines or ['No session stands apart.']}


def _cards(
    study: Study, measured: Measurements, columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, str]]:
    """Return the few numbers at the top."""
    people = len({record.subject for record in study.sessions})
    cards = [
        {'name': 'Participants', 'value': str(people)},
        {'name': 'Sessions', 'value': str(len(study.sessions))},
    ]
    first: dict[str, int] = {}
    for place, record in enumerate(study.sessions):
        first.setdefault(record.subject, place)
    one_each = list(first.values())  # people are counted once, not once per session
    for name in _shown(columns):
        values = [columns[name][place] for place in one_each]
        there = [value for value in values if value is not None]
        if there and all(isinstance(value, float) for value in there):
            spread = f'{min(there):.4g} to {max(there):.4g}'
            value = f'{float(np.median(there)):.4g}'
            cards.append({'name': f'Median {name}', 'value': value, 'note': spread})
        elif there and len(set(there)) <= 3:
            counts = [(level, there.count(level)) for level in sorted(set(there))]
            value = ' / '.join(str(count) for _, count in counts)
            note = ' / '.join(str(level) for level, _ in counts)
            cards.append({'name': name.capitalize(), 'value': value, 'note': note})
    for name in ('tiv', 'gm'):
        values = numbers(measured.volumes[name]) / 1000
        if np.isfinite(values).any():
            low, middle, high = np.nanpercentile(values, (0, 50, 100))
            card = {'name': f'Median {_TISSUES[name].lower()}', 'value': f'{middle:,.0f}'}
            cards.append({**card, 'unit': 'ml', 'note': f'{low:,.0f} to {high:,.0f}'})
    return cards


def _shown(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Choose the columns of the data set that the table shows: age, sex and group first."""
    by_name = {name.lower(): name for name in reversed(columns)}
    wanted = ('age', 'sex', 'gender', 'group', 'diagnosis', 'dx')
    chosen = [by_name[name] for name in wanted if name in by_name]
    for name, values in columns.items():
        if name not in chosen and any(value is not None for value in values):
            chosen.append(name)
    return chosen[:SHOWN_COLUMNS]


def _rows(
    study: Study,
    measured: Measurements,
    assessment: Assessment,
    columns: Mapping[str, Sequence[Any]],
) -> list[dict[str, Any]]:
    """Return the lines of the table of sessions, what needs a look first."""
    shown = _shown(columns)
    volumes = {name: numbers(column) / 1000 for name, column in measured.volumes.items()}
    rows = []
    for place, (record, rating) in enumerate(zip(study.sessions, assessment.ratings, strict=True)):
        cells = [columns[name][place] for name in shown]
        rows.append(
            {
                'place': place,
                'label': record.prefix,
                'link': quote(record.files['report'].name) if 'report' in record.files else '',
                'state': _state(record, rating),
                'score': None if rating is None else rating.score,
                'reasons': [record.reason] if rating is None else rating.reasons,
                'cells': ['' if c is None else f'{c:.4g}' if isinstance(c, float) else c
                          for c in cells],
                'volumes': [volumes[name][place] if np.isfinite(volumes[name][place]) else None
                            for name in _TISSUES],
            }
        )  # fmt: skip
    # Failed sessions stand between those that need a look and those that are fine.
    middle = (LOOK_BELOW + 100) / 2
    return sorted(
        rows,
        key=lambda r: (
            r['state'] == 'ok',
            middle if r['score'] is None else r['score'],
            r['place'],
        ),
    )


def _strips(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of strip plots: title, and the number of every measure."""
    groups: dict[str, list[int]] = {name: [] for name in GROUPS}
    groups['other'] = []
    for number, entry in enumerate(data['numeric']):
        if entry['group'] == 'Quality':
            judged = JUDGED.get(entry['key'])
            groups[judged.group if judged else 'other'].append(number)
        elif entry['group'] == 'Shares':
            groups['volumes'].append(number)
    for own in groups.values():  # what is said of the whole brain before its parts
        own.sort(key=lambda number: data['numeric'][number]['group'] == 'Shares')
    titles = {**GROUPS, 'other': 'Other measures, which do not count for the score'}
    return [{'key': key, 'title': titles[key], 'entries': e} for key, e in groups.items() if e]


def _mean_figure(homogeneity: Homogeneity | None) -> dict[str, Any] | None:
    """Draw the mean map with the deviation between sessions as a layer."""
    if homogeneity is None:
        return None
    from bids_app.reports.drawing import Row, heat_picture, jpeg_grey, to_grey
    from bids_app.reports.planes import PLANES, Volume, make_frame

    mean = Volume(homogeneity.mean, homogeneity.affine)
    top = float(np.percentile(mean.data, 99.8)) or 1.0
    mask = Volume((mean.data > 0.1 * top).astype(np.uint8), mean.affine)
    spread = Volume(homogeneity.deviation, homogeneity.affine)
    limit = float(np.percentile(spread.data[mask.data > 0], 99)) if mask.data.any() else 0.0
    frame = make_frame(mean, mask, margin=8)
    rows = []
    for plane in PLANES:
        row = Row(frame, plane)
        grey = jpeg_grey(to_grey(row.joined(mean), (0.0, top)))
        layers = [row.image(grey, 'image/jpeg')]
        if limit > 0:
            heat = heat_picture(row.joined(spread), limit)
            layers.append(row.image(heat, 'image/png', 'class="fill area"'))
        rows.append((plane, row.svg(layers, f'Mean grey matter map on {plane} slices')))
    toggles = [{'css': 'area', 'label': 'Deviation between sessions', 'on': False}]
    return {
        'name': 'mean-map',
        'rows': rows,
        'toggles': toggles if limit > 0 else [],
        'opacity': 0.85,
        'bar': 'Standard deviation between sessions' if limit > 0 else '',
        'bar_css': '',
        'bar_ticks': ('0', f'{limit:.2g}'),
        'key': [],
    }


def _analysis(number: int, analysis: AnalysisResult) -> dict[str, Any]:
    """Read the figures and tables of an analysis."""
    notes = list(analysis.notes)
    pictures = []
    for path in analysis.figures:
        kind = _IMAGE_TYPES.get(Path(path).suffix.lower())
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            notes.append(f'{Path(path).name} could not be shown: {error.strerror}')
            continue
        if kind is None or len(content) > PICTURE_BYTES:
            notes.append(f'{Path(path).name} is not shown here; it is in the output folder')
            continue
        uri = f'data:{kind};base64,{base64.b64encode(content).decode("ascii")}'
        pictures.append((Path(path).name, uri))
    shown = []
    for title, path in analysis.tables:
        try:
            lines = read_tsv(path)
        except (OSError, ValueError) as error:
            notes.append(f'{Path(path).name} could not be shown: {error}')
            continue
        head = list(lines[0]) if lines else []
        body = [[line.get(name) or '' for name in head] for line in lines[:TABLE_ROWS]]
        more = max(len(lines) - TABLE_ROWS, 0)
        shown.append({'title': title, 'head': head, 'body': body, 'more': more,
                      'file': Path(path).name})  # fmt: skip
    return {
        'id': f'analysis-{number}',
        'title': analysis.title,
        'summary': analysis.summary,
        'notes': notes,
        'pictures': pictures,
        'tables': shown,
    }
