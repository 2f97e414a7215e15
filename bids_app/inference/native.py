# SPDX-License-Identifier: Apache-2.0
"""Bring posteriors from the 1 mm grid to the grid of the scan, one class at a time.

Labels are never interpolated: every probability map is resampled on its own and the label is
decided on the grid of the scan. Only a few maps of the scan's size exist at a time, so that a
scan of 40 million voxels needs hundreds of megabytes and not ten gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_app.data import structures
from bids_app.images.grids import canonical_affine, from_canonical
from bids_app.images.masks import fill_holes, largest_component
from bids_app.images.resample import resample_separable
from bids_app.inference.cascade import Posterior
from bids_app.inference.classes import CLASSES, output_values, sided_classes

if TYPE_CHECKING:
    from bids_app.inference.deepnat_segment import DeepNATPosterior

_TISSUES = ('GM', 'WM', 'CSF')


@dataclass
class NativeSegmentation:
    """All maps of a scan, each with exactly the shape and axis order of the scan.

    Attributes
    ----------
    mask : ndarray, uint8
        Brain.
    tissues : dict of ndarray, float32
        Probabilities ``GM``, ``WM`` and ``CSF``; their sum is at most one.
    dseg : ndarray, uint8
        1 GM, 2 WM, 3 CSF.
    labels : ndarray, uint8
        FreeSurfer's numbers.
    entropy : ndarray, float32
        Entropy of the class probabilities inside the mask, 0..1.
    structures : list of dict
        ``index``, ``volume_mm3`` (sum of probabilities times voxel volume) and
        ``mean_probability`` (over the voxels with that label).
    tissue_volumes : list of dict
        The same for tissues.
    """

    mask: np.ndarray
    tissues: dict[str, np.ndarray]
    dseg: np.ndarray
    labels: np.ndarray
    entropy: np.ndarray
    structures: list[dict[str, float]]
    tissue_volumes: list[dict[str, float]]

    @property
    def tiv_mm3(self) -> float:
        """Total intracranial volume as the sum of the tissues, mm^3."""
        return sum(row['volume_mm3'] for row in self.tissue_volumes)

    @property
    def mean_entropy(self) -> float:
        """Mean entropy inside the brain, 0..1."""
        inside = self.entropy[self.mask > 0]
        return float(inside.mean()) if inside.size else float('nan')


@dataclass
class NativeBox:
    """The part of a scan's grid, in RAS+ order, that a box of the conformed grid covers.

    Attributes
    ----------
    shape, affine, transform
        Those of the whole scan in RAS+ order (:func:`bids_app.images.grids.canonical_affine`).
    place : tuple of slice
        Where the part lies in it.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    transform: np.ndarray
    place: tuple[slice, ...]
    _source: np.ndarray
    _affine: np.ndarray

    @classmethod
    def of(
        cls,
        posterior: Posterior | DeepNATPosterior,
        conformed_affine: np.ndarray,
        native_shape: tuple[int, int, int],
        native_affine: np.ndarray,
    ) -> NativeBox:
        """Find the part that a posterior covers; arguments as of :func:`to_native`."""
        shape, affine, transform = canonical_affine(native_shape, native_affine)
        source = conformed_affine.copy()
        corner = conformed_affine[:3, :3] @ np.array(posterior.corner)
        source[:3, 3] = corner + conformed_affine[:3, 3]
        place, part = _boxed_grid(shape, affine, posterior.classes.shape[1:], source)
        return cls(shape, affine, transform, place, source, part)

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels of the part along each axis."""
        return tuple(one.stop - one.start for one in self.place)

    def bring(self, volume: np.ndarray) -> np.ndarray:
        """Resample probabilities from the box of the conformed grid to the part."""
        moved = resample_separable(volume, self._source, self.size, self._affine)
        return np.clip(moved, 0, 1)


def _boxed_grid(
    shape: tuple[int, ...], affine: np.ndarray, box_shape: tuple[int, ...], box_affine: np.ndarray
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the part of a RAS grid that a box of another grid covers, and its affine."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in box_shape])).reshape(3, -1)
    world = box_affine[:3, :3] @ corners + box_affine[:3, 3:]
    inverse = np.linalg.inv(affine)
    inside = inverse[:3, :3] @ world + inverse[:3, 3:]
    first = np.clip(np.floor(inside.min(axis=1)), 0, shape).astype(int)
    last = np.clip(np.ceil(inside.max(axis=1)) + 1, 0, shape).astype(int)
    box = affine.copy()
    box[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]
    return tuple(slice(a, max(a, b)) for a, b in zip(first, last, strict=True)), box


def to_native(
    posterior: Posterior,
    conformed_affine: np.ndarray,
    native_shape: tuple[int, int, int],
    native_affine: np.ndarray,
) -> NativeSegmentation:
    """Resample a posterior to the grid of a scan and decide labels and volumes there.

    Parameters
    ----------
    posterior : Posterior
        On a box of the conformed grid.
    conformed_affine : ndarray, shape (4, 4)
        Voxel-to-world matrix of the conformed grid, mm, RAS+.
    native_shape : tuple of int
        Shape of the scan.
    native_affine : ndarray, shape (4, 4)
        Its voxel-to-world matrix, mm, any axis order; axes parallel to the conformed ones.

    Returns
    -------
    NativeSegmentation
        Inside the mask every voxel has a label; outside all maps are zero.
    """
    part = NativeBox.of(posterior, conformed_affine, native_shape, native_affine)
    shape, affine, transform, box, bring = (
        part.shape, part.affine, part.transform, part.place, part.bring,
    )  # fmt: skip
    classes = posterior.classes.numpy()
    mask = np.zeros(shape, dtype=bool)
    brain = bring(1 - classes[0])
    mask[box] = fill_holes(largest_component(brain > 0.5))
    inside = mask[box]
    right = bring(posterior.right.numpy())[inside]
    count = int(inside.sum())
    total = np.full(count, 1e-6, dtype=np.float32)
    best = np.full(count, -1.0, dtype=np.float32)
    winner = np.zeros(count, dtype=np.uint8)
    entropy = np.zeros(count, dtype=np.float32)
    tissues = {name: np.zeros(count, dtype=np.float32) for name in _TISSUES}
    tissue_of = {structure.kind: structure.tissue for structure in structures()}
    sums = np.zeros((len(CLASSES), 2))
    sided = sided_classes()
    # The background keeps no share inside the mask: its probability there goes to the classes.
    share = 1 / np.maximum(brain[inside], 0.25)
    outside = np.clip(1 - brain[inside], 1e-6, 1)
    entropy -= outside * np.log(outside)
    for number in range(1, len(CLASSES)):
        raw = bring(classes[number])[inside]
        safe = np.maximum(raw, 1e-6)
        entropy -= safe * np.log(safe)
        value = np.minimum(raw * share, 1)
        total += value
        tissues[tissue_of[CLASSES[number]]] += value
        better = value > best
        best[better] = value[better]
        winner[better] = number
        if sided[number]:
            sums[number] = float((value * (1 - right)).sum()), float((value * right).sum())
        else:
            sums[number, 0] = float(value.sum())
    del classes
    values = output_values()
    chosen = values[winner, (right > 0.5).astype(int)].astype(np.uint8)
    excess = np.maximum(total, 1.0)
    for name in _TISSUES:
        tissues[name] /= excess
    stacked = np.stack([tissues[name] for name in _TISSUES])
    dseg = (stacked.argmax(axis=0) + 1).astype(np.uint8)
    voxel = abs(float(np.linalg.det(affine[:3, :3])))
    hits = np.bincount(chosen, minlength=256)
    weight = np.bincount(chosen, weights=best, minlength=256)
    rows = []
    for structure in structures():
        number = CLASSES.index(structure.kind)
        column = 1 if structure.side == 'right' else 0
        n = hits[structure.index]
        rows.append(
            {
                'index': structure.index,
                'volume_mm3': float(sums[number, column] * voxel),
                'mean_probability': float(weight[structure.index] / n) if n else float('nan'),
            }
        )
    tissue_rows = []
    for number, name in enumerate(_TISSUES, start=1):
        own = dseg == number
        tissue_rows.append(
            {
                'index': number,
                'name': name,
                'volume_mm3': float(tissues[name].sum(dtype=np.float64) * voxel),
                'mean_probability': float(tissues[name][own].mean())
                if own.any()
                else float('nan'),
            }
        )

    def place(numbers: np.ndarray) -> np.ndarray:
        whole = np.zeros(shape, dtype=numbers.dtype)
        whole[mask] = numbers
        return np.ascontiguousarray(from_canonical(whole, transform))

    return NativeSegmentation(
        np.ascontiguousarray(from_canonical(mask.astype(np.uint8), transform)),
        {name: place(tissues[name]) for name in _TISSUES},
        place(dseg),
        place(chosen),
        place(np.clip(entropy / np.log(len(CLASSES)), 0, 1).astype(np.float32)),
        rows,
        tissue_rows,
    )
