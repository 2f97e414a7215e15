# SPDX-License-Identifier: Apache-2.0
"""Templates: where their files are, and the grid on which scans are registered to them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.errors import UsageError

DEFAULT_SPACE = 'MNI152NLin2009aSym'
"""ICBM 2009a nonlinear symmetric (Fonov et al., 2011, NeuroImage 54:313-327), in nilearn."""

REGISTRATION_SPACING = 1.5
REGISTRATION_SHAPE = (112, 144, 112)
REGISTRATION_AFFINE = np.array(
    [
        [REGISTRATION_SPACING, 0.0, 0.0, -83.25],
        [0.0, REGISTRATION_SPACING, 0.0, -124.5],
        [0.0, 0.0, REGISTRATION_SPACING, -78.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""Registration grid of every template: RAS order, 1.5 mm, world of the template.

It covers -84 to 84, -125.25 to 90.75 and -78.75 to 89.25 mm, edge to edge.
"""

_FILE_OF_NILEARN = 'mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz'
_SHIPPED = Path(__file__).resolve().parents[1] / 'data' / 'templates'


@dataclass(frozen=True)
class Template:
    """Files of a template.

    Attributes
    ----------
    space : str
        Name as in ``space-<name>``, with the cohort behind a ``+`` where there is one.
    t1w : Path
        T1w image on its own grid.
    mask : Path or None
        Brain mask on the grid of `t1w`.
    tissues : Path
        4-D uint8 on the registration grid: probabilities of GM, WM and CSF times 255.
    labels : Path
        3-D uint8 on the registration grid: structures with FreeSurfer's numbers.
    """

    space: str
    t1w: Path
    mask: Path | None
    tissues: Path
    labels: Path


def target_grid(voxel_size: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the grid with the field of view of the registration grid and this voxel size.

    Parameters
    ----------
    voxel_size : float
        Edge length in mm.

    Returns
    -------
    shape : tuple of 3 int
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in mm, RAS order. At the size of the registration grid it is that
        grid. Sizes that do not divide the field of view reach beyond it on both sides.

    Examples
    --------
    >>> shape, affine = target_grid(2.0)
    >>> shape, affine[:3, 3].tolist()
    ((84, 108, 84), [-83.0, -124.25, -77.75])
    """
    from .grids import conform_grid

    return conform_grid(REGISTRATION_SHAPE, REGISTRATION_AFFINE, voxel_size)


def _t1w_of_nilearn() -> Path:
    """Find the template that nilearn carries; importing nilearn itself takes seconds."""
    spec = importlib.util.find_spec('nilearn')
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / 'datasets' / 'data' / _FILE_OF_NILEARN
        if path.is_file():
            return path
    from nilearn.datasets import MNI152_FILE_PATH

    return Path(MNI152_FILE_PATH)


def template_files(space: str, templateflow_home: Path | None = None) -> tuple[Path, Path | None]:
    """Find the T1w image of a template and its brain mask, without any computation.

    Parameters
    ----------
    space : str
        As :func:`bids_app.bids.spaces.parse_space` returns it.
    templateflow_home : Path, optional
        Folder of TemplateFlow; else ``TEMPLATEFLOW_HOME``, else ``~/.cache/templateflow``.

    Returns
    -------
    t1w : Path
    mask : Path or None

    Raises
    ------
    UsageError
        If the files of the template are not there.
    """
    if space == DEFAULT_SPACE:
        return _t1w_of_nilearn(), _SHIPPED / f'tpl-{space}_res-01_desc-brain_mask.nii.gz'
    name, _, cohort = space.partition('+')
    home = Path(
        templateflow_home
        or os.environ.get('TEMPLATEFLOW_HOME')
        or Path.home() / '.cache' / 'templateflow'
    )
    folder = home / f'tpl-{name}'
    stem = f'tpl-{name}'
    if cohort:
        folder, stem = folder / f'cohort-{cohort}', f'{stem}_cohort-{cohort}'
    for resolution in ('_res-01', '_res-1', ''):
        t1w = folder / f'{stem}{resolution}_T1w.nii.gz'
        # The client of TemplateFlow makes empty files of what it has not fetched yet.
        if t1w.is_file() and t1w.stat().st_size > 0:
            mask = folder / f'{stem}{resolution}_desc-brain_mask.nii.gz'
            return t1w, (mask if mask.is_file() and mask.stat().st_size > 0 else None)
    wanted = f"'{name}', suffix='T1w', resolution=1" + (f", cohort='{cohort}'" if cohort else '')
    raise UsageError(
        f'--output-spaces {space}: no {stem}_res-01_T1w.nii.gz in {folder}: fetch it with '
        f'templateflow (python -c "from templateflow.api import get; get({wanted})"), point '
        f'TEMPLATEFLOW_HOME to a folder that has it, or take {DEFAULT_SPACE}, always there'
    )


def find_template(
    space: str,
    *,
    templateflow_home: Path | None = None,
    cache_dir: Path | None = None,
    model: Path | None = None,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int | None = None,
    low_mem: bool = False,
) -> Template:
    """Return a template with its tissue maps and labels.

    Those of ``MNI152NLin2009aSym`` come with the app. Those of any other template are made once
    by the default model (about a minute) and kept in `cache_dir`; several processes may do so at
    once.

    Parameters
    ----------
    space : str
        As :func:`bids_app.bids.spaces.parse_space` returns it.
    templateflow_home : Path, optional
        See :func:`template_files`.
    cache_dir : Path, optional
        Where made maps are kept; needed for every space but the default.
    model : Path, optional
        Model folder that makes the maps; the default model if not given.
    device, precision, threads, low_mem
        As in :func:`bids_app.inference.brain.locate_brain`.

    Returns
    -------
    Template

    Raises
    ------
    UsageError
        If the files of the template are not there.
    ImageError, ModelError
        If the template cannot be segmented.
    """
    t1w, mask = template_files(space, templateflow_home)
    if space == DEFAULT_SPACE:
        return Template(space, t1w, mask, *map_files(_SHIPPED, f'tpl-{space}'))
    if cache_dir is None:
        raise ValueError(f'{space}: maps have to be made, but there is no cache_dir to keep them')
    # The only step from images back to networks; a template is an image like any other to them.
    from bids_app.inference.models import find_model, model_checksum

    model = model or find_model('brain')
    status = t1w.stat()
    content = f'{model_checksum(model)} {status.st_size} {status.st_mtime_ns}'
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    tissues, labels = map_files(Path(cache_dir), f'tpl-{space}_{key}')
    if not (tissues.is_file() and labels.is_file()):
        from bids_app.registration.make_template import make_maps

        make_maps(
            t1w,
            tissues,
            labels,
            model=model,
            device=device,
            precision=precision,
            threads=threads,
            low_mem=low_mem,
        )
    return Template(space, t1w, mask, tissues, labels)


def map_files(folder: Path, stem: str) -> tuple[Path, Path]:
    """Return the names of the tissue maps and labels of a template in a folder."""
    return (
        folder / f'{stem}_res-1p5_probseg.nii.gz',
        folder / f'{stem}_res-1p5_desc-wholebrain_dseg.nii.gz',
    )
