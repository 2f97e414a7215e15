# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.bids.choice import difference, rank, unsuitable


@pytest.mark.parametrize(
    ('entities', 'word'),
    [
        ({'part': 'phase'}, 'part-phase'),
        ({'part': 'imag'}, 'part-imag'),
        ({'chunk': '1'}, 'chunk-1'),
        ({'inv': '2'}, 'inv-2'),
        ({'acquisition': 'INV1'}, 'acq-INV1'),
        ({'acquisition': 'mp2rageINV2'}, 'inversion'),
        ({'acquisition': 'localizer'}, 'localiser'),
        ({'acquisition': 'AAHeadScout'}, 'localiser'),
        ({'acquisition': 'survey'}, 'localiser'),
        ({'acquisition': 'loc'}, 'localiser'),
        ({'reconstruction': 'scout'}, 'localiser'),
    ],
)
def test_images_that_are_no_whole_head_are_ruled_out(entities, word):
    assert word in unsuitable({'suffix': 'T1w', **entities})


@pytest.mark.parametrize(
    'entities',
    [
        {},
        {'part': 'mag'},
        {'acquisition': 'mprage'},
        {'acquisition': 'highres'},
        {'acquisition': 'global'},
        {'reconstruction': 'norm'},
    ],
)
def test_other_images_are_not_ruled_out(entities):
    assert unsuitable({'suffix': 'T1w', **entities}) is None


def test_an_entity_named_by_the_user_rules_nothing_out():
    assert unsuitable({'suffix': 'T1w', 'acquisition': 'loc'}, asked=['acquisition']) is None


@pytest.mark.parametrize(
    ('first', 'second', 'reason'),
    [
        ({'suffix': 'T1w', 'run': '2'}, {'suffix': 'UNIT1'}, 'UNIT1'),
        ({}, {'ceagent': 'gad'}, 'contrast agent'),
        ({'task': 'still'}, {'task': 'nodding'}, 'at rest'),
        ({}, {'acquisition': 'mprage'}, 'special acquisition'),
        ({'acquisition': 'mprage'}, {'acquisition': 'foo'}, 'special acquisition'),
        ({'acquisition': 'foo'}, {'acquisition': 't1tirm'}, 'special acquisition'),
        ({'reconstruction': 'norm'}, {'reconstruction': 'nonorm'}, 'reconstruction'),
        ({'reconstruction': 'norm'}, {'reconstruction': 'unnormalized'}, 'reconstruction'),
        ({}, {'reconstruction': 'nonorm'}, 'reconstruction'),
        ({}, {'part': 'mag'}, 'complex'),
        ({}, {'echo': '1'}, 'echo'),
        ({'run': '2'}, {'run': '10'}, 'run'),
    ],
)
def test_rank_prefers_the_first_and_says_why(first, second, reason):
    better, worse = rank(first, 'z'), rank(second, 'a')
    assert better < worse
    assert reason in difference(better, worse)


def test_equal_images_are_ordered_by_name():
    assert difference(rank({}, 'a'), rank({}, 'b')) == 'later in the alphabet'
