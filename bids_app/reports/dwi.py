# SPDX-License-Identifier: Apache-2.0
"""What the page shows of diffusion images: their maps, the synthesised T1w, and the regions.

All pictures are of the same slices, on which the border of white matter of the structures is
drawn: where registration or distortion has shifted something, it lies beside its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.data import structures
from bids_app.reports import tables
from bids_app.reports.drawing import (
    ORANGE,
    SKY,
    Row,
    diverging,
    jpeg_grey,
    png_palette,
    to_grey,
)
from bids_app.reports.figures import Toggle, stacked
from bids_app.reports.planes import Volume, display_window, load_volume, make_frame
from bids_app.reports.spaces import slice_caption
from bids_app.reports.vbm import Attempt

QUALITY = 76
"""Quality of the JPEG pictures."""

LARGEST_DIFFERENCE = 2.0
"""End of the colour scale of differences, in standard deviations of the T1w in the brain."""

_LEVELS = 33

TITLES = {
    'dwi_b0': 'mean b=0',
    'dwi_mean': 'mean DWI',
    'dwi_colour': 'FA by direction',
    'dwi_t1w': 'synthesised T1w',
    'dwi_reference': 'measured {}',
}
"""What is shown, from top to bottom; then their difference."""

_MEASURES = {
    'dice': ('Overlap of the brains', 'Dice of both brain masks'),
    'similarity': ('Similarity', 'Normalised mutual information of the two images, 1 to 2'),
    'tissue_fit': ('Fit of the tissues', 'Part of the variance of mean diffusivity between the '
                   'tissues of the reference, 0 to 1; it judges both ways alike'),
    'shift_mm': ('Shift (mm)', 'Of the centre of the brain, against what the headers say'),
    'rotation_degrees': ('Turn (degrees)', 'Against what the headers say'),
    'coverage': ('Coverage', 'Share of the brain that is in the diffusion images'),
}  # fmt: skip

_WAYS = {'synthesized': 'through the synthesised T1w', 'b0': 'through b=0'}

_NAMES = {'dwi_t1w': 'Synthesised T1w', 'dwi_b0': 'Mean b=0', 'dwi_mean': 'Mean weighted image',
          'dwi_fa': 'FA', 'dwi_md': 'MD'}  # fmt: skip


def diffusion_entry(
    dwi: Mapping[str, Any], reference: str, attempt: Attempt, documents: dict[str, str]
) -> dict[str, Any] | None:
    """Make ready what the page shows of diffusion images.

    Parameters
    ----------
    dwi : mapping
        As in :class:`bids_app.reports.session.SessionReport`.
    reference : str
        Contrast of the anatomical image.
    attempt : callable
        Context manager that turns any error into a note on what could not be shown.
    documents : dict
        Gets the figure as SVG document.

    Returns
    -------
    dict or None
        ``alone``, ``reasons``, ``notes``, ``uncorrected``, ``facts`` (lines of a table),
        ``figure``, ``ways`` and ``measures`` (of the registrations), ``agreement`` and
        ``regions``; None without diffusion images.
    """
    if not dwi:
        return None
    given = dwi.get('files') or {}
    files = {key: str(path) for key, path in given.items() if path and Path(path).is_file()}
    entry: dict[str, Any] = {
        'alone': bool(dwi.get('alone')),
        'status': str(dwi.get('status', 'ok')),
        'reasons': [str(reason) for reason in dwi.get('reasons') or ()],
        'notes': [str(note) for note in dwi.get('notes') or ()],
        'no_tensor': str(dwi.get('no_tensor') or ''),
        'uncorrected': [str(line) for line in dwi.get('uncorrected') or ()],
        'facts': _facts(dwi),
        'figure': None,
        'ways': [],
        'measures': [],
        'agreement': [],
        'regions': [],
    }
    if 'dwi_b0' in files or 'dwi_mean' in files:
        with attempt('The figure of diffusion images'):
            entry['figure'], documents['desc-diffusion_dwi'] = diffusion_figure(files, reference)
    registrations = dwi.get('registrations') or {}
    entry['ways'] = [
        {'name': _WAYS.get(way, way), 'used': way == dwi.get('through')} for way in registrations
    ]
    entry['measures'] = _measures(registrations)
    agreement = dwi.get('agreement') or {}
    entry['agreement'] = [
        {'name': _NAMES[key], 'value': agreement[key]} for key in _NAMES if key in agreement
    ]
    if 'dwi_regions' in files:
        with attempt('The table of diffusion in structures'):
            entry['regions'] = _regions(tables.read_tsv(files['dwi_regions']))
    return entry


def _facts(dwi: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the series in a few lines."""
    rows = []
    if dwi.get('volumes'):
        rows.append(('Volumes', str(dwi['volumes'])))
    if dwi.get('shells'):
        text = ', '.join(f'b = {b:g} s/mm² ({count} volumes)' for b, count in dwi['shells'])
        rows.append(('Shells', text))
    if dwi.get('directions') is not None:
        rows.append(('Different directions', str(dwi['directions'])))
    if dwi.get('model'):
        rows.append(('T1w synthesised by', str(dwi['model'])))
    if motion := dwi.get('motion'):
        rows.append(
            ('Head motion', f'{motion["displacement_mean_mm"]:g} mm on average, at most '
             f'{motion["displacement_max_mm"]:g} mm; corrected')
        )  # fmt: skip
    if noise := dwi.get('noise'):
        rows.append(('Noise', f'standard deviation {noise["sigma"]:g}; removed (MP-PCA)'))
    if dwi.get('apart_mm') is not None:
        rows.append(('Distance of both registrations', f'{dwi["apart_mm"]:g} mm in the brain'))
    return rows


