# SPDX-License-Identifier: Apache-2.0
"""Scans with labels, prepared as inference prepares them, for the training of DeepNAT."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_app.errors import ImageError
from bids_app.images.bias import n4_bias_field
from bids_app.images.grids import conform_grid
from bids_app.images.masks import bounding_box
from bids_app.images.resample import resample_separable
from bids_app.images.scans import load_scan
from bids_app.inference.brain import load_predictors, locate
from bids_app.inference.coordinates import brain_coordinates
from bids_app.inference.deepnat_input import RIM_MM, brain_image
from bids_app.inference.models import find_model, model_checksum
from bids_app.training.deepnat_labels import label_table, to_classes

logger = logging.getLogger('anatnet.training')

MARGIN = 32
"""Voxels around the brain that are kept, so that crops fit."""

_VERSION = 1


@dataclass
class DeepNATScan:
    """A scan with labels on a box of the conformed grid around the brain.

    Attributes
    ----------
    name : str
        File name of the label map.
    image : torch.Tensor, shape (x, y, z), float16
        See :func:`bids_app.inference.deepnat_input.brain_image`.
    wide : torch.Tensor, shape (x, y, z), bool
        The brain mask with a rim.
    classes : torch.Tensor, shape (x, y, z), uint8
        0 to 26, or :data:`bids_app.training.deepnat_labels.UNKNOWN`.
    coordinates : torch.Tensor, shape (6, x, y, z), float16
        See :func:`bids_app.inference.coordinates.brain_coordinates`.
    """

    name: str
    image: torch.Tensor
    wide: torch.Tensor
    classes: torch.Tensor
    coordinates: torch.Tensor


def prepare_scan(labels: Path, scan_file: Path, numbers: str, *, model: Path) -> DeepNATScan:
    """Conform, mask, correct and normalise a scan as the app does, and bring its labels along.

    Parameters
    ----------
    labels : pathlib.Path
        Label map on the grid of the scan.
    scan_file : pathlib.Path
        The T1w.
    numbers : str
        See :func:`bids_app.training.deepnat_labels.label_table`.
    model : pathlib.Path
        Folder of the model that finds the brain.

    Raises
    ------
    ImageError
        If a file is missing or unreadable, the grids differ, or no brain is found.
    """
    scan = load_scan(scan_file)
    try:
        label_image = nib.load(labels)
        values = np.rint(np.asarray(label_image.dataobj)).astype(np.int64)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise ImageError(f'{labels}: cannot be read ({error})') from error
    if values.shape != scan.shape or not np.allclose(label_image.affine, scan.affine, atol=1e-2):
        raise ImageError(f'{labels}: not on the grid of {scan_file.name}: resample the labels')
    shape, affine = conform_grid(scan.shape, scan.affine)
    data = resample_separable(scan.data, scan.affine, shape, affine, outside='edge')
    classes = to_classes(values, label_table(numbers))
    classes = resample_separable(classes, scan.affine, shape, affine, order=0)
    predictors = load_predictors(model)
    coarse = locate(torch.from_numpy(np.ascontiguousarray(data, np.float32)), model, predictors)
    mask = (coarse.brain_probability(shape) > 0.5).numpy()
    data = data / n4_bias_field(data, affine, mask)
    image, wide = brain_image(data, affine, mask)
    coordinates = torch.from_numpy(brain_coordinates(mask, affine))
    box = bounding_box(mask | (classes > 0))
    padding = [(MARGIN, MARGIN)] * 3

    def cut(volume: torch.Tensor, dtype: torch.dtype, mode: str = 'constant') -> torch.Tensor:
        return torch.from_numpy(np.pad(volume[box].numpy(), padding, mode=mode)).to(dtype)

    return DeepNATScan(
        labels.name,
        cut(image, torch.float16),
        cut(wide, torch.bool),
        cut(torch.from_numpy(classes), torch.uint8),
        torch.stack([cut(row, torch.float16, 'edge') for row in coordinates]),
    )


def load_prepared(
    files: list[Path], cache: Path, replace: tuple[str, str], numbers: str, model: str = 'brain'
) -> list[DeepNATScan]:
    """Prepare scans, or read what an earlier call prepared.

    Parameters
    ----------
    files : list of pathlib.Path
        Label maps.
    cache : pathlib.Path
        Folder for prepared scans. One that was made of other files or settings is not used.
    replace : tuple of str
        Turns the name of a label map into that of its scan.
    numbers, model : str
        See :func:`prepare_scan`.

    Raises
    ------
    ImageError
        If there is no file, or one cannot be used.
    """
    if not files:
        raise ImageError(
            'no scans with labels to train on, or none held out: check --data, and pattern and '
            'validation in the recipe'
        )
    folder = find_model(model)
    cache.mkdir(parents=True, exist_ok=True)
    scans = []
    for file in files:
        scan_file = file.with_name(file.name.replace(*replace))
        if scan_file == file or not scan_file.is_file():
            raise ImageError(f'{scan_file}: no such scan beside {file.name}: check data.replace')
        facts = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (file, scan_file)
        ]
        facts += [
            numbers,
            sorted(label_table(numbers).items()),
            model_checksum(folder),
            RIM_MM,
            _VERSION,
        ]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        path = cache / f'{file.name.partition(".")[0]}-{digest}.pt'
        if path.exists():
            scans.append(DeepNATScan(**torch.load(path, weights_only=True)))
            continue
        scan = prepare_scan(file, scan_file, numbers, model=folder)
        temporary = path.with_name(f'.{path.name}.{os.getpid()}')
        torch.save(vars(scan), temporary)
        os.replace(temporary, path)
        logger.info('%s: prepared', file.name)
        scans.append(scan)
    return scans
