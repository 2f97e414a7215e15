# SPDX-License-Identifier: Apache-2.0
"""Folds of a cross-validation: whole subjects, with the same mixture in every fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fold:
    """Positions of the sessions of one fold.

    Attributes
    ----------
    train, validation, test : ndarray of int
        No subject is in two of them. ``validation`` decides when training stops and how outputs
        are calibrated; it is empty where the training sessions are too few to be split.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def deal(
    values: np.ndarray, subjects: np.ndarray, classes: int, folds: int, seed: int
) -> np.ndarray:
    """Deal subjects into folds.

    Parameters
    ----------
    values : ndarray, shape (sessions,)
        Codes of classes, or numbers.
    subjects : ndarray, shape (sessions,)
        A subject goes into one fold with all its sessions.
    classes : int
        How many there are; 0 for numbers.
    folds : int
        How many to make.
    seed : int
        Decides among the ways to deal that are equally good.

    Returns
    -------
    ndarray of int, shape (sessions,)
        Number of the fold. The counts of a class, and of the neighbours in the order of a
        number, differ by one at most between folds. A subject with sessions of more than one
        class counts for the one that it has most often.
    """
    rng = np.random.default_rng(seed)
    names, inverse = np.unique(subjects, return_inverse=True)
    if classes:
        votes = np.zeros((len(names), classes))
        np.add.at(votes, (inverse, values), 1)
        level = votes.argmax(axis=1).astype(float)
    else:
        level = np.bincount(inverse, weights=values) / np.bincount(inverse)
    order = np.lexsort((rng.random(len(names)), level))
    # Cards are dealt in rounds: every round gives each fold one subject of about the same level.
    fold = np.empty(len(names), int)
    if classes:
        shift = int(rng.integers(folds))
        fold[order] = (np.arange(len(names)) + shift) % folds
    else:
        for start in range(0, len(names), folds):
            some = order[start : start + folds]
            fold[some] = rng.permutation(folds)[: len(some)]
    return fold[inverse]


def make_folds(
    values: np.ndarray,
    subjects: np.ndarray,
    classes: int,
    *,
    folds: int = 5,
    validation_share: float = 0.2,
    seed: int = 0,
) -> list[Fold]:
    """Split sessions for a cross-validation, each training part once more for validation.

    Parameters
    ----------
    values, subjects, classes, seed
        As in :func:`deal`.
    folds : int
        At most as many as the smallest class has subjects are made.
    validation_share : float
        Share of the training subjects that is kept apart.

    Returns
    -------
    list of Fold
    """
    if classes:
        smallest = min(len(set(subjects[values == code])) for code in range(classes))
    else:
        smallest = len(set(subjects))
    folds = max(2, min(folds, smallest))
    number = deal(values, subjects, classes, folds, seed)
    every = np.arange(len(values))
    made = []
    for fold in range(folds):
        rest = every[number != fold]
        test = every[number == fold]
        parts = max(2, round(1 / validation_share))
        inner = deal(values[rest], subjects[rest], classes, parts, seed + 1 + fold)
        validation, train = rest[inner == 0], rest[inner != 0]
        if not _usable(values, validation, train, classes):
            validation, train = rest[:0], rest
        made.append(Fold(train, validation, test))
    return made


def _usable(values: np.ndarray, validation: np.ndarray, train: np.ndarray, classes: int) -> bool:
    """Whether both parts have every class (or a few numbers)."""
    if not classes:
        return len(validation) >= 3 and len(train) >= 3
    return all(len(set(values[part])) == classes for part in (validation, train))
