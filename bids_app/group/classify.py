# SPDX-License-Identifier: Apache-2.0
"""Classification of a study: cross-validated networks and linear models of a column.

Four models see the same folds: a network with patch individual filters, a network of the same
size without them, a linear model, and one that knows only the total of the map. A network that
does not beat the linear model has found nothing that needs a network; a model that does not beat
the total has found size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.errors import UsageError
from bids_app.group import scores as scoring
from bids_app.group.folds import Fold, make_folds
from bids_app.group.maps import check_maps, read_in_order
from bids_app.group.targets import Target, read_target
from bids_app.images.masks import bounding_box
from bids_app.inference.classifier import InputGrid, shrink

if TYPE_CHECKING:
    import pandas as pd

    from bids_app.group.classifier_linear import Projection
    from bids_app.group.classifier_training import Trained, TrainingSettings
    from bids_app.group.derivatives import Study

LOGGER = logging.getLogger('anatnet.group')

METHODS = {
    'pif': 'PIF network',
    'baseline': 'network of the same size without PIF',
    'linear': 'linear model',
    'total': 'total of the map alone',
}
SMALLEST = 24
"""Voxels on an axis that the networks need at least."""
OCCLUDED_SESSIONS = 200
RETRAINED = 200
"""At most so many sessions and permutations, where each costs a pass or a training."""


@dataclass(frozen=True)
class Options:
    """How a classification is done.

    Attributes
    ----------
    folds : int
        Of the cross-validation.
    seed : int
        Of folds, weights, bootstrap and permutations.
    device : str
        Torch device of the networks.
    force : bool
        Go on with too few subjects.
    n_permutations : int
        For the p-values; 0 for none.
    voxel_size : float
        About how large the voxels are that the models see, mm. Whole blocks of voxels of the
        maps are averaged.
    task : {'auto', 'classes', 'number'}
        See :func:`bids_app.group.targets.read_target`.
    methods : tuple of str
        Keys of :data:`METHODS`.
    training : TrainingSettings, optional
        Of the networks.
    n_jobs : int
        Threads that read maps.
    """

    folds: int = 5
    seed: int = 0
    device: str = 'cpu'
    force: bool = False
    n_permutations: int = 1000
    voxel_size: float = 3.0
    task: str = 'auto'
    methods: tuple[str, ...] = tuple(METHODS)
    training: TrainingSettings | None = None
    n_jobs: int = 1


@dataclass
class Outcome:
    """One model in the cross-validation.

    Attributes
    ----------
    method : str
        Key of :data:`METHODS`.
    trained : list of Trained
        One for each fold.
    predictions : ndarray, shape (sessions, classes) or (sessions, 1)
        Of sessions that the model had not seen.
    scores : dict of str to float
    intervals : dict of str to (float, float)
        95 % confidence.
    p : float or None
        Permutation of the values against the predictions.
    p_retrained : float or None
        Permutation with new training (linear model only).
    reliability : list of dict
        See :func:`bids_app.group.scores.reliability`.
    maps : dict of str to ndarray
        Maps of importance, on the grid of the models.
    regions : list of dict
        Importance of each region.
    """

    method: str
    trained: list[Trained] = field(default_factory=list)
    predictions: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    scores: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    p: float | None = None
    p_retrained: float | None = None
    reliability: list[dict[str, float]] = field(default_factory=list)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    regions: list[dict[str, Any]] = field(default_factory=list)


def run_classification(
    study: Study,
    column: str,
    *,
    out_dir: Path,
    map_kind: str = 'vbm_gm',
    fwhm: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train and cross-validate classifiers of a column on the maps of a study.

    Parameters
    ----------
    study : Study
        Sessions, their table and maps.
    column : str
        Column of ``participants.tsv`` or ``sessions.tsv``: text or a few whole numbers for
        classes, other numbers for a regression.
    out_dir : Path
        Folder of the results.
    map_kind, fwhm : str and float, optional
        Which maps, see :meth:`~bids_app.group.derivatives.Study.maps`.
    **options
        Fields of :class:`Options`.

    Returns
    -------
    dict
        See :func:`classify`.

    Raises
    ------
    UsageError
        If there is no such column, no map, or too few subjects and not ``force``.
    """
    choice = study.map_choice(map_kind, fwhm)
    if choice is None:
        raise UsageError(
            f'cannot classify by {column!r}: no session has maps {map_kind}'
            + (f' smoothed with {fwhm:g} mm' if fwhm else '')
            + ': run the participant level with --modules vbm'
        )
    reasons = {
        row: record.reason or 'no map'
        for row, record in enumerate(study.sessions)
        if record.status != 'done'
    }
    kind, width, space, res = choice
    return classify(
        study.table(),
        study.maps(map_kind, fwhm),
        column,
        Options(**options),
        out_dir=out_dir,
        reasons=reasons,
        facts={'kind': kind, 'fwhm': width, 'space': space, 'res': res},
    )


