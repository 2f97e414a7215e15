# SPDX-License-Identifier: Apache-2.0
"""What the interfaces for diffusion images do to files, as plain functions.

Work files are in RAS+ order; what is published is on the grid of the diffusion images as they were
acquired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.images.conform import load_array

TISSUE_FRACTION = 0.15
"""What is darker than this part of the median b=0 of the brain is no brain, but air or bone that
the mask, which is found at 3 mm, has taken in."""

LEAST_COVERAGE = 0.3
"""Share of the brain that diffusion images must hold to be registered to an anatomical one."""

_SMOOTHING = 0.8  # voxels: single ones at the border of the mask go to what is around them

UNCORRECTED = (
    'Distortion by susceptibility differences was not corrected: near the sinuses and the ear '
    'canals, images are shifted and stretched along the phase-encoding direction.',
    'Distortion by eddy currents was not corrected.',
)
"""What every result of diffusion images lacks, in words."""

STILL = 'Head motion was not corrected (see --dwi-motion).'


def prepare_series(
    images: Sequence[Path],
    bvals: Sequence[Path],
    bvecs: Sequence[Path],
    folder: Path,
    *,
    b0_threshold: float,
    denoise: str = 'none',
    motion: str = 'none',
) -> dict[str, Any]:
    """Read the diffusion runs of a session and join them to one series.

    Parameters
    ----------
    images, bvals, bvecs : sequence of Path
        Runs of one grid.
    folder : Path
        Gets ``series.nii`` (float32, RAS+ order).
    b0_threshold : float
        s/mm^2 up to which a volume is one of b=0.
    denoise : {'none', 'mppca'}
    motion : {'none', 'rigid'}

    Returns
    -------
    dict
        ``series`` (file), ``bvals``, ``bvecs`` (along RAS+ voxel axes), ``images``, ``volumes``,
        ``shells``, ``directions``, ``no_tensor``, ``notes``, ``uncorrected`` and, where these
        were asked for, ``motion`` and ``noise``.

    Raises
    ------
    ImageError
        If a run cannot be used, or none of its volumes is.
    """
    import nibabel as nib

    from bids_app.diffusion.gradients import count_directions, shells
    from bids_app.diffusion.series import join_runs, read_run, without_undirected

    runs = [read_run(*run) for run in zip(images, bvals, bvecs, strict=True)]
    series = without_undirected(join_runs(runs, b0_threshold), b0_threshold)
    found: dict[str, Any] = {}
    if denoise == 'mppca':
        from bids_app.diffusion.denoising import denoise_series

        series, found['noise'] = denoise_series(series)
    has_b0 = bool((series.gradients.bvals <= b0_threshold).any())
    if motion == 'rigid' and has_b0 and len(series.gradients) > 1:
        from bids_app.diffusion.preprocessing import correct_motion

        series, found['motion'] = correct_motion(series, b0_threshold)
    path = folder / 'series.nii'
    nib.Nifti1Image(np.asarray(series.data, np.float32), series.affine).to_filename(path)
    gradients = series.gradients
    return {
        **found,
        'series': str(path),
        'bvals': gradients.bvals.tolist(),
        'bvecs': gradients.bvecs.tolist(),
        'images': [str(image) for image in images],
        'volumes': len(gradients),
        'shells': shells(gradients.bvals, b0_threshold),
        'directions': count_directions(gradients, b0_threshold),
        'no_tensor': series.tensor_problem(b0_threshold),
        'notes': list(series.notes),
        'uncorrected': [*UNCORRECTED, *(() if 'motion' in found else (STILL,))],
    }


def map_diffusion(
    prepared: Mapping[str, Any],
    folder: Path,
    *,
    model: Path,
    synth_model: Path | None = None,
    one_mm: bool = False,
    b0_threshold: float,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int = 1,
    low_mem: bool = False,
) -> dict[str, Any]:
    """Make mean images, brain mask and tensor maps of a series, and synthesise a T1w.

    Parameters
    ----------
    prepared : mapping
        What :func:`prepare_series` returned.
    folder : Path
        Gets the files.
    model : Path
        Segmentation model, whose first network finds the brain.
    synth_model : Path, optional
        Synthesis model.
    one_mm : bool
        Synthesise at 1 mm, too, as ``t1w_1mm.nii`` in RAS+ order.
    b0_threshold : float
        s/mm^2.
    device, precision, threads, low_mem
        As for :func:`bids_app.inference.brain.locate_brain`.

    Returns
    -------
    dict
        ``files`` to publish by key, ``t1w_1mm`` (file) where asked for, ``tensor_volumes``,
        ``tensor_bmax``, ``brain_mm3``, ``confidence``, ``notes``, ``synthesis`` (``name``) where
        there is one, ``device``, ``precision``, ``fallback``.

    Raises
    ------
    ImageError
        If there is no brain.
    """
    from dataclasses import replace

    from bids_app.diffusion.channels import channels_of_series
    from bids_app.diffusion.maps import direction_colours, tensor_maps
    from bids_app.diffusion.series import coverage_notes
    from bids_app.diffusion.tensor import fractional_anisotropy
    from bids_app.images.bias import n4_bias_field

    network = {'device': device, 'precision': precision, 'threads': threads, 'low_mem': low_mem}
    series = _load(prepared)
    bvals = series.gradients.bvals
    low = bvals <= b0_threshold
    b0 = series.data[..., low if low.any() else bvals == bvals.min()].mean(axis=3)
    mask, located = brain_of(b0, series.affine, folder, model=model, **network)
    notes = coverage_notes(series, mask)
    saved = _Saver(series, folder)
    # The receiving coils brighten all volumes alike, so that the tensor does not change.
    field = n4_bias_field(b0, series.affine, mask, threads=threads)
    series = replace(series, data=series.data / field[..., None])
    if low.any():
        saved('dwi_b0', b0 / field)
    saved('dwi_mask', mask.astype(np.uint8), np.uint8)
    found: dict[str, Any] = {
        'brain_mm3': float(mask.sum() * abs(np.linalg.det(series.affine[:3, :3]))),
        'notes': notes,
        **{name: located[name] for name in ('confidence', 'device', 'precision', 'fallback')},
    }
    if prepared['no_tensor']:
        if not low.all():
            saved('dwi_mean', series.data[..., ~low].mean(axis=3))
        return {**found, 'files': saved.files}

    result = channels_of_series(
        series.data, bvals, series.gradients.bvecs, mask, b0_threshold=b0_threshold
    )
    saved('dwi_mean', result.mean_dwi)
    for name, image in tensor_maps(result.fit).items():
        saved(f'dwi_{name}', image)
    saved('dwi_evals', result.fit.eigenvalues)
    fa = fractional_anisotropy(result.fit.eigenvalues)
    saved('dwi_colour', direction_colours(fa, result.fit.eigenvectors[0], series.affine))
    found['tensor_volumes'] = int(result.used.sum())
    found['tensor_bmax'] = float(bvals[result.used].max())
    if synth_model is not None:
        found['synthesis'] = _synthesise(
            result.channels, mask, series.affine, saved, synth_model, one_mm, network
        )
    return {**found, 'files': saved.files}


def _load(prepared: Mapping[str, Any]) -> Any:
    """Return the series that :func:`prepare_series` wrote."""
    import nibabel as nib

    from bids_app.diffusion.gradients import Gradients
    from bids_app.diffusion.series import Series
    from bids_app.images.conform import read_grid
    from bids_app.images.grids import canonical_affine

    image = nib.load(prepared['series'])
    grid = read_grid(prepared['images'][0])
    gradients = Gradients(np.array(prepared['bvals']), np.array(prepared['bvecs']))
    _, affine, turn = canonical_affine(grid.shape, grid.affine)
    return Series(np.asarray(image.dataobj), affine, gradients, grid, turn)


class _Saver:
    """Writes images on the grid of the diffusion images, and keeps the list of the files."""

    def __init__(self, series: Any, folder: Path) -> None:
        self.series, self.folder = series, folder
        self.files: dict[str, str] = {}

    def __call__(self, key: str, image: np.ndarray, dtype: Any = np.float32) -> None:
        from bids_app.images.conform import save_native

        path = self.folder / f'{key}.nii'
        save_native(self.series.to_file_order(image), self.series.grid, path, dtype)
        self.files[key] = str(path)


def brain_of(
    image: np.ndarray, affine: np.ndarray, folder: Path, *, model: Path, **network: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Find the brain in a mean diffusion image.

    Parameters
    ----------
    image : ndarray, shape (x, y, z)
        Mean b=0 in RAS+ order.
    affine : ndarray, shape (4, 4)
    folder : Path
        For files on the way.
    model : Path
        Segmentation model: its first network knows heads of any contrast.
    **network
        ``device``, ``precision``, ``threads`` and ``low_mem``.

    Returns
    -------
    mask : ndarray of bool, shape (x, y, z)
        One part without holes; voxels with hardly any signal are not in it.
    located : dict
        What :func:`bids_app.inference.brain.locate_brain` found.
    """
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    from bids_app.images.conform import conform_file
    from bids_app.images.masks import clean_mask
    from bids_app.images.resample import resample_separable
    from bids_app.inference.brain import locate_brain

    plain, conformed = folder / 'b0.nii', folder / 'conformed.nii'
    nib.Nifti1Image(image.astype(np.float32), affine).to_filename(plain)
    conform_file(plain, conformed)
    located = locate_brain(conformed, folder, model=model, **network)
    found, place = load_array(Path(located['mask_file']))
    mask = resample_separable(found, place, image.shape, affine) >= 0.5
    if mask.any():
        mask &= image > TISSUE_FRACTION * np.median(image[mask])
        mask = gaussian_filter(mask.astype(np.float32), _SMOOTHING) > 0.5
    return clean_mask(mask), located


