# SPDX-License-Identifier: Apache-2.0
"""White-matter hyperintensities: lesions, their number and volume, and where they lie.

A lesion is a connected set of voxels whose lesion probability is above a threshold. Volumes are
those of the mask, not sums of probabilities: a low probability over much of the white matter is
doubt, not a lesion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from bids_app.data import structures
from bids_app.images.masks import bounding_box, dilate_mm

from .volumes import voxel_volume

if TYPE_CHECKING:
    import pandas as pd

THRESHOLD = 0.5
"""Probability from which a voxel belongs to a lesion."""

SMALLEST_MM3 = 3.0
"""Smaller lesions are left out: they are single voxels of most FLAIR scans, and mostly noise."""

PERIVENTRICULAR_MM = 10.0
"""Up to here from the lateral ventricles white matter is periventricular, beyond it deep (DeCarli
et al., Stroke 36:50-55, 2005; compared with other rules by Griffanti et al., NeuroImage
170:174-181, 2018)."""

BESIDE_MM = 1.0
"""A lesion of white matter has at least half of its voxels in or this close to cerebral white
matter or a lateral ventricle. What has not is fat or mucosa into which the brain mask leaks."""

_WHITE = ('cerebral-white-matter',)
_VENTRICLES = ('lateral-ventricle', 'inferior-lateral-ventricle')
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Lesions:
    """Lesions of a scan.

    Attributes
    ----------
    labels : ndarray of int32, shape (x, y, z)
        Number of the lesion of each voxel, 1 the largest; 0 is background. Of lesions of equal
        size the first in memory order comes first.
    volumes : ndarray, shape (lesion,)
        mm^3, in the order of the numbers.
    mean_probability : ndarray, shape (lesion,)
        Mean lesion probability over the voxels of each.
    periventricular : ndarray, shape (lesion,)
        mm^3 of each within :data:`PERIVENTRICULAR_MM` of the lateral ventricles; NaN where these
        are not known.
    """

    labels: np.ndarray
    volumes: np.ndarray
    mean_probability: np.ndarray
    periventricular: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Voxels of lesions, uint8 of shape (x, y, z)."""
        return (self.labels > 0).astype(np.uint8)


def lateral_ventricles(labels: np.ndarray) -> np.ndarray:
    """Return the lateral ventricles with their temporal horns.

    Parameters
    ----------
    labels : ndarray of int, shape (x, y, z)
        Structures by FreeSurfer's numbers.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
    """
    return np.isin(labels, [s.index for s in structures() if s.kind in _VENTRICLES])


