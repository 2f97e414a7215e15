# SPDX-License-Identifier: Apache-2.0
"""Bytes and marks of the figures: grey pictures, colour maps, contours, rows of slices as SVG.

Every row of slices is an SVG of layers: the scan as JPEG, overlays as PNG with few colours,
contours as vector paths and letters as text. That keeps a figure sharp at any size, small, and
lets the reader fade or hide an overlay without a second picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from bids_app.reports.planes import EDGE_LETTERS, NORMAL, Frame, Volume

GAP = 4
"""Pixels between two slices of a row."""

ORANGE, SKY = '#E69F00', '#56B4E9'
"""Contour colours of Okabe and Ito, told apart with any colour vision."""

_MAGMA = np.array(
    [
        (0, 0, 4), (18, 13, 49), (51, 16, 104), (90, 22, 126), (129, 37, 129), (169, 50, 125),
        (208, 64, 111), (239, 89, 95), (251, 136, 97), (254, 183, 126), (254, 230, 173),
        (252, 253, 191),
    ],
    float,
)  # fmt: skip
"""Anchors of matplotlib's perceptually uniform map ``magma``."""


def magma(values: np.ndarray) -> np.ndarray:
    """Map values of 0 to 1 to colours: shape (...) to uint8 (..., 3)."""
    at = np.clip(np.asarray(values, float), 0, 1) * (len(_MAGMA) - 1)
    channels = [np.interp(at, np.arange(len(_MAGMA)), _MAGMA[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


_DIVERGING = np.array(
    [
        (5, 48, 97), (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240),
        (247, 247, 247), (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43),
        (103, 0, 31),
    ],
    float,
)  # fmt: skip
"""Anchors of ColorBrewer's ``RdBu``, reversed: blue below the middle, red above it."""


def diverging(values: np.ndarray) -> np.ndarray:
    """Map values of 0 to 1, 0.5 in the middle, to colours: shape (...) to uint8 (..., 3)."""
    at = np.clip(np.asarray(values, float), 0, 1) * (len(_DIVERGING) - 1)
    places = np.arange(len(_DIVERGING))
    channels = [np.interp(at, places, _DIVERGING[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def hex_to_rgb(color: str) -> tuple[int, int, int]:
    """Read ``#RRGGBB``."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def data_uri(data: bytes, mime: str) -> str:
    """Pack bytes into a ``data:`` address."""
    return f'data:{mime};base64,{base64.b64encode(data).decode("ascii")}'


def to_grey(data: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Scale intensities to uint8 between the window's black and white."""
    low, high = window
    return np.rint(np.clip((data - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def jpeg_grey(data: np.ndarray, quality: int = 84) -> bytes:
    """Compress a grey picture (uint8, shape (height, width)) as JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(data).save(stream, 'JPEG', quality=quality, optimize=True)
    return stream.getvalue()


def png_palette(index: np.ndarray, colors: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Compress a picture of palette entries (uint8) as PNG; ``colors`` are RGBA by entry."""
    from PIL import Image

    image = Image.fromarray(index.astype(np.uint8))
    image.putpalette([channel for color in colors for channel in color[:3]])
    stream = io.BytesIO()
    image.save(stream, 'PNG', transparency=bytes(color[3] for color in colors))
    return stream.getvalue()


def label_picture(labels: np.ndarray, colors: Mapping[int, str]) -> bytes:
    """Colour a label picture: labels without a colour are transparent.

    Parameters
    ----------
    labels : numpy.ndarray of int, shape (height, width)
        Label numbers.
    colors : mapping of int to str
        ``#RRGGBB`` by label number; at most 255 of them.
    """
    table = np.zeros(max(int(labels.max(initial=0)), *colors, 0) + 1, np.uint8)
    palette = [(0, 0, 0, 0)]
    for entry, (number, color) in enumerate(colors.items(), 1):
        table[number] = entry
        palette.append((*hex_to_rgb(color), 255))
    return png_palette(table[np.maximum(labels, 0)], palette)


def heat_picture(values: np.ndarray, top: float = 1.0, levels: int = 24) -> bytes:
    """Colour values of 0 to ``top`` with :func:`magma`, more transparent the lower they are."""
    step = np.clip(np.rint(values / top * (levels - 1)), 0, levels - 1)
    share = np.arange(levels) / (levels - 1)
    opacity = np.rint(255 * np.clip(share * 2.5, 0, 1)).astype(int)
    colors = magma(share)
    return png_palette(
        step, [(*map(int, c), int(a)) for c, a in zip(colors, opacity, strict=True)]
    )


def ratio_picture(
    values: np.ndarray, inside: np.ndarray, top: float = 2.0, levels: int = 33
) -> bytes:
    """Colour ratios of ``1 / top`` to ``top`` on a logarithmic scale with :func:`diverging`.

    Parameters
    ----------
    values : numpy.ndarray, shape (height, width)
        Ratios; 1 is in the middle of the scale, and what is not above zero at its lower end.
    inside : numpy.ndarray of bool, shape (height, width)
        What is coloured; the rest is transparent.
    top : float
        Upper end of the scale.
    levels : int
        Number of colours; odd, so that 1 has a colour of its own.
    """
    floor = np.maximum(values, 1e-6)
    place = (np.log(floor) / np.log(top) + 1) / 2
    step = 1 + np.clip(np.rint(place * (levels - 1)), 0, levels - 1)
    colors = [(*map(int, color), 255) for color in diverging(np.linspace(0, 1, levels))]
    return png_palette(np.where(inside, step, 0), [(0, 0, 0, 0), *colors])


def contour_path(plane: np.ndarray, level: float = 0.5, tolerance: float = 0.12) -> str:
    """Trace the border of a mask as SVG path data in tenths of a pixel.

    Parameters
    ----------
    plane : numpy.ndarray, shape (height, width)
        Mask values between 0 and 1.
    level : float
        Where the border runs.
    tolerance : float
        Largest distance in pixels by which a dropped point may lie off the line.
    """
    import contourpy

    if not (plane > level).any():
        return ''
    padded = np.pad(plane, 1)  # so that a mask cut by the picture's edge is closed
    parts = []
    for line in contourpy.contour_generator(z=padded).lines(level):
        points = _simplified(np.asarray(line) - 0.5, tolerance)
        if len(points) < 4:
            continue
        tenths = np.rint(points * 10).astype(int)
        steps = np.diff(tenths[:-1], axis=0)
        parts.append(f'M{tenths[0, 0]} {tenths[0, 1]}l{_numbers(steps.ravel())}z')
    return ''.join(parts)


def _simplified(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Drop points that lie on the line between their neighbours, every other one at a time."""
    for turn in range(6):
        if len(points) < 8:
            break
        before, at, after = points[:-2], points[1:-1], points[2:]
        chord, offset = after - before, at - before
        length = np.hypot(*chord.T) + 1e-9
        distance = np.abs(chord[:, 0] * offset[:, 1] - chord[:, 1] * offset[:, 0]) / length
        drop = distance < tolerance
        drop[turn % 2 :: 2] = False
        if not drop.any() and turn:
            break
        points = points[np.r_[True, ~drop, True]]
    return points


def _numbers(values: np.ndarray) -> str:
    """Join integers as SVG path data: a minus sign already separates."""
    text = ' '.join(map(str, values.tolist()))
    return text.replace(' -', '-')


@dataclass(frozen=True)
class Row:
    """One row of slices through a plane; its methods make the layers of an SVG.

    Attributes
    ----------
    frame : Frame
        What is shown.
    plane : str
        ``axial``, ``coronal`` or ``sagittal``.
    """

    frame: Frame
    plane: str

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of one slice in pixels."""
        return self.frame.size(self.plane)

    @property
    def font_size(self) -> int:
        """Height of the letters in pixels."""
        return max(round(self.tile[0] / 13), 9)

    @property
    def total_height(self) -> int:
        """Height of the row in pixels with the line of text below the slices."""
        return self.tile[1] + self.font_size + 4

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the joined slices in pixels."""
        width, height = self.tile
        count = len(self.frame.cuts[self.plane])
        return count * (width + GAP) - GAP, height

    def joined(self, volume: Volume, order: int = 1) -> np.ndarray:
        """Sample all cuts of a volume and put them side by side, shape (height, width)."""
        slices = self.frame.row(volume, self.plane, order)
        width, height = self.size
        out = np.zeros((height, width), slices[0].dtype)
        for number, piece in enumerate(slices):
            left = number * (self.tile[0] + GAP)
            out[:, left : left + self.tile[0]] = piece
        return out

    def image(self, data: bytes, mime: str, attributes: str = '') -> str:
        """Return an ``<image>`` that fills the row."""
        width, height = self.size
        return (
            f'<image {attributes} width="{width}" height="{height}" '
            f'href="{data_uri(data, mime)}"/>'
        )

    def contours(self, volume: Volume, color: str, css: str, title: str) -> str:
        """Return the outlines of a mask volume on all slices as one group."""
        paths = []
        for number, piece in enumerate(self.frame.row(volume, self.plane)):
            path = contour_path(piece)
            if path:
                left = number * (self.tile[0] + GAP) * 10
                shift = f' transform="translate({left})"' if left else ''
                paths.append(f'<path{shift} d="{path}"/>')
        return (
            f'<g class="contour {css}" transform="scale(.1)" stroke="{color}">'
            f'<title>{escape(title)}</title>{"".join(paths)}</g>'
        )

    def marks(self) -> str:
        """Return the letters of the sides and the position of every cut."""
        tile_width = self.tile[0]
        left_letter, right_letter = EDGE_LETTERS[self.plane]
        axis = 'xyz'[NORMAL[self.plane]]
        size = self.font_size
        cuts = self.frame.cuts[self.plane]
        middle, step = float(np.mean(cuts)), float(np.ptp(cuts)) / max(len(cuts) - 1, 1)
        parts = [f'<g class="marks" font-size="{size}">']
        for number, cut in enumerate(cuts):
            x = number * (tile_width + GAP)
            note = f'{axis} {round(cut):+d}'.replace('-', '\N{MINUS SIGN}')
            if self.plane == 'sagittal' and abs(cut - middle) > step / 4:
                note += ' (left)' if cut < middle else ' (right)'
            parts.append(
                f'<text class="letter" x="{x + 3}" y="{size + 1}">{left_letter}</text>'
                f'<text class="letter" x="{x + tile_width - 3}" y="{size + 1}" '
                f'text-anchor="end">{right_letter}</text>'
                f'<text x="{x + tile_width / 2}" y="{self.total_height - 4}" '
                f'text-anchor="middle">{note}</text>'
            )
        return ''.join([*parts, '</g>'])

    def svg(self, layers: Sequence[str], title: str, attributes: str = '') -> str:
        """Return the layers, lowest first, and the marks as one SVG with a text alternative."""
        width, height = self.size[0], self.total_height
        return (
            f'<svg {attributes} class="row {self.plane}" viewBox="0 0 {width} {height}" '
            f'role="img" aria-label="{escape(title, quote=True)}">'
            f'{"".join(layers)}{self.marks()}</svg>'
        )
