# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from bids_app.data import kinds, structures, tissues
from bids_app.inference.classes import (
    CLASSES,
    class_table,
    output_values,
    side_table,
    sided_classes,
)

CORE_LEFT = [2, 3, 4, 7, 8, 10, 11, 12, 13, 17, 18]
CORE_RIGHT = [41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54]


def test_the_25_structures_carry_freesurfer_numbers():
    core = [s for s in structures() if s.core]
    assert sorted(s.index for s in core) == sorted([14, 15, 16, *CORE_LEFT, *CORE_RIGHT])
    assert [s.index for s in core if s.side == 'left'] == CORE_LEFT
    assert [s.index for s in core if s.side == 'right'] == CORE_RIGHT


def test_left_and_right_of_a_kind_share_tissue_and_name():
    pairs = {}
    for structure in structures():
        pairs.setdefault(structure.kind, []).append(structure)
    for pair in pairs.values():
        assert len({s.tissue for s in pair}) == 1
        if len(pair) == 2:
            assert {s.name.replace('Left-', '').replace('Right-', '') for s in pair} == {
                pair[0].name.replace('Left-', '')
            }


def test_tissue_numbers():
    assert [(t.index, t.name) for t in tissues()] == [(1, 'GM'), (2, 'WM'), (3, 'CSF')]


def test_class_side_and_value_agree_for_every_structure():
    classes, sides, values = class_table(), side_table(), output_values()
    for structure in structures():
        number = classes[structure.index]
        assert CLASSES[number] == structure.kind
        column = 1 if sides[structure.index] > 0 else 0
        assert values[number, column] == structure.index


def test_midline_structures_have_no_side():
    sided = sided_classes()
    for name in ('background', 'third-ventricle', 'fourth-ventricle', 'brain-stem', 'csf'):
        assert not sided[CLASSES.index(name)]
    assert sided.sum() == len(CLASSES) - 5
    assert len(CLASSES) == len(kinds()) + 1
    assert np.all(output_values()[1:] > 0)


def test_tissues_outside_the_brain_are_background():
    assert not class_table()[500:600].any()