def _synthesise(
    channels: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    saved: _Saver,
    model: Path,
    one_mm: bool,
    network: Mapping[str, Any],
) -> dict[str, Any]:
    """Synthesise a T1w on the grid of the channels and, if asked for, at 1 mm."""
    import nibabel as nib

    from bids_app.images.grids import conform_grid
    from bids_app.inference.deepanat import (
        STAGE,
        regrid_channels,
        synthesise_t1w,
        t1w_intensities,
    )
    from bids_app.inference.models import load_card, resident_networks

    generator = resident_networks(model)[STAGE]
    predicted = synthesise_t1w(channels, mask, generator, **network)
    saved('dwi_t1w', t1w_intensities(predicted, mask))
    found = {'name': load_card(model).name}
    if one_mm:
        shape, target = conform_grid(mask.shape, affine)
        fine, inside = regrid_channels(channels, mask, affine, shape, target)
        predicted = synthesise_t1w(fine, inside, generator, **network)
        image = nib.Nifti1Image(t1w_intensities(predicted, inside), target)
        image.header.set_xyzt_units('mm', 'sec')
        image.set_qform(target, 1)
        image.set_sform(target, 1)
        path = saved.folder / 't1w_1mm.nii'
        image.to_filename(path)
        found['t1w_1mm'] = str(path)
    return found


