# SPDX-License-Identifier: Apache-2.0
"""Assembles the page of a session: draws, reads, fills the template.

Every part is tried on its own. What fails becomes a note of the page, so that a session that
ended half way still gets a report that says what there is and why there is no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.morphometry.checks import ORDER, REGISTRATION_PREFIX
from bids_app.reports import facts, methods, predictions, quality, tables, vbm

if TYPE_CHECKING:
    from bids_app.reports.figures import Figure, Gallery
    from bids_app.reports.planes import Volume
    from bids_app.reports.session import SessionReport

LOGGER = logging.getLogger('anatnet.reports')

FILE_KEYS = (
    'preproc',
    'scan',
    'brain_mask',
    'dseg',
    'wholebrain_dseg',
    'uncertainty',
    'tissue_morph',
    'wholebrain_morph',
    'lesion_mask',
    'lesion_morph',
    'qc_stats',
)
"""What a report shows: keys of the table of outputs, and ``scan``, the raw scan."""

_FIGURE_SOURCES = {
    'mask': 'brain_mask',
    'tissues': 'dseg',
    'structures': 'wholebrain_dseg',
    'uncertainty': 'uncertainty',
}


class _Parts:
    """Collects what the template shows; a part that fails leaves a note instead."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.notes: list[str] = []

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Run a block; turn any error into a note and a line of the log."""
        try:
            yield
        except Exception as error:  # a report must never cost a result
            reason = ' '.join(str(error).split()) or type(error).__name__
            self.notes.append(f'{what} could not be shown: {reason}')
            LOGGER.warning('report of %s: %s', self.label, self.notes[-1])
            LOGGER.debug('report of %s', self.label, exc_info=True)


def render_page(
    context: SessionReport, started: float | None = None
) -> tuple[str, dict[str, str]]:
    """Make the page of a session.

    Parameters
    ----------
    context : SessionReport
        What to show.
    started : float, optional
        ``time.perf_counter()`` at the start, for the line that says how long it took.

    Returns
    -------
    page : str
        HTML.
    figures : dict of str to str
        Stand-alone SVG documents by their entities and suffix (``desc-brain_mask``).
    """
    started = time.perf_counter() if started is None else started
    parts = _Parts(context.label)
    keys = [key for key in FILE_KEYS if context.files.get(key)]
    files = {key: context.files[key] for key in keys if Path(context.files[key]).is_file()}
    values: dict[str, Any] = {
        'report': context,
        'files': files,
        'missing': [key for key in keys if key not in files and key != 'scan'],
        'participant': facts.participant_rows(context.participant),
        'figures': [],
        'defs': '',
        'viewer': None,
        'histogram': '',
        'tissues': [],
        'structures': [],
        'scan_name': '',
        'tiv': None,
        'spaces': [],
        'atlases': [],
        'predictions': [],
        'contrasts': [],
        'lesions': None,
        'diffusion': None,
    }
    documents: dict[str, str] = {}
    scan_key = 'preproc' if 'preproc' in files else 'scan'
    if scan_key in files:
        values['scan_name'] = Path(files[scan_key]).name
        with parts.attempt('The scan'):
            values.update(_pictures(files, scan_key, context, parts, documents))
    else:
        values.update(_contrasts(files, None, None, context, parts, documents))
    with parts.attempt('Diffusion'):
        if context.dwi:
            from bids_app.reports.dwi import diffusion_entry

            values['diffusion'] = diffusion_entry(
                context.dwi, context.reference, parts.attempt, documents
            )
    with parts.attempt('The table of tissue volumes'):
        if 'tissue_morph' in files:
            rows = tables.read_tsv(files['tissue_morph'])
            values['tissues'] = tables.tissue_table(rows)
            values['tiv'] = tables.total_intracranial_volume(rows)
    with parts.attempt('The table of structure volumes'):
        if 'wholebrain_morph' in files:
            values['structures'] = tables.structure_table(
                tables.read_tsv(files['wholebrain_morph'])
            )
    with parts.attempt('The normalisation'):
        values['spaces'] = vbm.space_entries(
            context.spaces, context.label, parts.attempt, documents
        )
    values['atlases'] = vbm.region_entries(context.regions, values['tiv'], parts.attempt)
    values['predictions'] = predictions.entries(context.predictions, parts.attempt)
    metrics: Mapping[str, str] = {}
    with parts.attempt('The table of quality measures'):
        if 'qc_stats' in files:
            metrics = quality.read_metrics(files['qc_stats'])
    verdict = _with_spaces(quality.verdict_of(context.qc, metrics), values['spaces'])
    values['checks'] = [
        line for line in quality.checks(metrics, verdict)
        if not (values['spaces'] and line['name'].startswith(REGISTRATION_PREFIX))
    ]  # fmt: skip
    values['light'] = quality.traffic_light(context.status, verdict, values['checks'])
    values['reasons'] = verdict['reasons']
    values['cards'] = _cards(context, values, metrics)
    values['steps'] = _steps(context.steps)
    values['run'] = facts.run_rows(context.run, context.status)
    values['command_line'] = facts.command_line(context.run.get('command_line'))
    values['conform'] = facts.conform_rows(context.conform)
    values['conform_notes'] = facts.as_list(context.conform.get('notes'))
    values['errors'] = [
        error if isinstance(error, Mapping) else {'message': error} for error in context.errors
    ]
    values['skipped'] = [
        item if isinstance(item, Mapping) else {'path': item[0], 'reason': item[1]}
        for item in context.skipped
    ]
    text = context.methods or methods.methods_text(
        str(context.run.get('version', '')), context.models
    )
    values['methods_html'] = methods.to_html(methods.citation_markdown(text))
    values['notes'] = parts.notes
    values['asymmetry_limit'] = tables.ASYMMETRY_TO_NOTE
    values['render_seconds'] = time.perf_counter() - started
    return load_template().render(values), documents


def _pictures(
    files: Mapping[str, str],
    scan_key: str,
    context: SessionReport,
    parts: _Parts,
    documents: dict[str, str],
) -> dict[str, Any]:
    """Draw the figures, those of other contrasts, the viewer's data and the histogram."""
    from bids_app.reports import charts
    from bids_app.reports.figures import FIGURE_NAMES, Gallery
    from bids_app.reports.planes import PLANES, load_volume
    from bids_app.reports.viewer import viewer_payload

    volumes: dict[str, Volume] = {}
    for key in _FIGURE_SOURCES.values():
        if key in files:
            with parts.attempt(f'The file {Path(files[key]).name}'):
                volumes[key] = load_volume(files[key], labels=key != 'uncertainty')
    gallery = Gallery(load_volume(files[scan_key]), volumes.get('brain_mask'))
    draw: dict[str, Callable[[], Figure]] = {
        'brain_mask': gallery.brain_mask,
        'dseg': lambda: gallery.tissues(volumes['dseg']),
        'wholebrain_dseg': lambda: gallery.structures(volumes['wholebrain_dseg']),
        'uncertainty': lambda: gallery.uncertainty(volumes['uncertainty']),
    }
    figures = []
    for name, key in _FIGURE_SOURCES.items():
        if key in volumes:
            with parts.attempt(f'The figure {name}'):
                figure = draw[key]()
                documents[FIGURE_NAMES[name]] = gallery.standalone(figure)
                figures.append(_page_figure(gallery, figure))
    if not figures:
        figures = [_page_figure(gallery, gallery.scan_only())]
    result: dict[str, Any] = {
        'figures': figures,
        'defs': ''.join(gallery.scan_image(plane, f'id="scan-{plane}"') for plane in PLANES),
    }
    result.update(_contrasts(files, gallery, volumes.get('dseg'), context, parts, documents))
    with parts.attempt('The viewer'):
        result['viewer'] = viewer_payload(
            gallery.scan,
            gallery.frame,
            gallery.window,
            mask=volumes.get('brain_mask'),
            dseg=volumes.get('dseg'),
            wholebrain=volumes.get('wholebrain_dseg'),
            entropy=volumes.get('uncertainty'),
        )
    if scan_key == 'preproc' and 'dseg' in volumes:
        with parts.attempt('The histogram of intensities'):
            result['histogram'] = charts.intensity_histogram(gallery.scan, volumes['dseg'])
    return result


