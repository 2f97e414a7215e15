# SPDX-License-Identifier: Apache-2.0
"""Linear models of maps: what a network has to beat, above all with few subjects.

Principal components of the training maps, then logistic or ridge regression on the scores. The
result is one weight for each voxel. A second, cruder model knows the total of the map alone: what
it finds is size, not pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bids_app.group.classifier_training import (
    Task,
    Trained,
    calibrate,
    loss_of,
    make_task,
    set_standardise,
)
from bids_app.group.folds import Fold
from bids_app.group.scores import class_weights
from bids_app.networks.pif import LinearClassifier3D

COMPONENTS = 50
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C (inverse strength of the penalty) that are tried on the validation sessions."""


@dataclass(frozen=True)
class Projection:
    """Scores of all sessions on a basis that was made from the training sessions of a fold.

    Attributes
    ----------
    scores : ndarray of float64, shape (sessions, components)
    basis : ndarray of float32, shape (voxels, components)
        Scores are standardised maps times this.
    network : LinearClassifier3D
        Its ``standardise`` layer is set; its weights are not.
    """

    scores: np.ndarray
    basis: np.ndarray
    network: LinearClassifier3D


def project(
    maps: np.ndarray, train: np.ndarray, *, outputs: int, total_only: bool = False
) -> Projection:
    """Project maps on the principal components of the training maps, or on their total.

    Parameters
    ----------
    maps : ndarray, shape (sessions, x, y, z)
    train : ndarray of int
        Sessions from which the basis is made.
    outputs : int
        Of the model.
    total_only : bool
        The basis is the sum over all voxels.
    """
    shape = maps.shape[1:]
    network = LinearClassifier3D(shape, outputs)
    if total_only:
        mean = np.mean([maps[row].astype(np.float32) for row in train], axis=0)
        network.standardise.mean.copy_(torch.from_numpy(mean))
    else:
        set_standardise(network.standardise, maps, train)
    mean, scale = (
        value.numpy().ravel() for value in (network.standardise.mean, network.standardise.scale)
    )

    def standardised(row: int) -> np.ndarray:
        return (maps[row].astype(np.float32).ravel() - mean) * scale

    if total_only:
        basis = np.ones((len(mean), 1), np.float32)
    else:
        used = np.stack([standardised(row) for row in train])
        # The maps are many more voxels than sessions: work with their products.
        values, vectors = np.linalg.eigh((used @ used.T).astype(np.float64))
        keep = np.argsort(values)[::-1][: min(COMPONENTS, len(train) - 1)]
        keep = keep[values[keep] > 1e-6 * values.max()]
        basis = used.T @ (vectors[:, keep] / np.sqrt(values[keep])).astype(np.float32)
    scores = np.stack([standardised(row) @ basis for row in range(len(maps))]).astype(np.float64)
    # One factor for all components, so that the penalty spares the large ones.
    factor = scores[train, 0].std() or 1.0
    return Projection(scores / factor, basis / np.float32(factor), network)


def fit_head(
    scores: np.ndarray, values: np.ndarray, fold: Fold, task: Task
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the regression; the validation sessions choose the strength of the penalty.

    Returns
    -------
    weights : ndarray, shape (outputs, components)
    intercepts : ndarray, shape (outputs,)
    """
    if not len(fold.validation):
        return _regression(scores[fold.train], values[fold.train], task, 0.1)
    best = None
    wanted = torch.from_numpy(values[fold.validation])
    if task.classes:
        weight = class_weights(values[fold.validation], task.classes)
    else:
        weight = np.full(len(wanted), 1 / len(wanted))
    for strength in STRENGTHS:
        weights, intercepts = _regression(scores[fold.train], values[fold.train], task, strength)
        outputs = torch.from_numpy(scores[fold.validation] @ weights.T + intercepts)
        loss = float(loss_of(outputs, wanted, task, torch.from_numpy(weight)))
        if best is None or loss < best[0]:
            best = loss, weights, intercepts
    return best[1], best[2]


def _regression(
    scores: np.ndarray, values: np.ndarray, task: Task, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    if task.classes:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=strength, class_weight='balanced', max_iter=500)
        model.fit(scores, values)
        return model.coef_, model.intercept_
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1 / strength).fit(scores, (values - task.mean) / task.sd)
    return model.coef_.reshape(1, -1), np.atleast_1d(model.intercept_)


def train_linear(
    projection: Projection, maps: np.ndarray, values: np.ndarray, fold: Fold, classes: int
) -> Trained:
    """Fit a linear model to one fold and calibrate it.

    Parameters
    ----------
    projection : Projection
        Of :func:`project` with the training sessions of the fold.
    maps : ndarray, shape (sessions, x, y, z)
    values : ndarray, shape (sessions,)
    fold : Fold
    classes : int
        0 for numbers.
    """
    task = make_task(values, classes, fold.train)
    weights, intercepts = fit_head(projection.scores, values, fold, task)
    network = projection.network
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weights @ projection.basis.T))
        network.head.bias.copy_(torch.from_numpy(intercepts))
    network.eval().requires_grad_(False)
    arguments = {'shape': list(maps.shape[1:]), 'out_features': task.outputs}
    trained = Trained('LinearClassifier3D', arguments, network, task)
    if len(fold.validation):
        calibrate(trained, trained.outputs(maps, fold.validation), values[fold.validation])
    return trained


def retrained_null(
    projections: list[Projection],
    folds: list[Fold],
    permuted: np.ndarray,
    classes: int,
    score,
) -> np.ndarray:
    """Return the scores of the whole linear procedure for permuted values.

    Parameters
    ----------
    projections, folds : list
        One for each fold; the basis does not depend on the values.
    permuted : ndarray, shape (permutations, sessions)
        Values in random order.
    classes : int
    score : callable
        Takes values (sessions,) and predictions (sessions, classes or 1).

    Returns
    -------
    ndarray, shape (permutations,)
    """
    found = []
    for values in permuted:
        width = classes or 1
        predictions = np.zeros((len(values), width))
        for projection, fold in zip(projections, folds, strict=True):
            task = make_task(values, classes, fold.train)
            if classes and len(set(values[fold.train])) < classes:
                predictions[fold.test] = 1 / classes  # a class is missing: nothing can be learnt
                continue
            weights, intercepts = fit_head(projection.scores, values, fold, task)
            outputs = projection.scores[fold.test] @ weights.T + intercepts
            if classes == 2:
                outputs = np.hstack([-outputs, outputs])
            predictions[fold.test] = outputs if classes else outputs * task.sd + task.mean
        found.append(score(values, predictions))
    return np.array(found)
