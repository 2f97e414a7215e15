# SPDX-License-Identifier: Apache-2.0
"""Pictures of a classification: scores, calibration, predictions, importance on slices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.bids.files import atomic_open
from bids_app.group.glm_figures import draw_statistic
from bids_app.group.scores import headline
from bids_app.group.targets import Target
from bids_app.reports.planes import Volume

if TYPE_CHECKING:
    from bids_app.group.classify import Outcome

_COLORS = {'pif': '#0072b2', 'baseline': '#56b4e9', 'linear': '#d55e00', 'total': '#999999'}


def draw_scores(
    result: dict[str, Any], target: Target, outcomes: dict[str, Outcome], path: Path
) -> Path:
    """Draw scores with their intervals, and calibration or predicted against true numbers (PNG).

    Parameters
    ----------
    result : dict
        See :func:`bids_app.group.classify.classify`.
    target : Target
    outcomes : dict of str to Outcome
    path : Path
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=110, layout='constrained', facecolor='white')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    best = headline(len(target.classes))
    for place, (name, entry) in enumerate(reversed(result['methods'].items())):
        score = entry['scores'][best]
        left.plot([score['low'], score['high']], [place] * 2, color=_COLORS[name], lw=2)
        left.plot(score['value'], place, 'o', color=_COLORS[name])
    left.set_yticks(
        range(len(outcomes)), [entry['label'] for entry in reversed(result['methods'].values())]
    )
    left.margins(y=0.2)
    if target.classes:
        left.axvline(1 / len(target.classes), color='0.6', lw=1, ls='--')
        left.set_xlabel('balanced accuracy, 95 % interval (dashed: chance)')
        right.plot([0, 1], [0, 1], color='0.6', lw=1, ls='--')
        for name, outcome in outcomes.items():
            if name != 'total':
                bins = outcome.reliability
                right.plot(
                    [row['predicted'] for row in bins], [row['observed'] for row in bins],
                    'o-', color=_COLORS[name], ms=4, label=result['methods'][name]['label'],
                )  # fmt: skip
        second = f' of {target.classes[1]}' if len(target.classes) == 2 else ''
        right.set(xlabel=f'probability{second}', ylabel='frequency', xlim=(0, 1), ylim=(0, 1))
        right.legend(fontsize=7)
    else:
        mean = float(np.abs(target.values - target.values.mean()).mean())
        left.axvline(mean, color='0.6', lw=1, ls='--')
        left.set_xlabel('mean absolute error, 95 % interval (dashed: predicting the mean)')
        ends = [target.values.min(), target.values.max()]
        right.plot(ends, ends, color='0.6', lw=1, ls='--')
        for name, outcome in outcomes.items():
            if name != 'total':
                right.plot(
                    target.values, outcome.predictions[:, 0], 'o', color=_COLORS[name], ms=3,
                    alpha=0.7, label=result['methods'][name]['label'],
                )  # fmt: skip
        right.set(xlabel=target.column, ylabel='predicted')
        right.legend(fontsize=7)
    with atomic_open(path) as stream:
        figure.savefig(stream, format='png', metadata={'Software': None})
    return Path(path)


def draw_importance(
    values: np.ndarray, mean: np.ndarray, affine: np.ndarray, path: Path, *, title: str, unit: str
) -> Path:
    """Draw a map of importance on slices of the mean map (PNG).

    Parameters
    ----------
    values, mean : ndarray, shape (x, y, z)
        On one grid.
    affine : ndarray, shape (4, 4)
        Voxel to world, mm, RAS+.
    path : Path
    title, unit : str
    """
    shown = np.where(mean > 0.1 * mean.max(), values, 0)
    full = float(np.percentile(np.abs(shown[shown != 0]), 95)) if shown.any() else 1.0
    return draw_statistic(
        Volume(shown, affine), Volume(mean, affine),
        Volume(np.zeros(mean.shape, np.uint8), affine), path, title=title, unit=unit, full=full,
    )  # fmt: skip
