# SPDX-License-Identifier: Apache-2.0
"""How good predictions are: scores, confidence intervals, calibration, permutation.

The unit is the subject: what is predicted for the sessions of a subject is averaged first, so
that subjects with many sessions do not count more (a subject whose class changes is one unit for
each class). Classes weigh the same, however many subjects they have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

SCORES = {
    'balanced_accuracy': 'mean over classes of the share that is recognised',
    'auc': 'area under the ROC curve (more than two classes: mean of each against the rest)',
    'brier': 'Brier score: mean squared error of the probabilities, 0 is best',
    'calibration_error': 'expected calibration error over five bins of equal size, 0 is best',
    'mae': 'mean absolute error',
    'r2': 'share of the variance that is explained; negative is worse than the mean',
    'r': 'correlation of prediction and truth',
}
_BINS = 5


@dataclass(frozen=True)
class Units:
    """Predictions by subject.

    Attributes
    ----------
    subjects : ndarray of str, shape (units,)
    values : ndarray, shape (units,)
        Truth: codes of classes, or numbers.
    predictions : ndarray, shape (units, classes) or (units, 1)
        Probabilities, or the number.
    classes : int
        0 for numbers.
    """

    subjects: np.ndarray
    values: np.ndarray
    predictions: np.ndarray
    classes: int


def by_subject(
    subjects: np.ndarray, values: np.ndarray, predictions: np.ndarray, classes: int
) -> Units:
    """Average over the sessions of each subject (of each class)."""
    keys = [
        (subject, value if classes else 0) for subject, value in zip(subjects, values, strict=True)
    ]
    order = sorted(set(keys))
    position = {key: number for number, key in enumerate(order)}
    index = np.array([position[key] for key in keys])
    count = np.bincount(index)
    mean = np.stack([np.bincount(index, weights=c) / count for c in predictions.T], axis=1)
    truth = np.bincount(index, weights=values) / count
    return Units(
        np.array([subject for subject, _ in order]),
        np.rint(truth).astype(int) if classes else truth,
        mean,
        classes,
    )


def class_weights(values: np.ndarray, classes: int) -> np.ndarray:
    """Return weights that sum to 1 and give every class that is there the same share."""
    counts = np.bincount(values, minlength=classes)
    weights = 1 / counts[values]
    return weights / weights.sum()


def scores(units: Units) -> dict[str, float]:
    """Return the scores of :data:`SCORES` that apply."""
    if units.classes:
        return class_scores(units.values, units.predictions)
    return number_scores(units.values, units.predictions[:, 0])


def class_scores(values: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Return balanced accuracy, AUC, Brier score and calibration error.

    Parameters
    ----------
    values : ndarray of int, shape (units,)
    predictions : ndarray, shape (units, classes)
    """
    classes = predictions.shape[1]
    weights = class_weights(values, classes)
    truth = np.eye(classes)[values]
    error = ((predictions - truth) ** 2).sum(axis=1) / 2
    bins = reliability(values, predictions)
    return {
        'balanced_accuracy': balanced_accuracy(values, predictions.argmax(axis=1)),
        'auc': _auc(values, predictions),
        'brier': float(weights @ error),
        'calibration_error': sum(
            row['share'] * abs(row['predicted'] - row['observed']) for row in bins
        ),
    }


