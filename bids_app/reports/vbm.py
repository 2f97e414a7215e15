# SPDX-License-Identifier: Apache-2.0
"""What the page shows of voxel-based morphometry: spaces with their maps, regions of atlases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.morphometry.checks import assess, registration_measures
from bids_app.reports import quality, tables

if TYPE_CHECKING:
    from bids_app.reports.planes import Volume
    from bids_app.reports.spaces import SpaceGallery, TemplateImages

PICTURE_BYTES = 2_100_000
"""Most that the pictures of all spaces may add to a page; the rest has a page of up to 2.9 MB."""

METHODS = {
    'network': 'network alone',
    'refined': 'network, then optimised on this scan',
    'ants': 'SyN of ANTs',
}
"""How a registration is called."""

VERDICTS = {
    'ok': 'The measures are as usual. A look at the pictures is still worth it.',
    'warn': 'Look at the pictures before you use this space.',
    'fail': 'Something is wrong: do not use the maps of this space before you know what.',
    'unknown': 'The registration says nothing of itself: look at the pictures.',
}

Attempt = Callable[[str], AbstractContextManager[None]]


def space_entries(
    spaces: list[dict[str, Any]], label: str, attempt: Attempt, documents: dict[str, str]
) -> list[dict[str, Any]]:
    """Make ready what the page shows of every output space.

    Parameters
    ----------
    spaces : list of dict
        As in :class:`bids_app.reports.session.SessionReport`.
    label : str
        ``sub-01_ses-1``, what the names of the derivatives begin with.
    attempt : callable
        Context manager that turns any error into a note on what could not be shown.
    documents : dict
        Gets the figures as SVG documents by their entities and suffix.

    Returns
    -------
    list of dict
        ``name``, ``method``, ``status``, ``verdict`` (in words), ``reasons``, ``notes``,
        ``checks``, ``maps`` and, where they could be made, ``registration`` and ``histogram``.
    """
    entries, room = [], PICTURE_BYTES
    for number, space in enumerate(spaces):
        entry = _described(number, space)
        with attempt(f'The space {entry["name"]}'):
            pictures, drawn = _pictures(number, space, label, attempt)
            documents.update(drawn)
            size = sum(len(text) for text in _texts(pictures))
            if size <= room:
                room -= size
                entry.update(pictures)
            else:
                entry['notes'].append(
                    'The pictures of this space are left out to keep the page small; they are '
                    'in the folder figures.'
                )
        entries.append(entry)
    return entries


def region_entries(
    regions: list[dict[str, Any]], tiv: float | None, attempt: Attempt
) -> list[dict[str, Any]]:
    """Read the regional volumes of every atlas.

    Parameters
    ----------
    regions : list of dict
        As in :class:`bids_app.reports.session.SessionReport`.
    tiv : float or None
        Total intracranial volume in mm^3.
    attempt : callable
        See :func:`space_entries`.

    Returns
    -------
    list of dict
        ``atlas``, ``space``, ``source``, ``rows`` (see
        :func:`bids_app.reports.tables.region_table`) and ``empty``, the number of regions
        without volume.
    """
    entries = []
    for atlas in regions:
        name = str(atlas.get('atlas') or 'atlas')
        with attempt(f'The regional volumes of {name}'):
            rows = tables.region_table(tables.read_tsv(atlas['file']), tiv)
            entries.append(
                {
                    'atlas': name,
                    'space': atlas.get('space') or '',
                    'source': atlas.get('source') or '',
                    'rows': rows,
                    'empty': sum(bool(row['flag']) for row in rows),
                }
            )
    return entries


def _described(number: int, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words and numbers of a space."""
    measures = registration_measures(space.get('measures') or {})
    verdict = assess(measures)
    lines = quality.checks({name: str(value) for name, value in measures.items()}, verdict)
    status = verdict['status'] if any(line['status'] for line in lines) else 'unknown'
    method = str(space.get('method') or '')
    facts = [METHODS.get(method, method)]
    if size := tables.number(space.get('voxel_size')):
        facts.append(f'maps of {size:g} mm')
    if spent := sum(v for name, v in measures.items() if '_seconds_' in name):
        facts.append(f'registered in {spent:.1f} s')
    return {
        'number': number,
        'name': str(space.get('space') or '?'),
        'method': ', '.join(fact for fact in facts if fact),
        'status': status,
        'verdict': VERDICTS[status],
        'reasons': [quality.spelled_out(reason) for reason in verdict['reasons']],
        'notes': [str(note) for note in space.get('notes') or () if note],
        'checks': lines,
        'maps': [],
    }


