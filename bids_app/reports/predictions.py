# SPDX-License-Identifier: Apache-2.0
"""What the page shows of classifiers: what each one says, and how far to trust it."""

from __future__ import annotations

from typing import Any

from bids_app.reports import tables
from bids_app.reports.vbm import Attempt

_CLASS = 'probability_'


def entries(predictions: list[dict[str, Any]], attempt: Attempt) -> list[dict[str, Any]]:
    """Read the predictions of every classifier.

    Parameters
    ----------
    predictions : list of dict
        As in :class:`bids_app.reports.session.SessionReport`.
    attempt : callable
        See :func:`bids_app.reports.vbm.space_entries`.

    Returns
    -------
    list of dict
        ``model``, ``version``, ``sha256``, ``target``, ``prediction``, ``classes`` (list of dict
        with ``name``, ``percent``), ``sd`` (of a number; else ``None``), ``calibration`` and
        ``validation`` (in words, or empty).
    """
    result = []
    for one in predictions:
        name = str(one.get('model') or 'classifier')
        with attempt(f'The prediction of {name}'):
            (row,) = tables.read_tsv(one['file'])
            text = {key: '' if value == 'n/a' else value for key, value in row.items()}
            result.append(
                {
                    'model': name,
                    'version': text['version'],
                    'sha256': str(one.get('sha256') or ''),
                    'target': text['target'],
                    'prediction': text['prediction'],
                    'classes': [
                        {'name': key.removeprefix(_CLASS), 'percent': 100 * chance}
                        for key, value in text.items()
                        if key.startswith(_CLASS) and (chance := tables.number(value)) is not None
                    ],
                    'sd': tables.number(text.get('sd')),
                    'calibration': text.get('calibration', ''),
                    'validation': text.get('validation', ''),
                }
            )
    return result
