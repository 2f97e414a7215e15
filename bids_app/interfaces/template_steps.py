# SPDX-License-Identifier: Apache-2.0
"""What the interfaces in template space do to files, as plain functions.

Native means the grid of the scan. Each function serves one space and all voxel sizes asked for in
it; what it writes is listed under ``files`` of its result, by
:func:`~bids_app.bids.outputs.file_id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.outputs import file_id, number_label
from bids_app.images.conform import load_array

TISSUES = ('gm', 'wm', 'csf')
MODULATED = ('gm', 'wm')

_MNI, _ALIGNED = 4, 2
"""NIfTI's codes for MNI 152 space and for "aligned to something else"."""


def write_std(
    data: np.ndarray, affine: np.ndarray, space: str, path: Path, dtype: type = np.float32
) -> str:
    """Write an array in template space as uncompressed NIfTI and return the path.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in the world of the template, mm.
    space : str
        Name of the template.
    path : Path
        Where to write.
    dtype : type
        Type on disk.
    """
    import nibabel as nib

    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), affine)
    code = _MNI if space.startswith('MNI') else _ALIGNED
    image.set_qform(affine, code)
    image.set_sform(affine, code)
    image.header.set_xyzt_units('mm', 'sec')
    nib.save(image, path)
    return str(path)


