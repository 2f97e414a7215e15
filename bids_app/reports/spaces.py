# SPDX-License-Identifier: Apache-2.0
"""Figures in template space: the scan on the template, and the maps of voxel-based morphometry.

All figures of a space share cuts and the borders of the template's tissues, so that what is seen
on one is found on the next. Pictures and borders are embedded once and referred to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from bids_app.reports.drawing import (
    ORANGE,
    SKY,
    Row,
    diverging,
    heat_picture,
    jpeg_grey,
    magma,
    ratio_picture,
    to_grey,
)
from bids_app.reports.figures import Figure, Toggle, stacked
from bids_app.reports.planes import (
    NORMAL,
    PLANES,
    Frame,
    Volume,
    head_box,
    sample_grid,
    world_box,
)

BORDERS = (('White | grey matter', ORANGE),
           ('Grey matter | CSF', SKY))  # fmt: skip

RATIO_TOP = 2.0
"""Upper end of the scale of volume ratios; the lower one is its inverse."""

FLICKER_STYLE = (
    '.fixed{animation:flicker 3s steps(1) infinite}svg:hover .fixed{animation-play-state:paused}'
    '@keyframes flicker{50%{visibility:hidden}}'
    '@media (prefers-reduced-motion:reduce){.fixed{animation:none}}'
)
"""Lets what has the class ``fixed`` come and go in a document of its own."""


@dataclass(frozen=True)
class TemplateImages:
    """What the figures show of a template.

    Attributes
    ----------
    t1w : Volume
        T1w image.
    inside : Volume or None
        Intracranial space, 0 to 1.
    brain, white : Volume or None
        Grey and white matter together, and white matter alone, 0 to 1.
    """

    t1w: Volume
    inside: Volume | None = None
    brain: Volume | None = None
    white: Volume | None = None


def load_tissues(path: str | Path) -> tuple[Volume, Volume, Volume]:
    """Read the tissue maps of a template: intracranial space, brain and white matter.

    Parameters
    ----------
    path : str or Path
        4-D image with grey matter, white matter and CSF, as 0 to 1 or as 0 to 255.

    Raises
    ------
    OSError, ValueError, nibabel.filebasedimages.ImageFileError
        If the file cannot be read or does not hold three maps.
    """
    import nibabel as nib

    image = nib.load(path)
    if image.ndim != 4 or image.shape[3] < 3:
        raise ValueError(f'{Path(path).name} does not hold three tissue maps')
    data = np.asarray(image.dataobj, np.float32)
    if data.max(initial=0) > 1.5:
        data /= 255
    affine = np.asarray(image.affine, float)
    brain = data[..., 0] + data[..., 1]
    return (
        Volume(brain + data[..., 2], affine),
        Volume(brain, affine),
        Volume(np.ascontiguousarray(data[..., 1]), affine),
    )


def template_frame(images: TemplateImages, n_cuts: int = 7, spacing: float = 1.0) -> Frame:
    """Choose the box, 10 mm around the template's brain, and cuts evenly through it.

    Parameters
    ----------
    images : TemplateImages
        Without ``inside`` the box is that of the template's head.
    n_cuts : int
        Cuts per plane.
    spacing : float
        Size of a display pixel in mm.
    """
    if images.inside is not None and (images.inside.data > 0.5).any():
        low, high = world_box(images.inside, np.argwhere(images.inside.data > 0.5))
    else:
        low, high = head_box(images.t1w)
    at = np.linspace(0.1, 0.9, n_cuts)
    cuts = {plane: low[axis] + at * (high[axis] - low[axis]) for plane, axis in NORMAL.items()}
    return Frame(low - 10, high + 10, spacing, cuts)


def scale_top(volume: Volume) -> float:
    """Return a round number that nearly all values of a map of volumes stay below."""
    step = max(int(np.ceil((volume.data.size / 2e6) ** (1 / 3))), 1)
    values = volume.data[::step, ::step, ::step]
    values = values[values > 0.05]
    high = float(np.percentile(values, 99.5)) if values.size else 0.0
    return next((top for top in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0) if high <= top), 6.0)


class SpaceGallery:
    """Draws the figures of one output space.

    Parameters
    ----------
    number : int
        Tells the spaces of a page apart.
    space : str
        Name of the space.
    images : TemplateImages
        The template.
    n_cuts : int
        Slices per row.
    spacing : float
        Size of a display pixel in mm.
    quality : int
        Quality of the JPEG pictures.
    """

    def __init__(
        self,
        number: int,
        space: str,
        images: TemplateImages,
        n_cuts: int = 7,
        spacing: float = 1.0,
        quality: int = 80,
    ) -> None:
        self.number, self.space, self.images, self.quality = number, space, images, quality
        self.rows = {
            plane: Row(template_frame(images, n_cuts, spacing), plane) for plane in PLANES
        }
        self._inside = {
            plane: row.joined(images.inside) > 0.5 if images.inside is not None else None
            for plane, row in self.rows.items()
        }
        self._borders = {plane: self._draw_borders(row) for plane, row in self.rows.items()}

    @property
    def toggles(self) -> list[Toggle]:
        """The one layer that can be hidden, where there is one."""
        return [Toggle('line', 'Contours')] if self.images.brain is not None else []

    def _draw_borders(self, row: Row) -> str:
        if self.images.brain is None or self.images.white is None:
            return ''
        (white_title, white_color), (brain_title, brain_color) = BORDERS
        return row.contours(self.images.brain, brain_color, '', brain_title) + row.contours(
            self.images.white, white_color, '', white_title
        )

    def _grey_pictures(self, volume: Volume) -> dict[str, bytes]:
        """Draw a T1w image on all planes, scaled by what it holds inside the template's brain."""
        joined = {plane: row.joined(volume) for plane, row in self.rows.items()}
        inside = np.concatenate([
            picture[self._inside[plane]] if self._inside[plane] is not None
            else picture[picture > 0]
            for plane, picture in joined.items()
        ])  # fmt: skip
        low = float(np.percentile(np.concatenate([p.ravel() for p in joined.values()]), 1))
        high = float(np.percentile(inside, 99.5)) * 1.08 if inside.size else low
        window = (low, high) if high > low else (low, low + 1.0)
        return {
            plane: jpeg_grey(to_grey(picture, window), self.quality)
            for plane, picture in joined.items()
        }

    def _reference(self, what: str, plane: str) -> str:
        return f'{what}-{self.number}-{plane}'

    def definitions(self) -> str:
        """Return the template's borders, to be embedded once in the page."""
        return ''.join(
            f'<g id="{self._reference("borders", plane)}">{borders}</g>'
            for plane, borders in self._borders.items()
        )

    def _use(self, what: str, plane: str, css: str = '') -> str:
        attribute = f'class="{css}" ' if css else ''
        return f'<use {attribute}href="#{self._reference(what, plane)}"/>'

    def _page_rows(self, layers: Mapping[str, Sequence[str]], title: str) -> list[tuple]:
        return [
            (plane, row.svg(layers[plane], f'{title} on {plane} slices'))
            for plane, row in self.rows.items()
        ]

    def registration(self, scan: Volume) -> tuple[dict, str]:
        """Show the warped scan and the template in turn or below each other.

        Parameters
        ----------
        scan : Volume
            T1w scan in template space.

        Returns
        -------
        figure : dict
            ``pictures`` (to be embedded once), ``rows`` (the scan with the template hidden
            above it) and ``second`` (the template alone), both lists of (plane, SVG),
            ``toggles``, ``key``, ``title`` and ``caption``.
        document : str
            SVG that shows both in turn and needs no other file.
        """
        scans, templates = self._grey_pictures(scan), self._grey_pictures(self.images.t1w)
        title = f'Registration to {self.space}'
        pictures, pairs, seconds, alone = [], {}, {}, {}
        for plane, row in self.rows.items():
            for what, picture in (('scan', scans[plane]), ('template', templates[plane])):
                attributes = f'id="{self._reference(f"{what}-in-space", plane)}"'
                pictures.append(row.image(picture, 'image/jpeg', attributes))
            lines = self._use('borders', plane, 'line')
            of_scan, of_template = slice_caption(row, 'Scan'), slice_caption(row, 'Template')
            template = self._use('template-in-space', plane) + of_template
            pairs[plane] = [
                self._use('scan-in-space', plane) + of_scan,
                f'<g class="fixed">{template}</g>',
                lines,
            ]
            seconds[plane] = [template, lines]
            alone[plane] = [
                row.image(scans[plane], 'image/jpeg') + of_scan,
                f'<g class="fixed">{row.image(templates[plane], "image/jpeg")}{of_template}</g>',
                self._borders[plane],
            ]
        figure = {
            'title': title,
            'caption': 'Borders and ventricles of the scan should lie on the lines, which are '
            'the tissue borders of the template, and stay where they are when the template '
            'takes its place.',
            'pictures': ''.join(pictures),
            'rows': self._page_rows(pairs, f'{title}: scan'),
            'second': self._page_rows(seconds, f'{title}: template'),
            'toggles': self.toggles,
            'key': list(BORDERS) if self.toggles else [],
        }
        return figure, stacked(self.rows, alone, title, style=FLICKER_STYLE)

    def _map(self, figure: Figure, colors: Sequence[str]) -> tuple[dict, str]:
        """Return a map for the page, with its borders to switch on, and as a document."""
        layers = {
            plane: [*shown, self._use('borders', plane, 'line')]
            for plane, shown in figure.layers.items()
        }
        legend = _legend(figure, colors, max(row.size[0] for row in self.rows.values()))
        document = stacked(self.rows, figure.layers, figure.title, below=(legend, 34))
        values = {
            'name': figure.name,
            'title': figure.title,
            'caption': figure.caption,
            'rows': self._page_rows(layers, figure.title),
            'toggles': [Toggle('line', 'Contours of the template', on=False)]
            if self.toggles else [],
            'key': [],
            'bar': figure.bar,
            'bar_ticks': figure.bar_ticks,
            'bar_css': figure.bar_css,
            'opacity': 0.0,
        }  # fmt: skip
        return values, document

    def density(self, volume: Volume, name: str, title: str, caption: str) -> tuple[dict, str]:
        """Show a map of tissue volume, mm^3 of the scan per mm^3 of the template.

        Returns
        -------
        figure : dict
            As the page shows it.
        document : str
            SVG that needs no other file.
        """
        top = scale_top(volume)
        layers = {
            plane: [row.image(heat_picture(row.joined(volume), top), 'image/png')]
            for plane, row in self.rows.items()
        }
        bar = 'mm\u00b3 of the scan per mm\u00b3 of the template'
        ticks = ('0', f'{top / 2:g}', f'{top:g}')
        figure = Figure(name, title, caption, layers, bar=bar, bar_ticks=ticks)
        return self._map(figure, _hex(magma(np.linspace(0, 1, 12))))

    def jacobian(self, volume: Volume, name: str, caption: str) -> tuple[dict, str]:
        """Show the volume ratio of scan and template on a logarithmic scale of 1/2 to 2.

        Returns
        -------
        figure : dict
            As the page shows it.
        document : str
            SVG that needs no other file.
        """
        layers = {}
        for plane, row in self.rows.items():
            values = row.joined(volume)
            inside = self._inside[plane]
            picture = ratio_picture(values, values > 0 if inside is None else inside, RATIO_TOP)
            layers[plane] = [row.image(picture, 'image/png')]
        ticks = (f'{1 / RATIO_TOP:g}', '0.71', '1', '1.4', f'{RATIO_TOP:g}')
        bar = 'volume of the scan over volume of the template'
        figure = Figure(
            name, 'Jacobian determinant', caption, layers, bar=bar, bar_ticks=ticks,
            bar_css='ratio',
        )  # fmt: skip
        return self._map(figure, _hex(diverging(np.linspace(0, 1, 11))))

    def values_inside(self, volume: Volume, spacing: float = 2.0) -> np.ndarray:
        """Return the values of a map inside the template's brain, sampled every 2 mm."""
        frame = self.rows['axial'].frame
        axes = [np.arange(frame.low[n], frame.high[n], spacing) for n in range(3)]
        values = sample_grid(volume, axes)
        if self.images.inside is None:
            return values[values > 0]
        return values[sample_grid(self.images.inside, axes) > 0.5]


