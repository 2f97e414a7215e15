# SPDX-License-Identifier: Apache-2.0
"""Find the classifiers of a run and check, before any scan, that it makes their maps."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bids_app.bids.outputs import number_label
from bids_app.bids.spaces import OutputSpace, resolution_mm
from bids_app.errors import ModelError, UsageError
from bids_app.images.templates import target_grid
from bids_app.inference.classifier import InputGrid, read_task
from bids_app.inference.models import find_model, load_card, model_checksum

MAPS = ('vbm_gm', 'vbm_wm', 'jacobian')
"""Keys of the maps that a classifier may take."""


def choose_classifiers(
    asked: Sequence[str],
    models_dir: Path | None,
    *,
    modules: Sequence[str],
    spaces: Sequence[OutputSpace],
    smooth_fwhm: Sequence[float],
) -> tuple[str, ...]:
    """Return the folders of classifiers that a run can apply.

    Parameters
    ----------
    asked : sequence of str
        Model folders, or names in `models_dir`.
    models_dir : Path or None
        Folder of models; None for that of the installation.
    modules : sequence of str
        What the run computes.
    spaces : sequence of OutputSpace
        Its templates with the voxel sizes of the maps.
    smooth_fwhm : sequence of float
        Widths of its smoothing kernels, mm.

    Raises
    ------
    UsageError
        If a model cannot be used, or the run does not make the map that it takes; the message
        says what to give.
    """
    folders: dict[str, str] = {}
    for text in asked:
        try:
            folder = _folder(text, models_dir)
            card = load_card(folder)
            grid, _ = read_task(card, folder)
            intact = model_checksum(folder) == card.sha256
        except ModelError as error:
            raise UsageError(f'--classifier: {error}') from None
        if not intact:
            raise UsageError(
                f'--classifier {folder}: the weights are not those of the card (SHA-256 differs): '
                'copy the folder again, or train it again'
            )
        if not re.fullmatch('[0-9a-zA-Z]+', card.name):
            raise UsageError(
                f'--classifier {folder}: its name "{card.name}" cannot be part of a file name; '
                'use letters and digits in its card.json'
            )
        if folders.setdefault(card.name, str(folder)) != str(folder):
            raise UsageError(
                f'--classifier: {folders[card.name]} and {folder} have the same name '
                f'"{card.name}", so that one would overwrite the other: apply one of them'
            )
        if 'vbm' not in modules:
            raise UsageError(
                f'--classifier {card.name}: needs the module vbm: add it to --modules, and the '
                f'template {grid.space} to --output-spaces'
            )
        _check_map(card.name, grid, spaces, smooth_fwhm)
    return tuple(folders.values())


def _folder(text: str, models_dir: Path | None) -> Path:
    """Return the absolute folder of a model: a path, else a name among the models."""
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if os.sep not in text and not (path / 'card.json').is_file():
        return Path(os.path.abspath(find_model(text, models_dir)))
    for name in ('card.json', 'weights.safetensors'):
        if not (path / name).is_file():
            raise ModelError(
                f'{path} has no {name}: give a model folder that "group --classify" has written '
                '(OUTPUT_DIR/group/classify_*/models/NAME)'
            )
    return path


def _check_map(
    name: str, grid: InputGrid, spaces: Sequence[OutputSpace], smooth_fwhm: Sequence[float]
) -> None:
    """Check that a run makes the map that a classifier takes."""
    if grid.kind not in MAPS or not grid.space or not grid.res:
        raise UsageError(
            f'--classifier {name}: its card does not say which maps it takes: train it again'
        )
    sizes = {one.space: [number_label(size) for size in one.voxel_sizes] for one in spaces}
    missing = []
    if grid.res not in sizes.get(grid.space, ()):
        space = grid.space.replace('+', ':cohort-')
        missing.append(f'add {space}:res-{grid.res} to --output-spaces')
    if grid.fwhm and grid.fwhm not in smooth_fwhm:
        missing.append(f'add {grid.fwhm:g} to --smooth-fwhm')
    if missing:
        raise UsageError(
            f'--classifier {name}: needs the map {grid.words}, which this run does not make: '
            f'{" and ".join(missing)}'
        )
    shape, affine = target_grid(resolution_mm(grid.res) or 0)
    if not grid.fits(shape, affine):
        raise UsageError(
            f'--classifier {name}: was trained on maps of {"x".join(map(str, grid.shape))} voxels '
            f'with another field of view than those of this release '
            f'({"x".join(map(str, shape))}): train it again'
        )
