# SPDX-License-Identifier: Apache-2.0
"""What the interfaces do to files, as plain functions that know nothing of Nipype.

Native means the grid of the scan as it was acquired, conformed means RAS order at 1 mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.images.conform import load_array

SIGNAL_FRACTION = 0.1
"""A voxel holds tissue if it is brighter than this part of the median of the brain ..."""
STRIPPED_RATIO = 0.4
"""... and a scan is skull-stripped if tissue outside the brain is less than this part of the
brain's volume. Scalp, face and neck of a whole head are more than the brain itself."""


def is_skull_stripped(data: np.ndarray, mask: np.ndarray) -> bool:
    """Tell whether hardly any tissue is left outside the brain.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Scan in any unit.
    mask : ndarray of bool, shape (x, y, z)
        Brain mask on the same grid.

    Returns
    -------
    bool
        False for an empty mask.
    """
    data, mask = data[::2, ::2, ::2], mask[::2, ::2, ::2].astype(bool)
    brain = int(mask.sum())
    if brain == 0:
        return False
    background = float(data.min())
    level = background + SIGNAL_FRACTION * (float(np.median(data[mask])) - background)
    outside = int(((data > level) & ~mask).sum())
    return outside < STRIPPED_RATIO * brain


def correct_bias(
    in_file: Path,
    mask_file: Path,
    native_file: Path,
    out_file: Path | None,
    native_out_file: Path,
    *,
    threads: int = 1,
    sloppy: bool = False,
) -> dict[str, Any]:
    """Estimate the bias field of a conformed scan and take it out of this and the native scan.

    The field is smooth, so the native scan is divided by the field resampled to its grid; its own
    voxels are never interpolated. Outside the brain the field is the continuation of the spline
    that was fitted inside, and beyond the conformed field of view its edge.

    Parameters
    ----------
    in_file, mask_file : Path
        Conformed scan and brain mask on one grid.
    native_file : Path
        The scan as it was acquired.
    out_file, native_out_file : Path
        Where the corrected scans go (uncompressed NIfTI); the native one keeps shape, affine and
        units of its source. The conformed one is left out for None.
    threads : int
        Threads of N4.
    sloppy : bool
        Fewer iterations, for tests.

    Returns
    -------
    dict
        ``field_range`` (1st and 99th percentile of the field in the brain) and
        ``skull_stripped``.
    """
    import nibabel as nib

    from bids_app.images.bias import n4_bias_field
    from bids_app.images.conform import load_scan, save_native
    from bids_app.images.resample import resample_separable

    data, affine = load_array(in_file)
    mask = load_array(mask_file)[0] > 0.5
    iterations = (10, 10) if sloppy else (50, 50, 50)
    field = n4_bias_field(data, affine, mask, iterations=iterations, threads=threads)
    if out_file is not None:
        nib.Nifti1Image((data / field).astype(np.float32), affine).to_filename(out_file)
    stripped = is_skull_stripped(data, mask)
    del data

    native = load_scan(native_file)
    native_field = resample_separable(field, affine, native.shape, native.affine, outside='edge')
    save_native(native.data / np.maximum(native_field, 1e-3), native, native_out_file)
    low, high = np.percentile(field[mask], [1, 99]) if mask.any() else (1.0, 1.0)
    return {'field_range': [float(low), float(high)], 'skull_stripped': stripped}


def restore_mask(mask_file: Path, native_file: Path, out_file: Path) -> dict[str, Any]:
    """Resample a conformed brain mask to the grid of the scan.

    Parameters
    ----------
    mask_file : Path
        Conformed mask, 0 and 1.
    native_file : Path
        The scan as it was acquired.
    out_file : Path
        The mask on its grid (uncompressed NIfTI, uint8): 1 where at least half of a voxel is
        brain.

    Returns
    -------
    dict
        ``volume_mm3``.
    """
    from bids_app.images.conform import read_grid, save_native
    from bids_app.images.resample import resample_separable

    mask, affine = load_array(mask_file)
    native = read_grid(native_file)
    part = resample_separable(mask, affine, native.shape, native.affine)
    restored = (part >= 0.5).astype(np.uint8)
    save_native(restored, native, out_file, np.uint8)
    voxel = abs(float(np.linalg.det(native.affine[:3, :3])))
    return {'volume_mm3': float(restored.sum()) * voxel}


def use_precomputed(
    own: Mapping[str, Path],
    given: Mapping[str, Path],
    findings: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Put a mask and tissue maps of another pipeline in the place of ours.

    Parameters
    ----------
    own : mapping of str to Path
        Ours on the grid of the scan: ``mask`` and, where the scan was segmented, ``dseg``,
        ``gm``, ``wm``, ``csf``, ``wholebrain`` and ``entropy``.
    given : mapping of str to Path
        ``brain_mask``, or ``probseg_gm``, ``probseg_wm`` and ``probseg_csf``, or all of them.
    findings : mapping
        What the segmentation found: ``structures`` and so on.
    folder : Path
        Gets files named like the keys of `own`, ``mask.nii`` and so on.

    Returns
    -------
    dict
        `findings` with new volumes, and ``notes``.

    Raises
    ------
    ImageError
        If a file cannot be used.
    """
    from bids_app.images.conform import read_grid, save_native
    from bids_app.inference.precomputed import mask_only, read_on_grid, replace

    native = read_grid(own['mask'])
    notes: list[str] = []
    brought: dict[str, np.ndarray] = {}
    for key, path in given.items():
        brought[key], note = read_on_grid(path, native.shape, native.affine)
        notes += [note] if note else []
    maps = {name: load_array(path)[0] for name, path in own.items()}
    mask = brought.get('brain_mask')
    if 'dseg' in own:
        tissues = {name: brought.get(f'probseg_{name}') for name in ('gm', 'wm', 'csf')}
        maps, new, remarks = replace(
            maps,
            native.affine,
            findings['structures'],
            mask=mask,
            tissues=None if tissues['gm'] is None else tissues,
        )
    else:
        maps, new, remarks = mask_only(maps['mask'], native.affine, mask)
    whole = ('mask', 'dseg', 'wholebrain')
    for name, data in maps.items():
        dtype = np.uint8 if name in whole else np.float32
        save_native(data, native, folder / f'{name}.nii', dtype)
    return {**findings, **new, 'notes': notes + remarks}