def _contrasts(
    files: Mapping[str, str],
    gallery: Gallery | None,
    dseg: Volume | None,
    context: SessionReport,
    parts: _Parts,
    documents: dict[str, str],
) -> dict[str, Any]:
    """Draw other contrasts on the scan, and lesions."""
    from bids_app.reports import contrasts

    given = (gallery, context.reference, parts.attempt, documents)
    entries = contrasts.contrast_entries(context.contrasts, *given, dseg=dseg)
    return {
        'contrasts': entries,
        'lesions': contrasts.lesion_entry(files, entries, *given),
    }


def _with_spaces(verdict: dict[str, Any], spaces: list[dict[str, Any]]) -> dict[str, Any]:
    """Let the verdicts on the registrations count; their reasons name the space."""
    rated = [space for space in spaces if space['status'] in ORDER]
    if not rated:
        return verdict
    own = {reason for space in rated for reason in space['reasons']}
    reasons = [reason for reason in verdict['reasons'] if reason not in own]
    reasons += [f'{space["name"]}: {reason}' for space in rated for reason in space['reasons']]
    found = [quality.status_of(verdict['status']), *(space['status'] for space in rated)]
    worst = max((status for status in found if status in ORDER), key=ORDER.index)
    return {**verdict, 'status': worst, 'reasons': reasons}


