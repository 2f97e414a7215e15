# SPDX-License-Identifier: Apache-2.0
"""Which of several images of one session is taken, as plain rules on entities.

Entities carry pybids' names (``acquisition``, ``reconstruction``, ``run``, ...); values are
strings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

RULE = (
    'T1w before UNIT1; no contrast agent; magnitude; normalised before unnormalised; a plain or '
    'well-known 3-D acquisition before a special one; then the lowest run'
)
"""The rule of :func:`rank` in words, for the log and the report."""

_LOCALISER = re.compile(r'localis|localiz|scout|survey|3plane|threeplane|^loc\d*$', re.I)
_INVERSION = re.compile(r'^inv\d*$|inv[12]$', re.I)
_GOOD_ACQUISITION = re.compile(r'mprage|mp2rage|mpr|spgr|bravo|tfe|tfl|vibe|3d|hires|iso', re.I)
_POOR_ACQUISITION = re.compile(
    r'tirm|flair|stir|tse|fse|2d|ax|sag|cor|gad|gd|post|contrast|lowres|fast|t2|pd', re.I
)
_NORMALISED = re.compile(r'norm', re.I)
_UNNORMALISED = re.compile(r'(no|un)norm', re.I)
_STILL = re.compile(r'still|rest', re.I)


def unsuitable(entities: Mapping[str, str], asked: Collection[str] = ()) -> str | None:
    """Say why an image cannot stand for a whole head of its contrast.

    Parameters
    ----------
    entities : mapping of str to str
        Entities of the image, with ``suffix``.
    asked : collection of str
        Entities that the user's filter names: by these nothing is ruled out.

    Returns
    -------
    str or None
        The reason, ``None`` for an image that can be taken.

    Examples
    --------
    >>> unsuitable({'suffix': 'T1w', 'part': 'phase'})
    'part-phase: not a magnitude image'
    >>> unsuitable({'suffix': 'T1w', 'part': 'phase'}, asked=['part']) is None
    True
    """
    name = {'acquisition': 'acq', 'reconstruction': 'rec'}

    def value(entity: str) -> str:
        return '' if entity in asked else str(entities.get(entity, ''))

    if value('part') not in ('', 'mag'):
        return f'part-{value("part")}: not a magnitude image'
    if value('chunk'):
        return f'chunk-{value("chunk")}: not a whole head'
    if value('inv'):
        return f'inv-{value("inv")}: a single inversion image'
    for entity in ('acquisition', 'reconstruction'):
        if _INVERSION.search(value(entity)):
            return f'{name[entity]}-{value(entity)}: a single inversion image'
        if _LOCALISER.search(value(entity)):
            return f'{name[entity]}-{value(entity)}: a localiser'
    if value('modality'):
        return f'mod-{value("modality")}: a companion of another image'
    return None


_CRITERIA = (
    'a UNIT1 counts only where there is no T1w',
    'made with a contrast agent',
    'not acquired at rest',
    'a more special acquisition',
    'a less suitable reconstruction',
    'a part of a complex image',
    'a later echo',
    'a later flip angle',
    'a later run',
    'later in the alphabet',
)


def rank(entities: Mapping[str, str], file_name: str) -> tuple:
    """Order the images of one session and contrast: the smallest rank is taken.

    The rule in words is :data:`RULE`. Images in which a person moved on purpose come after those
    acquired ``task-still`` or without a task, single echoes after combined images.
    """
    task = entities.get('task', '')
    return (
        entities.get('suffix') == 'UNIT1',
        'ceagent' in entities,
        bool(task) and not _STILL.search(task),
        _acquisition_rank(entities.get('acquisition', '')),
        _reconstruction_rank(entities.get('reconstruction', '')),
        'part' in entities,
        _number(entities.get('echo')),
        _number(entities.get('flip')),
        _number(entities.get('run')),
        file_name,
    )


def difference(winner: tuple, loser: tuple) -> str:
    """Say in words by which rule the second of two ranks comes later.

    Examples
    --------
    >>> difference(rank({'run': '1'}, 'a'), rank({'run': '2'}, 'b'))
    'a later run'
    """
    pairs = zip(winner, loser, _CRITERIA, strict=True)
    return next((words for first, second, words in pairs if first != second), 'the same name')


def _acquisition_rank(acquisition: str) -> int:
    if not acquisition:
        return 0
    if _GOOD_ACQUISITION.search(acquisition):
        return 1
    return 3 if _POOR_ACQUISITION.search(acquisition) else 2


def _reconstruction_rank(reconstruction: str) -> int:
    if not reconstruction:
        return 0
    if _UNNORMALISED.search(reconstruction):
        return 3
    return 1 if _NORMALISED.search(reconstruction) else 2


def _number(value: str | None) -> int:
    """Turn an index into a number; none at all comes first."""
    return int(value) if value and value.isdigit() else 0