def _stacked(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read images of one grid as channels, with the affine that they share."""
    maps, affines = zip(*(load_array(path) for path in paths), strict=True)
    return np.stack(maps), affines[0]


def warp_files(
    normalisation_file: Path,
    files: Mapping[str, Path],
    folder: Path,
    *,
    voxel_sizes: Sequence[float],
) -> dict[str, Any]:
    """Bring scan, mask and tissues to template space, and write the transforms.

    Parameters
    ----------
    normalisation_file : Path
        A saved :class:`~bids_app.registration.normalisation.Normalisation`.
    files : mapping of str to Path
        Native ``preproc``, ``brain_mask``, ``probseg_gm``, ``probseg_wm`` and
        ``probseg_csf``.
    folder : Path
        Gets the files.
    voxel_sizes : sequence of float
        Edge lengths of voxels in template space, mm.

    Returns
    -------
    dict
        ``files``.
    """
    from bids_app.images.templates import target_grid
    from bids_app.images.transforms import write_composite
    from bids_app.registration.normalisation import Normalisation
    from bids_app.registration.warp import to_template

    normalisation = Normalisation.load(normalisation_file)
    space = normalisation.space
    written: dict[str, str] = {}
    for direction in ('forward', 'backward'):
        path = folder / f'{space}_{direction}.h5'
        write_composite(path, normalisation, direction)
        written[file_id(f'xfm_{direction}', space=space)] = str(path)
    keys = ('preproc', 'brain_mask', *(f'probseg_{name}' for name in TISSUES))
    native, native_affine = _stacked([files[key] for key in keys])
    for size in voxel_sizes:
        shape, affine = target_grid(size)
        t1w, mask, *tissues = to_template(native, native_affine, normalisation, shape, affine)
        inside = mask >= 0.5
        stacked = np.stack(tissues)
        dseg = np.where(inside & (stacked.sum(axis=0) > 0), stacked.argmax(axis=0) + 1, 0)
        images: list[tuple[str, np.ndarray, type]] = [
            ('std_preproc', t1w, np.float32),
            ('std_mask', inside, np.uint8),
            ('std_dseg', dseg, np.uint8),
            *(
                (f'std_probseg_{name}', data, np.float32)
                for name, data in zip(TISSUES, stacked, strict=True)
            ),
        ]
        for key, data, dtype in images:
            path = folder / f'{space}_{number_label(size)}_{key}.nii'
            identifier = file_id(key, space=space, res=size)
            written[identifier] = write_std(data, affine, space, path, dtype)
    return {'files': written}


def modulate_files(
    normalisation_file: Path,
    files: Mapping[str, Path],
    folder: Path,
    *,
    voxel_sizes: Sequence[float],
    smooth_fwhm: Sequence[float],
) -> dict[str, Any]:
    """Write modulated and smoothed maps of grey and white matter, and the Jacobian determinant.

    Parameters
    ----------
    normalisation_file : Path
        A saved :class:`~bids_app.registration.normalisation.Normalisation`.
    files : mapping of str to Path
        Native ``probseg_gm`` and ``probseg_wm``.
    folder : Path
        Gets the files.
    voxel_sizes : sequence of float
        Edge lengths of voxels in template space, mm.
    smooth_fwhm : sequence of float
        Full widths at half maximum of the Gaussian kernels, mm.

    Returns
    -------
    dict
        ``files``, and ``volumes``: a list with ``space``, ``voxel_size`` and ``tissues``, for
        each of which the volume in the scan (``native_mm3``) and that of the modulated map
        (``modulated_mm3``).
    """
    from bids_app.images.templates import target_grid
    from bids_app.morphometry.modulation import full_jacobian, modulated
    from bids_app.morphometry.smoothing import smooth
    from bids_app.morphometry.volumes import probability_volumes
    from bids_app.registration.normalisation import Normalisation

    normalisation = Normalisation.load(normalisation_file)
    space = normalisation.space
    native, native_affine = _stacked([files[f'probseg_{name}'] for name in MODULATED])
    native_volumes = probability_volumes(native, native_affine)
    written: dict[str, str] = {}
    volumes: list[dict[str, Any]] = []
    for size in voxel_sizes:
        shape, affine = target_grid(size)
        place = folder / f'{space}_{number_label(size)}'
        path = place.with_name(f'{place.name}_jacobian.nii')
        written[file_id('jacobian', space=space, res=size)] = write_std(
            full_jacobian(normalisation, shape, affine), affine, space, path
        )
        maps = modulated(native, native_affine, normalisation, shape, affine)
        kept = probability_volumes(maps, affine)
        tissues = {
            name: {'native_mm3': float(before), 'modulated_mm3': float(after)}
            for name, before, after in zip(MODULATED, native_volumes, kept, strict=True)
        }
        volumes.append({'space': space, 'voxel_size': size, 'tissues': tissues})
        for name, data in zip(MODULATED, maps, strict=True):
            path = place.with_name(f'{place.name}_{name}.nii')
            identifier = file_id(f'vbm_{name}', space=space, res=size)
            written[identifier] = write_std(data, affine, space, path)
            for fwhm in smooth_fwhm:
                path = place.with_name(f'{place.name}_{name}_{number_label(fwhm)}mm.nii')
                identifier = file_id(f'vbm_{name}_smooth', space=space, res=size, fwhm=fwhm)
                written[identifier] = write_std(smooth(data, affine, fwhm), affine, space, path)
    return {'files': written, 'volumes': volumes}


def prediction_files(
    maps: Mapping[str, Path], classifiers: Sequence[Path], folder: Path, *, threads: int = 1
) -> dict[str, Any]:
    """Write what classifiers say of the maps of a scan, one table for each.

    Parameters
    ----------
    maps : mapping of str to Path
        Maps by their file id, all spaces together.
    classifiers : sequence of Path
        Model folders.
    folder : Path
        Gets the tables.
    threads : int
        CPU threads.

    Returns
    -------
    dict
        ``files``; ``columns`` of the classes by file id; ``predictions``, a list with ``model``,
        ``target`` (column of ``participants.tsv``) and ``map`` (file id).

    Raises
    ------
    ModelError
        If a model cannot be used, or its map is missing or not one that it was trained on.
    """
    import torch

    from bids_app.inference.classifier import predict_files, read_task
    from bids_app.inference.models import load_card
    from bids_app.morphometry.volumes import write_table

    torch.set_num_threads(threads)
    written, columns, described = {}, {}, []
    for model in classifiers:
        card = load_card(model)
        grid, target = read_task(card, model)
        identifier = file_id('predictions', model=card.name)
        table = predict_files(maps, model)
        written[identifier] = str(write_table(table, folder / f'{card.name}.tsv'))
        columns[identifier] = {
            f'probability_{name}': {'Description': f'Probability that {target} is {name}'}
            for name in card.classes
        }
        described.append({'model': card.name, 'target': target, 'map': grid.file_id})
    return {'files': written, 'columns': columns, 'predictions': described}


def region_files(
    normalisation_file: Path, files: Mapping[str, Path], folder: Path, *, atlases: Sequence[str]
) -> dict[str, Any]:
    """Write the tissue volumes in the regions of atlases.

    Parameters
    ----------
    normalisation_file : Path
        A saved :class:`~bids_app.registration.normalisation.Normalisation`.
    files : mapping of str to Path
        Native ``probseg_gm``, ``probseg_wm`` and ``probseg_csf``.
    folder : Path
        Gets the tables.
    atlases : sequence of str
        ``FILE[:TABLE]`` of the atlases in this space.

    Returns
    -------
    dict
        ``files``; ``columns`` by file id; ``atlases``, a list with ``atlas`` (name), ``space``,
        ``source`` (its file) and ``absent``, the names of regions without any voxel.
    """
    from bids_app.morphometry.regions import REGION_COLUMNS, read_atlas, regional_volumes
    from bids_app.morphometry.volumes import probability_volumes, write_table
    from bids_app.registration.normalisation import Normalisation

    normalisation = Normalisation.load(normalisation_file)
    found = {name: load_array(files[f'probseg_{name}']) for name in TISSUES}
    native_affine = found['gm'][1]
    tissues = {name: data for name, (data, _) in found.items()}
    tiv = float(sum(probability_volumes([data], native_affine)[0] for data in tissues.values()))
    written, columns, described = {}, {}, []
    for text in atlases:
        atlas = read_atlas(text)
        table = regional_volumes(atlas, normalisation, tissues, native_affine, tiv=tiv)
        identifier = file_id('regions_morph', atlas=atlas.name)
        written[identifier] = str(write_table(table, folder / f'{atlas.name}.tsv'))
        columns[identifier] = {
            name: meaning for name, meaning in REGION_COLUMNS.items() if name in table.columns
        }
        described.append(
            {
                'atlas': atlas.name,
                'space': normalisation.space,
                'source': str(atlas.path),
                'absent': table['name'][table['flag'] != ''].tolist(),
            }
        )
    return {'files': written, 'columns': columns, 'atlases': described}