def _pictures(
    number: int, space: Mapping[str, Any], label: str, attempt: Attempt
) -> tuple[dict[str, Any], dict[str, str]]:
    """Draw the figures of a space, those of the first one finer than those that are folded."""
    from bids_app.reports.charts import ratio_histogram
    from bids_app.reports.planes import load_volume
    from bids_app.reports.spaces import SpaceGallery

    files = {
        key: path for key, path in (space.get('files') or {}).items()
        if path and Path(path).is_file()
    }  # fmt: skip
    name = str(space.get('space') or '?')
    result: dict[str, Any] = {'maps': []}
    documents: dict[str, str] = {}
    images = _template_images(space, name, attempt)
    if images is None or not files:
        return result, documents
    finest = number == 0
    gallery = SpaceGallery(
        number, name, images, n_cuts=7 if finest else 5, spacing=1.0 if finest else 1.25,
        quality=80 if finest else 70,
    )  # fmt: skip
    result['definitions'] = gallery.definitions()
    if 'std_preproc' in files:
        with attempt(f'The registration to {name}'):
            scan = load_volume(files['std_preproc'])
            result['registration'], document = gallery.registration(scan)
            documents[f'space-{name}_T1w'] = document
    for key, draw in _map_drawings(gallery, space).items():
        if key in files:
            with attempt(f'The map {Path(files[key]).name}'):
                volume = load_volume(files[key])
                figure, document = draw(volume)
                result['maps'].append(figure)
                documents[_figure_name(files[key], label)] = document
                if key == 'jacobian':
                    result['histogram'] = ratio_histogram(gallery.values_inside(volume))
    return result, documents


def _template_images(
    space: Mapping[str, Any], name: str, attempt: Attempt
) -> TemplateImages | None:
    """Read the template; without its tissue maps there are no contours."""
    from bids_app.reports.planes import load_volume
    from bids_app.reports.spaces import TemplateImages, load_tissues

    template = space.get('template') or {}
    t1w: Volume | None = None
    maps: tuple[Volume | None, ...] = (None, None, None)
    with attempt(f'The T1w image of the template {name}'):
        t1w = load_volume(template['t1w'])
    if template.get('tissues'):
        with attempt(f'The tissue maps of the template {name}'):
            maps = load_tissues(template['tissues'])
    return TemplateImages(t1w, *maps) if t1w is not None else None


def _map_drawings(
    gallery: SpaceGallery, space: Mapping[str, Any]
) -> dict[str, Callable[[Volume], tuple[dict, str]]]:
    """Return how every map is drawn, by the key of its file."""
    n = gallery.number
    widths = [f'{float(width):g}' for width in space.get('fwhm') or ()]
    width = f'{widths[0]} mm' if widths else 'a Gaussian'
    others = f' Also written: {" and ".join(widths[1:])} mm.' if len(widths) > 1 else ''
    return {
        'vbm_gm': lambda volume: gallery.density(
            volume,
            f'vbm-gm-{n}',
            'Modulated grey matter',
            'Volume of grey matter of the scan in every place of the template. The cortex should '
            'be one bright ribbon, as wide on the left as on the right; values above 1 are '
            'where the scan had to be squeezed.',
        ),
        'vbm_gm_smooth': lambda volume: gallery.density(
            volume,
            f'vbm-smooth-{n}',
            'Smoothed grey matter',
            f'The modulated map, smoothed with {width} (full width at half maximum): what a '
            f'statistical analysis takes.{others}',
        ),
        'jacobian': lambda volume: gallery.jacobian(
            volume,
            f'vbm-jacobian-{n}',
            'Affine and nonlinear part together. Red is where the scan is larger than the '
            'template, blue where it is smaller; a small head is blue all over. The change from '
            'place to place should be smooth, without spots or sharp edges.',
        ),
    }


def _figure_name(path: str, label: str) -> str:
    """Return entities and suffix of a derivative, as the names of figures want them."""
    return Path(path).name.removeprefix(f'{label}_').partition('.')[0]


def _texts(value: Any) -> list[str]:
    """Return all texts inside lists and dicts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []
