# SPDX-License-Identifier: Apache-2.0
"""Which image of a session everything is computed on: its T1w, or what stands in for one.

The T1w has the best contrast of grey and white matter in three dimensions. Where there is none,
the sharpest other anatomical image is taken; the segmentation network was trained on synthetic
images of any contrast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bids_app.bids.inputs import Scan

OTHERS = ('PDw', 'T2starw', 'inplaneT1', 'inplaneT2')
"""Suffixes of images that are taken only where there is no T1w, besides T2w and FLAIR."""

SHARPEST = (
    'whole heads (a field of view of at least 100 mm in every direction) before slabs; the '
    'thinner slices (longest voxel edge); the smaller voxels; T2w, FLAIR, then others'
)
"""The rule of :func:`stand_in` in words."""


def stand_in(scans: Sequence[Scan]) -> Scan | None:
    """Return the sharpest of some images by the rule :data:`SHARPEST`; None if there is none.

    Parameters
    ----------
    scans : sequence of Scan
        One per contrast; of equally sharp ones, the first is taken. Only their headers are read.
        What cannot be read comes last: if it is all there is, the step that reads it will say
        what is wrong.
    """
    return min(scans, key=lambda scan: blur(scan.path), default=None)


def blur(path: Path) -> tuple[bool, float, float]:
    """Say how far an image is from a sharp one of a whole head; the smallest is the sharpest.

    Parameters
    ----------
    path : Path
        The image.

    Returns
    -------
    slab : bool
        Whether less than 100 mm are covered in some direction.
    thickness : float
        Longest edge of a voxel, mm, to a tenth: headers carry rounding errors.
    volume : float
        Volume of a voxel, mm^3. Both are infinite for a file that cannot be read.
    """
    from bids_app.errors import ImageError
    from bids_app.images.grids import voxel_sizes
    from bids_app.images.scans import MIN_FIELD_OF_VIEW_MM, read_grid

    try:
        grid = read_grid(path)
    except ImageError:
        return True, math.inf, math.inf
    sizes = voxel_sizes(grid.affine)
    covered = min(size * count for size, count in zip(sizes, grid.shape, strict=True))
    volume = round(float(sizes.prod()), 3)
    return bool(covered < MIN_FIELD_OF_VIEW_MM), round(float(sizes.max()), 1), volume