def align_diffusion(
    mapped: Mapping[str, Any],
    reference_file: Path,
    mask_file: Path,
    dseg_file: Path,
    wholebrain_file: Path,
    folder: Path,
    *,
    same_space: bool = False,
) -> dict[str, Any]:
    """Register diffusion images and reference, bring the structures over, and describe them.

    The rigid map is found twice: through the synthesised T1w, which has the contrast of the
    reference, and through b=0. Of those that pass the checks, the one is used after which the
    tissues of the reference explain mean diffusivity better; both are recorded.

    Parameters
    ----------
    mapped : mapping
        What :func:`map_diffusion` returned.
    reference_file, mask_file, dseg_file, wholebrain_file : Path
        Reference without bias field, brain mask, tissues and structures on its grid.
    folder : Path
        Gets the files.
    same_space : bool
        The reference was synthesised from these images: there is nothing to register.

    Returns
    -------
    dict
        ``files`` to publish, ``columns`` of the table, ``registrations`` (by ``synthesized`` and
        ``b0``: ``status``, ``reasons`` and ``measures``), ``through`` (which of them was used),
        ``status``, ``reasons``, ``matrix``, ``apart_mm`` (mean distance of the places to which
        the two carry the brain), ``agreement`` (correlation of diffusion images with the
        resampled reference in the brain).
    """
    found: dict[str, Any] = {'registrations': {}, 'status': 'ok', 'reasons': []}
    matrix = np.eye(4)
    written: dict[str, str] = {}
    if same_space:
        found['through'] = 'same space'
    else:
        matrix, written = _register(mapped, reference_file, mask_file, dseg_file, folder, found)
    found['matrix'] = matrix.tolist()
    if found['status'] == 'ok':
        written |= _over(mapped, reference_file, wholebrain_file, matrix, folder, found,
                         same_space)  # fmt: skip
    return {**found, 'files': written}


