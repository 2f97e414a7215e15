# SPDX-License-Identifier: Apache-2.0
"""Family-wise correction by permutation of residuals (Freedman & Lane 1983).

The residuals of the model without the effect of interest are permuted and the full model is
fitted again (Winkler et al. 2014, doi 10.1016/j.neuroimage.2014.01.060). Permuting the residuals
is the same as permuting the rows of the design the other way, and removing the nuisance from the
data is the same as removing it from the permuted rows: a batch of permutations is then one
matrix product of small vectors with the untouched data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bids_app.group.linear import Partition, blocks
from bids_app.group.tfce import Enhancer

LOGGER = logging.getLogger('anatnet.group')

BATCH = 64
"""Permutations per pass over the data; fixed, so that results do not depend on the machine."""

_TIE = 1e-5
"""Relative difference below which a permuted statistic equals the observed one: the first is
computed in single, the second in double precision."""


@dataclass(frozen=True)
class NullDistribution:
    """The largest statistic of every permutation.

    Attributes
    ----------
    voxel : numpy.ndarray, shape (permutations,)
        Largest t (largest absolute t if two-sided), or F.
    tfce : numpy.ndarray or None, shape (permutations,)
        The same after threshold-free cluster enhancement.
    """

    voxel: np.ndarray
    tfce: np.ndarray | None


def permutations(n: int, count: int, seed: int) -> np.ndarray:
    """Draw permutations of ``range(n)``: shape (count, n), the same for the same seed."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(count)]).astype(np.int32)


def null_distribution(
    values: np.ndarray,
    part: Partition,
    orders: np.ndarray,
    *,
    two_sided: bool = True,
    enhancer: Enhancer | None = None,
    n_jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> NullDistribution:
    """Find the largest statistic under every permutation.

    Parameters
    ----------
    values : numpy.ndarray of float32, shape (sessions, voxels)
        Less their mean over sessions.
    part : Partition
        Of the design and contrast.
    orders : numpy.ndarray of int, shape (permutations, sessions)
        From :func:`permutations`.
    two_sided : bool
        For t: both signs.
    enhancer : Enhancer, optional
        With it, the largest enhanced value is found as well.
    n_jobs : int
        Threads; the result does not depend on it.
    progress : callable, optional
        Told the number of finished permutations after every batch.
    """
    from threadpoolctl import threadpool_limits

    n_voxels = values.shape[1]
    cuts = blocks(n_voxels)
    norm = np.empty(n_voxels, np.float32)
    voxel, tfce = np.empty(len(orders)), np.empty(len(orders))
    two_sided = two_sided and part.interest.shape[1] == 1
    # one thread per matrix product: the products themselves run side by side
    with threadpool_limits(1), ThreadPoolExecutor(max(n_jobs, 1)) as pool:

        def residual_norm(block: slice) -> None:
            y = np.asarray(values[:, block], dtype=np.float64)
            y -= part.nuisance @ (part.nuisance.T @ y)
            norm[block] = np.einsum('ij,ij->j', y, y)

        list(pool.map(residual_norm, cuts))
        inverse = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
        maps = np.empty((BATCH, n_voxels), np.float32) if enhancer is not None else None
        for begin in range(0, len(orders), BATCH):
            batch = orders[begin : begin + BATCH]
            rows = _permuted_rows(part, batch)
            count = len(batch)
            here = slice(begin, begin + count)

            def statistics(block: slice, rows=rows, count=count) -> np.ndarray:
                found = _statistics(values[:, block], rows, inverse[block], part, two_sided, count)
                if maps is not None:
                    maps[:count, block] = found
                return (np.abs(found) if two_sided else found).max(1)

            voxel[here] = np.max(list(pool.map(statistics, cuts)), axis=0)
            if enhancer is not None:

                def enhanced(number: int) -> float:
                    found = enhancer(maps[number], two_sided=two_sided)
                    return float((np.abs(found) if two_sided else found).max())

                tfce[here] = list(pool.map(enhanced, range(count)))
            if progress is not None:
                progress(begin + count)
    return NullDistribution(voxel, tfce if enhancer is not None else None)


def _permuted_rows(part: Partition, orders: np.ndarray) -> np.ndarray:
    """Return the vectors whose inner products with the data give the permuted statistics.

    Shape ((k + q) * permutations, sessions), float32: first those of interest, then nuisance,
    each permuted and then cleared of the unpermuted nuisance.
    """
    basis = np.concatenate([part.interest, part.nuisance], axis=1)
    n, width = basis.shape
    moved = np.empty((width, len(orders), n))
    for number, order in enumerate(orders):
        # (P b)'(R y) with (P y)[i] = y[order[i]] is (P'b)'(R y), and (P'b)[order[i]] = b[i]
        moved[:, number, order] = basis.T
    moved -= (moved @ part.nuisance) @ part.nuisance.T
    return moved.reshape(-1, n).astype(np.float32)


def _statistics(
    values: np.ndarray,
    rows: np.ndarray,
    inverse: np.ndarray,
    part: Partition,
    two_sided: bool,
    count: int,
) -> np.ndarray:
    """Return t or F of a batch of permutations, shape (permutations, voxels), float32."""
    k = part.interest.shape[1]
    inner = (rows @ values).reshape(-1, count, values.shape[1])
    explained = np.einsum('kpv,kpv->pv', inner[:k], inner[:k])
    lost = np.einsum('kpv,kpv->pv', inner[k:], inner[k:])
    # |R y|^2 = explained + lost + residual
    residual = 1.0 - (explained + lost) * inverse
    np.maximum(residual, 1e-7, out=residual)
    df = part.degrees_of_freedom
    if k > 1:
        return explained * inverse / residual * np.float32(df / k)
    return inner[0] * np.sqrt(inverse * np.float32(df) / residual)


def corrected(observed: np.ndarray, null: np.ndarray, *, two_sided: bool = True) -> np.ndarray:
    """Return -log10 of the family-wise corrected p value of every voxel.

    Parameters
    ----------
    observed : numpy.ndarray, shape (voxels,)
        The statistic.
    null : numpy.ndarray, shape (permutations,)
        Largest statistic of every permutation.
    two_sided : bool
        Compare absolute values.

    Notes
    -----
    The observed order counts as one permutation (Phipson & Smyth 2010): p is never below
    ``1 / (permutations + 1)``.
    """
    height = np.abs(observed) if two_sided else observed
    ordered = np.sort(null)
    reached = len(null) - np.searchsorted(ordered, height - np.abs(height) * _TIE, side='left')
    return -np.log10((1.0 + reached) / (1.0 + len(null)))
