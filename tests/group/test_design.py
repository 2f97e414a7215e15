# SPDX-License-Identifier: Apache-2.0
"""Design matrices and contrasts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_app.errors import UsageError
from bids_app.group.design import contrast_label, make_contrast, make_design


def _table(n: int = 24, **columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            'participant_id': [f'sub-{number:02d}' for number in range(n)],
            'group': [('patient', 'control', 'other')[number % 3] for number in range(n)],
            'sex': ['FM'[number // 3 % 2] for number in range(n)],
            'site': [float(number // 2 % 3) for number in range(n)],
            'age': rng.uniform(20, 80, n),
            'tiv': rng.normal(1.5e6, 1e5, n),
            **columns,
        }
    )


def test_columns_are_those_of_the_formula():
    """Factors are coded against their first level, numbers enter as they are."""
    table = _table()
    design = make_design(table, '~ group + age + C(site)')
    assert design.columns == (
        'Intercept', 'group[T.other]', 'group[T.patient]', 'age', 'C(site)[T.1]', 'C(site)[T.2]',
    )  # fmt: skip
    assert np.array_equal(design.matrix[:, 2], (table['group'] == 'patient').astype(float))
    assert np.array_equal(design.matrix[:, 3], table['age'])
    assert design.variables == ('age', 'group', 'site')
    assert set(design.references) == {'group[T.control]', 'C(site)[T.0]'}
    assert design.degrees_of_freedom == 18


def test_rows_without_a_value_are_dropped_with_the_reason():
    """Only columns of the formula count; text n/a is missing too."""
    table = _table()
    table.loc[3, 'age'] = np.nan
    table.loc[5, ['age', 'sex']] = [np.nan, 'n/a']
    table.loc[7, 'tiv'] = np.nan
    design = make_design(table, '~ age + sex')
    assert design.dropped == {3: 'no value for age', 5: 'no value for age, sex'}
    assert len(design.matrix) == 22
    assert 7 in design.kept
    assert design.columns == ('Intercept', 'age', 'sex[T.M]')


@pytest.mark.parametrize(
    ('formula', 'message'),
    [
        ('~ group + iq', "'iq'.*there are: participant_id, group"),
        ('~ group +', 'cannot read the model'),
        ('age ~ group', 'only the right side'),
        ('~ age + scanner', "'scanner' has the same value"),
        ('~ age + I(2 * age)', r'depend on each other \(age, I\(2 \* age\)\)'),
        ('~ age + center(iq)', "uses 'iq'"),
        ('~ 1', 'no column to test'),
        ('~ participant_id', 'too few.*is text with 24 values'),
        ('~ age.nothing()', 'cannot evaluate the model'),
        ('~ age + I(0 * age + 5)', r'I\(0 \* age \+ 5\) of .* is constant'),
        ('~ np.log(age - 50)', 'not finite'),
    ],
)
def test_designs_that_mean_nothing_are_refused_in_one_line(formula, message):
    """Unknown, constant and dependent columns, broken formulas, too few sessions."""
    with pytest.raises(UsageError, match=message) as caught, np.errstate(invalid='ignore'):
        make_design(_table(scanner='a'), formula)
    assert '\n' not in str(caught.value)
    assert '\x1b' not in str(caught.value)


@pytest.mark.parametrize(
    ('formula', 'columns', 'contrast'),
    [
        ('~ center(age)', ('center(age)',), 'center(age)'),
        ('~ poly(age, 2)', ('poly(age, 2)[1]', 'poly(age, 2)[2]'), 'poly(age, 2)'),
        ('~ np.log(age)', ('np.log(age)',), 'np.log(age)'),
        ('~ I(age ** 2)', ('I(age ** 2)',), 'I(age ** 2)'),
        ('~ center(`my age`)', ('center(`my age`)',), 'center(`my age`)'),
        (
            '~ C(sex, contr.treatment("M"))', ("C(sex, contr.treatment('M'))[T.F]",),
            'C(sex, contr.treatment("M"))[T.F] - C(sex, contr.treatment("M"))[T.M]',
        ),
    ],
)  # fmt: skip
def test_functions_of_columns(formula, columns, contrast):
    """Their columns are found inside, and can be tested under the name that they have."""
    table = _table()
    table['my age'] = table['age']
    table.loc[0, ['age', 'my age', 'sex']] = [np.nan, np.nan, None]
    design = make_design(table, formula)
    assert design.columns == ('Intercept', *columns)
    assert list(design.dropped) == [0]
    tested = make_contrast(contrast, design)
    assert np.array_equal(tested.weights, np.eye(len(columns) + 1)[1:])


def test_too_few_sessions():
    """At least one degree of freedom more than a perfect fit."""
    table = _table(4)
    with pytest.raises(UsageError, match=r'4 sessions are too few for the 3 columns'):
        make_design(table, '~ age + tiv')
    assert make_design(_table(5), '~ age + tiv').degrees_of_freedom == 2


def test_a_column_constant_after_dropping_rows_is_refused():
    """What counts is what is left."""
    table = _table(age=[1.0] * 22 + [np.nan, 5.0])
    table.loc[23, 'tiv'] = np.nan
    with pytest.raises(UsageError, match="'age' has the same value"):
        make_design(table, '~ age + tiv')


@pytest.mark.parametrize(
    ('text', 'weights'),
    [
        ('age', [[0, 0, 0, 1, 0, 0]]),
        ('-age', [[0, 0, 0, -1, 0, 0]]),
        ('group[T.patient] - group[T.other]', [[0, -1, 1, 0, 0, 0]]),
        ('group[T.patient] - group[T.control]', [[0, 0, 1, 0, 0, 0]]),
        ('0.5 * group[T.patient] + 0.5*group[T.other]', [[0, 0.5, 0.5, 0, 0, 0]]),
        ('group[T.patient], age', [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]),
        ('group', [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]),
        ('C(sex)[T.M]', [[0, 0, 0, 0, 1, 0]]),
        ('C(sex)', [[0, 0, 0, 0, 1, 0]]),
        ('C(sex)[T.M]:age - age', [[0, 0, 0, -1, 0, 1]]),
    ],
)
def test_contrasts_by_name(text, weights):
    """Names of columns with weights; the reference level counts as zero."""
    design = make_design(_table(), '~ group + age + C(sex) + C(sex):age')
    assert np.array_equal(make_contrast(text, design).weights, np.array(weights, float))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('ages', 'cannot read the contrast'),
        ('group[T.nobody]', 'cannot read the contrast'),
        ('age = 3', 'cannot read the contrast'),
        ('', 'cannot read the contrast'),
        ('age - age', 'compares nothing'),
        ('group[T.control]', 'compares nothing'),
        ('age, 2 * age', 'depend on each other'),
    ],
)
def test_contrasts_that_cannot_be(text, message):
    """The message names the columns that there are."""
    design = make_design(_table(), '~ group + age')
    with pytest.raises(UsageError, match=message) as caught:
        make_contrast(text, design)
    assert 'group[T.patient]' in str(caught.value)


def test_differences_of_groups_are_told_from_slopes():
    """Cohen's d is for the former."""
    design = make_design(_table(), '~ group + age')
    assert design.compares_levels(make_contrast('group[T.patient] - group[T.other]', design))
    assert not design.compares_levels(make_contrast('age', design))


def test_labels_fit_into_file_names():
    """Letters and digits only."""
    assert contrast_label('C(site)[T.2]:age') == 'site2Age'
    assert contrast_label('a, b') == 'aAndB'
    assert contrast_label('-').isalnum()
