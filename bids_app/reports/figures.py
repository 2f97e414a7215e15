# SPDX-License-Identifier: Apache-2.0
"""The figures of a session: contours and overlays on the scan in three planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from bids_app.data import structures, tissues
from bids_app.reports.drawing import (
    ORANGE,
    SKY,
    Row,
    heat_picture,
    jpeg_grey,
    label_picture,
    to_grey,
)
from bids_app.reports.planes import (
    PLANES,
    Frame,
    Volume,
    display_window,
    load_volume,
    make_frame,
)

FIGURE_NAMES = {
    'mask': 'desc-brain_mask',
    'tissues': 'dseg',
    'structures': 'desc-wholebrain_dseg',
    'uncertainty': 'desc-entropy_uncertainty',
}
"""Entities and suffix of the picture files, as NiPreps name theirs."""

_STANDALONE_STYLE = (
    '<style>.contour{fill:none;stroke-linejoin:round}'
    '.contour path{vector-effect:non-scaling-stroke;stroke-width:1.2px}'
    '.marks{fill:#fff;font-family:sans-serif;paint-order:stroke;stroke:#000;stroke-width:2px}'
    '.letter{font-weight:bold}.off{display:none}</style>'
)


@dataclass(frozen=True)
class Toggle:
    """A layer that the reader can hide; ``css`` is the class of its SVG fragments."""

    css: str
    label: str
    on: bool = True


@dataclass(frozen=True)
class Figure:
    """One figure: a row of slices for each plane.

    Attributes
    ----------
    name : str
        Key of :data:`FIGURE_NAMES`.
    title, caption : str
        Plain text; the title is also the text alternative.
    layers : mapping of str to list of str
        Overlays by plane as SVG fragments.
    toggles : list of Toggle
        The layers that can be hidden.
    key : list of (label, color)
        Colour key.
    bar : str
        Label of the colour bar; empty for none.
    bar_ticks : tuple of str
        What stands along the colour bar, evenly spaced from its lower end to its upper one.
    bar_css : str
        Colours of the bar: ``heat`` or ``ratio``.
    opacity : float
        Opacity of areas at first (0 to 1); 0 if there are none.
    """

    name: str
    title: str
    caption: str
    layers: Mapping[str, list[str]]
    toggles: list[Toggle] = field(default_factory=list)
    key: list[tuple[str, str]] = field(default_factory=list)
    bar: str = ''
    bar_ticks: tuple[str, ...] = ()
    bar_css: str = 'heat'
    opacity: float = 0.0


def entropy_top(entropy: Volume) -> float:
    """Return the end of the entropy's colour scale: 0.25, 0.5 or 1."""
    step = max(int(np.ceil((entropy.data.size / 2e6) ** (1 / 3))), 1)
    values = entropy.data[::step, ::step, ::step]
    values = values[values > 0.01]
    high = float(np.percentile(values, 99)) if values.size else 0.0
    return next((top for top in (0.25, 0.5) if high <= top), 1.0)


