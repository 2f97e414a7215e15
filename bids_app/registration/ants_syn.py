# SPDX-License-Identifier: Apache-2.0
"""Registration by SyN of ANTs (Avants et al., Medical Image Analysis 2008), through antspyx."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np


def _image(data: np.ndarray, affine: np.ndarray) -> object:
    """Make an antspyx image from an array whose axes are those of the world (RAS order)."""
    import ants

    spacing = np.diag(affine[:3, :3])
    # ITK's world is LPS: the first two axes point the other way.
    return ants.from_numpy(
        np.ascontiguousarray(data, dtype=np.float32),
        origin=[-affine[0, 3], -affine[1, 3], affine[2, 3]],
        spacing=[float(value) for value in spacing],
        direction=np.diag([-1.0, -1.0, 1.0]),
    )


def register_syn(
    scan: np.ndarray, template: np.ndarray, affine: np.ndarray, *, iterations: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Register two maps that are in affine alignment on one grid.

    Parameters
    ----------
    scan, template : ndarray, shape (x, y, z)
        What is to be matched; SyN maximises their mutual information.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix, mm, axes of the world.
    iterations : tuple of int
        Iterations per level, from coarse to fine.

    Returns
    -------
    forward, backward : ndarray, shape (3, x, y, z), float32
        Displacements in mm (RAS+ components): template to scan, and back.
    """
    import ants
    import nibabel as nib

    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            _image(template, affine),
            _image(scan, affine),
            type_of_transform='SyNOnly',
            initial_transform='Identity',
            reg_iterations=iterations,
            outprefix=str(Path(folder) / 'syn_'),
        )
        # The warp is a file on the template's grid; its inverse lies beside it.
        forward = [f for f in found['fwdtransforms'] if f.endswith('.nii.gz')][0]
        backward = [f for f in found['invtransforms'] if f.endswith('.nii.gz')][0]
        fields = []
        for name in (forward, backward):
            vectors = np.asarray(nib.load(name).dataobj, dtype=np.float32).squeeze()
            vectors = np.moveaxis(vectors, -1, 0)
            fields.append(vectors * np.array([-1, -1, 1], np.float32)[:, None, None, None])
    return fields[0], fields[1]
