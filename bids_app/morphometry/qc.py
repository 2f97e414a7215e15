# SPDX-License-Identifier: Apache-2.0
"""Quality measures of a scan and of its segmentation.

The formulas of SNR, CNR, CJV, EFC, FBER, WM2MAX and tissue overlap are those of MRIQC (Esteban et
al. 2017, doi:10.1371/journal.pone.0184661); each function cites its origin. What cannot be
computed (noise of air where the background is exactly zero, for one) is NaN, written as ``n/a``.
The verdict over the measures is in :mod:`bids_app.morphometry.checks`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from ..images.grids import voxel_sizes
from ..images.masks import dilate_mm, fill_holes, otsu_threshold, remove_small
from .checks import assess, qc_columns, qc_table
from .volumes import asymmetry_index, voxel_volume

__all__ = ['assess', 'qc_columns', 'qc_measures', 'qc_table']

TISSUES = ('gm', 'wm', 'csf')
# Voxels count as pure tissue above this probability, as in MRIQC.
PURE = 0.85
MIN_VOXELS = 50
MIN_PART_MM3 = 10_000.0
# Standard deviation of the magnitude of pure noise, of unit sigma per channel (Rayleigh).
RAYLEIGH = math.sqrt(2 - math.pi / 2)
# Left and right cerebral white matter and cortex.
HEMISPHERES = ((2, 3), (41, 42))


def snr(mean: float, deviation: float, count: int) -> float:
    """Signal-to-noise ratio within a tissue.

    Parameters
    ----------
    mean : float
        Typical intensity of the tissue.
    deviation : float
        Standard deviation of its intensities.
    count : int
        Number of voxels.

    Returns
    -------
    float
        ``mean / (deviation * sqrt(n / (n - 1)))``; NaN if it is not defined.
    """
    if count < 2 or not deviation > 0:
        return math.nan
    return mean / (deviation * math.sqrt(count / (count - 1)))


def snr_dietrich(mean: float, deviation_air: float) -> float:
    """Signal-to-noise ratio with the noise of the air around the head.

    Parameters
    ----------
    mean : float
        Typical intensity of the tissue.
    deviation_air : float
        Standard deviation of the magnitude in air; it follows a Rayleigh distribution, whose
        deviation is ``sqrt(2 - pi / 2)`` times that of the noise.

    References
    ----------
    Dietrich et al., J Magn Reson Imaging 26(2):375-385, 2007. doi:10.1002/jmri.20969
    """
    return mean / (deviation_air / RAYLEIGH) if deviation_air > 0 else math.nan


def cnr(
    mean_wm: float, mean_gm: float, deviation_wm: float, deviation_gm: float, deviation_air: float
) -> float:
    """Contrast-to-noise ratio of white and grey matter.

    Returns
    -------
    float
        ``|wm - gm| / sqrt(var_wm + var_gm + var_air)``; air without data counts as 0.

    References
    ----------
    Magnotta and Friedman, J Digit Imaging 19(2):140-147, 2006. doi:10.1007/s10278-006-0264-x
    """
    air = deviation_air if math.isfinite(deviation_air) else 0.0
    noise = math.sqrt(deviation_wm**2 + deviation_gm**2 + air**2)
    return abs(mean_wm - mean_gm) / noise if noise > 0 else math.nan


def cjv(mean_wm: float, mean_gm: float, deviation_wm: float, deviation_gm: float) -> float:
    """Coefficient of joint variation of white and grey matter: low is good.

    Returns
    -------
    float
        ``(deviation_wm + deviation_gm) / |wm - gm|``.

    References
    ----------
    Ganzetti et al., Front Neuroinform 10:10, 2016. doi:10.3389/fninf.2016.00010
    """
    contrast = abs(mean_wm - mean_gm)
    return (deviation_wm + deviation_gm) / contrast if contrast > 0 else math.nan


def efc(image: np.ndarray) -> float:
    """Entropy focus criterion: 0 if all energy is in one voxel, 1 if it is spread evenly.

    Parameters
    ----------
    image : ndarray, shape (x, ...)
        Intensities of the whole field of view; negative ones count as 0.

    References
    ----------
    Atkinson et al., IEEE Trans Med Imaging 16(6):903-910, 1997. doi:10.1109/42.650886
    """
    energy, entropy = 0.0, 0.0
    # Slab by slab: double precision for a large scan at once would take a gigabyte.
    for plane in image:
        energy += float(np.square(plane.clip(0, None), dtype=np.float64).sum())
    if image.size < 2 or energy == 0:
        return math.nan
    for plane in image:
        # In single precision, the smallest values divided by the energy would become 0.
        share = plane[plane > 0].astype(np.float64) / math.sqrt(energy)
        entropy -= float(np.dot(share, np.log(share)))
    return entropy / (math.sqrt(image.size) * math.log(math.sqrt(image.size)))


def fber(image: np.ndarray, head: np.ndarray, air: np.ndarray) -> float:
    """Foreground-background energy ratio: mean energy of the head over that of the air.

    Parameters
    ----------
    image : ndarray, shape (x, y, z)
    head, air : ndarray of bool, shape (x, y, z)

    Returns
    -------
    float
        NaN if there is no air, or no energy in it.

    References
    ----------
    Shehzad et al., The Preprocessed Connectomes Project Quality Assessment Protocol, 2015.
    doi:10.3389/conf.fnins.2015.91.00047
    """
    if not head.any() or not air.any():
        return math.nan
    foreground = float(np.mean(np.square(image[head], dtype=np.float64)))
    background = float(np.mean(np.square(image[air], dtype=np.float64)))
    return foreground / background if background > 0 else math.nan


def wm2max(image: np.ndarray, median_wm: float) -> float:
    """Median of the white matter over the 99.95th percentile of the image."""
    top = float(np.percentile(image, 99.95))
    return median_wm / top if top > 0 else math.nan


def fuzzy_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap of two probability maps: sum of minima over sum of maxima (fuzzy Jaccard index).

    Parameters
    ----------
    first, second : ndarray of equal shape
        Values between 0 and 1.

    Returns
    -------
    float
        1 for equal maps, 0 for disjoint ones, NaN for empty ones.
    """
    union = float(np.maximum(first, second).sum(dtype=np.float64))
    return (
        float(np.minimum(first, second).sum(dtype=np.float64)) / union if union > 0 else math.nan
    )


