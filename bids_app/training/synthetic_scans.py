# SPDX-License-Identifier: Apache-2.0
"""Whole synthetic scans from label maps, to judge a model on heads with a known answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from bids_app.inference.classes import class_table, output_values, side_table
from bids_app.training.contrast import brighten_outside, draw_contrast
from bids_app.training.label_maps import load_label_maps
from bids_app.training.synthesis import Ranges, corrupt, paint, sub_voxel_labels

_RANGES = Ranges(bias=0.3, noise=0.03, gamma=0.1, low_resolution=0.0)


def synthetic_scan(
    path: Path,
    contrast: str = 't1w',
    seed: int = 0,
    *,
    bright_fat: float = 1.0,
    slices: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a whole-head scan from a label map, undeformed, at 1 mm.

    Parameters
    ----------
    path : pathlib.Path
        Generation label map.
    contrast : {'t1w', 't2w', 'flair', 'random'}
        Kind of contrast.
    seed : int
        The same seed gives the same scan.
    bright_fat : float
        What lies outside the brain is up to so many times as bright.
    slices : float
        Thickness of axial slices, mm, which are interpolated to 1 mm.

    Returns
    -------
    image : ndarray, shape (x, y, z), float32
        Scan in RAS+ order, cropped to the head.
    labels : ndarray, shape (x, y, z), int16
        The true structures by FreeSurfer's numbers; 0 outside the brain.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = load_label_maps([path])
    label_map = maps.maps[0]
    coordinates = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in label_map.shape),
                       indexing='ij')
    )  # fmt: skip
    labels = sub_voxel_labels(label_map, coordinates, torch.eye(3), 2, generator)
    drawn = draw_contrast(maps.values, contrast, generator)
    if bright_fat != 1:
        drawn = brighten_outside(drawn, maps.values, generator, bright_fat)
    image = paint(labels, drawn, generator)
    if slices > 1:
        sizes = [*image.shape[:2], max(1, round(image.shape[2] / slices))]
        thick = functional.interpolate(image[None, None], size=sizes, mode='area')
        image = functional.interpolate(thick, size=image.shape, mode='trilinear')[0, 0]
    image = corrupt(image, _RANGES, 1.0, generator)
    values = np.array(maps.values)
    truth = output_values()[class_table()[values], (side_table()[values] > 0).astype(int)]
    return (255 * image).numpy(), truth[label_map.numpy()].astype(np.int16)
