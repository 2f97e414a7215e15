# SPDX-License-Identifier: Apache-2.0
"""What the page shows of further contrasts: T2w and FLAIR on the reference, and lesions.

A contrast and the reference lie in the same place of the page and take turns; the tissue borders
of the reference are drawn on both, so that a shift shows as a border beside its line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from bids_app.data import tissues
from bids_app.morphometry.checks import COREGISTRATION_LIMITS
from bids_app.reports import tables
from bids_app.reports.drawing import ORANGE, SKY, jpeg_grey, label_picture, to_grey
from bids_app.reports.figures import Figure, Gallery, Toggle, stacked
from bids_app.reports.planes import Volume, display_window, load_volume
from bids_app.reports.spaces import BORDERS, FLICKER_STYLE, slice_caption
from bids_app.reports.vbm import Attempt

QUALITY = 76
"""Quality of the JPEG pictures."""

STATUS = {'ok': 'ok', 'doubtful': 'warn', 'failed': 'fail'}
"""Status of a coregistration as the page's lights know it."""

VERDICTS = {
    'ok': 'The measures are as usual. A look at the pictures is still worth it.',
    'warn': 'It is not used: the registration to the {} is doubtful.',
    'fail': 'It is not used: the registration to the {} failed.',
    'unknown': 'It was not registered.',
}

_MEASURES = {
    'dice': ('Overlap of the brains', 'Dice of both brain masks'),
    'coverage': ('Coverage', 'Share of the brain of the {} that is in the picture'),
    'shift_mm': ('Shift (mm)', 'Of the centre of the brain, against what the headers say'),
    'rotation_degrees': ('Turn (degrees)', 'Against what the headers say'),
    'similarity_header': ('Similarity before', 'Normalised mutual information, 1 to 2, where the '
                          'headers put it'),
    'similarity': ('Similarity after', 'Normalised mutual information, 1 to 2'),
}  # fmt: skip


def contrast_entries(
    contrasts: list[dict[str, Any]],
    gallery: Gallery | None,
    reference: str,
    attempt: Attempt,
    documents: dict[str, str],
    dseg: Volume | None = None,
) -> list[dict[str, Any]]:
    """Make ready what the page shows of the contrasts that were registered to the reference.

    Parameters
    ----------
    contrasts : list of dict
        As in :class:`bids_app.reports.session.SessionReport`.
    gallery : Gallery or None
        The reference with its frame; without it there are words and numbers only.
    reference : str
        Contrast of the reference, ``T1w``.
    attempt : callable
        Context manager that turns any error into a note on what could not be shown.
    documents : dict
        Gets the figures as SVG documents by their entities and suffix.
    dseg : Volume, optional
        Tissues of the reference, whose borders are drawn; without them that of the brain mask.

    Returns
    -------
    list of dict
        ``name``, ``status``, ``verdict`` (in words), ``reasons``, ``notes``, ``checks`` and,
        where there is an image, ``file`` and ``figure`` (see :func:`coregistration`).
    """
    entries = []
    for one in contrasts:
        name = str(one.get('name') or '?')
        status = STATUS.get(str(one.get('status')), 'unknown')
        entry: dict[str, Any] = {
            'name': name,
            'status': status,
            'verdict': VERDICTS[status].format(reference),
            'reasons': [str(reason) for reason in one.get('reasons') or ()],
            'notes': [str(note) for note in one.get('notes') or () if note],
            'checks': _checks(one.get('measures') or {}, reference),
        }
        path = one.get('file')
        if gallery is not None and path and Path(path).is_file():
            with attempt(f'The {name} on the {reference}'):
                figure, document = coregistration(
                    gallery, load_volume(path), name, reference, dseg
                )
                entry['figure'], entry['file'] = figure, str(path)
                documents[f'desc-preproc_{name}'] = document
        entries.append(entry)
    return entries


def _checks(measures: Mapping[str, Any], reference: str) -> list[dict[str, Any]]:
    """Return the measures of a coregistration as lines of the page's table."""
    limits = {limit.name: limit for limit in COREGISTRATION_LIMITS}
    lines = []
    for name, (label, meaning) in _MEASURES.items():
        value = tables.number(measures.get(name))
        if value is None or not math.isfinite(value):
            continue
        limit = limits.get(name)
        status = limit.status(value) if limit else ''
        reason = ''
        if limit and status != 'ok':
            reason = limit.low if value < limit.ok[0] else limit.high
        lines.append(
            {
                'name': name,
                'label': label,
                'value': f'{value:.3f}' if abs(value) < 2 else f'{value:.1f}',
                'status': status,
                'threshold': limit.threshold(status) if limit else '',
                'reason': reason,
                'meaning': meaning.format(reference),
                'better': '',
            }
        )
    return lines


