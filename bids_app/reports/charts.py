# SPDX-License-Identifier: Apache-2.0
"""Small charts drawn straight as SVG."""

from __future__ import annotations

from html import escape

import numpy as np

from bids_app.data import tissues
from bids_app.reports.drawing import diverging
from bids_app.reports.planes import Volume

_COLORS = {'GM': '#CC79A7', 'WM': '#E69F00', 'CSF': '#56B4E9'}
"""Tissue colours of Okabe and Ito, visible on a light and on a dark page."""


def intensity_histogram(scan: Volume, dseg: Volume, width: int = 640, height: int = 180) -> str:
    """Draw the distribution of intensities in each tissue as an SVG.

    Well-separated peaks mean good contrast and little bias; broad, overlapping ones mean noise,
    movement, remaining bias or a failed segmentation.

    Parameters
    ----------
    scan : Volume
        Bias-corrected scan.
    dseg : Volume
        Tissue labels on the same grid.
    width, height : int
        Size of the drawing.

    Returns
    -------
    str
        SVG, or an empty string if the grids differ or there is no tissue.
    """
    if scan.data.shape != dseg.data.shape:
        return ''
    step = max(int(np.ceil((scan.data.size / 4e6) ** (1 / 3))), 1)
    values = scan.data[::step, ::step, ::step]
    labels = dseg.data[::step, ::step, ::step]
    inside = values[labels > 0]
    if inside.size < 100:
        return ''
    low, high = np.percentile(inside, (0.2, 99.8))
    if not high > low:
        return ''
    base = height - 22
    curves = {}
    for tissue in tissues():
        counts, _ = np.histogram(values[labels == tissue.index], 96, (low, high))
        curves[tissue.name] = np.convolve(counts, (0.25, 0.5, 0.25), 'same') / inside.size
    top = max(float(curve.max()) for curve in curves.values()) or 1.0
    parts = []
    for name, curve in curves.items():
        x = (np.arange(96) + 0.5) / 96 * width
        y = base - curve / top * (base - 14)
        line = 'L'.join(f'{a:.1f} {b:.1f}' for a, b in zip(x, y, strict=True))
        color = _COLORS.get(name, '#888888')
        peak = int(curve.argmax())
        parts.append(
            f'<path d="M0 {base}L{line}L{width} {base}z" fill="{color}" fill-opacity=".3" '
            f'stroke="{color}" stroke-width="1.5"><title>{escape(name)}</title></path>'
            f'<text x="{x[peak]:.0f}" y="{max(y[peak] - 4, 11):.0f}" text-anchor="middle" '
            f'class="chart-label">{escape(name)}</text>'
        )
    ends = (
        f'<text x="0" y="{height - 4}" class="chart-axis">{low:.4g}</text>'
        f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle" class="chart-axis">'
        'intensity</text>'
        f'<text x="{width}" y="{height - 4}" text-anchor="end" class="chart-axis">'
        f'{high:.4g}</text>'
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Histogram of intensities in grey matter, white matter and CSF">'
        f'<line x1="0" x2="{width}" y1="{base}" y2="{base}" class="chart-base"/>'
        f'{"".join(parts)}{ends}</svg>'
    )


def ratio_histogram(ratios: np.ndarray, width: int = 640, height: int = 130) -> str:
    """Draw the distribution of volume ratios on a logarithmic axis as an SVG.

    Parameters
    ----------
    ratios : numpy.ndarray, shape (n,)
        Volume of the scan over volume of the template; what is not above zero counts as the
        smallest.
    width, height : int
        Size of the drawing.

    Returns
    -------
    str
        SVG, or an empty string if there are fewer than 100 values.
    """
    if ratios.size < 100:
        return ''
    place = np.log2(np.clip(ratios, 0.25, 4))
    counts, edges = np.histogram(place, 64, (-2, 2))
    base, bar = height - 22, width / len(counts)
    heights = counts / max(int(counts.max()), 1) * (base - 16)
    colors = diverging((edges[:-1] + edges[1:]) / 4 + 0.5)  # the map's scale: 1/2 to 2
    parts = [
        f'<rect x="{n * bar:.1f}" y="{base - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}" '
        f'fill="#{color.tobytes().hex()}"/>'
        for n, (tall, color) in enumerate(zip(heights, colors, strict=True))
        if tall > 0
    ]
    for ratio in (0.25, 0.5, 1, 2, 4):
        x = (np.log2(ratio) + 2) / 4 * width
        anchor = 'start' if ratio == 0.25 else 'end' if ratio == 4 else 'middle'
        parts.append(
            f'<text x="{x:.0f}" y="{height - 4}" text-anchor="{anchor}" class="chart-axis">'
            f'{ratio:g}</text>'
        )
    marks = np.percentile(ratios, (1, 50, 99))
    for value in marks:
        x = (np.log2(np.clip(value, 0.25, 4)) + 2) / 4 * width
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{base}" class="chart-mark"/>')
    low, middle, high = marks
    parts.append(
        f'<text x="{width}" y="11" text-anchor="end" class="chart-label">'
        f'1st percentile {low:.2f}, median {middle:.2f}, 99th percentile {high:.2f}</text>'
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Histogram of the volume of the scan over the volume of the template">'
        f'<line x1="0" x2="{width}" y1="{base}" y2="{base}" class="chart-base"/>'
        f'{"".join(parts)}</svg>'
    )