def _page_figure(gallery: Gallery, figure: Figure) -> dict[str, Any]:
    """Return a figure as the page shows it: the scan is embedded once and referred to."""
    rows = []
    for plane, row in gallery.rows.items():
        base = f'<use href="#scan-{plane}"/>'
        title = f'{figure.title} on {plane} slices. {figure.caption}'
        rows.append((plane, row.svg([base, *figure.layers.get(plane, [])], title)))
    return {
        'name': figure.name,
        'title': figure.title,
        'caption': figure.caption,
        'rows': rows,
        'toggles': figure.toggles,
        'key': figure.key,
        'bar': figure.bar,
        'bar_ticks': figure.bar_ticks,
        'bar_css': figure.bar_css,
        'opacity': figure.opacity,
    }


def _cards(
    context: SessionReport, values: Mapping[str, Any], metrics: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return the few numbers at the top of the page."""
    cards = []
    if values['tiv']:
        cards.append({'name': 'Intracranial volume', 'value': f'{values["tiv"] / 1000:,.0f}'})
        cards[-1]['unit'] = 'ml'
    for row in values['tissues']:
        if row['color'] and row['ml'] is not None:
            share = f'{row["percent"]:.0f} % of TIV' if row['percent'] else ''
            card = {'name': row['name'], 'value': f'{row["ml"]:,.0f}', 'unit': 'ml', 'note': share}
            cards.append(card)
    for name in ('snr_total', 'cnr'):
        value = tables.number(metrics.get(name))
        if value is not None:
            cards.append({'name': quality.describe(name).label, 'value': f'{value:.3g}'})
    entropy = next(
        (tables.number(metrics[n]) for n in ('entropy_mean', 'mean_entropy') if n in metrics), None
    )
    if entropy is not None:
        cards.append({'name': 'Mean uncertainty', 'value': f'{entropy:.3f}'})
    seconds = _total_seconds(context)
    if seconds:
        cards.append({'name': 'Processing time', 'value': f'{seconds:.0f}', 'unit': 's'})
    return cards


def _total_seconds(context: SessionReport) -> float | None:
    stated = tables.number(context.run.get('seconds'))
    if stated:
        return stated
    seconds = [tables.number(step.get('seconds')) for step in context.steps]
    return sum(value for value in seconds if value) or None


def _steps(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to every step where its bar starts and how long it is, in percent of all steps."""
    total = sum(tables.number(step.get('seconds')) or 0 for step in steps)
    result, start = [], 0.0
    for step in steps:
        seconds = tables.number(step.get('seconds'))
        width = 100 * (seconds or 0) / total if total else 0
        result.append({**step, 'seconds': seconds, 'start': start, 'width': width})
        start += width
    return result


def _format(value: float | None, spec: str, unit: str = '') -> str:
    """Format a number; nothing becomes a dash."""
    return '\N{EN DASH}' if value is None else f'{value:{spec}}{unit}'


@cache
def load_template(name: str = 'report.html.jinja') -> Any:
    """Load the template with escaping on; style and script are included as they are."""
    from jinja2 import Environment, FunctionLoader
    from markupsafe import Markup

    folder = resources.files('bids_app.reports').joinpath('templates')

    def source(name: str) -> str:
        return folder.joinpath(name).read_text(encoding='utf-8')

    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals['asset'] = lambda name: Markup(source(name))
    environment.filters.update(
        ml=lambda value: _format(value, ',.2f' if value and value < 100 else ',.1f'),
        signed=lambda value: _format(value, '+.1f').replace('-', '\N{MINUS SIGN}'),
        signed_short=lambda value: _format(value, '+.2f').replace('-', '\N{MINUS SIGN}'),
        share=lambda value: _format(value, '.1f', ' %'),
        short=lambda value: _format(value, '.2f'),
        mm3=lambda value: _format(value, ',.0f'),
        fine_share=lambda value: _format(value, '.2f', ' %'),
    )
    return environment.get_template(name)