class Gallery:
    """Draws the figures of one session on one scan.

    Parameters
    ----------
    scan : Volume
        What lies under every overlay.
    mask : Volume, optional
        Brain mask; sets what part of the head is shown and how bright.
    n_cuts : int
        Slices per row.
    """

    def __init__(self, scan: Volume, mask: Volume | None = None, n_cuts: int = 7) -> None:
        self.scan, self.mask = scan, mask
        self.window = display_window(scan, mask)
        self.frame: Frame = make_frame(scan, mask, n_cuts)
        self.rows = {plane: Row(self.frame, plane) for plane in PLANES}
        self._pictures = {
            plane: jpeg_grey(to_grey(row.joined(scan), self.window))
            for plane, row in self.rows.items()
        }

    @classmethod
    def from_files(cls, scan: str, mask: str | None = None) -> Gallery:
        """Read the files and make a gallery."""
        return cls(load_volume(scan), load_volume(mask, labels=True) if mask else None)

    def scan_image(self, plane: str, attributes: str = '') -> str:
        """Return the scan's layer of a row."""
        return self.rows[plane].image(self._pictures[plane], 'image/jpeg', attributes)

    def scan_only(self) -> Figure:
        """Show the scan without anything on it."""
        caption = 'There is no mask or segmentation of this scan.'
        return Figure('scan', 'Scan', caption, {plane: [] for plane in PLANES})

    def brain_mask(self) -> Figure:
        """Outline the brain mask."""
        layers = {
            plane: [row.contours(self.mask, ORANGE, 'line', 'border of the brain mask')]
            for plane, row in self.rows.items()
        }
        return Figure(
            'mask',
            'Brain mask',
            'The line should follow the outer border of the brain: no scalp, eyes or sinus '
            'inside, no cortex or cerebellum outside.',
            layers,
            [Toggle('line', 'Contour')],
            [('Border of the brain mask', ORANGE)],
        )

    def tissues(self, dseg: Volume) -> Figure:
        """Outline white matter and the outer border of grey matter; colour all three tissues."""
        colors = {tissue.index: tissue.color for tissue in tissues()}
        number = {tissue.name: tissue.index for tissue in tissues()}
        white = dseg.equals(number['WM'])
        brain = dseg.equals(number['GM'], number['WM'])
        layers = {}
        for plane, row in self.rows.items():
            labels = row.joined(dseg, order=0)
            layers[plane] = [
                row.image(label_picture(labels, colors), 'image/png', 'class="fill area"'),
                row.contours(brain, SKY, 'line', 'border of grey matter and CSF'),
                row.contours(white, ORANGE, 'line', 'border of white and grey matter'),
            ]
        return Figure(
            'tissues',
            'Tissues',
            'The inner line should follow the border of white and grey matter, the outer line '
            'the border of grey matter and CSF, the ventricles included.',
            layers,
            [Toggle('line', 'Contours'), Toggle('area', 'Areas', on=False)],
            [
                ('White | grey matter', ORANGE),
                ('Grey matter | CSF', SKY),
                *((f'{t.name} (areas)', t.color) for t in tissues()),
            ],
            opacity=0.55,
        )

    def structures(self, labels: Volume) -> Figure:
        """Colour the structures, those that occur in the key."""
        table = structures()
        colors = {structure.index: structure.color for structure in table}
        present = set(np.unique(labels.data).tolist())
        layers = {
            plane: [
                row.image(
                    label_picture(row.joined(labels, order=0), colors),
                    'image/png',
                    'class="fill area"',
                )
            ]
            for plane, row in self.rows.items()
        }
        return Figure(
            'structures',
            'Structures',
            'The colours are those of FreeSurfer; the right side is slightly darker, so that '
            'a swap of the sides shows.',
            layers,
            [Toggle('area', 'Structures')],
            [(f'{s.index} {s.name}', s.color) for s in table if s.index in present],
            opacity=0.55,
        )

    def uncertainty(self, entropy: Volume) -> Figure:
        """Colour the entropy of the network's label probabilities, normalised to 0 to 1.

        The colours end at 0.25, 0.5 or 1, whichever holds nearly all voxels: with 30 labels two
        equally likely ones make 0.2.
        """
        top = entropy_top(entropy)
        layers = {
            plane: [
                row.image(heat_picture(row.joined(entropy), top), 'image/png', 'class="fill area"')
            ]
            for plane, row in self.rows.items()
        }
        return Figure(
            'uncertainty',
            'Uncertainty',
            'Entropy of the label probabilities at every voxel, 0 where the network is sure of '
            'one label, 1 where all are equally likely (0.2 where two of thirty are). Thin lines '
            'along borders are normal (partial volume); bright areas ask for a look at the '
            'segmentation there.',
            layers,
            [Toggle('area', 'Entropy')],
            bar='Normalised entropy',
            bar_ticks=('0', f'{top:g}'),
            opacity=0.9,
        )

    def standalone(self, figure: Figure) -> str:
        """Return a figure as one SVG document that needs no other file."""
        off = [toggle.css for toggle in figure.toggles if not toggle.on]
        layers = {plane: [self.scan_image(plane), *figure.layers[plane]] for plane in self.rows}
        return stacked(self.rows, layers, figure.title, figure.opacity, off)


def stacked(
    rows: Mapping[str, Row],
    layers: Mapping[str, Sequence[str]],
    title: str,
    opacity: float = 1.0,
    off: Sequence[str] = (),
    style: str = '',
    below: tuple[str, float] = ('', 0.0),
) -> str:
    """Put the rows of all planes into one SVG document that needs no other file.

    Parameters
    ----------
    rows : mapping of str to Row
        By plane, from top to bottom.
    layers : mapping of str to sequence of str
        SVG fragments by plane, lowest first.
    title : str
        Text alternative.
    opacity : float
        Opacity of areas, 0 to 1.
    off : sequence of str
        Classes that are hidden.
    style : str
        More style sheet.
    below : (str, float)
        SVG fragment that is shown under the rows, such as a legend, and its height.
    """
    parts, top = [], 0.0
    widest = max(row.size[0] for row in rows.values())
    for plane, row in rows.items():
        shown = list(layers[plane])
        for css in off:
            shown = [layer.replace(f' {css}"', f' {css} off"', 1) for layer in shown]
        height = row.total_height * widest / row.size[0]
        place = f'y="{top:.1f}" width="{widest}" height="{height:.1f}"'
        parts.append(row.svg(shown, f'{title}, {plane}', place))
        top += height + 6
    if below[0]:
        parts.append(f'<g transform="translate(0 {top:.1f})">{below[0]}</g>')
        top += below[1] + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {widest} {top - 6:.0f}" '
        f'width="{widest}" height="{top - 6:.0f}"><title>{escape(title)}</title>'
        f'{_STANDALONE_STYLE}<style>.fill{{opacity:{opacity}}}{style}</style>'
        '<rect width="100%" height="100%" fill="#000"/>'
        f'{"".join(parts)}</svg>\n'
    )