def number_scores(values: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Return mean absolute error, R2 and correlation."""
    error = predictions - values
    spread = np.square(values - values.mean()).sum()
    constant = np.ptp(predictions) == 0 or spread == 0
    return {
        'mae': float(np.abs(error).mean()),
        'r2': float(1 - np.square(error).sum() / spread) if spread else float('nan'),
        'r': 0.0 if constant else float(np.corrcoef(values, predictions)[0, 1]),
    }


def balanced_accuracy(values: np.ndarray, guesses: np.ndarray) -> float:
    """Return the mean over the classes that are there of the share that is recognised."""
    total = np.bincount(values)
    right = np.bincount(values[values == guesses], minlength=len(total))
    return float((right[total > 0] / total[total > 0]).mean())


def _auc(values: np.ndarray, predictions: np.ndarray) -> float:
    classes = predictions.shape[1]
    found = []
    for code in [1] if classes == 2 else range(classes):
        positive = values == code
        n1, n0 = positive.sum(), (~positive).sum()
        if n1 and n0:
            ranks = rankdata(predictions[:, code])
            found.append((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
    return float(np.mean(found)) if found else float('nan')


def reliability(values: np.ndarray, predictions: np.ndarray) -> list[dict[str, float]]:
    """Compare probabilities with frequencies, every class against the rest.

    Returns
    -------
    list of dict
        For each bin of equal size: ``predicted`` (mean probability), ``observed`` (frequency,
        classes weighing the same), ``share`` (of all weight), ``number`` (of probabilities).
        Two classes: the probability of the second.
    """
    classes = predictions.shape[1]
    codes = [1] if classes == 2 else range(classes)
    probability = np.concatenate([predictions[:, code] for code in codes])
    hit = np.concatenate([(values == code).astype(float) for code in codes])
    weight = np.tile(class_weights(values, classes), len(codes)) / len(codes)
    order = np.argsort(probability, kind='stable')
    rows = []
    for some in np.array_split(order, min(_BINS, len(order))):
        share = weight[some].sum()
        rows.append(
            {
                'predicted': float(weight[some] @ probability[some] / share),
                'observed': float(weight[some] @ hit[some] / share),
                'share': float(share),
                'number': len(some),
            }
        )
    return rows


def intervals(
    units: Units, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals of the scores.

    Subjects are drawn with replacement within their class, with all their units. The trained
    networks are held fixed: how much they would differ in another sample is not in it. Where all
    of a class are recognised a bootstrap sees no doubt, so the interval of balanced accuracy is
    never narrower than that of Wilson's intervals of the classes combined (Zou & Donner 2008).
    The calibration error has no interval: drawing with replacement alone makes it larger.

    Parameters
    ----------
    units : Units
    draws : int
        Bootstrap samples.
    level : float
        Coverage.
    seed : int

    Returns
    -------
    dict of str to (float, float)
    """
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for number, subject in enumerate(units.subjects):
        members.setdefault(str(subject), []).append(number)
    strata: dict[int, list[str]] = {}
    for subject, rows in members.items():
        strata.setdefault(int(units.values[rows[0]]) if units.classes else 0, []).append(subject)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        rows = [
            row
            for names in strata.values()
            for pick in rng.integers(len(names), size=len(names))
            for row in members[names[pick]]
        ]
        drawn = Units(
            units.subjects[rows], units.values[rows], units.predictions[rows], units.classes
        )
        for name, value in scores(drawn).items():
            if name == 'calibration_error':
                continue
            found.setdefault(name, []).append(value)
    tail = (1 - level) / 2
    ends = {
        name: tuple(float(v) for v in np.nanquantile(values, [tail, 1 - tail]))
        for name, values in found.items()
    }
    if units.classes:
        low, high = ends['balanced_accuracy']
        least, most = _wilson(units.values, units.predictions.argmax(axis=1), 1 - tail)
        ends['balanced_accuracy'] = min(low, least), max(high, most)
    return ends


def _wilson(values: np.ndarray, guesses: np.ndarray, quantile: float) -> tuple[float, float]:
    """Combine the Wilson intervals of the classes to that of their mean."""
    z = norm.ppf(quantile)
    total = np.bincount(values)
    right = np.bincount(values[values == guesses], minlength=len(total))
    n, p = total[total > 0], right[total > 0] / total[total > 0]
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    down = np.sqrt(np.square(p - (centre - half)).sum()) / len(n)
    up = np.sqrt(np.square(centre + half - p).sum()) / len(n)
    return float(max(0.0, p.mean() - down)), float(min(1.0, p.mean() + up))


def permuted_values(units: Units, permutations: int, seed: int) -> np.ndarray:
    """Return the truth of the units in random order, shape (permutations, units).

    Values move between units, as if each were a subject of its own.
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(units.values) for _ in range(permutations)])


def permutation_p(units: Units, permutations: int = 5000, seed: int = 0) -> float:
    """Test whether the predictions that were made know anything of the truth.

    The null hypothesis: the cross-validated predictions, as they are, are independent of the
    values of the subjects. The values are permuted between subjects against fixed predictions;
    nothing is trained again. The test is one-sided, for balanced accuracy or for the mean
    absolute error.

    Returns
    -------
    float
        ``(1 + number of permutations as good) / (1 + permutations)``.
    """
    best = headline(units.classes)
    if units.classes:
        guesses = units.predictions.argmax(axis=1)
        found = balanced_accuracy(units.values, guesses)
        score: Callable[[np.ndarray], float] = lambda v: balanced_accuracy(v, guesses)  # noqa: E731
    else:
        found = -scores(units)[best]
        score = lambda v: -float(np.abs(units.predictions[:, 0] - v).mean())  # noqa: E731
    null = np.array([score(v) for v in permuted_values(units, permutations, seed)])
    return p_value(found, null)


def p_value(found: float, null: np.ndarray) -> float:
    """Return the one-sided permutation p-value; larger is better, ties count."""
    return float((1 + (null >= found - 1e-12).sum()) / (1 + len(null)))


def headline(classes: int) -> str:
    """Return the score that is tested: ``balanced_accuracy`` or, for numbers, ``mae``."""
    return 'balanced_accuracy' if classes else 'mae'
