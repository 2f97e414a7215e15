# SPDX-License-Identifier: Apache-2.0
"""Similarity of two images of different contrast, and its slope along a movement.

Values of the moving image at points of the fixed one, a joint histogram with a smooth window
(Parzen), and normalised mutual information with its derivative. Plain numpy: with tens of
thousands of points one evaluation takes a few milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from bids_app.images.grids import voxel_sizes

BINS = 38
_WINDOW = 1.0  # standard deviation of the smoothing of the joint histogram, in bins
_RIM = 3  # empty bins at both ends, so that the smoothing keeps the sum
_SPAN = BINS - 1 - 2 * _RIM


def shrink(data: np.ndarray, affine: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of voxels, along every axis as many as fit into a length.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in mm.
    size : float
        Wanted voxel size in mm; axes of larger voxels stay as they are.

    Returns
    -------
    data : ndarray of float32
    affine : ndarray, shape (4, 4)
    """
    factors = np.maximum(np.floor(size / voxel_sizes(affine) + 0.25), 1).astype(int)
    factors = np.minimum(factors, np.maximum(np.array(data.shape) // 2, 1))
    data = np.asarray(data, dtype=np.float32)
    if (factors > 1).any():
        rest = [(0, -n % int(f)) for n, f in zip(data.shape, factors, strict=True)]
        data = np.pad(data, rest, mode='edge')
        for axis, factor in enumerate(int(f) for f in factors):
            shape = list(data.shape)
            shape[axis : axis + 1] = [shape[axis] // factor, factor]
            data = data.reshape(shape).mean(axis=axis + 1)
    affine = np.array(affine, dtype=float)
    affine[:3, 3] += affine[:3, :3] @ ((factors - 1) / 2)
    affine[:3, :3] *= factors
    return data, affine


class Sampler:
    """Linear interpolation with its exact derivative.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        At least two voxels along every axis.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in mm.
    """

    def __init__(self, data: np.ndarray, affine: np.ndarray) -> None:
        self.shape = data.shape
        self.to_voxel = np.linalg.inv(affine)
        self._flat = np.ascontiguousarray(data, dtype=np.float32).ravel()
        self._steps = (data.shape[1] * data.shape[2], data.shape[2], 1)

    def _place(self, points: np.ndarray) -> np.ndarray:
        return self.to_voxel[:3, :3] @ points + self.to_voxel[:3, 3:]

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return which points (3, n), world mm, lie in the field of view."""
        place = self._place(points)
        limits = np.array(self.shape)[:, None] - 0.5
        return ((place >= -0.5) & (place <= limits)).all(axis=0)

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample the image.

        Parameters
        ----------
        points : ndarray, shape (3, n)
            World coordinates, mm.

        Returns
        -------
        values : ndarray, shape (n,)
            Beyond the outermost voxel centres the values there.
        slope : ndarray, shape (3, n)
            Derivative along the axes of the world, per mm.
        inside : ndarray of bool, shape (n,)
            Whether the point lies in the field of view.
        """
        place = self._place(points)
        index = np.zeros(points.shape[1], dtype=np.intp)
        inside = np.ones(points.shape[1], dtype=bool)
        part, within = [], []
        for axis, count in enumerate(self.shape):
            at = place[axis]
            inside &= (at >= -0.5) & (at <= count - 0.5)
            low = np.clip(np.floor(at), 0, count - 2)
            index += low.astype(np.intp) * self._steps[axis]
            part.append(np.clip(at - low, 0, 1).astype(np.float32))
            within.append((at > 0) & (at < count - 1))
        sx, sy, sz = self._steps
        x, y, z = part
        corner = {
            (a, b, c): self._flat[index + (a * sx + b * sy + c * sz)]
            for a in (0, 1) for b in (0, 1) for c in (0, 1)
        }  # fmt: skip
        # Along z first; the differences along an axis are the derivative along it.
        rise = {(a, b): corner[a, b, 1] - corner[a, b, 0] for a in (0, 1) for b in (0, 1)}
        edge = {(a, b): corner[a, b, 0] + z * step for (a, b), step in rise.items()}
        face = [edge[a, 0] + y * (edge[a, 1] - edge[a, 0]) for a in (0, 1)]
        values = face[0] + x * (face[1] - face[0])
        slope_y = [edge[a, 1] - edge[a, 0] for a in (0, 1)]
        slope_z = [rise[a, 0] + y * (rise[a, 1] - rise[a, 0]) for a in (0, 1)]
        slope = np.stack([
            face[1] - face[0],
            slope_y[0] + x * (slope_y[1] - slope_y[0]),
            slope_z[0] + x * (slope_z[1] - slope_z[0]),
        ])  # fmt: skip
        slope *= np.stack(within)
        return values, self.to_voxel[:3, :3].T.astype(np.float32) @ slope, inside


def intensity_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range that the histogram covers: all but the outermost half percent.

    Raises
    ------
    ValueError
        If the values are all the same.
    """
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if not high > low:
        low, high = float(values.min()), float(values.max())
    if not high > low:
        raise ValueError('the image is constant where it is compared')
    return low, high


def bin_position(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the place of values on the axis of the histogram, between its empty rims."""
    return np.clip((values - low) / (high - low), 0, 1) * _SPAN + _RIM


def normalised_mutual_information(histogram: np.ndarray) -> tuple[float, np.ndarray]:
    """Return (H(a) + H(b)) / H(a, b) of a joint histogram, and its derivative.

    Parameters
    ----------
    histogram : ndarray, shape (a, b)
        Counts; they need not be whole numbers.

    Returns
    -------
    value : float
        1 for independent images, 2 for images that determine each other.
    slope : ndarray, shape (a, b)
        Derivative with respect to the counts, up to a constant, which does not matter where
        their sum stays.

    References
    ----------
    Studholme, Hill & Hawkes, Pattern Recognition 32:71-86, 1999.
    """
    total = histogram.sum()
    joint = histogram / total
    first, second = joint.sum(axis=1), joint.sum(axis=0)
    logs = [np.log(np.maximum(p, 1e-12)) for p in (first, second, joint)]
    entropy = [
        -float((p * log).sum()) for p, log in zip((first, second, joint), logs, strict=True)
    ]
    if not entropy[2] > 0:
        return 1.0, np.zeros_like(joint)
    value = (entropy[0] + entropy[1]) / entropy[2]
    slope = (value * logs[2] - logs[0][:, None] - logs[1][None, :]) / (entropy[2] * total)
    return value, slope


@dataclass(frozen=True)
class Comparison:
    """Fixed points with their values, and the moving image that they are compared with.

    Attributes
    ----------
    points : ndarray, shape (3, n)
        World of the fixed image, mm.
    bins : ndarray of int, shape (n,)
        Bin of the fixed image's value at each point.
    moving : Sampler
    range : tuple of float
        Values of the moving image at the ends of the histogram.
    least : float
        Smallest share of the points that has to lie in the moving image.
    """

    points: np.ndarray
    bins: np.ndarray
    moving: Sampler
    range: tuple[float, float]
    least: float = 0.4

    def __call__(self, moved: np.ndarray) -> tuple[float, np.ndarray | None]:
        """Compare the images.

        Parameters
        ----------
        moved : ndarray, shape (3, n)
            The points in the world of the moving image, mm.

        Returns
        -------
        value : float
            Normalised mutual information over the points that lie in the moving image; 1 where
            too few do.
        slope : ndarray, shape (3, n), or None
            Its derivative with respect to ``moved``; None where too few points are inside.
        """
        values, slope, inside = self.moving(moved)
        if inside.mean() < self.least:
            return 1.0, None
        low, high = self.range
        place = bin_position(values, low, high)
        lower = place.astype(np.intp)
        part = place - lower
        index = self.bins * BINS + lower
        weight = inside.astype(np.float64)
        size = BINS * BINS
        counts = np.bincount(index, weight * (1 - part), size)
        counts += np.bincount(index + 1, weight * part, size)
        value, change = normalised_mutual_information(_windowed(counts.reshape(BINS, BINS)))
        change = _windowed(change).ravel()  # the window is symmetric: it is its own transpose
        # A step of the value moves weight from the lower bin to the next.
        per_bin = (change[index + 1] - change[index]) * inside
        per_bin *= (values > low) & (values < high)
        return value, slope * (per_bin * (_SPAN / (high - low)))


def _windowed(histogram: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        histogram = gaussian_filter1d(histogram, _WINDOW, axis=axis, mode='constant')
    return histogram
