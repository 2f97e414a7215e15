# SPDX-License-Identifier: Apache-2.0
"""Make the tissue maps and labels of a template with the default model.

``python -m bids_app.registration.make_template`` makes those that come with the app again; this
is due when the default model changes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from bids_app.data import structures
from bids_app.errors import AnatNetError
from bids_app.images.templates import (
    DEFAULT_SPACE,
    REGISTRATION_AFFINE,
    REGISTRATION_SHAPE,
    find_template,
)

TISSUES = ('gm', 'wm', 'csf')


def make_maps(
    t1w: Path,
    tissues: Path,
    labels: Path,
    *,
    model: Path,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int | None = None,
    low_mem: bool = False,
    symmetric: bool = False,
) -> None:
    """Segment the T1w image of a template and bring the result to the registration grid.

    Averages over people have no bias field worth correcting, so that step is left out. What the
    image does not cover is 0.

    Parameters
    ----------
    t1w : Path
        T1w image, whole head or skull-stripped.
    tissues : Path
        Gets a 4-D uint8 NIfTI: probabilities of GM, WM and CSF times 255.
    labels : Path
        Gets a 3-D uint8 NIfTI: structures with FreeSurfer's numbers.
    model, device, precision, threads, low_mem
        As in :func:`bids_app.inference.brain.locate_brain`.
    symmetric : bool
        The template is its own mirror image, and so shall the maps be: the network, which sees it
        in tiles, is not exactly symmetric, and a difference between the sides of the template
        would come back as one between the sides of every brain.

    Raises
    ------
    ImageError, ModelError
        If the image cannot be segmented.
    """
    from bids_app.images.conform import conform_file
    from bids_app.inference.brain import locate_brain, segment_brain

    options = {
        'model': model,
        'device': device,
        'precision': precision,
        'threads': threads,
        'low_mem': low_mem,
    }
    with tempfile.TemporaryDirectory(prefix='anatnet-template-') as name:
        folder = Path(name)
        conformed = folder / 'conformed.nii'
        conform_file(t1w, conformed)
        located = locate_brain(conformed, folder, **options)
        segment_brain(conformed, Path(located['coarse_file']), conformed, folder, **options)
        maps = np.stack(
            [_registration_grid(*_read(folder / f'{tissue}.nii')) for tissue in TISSUES], axis=-1
        )
        found = _label_grid(*_read(folder / 'wholebrain.nii'), symmetric)
    if symmetric:
        maps = (maps + maps[::-1]) / 2
    _save(np.rint(255 * np.clip(maps, 0, 1)), tissues)
    _save(found, labels)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def _registration_grid(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Bring a volume to the registration grid; templates may have oblique axes like any scan."""
    from bids_app.images.resample import resample_to

    return resample_to(data.astype(np.float32), affine, REGISTRATION_SHAPE, REGISTRATION_AFFINE)


def _label_grid(labels: np.ndarray, affine: np.ndarray, symmetric: bool = False) -> np.ndarray:
    """Give every voxel of the registration grid the label that has the largest part in it."""
    opposite = _opposite_labels() if symmetric else {}
    middle = REGISTRATION_SHAPE[0] // 2
    halves = {'left': slice(middle), 'right': slice(middle, None)}
    own_side = {one.index: halves[one.side] for one in structures() if one.side}
    best = np.zeros(REGISTRATION_SHAPE, dtype=np.float32)
    result = np.zeros(REGISTRATION_SHAPE, dtype=np.uint8)
    values = {int(value) for value in np.unique(labels)}
    for value in sorted(values | {opposite.get(value, value) for value in values}):
        share = _registration_grid(labels == value, affine)
        if symmetric:
            mirrored = _registration_grid(labels == opposite.get(value, value), affine)
            share = (share + mirrored[::-1]) / 2  # the grid is its own mirror image in x
            share[own_side.get(value, slice(0))] *= 1 + 1e-6  # where both sides have equal parts
        larger = share > best
        result[larger] = value
        best[larger] = share[larger]
    return result


def _opposite_labels() -> dict[int, int]:
    """Return the label of the other side for every label that has one."""
    sides = {(one.kind, one.side): one.index for one in structures()}
    other = {'left': 'right', 'right': 'left'}
    return {
        index: sides[kind, other[side]]
        for (kind, side), index in sides.items()
        if (kind, other.get(side)) in sides
    }


def brain_mask(data: np.ndarray) -> np.ndarray:
    """Return the brain of a skull-stripped image: what is not 0, without holes."""
    from bids_app.images.masks import fill_holes, largest_component

    return fill_holes(largest_component(data > 0)).astype(np.uint8)


def _save(data: np.ndarray, path: Path, affine: np.ndarray = REGISTRATION_AFFINE) -> None:
    import nibabel as nib

    from bids_app.bids.files import atomic_save_nifti

    image = nib.Nifti1Image(data.astype(np.uint8), affine)
    image.set_qform(affine, 4)  # 4: the world is that of MNI or another template
    image.set_sform(affine, 4)
    image.header.set_xyzt_units('mm')
    atomic_save_nifti(image, path, compresslevel=9)


def main(argv: list[str] | None = None) -> int:
    """Run ``python -m bids_app.registration.make_template``."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_app.registration.make_template',
        description=f'Make tissue maps, labels and brain mask of {DEFAULT_SPACE} again.',
    )
    parser.add_argument('--model', type=Path, help='model folder (default: the model "brain")')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--threads', type=int, help='CPU threads')
    options = parser.parse_args(argv)
    from bids_app.inference.models import find_model

    template = find_template(DEFAULT_SPACE)
    try:
        make_maps(
            template.t1w,
            template.tissues,
            template.labels,
            model=options.model or find_model('brain'),
            device=options.device,
            threads=options.threads,
            symmetric=True,
        )
        data, affine = _read(template.t1w)
        _save(brain_mask(data), template.mask, affine)
    except AnatNetError as error:
        print(f'make_template: error: {error}', file=sys.stderr)
        return error.exit_code
    for file in (template.tissues, template.labels, template.mask):
        print(file)
    return 0


if __name__ == '__main__':
    sys.exit(main())
