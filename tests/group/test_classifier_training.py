# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from bids_app.group.classifier_linear import project, retrained_null, train_linear
from bids_app.group.classifier_training import (
    Task,
    Trained,
    TrainingSettings,
    calibrate,
    set_standardise,
    train_network,
)
from bids_app.group.folds import Fold
from bids_app.group.importance import gradient_times_input, occlusion, paint
from bids_app.group.scores import balanced_accuracy
from bids_app.networks.pif import (
    ConvClassifier3D,
    LinearClassifier3D,
    Standardise,
    compact,
    parameter_count,
)

SHAPE = (24, 24, 24)
PLACE = (slice(3, 9), slice(14, 20), slice(12, 18))
TINY = {
    'shape': list(SHAPE), 'widths': [4, 4], 'pools': [[1, 2, 2, 0]], 'hidden': 8,
    'pif': {'out_channels': 2, 'overlap': 'half'}, 'standardise': True, 'dropout': 0.1,
}  # fmt: skip


def cohort(number, seed=0, effect=0.25):
    """Grey ball with noise; the second class has less at PLACE."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(np.indices(SHAPE) - 11.5, axis=0).max() * 0.7
    inside = np.linalg.norm(np.indices(SHAPE) - 11.5, axis=0) < radius
    values = np.arange(number) % 2
    maps = inside * (0.6 + 0.1 * rng.standard_normal((number, *SHAPE)))
    maps *= 1 + 0.05 * rng.standard_normal((number, 1, 1, 1))
    maps[values == 1, PLACE[0], PLACE[1], PLACE[2]] *= 1 - effect
    return maps.astype(np.float16), values


def split(number):
    rows = np.arange(number)
    third = number // 3
    return Fold(rows[: number - 2 * third], rows[-2 * third : -third], rows[-third:])


@pytest.fixture(scope='module')
def trained():
    maps, values = cohort(60)
    fold = split(60)
    settings = TrainingSettings(epochs=12, ignore_steps=0, learning_rate=2e-3)
    model = train_network(
        'ConvClassifier3D', TINY, maps, values, fold.train, fold.validation, 2, settings=settings
    )
    return model, maps, values, fold


def test_network_finds_a_planted_effect(trained):
    model, maps, values, fold = trained
    guesses = model.predict(maps, fold.test).argmax(axis=1)
    assert balanced_accuracy(values[fold.test], guesses) > 0.9
    assert 0 < model.best_epoch <= model.epochs <= 12


def test_importance_is_where_the_effect_is(trained):
    model, maps, values, fold = trained
    boxes = ConvClassifier3D(**TINY).patch_boxes()
    rises = occlusion(model, maps, values, fold.test, boxes)
    best = boxes[int(rises.argmax())]
    middle = [(side.start + side.stop - 1) / 2 for side in PLACE]
    assert all(side.start <= point < side.stop for side, point in zip(best, middle, strict=True))
    painted = paint(rises, boxes, SHAPE)
    assert painted[PLACE].mean() > painted.mean()
    gradient = gradient_times_input(model, maps, fold.test)
    assert gradient[PLACE].mean() > 2 * gradient[gradient > 0].mean()


def test_the_seed_decides_everything():
    maps, values = cohort(18)
    fold = split(18)
    settings = TrainingSettings(epochs=2, ignore=0, ignore_steps=0)
    before = torch.random.get_rng_state()
    states = [
        train_network(
            'ConvClassifier3D', TINY, maps, values, fold.train, fold.validation, 2,
            settings=settings, seed=seed,
        ).network.state_dict()
        for seed in (4, 4, 5)
    ]  # fmt: skip
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_the_weights_of_the_lowest_validation_loss_are_kept():
    maps, values = cohort(24)
    fold = split(24)
    long = TrainingSettings(epochs=30, patience=3, ignore=1, ignore_steps=0, learning_rate=1e-2)
    model = train_network(
        'ConvClassifier3D', TINY, maps, values, fold.train, fold.validation, 2, settings=long
    )
    assert model.epochs in (30, model.best_epoch + 3)
    short = TrainingSettings(
        epochs=model.best_epoch, patience=99, ignore=1, ignore_steps=0, learning_rate=1e-2
    )
    again = train_network(
        'ConvClassifier3D', TINY, maps, values, fold.train, fold.validation, 2, settings=short
    )
    assert again.best_epoch == model.best_epoch
    torch.testing.assert_close(
        again.network.state_dict(), model.network.state_dict(), rtol=0, atol=0
    )


def test_three_classes_and_numbers_have_their_outputs():
    maps, values = cohort(18)
    fold = split(18)
    settings = TrainingSettings(epochs=1, ignore=0, ignore_steps=0)
    three = train_network(
        'ConvClassifier3D', compact(SHAPE, pif=False, pool=2, out_features=3), maps,
        np.arange(18) % 3, fold.train, fold.validation, 3, settings=settings,
    )  # fmt: skip
    chance = three.predict(maps, fold.test)
    assert chance.shape == (6, 3)
    np.testing.assert_allclose(chance.sum(axis=1), 1)
    ages = np.linspace(20, 80, 18)
    number = train_network(
        'ConvClassifier3D', TINY, maps, ages, fold.train, fold.validation, 0, settings=settings
    )
    assert number.task.mean == pytest.approx(ages[fold.train].mean())
    assert number.predict(maps, fold.test).shape == (6, 1)
    assert number.error_sd > 0


def test_temperature_undoes_logits_that_are_too_large():
    rng = np.random.default_rng(0)
    values = np.arange(4000) % 2
    logits = torch.from_numpy(rng.standard_normal(4000) + values - 0.5)[:, None]
    model = Trained('LinearClassifier3D', {}, LinearClassifier3D((2, 2, 2)), Task(2))
    calibrate(model, 3 * logits, values)
    assert model.temperature == pytest.approx(3, rel=0.1)


def test_standardising_uses_the_training_scans_alone():
    maps, _ = cohort(12)
    layer = Standardise(SHAPE)
    train = np.arange(8)
    set_standardise(layer, maps, train)
    some = maps[train].astype(np.float64)
    np.testing.assert_allclose(layer.mean, some.mean(0), atol=1e-5)
    inside = some.mean(0) > 0.1 * some.mean(0).max()
    assert (layer.scale.numpy()[~inside] == 0).all()
    sd = some.std(0)
    np.testing.assert_allclose(
        layer.scale.numpy()[inside],
        1 / np.maximum(sd, np.median(sd[inside]))[inside],
        rtol=1e-3,
    )


def test_linear_model_equals_principal_components_and_logistic_regression():
    maps, values = cohort(40, effect=0.05)
    rows = np.arange(40)
    fold = Fold(rows[:30], rows[:0], rows[30:])
    projection = project(maps, fold.train, outputs=1)
    model = train_linear(projection, maps, values, fold, 2)
    layer = projection.network.standardise
    x = ((maps.astype(np.float32) - layer.mean.numpy()) * layer.scale.numpy()).reshape(40, -1)
    pca = PCA(29, svd_solver='full').fit(x[:30])
    scores = pca.transform(x)
    scores /= scores[:30, 0].std()
    reference = LogisticRegression(C=0.1, class_weight='balanced', max_iter=500)
    reference.fit(scores[:30], values[:30])
    np.testing.assert_allclose(
        model.outputs(maps, fold.test)[:, 0],
        reference.decision_function(scores[30:]),
        atol=2e-3,
    )


def test_total_knows_the_size_and_nothing_else():
    maps, values = cohort(60, effect=0)
    maps[values == 1] *= 0.8
    fold = split(60)
    model = train_linear(project(maps, fold.train, outputs=1, total_only=True), maps, values,
                         fold, 2)  # fmt: skip
    assert balanced_accuracy(values[fold.test], model.predict(maps, fold.test).argmax(1)) > 0.9
    assert len(set(model.network.head.weight.flatten().tolist())) == 1


def test_linear_regression_of_a_number():
    maps, _ = cohort(60, effect=0)
    ages = np.random.default_rng(1).uniform(20, 80, 60)
    maps[:, PLACE[0], PLACE[1], PLACE[2]] *= (1.3 - 0.01 * ages)[:, None, None, None]
    fold = split(60)
    model = train_linear(project(maps, fold.train, outputs=1), maps, ages, fold, 0)
    predicted = model.predict(maps, fold.test)[:, 0]
    assert np.corrcoef(predicted, ages[fold.test])[0, 1] > 0.9
    error = np.sqrt(np.mean((predicted - ages[fold.test]) ** 2))
    assert model.error_sd == pytest.approx(error, rel=0.5)


def test_retrained_null_repeats_the_true_result_and_is_around_chance():
    maps, values = cohort(40)
    fold = split(40)
    projection = project(maps, fold.train, outputs=1)
    rng = np.random.default_rng(0)
    permuted = np.stack([values, *(rng.permutation(values) for _ in range(20))])

    def score(truth, predictions):
        return balanced_accuracy(truth[fold.test], predictions[fold.test].argmax(axis=1))

    found = retrained_null([projection], [fold], permuted, 2, score)
    model = train_linear(projection, maps, values, fold, 2)
    assert found[0] == score(values, np.stack([model.predict(maps, np.arange(40))])[0])
    assert found[0] > 0.9
    assert 0.35 < found[1:].mean() < 0.65


def test_parameters_are_counted():
    model = LinearClassifier3D((3, 4, 5))
    assert Trained('LinearClassifier3D', {}, model, Task(2)).parameters == 61
    assert parameter_count(model) == 61
