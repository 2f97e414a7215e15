# SPDX-License-Identifier: Apache-2.0
"""What the interfaces for further contrasts do to files, as plain functions.

Native means the grid of the reference, the image on which everything of a session is computed;
conformed means its grid in RAS order at 1 mm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.outputs import file_id
from bids_app.errors import AnatNetError, ModelError
from bids_app.images.conform import load_array
from bids_app.morphometry.volumes import probability_volumes

TISSUES = ('gm', 'wm', 'csf')
LESION = 'lesion'

LEAST_BRAIN = 0.25
"""Inside the mask, what a network calls background goes to the tissues in proportion; where it
leaves them less than this share, it is not blown up further."""


def coregister_contrasts(
    scans: Mapping[str, Path],
    reference_file: Path,
    mask_file: Path,
    conformed_file: Path,
    folder: Path,
    *,
    sloppy: bool = False,
    **network: Any,
) -> dict[str, Any]:
    """Bring further images of a session to the grid of its reference.

    Each is conformed, its brain found and its bias field taken out, as with the reference; the
    corrected scan is then registered rigidly and interpolated once.

    Parameters
    ----------
    scans : mapping of str to Path
        Scans as they were acquired, by their contrast (``T2w``, ``FLAIR``).
    reference_file, mask_file : Path
        The reference without its bias field, and its brain mask, on its own grid.
    conformed_file : Path
        An image on the conformed grid of the reference.
    folder : Path
        Gets a folder per contrast.
    sloppy : bool
        Fewer iterations, for tests.
    **network
        ``model``, ``device``, ``precision``, ``threads`` and ``low_mem`` of the network that
        finds the brain.

    Returns
    -------
    dict
        ``contrasts``: for each its ``status`` (``ok``; ``doubtful`` and ``failed``, which are not
        used), ``reasons`` (list of str), ``measures`` of the registration, ``notes`` on the scan,
        ``skull_stripped``, ``device``, ``precision`` and ``fallback`` of the network, and, where
        it is used, ``conformed``, the file on the conformed grid. ``files``: what is published,
        by file id.
    """
    found: dict[str, Any] = {}
    files: dict[str, str] = {}
    for name, scan in scans.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        try:
            result, written = _coregister(
                name, scan, reference_file, mask_file, conformed_file, place, sloppy, network
            )
        except (AnatNetError, ValueError, np.linalg.LinAlgError) as error:
            # One bad image beside the reference must not cost the session.
            result, written = {'status': 'failed', 'reasons': [' '.join(str(error).split())]}, {}
        found[name] = result
        files.update(written)
    return {'contrasts': found, 'files': files}


def _coregister(
    name: str,
    scan: Path,
    reference_file: Path,
    mask_file: Path,
    conformed_file: Path,
    folder: Path,
    sloppy: bool,
    network: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Register one image; return what was found and the files to publish."""
    import nibabel as nib

    from bids_app.images.conform import conform_file, load_scan, read_grid, save_native
    from bids_app.images.resample import resample_rigid
    from bids_app.images.transforms import write_linear
    from bids_app.inference.brain import locate_brain
    from bids_app.interfaces.steps import correct_bias, restore_mask
    from bids_app.morphometry.checks import judge_coregistration
    from bids_app.registration.rigid import register_rigid

    conformed, corrected = folder / 'conformed.nii', folder / 'corrected.nii'
    notes = conform_file(scan, conformed)['notes']
    located = locate_brain(conformed, folder, **network)
    mask = Path(located['mask_file'])
    bias = correct_bias(
        conformed, mask, scan, None, corrected, threads=network.get('threads') or 1, sloppy=sloppy
    )  # fmt: skip
    restore_mask(mask, scan, folder / 'native_mask.nii')

    reference = load_scan(reference_file)
    moving = load_scan(corrected)
    matrix, measures = register_rigid(
        reference.data,
        reference.affine,
        moving.data,
        moving.affine,
        fixed_mask=load_array(mask_file)[0] > 0.5,
        moving_mask=load_array(folder / 'native_mask.nii')[0] > 0.5,
    )
    status, reasons = judge_coregistration(measures)
    result = {
        'status': status,
        'reasons': reasons,
        'measures': measures,
        'notes': notes,
        'matrix': matrix.tolist(),
        'skull_stripped': bias['skull_stripped'],
        **{key: located[key] for key in ('device', 'precision', 'fallback')},
    }
    if status != 'ok':
        return result, {}

    native_file = folder / 'preproc.nii'
    data, _ = resample_rigid(moving.data, moving.affine, matrix, reference.shape, reference.affine)
    save_native(data, read_grid(reference_file), native_file)
    grid = nib.load(conformed_file)
    data, _ = resample_rigid(moving.data, moving.affine, matrix, grid.shape, grid.affine)
    on_conformed = folder / 'on_conformed.nii'
    nib.Nifti1Image(data.astype(np.float32), grid.affine).to_filename(on_conformed)
    forward = write_linear(folder / 'to_reference.txt', matrix)
    backward = write_linear(folder / 'from_reference.txt', np.linalg.inv(matrix))
    written = {
        file_id('contrast_preproc', contrast=name): str(native_file),
        file_id('xfm_to_reference', contrast=name): str(forward),
        file_id('xfm_from_reference', contrast=name): str(backward),
    }
    return {**result, 'conformed': str(on_conformed)}, written


