# SPDX-License-Identifier: Apache-2.0
"""Clusters of significant voxels, where they peak and what lies there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.data import structures
from bids_app.morphometry.volumes import voxel_volume
from bids_app.reports.planes import load_volume

_UNNAMED_MM = 3.0
"""A peak outside every region takes the name of one this near: maps are smoothed over borders."""


@dataclass(frozen=True)
class RegionMap:
    """Labels in template space.

    Attributes
    ----------
    name : str
        Of the atlas; becomes part of column names.
    labels : numpy.ndarray of int, shape (x, y, z)
        0 is nothing.
    affine : numpy.ndarray, shape (4, 4)
        Voxel to world, mm, RAS+.
    names : mapping of int to str
        Of the labels.
    """

    name: str
    labels: np.ndarray
    affine: np.ndarray
    names: Mapping[int, str]

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the labels at points in mm, shape (n, 3) to (n,); 0 outside."""
        to_voxel = np.linalg.inv(self.affine)
        at = np.rint(points @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
        inside = ((at >= 0) & (at < self.labels.shape)).all(1)
        found = np.zeros(len(points), int)
        found[inside] = self.labels[tuple(at[inside].T)]
        return found

    def name_of(self, label: int) -> str:
        """Return the name of a label, or its number."""
        return self.names.get(int(label), f'label {int(label)}')

    def name_at(self, point: np.ndarray) -> str:
        """Name the region at a point or the nearest one within 3 mm; empty if there is none."""
        steps = np.arange(-_UNNAMED_MM, _UNNAMED_MM + 1)
        around = np.stack(np.meshgrid(steps, steps, steps, indexing='ij'), -1).reshape(-1, 3)
        distance = np.linalg.norm(around, axis=1)
        order = np.argsort(distance, kind='stable')[: int((distance <= _UNNAMED_MM).sum())]
        labels = self.at(point + around[order])
        named = np.flatnonzero(labels)
        return self.name_of(labels[named[0]]) if len(named) else ''

    def shares(self, points: np.ndarray, most: int = 3) -> str:
        """Say which regions a cluster covers, as ``Left-Hippocampus 62 %; ...``."""
        labels, counts = np.unique(self.at(points), return_counts=True)
        order = np.argsort(-counts, kind='stable')
        parts = [
            f'{self.name_of(labels[n])} {100 * counts[n] / len(points):.0f} %'
            for n in order
            if labels[n] and counts[n] >= 0.01 * len(points)
        ]
        return '; '.join(parts[:most])


def structure_map(path: Path) -> RegionMap:
    """Read a label image with FreeSurfer's numbers, such as that of a template."""
    volume = load_volume(path, labels=True)
    names = {structure.index: structure.name for structure in structures()}
    return RegionMap('structures', np.asarray(volume.data, int), volume.affine, names)


def find_clusters(
    significant: np.ndarray,
    statistic: np.ndarray,
    affine: np.ndarray,
    values: Mapping[str, np.ndarray],
    regions: Sequence[RegionMap] = (),
) -> list[dict[str, Any]]:
    """List the clusters of significant voxels, largest peak first.

    Parameters
    ----------
    significant : numpy.ndarray of bool, shape (x, y, z)
        Voxels that share a face or an edge, and the sign of the statistic, form a cluster.
    statistic : numpy.ndarray, shape (x, y, z)
        Its largest absolute value in a cluster is the peak.
    affine : numpy.ndarray, shape (4, 4)
        Voxel to world, mm, RAS+.
    values : mapping of str to numpy.ndarray, shape (x, y, z)
        Maps whose value at the peak is a column.
    regions : sequence of RegionMap
        Atlases that name the peak and the cluster.

    Returns
    -------
    list of dict
        ``cluster``, ``direction`` (+ or -), ``voxels``, ``size_mm3``, ``x``, ``y``, ``z`` (mm),
        ``peak``, the columns of ``values``, and ``region`` and ``regions`` of every atlas (with
        ``_<name>`` appended from the second on).
    """
    from scipy import ndimage

    voxel = voxel_volume(affine)
    neighbours = ndimage.generate_binary_structure(3, 2)
    rows = []
    for direction, side in (('+', statistic > 0), ('-', statistic < 0)):
        labelled, _ = ndimage.label(significant & side, neighbours)
        for number, box in enumerate(ndimage.find_objects(labelled), 1):
            corner = np.array([cut.start for cut in box])
            inside = np.argwhere(labelled[box] == number) + corner
            heights = np.abs(statistic[tuple(inside.T)])
            peak = tuple(inside[int(heights.argmax())])
            points = inside @ affine[:3, :3].T + affine[:3, 3]
            point = points[int(heights.argmax())]
            row: dict[str, Any] = {
                'cluster': 0,
                'direction': direction,
                'voxels': len(inside),
                'size_mm3': len(inside) * voxel,
                **{axis: round(float(mm), 2) for axis, mm in zip('xyz', point, strict=True)},
                'peak': float(statistic[peak]),
                **{name: float(volume[peak]) for name, volume in values.items()},
            }
            for order, atlas in enumerate(regions):
                suffix = f'_{atlas.name}' if order else ''
                row[f'region{suffix}'] = atlas.name_at(point)
                row[f'regions{suffix}'] = atlas.shares(points)
            rows.append(row)
    rows.sort(key=lambda row: (-abs(row['peak']), row['x'], row['y'], row['z']))
    for number, row in enumerate(rows, 1):
        row['cluster'] = number
    return rows
