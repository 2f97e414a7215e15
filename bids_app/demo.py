# SPDX-License-Identifier: Apache-2.0
"""A small BIDS data set made on the spot: ``python -m bids_app.demo DIR``.

The brain is the ICBM 2009a template that nilearn carries, so nothing is downloaded and nobody's
scan is given away. A rough skull and scalp, a bias field and noise make it look like a scan.
``sub-01`` is the template itself; ``sub-02`` is a deformed copy, scanned twice: in the second
session with flipped and permuted axes, so that both sessions must come out alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_app.errors import AnatNetError, UsageError

if TYPE_CHECKING:
    import nibabel as nib

NAME = 'AnatNet demo: the ICBM 2009a template as three scans'

SCANS = (
    {'subject': '01', 'session': '1', 'seed': 1, 'deform_mm': 0.0, 'axes': 'RAS'},
    {'subject': '02', 'session': '1', 'seed': 2, 'deform_mm': 4.0, 'axes': 'RAS'},
    {'subject': '02', 'session': '2', 'seed': 2, 'deform_mm': 4.0, 'axes': 'PIL'},
)

README = """\
# AnatNet demo

Three synthetic T1w scans made from the ICBM 2009a nonlinear symmetric template as carried by
nilearn, with an invented skull and scalp. The people of `participants.tsv` do not exist.
"""


def make_demo(folder: Path, spacing: float = 1.25) -> list[Path]:
    """Write the data set.

    Parameters
    ----------
    folder : Path
        Root of the data set; made if it is missing. A demo that is there already is completed.
    spacing : float
        Voxel size in mm.

    Returns
    -------
    list of Path
        The three scans.

    Raises
    ------
    UsageError
        If the folder holds something else.
    """
    from bids_app.bids.dataset import read_description
    from bids_app.bids.files import atomic_save_nifti, write_if_different

    if folder.exists() and any(folder.iterdir()) and read_description(folder).get('Name') != NAME:
        raise UsageError(f'{folder} is not empty and not an AnatNet demo; choose another folder')
    for name, text in _text_files().items():
        write_if_different(folder / name, text)
    files = []
    for scan in SCANS:
        stem = f'sub-{scan["subject"]}_ses-{scan["session"]}_T1w'
        anat = folder / f'sub-{scan["subject"]}' / f'ses-{scan["session"]}' / 'anat'
        write_if_different(
            anat / f'{stem}.json', json.dumps({'Modality': 'MR', 'SkullStripped': False}) + '\n'
        )
        files.append(anat / f'{stem}.nii.gz')
        if not files[-1].exists():
            image = make_scan(scan['seed'], scan['deform_mm'], scan['axes'], spacing)
            atomic_save_nifti(image, files[-1])
    return files


def make_scan(
    seed: int, deform_mm: float = 0.0, axes: str = 'RAS', spacing: float = 1.25
) -> nib.Nifti1Image:
    """Make one scan of a head from the template.

    Parameters
    ----------
    seed : int
        Seed of deformation, bias field and noise.
    deform_mm : float
        Largest displacement of a smooth random deformation, in mm.
    axes : str
        Directions in which the voxel axes point, for instance ``RAS`` or ``PIL``.
    spacing : float
        Voxel size in mm.

    Returns
    -------
    Nifti1Image
        int16, 0 to about 1000, with sform and qform.
    """
    import nibabel as nib
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(seed)
    brain, affine = _template()
    shape = tuple(int(np.ceil((n - 1) / spacing)) + 1 for n in brain.shape)
    coordinates = np.stack(np.meshgrid(*(np.arange(n) * spacing for n in shape), indexing='ij'))
    if deform_mm:
        coordinates += [_smooth(rng, shape, 40 / spacing, deform_mm) for _ in range(3)]
    brain = map_coordinates(brain, coordinates, order=1, output=np.float32)
    head = _add_head(brain, spacing)
    head *= 1 + _smooth(rng, shape, 60 / spacing, 0.2)
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * 0.015
    head = np.hypot(head + noise[0], noise[1])  # Rician, as in a magnitude image
    affine = affine @ np.diag([spacing, spacing, spacing, 1])
    data = np.round(np.clip(head, 0, 2) * 1000).astype(np.int16)

    image = nib.Nifti1Image(data, affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(turn)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units('mm', 'sec')
    return image


def _template() -> tuple[np.ndarray, np.ndarray]:
    """Load nilearn's skull-stripped T1w template at 1 mm, scaled to 0..1, with room for a head."""
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    brain = np.asarray(template.dataobj, dtype=np.float32)
    inside = np.argwhere(brain > 0.05 * brain.max())
    low, high = inside.min(0), inside.max(0) + 1
    brain = brain[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    room = ((20, 20), (20, 20), (0, 20))  # none below, where a head goes on
    affine = template.affine.copy()
    affine[:3, 3] += low - [before for before, _ in room]
    return np.pad(brain / brain.max(), room), affine


def _add_head(brain: np.ndarray, spacing: float) -> np.ndarray:
    """Put fluid, bone and scalp around a brain by its distance in mm."""
    from scipy.ndimage import binary_closing, distance_transform_edt

    inside = binary_closing(np.pad(brain > 0.05, 8), iterations=6)[8:-8, 8:-8, 8:-8]
    distance = distance_transform_edt(~inside) * spacing
    head = np.where(inside, np.maximum(brain, 0.18), 0).astype(np.float32)
    for near, far, value in ((0, 3, 0.16), (3, 9, 0.06), (9, 12, 0.45), (12, 15, 0.85)):
        head[(distance > near) & (distance <= far)] = value
    return head


def _smooth(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float, largest: float
) -> np.ndarray:
    """Return a smooth random field with values up to ``largest``.

    It is drawn on a coarse grid, whose spacing is ``sigma`` voxels, and interpolated.
    """
    from scipy.ndimage import zoom

    coarse = [int(np.ceil(n / sigma)) + 3 for n in shape]
    factors = [n / c for n, c in zip(shape, coarse, strict=True)]
    field = zoom(rng.standard_normal(coarse, dtype=np.float32), factors, order=3)
    return field / np.abs(field).max() * largest


def _text_files() -> dict[str, str]:
    """Return the files of the root."""
    description = {
        'Name': NAME,
        'BIDSVersion': '1.10.0',
        'DatasetType': 'raw',
        'Authors': ['AnatNet developers', 'nilearn developers'],
        'Acknowledgements': 'Template: ICBM 2009a Nonlinear Symmetric, McConnell Brain Imaging '
        'Centre (Fonov et al., 2011, NeuroImage 54:313-327)',
    }
    columns = {
        'age': {'Description': 'Invented age', 'Units': 'year'},
        'sex': {'Description': 'Invented sex', 'Levels': {'F': 'female', 'M': 'male'}},
    }
    return {
        'dataset_description.json': json.dumps(description, indent=2) + '\n',
        'participants.tsv': 'participant_id\tage\tsex\nsub-01\t30\tF\nsub-02\t60\tM\n',
        'participants.json': json.dumps(columns, indent=2) + '\n',
        'README.md': README,
    }


def main(argv: list[str] | None = None) -> int:
    """Run ``python -m bids_app.demo DIR``."""
    parser = argparse.ArgumentParser(prog='python -m bids_app.demo', description=make_demo.__doc__.
                                     splitlines()[0])  # fmt: skip
    parser.add_argument('folder', type=Path, help='root of the data set to make')
    parser.add_argument('--spacing', type=float, default=1.25, help='voxel size in mm')
    arguments = parser.parse_args(argv)
    try:
        for file in make_demo(arguments.folder, arguments.spacing):
            print(file)
    except AnatNetError as error:
        print(f'demo: error: {error}', file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == '__main__':
    sys.exit(main())
