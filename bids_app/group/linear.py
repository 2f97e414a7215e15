# SPDX-License-Identifier: Apache-2.0
"""The general linear model at every voxel, and the statistics of a contrast.

A contrast splits the space of the design in two: what it tests (an orthonormal basis
``interest``) and what it does not (``nuisance``), as in Guttman's partition (Winkler et al. 2014,
doi 10.1016/j.neuroimage.2014.01.060). With both, every statistic is a matter of a few inner
products with the data, which is also what makes permutations cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.errors import UsageError

BLOCK = 4096
"""Voxels that are worked on at a time; fixed, so that results do not depend on the machine."""


@dataclass(frozen=True)
class Partition:
    """A design seen from one contrast.

    Attributes
    ----------
    interest : numpy.ndarray, shape (sessions, k)
        Orthonormal; for a t contrast its inner product with the data has the sign of the effect.
    nuisance : numpy.ndarray, shape (sessions, q)
        Orthonormal, orthogonal to ``interest`` and to the constant, which the data have lost.
    scale : float
        Effect in units of the data per unit of the inner product (t contrasts).
    degrees_of_freedom : int
        Of the residuals.
    """

    interest: np.ndarray
    nuisance: np.ndarray
    scale: float
    degrees_of_freedom: int


@dataclass(frozen=True)
class Statistics:
    """The maps of a contrast, each of shape (voxels,).

    Attributes
    ----------
    statistic : numpy.ndarray
        t, or F.
    log_p : numpy.ndarray
        -log10 of the uncorrected p value.
    effect : numpy.ndarray or None
        The contrast of coefficients in units of the maps; None for F.
    partial : numpy.ndarray
        Partial correlation for t, partial eta squared for F.
    d : numpy.ndarray or None
        Effect over the residual standard deviation (Cohen's d of a difference of groups); None
        for F.
    """

    statistic: np.ndarray
    log_p: np.ndarray
    effect: np.ndarray | None
    partial: np.ndarray
    d: np.ndarray | None


def partition(matrix: np.ndarray, weights: np.ndarray) -> Partition:
    """Split a design into what a contrast tests and the rest.

    Parameters
    ----------
    matrix : numpy.ndarray, shape (sessions, p)
        Design of full rank.
    weights : numpy.ndarray, shape (k, p)
        Contrast of rank k.

    Raises
    ------
    UsageError
        If the contrast tests the mean of all sessions: grey matter is not compared with zero, and
        sessions cannot be exchanged under that hypothesis.
    """
    n, p = matrix.shape
    length = np.linalg.norm(matrix, axis=0)  # volumes in mm^3 next to years: same scale first
    scaled, weights = matrix / length, weights / length
    inverse = np.linalg.inv(scaled.T @ scaled)
    direction = scaled @ inverse @ weights.T
    interest = np.linalg.qr(direction)[0]
    scale = 1.0
    if weights.shape[0] == 1:
        scale = float(np.linalg.norm(direction))
        interest = direction / scale
    others = scaled @ np.linalg.svd(weights)[2][len(weights) :].T
    constant = np.full((n, 1), n**-0.5)
    basis = np.linalg.qr(others)[0] if others.shape[1] else np.zeros((n, 0))
    if np.linalg.norm(constant - basis @ (basis.T @ constant)) > 1e-6:
        raise UsageError(
            'the contrast tests the mean of all sessions (or the model has no intercept): '
            'compare groups or test a covariate, with an intercept in the model'
        )
    rest = others - constant @ (constant.T @ others)
    nuisance = np.linalg.svd(rest, full_matrices=False)[0][:, : others.shape[1] - 1]
    return Partition(interest, nuisance, scale, n - p)


def fit(values: np.ndarray, part: Partition, *, two_sided: bool = True) -> Statistics:
    """Compute the statistics of a contrast.

    Parameters
    ----------
    values : numpy.ndarray of float32, shape (sessions, voxels)
        Less their mean over sessions.
    part : Partition
        From :func:`partition`.
    two_sided : bool
        For t: test both signs, or only the positive one.
    """
    from scipy import stats

    n_voxels = values.shape[1]
    k = part.interest.shape[1]
    df = part.degrees_of_freedom
    inner = np.empty((k, n_voxels))
    residual = np.empty(n_voxels)
    for block in blocks(n_voxels):
        y = np.asarray(values[:, block], dtype=np.float64)
        y = y - y.mean(0)
        inner[:, block] = part.interest.T @ y
        y -= part.nuisance @ (part.nuisance.T @ y) + part.interest @ inner[:, block]
        residual[block] = np.einsum('ij,ij->j', y, y)
    explained = np.einsum('ij,ij->j', inner, inner)
    # exact fits (no residual at all) are artificial: they get no evidence, not an infinity
    positive = residual > 1e-14 * np.maximum(explained, 1e-300)
    noise = np.where(positive, residual, np.inf)
    if k > 1:
        statistic = (explained / k) / (noise / df)
        log_p = -stats.f.logsf(statistic, k, df) / np.log(10)
        return Statistics(statistic, log_p, None, explained / (explained + noise), None)
    sigma = np.sqrt(noise / df)
    t = inner[0] / sigma
    log_sf = stats.t.logsf(np.abs(t) if two_sided else t, df)
    log_p = -(log_sf + np.log(2.0)) / np.log(10) if two_sided else -log_sf / np.log(10)
    effect = part.scale * inner[0]
    return Statistics(t, np.maximum(log_p, 0.0), effect, t / np.sqrt(t**2 + df), effect / sigma)


def false_discovery(log_p: np.ndarray) -> np.ndarray:
    """Adjust p values for the false discovery rate (Benjamini & Hochberg 1995).

    Parameters
    ----------
    log_p : numpy.ndarray, shape (voxels,)
        -log10 of p.

    Returns
    -------
    numpy.ndarray, shape (voxels,)
        -log10 of the adjusted p.
    """
    order = np.argsort(-log_p, kind='stable')
    # p * n / rank, then the smallest from the largest rank down: done on logarithms, since p
    # values of strong effects are smaller than the smallest float
    n = len(log_p)
    adjusted = log_p[order] - np.log10(n / np.arange(1, n + 1))
    adjusted = np.maximum.accumulate(adjusted[::-1])[::-1]
    out = np.empty(n)
    out[order] = np.maximum(adjusted, 0.0)
    return out


def blocks(n_voxels: int) -> list[slice]:
    """Cut a row of voxels into blocks."""
    return [slice(at, min(at + BLOCK, n_voxels)) for at in range(0, n_voxels, BLOCK)]
