# SPDX-License-Identifier: Apache-2.0
"""Transforms as ITK files, which ANTs, SimpleITK and fMRIPrep read.

Normalisations are composite transforms in HDF5, rigid maps between contrasts are text.

The composites have the layout of ITK's ``HDF5TransformIO``: the group ``TransformGroup`` holds one
group per transform, number 0 the type of the composite, the others its members, of which the
*last* is applied to a point first. ITK's world is LPS: the first two components of points and
displacements have the opposite sign of RAS+.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import h5py

    from bids_app.registration.normalisation import Normalisation

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TEXT_HEADER = '#Insight Transform File V1.0'
_LINEAR = ('AffineTransform', 'MatrixOffsetTransformBase')
_STEP = 2.0**-12
"""Displacements are rounded to multiples of this, in mm: a tenth of a micrometre of error halves
the size of the files."""


def write_composite(
    path: Path, normalisation: Normalisation, direction: Literal['forward', 'backward']
) -> Path:
    """Write one direction of a normalisation as ITK composite HDF5 file.

    Parameters
    ----------
    path : Path
        The ``.h5`` file; it is there as a whole or not at all, and the same normalisation gives
        the same bytes.
    normalisation : Normalisation
    direction : {'forward', 'backward'}
        ``forward`` is ``from-T1w_to-<space>``: it resamples images of the scan onto the template,
        and maps points of the template to the scan. ``backward`` is ``from-<space>_to-T1w``.

    Returns
    -------
    Path
        `path`.
    """
    import h5py

    from bids_app.bids.files import atomic_write_bytes

    # Members in the order of the file, that is the reverse of the order of application.
    if direction == 'forward':
        members = [_affine(normalisation.affine), _field(normalisation, normalisation.forward)]
    elif direction == 'backward':
        inverse = np.linalg.inv(np.asarray(normalisation.affine, dtype=float))
        members = [_field(normalisation, normalisation.backward), _affine(inverse)]
    else:
        raise ValueError(f"direction must be 'forward' or 'backward', not {direction!r}")
    content = io.BytesIO()
    with h5py.File(content, 'w', libver='earliest') as file:
        # ITK does not interpret these, but looks for the version.
        _write_text(file, 'ITKVersion', '5.4.0')
        _write_text(file, 'HDFVersion', h5py.version.hdf5_version)
        composite = file.create_group('TransformGroup/0')
        _write_text(composite, 'TransformType', 'CompositeTransform_float_3_3')
        for number, (kind, fixed, parameters) in enumerate(members, start=1):
            group = file.create_group(f'TransformGroup/{number}')
            _write_text(group, 'TransformType', kind)
            group.create_dataset('TransformFixedParameters', data=fixed)
            # Small members stay plain: a filter needs chunks, and is not worth them.
            packing = (
                {'chunks': (min(len(parameters), 1 << 20),), 'shuffle': True, 'compression': 1}
                if len(parameters) > 1000
                else {}
            )
            group.create_dataset('TransformParameters', data=parameters, **packing)
    return atomic_write_bytes(path, content.getvalue())


def write_linear(path: Path, matrix: np.ndarray) -> Path:
    """Write a rigid or affine map as ITK text file.

    Parameters
    ----------
    path : Path
        ``from-T2w_to-T1w_mode-image_xfm.txt``, say.
    matrix : array-like, shape (4, 4)
        World to world, RAS+, mm. As everywhere in ITK, the file that resamples images of the T2w
        onto the T1w (``from-T2w_to-T1w``) holds the map of *points of the T1w to the T2w*, which
        is what :func:`bids_app.registration.rigid.register_rigid` returns with the T1w as the
        fixed image.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If the matrix is not a finite, invertible affine map.
    """
    from bids_app.bids.files import atomic_write_text

    matrix = np.asarray(matrix, dtype=float)
    if (
        matrix.shape != (4, 4)
        or not np.isfinite(matrix).all()
        or not np.array_equal(matrix[3], (0, 0, 0, 1))
        or abs(np.linalg.det(matrix)) < 1e-9
    ):
        raise ValueError('expected a finite, invertible affine map of shape (4, 4)')
    lps = _LPS @ matrix @ _LPS
    # Adding 0 turns -0 into 0; repr keeps every digit.
    numbers = ' '.join(repr(float(v) + 0.0) for v in [*lps[:3, :3].ravel(), *lps[:3, 3]])
    text = (
        f'{_TEXT_HEADER}\n#Transform 0\nTransform: AffineTransform_double_3_3\n'
        f'Parameters: {numbers}\nFixedParameters: 0 0 0\n'
    )
    return atomic_write_text(path, text)


def read_linear(path: Path) -> np.ndarray:
    """Read a rigid or affine map from an ITK text file.

    Parameters
    ----------
    path : Path
        One transform whose parameters are a matrix by rows and a translation, about any centre
        (``AffineTransform``, ``MatrixOffsetTransformBase``).

    Returns
    -------
    ndarray, shape (4, 4)
        World to world, RAS+, mm; see :func:`write_linear` for its direction.

    Raises
    ------
    ImageError
        If the file is not such a transform.
    OSError
        If it cannot be read.
    """
    from bids_app.errors import ImageError

    text = Path(path).read_text(encoding='utf-8', errors='replace')
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, found, value = line.partition(':')
        if found and not line.startswith('#'):
            fields.setdefault(name.strip(), []).append(value.strip())
    kinds = fields.get('Transform', [])
    if (
        not text.startswith(_TEXT_HEADER)
        or len(kinds) != 1
        or kinds[0].partition('_')[0] not in _LINEAR
    ):
        raise ImageError(
            f'{path}: not an ITK text file with one {" or ".join(_LINEAR)}; convert the transform '
            'with ANTs (ConvertTransformFile) or SimpleITK'
        )
    try:
        numbers = np.array([float(v) for v in fields['Parameters'][0].split()])
        centre = np.array([float(v) for v in fields['FixedParameters'][0].split()])
        linear = numbers[:9].reshape(3, 3)
        lps = np.eye(4)
        lps[:3, :3] = linear
        lps[:3, 3] = numbers[9:12] + centre - linear @ centre
    except (KeyError, ValueError) as error:
        raise ImageError(
            f'{path}: the parameters of the transform are incomplete; write the file again'
        ) from error
    return _LPS @ lps @ _LPS


_Member = tuple[str, np.ndarray, np.ndarray]


def _affine(matrix: np.ndarray) -> _Member:
    """Return type, fixed parameters (centre) and parameters (matrix by rows, translation)."""
    lps = _LPS @ np.asarray(matrix, dtype=float) @ _LPS
    parameters = np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]])
    return 'AffineTransform_float_3_3', np.zeros(3), parameters.astype(np.float32)


def _field(normalisation: Normalisation, field: np.ndarray) -> _Member:
    """Return type, fixed parameters (size, origin, spacing, direction) and displacements."""
    grid = _LPS @ np.asarray(normalisation.grid_affine, dtype=float)
    spacing = np.sqrt((grid[:3, :3] ** 2).sum(axis=0))
    direction = grid[:3, :3] / spacing
    fixed = np.concatenate([field.shape[1:], grid[:3, 3], spacing, direction.ravel()])
    lps = np.empty((*field.shape[:0:-1], 3), dtype=np.float32)  # z, y, x, component
    for component, sign in enumerate((-1, -1, 1)):
        lps[..., component] = np.rint(field[component].T * (sign / _STEP)) * _STEP
    return 'DisplacementFieldTransform_float_3_3', fixed.astype(np.float64), lps.ravel()


def _write_text(group: h5py.Group, name: str, text: str) -> None:
    """Write a string as ITK does: an array of one string of variable length."""
    import h5py

    group.create_dataset(name, data=[text.encode()], dtype=h5py.string_dtype('ascii'))