def segment_tissues(
    conformed_file: Path,
    contrasts: Mapping[str, Path],
    own: Mapping[str, Path],
    findings: Mapping[str, Any],
    folder: Path,
    *,
    reference: str,
    model: Path,
    correct_lesions: bool = False,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int = 1,
    low_mem: bool = False,
) -> dict[str, Any]:
    """Make the tissue maps of a session with a tissue model, inside the brain mask.

    Parameters
    ----------
    conformed_file : Path
        Conformed reference without bias field.
    contrasts : mapping of str to Path
        Further images on the conformed grid, by contrast.
    own : mapping of str to Path
        Native ``mask`` and ``wholebrain`` of the segmentation.
    findings : mapping
        What the segmentation found; its volumes of tissues are replaced.
    folder : Path
        Gets ``dseg.nii``, ``gm.nii``, ``wm.nii`` and ``csf.nii`` on the native grid and, where
        lesions are looked for, ``lesion.nii``, ``lesion_mask.nii`` and ``lesions.tsv``.
    reference : str
        Contrast of the reference.
    model : Path
        Model folder; its card names the contrasts that it takes.
    correct_lesions : bool
        Count lesions as white matter.
    device, precision, threads, low_mem
        As for :func:`bids_app.inference.brain.locate_brain`.

    Returns
    -------
    dict
        `findings` with new ``tissues`` and ``tiv_mm3``; ``tissue_model``: ``name``, ``contrasts``
        (those that were used), ``unused``, ``lesions`` (whether they were looked for) and
        ``corrected``; ``device``, ``precision``, ``fallback``; ``files`` and ``columns`` of what
        is published besides.

    Raises
    ------
    ModelError
        If a contrast that the model needs is missing.
    """
    import torch

    from bids_app.images.conform import read_grid, save_native
    from bids_app.images.intensity import normalise_brain_zscore
    from bids_app.images.resample import resample_separable
    from bids_app.inference.models import load_card, resident_networks
    from bids_app.inference.tissue import STAGE, predict_tissue, usable_contrasts

    torch.set_num_threads(threads)
    card = load_card(model)
    images = {reference: conformed_file, **contrasts}
    channels = usable_contrasts(card, images, reference)
    if channels is None:
        raise ModelError(
            f'the tissue model {card.name} takes {", ".join(card.content["contrasts"])}, of which '
            f'too little is there ({", ".join(images)}): choose another one, or auto'
        )
    conformed, affine = load_array(conformed_file)
    native = read_grid(own['mask'])
    mask = load_array(own['mask'])[0] > 0.5
    inside = torch.from_numpy(
        resample_separable(mask.astype(np.float32), native.affine, conformed.shape, affine) >= 0.5
    )
    image = torch.zeros((len(channels), *conformed.shape))
    for number, name in enumerate(channels):
        if name:
            data = torch.from_numpy(load_array(images[name])[0])
            image[number] = normalise_brain_zscore(data, inside)
    probabilities, used = predict_tissue(
        image, resident_networks(model)[STAGE], shape=tuple(card.stages[STAGE]['shape']),
        classes=len(card.classes), device=device, precision=precision, threads=threads,
        low_mem=low_mem,
    )  # fmt: skip
    maps = {}
    for number, name in enumerate(card.classes):
        moved = resample_separable(
            probabilities[number].numpy(), affine, native.shape, native.affine
        )
        maps[name] = np.clip(moved, 0, 1)
    maps = without_background(maps, mask)
    # White-matter lesions show on FLAIR; without one, what the network calls so is a guess.
    lesions = LESION in maps and 'FLAIR' in channels
    tissues = tissues_of(maps, correct_lesions=lesions and correct_lesions)

    dseg = np.where(mask, tissues.argmax(axis=0) + 1, 0).astype(np.uint8)
    save_native(dseg, native, folder / 'dseg.nii', np.uint8)
    for name, data in zip(TISSUES, tissues, strict=True):
        save_native(data, native, folder / f'{name}.nii')
    volumes = probability_volumes(tissues, native.affine)
    found: dict[str, Any] = {
        **findings,
        'tissues': [
            {
                'index': number,
                'name': name.upper(),
                'volume_mm3': float(volume),
                'mean_probability': _mean(data[dseg == number]),
            }
            for number, (name, data, volume) in enumerate(
                zip(TISSUES, tissues, volumes, strict=True), start=1
            )
        ],
        'tiv_mm3': float(volumes.sum()),
        'tissue_model': {
            'name': card.name,
            'contrasts': [name for name in channels if name],
            'unused': [name for name in images if name not in channels],
            'lesions': lesions,
            'corrected': lesions and correct_lesions,
        },
        **used,
    }
    if lesions:
        healed = tissues if correct_lesions else tissues_of(maps, correct_lesions=True)
        found.update(
            _lesion_files(
                maps[LESION],
                load_array(own['wholebrain'])[0],
                native,
                folder,
                tiv=float(volumes.sum()),
                wm=float(probability_volumes(healed[1:2], native.affine)[0]),
            )
        )
    return found


