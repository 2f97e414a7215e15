# SPDX-License-Identifier: Apache-2.0
"""How much the maps of a study resemble each other.

Every map is read once. Smoothed maps hold no detail finer than their smoothing, so that voxels at
half its width are enough to compare them: a thousand maps fit into a few hundred megabytes. No
two maps are compared with each other: the mean correlation of a map with all others is its
product with their sum, and the distances need only the first principal components, so that time
and memory grow in proportion to the number of maps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.group.maps import check_maps, read_in_order

LOGGER = logging.getLogger('anatnet.group')

MIN_MAPS = 3
"""Maps from which a mean correlation says something."""

SESSIONS_PER_COMPONENT = 5
MAX_COMPONENTS = 10
"""The distance uses one component per so many maps, and at most so many."""

MAX_VOXELS = 60_000
"""Voxels of the thinned grid that are kept of every map."""

MAX_DENSE = 1000
"""Maps (or voxels, if those are fewer) up to which all principal components are computed."""

_BLOCK = 256

MASK_FRACTION = 0.1
"""Voxels count where the mean map is above this fraction of its 99th percentile."""


@dataclass(frozen=True)
class Homogeneity:
    """Resemblance of maps; ``n`` is the number of all sessions.

    Attributes
    ----------
    used : ndarray of bool, shape (n,)
        Whose map was read.
    mean_correlation : ndarray, shape (n,)
        Mean of the correlations with the other maps, NaN where not used.
    distance : ndarray, shape (n,)
        Squared Mahalanobis distance to the mean of all maps in the space of the first principal
        components; NaN where it cannot be computed.
    probability : ndarray, shape (n,)
        That of such a distance or a larger one if maps are normally distributed.
    components : int
        Number of components, 0 if there are too few maps.
    mean, deviation : ndarray, shape (x, y, z)
        Mean and standard deviation of the maps, float32 (the latter 0 for one map).
    affine : ndarray, shape (4, 4)
        Their grid, voxel to world in mm.
    problems : dict of int to str
        Why a map was left out, by the number of its session.
    notes : tuple of str
        What could not be computed, and why.
    """

    used: np.ndarray
    mean_correlation: np.ndarray
    distance: np.ndarray
    probability: np.ndarray
    components: int
    mean: np.ndarray
    deviation: np.ndarray
    affine: np.ndarray
    problems: dict[int, str]
    notes: tuple[str, ...]


def measure_homogeneity(
    paths: Sequence[Path | None],
    fwhm: float = 0.0,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Homogeneity | None:
    """Compare maps.

    Parameters
    ----------
    paths : sequence of Path or None
        One map per session, all on one grid; None for a session without one.
    fwhm : float
        Smoothing of the maps in mm, which tells how thinly they may be sampled.
    threads : int
        Maps that are read at a time.
    progress : callable, optional
        Called with the number of maps read and to read.

    Returns
    -------
    Homogeneity or None
        None if no map can be read. Maps on another grid than most, and those that cannot be read
        or hold values that are not finite, are left out and named in ``problems``.
    """
    import nibabel as nib

    given = [index for index, path in enumerate(paths) if path is not None]
    problems = {given[i]: text for i, text in check_maps([paths[i] for i in given]).items()}
    readable = [index for index in given if index not in problems]
    samples = total = squares = affine = thin = None
    kept: list[int] = []
    # Decompression lets other threads run; few maps are in memory at a time.
    with ThreadPoolExecutor(max(1, threads)) as pool:
        maps = read_in_order(pool, [paths[index] for index in readable], threads)
        for number, (index, data) in enumerate(zip(readable, maps, strict=True), 1):
            if isinstance(data, str):
                problems[index] = data
                continue
            if samples is None:
                affine = np.asarray(nib.load(paths[index]).affine, float)
                steps = thinning(data.shape, affine, fwhm)
                thin = tuple(slice(step // 2, None, step) for step in steps)
                samples = np.empty((len(readable), *data[thin].shape), np.float32)
                total, squares = (np.zeros_like(data, dtype=np.float64) for _ in range(2))
            samples[len(kept)] = data[thin]
            kept.append(index)
            total += data
            squares += np.square(data, dtype=np.float64)
            if progress is not None:
                progress(number, len(readable))
    for index in sorted(problems):
        LOGGER.warning('%s: %s', Path(paths[index]).name, problems[index])
    if not kept:
        return None
    count = len(kept)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares - count * mean**2, 0) / max(count - 1, 1))
    thin_mean = mean[thin]
    inside = thin_mean > MASK_FRACTION * float(np.percentile(thin_mean, 99))
    if not inside.any():
        inside = np.ones_like(inside)
    values = samples[:count, inside]
    del samples
    standardise(values)
    similar, notes = _mean_correlation(values)
    distance, probability, components = mahalanobis(values)
    if count < 2 * SESSIONS_PER_COMPONENT:
        notes.append(
            f'Distances of maps need {2 * SESSIONS_PER_COMPONENT} maps; there are {count}'
        )
    elif not components:
        notes.append('All maps are equal, so they have no distances')

    def spread(values: np.ndarray) -> np.ndarray:
        full = np.full(len(paths), np.nan)
        full[kept] = values
        return full

    used = np.zeros(len(paths), bool)
    used[kept] = True
    return Homogeneity(
        used,
        spread(similar),
        spread(distance),
        spread(probability),
        components,
        mean.astype(np.float32),
        deviation.astype(np.float32),
        affine,
        problems,
        tuple(notes),
    )


def thinning(
    shape: Sequence[int], affine: np.ndarray, fwhm: float, most: int = MAX_VOXELS
) -> tuple[int, int, int]:
    """Return steps along the axes that lose little of maps of some smoothness.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the map.
    affine : ndarray, shape (4, 4)
        Voxel to world in mm.
    fwhm : float
        Smoothing in mm: steps are at most half of it, unless that leaves too many voxels.
    most : int
        Voxels to keep at most.
    """
    zooms = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    spacing = max(fwhm / 2, float(zooms.min()))
    while True:
        steps = np.maximum((spacing / zooms + 1e-6).astype(int), 1)
        kept = math.prod(math.ceil(n / step) for n, step in zip(shape, steps, strict=True))
        if kept <= most or (steps >= np.asarray(shape)).all():
            return tuple(int(step) for step in steps)
        spacing *= 1.1


def standardise(samples: np.ndarray) -> None:
    """Give every map a mean of 0 and a length of 1, so that products are correlations.

    Parameters
    ----------
    samples : ndarray, shape (maps, voxels)
        Changed in place; a map without any variation becomes 0.
    """
    for row in samples:  # row by row: a second copy of all maps is not needed
        row -= row.mean(dtype=np.float64)
        norm = math.sqrt(float(np.dot(row, row)))
        row /= norm if norm > 0 else 1.0


def _mean_correlation(samples: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the mean correlation of every standardised map with the others."""
    count = len(samples)
    if count < MIN_MAPS:
        note = f'The resemblance of maps needs {MIN_MAPS} maps; there are {count}'
        return np.full(count, np.nan), [note]
    total = samples.sum(axis=0, dtype=np.float64)
    others = np.empty(count)
    for first in range(0, count, _BLOCK):
        block = samples[first : first + _BLOCK].astype(np.float64)
        others[first : first + _BLOCK] = block @ total - np.square(block).sum(axis=1)
    return np.clip(others / (count - 1), -1, 1), []


