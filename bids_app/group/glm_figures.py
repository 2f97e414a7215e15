# SPDX-License-Identifier: Apache-2.0
"""Pictures of a general linear model: its design matrix, and the map of a contrast on slices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_app.bids.files import atomic_open
from bids_app.reports.planes import EDGE_LETTERS, NORMAL, PLANES, Frame, Volume, world_box

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bids_app.group.design import Design

_CUTS = 7


def draw_design(design: Design, path: Path) -> Path:
    """Draw the design matrix, sessions sorted, next to the correlations of its columns (PNG)."""
    figure = _figure(2.6 + 0.75 * len(design.columns), 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    varying = [number for number, name in enumerate(design.columns) if name != 'Intercept']
    low, high = design.matrix.min(0), design.matrix.max(0)
    shown = np.where(high > low, (design.matrix - low) / np.where(high > low, high - low, 1), 1)
    shown = shown[np.lexsort(design.matrix[:, varying[::-1]].T)] if varying else shown
    left.imshow(shown, aspect='auto', cmap='Greys_r', interpolation='nearest', vmin=0, vmax=1)
    left.set_xticks(range(len(design.columns)), design.columns, rotation=60, ha='right')
    left.set_ylabel(f'{len(shown)} sessions, sorted')
    left.set_title('Design (every column from its least to its largest)', fontsize=7)
    names = [design.columns[number] for number in varying]
    correlation = np.atleast_2d(np.corrcoef(design.matrix[:, varying], rowvar=False))
    right.imshow(correlation, cmap='RdBu_r', vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(correlation):
        color = 'white' if abs(value) > 0.6 else 'black'
        right.text(column, row, f'{value:.2f}', ha='center', va='center', color=color, fontsize=7)
    right.set_xticks(range(len(names)), names, rotation=60, ha='right')
    right.set_yticks(range(len(names)), names)
    right.set_title('Correlation of columns', fontsize=7)
    return _save(figure, path)


def draw_statistic(
    statistic: Volume,
    background: Volume,
    significant: Volume,
    path: Path,
    *,
    title: str,
    unit: str,
    full: float,
) -> Path:
    """Draw a map of statistics on slices of the mean map (PNG).

    Everything is shown: the weaker a voxel, the fainter; what survives the correction has an
    outline (Taylor et al. 2023, doi 10.1016/j.neuroimage.2023.120138, on why not to hide the
    rest).

    Parameters
    ----------
    statistic, background, significant : Volume
        t or F, mean map, and the mask of significant voxels; on one grid.
    path : Path
        PNG file.
    title, unit : str
        Above the picture, and next to the colours.
    full : float
        Statistic from which on colours are opaque, such as that of p = 0.001 full.
    """
    frame = _frame(statistic, background, significant)
    sizes = [frame.size(plane) for plane in PLANES]
    widths = [size[0] * _CUTS for size in sizes]
    scale = 9.6 / max(widths)
    height = sum(size[1] for size in sizes) * scale
    figure = _figure(11.0, height + 0.5, constrained=False)
    figure.suptitle(title, fontsize=10, x=0.02, ha='left', y=1 - 0.12 / (height + 0.5))
    top_value = max(float(np.abs(statistic.data).max()), full * 1.2, 1e-6)
    white = float(np.percentile(background.data[background.data > 0.02], 99.5)) if (
        background.data > 0.02
    ).any() else 1.0  # fmt: skip
    at = height / (height + 0.5)
    image = None
    for plane, size in zip(PLANES, sizes, strict=True):
        share = size[1] * scale / (height + 0.5)
        at -= share
        for number, cut in enumerate(frame.cuts[plane]):
            width = size[0] * scale / 11.0
            axes = figure.add_axes((0.02 + number * width, at, width, share))
            axes.set_axis_off()
            grey = frame.sample(background, plane, cut)
            t = frame.sample(statistic, plane, cut)
            mask = frame.sample(significant, plane, cut)
            axes.imshow(grey, cmap='gray', vmin=0, vmax=white, interpolation='nearest')
            strength = np.clip(np.abs(t) / full, 0, 1) ** 2
            image = axes.imshow(
                t, cmap='RdYlBu_r', vmin=-top_value, vmax=top_value, alpha=strength,
                interpolation='nearest',
            )  # fmt: skip
            if mask.max() > 0.5 and mask.min() < 0.5:
                axes.contour(mask, levels=[0.5], colors='black', linewidths=0.9)
            label = f'{"zyx"[PLANES.index(plane)]} = {cut:.0f}'
            axes.text(
                2, size[1] - 3, label, color='white', fontsize=6.5, va='bottom',
                bbox={'facecolor': 'black', 'alpha': 0.5, 'linewidth': 0, 'pad': 0.6},
            )  # fmt: skip
            if number == 0:
                first, second = EDGE_LETTERS[plane]
                axes.text(2, size[1] / 2, first, color='white', fontsize=7, va='center')
                axes.text(
                    size[0] - 2, size[1] / 2, second, color='white', fontsize=7, va='center',
                    ha='right',
                )  # fmt: skip
    from matplotlib.cm import ScalarMappable

    colors = ScalarMappable(image.norm, image.cmap)
    bar = figure.colorbar(colors, cax=figure.add_axes((0.915, 0.25, 0.014, 0.45)))
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=8)
    return _save(figure, path)


def _frame(statistic: Volume, background: Volume, significant: Volume) -> Frame:
    """Choose cuts: evenly through the brain, the one nearest to the peak moved onto it."""
    tissue = np.argwhere(background.data > 0.1 * background.data.max())
    low, high = world_box(background, tissue if len(tissue) else None)
    low, high = low - 3, high + 3
    height = np.abs(statistic.data)
    inside = significant.data > 0
    peak = np.unravel_index(
        int((height * inside if inside.any() else height).argmax()), height.shape
    )
    point = statistic.affine[:3, :3] @ np.array(peak) + statistic.affine[:3, 3]
    cuts = {}
    for plane in PLANES:
        axis = NORMAL[plane]
        places = low[axis] + np.linspace(0.12, 0.88, _CUTS) * (high[axis] - low[axis])
        places[int(np.abs(places - point[axis]).argmin())] = point[axis]
        cuts[plane] = places
    return Frame(low, high, float(background.zooms.min()), cuts)


def _figure(width: float, height: float, constrained: bool = True) -> Figure:
    # Figures are made without pyplot: no display and no global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(math.ceil(width * 10) / 10, math.ceil(height * 10) / 10), dpi=110,
        layout='constrained' if constrained else None, facecolor='white',
    )  # fmt: skip
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with atomic_open(path) as stream:
        figure.savefig(stream, format='png', metadata={'Software': None})
    return Path(path)