def coregistration(
    gallery: Gallery, volume: Volume, name: str, reference: str, dseg: Volume | None = None
) -> tuple[dict[str, Any], str]:
    """Show a contrast and the reference in turn or below each other.

    Parameters
    ----------
    gallery : Gallery
        The reference with its frame; its pictures are in the page under ``scan-<plane>``.
    volume : Volume
        The contrast on the grid of the reference.
    name, reference : str
        ``FLAIR``, ``T1w``.
    dseg : Volume, optional
        Tissues of the reference, whose borders are drawn.

    Returns
    -------
    figure : dict
        ``pictures`` (to be embedded once), ``rows`` (the contrast with the reference hidden above
        it) and ``second`` (the reference alone), both lists of (plane, SVG), ``views`` (what the
        buttons of both are called), ``toggles``, ``key``, ``title`` and ``caption``.
    document : str
        SVG that shows both in turn and needs no other file.
    """
    window = display_window(volume, gallery.mask)
    title = f'{name} on the {reference}'
    pictures, pairs, seconds, alone, key = [], {}, {}, {}, []
    for plane, row in gallery.rows.items():
        picture = jpeg_grey(to_grey(row.joined(volume), window), QUALITY)
        borders, key = _borders(gallery, plane, dseg)
        pictures.append(row.image(picture, 'image/jpeg', f'id="{_id(name, plane)}"'))
        pictures.append(f'<g id="{_id(name, plane)}-borders">{borders}</g>')
        of_scan, of_reference = slice_caption(row, name), slice_caption(row, reference)
        lines = f'<use class="line" href="#{_id(name, plane)}-borders"/>'
        second = f'<use href="#scan-{plane}"/>{of_reference}'
        shown = f'<use href="#{_id(name, plane)}"/>{of_scan}'
        pairs[plane] = [shown, f'<g class="fixed">{second}</g>', lines]
        seconds[plane] = [second, lines]
        alone[plane] = [
            row.image(picture, 'image/jpeg') + of_scan,
            f'<g class="fixed">{gallery.scan_image(plane)}{of_reference}</g>',
            borders,
        ]
    figure = {
        'name': f'coregistration-{name}',
        'title': title,
        'caption': f'The lines are borders of the {reference}. On the {name} they should lie on '
        'the same borders, at the ventricles and along the cortex, on all slices; an outline '
        'that is off to one side on every slice is a shift.',
        'pictures': ''.join(pictures),
        'rows': _svg(gallery, pairs, f'{title}: {name}'),
        'second': _svg(gallery, seconds, f'{title}: {reference}'),
        'views': (name, reference),
        'toggles': [Toggle('line', 'Contours')] if key else [],
        'key': key,
    }
    return figure, stacked(gallery.rows, alone, title, style=FLICKER_STYLE)


def _borders(
    gallery: Gallery, plane: str, dseg: Volume | None
) -> tuple[str, list[tuple[str, str]]]:
    """Draw tissue borders of the reference, or that of its brain; return them with their key."""
    row = gallery.rows[plane]
    if dseg is not None:
        (white_title, white_color), (brain_title, brain_color) = BORDERS
        number = {tissue.name: tissue.index for tissue in tissues()}
        brain, white = dseg.equals(number['GM'], number['WM']), dseg.equals(number['WM'])
        drawn = row.contours(brain, brain_color, '', brain_title)
        return drawn + row.contours(white, white_color, '', white_title), list(BORDERS)
    if gallery.mask is not None:
        title = 'Border of the brain mask'
        return row.contours(gallery.mask, ORANGE, '', title), [(title, ORANGE)]
    return '', []


def _id(name: str, plane: str) -> str:
    return f'contrast-{escape(name, quote=True)}-{plane}'


def _svg(gallery: Gallery, layers: Mapping[str, list[str]], title: str) -> list[tuple[str, str]]:
    return [
        (plane, row.svg(layers[plane], f'{title}, {plane} slices'))
        for plane, row in gallery.rows.items()
    ]


