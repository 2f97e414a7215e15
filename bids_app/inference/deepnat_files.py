# SPDX-License-Identifier: Apache-2.0
"""DeepNAT on files: from a conformed scan and its brain mask to labels on the grid of the scan."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.data import structures
from bids_app.images.conform import load_array, read_grid, save_native
from bids_app.images.grids import from_canonical
from bids_app.images.resample import resample_separable
from bids_app.inference.cascade import TURNS
from bids_app.inference.crf import CRFParameters, dense_crf
from bids_app.inference.deepnat_classes import CLASSES, class_values, deepnat_structures
from bids_app.inference.deepnat_segment import DeepNATPosterior, load_stage, segment_deepnat
from bids_app.inference.models import load_card
from bids_app.inference.native import NativeBox
from bids_app.inference.predictor import out_of_memory

logger = logging.getLogger('anatnet.inference')


@dataclass
class NativeStructures:
    """The structures on the grid of a scan.

    Attributes
    ----------
    labels : ndarray, uint8, shape of the scan
        FreeSurfer's numbers; 0 is the background and all that is none of the 25 structures.
    rows : list of dict
        ``index``, ``volume_mm3`` (sum of probabilities times voxel volume) and
        ``mean_probability`` (over the voxels with that label).
    """

    labels: np.ndarray
    rows: list[dict[str, float]]


def structures_to_native(
    posterior: DeepNATPosterior,
    conformed_affine: np.ndarray,
    native_shape: tuple[int, int, int],
    native_affine: np.ndarray,
) -> NativeStructures:
    """Resample probabilities to the grid of a scan and decide labels and volumes there.

    Parameters
    ----------
    posterior : DeepNATPosterior
        On a box of the conformed grid.
    conformed_affine : ndarray, shape (4, 4)
        Voxel-to-world matrix of the conformed grid, mm, RAS+.
    native_shape : tuple of int
        Shape of the scan.
    native_affine : ndarray, shape (4, 4)
        Its voxel-to-world matrix, mm, any axis order; axes parallel to the conformed ones.

    Returns
    -------
    NativeStructures
        One class at a time is on the grid of the scan.
    """
    part = NativeBox.of(posterior, conformed_affine, native_shape, native_affine)
    voxel = abs(float(np.linalg.det(part.affine[:3, :3])))
    values = class_values()
    best = np.zeros(part.size, dtype=np.float32)
    labels = np.zeros(part.size, dtype=np.uint8)
    volumes: dict[int, float] = {}
    # The background comes last: of equal classes the first wins.
    for number in (*range(1, len(CLASSES)), 0):
        moved = part.bring(posterior.classes[number].numpy())
        better = moved > best
        best[better] = moved[better]
        labels[better] = values[number]
        if values[number]:
            volumes[int(values[number])] = float(moved.sum(dtype=np.float64)) * voxel
    hits = np.bincount(labels.ravel(), minlength=256)
    weights = np.bincount(labels.ravel(), weights=best.ravel(), minlength=256)
    rows = [
        {
            'index': one.index,
            'volume_mm3': volumes[one.index],
            'mean_probability': float(weights[one.index] / hits[one.index])
            if hits[one.index]
            else float('nan'),
        }
        for one in deepnat_structures()
    ]
    whole = np.zeros(part.shape, dtype=np.uint8)
    whole[part.place] = labels
    return NativeStructures(np.ascontiguousarray(from_canonical(whole, part.transform)), rows)


def absent_structures() -> list[str]:
    """Return the names of structures that the default model labels and DeepNAT does not."""
    return [one.name for one in structures() if not one.core]


def segment_structures(
    in_file: Path,
    mask_file: Path,
    native_file: Path,
    out_dir: Path,
    *,
    foreground: Path,
    model: Path,
    crf: bool = True,
    mirror: bool = False,
    parities: int = 2,
    tile: int | None = None,
    suspect: str | None = None,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int | None = None,
    low_mem: bool = False,
) -> dict[str, Any]:
    """Segment a conformed scan with DeepNAT and write the labels on the grid of the scan.

    Parameters
    ----------
    in_file : pathlib.Path
        Conformed T1w, 1 mm, RAS+, bias-corrected.
    mask_file : pathlib.Path
        Brain mask, on this or another grid with parallel axes.
    native_file : pathlib.Path
        An image on the grid of the scan (shape and affine are used).
    out_dir : pathlib.Path
        Gets ``wholebrain.nii``, not compressed.
    foreground, model : pathlib.Path
        Model folders of the first and the second network.
    crf : bool
        Sharpen the probabilities with the conditional random field.
    mirror : bool
        See :func:`bids_app.inference.deepnat_segment.segment_prepared`.
    parities : {1, 2, 8}
        See :data:`bids_app.inference.deepnat.PARITIES`.
    tile : int, optional
        Edge of the tiles to begin with, voxels.
    suspect : str, optional
        How the head is turned against its header, a key of
        :data:`bids_app.inference.cascade.TURNS`: it is segmented as it should stand.
    device, precision, threads, low_mem
        As in :func:`bids_app.inference.brain.locate_brain`.

    Returns
    -------
    dict
        ``structures`` (rows of :class:`NativeStructures`), ``foreground_mm3``, ``crf``,
        ``mirror``, ``absent`` (names of structures that DeepNAT does not know), ``licences`` (of
        the weights), ``device``, ``precision`` and ``fallback``.

    Raises
    ------
    ImageError
        If the brain mask has less than 20 cm^3: before any network runs.
    ModelError
        If a folder does not hold the network that is needed.
    """
    if threads:
        torch.set_num_threads(threads)
    data, affine = load_array(in_file)
    mask, mask_affine = load_array(mask_file)
    mask = resample_separable(mask, mask_affine, data.shape, affine) >= 0.5
    options = {
        'device': device, 'precision': precision, 'low_mem': low_mem, 'parities': parities,
        'tile': tile,
    }  # fmt: skip
    first = load_stage(foreground, 2, **options)
    second = load_stage(model, len(CLASSES), **options)
    refiner = _Refiner(device)
    axes = TURNS[suspect] if suspect else ()
    if axes:
        data, mask = (np.ascontiguousarray(np.flip(volume, axes)) for volume in (data, mask))
    refine = refiner if crf else None
    found = segment_deepnat(data, affine, mask, first, second, refine, mirror)
    if axes:
        found = _turn_back(found, data.shape, axes)
    native = read_grid(native_file)
    result = structures_to_native(found, affine, native.shape, native.affine)
    out_dir.mkdir(parents=True, exist_ok=True)
    save_native(result.labels, native, out_dir / 'wholebrain.nii', np.uint8)
    voxel = abs(float(np.linalg.det(affine[:3, :3])))
    rungs = [stage.predictor.fallback for stage in (first, second)] + [refiner.fallback]
    return {
        'structures': result.rows,
        'foreground_mm3': round(float(found.foreground.sum()) * voxel, 1),
        'crf': crf,
        'mirror': mirror,
        'absent': absent_structures(),
        'licences': list(
            dict.fromkeys(load_card(folder).licence for folder in (foreground, model))
        ),
        'device': second.predictor.device,
        'precision': second.predictor.precision,
        'fallback': next((rung for rung in rungs if rung), None),
    }


class _Refiner:
    """The conditional random field on a device, or on the CPU where its memory runs out."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.fallback: str | None = None

    def __call__(
        self, classes: torch.Tensor, image: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        parameters = CRFParameters()
        try:
            return dense_crf(classes, image, inside, parameters=parameters, device=self.device)
        except (MemoryError, RuntimeError) as error:
            if self.device == 'cpu' or not out_of_memory(error):
                raise
            logger.warning('out of memory on %s in the conditional random field', self.device)
        torch.cuda.empty_cache()
        self.fallback = 'cpu, conditional random field'
        return dense_crf(classes, image, inside, parameters=parameters)


def _turn_back(
    found: DeepNATPosterior, shape: tuple[int, ...], axes: tuple[int, ...]
) -> DeepNATPosterior:
    """Express a result for a turned image on the axes of the image itself."""
    size = found.foreground.shape
    corner = tuple(
        n - c - s if axis in axes else c
        for axis, (c, s, n) in enumerate(zip(found.corner, size, shape, strict=True))
    )
    return DeepNATPosterior(
        found.classes.flip([axis + 1 for axis in axes]), found.foreground.flip(axes), corner
    )