def slice_caption(row: Row, text: str) -> str:
    """Return a word at the top of the first slice; the next picture above it covers it."""
    size = row.font_size
    return (
        f'<g class="marks" font-size="{size}"><text x="{row.tile[0] / 2}" y="{size + 1}" '
        f'text-anchor="middle">{escape(text)}</text></g>'
    )


def _hex(colors: np.ndarray) -> list[str]:
    return [f'#{color.tobytes().hex()}' for color in colors]


def _legend(figure: Figure, colors: Sequence[str], width: float) -> str:
    """Draw the colour bar of a map for its document."""
    stops = ''.join(
        f'<stop offset="{n / (len(colors) - 1):.3f}" stop-color="{color}"/>'
        for n, color in enumerate(colors)
    )
    left, length = 12, min(260.0, width / 3)
    step = length / max(len(figure.bar_ticks) - 1, 1)
    ticks = ''.join(
        f'<text x="{left + n * step:.0f}" y="30" text-anchor="middle">{escape(tick)}</text>'
        for n, tick in enumerate(figure.bar_ticks)
    )
    return (
        f'<defs><linearGradient id="scale">{stops}</linearGradient></defs>'
        f'<rect x="{left}" y="4" width="{length:.0f}" height="12" fill="url(#scale)"/>'
        f'<g class="marks" font-size="12">{ticks}<text x="{left + length + 14:.0f}" y="15">'
        f'{escape(figure.bar)}</text></g>'
    )
