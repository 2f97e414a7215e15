# SPDX-License-Identifier: Apache-2.0
"""The result of a registration to a template, as one object that can be saved."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Normalisation:
    """How a scan and a template lie to each other.

    A point ``p`` of the template (mm, RAS+) belongs to the point
    ``affine @ (p + forward(p))`` of the scan, and a point ``n`` of the scan, with
    ``q = inv(affine) @ n``, to the point ``q + backward(q)`` of the template.

    Attributes
    ----------
    space : str
        Name of the template, for instance ``MNI152NLin2009aSym``.
    affine : ndarray, shape (4, 4), float64
        Template world to scan world, mm.
    grid_affine : ndarray, shape (4, 4), float64
        Voxel-to-world matrix of the registration grid, in the world of the template; its axes
        are those of the world (RAS order).
    forward, backward : ndarray, shape (3, x, y, z), float32
        Displacements in mm (RAS+ components) on the registration grid; zero outside.
    method : {'network', 'refined', 'ants'}
        What made the displacements.
    measures : dict of float
        What the registration says of itself.
    """

    space: str
    affine: np.ndarray
    grid_affine: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    method: str
    measures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ('affine', 'grid_affine'):
            if np.shape(getattr(self, name)) != (4, 4):
                raise ValueError(f'{name} must be a 4x4 matrix')
        if self.forward.ndim != 4 or self.forward.shape[0] != 3:
            raise ValueError(f'forward must have shape (3, x, y, z), not {self.forward.shape}')
        if self.forward.shape != self.backward.shape:
            raise ValueError(
                f'forward and backward differ in shape: {self.forward.shape}, '
                f'{self.backward.shape}'
            )
        linear = np.asarray(self.grid_affine)[:3, :3]
        if not np.allclose(linear, np.diag(np.diag(linear))) or np.diag(linear).min() <= 0:
            raise ValueError('the registration grid must have the axes of the world (RAS order)')

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the registration grid."""
        return tuple(int(n) for n in self.forward.shape[1:])

    @property
    def affine_factor(self) -> float:
        """Volume factor of the affine part: mm^3 of the scan per mm^3 of the template."""
        return abs(float(np.linalg.det(np.asarray(self.affine)[:3, :3])))

    def jacobian(self) -> np.ndarray:
        """Return the determinant of the Jacobian of ``p + forward(p)``.

        Returns
        -------
        ndarray, shape (x, y, z), float32
            Without the affine part; see :func:`jacobian_determinant`.
        """
        spacing = np.diag(np.asarray(self.grid_affine)[:3, :3])
        return jacobian_determinant(self.forward, spacing)

    def save(self, path: Path) -> Path:
        """Write everything to one ``.npz`` file, which is there as a whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f'.{os.getpid()}.{path.name}')
        header = json.dumps(
            {'space': self.space, 'method': self.method, 'measures': self.measures}
        )
        with temporary.open('wb') as stream:
            np.savez(
                stream,
                header=np.frombuffer(header.encode(), dtype=np.uint8),
                affine=self.affine,
                grid_affine=self.grid_affine,
                forward=self.forward,
                backward=self.backward,
            )
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, path: Path) -> Normalisation:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as content:
            header = json.loads(content['header'].tobytes().decode())
            return cls(
                header['space'],
                content['affine'],
                content['grid_affine'],
                content['forward'],
                content['backward'],
                header['method'],
                header['measures'],
            )


def jacobian_determinant(displacement: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the determinant of the Jacobian of ``x + displacement(x)``.

    Parameters
    ----------
    displacement : ndarray, shape (3, x, y, z)
        Components along the axes of the grid, mm.
    spacing : array-like, shape (3,)
        Voxel size along each axis, mm.

    Returns
    -------
    ndarray, shape (x, y, z), float32
        By central differences of fourth order, which keep the volume of modulated maps several
        times better than those of second order; of lower order in the two voxels at the border.
    """
    rows = []
    for component in range(3):
        gradient = [
            _derivative(displacement[component], axis, float(spacing[axis])) for axis in range(3)
        ]
        gradient[component] += 1
        rows.append(gradient)
    (a, b, c), (d, e, f), (g, h, i) = rows
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return determinant.astype(np.float32)


def _derivative(values: np.ndarray, axis: int, spacing: float) -> np.ndarray:
    out = np.gradient(values, spacing, axis=axis)
    n = values.shape[axis]
    if n >= 5:
        at = [slice(None)] * 3

        def part(first: int, last: int) -> np.ndarray:
            return values[(*at[:axis], slice(first, n + last), *at[axis + 1 :])]

        inner = (8 * (part(3, -1) - part(1, -3)) - (part(4, 0) - part(0, -4))) / (12 * spacing)
        out[(*at[:axis], slice(2, n - 2), *at[axis + 1 :])] = inner
    return out
