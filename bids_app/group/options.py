# SPDX-License-Identifier: Apache-2.0
"""The options of the group level."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from bids_app.errors import UsageError

MAP_KINDS = {'gm': 'vbm_gm', 'wm': 'vbm_wm', 'jacobian': 'jacobian'}
"""What ``--map`` may name, with the key of the table of outputs."""

REPEATED = ('error', 'first', 'last')
"""What can be done with several sessions of a participant."""

_ONLY_GROUP = {
    'contrasts': '--contrast',
    'group_map': '--map',
    'n_permutations': '--n-permutations',
    'mask_threshold': '--mask-threshold',
    'tfce': '--no-tfce',
    'repeated_sessions': '--repeated-sessions',
    'classify': '--classify',
    'force': '--force',
}


def add_group_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the group level; ``--model`` is shared with the participant level."""
    group = parser.add_argument_group(
        'the group level', 'Tables, outliers and the page group.html are always made; a formula '
        'given as --model "~ age + sex" adds voxelwise statistics.',
    )  # fmt: skip
    group.add_argument(
        '--contrast', dest='contrasts', nargs='+', action='extend', metavar='CONTRAST',
        help='what to test, by the names of the design\'s columns: age, "group[T.patient]", '
        '"a - b" (default: every column of the design but the intercept)',
    )  # fmt: skip
    group.add_argument(
        '--map', dest='group_map', metavar='KIND[:FWHM]', type=_map,
        help='maps to compare: gm (default), wm or jacobian, smoothed by FWHM mm (default: what '
        'most sessions have; gm:0 is not smoothed)',
    )  # fmt: skip
    group.add_argument(
        '--n-permutations', type=_count, metavar='N',
        help='permutations for family-wise correction and for the p-value of a classification '
        '(default: 1000; 0: none)',
    )  # fmt: skip
    group.add_argument(
        '--no-tfce', dest='tfce', action='store_false',
        help='leave out threshold-free cluster enhancement, which takes most of the time',
    )  # fmt: skip
    group.add_argument(
        '--mask-threshold', type=float, metavar='VALUE',
        help='test voxels where the mean map is above this (default: 0.1)',
    )  # fmt: skip
    group.add_argument(
        '--repeated-sessions', choices=REPEATED,
        help='several sessions of a participant are not independent: refuse them in a model '
        '(error, default), or take the first or last',
    )  # fmt: skip
    group.add_argument(
        '--classify', metavar='COLUMN',
        help='train and cross-validate a classifier (or a regression, for numbers) of a column '
        'of participants.tsv or sessions.tsv',
    )  # fmt: skip
    group.add_argument(
        '--force', action='store_true',
        help='classify although there are too few participants for the result to mean anything',
    )  # fmt: skip


def resolve_level(given: dict[str, Any], level: str | None) -> dict[str, Any]:
    """Give ``--model`` the meaning that it has at a level.

    Parameters
    ----------
    given : dict
        Options of the command line by the name of their field.
    level : str or None
        The analysis level.

    Returns
    -------
    dict
        At the group level ``formula`` in place of ``model``.

    Raises
    ------
    UsageError
        If an option belongs to the other level.
    """
    result = dict(given)
    if level == 'group':
        if 'classifier' in result:
            raise UsageError(
                '--classifier belongs to the participant level; --classify COLUMN trains one'
            )
        if 'batch' in result:
            raise UsageError('--batch belongs to the participant level; a group is not split')
        if 'model' in result:
            formula = result.pop('model')
            if '~' not in formula:
                raise UsageError(
                    f'at the group level --model is a formula over the columns of '
                    f'participants.tsv, for instance "~ age + sex"; "{formula}" has no ~'
                )
            result['formula'] = formula
        return result
    for name, option in _ONLY_GROUP.items():
        if name in result:
            raise UsageError(f'{option} belongs to the group level')
    if '~' in result.get('model', ''):
        raise UsageError('a formula as --model belongs to the group level')
    return result


def check_group_options(values: Mapping[str, Any]) -> None:
    """Check options that depend on each other.

    Raises
    ------
    UsageError
        If contrasts come without a formula.
    """
    if values.get('contrasts') and not values.get('formula'):
        raise UsageError('--contrast needs a formula, for instance --model "~ age + sex"')
    if values.get('n_permutations', 1000) < 0:
        raise UsageError('n_permutations must not be below 0')
    if values.get('repeated_sessions', 'error') not in REPEATED:
        raise UsageError(f'repeated_sessions must be one of {", ".join(REPEATED)}')
    parse_map(values.get('group_map', 'gm'))


def parse_map(text: str) -> tuple[str, float | None]:
    """Return key and FWHM (mm, None for what there is) of a ``--map``.

    Raises
    ------
    UsageError
        If it has another form.

    Examples
    --------
    >>> parse_map('gm'), parse_map('wm:8')
    (('vbm_gm', None), ('vbm_wm', 8.0))
    """
    kind, _, fwhm = text.partition(':')
    if kind not in MAP_KINDS or not re.fullmatch(r'(\d+(\.\d+)?)?', fwhm):
        raise UsageError(f'--map cannot be "{text}"; use {", ".join(MAP_KINDS)}, or gm:8 for 8 mm')
    return MAP_KINDS[kind], float(fwhm) if fwhm else None


def _map(text: str) -> str:
    try:
        parse_map(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix('--map ')) from None
    return text


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number')
    return int(text)