def _measures(registrations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put the measures of both registrations beside each other."""
    lines = []
    for name, (label, meaning) in _MEASURES.items():
        values = [
            tables.number(found.get('measures', {}).get(name)) for found in registrations.values()
        ]
        if any(value is not None and math.isfinite(value) for value in values):
            shown = ['' if value is None else f'{value:.3f}' for value in values]
            lines.append({'label': label, 'values': shown, 'meaning': meaning})
    return lines


def _regions(rows: list[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return the lines of the structures that have voxels."""
    core = {structure.name for structure in structures() if structure.core}
    found = []
    for row in rows:
        if row.get('name') not in core or not tables.number(row.get('voxels')):
            continue
        values = []
        for name in ('fa', 'md', 'ad', 'rd'):
            mean, sd = (tables.number(row.get(f'{name}_{what}')) for what in ('mean', 'sd'))
            text = '' if mean is None else f'{mean:.2f}'
            values.append(text if sd is None or not text else f'{text} ± {sd:.2f}')
        found.append({'name': row['name'], 'voxels': row['voxels'], 'values': values})
    return found


def diffusion_figure(files: Mapping[str, str], reference: str) -> tuple[dict[str, Any], str]:
    """Show all images of the diffusion grid on the same axial slices.

    Parameters
    ----------
    files : mapping of str to str
        Derivatives by their keys; those of :data:`TITLES` are shown where they are there.
    reference : str
        Contrast of the anatomical image.

    Returns
    -------
    figure : dict
        As the page shows it.
    document : str
        SVG that needs no other file.
    """
    base = load_volume(files.get('dwi_b0') or files['dwi_mean'])
    mask = load_volume(files['dwi_mask'], labels=True) if 'dwi_mask' in files else None
    row = Row(make_frame(base, mask), 'axial')
    contours, key = _contours(files, mask, row)
    pictures: dict[str, Callable[[], str]] = {}
    for name, title in TITLES.items():
        if name in files:
            pictures[title.format(reference)] = partial(_picture, files[name], name, mask, row)
    both = 'dwi_t1w' in files and 'dwi_reference' in files
    if both and mask is not None:
        pictures['difference'] = partial(_difference, files, mask, row)
    layers = {
        title: [draw(), contours, slice_caption(row, title)] for title, draw in pictures.items()
    }
    caption = (
        'The lines are the border of white matter in the structures that were brought over, or '
        'that of the brain mask. On every picture they should lie on the same borders.'
    )
    figure = {
        'name': 'diffusion-images',
        'title': 'Diffusion images',
        'caption': caption,
        'rows': [
            (title, row.svg(drawn, f'{title}, axial slices')) for title, drawn in layers.items()
        ],
        'toggles': [Toggle('line', 'Contours')] if contours else [],
        'key': key,
        'bar': f'Difference in standard deviations (±{LARGEST_DIFFERENCE:g})' if both else '',
        'bar_ticks': (f'−{LARGEST_DIFFERENCE:g}', '0', f'+{LARGEST_DIFFERENCE:g}'),
        'bar_css': 'ratio',
        'opacity': 0,
    }
    return figure, stacked(dict.fromkeys(layers, row), layers, 'Diffusion images')


def _contours(
    files: Mapping[str, str], mask: Volume | None, row: Row
) -> tuple[str, list[tuple[str, str]]]:
    """Draw the border of white matter, or of the brain; return it with its key."""
    if 'dwi_dseg' in files:
        white = [s.index for s in structures() if s.name.endswith('Cerebral-White-Matter')]
        labels = load_volume(files['dwi_dseg'], labels=True)
        title = 'Border of cerebral white matter'
        return row.contours(labels.equals(*white), ORANGE, 'line', title), [(title, ORANGE)]
    if mask is not None:
        title = 'Border of the brain mask'
        return row.contours(mask, SKY, 'line', title), [(title, SKY)]
    return '', []


def _picture(path: str, name: str, mask: Volume | None, row: Row) -> str:
    """Return the layer of an image, in grey or, for directions, in colour."""
    if name == 'dwi_colour':
        return row.image(_colours(path, row), 'image/jpeg')
    volume = load_volume(path)
    window = display_window(volume, mask)
    return row.image(jpeg_grey(to_grey(row.joined(volume), window), QUALITY), 'image/jpeg')


def _colours(path: str, row: Row) -> bytes:
    """Return a colour picture of the three volumes of a file."""
    import nibabel as nib

    image = nib.load(path)
    data = np.asarray(image.dataobj, np.float32)
    channels = [row.joined(Volume(data[..., n], image.affine)) for n in range(3)]
    # A little brighter than FA itself, which hardly ever exceeds 0.8.
    shown = np.clip(np.stack(channels, -1) / 0.8, 0, 1)
    return jpeg_grey(np.rint(255 * shown).astype(np.uint8), QUALITY)


def _difference(files: Mapping[str, str], mask: Volume, row: Row) -> str:
    """Colour the difference of the two T1w, each with mean 0 and deviation 1 in the brain."""
    inside = mask.data > 0
    scored = []
    for name in ('dwi_t1w', 'dwi_reference'):
        data = load_volume(files[name]).data.astype(np.float32)
        values = data[inside & (data > 0)]
        scored.append((data - values.mean()) / max(float(values.std()), 1e-6))
    change = np.where(inside, scored[0] - scored[1], 0).astype(np.float32)
    place = (row.joined(Volume(change, mask.affine)) / LARGEST_DIFFERENCE + 1) / 2
    index = 1 + np.clip(np.rint(place * (_LEVELS - 1)), 0, _LEVELS - 1)
    seen = row.joined(Volume(inside.astype(np.float32), mask.affine)) > 0.5
    colors = [(*map(int, c), 255) for c in diverging(np.linspace(0, 1, _LEVELS))]
    return row.image(png_palette(np.where(seen, index, 0), [(0, 0, 0, 255), *colors]), 'image/png')