def _register(
    mapped: Mapping[str, Any],
    reference_file: Path,
    mask_file: Path,
    dseg_file: Path,
    folder: Path,
    found: dict[str, Any],
) -> tuple[np.ndarray, dict[str, str]]:
    """Register both ways; return the map (world of the diffusion images to the reference's)."""
    from bids_app.images.conform import load_scan
    from bids_app.images.transforms import write_linear
    from bids_app.morphometry.checks import judge_coregistration
    from bids_app.registration.rigid import register_rigid

    files = mapped['files']
    reference = load_scan(reference_file)
    brain = load_array(mask_file)[0] > 0.5
    dseg = load_array(dseg_file)[0]
    moving_mask = load_array(Path(files['dwi_mask']))[0] > 0.5
    ways = {'synthesized': 'dwi_t1w', 'b0': 'dwi_b0'}
    maps: dict[str, np.ndarray] = {}
    for way, key in ways.items():
        if key not in files:
            continue
        moving, affine = load_array(Path(files[key]))
        # The synthesised T1w has no skull: outside the brain there is nothing to compare.
        fixed = np.where(brain, reference.data, 0) if way == 'synthesized' else reference.data
        matrix, measures = register_rigid(
            fixed, reference.affine, moving, affine, fixed_mask=brain, moving_mask=moving_mask
        )
        measures.pop('seconds', None)
        measures['tissue_fit'] = tissue_fit(files, dseg, reference.affine, matrix)
        judged = dict(measures)
        if judged.get('coverage', 0) > LEAST_COVERAGE:  # a slab is said to be one elsewhere
            del judged['coverage']
        status, reasons = judge_coregistration(judged)
        found['registrations'][way] = {'status': status, 'reasons': reasons, 'measures': measures}
        maps[way] = matrix
    good = [way for way in maps if found['registrations'][way]['status'] == 'ok']
    # Of equal ones the first, which has the contrast of the reference.
    through = max(
        good or maps, key=lambda way: found['registrations'][way]['measures']['tissue_fit']
    )
    chosen = found['registrations'][through]
    found.update(through=through, status=chosen['status'], reasons=chosen['reasons'])
    if len(maps) == 2:
        points = np.argwhere(brain)[::97] @ reference.affine[:3, :3].T + reference.affine[:3, 3]
        apart = [points @ m[:3, :3].T + m[:3, 3] for m in maps.values()]
        distance = np.linalg.norm(apart[0] - apart[1], axis=1).mean()
        found['apart_mm'] = round(float(distance), 2)
    if chosen['status'] != 'ok':
        return np.linalg.inv(maps[through]), {}
    forward = write_linear(folder / 'to_reference.txt', maps[through])
    backward = write_linear(folder / 'from_reference.txt', np.linalg.inv(maps[through]))
    return np.linalg.inv(maps[through]), {
        'dwi_xfm_to_reference': str(forward),
        'dwi_xfm_from_reference': str(backward),
    }


