# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from bids_app.group.folds import deal, make_folds


def subjects(number, sessions=1):
    return np.repeat([f'sub-{i:03d}' for i in range(number)], sessions)


def test_classes_are_spread_evenly():
    values = np.array([0] * 33 + [1] * 17)
    fold = deal(values, subjects(50), 2, 5, seed=3)
    for code in (0, 1):
        counts = np.bincount(fold[values == code], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert set(np.bincount(fold)) == {10}


def test_neighbours_in_age_go_to_different_folds():
    ages = np.random.default_rng(0).uniform(20, 80, 40)
    fold = deal(ages, subjects(40), 0, 5, seed=1)
    order = np.argsort(ages)
    for start in range(0, 40, 5):
        assert sorted(fold[order[start : start + 5]]) == [0, 1, 2, 3, 4]


def test_a_subject_is_in_one_part_alone():
    rng = np.random.default_rng(0)
    names = rng.permutation(np.concatenate([subjects(30, 2), subjects(12)]))
    values = np.array([int(name[-1]) % 2 for name in names])
    tested = []
    for fold in make_folds(values, names, 2, seed=2):
        parts = [set(names[part]) for part in (fold.train, fold.validation, fold.test)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert set.union(*parts) == set(names)
        assert len(fold.validation)
        for part in (fold.train, fold.validation, fold.test):
            assert set(values[part]) == {0, 1}
        tested.extend(fold.test)
    assert sorted(tested) == list(range(len(names)))


def test_small_classes_mean_fewer_folds_and_no_validation():
    values = np.array([0, 0, 0, 0, 1, 1])
    folds = make_folds(values, subjects(6), 2, folds=5)
    assert len(folds) == 2
    assert all(len(fold.validation) == 0 and set(values[fold.train]) == {0, 1} for fold in folds)


@pytest.mark.parametrize('classes', [0, 3])
def test_the_seed_decides(classes):
    values = np.arange(60) % 3
    one, same, other = (deal(values, subjects(60), classes, 5, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
