# SPDX-License-Identifier: Apache-2.0
"""A scan in template space: the template of nilearn under a known deformation."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_app.images.templates import target_grid
from bids_app.registration.normalisation import jacobian_determinant

SPACE = 'MNI152NLin2009aSym'
FACTOR = 0.9
"""Volume of the made-up scan's affine part: it is smaller than the template."""


class Page(HTMLParser):
    """Collects what a browser would load, the ids, links inside the page, and open tags."""

    VOID = ('meta', 'link', 'br', 'img', 'input', 'hr', 'path', 'image', 'use', 'rect', 'line')

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if 'id' in values:
            self.ids.append(values['id'])
        for name in ('src', 'data', 'srcset', 'poster', 'action'):
            if name in values:
                self.loaded.append(values[name])
        address = values.get('href') or values.get('xlink:href')
        if address is not None:
            if tag == 'a':
                self.anchors.append(address)
            else:
                self.loaded.append(address)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag


@pytest.fixture(scope='session')
def parse() -> type[Page]:
    """The parser of a page, made from its text."""
    return Page


def make_space(
    folder: Path, *, voxel_size: float = 3.0, amplitude: float = 4.0, prefix: str = 'sub-01_ses-1'
) -> dict[str, Any]:
    """Write the files of one output space and return it as a SessionReport wants it.

    The scan is the template, displaced by sines of up to ``amplitude`` mm.
    """
    from nilearn.datasets import MNI152_FILE_PATH
    from scipy.ndimage import gaussian_filter, map_coordinates

    shape, affine = target_grid(voxel_size)
    points = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    shift = amplitude / 2 * (np.sin(points / 25) + np.sin(points[:, [1, 2, 0]] / 25 + (0, 1, 2)))
    maps = {}
    for name in ('t1', 'gm', 'wm'):
        image = nib.load(Path(MNI152_FILE_PATH).parent / Path(MNI152_FILE_PATH).name.replace(
            '_t1_', f'_{name}_'))  # fmt: skip
        data = np.asarray(image.dataobj, np.float32) / (1 if name == 't1' else 255)
        to_voxel = np.linalg.inv(image.affine)
        for kind, where in (('template', points), ('scan', points + shift)):
            at = (where @ to_voxel[:3, :3].T + to_voxel[:3, 3]).T
            maps[kind, name] = map_coordinates(data, at, order=1).reshape(shape)
    jacobian = FACTOR * jacobian_determinant(shift.T.reshape(3, *shape), np.diag(affine)[:3])
    tissues = np.stack([maps['template', 'gm'], maps['template', 'wm'],
                        np.zeros(shape)], -1) * 255  # fmt: skip
    modulated = maps['scan', 'gm'] * jacobian
    files = {
        'std_preproc': (f'{prefix}_space-{SPACE}_res-3_desc-preproc_T1w', maps['scan', 't1']),
        'vbm_gm': (f'{prefix}_space-{SPACE}_res-3_label-GM_desc-modulated_probseg', modulated),
        'vbm_gm_smooth': (
            f'{prefix}_space-{SPACE}_res-3_label-GM_desc-modulatedsmooth6mm_probseg',
            gaussian_filter(modulated, 6 / 2.355 / voxel_size),
        ),
        'jacobian': (f'{prefix}_space-{SPACE}_res-3_desc-jacobian_morph', jacobian),
    }
    paths = {}
    for key, (name, data) in files.items():
        paths[key] = str(folder / f'{name}.nii.gz')
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), paths[key])
    nib.save(nib.Nifti1Image(tissues.astype(np.uint8), affine), folder / 'tissues.nii.gz')
    return {
        'space': SPACE,
        'method': 'refined',
        'voxel_size': voxel_size,
        'fwhm': [6, 8],
        'measures': {
            'affine_dice': 0.93, 'dice_gm': 0.71, 'dice_wm': 0.78, 'dice_csf': 0.55,
            'correlation_gm': 0.88, 'jacobian_min': 0.31, 'jacobian_p1': 0.55,
            'jacobian_p99': 1.9, 'jacobian_max': 3.2, 'inverse_error_mm': 0.04,
            'seconds_affine': 2.5, 'seconds_network': 1.2, 'seconds_refine': 9.1,
        },
        'files': paths,
        'template': {'t1w': str(MNI152_FILE_PATH), 'tissues': str(folder / 'tissues.nii.gz')},
    }  # fmt: skip


@pytest.fixture(scope='session')
def space(tmp_path_factory) -> dict[str, Any]:
    """One output space with its files, at 3 mm."""
    return make_space(tmp_path_factory.mktemp('space'))
