# SPDX-License-Identifier: Apache-2.0
"""Design matrices from a formula, and contrasts by the names of their columns.

The formula is that of `formulaic <https://matthewwardrop.github.io/formulaic>`_, the notation of
R and patsy: ``~ group + age + C(sex) + tiv``. Everything that would make the result meaningless
(a column that is constant, a combination of others, too few sessions) is an error in one line.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

_MISSING = {'', 'n/a', 'N/A', 'nan', 'NaN', 'NA'}


@dataclass(frozen=True)
class Contrast:
    """A hypothesis about the coefficients of a design.

    Attributes
    ----------
    name : str
        As the user wrote it.
    label : str
        Letters and digits only, for file names.
    weights : numpy.ndarray, shape (k, columns)
        One row for a t test, more for an F test of all rows at once.
    """

    name: str
    label: str
    weights: np.ndarray

    @property
    def is_t(self) -> bool:
        """Whether it is a single comparison with a sign."""
        return len(self.weights) == 1


@dataclass(frozen=True)
class Design:
    """A design matrix.

    Attributes
    ----------
    formula : str
        What it was made from.
    matrix : numpy.ndarray of float64, shape (sessions, columns)
        One row per session in the order of ``kept``.
    columns : tuple of str
        Names of the columns, such as ``group[T.patient]``.
    kept : numpy.ndarray of int, shape (sessions,)
        Rows of the table that the design holds.
    dropped : dict of int to str
        Why each other row was left out.
    variables : tuple of str
        Columns of the table that the formula uses, sorted.
    terms : dict of str to tuple of str
        The columns of every term, such as ``group``.
    references : tuple of str
        Names that a column of the level that the others are compared with would have: the
        effect of that level is zero.
    dummies : tuple of str
        Columns that tell the levels of a factor apart.
    """

    formula: str
    matrix: np.ndarray
    columns: tuple[str, ...]
    kept: np.ndarray
    dropped: dict[int, str]
    variables: tuple[str, ...]
    terms: dict[str, tuple[str, ...]]
    references: tuple[str, ...]
    dummies: tuple[str, ...]

    @property
    def degrees_of_freedom(self) -> int:
        """Sessions less columns (the matrix has full rank)."""
        return len(self.matrix) - len(self.columns)

    def compares_levels(self, contrast: Contrast) -> bool:
        """Whether a contrast involves only columns of factors: a difference between groups."""
        used = np.flatnonzero(contrast.weights.any(0))
        return all(self.columns[column] in self.dummies for column in used)


def formula_variables(formula: str) -> tuple[str, ...]:
    """Return the columns that a formula needs, sorted.

    Raises
    ------
    UsageError
        If it cannot be read, or names a response: the maps are the response.
    """
    from formulaic.parser.types import Factor
    from formulaic.transforms import TRANSFORMS

    names = set()
    # formulaic's own list leaves out what is inside of center(), poly() and their like
    for factor in {factor for term in _parse(formula) for factor in term.factors}:
        if factor.eval_method is Factor.EvalMethod.LOOKUP:
            names.add(factor.expr)
        elif factor.eval_method is Factor.EvalMethod.PYTHON:
            names.update(re.findall(r'`([^`]*)`', factor.expr))
            code = ast.parse(re.sub(r'`[^`]*`', '0', factor.expr), mode='eval')
            calls = {id(node.func) for node in ast.walk(code) if isinstance(node, ast.Call)}
            names.update(
                node.id
                for node in ast.walk(code)
                if isinstance(node, ast.Name)
                and id(node) not in calls
                and node.id not in TRANSFORMS
            )
    return tuple(sorted(names))


def make_design(table: pd.DataFrame, formula: str) -> Design:
    """Build the design matrix of a formula over the columns of a table.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per session; missing values are NaN, None or ``n/a``.
    formula : str
        Right-hand side, for instance ``~ group + age + C(sex) + tiv``. Text columns are factors;
        ``C(column)`` makes a factor of numbers.

    Returns
    -------
    Design
        Rows with a missing value in a column that the formula uses are left out, with the reason.

    Raises
    ------
    UsageError
        For a formula that cannot be read or evaluated, an unknown or constant column, columns
        that depend on each other, or too few sessions.
    """
    parsed = _parse(formula)
    variables = formula_variables(formula)
    unknown = [name for name in variables if name not in table.columns]
    if unknown:
        raise UsageError(
            f'the model "{formula}" uses {", ".join(map(repr, unknown))}, which no table has; '
            f'there are: {", ".join(map(str, table.columns))}'
        )
    if not variables:
        raise UsageError(f'the model "{formula}" has no column to test, such as "~ age"')
    values = table[list(variables)].reset_index(drop=True)
    missing = values.isna() | values.map(lambda value: str(value).strip() in _MISSING)
    dropped = {
        row: f'no value for {", ".join(names)}'
        for row in range(len(values))
        if (names := [name for name in variables if missing.loc[row, name]])
    }
    kept = np.array([row for row in range(len(values)) if row not in dropped], dtype=int)
    if not len(kept):
        raise UsageError(
            f'no session has values for all of {", ".join(variables)}'
            if len(values) else 'there is no session to model'
        )  # fmt: skip
    data = _typed(values.iloc[kept].reset_index(drop=True))
    for name in variables:
        if data[name].nunique() < 2:
            raise UsageError(
                f'column {name!r} has the same value ({data[name].iloc[0]}) in all {len(kept)} '
                f'sessions that have values for the model: leave it out of "{formula}"'
            )
    matrix, spec = _evaluate(parsed, data, formula)
    columns = tuple(map(str, matrix.columns))
    terms = {str(part.term): tuple(map(str, part.columns)) for part in spec.structure}
    references, dummies = _levels(spec)
    design = Design(
        formula=formula,
        matrix=matrix.to_numpy(dtype=float),
        columns=columns,
        kept=kept,
        dropped=dropped,
        variables=variables,
        terms=terms,
        references=references,
        dummies=dummies,
    )
    _check(design, data)
    return design


def make_contrast(text: str, design: Design) -> Contrast:
    """Read a contrast such as ``age``, ``group[T.a] - group[T.b]`` or ``group[T.a], group[T.b]``.

    Parameters
    ----------
    text : str
        A sum of columns with weights; several of them, separated by commas, or the name of a
        term with several columns make an F test. The level of a factor that has no column of its
        own (the reference) counts as zero.
    design : Design
        Gives the names.

    Raises
    ------
    UsageError
        If a name is unknown, nothing is compared, or the rows depend on each other.
    """
    from formulaic.errors import FormulaicError
    from formulaic.utils.constraints import LinearConstraints

    expanded = text.strip().replace('"', "'")  # as the names of the columns are written
    if expanded in design.terms:
        expanded = ', '.join(design.terms[expanded])
    names = [*design.columns, *design.references]
    # Names may hold characters that are operators elsewhere (brackets, colons): they are replaced
    # by plain words, the longest first, before the arithmetic is read.
    words = {name: f'column_{number}' for number, name in enumerate(names)}
    pattern = '|'.join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    plain = re.sub(
        rf'(?<![\w.\]])(?:{pattern})(?![\w\[(])', lambda found: words[found[0]], expanded
    )
    known = f'the columns of "{design.formula}" are: {", ".join(design.columns)}'
    if '=' in plain or not plain.strip():
        raise UsageError(f'cannot read the contrast "{text}"; {known}')
    try:
        weights = LinearConstraints.from_spec(
            plain, variable_names=list(words.values())
        ).constraint_matrix
    except (FormulaicError, ValueError, KeyError, TypeError, SyntaxError):
        raise UsageError(f'cannot read the contrast "{text}"; {known}') from None
    weights = np.atleast_2d(np.asarray(weights, dtype=float))[:, : len(design.columns)]
    if not weights.any(axis=1).all():
        raise UsageError(f'the contrast "{text}" compares nothing; {known}')
    if np.linalg.matrix_rank(weights) < len(weights):
        raise UsageError(f'the parts of the contrast "{text}" depend on each other; {known}')
    return Contrast(text.strip(), contrast_label(text), weights)


def contrast_label(text: str) -> str:
    """Turn the name of a contrast into letters and digits for a file name.

    Examples
    --------
    >>> contrast_label('group[T.control] - C(sex)[T.M]')
    'groupControlMinusSexM'
    """
    text = re.sub(r'\bC\(([^(),]*)[^()]*\)', r'\1', text).replace('[T.', '[')
    words = text.replace('-', ' minus ').replace('+', ' plus ').replace(',', ' and ')
    parts = re.findall(r'[A-Za-z0-9]+', words)
    if not parts:
        return 'contrast'
    return parts[0] + ''.join(part[0].upper() + part[1:] for part in parts[1:])


def _parse(formula: str) -> Any:
    from formulaic import Formula, SimpleFormula
    from formulaic.errors import FormulaicError

    try:
        parsed = Formula(formula)
        _ = parsed.required_variables
    except (FormulaicError, ValueError, SyntaxError) as error:
        raise UsageError(
            f'cannot read the model "{formula}": {_one_line(error)}; write it like '
            '"~ group + age + C(sex) + tiv"'
        ) from None
    if isinstance(parsed, SimpleFormula):
        return parsed
    raise UsageError(
        f'the model "{formula}" names a response; write only the right side, like "~ group + age"'
    )


def _typed(data: pd.DataFrame) -> pd.DataFrame:
    """Make numbers of columns that hold only numbers; whole numbers become integers.

    A factor made of a column of codes then has the names ``C(site)[T.2]``, not ``[T.2.0]``.
    """
    import pandas as pd

    typed = {}
    for name in data.columns:
        column = data[name]
        numbers = pd.to_numeric(column, errors='coerce')
        if numbers.isna().any() or column.dtype == bool:
            typed[name] = column.map(lambda value: str(value).strip()).astype(object)
        elif (numbers == numbers.round()).all() and numbers.abs().max() < 2**53:
            typed[name] = numbers.astype('int64')
        else:
            typed[name] = numbers.astype('float64')
    return pd.DataFrame(typed)


def _evaluate(parsed: Any, data: pd.DataFrame, formula: str) -> tuple[pd.DataFrame, Any]:
    try:
        matrix = parsed.get_model_matrix(data, context={}, na_action='ignore')
    except Exception as error:  # a formula may call any function on any column
        raise UsageError(f'cannot evaluate the model "{formula}": {_one_line(error)}') from None
    bad = [str(name) for name in matrix.columns if not np.isfinite(matrix[name]).all()]
    if bad:
        raise UsageError(
            f'the model "{formula}" gives values that are not finite in {", ".join(bad)}'
        )
    return matrix, matrix.model_spec


def _levels(spec: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the reference levels, and the columns of factors."""
    references, dummies = [], []
    factors = {str(factor): state for factor, state in spec.factor_contrasts.items()}
    for part in spec.structure:
        name = str(part.term)
        if name not in factors:
            continue
        columns = list(map(str, part.columns))
        dummies += columns
        references += [
            reference
            for level in factors[name].levels
            if (reference := f'{name}[T.{level}]') not in columns
            and f'{name}[{level}]' not in columns
        ]
    return tuple(references), tuple(dummies)


