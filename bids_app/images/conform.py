# SPDX-License-Identifier: Apache-2.0
"""Bring a scan to 1 mm RAS, and write results back on the grid of the scan."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

from .grids import canonical_affine, conform_grid, voxel_sizes
from .resample import resample_separable
from .scans import Grid, LoadedScan, load_scan, read_grid

__all__ = ['Grid', 'LoadedScan', 'conform_file', 'load_scan', 'read_grid', 'save_native']


def conform_file(
    in_file: Path | str, out_file: Path | str, voxel_size: float = 1.0
) -> dict[str, Any]:
    """Write a scan in RAS order with isotropic voxels over the same field of view.

    Scans that already have the voxel size are only permuted and flipped.

    Parameters
    ----------
    in_file : Path or str
        The scan.
    out_file : Path or str
        float32 NIfTI to write; uncompressed if the name ends in ``.nii``.
    voxel_size : float
        Edge length in mm.

    Returns
    -------
    dict
        For JSON: ``shape``, ``zooms`` (mm), ``affine``, ``interpolated``, and of the scan
        ``native_shape``, ``native_zooms``, ``native_affine``, ``native_orientation`` (such as
        ``LPS``), ``obliquity_degrees``, ``field_of_view_mm``, ``intensity_range``, ``notes``.

    Raises
    ------
    ImageError
        As :func:`load_scan`.
    """
    import nibabel as nib

    scan = load_scan(in_file)
    shape, affine = conform_grid(scan.shape, scan.affine, voxel_size)
    conformed = resample_separable(scan.data, scan.affine, shape, affine, outside='edge')
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units('mm', 'sec')
    header.set_qform(affine, code=1, strip_shears=True)
    header.set_sform(affine, code=1)
    _save(conformed, affine, header, Path(out_file), np.float32)
    sizes = voxel_sizes(scan.affine)
    axes = scan.affine[:3, :3] / sizes
    return {
        'shape': list(shape),
        'zooms': [round(float(size), 6) for size in voxel_sizes(affine)],
        'affine': affine.tolist(),
        'interpolated': not np.array_equal(affine, canonical_affine(scan.shape, scan.affine)[1]),
        'native_shape': list(scan.shape),
        'native_zooms': [round(float(size), 6) for size in sizes],
        'native_affine': scan.affine.tolist(),
        'native_orientation': ''.join(nib.aff2axcodes(scan.affine)),
        'obliquity_degrees': round(
            float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0).min(), 0, 1)))), 2
        ),
        'field_of_view_mm': [round(float(x), 1) for x in sizes * np.array(scan.shape)],
        'intensity_range': [float(scan.data.min()), float(scan.data.max())],
        'notes': list(scan.notes),
    }


def load_array(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an image as float32 with its affine; uncompressed files are mapped, not copied."""
    import nibabel as nib

    image = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def save_native(
    data: np.ndarray,
    like: Grid | Path | str,
    out_file: Path | str,
    dtype: type | np.dtype | str = np.float32,
) -> Path:
    """Write an array on the grid of a scan: same shape, same matrices, both codes above 0.

    Parameters
    ----------
    data : ndarray, shape of the scan, or (*shape, n) for n volumes
        Values in the axis order of the scan.
    like : Grid, LoadedScan, Path or str
        The scan.
    out_file : Path or str
        ``.nii`` or ``.nii.gz``; written under another name first and then renamed.
    dtype : dtype
        Type on disk. Integers are rounded and must fit.

    Returns
    -------
    Path
        `out_file`.

    Raises
    ------
    ValueError
        If the shape is not that of the scan, or values do not fit `dtype`.
    """
    grid = like if isinstance(like, Grid) else read_grid(like)
    if tuple(data.shape[:3]) != tuple(grid.shape):
        raise ValueError(f'shape {data.shape} is not that of {grid.path}: {grid.shape}')
    # The affine that nibabel reads from the header: identical to that of the scan.
    return _save(data, grid.header.get_best_affine(), grid.header, Path(out_file), dtype)


def _save(data: np.ndarray, affine: np.ndarray, header: Any, out_file: Path, dtype: Any) -> Path:
    """Write a NIfTI file at once or not at all; equal input gives equal bytes."""
    import nibabel as nib

    dtype = np.dtype(dtype)
    if dtype.kind in 'iu' and np.asarray(data).dtype.kind == 'f':
        data = np.rint(data)
    if dtype.kind in 'iu' and data.size:
        limits = np.iinfo(dtype)
        low, high = data.min(), data.max()
        if not (limits.min <= low and high <= limits.max):
            raise ValueError(f'values {low} to {high} do not fit {dtype.name} in {out_file}')
    image = nib.Nifti1Image(np.asarray(data).astype(dtype, copy=False), affine, header)
    image.set_data_dtype(dtype)
    image.header.set_slope_inter(1, 0)
    temporary = out_file.with_name(f'.{out_file.name}.{os.getpid()}.tmp')
    try:
        with temporary.open('wb') as stream:
            if out_file.name.endswith('.gz'):
                with gzip.GzipFile('', 'wb', compresslevel=2, fileobj=stream, mtime=0) as packed:
                    image.to_stream(packed)
            else:
                image.to_stream(stream)
        os.replace(temporary, out_file)
    finally:
        temporary.unlink(missing_ok=True)
    return out_file
