# SPDX-License-Identifier: Apache-2.0
"""Output spaces as the command line names them, and atlases that lie in them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.errors import UsageError

NATIVE = ('T1w', 'anat', 'native')
"""Names of the space of the scan, in which results are always written."""

VOXEL_SIZES_MM = (0.5, 4.0)
"""Smallest and largest voxel size of images in template space."""

STANDARD = frozenset({
    'ICBM452AirSpace', 'ICBM452Warp5Space', 'IXI549Space', 'MNI152Lin', 'MNI152NLin6Asym',
    'MNI152NLin6Sym', 'MNI305', 'MNIColin27', 'NIHPD', 'OASIS30AntsOASISAnts', 'OASIS30Atropos',
    'Talairach', 'UNCInfant',
    *(f'MNI152NLin2009{letter}{symmetry}' for letter in 'abc' for symmetry in ('Sym', 'Asym')),
})  # fmt: skip
"""Templates that the BIDS specification defines (appendix on coordinate systems); images in any
other space have to say where it is defined."""


@dataclass(frozen=True)
class OutputSpace:
    """A template to which scans are registered.

    Attributes
    ----------
    space : str
        Label as files carry it, with the cohort after a plus sign: ``MNIPediatricAsym+3``.
    voxel_sizes : tuple of float
        Edge lengths of the voxels of images in this space, mm.
    """

    space: str
    voxel_sizes: tuple[float, ...]


def parse_space(text: str) -> tuple[str, str | None]:
    """Split the name of an output space into its label and its resolution.

    Parameters
    ----------
    text : str
        ``SPACE``, optionally with ``:cohort-LABEL`` and ``:res-SIZE``.

    Returns
    -------
    space : str
        Label, with the cohort after a plus sign.
    resolution : str or None
        What follows ``res-``.

    Raises
    ------
    UsageError
        If the text has another form.

    Examples
    --------
    >>> parse_space('MNI152NLin6Asym:res-2'), parse_space('MNIPediatricAsym:cohort-3')
    (('MNI152NLin6Asym', '2'), ('MNIPediatricAsym+3', None))
    """
    space, *modifiers = text.split(':')
    found: dict[str, str] = {}
    for modifier in modifiers:
        name, _, value = modifier.partition('-')
        plain = re.fullmatch('[0-9a-zA-Z]+', value)
        if name not in ('res', 'cohort') or name in found or not plain:
            raise UsageError(
                f'"{text}" is not an output space: after SPACE only :res-SIZE and :cohort-LABEL '
                'may follow, for instance MNI152NLin2009aSym:res-2'
            )
        found[name] = value
    if not re.fullmatch(r'[0-9a-zA-Z]+(\+[0-9a-zA-Z]+)?', space):
        raise UsageError(f'"{text}" is not the name of an output space, like MNI152NLin2009aSym')
    if cohort := found.get('cohort'):
        space = f'{space}+{cohort}'
    return space, found.get('res')


def resolution_mm(label: str) -> float | None:
    """Return the voxel size in mm that a resolution means; None for ``native``, the default.

    Raises
    ------
    UsageError
        If it is no number, or no sensible one.

    Examples
    --------
    >>> resolution_mm('2'), resolution_mm('01'), resolution_mm('1p5')
    (2.0, 1.0, 1.5)
    """
    if label == 'native':
        return None
    if not re.fullmatch(r'\d+(p\d+)?', label):
        raise UsageError(f'res-{label} is not a voxel size in mm, like res-2 or res-1p5')
    return check_voxel_size(float(label.replace('p', '.')))


def check_voxel_size(size: float) -> float:
    """Return a voxel size in mm if it is one that can be written.

    Raises
    ------
    UsageError
        If it is out of range.
    """
    low, high = VOXEL_SIZES_MM
    if not low <= size <= high:
        raise UsageError(f'voxels in template space may have {low:g} to {high:g} mm, not {size:g}')
    return size


def output_spaces(texts: Sequence[str], voxel_size: float) -> tuple[OutputSpace, ...]:
    """Return the templates that some output spaces ask for, each once, in their order.

    Parameters
    ----------
    texts : sequence of str
        As for :func:`parse_space`. Names of the space of the scan (:data:`NATIVE`) ask for
        nothing more.
    voxel_size : float
        Voxel size where none is given, mm.

    Raises
    ------
    UsageError
        As :func:`parse_space` and :func:`resolution_mm`.

    Examples
    --------
    >>> output_spaces(['T1w', 'MNI305', 'MNI305:res-2'], 1.5)
    (OutputSpace(space='MNI305', voxel_sizes=(1.5, 2.0)),)
    """
    sizes: dict[str, list[float]] = {}
    for text in texts:
        space, resolution = parse_space(text)
        if space in NATIVE:
            continue
        size = resolution_mm(resolution) if resolution else None
        own = sizes.setdefault(space, [])
        if (size or voxel_size) not in own:
            own.append(size or voxel_size)
    return tuple(OutputSpace(space, tuple(own)) for space, own in sizes.items())


def absolute_atlas(text: str) -> str:
    """Return ``FILE[:TABLE]`` with absolute paths, so that it means the same in any folder.

    Examples
    --------
    >>> absolute_atlas('/data/../atlas.nii.gz:/data/names.tsv')
    '/atlas.nii.gz:/data/names.tsv'
    """
    parts = (os.path.abspath(part.expanduser()) for part in atlas_parts(text))
    return ':'.join(parts)


def atlas_parts(text: str) -> list[Path]:
    """Return the files of ``FILE[:TABLE]``: the image, and the table where there is one.

    Examples
    --------
    >>> [part.name for part in atlas_parts('/data/atlas.nii:/data/names.tsv')]
    ['atlas.nii', 'names.tsv']
    """
    match = re.fullmatch(r'(.+?\.nii(?:\.gz)?)(?::(.+))?', text)
    return [Path(part) for part in match.groups() if part] if match else [Path(text)]


def atlas_space(path: Path, spaces: Sequence[OutputSpace]) -> str:
    """Return the space in which an atlas lies.

    Parameters
    ----------
    path : Path
        Its image. The entities ``space-`` or ``tpl-`` (and ``cohort-``) of its name say where it
        lies; without them that is the first output space.
    spaces : sequence of OutputSpace
        At least one.

    Raises
    ------
    UsageError
        If it lies in a space that is not asked for.

    Examples
    --------
    >>> spaces = output_spaces(['MNI305', 'MNI152NLin6Asym'], 1.5)
    >>> atlas_space(Path('tpl-MNI152NLin6Asym_atlas-x_dseg.nii.gz'), spaces)
    'MNI152NLin6Asym'
    """
    entities = dict(re.findall(r'(?:^|_)([a-z]+)-([0-9a-zA-Z+]+)', path.name))
    space = entities.get('space') or entities.get('tpl')
    if space is None:
        return spaces[0].space
    if cohort := entities.get('cohort'):
        space = f'{space}+{cohort}'
    known = [one.space for one in spaces]
    if space not in known:
        raise UsageError(
            f'--atlas {path}: by its name it lies in {space}, which is not among --output-spaces '
            f'({", ".join(known)}); add it there, or rename the file'
        )
    return space