def _check(design: Design, data: pd.DataFrame) -> None:
    """Refuse designs whose coefficients cannot be told apart or tested."""
    n, p = design.matrix.shape
    if n <= p + 1:
        many = [
            f'{name!r} is text with {data[name].nunique()} values'
            for name in design.variables
            if data[name].dtype == object and data[name].nunique() > 2
        ]
        raise UsageError(
            f'{n} sessions are too few for the {p} columns of "{design.formula}" (at least '
            f'{p + 2} are needed)' + (f'; {", ".join(many)}' if many else '')
        )
    constant = [
        name for name, column in zip(design.columns, design.matrix.T, strict=True)
        if np.ptp(column) == 0 and name != 'Intercept'
    ]  # fmt: skip
    if constant:
        raise UsageError(f'{", ".join(constant)} of "{design.formula}" is constant: leave it out')
    length = np.linalg.norm(design.matrix, axis=0)
    scaled = design.matrix / length
    if np.linalg.matrix_rank(scaled, tol=1e-7 * np.sqrt(p)) < p:
        dependent = [
            name for number, name in enumerate(design.columns)
            if np.linalg.matrix_rank(np.delete(scaled, number, 1), tol=1e-7 * np.sqrt(p)) > p - 2
            and _explained(scaled, number)
        ]  # fmt: skip
        raise UsageError(
            f'columns of "{design.formula}" depend on each other ({", ".join(dependent)}): '
            'leave one of them out'
        )


def _explained(matrix: np.ndarray, number: int) -> bool:
    """Whether one column is a combination of the others."""
    others = np.delete(matrix, number, 1)
    rest = matrix[:, number] - others @ np.linalg.lstsq(others, matrix[:, number], rcond=None)[0]
    return bool(np.linalg.norm(rest) < 1e-6)


def _one_line(error: BaseException) -> str:
    text = re.sub(r'\x1b\[[0-9;]*m|[\u29da\u29db]', '', str(error))
    return ' '.join(text.split()) or type(error).__name__