def lesion_bed(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return cerebral white matter and lateral ventricles, widened by :data:`BESIDE_MM`.

    Parameters
    ----------
    labels : ndarray of int, shape (x, y, z)
        Structures by FreeSurfer's numbers.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
    """
    kinds = (*_WHITE, *_VENTRICLES)
    inside = np.isin(labels, [s.index for s in structures() if s.kind in kinds])
    return dilate_mm(inside, affine, BESIDE_MM)


def find_lesions(
    probability: np.ndarray,
    affine: np.ndarray,
    ventricles: np.ndarray | None = None,
    *,
    within: np.ndarray | None = None,
    beside: np.ndarray | None = None,
    threshold: float = THRESHOLD,
    smallest_mm3: float = SMALLEST_MM3,
) -> Lesions:
    """Find the lesions in a probability map.

    Parameters
    ----------
    probability : ndarray, shape (x, y, z)
        Lesion probability, 0 to 1, on the grid of the scan.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.
    ventricles : ndarray, shape (x, y, z), optional
        Lateral ventricles, nonzero inside (:func:`lateral_ventricles`).
    within : ndarray, shape (x, y, z), optional
        Where lesions may be (the brain mask), nonzero inside; default everywhere.
    beside : ndarray, shape (x, y, z), optional
        Where at least half of a lesion must lie (:func:`lesion_bed`), nonzero inside; default
        everywhere.
    threshold : float
        Probability from which a voxel belongs to a lesion.
    smallest_mm3 : float
        Lesions of less volume are left out.

    Returns
    -------
    Lesions
        Voxels that touch by a face, an edge or a corner are of one lesion.

    Raises
    ------
    ValueError
        If the arrays differ in shape.
    """
    probability = np.asarray(probability)
    for other in (ventricles, within, beside):
        if other is not None and np.shape(other) != probability.shape:
            raise ValueError('the maps must have one shape')
    mask = probability >= threshold
    if within is not None:
        mask &= np.asarray(within) != 0
    size = voxel_volume(affine)
    box = bounding_box(mask)
    found, count = ndimage.label(mask[box], structure=_NEIGHBOURS)
    voxels = np.bincount(found.ravel(), minlength=count + 1)[1:]
    # The volume of a voxel is rounded: a lesion of exactly the smallest volume stays.
    large = voxels * size >= smallest_mm3 * (1 - 1e-6)
    if beside is not None:
        inside = np.bincount(
            found.ravel(), (np.asarray(beside)[box] != 0).ravel(), minlength=count + 1
        )[1:]
        large &= 2 * inside >= voxels
    kept = np.flatnonzero(large)
    kept = kept[np.argsort(-voxels[kept], kind='stable')]
    number = np.zeros(count + 1, dtype=np.int32)
    number[kept + 1] = np.arange(1, len(kept) + 1)
    labels = np.zeros(probability.shape, dtype=np.int32)
    labels[box] = number[found]
    inside = labels[box].ravel()
    sums = np.bincount(inside, probability[box].ravel(), minlength=len(kept) + 1)[1:]
    near = np.full(len(kept), np.nan)
    if ventricles is not None and np.any(ventricles):
        reached = dilate_mm(ventricles, affine, PERIVENTRICULAR_MM)[box].ravel()
        near = np.bincount(inside, reached, minlength=len(kept) + 1)[1:] * size
    return Lesions(labels, voxels[kept] * size, sums / np.maximum(voxels[kept], 1), near)


def lesion_rows(
    lesions: Lesions, *, tiv: float | None = None, wm: float | None = None
) -> list[dict[str, Any]]:
    """Sum up the lesions of a scan: all, periventricular, deep.

    Volumes are split voxel by voxel, so that a lesion that reaches from the ventricle into the
    deep white matter counts with a part in both. As for their number, a lesion is periventricular
    if any of it is.

    Parameters
    ----------
    lesions : Lesions
    tiv : float, optional
        Total intracranial volume, mm^3.
    wm : float, optional
        Volume of white matter with its lesions, mm^3.

    Returns
    -------
    list of dict
        ``name``, ``lesions`` (number), ``volume_mm3``, ``largest_mm3`` (part of a lesion, where
        they are split), ``fraction_of_tiv``, ``fraction_of_wm`` and ``mean_probability`` (over
        all of it; NaN for the parts). Without known ventricles there is the first row only.
    """
    whole = float(lesions.volumes.sum())
    weighted = float((lesions.volumes * lesions.mean_probability).sum())
    rows = [_row('all', lesions.volumes, tiv, wm)]
    rows[0]['mean_probability'] = weighted / whole if whole else math.nan
    if len(lesions.volumes) == 0 or np.isfinite(lesions.periventricular).all():
        near = lesions.periventricular
        rows.append(_row('periventricular', near[near > 0], tiv, wm))
        far = np.clip(lesions.volumes - near, 0, None)
        rows.append(_row('deep', far, tiv, wm))
        rows[-1]['lesions'] = int((near == 0).sum())
    return rows


def _row(name: str, volumes: np.ndarray, tiv: float | None, wm: float | None) -> dict[str, Any]:
    total = float(volumes.sum())
    return {
        'name': name,
        'lesions': len(volumes),
        'volume_mm3': total,
        'largest_mm3': float(volumes.max(initial=0)),
        'fraction_of_tiv': total / tiv if tiv else math.nan,
        'fraction_of_wm': total / wm if wm else math.nan,
        'mean_probability': math.nan,
    }


def lesion_table(
    lesions: Lesions, *, tiv: float | None = None, wm: float | None = None
) -> pd.DataFrame:
    """Build the table of lesions from :func:`lesion_rows`; see :data:`LESION_COLUMNS`."""
    import pandas as pd

    return pd.DataFrame(lesion_rows(lesions, tiv=tiv, wm=wm))


LESION_COLUMNS = {
    'name': {
        'Description': 'all, periventricular (up to 10 mm from the lateral ventricles) or deep'
    },
    'lesions': {
        'Description': 'Number of connected parts (26 neighbours) of at least 3 mm^3; '
        'periventricular if any of it is'
    },
    'volume_mm3': {'Description': 'Volume of the lesion mask', 'Units': 'mm^3'},
    'largest_mm3': {
        'Description': 'Volume of the largest lesion, or part of one',
        'Units': 'mm^3',
    },
    'fraction_of_tiv': {'Description': 'Volume over total intracranial volume'},
    'fraction_of_wm': {'Description': 'Volume over white matter with its lesions'},
    'mean_probability': {'Description': 'Mean lesion probability over the mask'},
}
"""What the columns of :func:`lesion_table` mean, for its JSON sidecar."""


def corrected_tissue(
    gm: np.ndarray, wm: np.ndarray, lesion: np.ndarray, *, own_class: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Count white-matter lesions as white matter.

    On a T1w image lesions are as dark as grey matter and are taken for it, which makes grey
    matter too large and white matter too small (Battaglini et al., Human Brain Mapping
    33:2062-2071, 2012).

    Parameters
    ----------
    gm, wm : ndarray, shape (x, y, z)
        Probabilities.
    lesion : ndarray, shape (x, y, z)
        Lesion probability, or a mask of lesions.
    own_class : bool
        Whether the lesion is a class of its own beside GM, WM and CSF, whose probabilities add
        up to 1 with it: then it is added to white matter. Otherwise GM, WM and CSF add up to 1
        without it, and of the grey matter of each voxel the share that is lesion moves to white
        matter; CSF stays.

    Returns
    -------
    gm, wm : ndarray of float32, shape (x, y, z)

    Raises
    ------
    ValueError
        If the arrays differ in shape.
    """
    gm, wm = np.asarray(gm, dtype=np.float32), np.asarray(wm, dtype=np.float32)
    lesion = np.asarray(lesion, dtype=np.float32)
    if not gm.shape == wm.shape == lesion.shape:
        raise ValueError('the maps must have one shape')
    if own_class:
        return gm.copy(), np.minimum(wm + lesion, 1)
    moved = gm * np.clip(lesion, 0, 1)
    return gm - moved, wm + moved