def lesion_entry(
    files: Mapping[str, str],
    entries: list[dict[str, Any]],
    gallery: Gallery | None,
    reference: str,
    attempt: Attempt,
    documents: dict[str, str],
) -> dict[str, Any] | None:
    """Make ready what the page shows of white-matter hyperintensities.

    Parameters
    ----------
    files : mapping
        ``lesion_mask`` and ``lesion_morph`` by their keys in the table of outputs.
    entries : list of dict
        What :func:`contrast_entries` returned: lesions are drawn on the FLAIR, if it is there.
    gallery, reference, attempt, documents
        As for :func:`contrast_entries`.

    Returns
    -------
    dict or None
        ``rows`` of the table (``name``, ``lesions``, ``ml``, ``largest_ml``, ``percent`` of white
        matter, ``probability``) and, where it could be made, ``figure`` for the page; None if
        lesions were not looked for.
    """
    if not (files.get('lesion_mask') or files.get('lesion_morph')):
        return None
    entry: dict[str, Any] = {'rows': [], 'figure': None}
    if files.get('lesion_morph'):
        with attempt('The table of lesions'):
            entry['rows'] = [_lesion_row(row) for row in tables.read_tsv(files['lesion_morph'])]
    flair = next((one.get('file') for one in entries if one['name'] == 'FLAIR'), None)
    if gallery is not None and files.get('lesion_mask'):
        with attempt('The figure of lesions'):
            under = load_volume(flair) if flair else None
            mask = load_volume(files['lesion_mask'], labels=True)
            figure, document = lesion_figure(gallery, mask, under)
            entry['figure'] = {**figure, 'source': 'FLAIR' if under is not None else reference}
            documents['desc-wmh_mask'] = document
    return entry


def _lesion_row(row: Mapping[str, str]) -> dict[str, Any]:
    def scaled(name: str, factor: float) -> float | None:
        value = tables.number(row.get(name))
        return None if value is None else value * factor

    return {
        'name': row.get('name', ''),
        'lesions': row.get('lesions', ''),
        'ml': scaled('volume_mm3', 1e-3),
        'largest_ml': scaled('largest_mm3', 1e-3),
        'percent': scaled('fraction_of_wm', 100),
        'probability': tables.number(row.get('mean_probability')),
    }


def lesion_figure(
    gallery: Gallery, lesions: Volume, flair: Volume | None = None
) -> tuple[dict[str, Any], str]:
    """Outline and colour lesions.

    Parameters
    ----------
    gallery : Gallery
        The reference with its frame.
    lesions : Volume
        Lesion mask on the grid of the reference.
    flair : Volume, optional
        What lies under them; its pictures are in the page if :func:`coregistration` drew it.
        Default is the reference.

    Returns
    -------
    figure : dict
        As the page shows it.
    document : str
        SVG that needs no other file.
    """
    layers, base, alone = {}, {}, {}
    for plane, row in gallery.rows.items():
        labels = (row.joined(lesions, order=0) > 0).astype(int)
        layers[plane] = [
            row.image(label_picture(labels, {1: ORANGE}), 'image/png', 'class="fill area"'),
            row.contours(lesions.equals(1), SKY, 'line', 'border of lesions'),
        ]
        if flair is None:
            base[plane], alone[plane] = f'<use href="#scan-{plane}"/>', gallery.scan_image(plane)
        else:
            window = display_window(flair, gallery.mask)
            picture = jpeg_grey(to_grey(row.joined(flair), window), QUALITY)
            base[plane] = f'<use href="#{_id("FLAIR", plane)}"/>'
            alone[plane] = row.image(picture, 'image/jpeg')
    figure = Figure(
        'lesions',
        'White-matter hyperintensities',
        'The line should go round what is bright on the FLAIR in the white matter, and round '
        'nothing else: no cortex, no choroid plexus, no thin rim of the ventricles.',
        layers,
        [Toggle('line', 'Contours'), Toggle('area', 'Areas', on=False)],
        [('Border of lesions', SKY), ('Lesions (areas)', ORANGE)],
        opacity=0.5,
    )
    shown = {plane: [base[plane], *layers[plane]] for plane in gallery.rows}
    values = {
        'name': figure.name,
        'title': figure.title,
        'caption': figure.caption,
        'rows': _svg(gallery, shown, figure.title),
        'toggles': figure.toggles,
        'key': figure.key,
        'bar': '',
        'bar_ticks': (),
        'bar_css': 'heat',
        'opacity': figure.opacity,
    }
    whole = {plane: [alone[plane], *layers[plane]] for plane in gallery.rows}
    return values, stacked(gallery.rows, whole, figure.title, figure.opacity, ['area'])