def mahalanobis(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Measure how far each map is from the mean map, in the main directions of variation.

    Parameters
    ----------
    samples : ndarray, shape (n, voxels)
        Standardised maps; overwritten.

    Returns
    -------
    distance : ndarray, shape (n,)
        Squared Mahalanobis distance over `components` components.
    probability : ndarray, shape (n,)
        ``n d / (n - 1)^2`` follows a beta distribution with ``k / 2`` and ``(n - k - 1) / 2`` for
        normally distributed maps (Gnanadesikan and Kettenring, Biometrics 28:81-124, 1972).
    components : int
        0, and NaN above, for fewer than ten maps.
    """
    from scipy.special import betaincc

    count = len(samples)
    components = min(MAX_COMPONENTS, count // SESSIONS_PER_COMPONENT)
    if count < 2 * SESSIONS_PER_COMPONENT:
        return np.full(count, np.nan), np.full(count, np.nan), 0
    samples -= samples.mean(axis=0, dtype=np.float64).astype(samples.dtype)
    vectors = principal_scores(samples, components)
    components = vectors.shape[1]
    if not components:  # all maps are equal
        return np.zeros(count), np.ones(count), 0
    distance = (count - 1) * np.square(vectors).sum(axis=1)
    share = np.clip(count * distance / (count - 1) ** 2, 0, 1)
    return distance, betaincc(components / 2, (count - components - 1) / 2, share), components


def principal_scores(samples: np.ndarray, components: int, dense: int = MAX_DENSE) -> np.ndarray:
    """Return the scores of the first principal components, each of length 1.

    Parameters
    ----------
    samples : ndarray, shape (n, voxels)
        Centred.
    components : int
        How many are wanted.
    dense : int
        Where both ``n`` and the voxels are more, the Lanczos method finds these few instead of
        all (Lehoucq et al., ARPACK Users' Guide, 1998).

    Returns
    -------
    ndarray of float64, shape (n, found)
        Components without any variation are left out.
    """
    count, voxels = samples.shape
    if count <= min(voxels, dense):
        values, vectors = np.linalg.eigh((samples @ samples.T).astype(np.float64))
    elif voxels <= dense:
        values, axes = np.linalg.eigh((samples.T @ samples).astype(np.float64))
        vectors = samples @ axes / np.sqrt(np.maximum(values, 1e-300))
    else:
        values, vectors = _lanczos(samples, components)
    wanted = slice(-min(components, len(values)), None)
    return vectors[:, wanted][:, values[wanted] > 1e-9 * count]


def _lanczos(samples: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest eigenvalues, ascending, and eigenvectors of ``samples @ samples.T``."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    count = len(samples)

    def multiply(vector: np.ndarray) -> np.ndarray:
        narrow = vector.astype(samples.dtype, copy=False)
        return (samples @ (narrow @ samples)).astype(np.float64)

    operator = LinearOperator((count, count), multiply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(count)  # the same maps, the same result
    tolerance = 1e-6 if samples.dtype == np.float32 else 0
    values, vectors = eigsh(operator, components, v0=start, tol=tolerance)
    order = np.argsort(values)
    return values[order], vectors[:, order]


def unusual_distance(z: float, count: int, components: int) -> float:
    """Return the squared distance that is as rare as a normal deviate above `z`."""
    from scipy.special import betainccinv, ndtr

    share = betainccinv(components / 2, (count - components - 1) / 2, ndtr(-z))
    return float(share) * (count - 1) ** 2 / count


def normal_z(probability: np.ndarray) -> np.ndarray:
    """Return the normal deviate that is exceeded, upwards, with some probability."""
    from scipy.special import ndtri

    return -ndtri(np.clip(np.asarray(probability, float), 1e-300, 1))