def tissue_fit(
    files: Mapping[str, str], dseg: np.ndarray, dseg_affine: np.ndarray, matrix: np.ndarray
) -> float:
    """Say how well the tissues of the reference explain a diffusion map, given a registration.

    It depends on neither image that was registered, so that it can judge between them.

    Parameters
    ----------
    files : mapping
        ``dwi_md`` (or else ``dwi_b0``) and ``dwi_mask``.
    dseg : ndarray, shape (x, y, z)
        Tissues, 1 to 3.
    dseg_affine : ndarray, shape (4, 4)
    matrix : ndarray, shape (4, 4)
        World of the tissues to world of the diffusion images.

    Returns
    -------
    float
        Correlation ratio, 0 to 1: part of the variance of mean diffusivity between the tissues.
    """
    from bids_app.images.resample import resample_rigid

    data, affine = load_array(Path(files.get('dwi_md', files['dwi_b0'])))
    mask = load_array(Path(files['dwi_mask']))[0] > 0.5
    inverse = np.linalg.inv(matrix)
    shares = np.stack([
        resample_rigid((dseg == n).astype(np.float32), dseg_affine, inverse, data.shape, affine,
                       order=1)[0]
        for n in (1, 2, 3)
    ])  # fmt: skip
    inside = mask & (shares.sum(axis=0) > 0.5)
    if inside.sum() < 10:
        return 0.0
    values, labels = data[inside].astype(float), shares[:, inside].argmax(axis=0)
    between = sum(
        (labels == n).sum() * (values[labels == n].mean() - values.mean()) ** 2
        for n in np.unique(labels)
    )
    return round(float(between / max(((values - values.mean()) ** 2).sum(), 1e-12)), 4)


def _over(
    mapped: Mapping[str, Any],
    reference_file: Path,
    wholebrain_file: Path,
    matrix: np.ndarray,
    folder: Path,
    found: dict[str, Any],
    same_space: bool,
) -> dict[str, str]:
    """Bring reference and structures to the diffusion grid; write the table of regions."""
    from bids_app.diffusion.maps import MAPS, REGION_COLUMNS, majority_labels, region_table
    from bids_app.images.conform import load_scan, read_grid, save_native
    from bids_app.images.resample import resample_rigid
    from bids_app.morphometry.volumes import write_table

    files = mapped['files']
    grid = read_grid(Path(files['dwi_b0']))
    mask = load_array(Path(files['dwi_mask']))[0] > 0.5
    labels, affine = load_array(wholebrain_file)
    over = majority_labels(
        labels.astype(np.int16), affine, grid.shape, grid.affine, matrix
    )  # fmt: skip
    written = {'dwi_dseg': str(save_native(over, grid, folder / 'dseg.nii', np.int16))}
    if not same_space:
        scan = load_scan(reference_file)
        data, _ = resample_rigid(scan.data, scan.affine, matrix, grid.shape, grid.affine, order=1)
        written['dwi_reference'] = str(save_native(data, grid, folder / 'reference.nii'))
        found['agreement'] = _agreement(files, data, mask & (data > 0))
    if 'dwi_fa' in files:
        maps = {name: load_array(Path(files[f'dwi_{name}']))[0] for name in MAPS}
        table = region_table(over, maps, mask)
        written['dwi_regions'] = str(write_table(table, folder / 'regions.tsv'))
        found['columns'] = {'dwi_regions': REGION_COLUMNS}
    return written


def _agreement(
    files: Mapping[str, str], reference: np.ndarray, inside: np.ndarray
) -> dict[str, float]:
    """Correlate diffusion images with the resampled reference in the brain."""
    keys = ('dwi_t1w', 'dwi_b0', 'dwi_mean', 'dwi_fa', 'dwi_md')
    target = reference[inside]
    if target.size < 10 or np.ptp(target) < 1e-3 * np.abs(target).mean():
        return {}
    found = {}
    for key in keys:
        if key in files:
            values = load_array(Path(files[key]))[0][inside]
            if np.ptp(values) > 1e-3 * np.abs(values).mean():
                found[key] = round(float(np.corrcoef(values, target)[0, 1]), 4)
    return found