def intensity_posteriors(values: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return what the intensities alone say about tissues.

    Each tissue is one Gaussian, with the mean, variance and share that a segmentation gives it;
    Bayes' rule turns intensities into probabilities. Where image and segmentation do not fit,
    the Gaussians overlap and the probabilities differ from those of the segmentation.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Intensities of brain voxels.
    probabilities : ndarray, shape (tissue, n)
        Segmentation at the same voxels.

    Returns
    -------
    ndarray, shape (tissue, n)
        Columns sum to 1.
    """
    weight = probabilities.sum(axis=1, dtype=np.float64)
    share = weight / max(weight.sum(), 1e-12)
    logs = np.full(probabilities.shape, -np.inf, dtype=np.float64)
    for row, (total, part) in enumerate(zip(weight, share, strict=True)):
        if total < 1:
            continue
        mean = float(np.dot(probabilities[row], values)) / total
        variance = float(np.dot(probabilities[row], (values - mean) ** 2)) / total
        variance = max(variance, 1e-12)
        logs[row] = math.log(part) - 0.5 * math.log(variance) - (values - mean) ** 2 / variance / 2
    logs -= logs.max(axis=0)
    np.exp(logs, out=logs)
    return logs / logs.sum(axis=0)


def head_and_air(
    image: np.ndarray, affine: np.ndarray, brain: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Separate the head from the air around it.

    Parameters
    ----------
    image : ndarray, shape (x, y, z)
        Intensities as acquired.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.
    brain : ndarray of bool, shape (x, y, z)

    Returns
    -------
    head, air : ndarray of bool, shape (x, y, z)
        Head: above half of Otsu's threshold (scalp and bone marrow are darker than the brain),
        specks below 10 ml left out, holes filled. Air: at least 5 mm from head and brain, voxels
        of exactly 0 left out (padding, or a background that was set to zero); empty where fewer
        than 1000 or less than a tenth of the background voxels are left.
    """
    bright = (image > 0.5 * otsu_threshold(image)) | brain
    # Dark skull may part the scalp from the brain, so that more than one part is head.
    head = fill_holes(remove_small(bright, MIN_PART_MM3 / voxel_volume(affine)))
    # Sinuses, ear canals and dark bone open to the outside; slices close them.
    for axis in range(3):
        if head.shape[axis] > 1:
            head = _fill_slices(head, axis)
    # A voxel larger than the distance must not stop the head from growing by at least one.
    far = ~dilate_mm(head, affine, max(5.0, float(voxel_sizes(affine).max())))
    air = far & (image != 0)
    if air.sum() < max(1000, 0.1 * far.sum()):
        air = np.zeros_like(air)
    return head, air


def _fill_slices(mask: np.ndarray, axis: int) -> np.ndarray:
    """Fill the holes of every slice across an axis."""
    filled = mask.copy()
    for index in range(mask.shape[axis]):
        part = [slice(None)] * 3
        part[axis] = slice(index, index + 1)
        plane = mask[tuple(part)]
        if plane.any():
            filled[tuple(part)] = fill_holes(plane)
    return filled


def border_contact(mask: np.ndarray) -> float:
    """Return how much of the brain the field of view cuts off.

    Parameters
    ----------
    mask : ndarray of bool, shape (x, y, z)

    Returns
    -------
    float
        For each face of the field of view, the brain's area there over its largest area in
        parallel slices; the largest of the six. 0 if the brain is free on all sides.
    """
    worst = 0.0
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        areas = mask.sum(axis=others)
        if areas.max() > 0:
            worst = max(worst, float(max(areas[0], areas[-1]) / areas.max()))
    return worst


def qc_measures(
    t1w: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    raw: np.ndarray | None = None,
    entropy: np.ndarray | None = None,
    structure_volumes: Mapping[int, float] | None = None,
    confidence: float | None = None,
) -> OrderedDict[str, float]:
    """Measure the quality of a scan and of its segmentation.

    Parameters
    ----------
    t1w : ndarray, shape (x, y, z)
        Scan without bias field: SNR, CNR, CJV, WM2MAX, overlap.
    probabilities : mapping of str to ndarray, shape (x, y, z)
        Maps of ``gm``, ``wm`` and ``csf``.
    mask : ndarray, shape (x, y, z)
        Brain, nonzero inside.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix in mm.
    raw : ndarray, shape (x, y, z), optional
        Scan as acquired, for EFC, FBER and the air; `t1w` where missing.
    entropy : ndarray, shape (x, y, z), optional
        Uncertainty of the segmentation, 0 to 1.
    structure_volumes : mapping of int to float, optional
        mm^3 by FreeSurfer's number.
    confidence : float, optional
        How sure the network is of the brain, 0 to 1.

    Returns
    -------
    OrderedDict of str to float
        Names as in MRIQC where it has the measure; see :func:`bids_app.morphometry.checks
        .qc_columns` for their meaning and units. NaN for what cannot be computed.
    """
    mask = np.asarray(mask) != 0
    raw = t1w if raw is None else raw
    found: OrderedDict[str, float] = OrderedDict()
    # Every second millimetre is enough for head and air, and many times as fast.
    steps = tuple(slice(None, None, max(int(2 / size), 1)) for size in voxel_sizes(affine))
    thin_affine = np.asarray(affine, float) @ np.diag([*(part.step for part in steps), 1])
    thin = raw[steps]
    head, air = head_and_air(thin, thin_affine, mask[steps])
    air_values = thin[air].astype(np.float64)
    deviation_air = float(air_values.std()) if air_values.size else math.nan
    # Background that was set to zero has no noise: comparing with it means nothing.
    zeroed = not air.any()

    values = t1w[mask].astype(np.float64)
    maps = np.stack([np.asarray(probabilities[name])[mask] for name in TISSUES])
    stats = {name: _tissue_stats(values, maps[row]) for row, name in enumerate(TISSUES)}
    for name in TISSUES:
        median, deviation, count = stats[name]
        found[f'snr_{name}'] = snr(median, deviation, count)
    found['snr_total'] = _mean([found[f'snr_{name}'] for name in TISSUES])
    for name in TISSUES:
        found[f'snrd_{name}'] = snr_dietrich(stats[name][0], deviation_air)
    found['snrd_total'] = _mean([found[f'snrd_{name}'] for name in TISSUES])
    (gm, gm_deviation, _), (wm, wm_deviation, _) = stats['gm'], stats['wm']
    found['cnr'] = cnr(wm, gm, wm_deviation, gm_deviation, deviation_air)
    found['cjv'] = cjv(wm, gm, wm_deviation, gm_deviation)
    found['efc'] = math.nan if zeroed else efc(raw)
    found['fber'] = fber(thin, head, air)
    found['wm2max'] = wm2max(t1w, wm)
    found['wm_gm_ratio'] = wm / gm if gm > 0 else math.nan
    expected = intensity_posteriors(values, maps) if values.size else maps
    for row, name in enumerate(TISSUES):
        found[f'overlap_{name}'] = fuzzy_overlap(maps[row], expected[row])
    found['overlap_mean'] = _mean([found[f'overlap_{name}'] for name in TISSUES])

    volumes = maps.sum(axis=1, dtype=np.float64) * voxel_volume(affine) / 1000
    total = float(volumes.sum())
    for name, volume in zip(TISSUES, volumes, strict=True):
        found[f'icvs_{name}'] = float(volume) / total if total > 0 else math.nan
    found['tiv_ml'] = total
    found['brain_volume_ml'] = float(volumes[0] + volumes[1])
    found['gm_wm_ratio'] = float(volumes[0] / volumes[1]) if volumes[1] > 0 else math.nan
    found['border_contact'] = border_contact(mask)
    if structure_volumes is not None:
        left, right = (sum(structure_volumes.get(n, 0.0) for n in side) for side in HEMISPHERES)
        found['hemisphere_asymmetry'] = asymmetry_index(left, right)
        found['missing_structures'] = float(_missing(structure_volumes))
    found['mean_entropy'] = math.nan
    if entropy is not None and values.size:
        found['mean_entropy'] = float(np.asarray(entropy)[mask].mean(dtype=np.float64))
    if confidence is not None:
        found['confidence'] = float(confidence)
    return found


def _tissue_stats(values: np.ndarray, probability: np.ndarray) -> tuple[float, float, int]:
    """Return median, standard deviation and number of the voxels of pure tissue."""
    own = values[probability > PURE]
    if own.size < MIN_VOXELS and values.size:
        # Thick slices may have no pure voxel: the likeliest tenth takes its place.
        own = values[probability > max(0.5, float(np.quantile(probability, 0.9)))]
    if own.size < 2:
        return math.nan, math.nan, int(own.size)
    return float(np.median(own)), float(own.std()), int(own.size)


def _missing(volumes: Mapping[int, float]) -> int:
    """Count the structures among the 25 that have next to no volume (below 50 mm^3)."""
    from ..data import structures

    return sum(volumes.get(item.index, 0.0) < 50 for item in structures() if item.core)


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
