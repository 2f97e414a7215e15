# SPDX-License-Identifier: Apache-2.0
"""Generation label maps in memory, ready to be sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_app.errors import ImageError
from bids_app.inference.classes import class_table, side_table


@dataclass
class LabelMaps:
    """A set of label maps at 1 mm in RAS+ voxel order.

    Attributes
    ----------
    values : list of int
        The label values that occur, sorted; maps hold indices into this list.
    maps : list of torch.Tensor, each shape (x, y, z), uint8
        Cropped to the head.
    brain_boxes : list of torch.Tensor, each shape (2, 3), float32
        First and last voxel of the brain.
    deep_centres : list of torch.Tensor, each shape (3,), float32
        Centre of the deep grey matter, in voxels.
    classes : torch.Tensor, shape (labels,), int64
        Class of every label index (:data:`bids_app.inference.classes.CLASSES`).
    sides : torch.Tensor, shape (labels,), int64
        -1 left, 1 right, 0 neither.
    names : list of str
        File names.
    """

    values: list[int]
    maps: list[torch.Tensor]
    brain_boxes: list[torch.Tensor]
    deep_centres: list[torch.Tensor]
    classes: torch.Tensor
    sides: torch.Tensor
    names: list[str]


def load_label_maps(files: list[Path]) -> LabelMaps:
    """Read label maps and prepare them for synthesis.

    Parameters
    ----------
    files : list of pathlib.Path
        NIfTI label maps of about 1 mm, in any orientation, whole head.

    Returns
    -------
    LabelMaps

    Raises
    ------
    ImageError
        If there is no file or a voxel size is not about 1 mm.
    """
    if not files:
        raise ImageError('no label maps to train on: check --data')
    arrays, names = [], []
    for file in files:
        image = nib.as_closest_canonical(nib.load(file))
        if not np.allclose(image.header.get_zooms()[:3], 1, atol=0.05):
            raise ImageError(f'{file}: label maps must have 1 mm voxels: resample them first')
        array = separate_septum(np.asarray(image.dataobj).astype(np.int16))
        first, last = _box(array > 0)
        arrays.append(array[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))])
        names.append(file.name)
    values = sorted(set().union({0}, *(np.unique(array).tolist() for array in arrays)))
    table = np.zeros(max(values) + 1, dtype=np.uint8)
    table[values] = np.arange(len(values))
    classes = class_table()[values].astype(np.int64)
    sides = side_table()[values].astype(np.int64)
    deep = [values.index(v) for v in (10, 49, 11, 50, 12, 51) if v in values]
    maps, boxes, centres = [], [], []
    for array in arrays:
        indexed = table[array]
        maps.append(torch.from_numpy(indexed))
        boxes.append(torch.tensor(np.array(_box(classes[indexed] > 0)), dtype=torch.float32))
        found = np.argwhere(np.isin(indexed, deep))
        centre = found.mean(axis=0) if len(found) else np.mean(_box(indexed > 0), axis=0)
        centres.append(torch.tensor(centre, dtype=torch.float32))
    return LabelMaps(
        values, maps, boxes, centres, torch.from_numpy(classes), torch.from_numpy(sides), names
    )


def separate_septum(labels: np.ndarray, reach: float = 5.0) -> np.ndarray:
    """Give the septum pellucidum and the fornix back to white matter.

    In the generation maps of SynthSeg the labels 136 and 163 hold the choroid plexus, which lies
    in the ventricles, and also the septum and the fornix between them, which are bright on T1w
    and belong to white matter. The latter are those next to the midsagittal plane.

    Parameters
    ----------
    labels : ndarray, shape (x, y, z)
        Label map, RAS+, 1 mm. Maps without these labels or without pairs are returned as is.
    reach : float
        Distance from the midsagittal plane, mm.

    Returns
    -------
    ndarray
        A copy with 2 and 41 for septum and fornix of the two sides.
    """
    pairs = [(10, 49), (11, 50), (12, 51), (17, 53)]
    ends = [
        (np.argwhere(labels == left).mean(axis=0), np.argwhere(labels == right).mean(axis=0))
        for left, right in pairs
        if (labels == left).any() and (labels == right).any()
    ]
    plexus = np.isin(labels, (136, 163))
    if not ends or not plexus.any():
        return labels
    normal = np.mean([right - left for left, right in ends], axis=0)
    normal /= np.linalg.norm(normal)
    middle = np.mean([(left + right) / 2 for left, right in ends], axis=0)
    at = np.argwhere(plexus)
    near = at[np.abs((at - middle) @ normal) <= reach]
    result = labels.copy()
    where = tuple(near.T)
    result[where] = np.where(labels[where] == 136, 2, 41)
    return result


def _box(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """First and last index of a mask along each axis."""
    first, last = [], []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first.append(int(hit[0]))
        last.append(int(hit[-1]))
    return first, last