def classify(
    frame: pd.DataFrame,
    paths: Sequence[Path | None],
    column: str,
    options: Options,
    *,
    out_dir: Path,
    reasons: dict[int, str] | None = None,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and cross-validate classifiers of a column on maps, and write the results.

    Parameters
    ----------
    frame : DataFrame
        One row per session with ``participant_id``, ``session_id`` (optional) and the column.
    paths : sequence of Path or None
        Maps on one grid, one per row.
    column : str
        What is to be predicted.
    options : Options
    out_dir : Path
        Folder of the results.
    reasons : dict of int to str, optional
        Why rows have no map.
    facts : dict, optional
        ``kind``, ``fwhm``, ``space`` and ``res`` of the maps, for the cards of the models.

    Returns
    -------
    dict
        ``column``, ``task`` (classes or number), ``classes`` (subjects of each), ``n_subjects``,
        ``n_sessions``, ``excluded``, ``warning`` (why it means nothing; empty if it does),
        ``folds``, ``methods`` (for every model its scores with intervals, p-values, epochs,
        parameters), ``files``, ``models`` (folders), ``facts``, ``seconds``.
        :func:`bids_app.group.classify_results.summarise` makes a section of the page of it.

    Raises
    ------
    UsageError
        As :func:`run_classification`.
    """
    from bids_app.group.classify_results import write_results

    begin = time.perf_counter()
    unusable = {**check_maps(paths), **(reasons or {})}
    target = read_target(frame, column, unusable, task=options.task, force=options.force)
    if target.warning:
        LOGGER.warning('%s', target.warning)
    chosen = [Path(paths[row]) for row in target.rows]
    maps, grid = load_maps(chosen, options, facts or {})
    folds = make_folds(
        target.values, target.subjects, len(target.classes), folds=options.folds, seed=options.seed
    )
    LOGGER.info(
        'Classifying by %s: %d sessions of %d subjects, %d folds, maps of %s voxels',
        column, len(target.rows), len(set(target.subjects)), len(folds),
        'x'.join(map(str, maps.shape[1:])),
    )  # fmt: skip
    outcomes = cross_validate(maps, target, folds, options)
    explain(maps, target, folds, outcomes, grid, options)
    result = write_results(
        frame, target, folds, outcomes, grid, maps, options, facts or {}, Path(out_dir)
    )
    result['seconds'] = round(time.perf_counter() - begin, 1)
    return result


def load_maps(
    paths: Sequence[Path], options: Options, facts: dict[str, Any]
) -> tuple[np.ndarray, InputGrid]:
    """Read maps, average blocks of voxels and cut out the box of the tissue.

    Parameters
    ----------
    paths : sequence of Path
        Maps on one grid.
    options : Options
    facts : dict
        See :func:`classify`.

    Returns
    -------
    maps : ndarray of float16, shape (sessions, x, y, z)
        The box is that of a mean above a tenth of its maximum, with one voxel around it.
    grid : InputGrid
        What was done to them.
    """
    import nibabel as nib

    image = nib.load(paths[0])
    zooms = np.linalg.norm(image.affine[:3, :3], axis=0)
    factor = tuple(max(1, round(options.voxel_size / zoom)) for zoom in zooms)
    coarse = tuple(n // block for n, block in zip(image.shape, factor, strict=True))
    if min(coarse) < SMALLEST:
        raise UsageError(
            f'cannot classify: maps of {"x".join(map(str, image.shape))} voxels become '
            f'{"x".join(map(str, coarse))}, and {SMALLEST} on each axis are needed: '
            'make the maps with smaller voxels'
        )
    maps = np.empty((len(paths), *coarse), np.float16)
    with ThreadPoolExecutor(max(options.n_jobs, 1)) as pool:
        for row, data in enumerate(read_in_order(pool, paths, options.n_jobs)):
            if isinstance(data, str):
                raise UsageError(f'cannot classify: {data}: process this session again')
            maps[row] = shrink(data, factor)
    mean = maps.mean(axis=0, dtype=np.float32)
    box = bounding_box(mean > 0.1 * mean.max(), margin=1)
    box = tuple(_widen(side, size) for side, size in zip(box, coarse, strict=True))
    grid = InputGrid(
        facts.get('kind', ''),
        facts.get('space', ''),
        facts.get('res', ''),
        float(facts.get('fwhm', 0)),
        tuple(image.shape),
        tuple(tuple(float(v) for v in row) for row in image.affine),
        factor,
        tuple((side.start, side.stop) for side in box),
    )
    return np.ascontiguousarray(maps[(slice(None), *box)]), grid


def _widen(side: slice, size: int) -> slice:
    """Make a side of the box as long as the networks need."""
    missing = max(0, SMALLEST - (side.stop - side.start))
    start = max(0, min(side.start - missing // 2, size - SMALLEST))
    return slice(start, max(side.stop, start + SMALLEST)) if missing else side


def network_arguments(method: str, shape: Sequence[int], outputs: int) -> dict[str, Any]:
    """Return the arguments of the PIF network or its baseline for maps of some shape."""
    from bids_app.networks.pif import compact

    pool = 3 if min(shape) >= 36 else 2
    return compact(shape, pif=method == 'pif', pool=pool, out_features=outputs)


def cross_validate(
    maps: np.ndarray, target: Target, folds: list[Fold], options: Options
) -> dict[str, Outcome]:
    """Train every model on every fold and score what it says of the rest.

    Parameters
    ----------
    maps : ndarray, shape (sessions, x, y, z)
    target : Target
    folds : list of Fold
    options : Options

    Returns
    -------
    dict of str to Outcome
        By method.
    """
    from bids_app.group.classifier_linear import project, train_linear
    from bids_app.group.classifier_training import train_network

    classes = len(target.classes)
    outcomes = {method: Outcome(method) for method in options.methods}
    projections: list[Projection] = []
    for outcome in outcomes.values():
        outcome.predictions = np.zeros((len(target.values), classes or 1))
    for number, fold in enumerate(folds):
        for method, outcome in outcomes.items():
            if method in ('linear', 'total'):
                projection = project(
                    maps, fold.train, outputs=target.n_outputs, total_only=method == 'total'
                )
                if method == 'linear':
                    projections.append(projection)
                trained = train_linear(projection, maps, target.values, fold, classes)
            else:
                trained = train_network(
                    'ConvClassifier3D',
                    network_arguments(method, maps.shape[1:], target.n_outputs),
                    maps, target.values, fold.train, fold.validation, classes,
                    settings=options.training, seed=1000 * options.seed + number,
                    device=options.device,
                )  # fmt: skip
                LOGGER.info(
                    'Fold %d of %d: %s, stopped after %d epochs',
                    number + 1, len(folds), METHODS[method], trained.epochs,
                )  # fmt: skip
            outcome.trained.append(trained)
            outcome.predictions[fold.test] = trained.predict(maps, fold.test, options.device)
            trained.network.cpu()
    for outcome in outcomes.values():
        _score(outcome, target, options)
    if projections and options.n_permutations:
        outcomes['linear'].p_retrained = _retrained_p(projections, target, folds, options)
    return outcomes


def _score(outcome: Outcome, target: Target, options: Options) -> None:
    classes = len(target.classes)
    units = scoring.by_subject(target.subjects, target.values, outcome.predictions, classes)
    outcome.scores = scoring.scores(units)
    outcome.intervals = scoring.intervals(units, seed=options.seed)
    if options.n_permutations:
        outcome.p = scoring.permutation_p(units, options.n_permutations, options.seed)
    if classes:
        outcome.reliability = scoring.reliability(units.values, units.predictions)


def _retrained_p(
    projections: list[Projection], target: Target, folds: list[Fold], options: Options
) -> float:
    """Test the whole procedure of the linear model: training is repeated for permuted values."""
    from bids_app.group.classifier_linear import retrained_null

    classes = len(target.classes)
    names, first, inverse = np.unique(target.subjects, return_index=True, return_inverse=True)
    # Values move between subjects, with one value for each.
    values = target.values[first]
    rng = np.random.default_rng(options.seed)
    orders = [np.arange(len(names))]
    orders += [rng.permutation(len(names)) for _ in range(min(RETRAINED, options.n_permutations))]
    best = scoring.headline(classes)

    def score(truth: np.ndarray, predictions: np.ndarray) -> float:
        units = scoring.by_subject(target.subjects, truth, predictions, classes)
        if classes:
            return scoring.balanced_accuracy(units.values, units.predictions.argmax(axis=1))
        return -scoring.scores(units)[best]

    permuted = np.stack([values[order][inverse] for order in orders])
    found = retrained_null(projections, folds, permuted, classes, score)
    return scoring.p_value(found[0], found[1:])


def explain(
    maps: np.ndarray,
    target: Target,
    folds: list[Fold],
    outcomes: dict[str, Outcome],
    grid: InputGrid,
    options: Options,
) -> None:
    """Add maps of importance and the table of regions to the outcomes.

    The networks are asked about sessions that they were not trained on, at most
    :data:`OCCLUDED_SESSIONS` in all. The map of the linear model is its weight per standard
    deviation of a voxel, averaged over folds (for several outputs their norm).
    """
    from bids_app.group.importance import gradient_times_input, occlusion, paint
    from bids_app.networks.pif import ConvClassifier3D

    shape = maps.shape[1:]
    boxes = ConvClassifier3D(**network_arguments('pif', shape, 1)).patch_boxes()
    rng = np.random.default_rng(options.seed)
    share = max(1, OCCLUDED_SESSIONS // len(folds))
    asked = [
        fold.test if len(fold.test) <= share
        else np.sort(rng.choice(fold.test, share, replace=False))
        for fold in folds
    ]  # fmt: skip
    for method, outcome in outcomes.items():
        if method == 'linear':
            weights = [t.network.head.weight.numpy() for t in outcome.trained]
            mean = np.mean(weights, axis=0)
            one = mean[0] if len(mean) == 1 else np.linalg.norm(mean, axis=0)
            outcome.maps['weight'] = one.reshape(shape).astype(np.float32)
        elif method != 'total':
            pairs = list(zip(outcome.trained, asked, strict=True))
            rises = np.array(
                [occlusion(t, maps, target.values, some, boxes, options.device)
                 for t, some in pairs]
            )  # fmt: skip
            outcome.maps['occlusion'] = paint(rises.mean(axis=0), boxes, shape)
            outcome.maps['gradient'] = np.mean(
                [gradient_times_input(t, maps, some, options.device) for t, some in pairs], axis=0
            )
            outcome.regions = _regions(rises, boxes, grid)


def _regions(rises: np.ndarray, boxes: Sequence[tuple], grid: InputGrid) -> list[dict[str, Any]]:
    """Describe the regions, the most important first."""
    rows = []
    for number, box in enumerate(boxes):
        middle = np.array([(side.start + side.stop - 1) / 2 for side in box])
        centre = grid.input_affine[:3, :3] @ middle + grid.input_affine[:3, 3]
        sizes = np.array([side.stop - side.start for side in box])
        rows.append(
            {
                **{axis: round(float(mm), 1) for axis, mm in zip('xyz', centre, strict=True)},
                'size': 'x'.join(
                    f'{mm:.0f}' for mm in sizes * np.linalg.norm(grid.input_affine[:3, :3], axis=0)
                ),
                'importance': float(rises[:, number].mean()),
                'sd': float(rises[:, number].std(ddof=1)),
            }
        )
    return sorted(rows, key=lambda row: -row['importance'])
