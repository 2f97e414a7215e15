# SPDX-License-Identifier: Apache-2.0
"""Heads in affine alignment with the template, to train registration on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_app.data import structures
from bids_app.errors import ImageError
from bids_app.images.templates import DEFAULT_SPACE, find_template
from bids_app.inference.classes import CLASSES, class_table, output_values, side_table
from bids_app.registration.affine import register_affine, sample_scan
from bids_app.registration.run import read_template
from bids_app.registration.shares import Shares, scan_shares

logger = logging.getLogger('anatnet.training')

DERIVATIVE = '_desc-wholebrain_dseg.nii.gz'
"""How the label map of a session of AnatNet's derivatives ends."""


@dataclass
class Heads:
    """Shares of some heads on the registration grid, aligned to the template.

    Attributes
    ----------
    template : torch.Tensor, shape (channels, x, y, z), uint8
        The template; 255 is a share of 1.
    heads : list of torch.Tensor, each shape (channels, x, y, z), uint8
        The heads.
    names : list of str
        File names.
    """

    template: torch.Tensor
    heads: list[torch.Tensor]
    names: list[str]


def tissues_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return grey matter, white matter and structures of a generation label map.

    Parameters
    ----------
    labels : ndarray of int, shape (x, y, z)
        FreeSurfer's numbers, tissues outside the brain included.

    Returns
    -------
    gm, wm : ndarray, shape (x, y, z), float32
        0 and 1.
    structures : ndarray, shape (x, y, z), int16
        The numbers that the app writes.
    """
    classes = class_table()[labels]
    tissue_of = {structure.kind: structure.tissue for structure in structures()}
    names = np.array([tissue_of.get(name, '') for name in CLASSES])[classes]
    side = (side_table()[labels] > 0).astype(int)
    return (
        (names == 'GM').astype(np.float32),
        (names == 'WM').astype(np.float32),
        output_values()[classes, side],
    )


def read_shares(path: Path) -> Shares:
    """Read a head: a session of AnatNet's derivatives, or any label map of a whole head.

    Raises
    ------
    ImageError
        If a file is missing or holds no brain.
    """
    image = nib.load(path)
    labels = np.asarray(image.dataobj).astype(np.int16)
    try:
        if path.name.endswith(DERIVATIVE):
            stem = path.name.removesuffix(DERIVATIVE)
            files = [path.with_name(f'{stem}_label-{t}_probseg.nii.gz') for t in ('GM', 'WM')]
            gm, wm = (nib.load(file).get_fdata(dtype=np.float32) for file in files)
        else:
            gm, wm, labels = tissues_of(labels)
        return scan_shares(gm, wm, labels, image.affine)
    except (FileNotFoundError, ValueError) as error:
        raise ImageError(f'{path}: cannot be used to train registration ({error})') from error


def load_heads(files: list[Path]) -> Heads:
    """Read heads and bring them to the template of nilearn by an affine map.

    Parameters
    ----------
    files : list of pathlib.Path
        Whole-head label maps, or ``*_desc-wholebrain_dseg.nii.gz`` of AnatNet's derivatives.

    Returns
    -------
    Heads

    Raises
    ------
    ImageError
        If there is no file, or one of them cannot be used.
    """
    if not files:
        raise ImageError('no heads to train on: check --data')
    template = read_template(find_template(DEFAULT_SPACE))[0]
    heads = []
    for file in files:
        scan = read_shares(file)
        matrix = register_affine(template, scan)
        moved = sample_scan(
            torch.from_numpy(scan.data),
            scan.affine,
            matrix,
            template.data.shape[1:],
            template.affine,
        )
        heads.append((moved * 255).round().to(torch.uint8))
        logger.info('%s: aligned', file.name)
    fixed = (torch.from_numpy(template.data) * 255).round().to(torch.uint8)
    return Heads(fixed, heads, [file.name for file in files])