def without_background(maps: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Share out what a network calls background inside the mask among the other classes.

    Parameters
    ----------
    maps : mapping of ndarray, shape (x, y, z)
        Probabilities by class, ``background`` among them.
    mask : ndarray of bool, shape (x, y, z)

    Returns
    -------
    dict of ndarray, float32
        The other classes: their sum is 1 inside the mask, or a little less where the network saw
        hardly any tissue, and 0 outside.
    """
    others = {name: data for name, data in maps.items() if name != 'background'}
    total = sum(others.values())
    share = np.where(mask, 1 / np.maximum(total, LEAST_BRAIN), 0)
    return {name: (data * share).astype(np.float32) for name, data in others.items()}


def tissues_of(maps: Mapping[str, np.ndarray], *, correct_lesions: bool = False) -> np.ndarray:
    """Return GM, WM and CSF of maps that may have lesions as a class of their own.

    Parameters
    ----------
    maps : mapping of ndarray, shape (x, y, z)
        ``gm``, ``wm``, ``csf`` and, optionally, ``lesion``, whose sum is at most 1.
    correct_lesions : bool
        Lesions are white matter. Without this they go to what the network held for the next
        likely, in proportion, as if it did not know lesions.

    Returns
    -------
    ndarray, shape (3, x, y, z), float32
        The sum is that of all maps.
    """
    from bids_app.morphometry.lesions import corrected_tissue

    gm, wm, csf = (maps[name] for name in TISSUES)
    lesion = maps.get(LESION)
    if lesion is None:
        return np.stack([gm, wm, csf])
    if correct_lesions:
        return np.stack([*corrected_tissue(gm, wm, lesion, own_class=True), csf])
    # Where the network is sure of a lesion and nothing else, it is in the white matter.
    weights = np.stack([gm, wm + 1e-3, csf])
    return (np.stack([gm, wm, csf]) + lesion * weights / weights.sum(axis=0)).astype(np.float32)


def _lesion_files(
    probability: np.ndarray,
    labels: np.ndarray,
    native: Any,
    folder: Path,
    *,
    tiv: float,
    wm: float,
) -> dict[str, Any]:
    """Write map, mask and table of lesions; volumes in mm^3."""
    from bids_app.images.conform import save_native
    from bids_app.morphometry.lesions import (
        LESION_COLUMNS,
        find_lesions,
        lateral_ventricles,
        lesion_bed,
        lesion_table,
    )
    from bids_app.morphometry.volumes import write_table

    lesions = find_lesions(
        probability, native.affine, lateral_ventricles(labels),
        beside=lesion_bed(labels, native.affine),
    )  # fmt: skip
    table = lesion_table(lesions, tiv=tiv, wm=wm)
    files = {
        'lesion_probseg': save_native(probability, native, folder / 'lesion.nii'),
        'lesion_mask': save_native(lesions.mask, native, folder / 'lesion_mask.nii', np.uint8),
        'lesion_morph': write_table(table, folder / 'lesions.tsv'),
    }
    columns = {name: text for name, text in LESION_COLUMNS.items() if name in table.columns}
    return {
        'files': {key: str(path) for key, path in files.items()},
        'columns': {'lesion_morph': columns},
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
