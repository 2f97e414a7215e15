# SPDX-License-Identifier: Apache-2.0
"""Where the voxels of a scan are: one rule for good, missing and contradictory NIfTI headers.

A NIfTI header can state its voxel-to-world matrix twice (sform and qform) and the voxel sizes a
third time (pixdim). The rule here is the usual one, made safe:

1. sform, if its code is above 0, as nibabel, SPM, FSL and BIDS tools do;
2. but qform (code above 0) where the sform is not finite, singular, or has other voxel sizes
   than pixdim, because such a matrix describes a fit to another space rather than the scanner,
   and every volume in mm^3 would be wrong;
3. with both codes 0, nibabel's fallback (first axis to the left, second forward, third up) and a
   loud note, because nothing in the file tells left from right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from .grids import voxel_sizes

MIN_VOXEL_MM = 0.1
MAX_VOXEL_MM = 12.0
# Matrices that move no corner of the image by more than this differ by rounding only.
SAME_PLACE_MM = 0.1
# Relative difference of voxel sizes that rounding cannot explain.
SAME_SIZE = 0.01


@dataclass(frozen=True)
class Geometry:
    """The grid of a scan.

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in mm, RAS+.
    source : str
        ``sform``, ``qform`` or ``fallback``.
    notes : tuple of str
        What was unusual, one sentence each.
    header : nibabel.Nifti1Header
        A clean three-dimensional header for derivatives on this grid: the sform and qform of the
        scan bit for bit where they are usable (so that overlays fit in every viewer), the chosen
        matrix where they are not, both codes above 0.
    """

    affine: np.ndarray
    source: str
    notes: tuple[str, ...]
    header: Any


def _is_usable(matrix: np.ndarray | None) -> bool:
    """Whether a matrix is finite, of sane size and invertible."""
    if matrix is None or not np.all(np.isfinite(matrix)) or np.abs(matrix).max() > 1e6:
        return False
    sizes = voxel_sizes(matrix)
    if sizes.min() <= 1e-6:
        return False
    # The determinant of the unit axes is the volume of the cell: 1 if orthogonal, 0 if flat.
    return abs(np.linalg.det(matrix[:3, :3] / sizes)) > 0.05


def _qform(header: Any) -> np.ndarray | None:
    try:
        return header.get_qform()
    except Exception:  # nibabel raises several kinds for quaternions that are none
        return None


def _corner_distance(shape: tuple[int, ...], first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance in mm that a corner voxel moves between two matrices."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    difference = first - second
    moved = difference[:3, :3] @ corners + difference[:3, 3:]
    return float(np.sqrt((moved**2).sum(axis=0)).max())


def _checked_pixdim(header: Any, sform: np.ndarray | None, path: Path, notes: list[str]):
    """Return positive voxel sizes from the header or say why there are none."""
    pixdim = np.array(header['pixdim'][1:4], dtype=float)
    shown = ' x '.join(f'{size:g}' for size in pixdim)
    if not np.all(np.isfinite(pixdim)) or np.any(pixdim == 0):
        raise ImageError(
            f'{path}: the header gives a voxel size of {shown} mm; correct pixdim in the header '
            'or convert the scan again from DICOM'
        )
    if np.any(pixdim < 0):
        if sform is None or not np.allclose(voxel_sizes(sform), np.abs(pixdim), rtol=SAME_SIZE):
            raise ImageError(
                f'{path}: the header gives a negative voxel size ({shown} mm) and no sform that '
                'explains it, so left and right are unknown; convert the scan again from DICOM'
            )
        notes.append(f'pixdim is negative ({shown} mm); the sform has the same sizes and is used')
    return np.abs(pixdim)


def choose_geometry(header: Any, shape: tuple[int, int, int], path: Path) -> Geometry:
    """Decide where the voxels of a scan are.

    Parameters
    ----------
    header : nibabel.Nifti1Header
        As it is in the file, without nibabel's silent repairs (``check=False``).
    shape : tuple of 3 int
        Voxels along each axis.
    path : Path
        For messages.

    Returns
    -------
    Geometry

    Raises
    ------
    ImageError
        If voxel sizes are zero, not finite, or outside 0.1 to 12 mm, or no usable matrix is left.
    """
    notes: list[str] = []
    sform_code, qform_code = int(header['sform_code']), int(header['qform_code'])
    sform = header.get_sform() if sform_code > 0 else None
    sform = sform if _is_usable(sform) else None
    pixdim = _checked_pixdim(header, sform, path, notes)
    header = header.copy()
    header['pixdim'][1:4] = pixdim
    qform = _qform(header) if qform_code > 0 else None
    qform = qform if _is_usable(qform) else None

    if sform_code > 0 and sform is None:
        notes.append('the sform is singular or not finite and was ignored')
    if qform_code > 0 and qform is None:
        notes.append('the qform is not a rotation and was ignored')
    if sform is None and qform is None and (sform_code > 0 or qform_code > 0):
        raise ImageError(
            f'{path}: neither the sform nor the qform of the header is usable (singular or not '
            'finite); convert the scan again from DICOM'
        )

    if sform is not None:
        affine, source = sform, 'sform'
        if not np.allclose(voxel_sizes(sform), pixdim, rtol=SAME_SIZE):
            sizes = ' x '.join(f'{size:.4g}' for size in voxel_sizes(sform))
            if qform is not None:
                affine, source = qform, 'qform'
            notes.append(
                f'the sform has voxels of {sizes} mm, pixdim says '
                f'{" x ".join(f"{size:.4g}" for size in pixdim)} mm; the {source} was used'
            )
        elif qform is not None:
            notes.extend(_contradiction(shape, sform, qform))
    elif qform is not None:
        affine, source = qform, 'qform'
    else:
        affine, source = _fallback(shape, pixdim), 'fallback'
        notes.append(
            'LEFT AND RIGHT ARE UNKNOWN: the header has no orientation (qform and sform codes '
            'are 0); the first axis was taken to run to the left, the second forward and the '
            'third up, as nibabel does; check the overlay and set the header'
        )

    sizes = voxel_sizes(affine)
    if sizes.min() < MIN_VOXEL_MM or sizes.max() > MAX_VOXEL_MM:
        shown = ' x '.join(f'{size:.4g}' for size in sizes)
        raise ImageError(
            f'{path}: voxels of {shown} mm are not those of a head scan ({MIN_VOXEL_MM:g} to '
            f'{MAX_VOXEL_MM:g} mm); check the units in the header'
        )
    notes.extend(_shear(affine / np.append(sizes, 1.0)))
    clean = _clean_header(header, shape, affine, sform, qform)
    return Geometry(np.asarray(affine, dtype=float), source, tuple(notes), clean)


def _contradiction(shape: tuple[int, ...], sform: np.ndarray, qform: np.ndarray) -> list[str]:
    distance = _corner_distance(shape, sform, qform)
    if distance <= SAME_PLACE_MM:
        return []
    note = f'sform and qform disagree by up to {distance:.1f} mm; the sform was used'
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        note = f'LEFT AND RIGHT ARE DOUBTFUL: {note}, and one mirrors the other; check the overlay'
    return [note]


def _shear(unit_axes: np.ndarray) -> list[str]:
    """Say so if the axes are not at right angles (more than half a degree off)."""
    products = unit_axes[:3, :3].T @ unit_axes[:3, :3]
    largest = float(np.abs(products - np.diag(np.diag(products))).max())
    degrees = float(np.degrees(np.arcsin(min(largest, 1.0))))
    if degrees <= 0.5:
        return []
    return [f'the axes of the scan are sheared by {degrees:.1f} degrees; volumes allow for it']


def _fallback(shape: tuple[int, ...], sizes: np.ndarray) -> np.ndarray:
    """Return nibabel's matrix for headers without orientation: LAS about the centre."""
    affine = np.diag([-sizes[0], sizes[1], sizes[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _clean_header(
    header: Any,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    sform: np.ndarray | None,
    qform: np.ndarray | None,
) -> Any:
    """Build the header of derivatives; see :class:`Geometry`."""
    import nibabel as nib

    clean = nib.Nifti1Header()
    clean.set_data_shape(shape)
    clean.set_xyzt_units('mm', 'sec')
    if qform is not None:
        clean['pixdim'][:4] = header['pixdim'][:4]
        for field in ('qform_code', 'quatern_b', 'quatern_c', 'quatern_d'):
            clean[field] = header[field]
        for field in ('qoffset_x', 'qoffset_y', 'qoffset_z'):
            clean[field] = header[field]
    else:
        clean.set_qform(affine, code=_code(header, 'sform_code'), strip_shears=True)
    if sform is not None:
        clean.set_sform(sform, code=_code(header, 'sform_code'))
    else:
        clean.set_sform(affine, code=_code(header, 'qform_code'))
    return clean


def _code(header: Any, field: str) -> int:
    """Return a known xform code above 0 (1, scanner, in place of nonsense)."""
    code = int(header[field])
    return code if 1 <= code <= 5 else 1
