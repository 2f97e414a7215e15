# SPDX-License-Identifier: Apache-2.0
"""What is looked for in a data set, and how a user's filter file narrows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids.files import read_json
from bids_app.bids.layout import IMAGES, entity_names
from bids_app.bids.reference import OTHERS
from bids_app.errors import UsageError

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

QUERIES: dict[str, dict[str, Any]] = {
    't1w': {'datatype': 'anat', 'suffix': ['T1w', 'UNIT1']},
    't2w': {'datatype': 'anat', 'suffix': ['T2w']},
    'flair': {'datatype': 'anat', 'suffix': ['FLAIR']},
    'other': {'datatype': 'anat', 'suffix': list(OTHERS)},
    'dwi': {'datatype': 'dwi', 'suffix': ['dwi']},
}
"""What is looked for, before the user's filters."""

# Other pipelines' filter files name these too; they say nothing about our input.
_FOREIGN_FILTERS = {'fmap', 'bold', 'sbref', 'roi', 'asl', 'pet', 'm0scan'}

_SHORT_NAMES = {
    'sub': 'subject', 'ses': 'session', 'acq': 'acquisition', 'ce': 'ceagent',
    'trc': 'tracer', 'rec': 'reconstruction', 'dir': 'direction', 'mod': 'modality',
}  # fmt: skip


def read_filters(path: Path) -> dict[str, dict[str, Any]]:
    """Read a ``--bids-filter-file``: ``{"t1w": {"acquisition": "mprage"}, ...}``.

    Keys may be ``t1w``, ``t2w``, ``flair``, ``other`` (what else can stand in for a T1w) and
    ``dwi``; entities may have pybids' long names or the short ones of file names. ``null`` asks
    for images without the entity, ``"*"`` for images with any value of it.

    Raises
    ------
    UsageError
        If the file cannot be read, is not such JSON, or names an unknown entity.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UsageError(f'cannot read the filter file {path}: {error.strerror}') from None
    except ValueError as error:
        raise UsageError(f'the filter file {path} is not valid JSON: {error}') from None
    return check_filters(content, str(path))


def check_filters(content: Any, source: str) -> dict[str, dict[str, Any]]:
    """Check the content of a filter file and give its entities pybids' names."""
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise UsageError(
            f'the filter file {source} must look like {{"t1w": {{"acquisition": "mprage"}}}}'
        )
    filters = {}
    for modality, query in content.items():
        if modality in _FOREIGN_FILTERS:
            continue
        if modality not in QUERIES:
            raise UsageError(
                f'the filter file {source} has the key "{modality}"; '
                f'use one of {", ".join(QUERIES)}'
            )
        for entity, value in query.items():
            items = value if isinstance(value, list) else [value]
            if not all(item is None or isinstance(item, str | int | float) for item in items):
                raise UsageError(
                    f'the filter file {source} gives "{entity}" of {modality} the value '
                    f'{value!r}; use text, a number, null, or a list of these'
                )
        named = {_SHORT_NAMES.get(entity, entity): value for entity, value in query.items()}
        unknown = set(named) - set(entity_names())
        if unknown:
            raise UsageError(
                f'the filter file {source} filters {modality} by {", ".join(sorted(unknown))}; '
                f'entities are {", ".join(entity_names())}'
            )
        filters[modality] = named
    return filters


def match_filters(layout: BIDSLayout, filters: Mapping[str, Any]) -> dict[str, set[str]]:
    """Ask pybids which images pass the user's filter of each modality.

    Returns
    -------
    dict of str to set of str
        Paths below the root, for every modality that has a filter.
    """
    from bids.layout import Query

    root = os.path.join(str(layout.root), '')
    special = {None: Query.NONE, '*': Query.ANY}

    def value(item: Any) -> Any:
        if isinstance(item, list):
            return [value(i) for i in item]
        return special.get(item, item)

    matches = {}
    for modality, default in QUERIES.items():
        if modality not in filters:
            continue
        asked = {entity: value(item) for entity, item in filters[modality].items()}
        query = {**default, 'extension': list(IMAGES), **asked}
        matches[modality] = {str(f.path).removeprefix(root) for f in layout.get(**query)}
    return matches
