# SPDX-License-Identifier: Apache-2.0
"""What the interactive viewer of a report needs: the scan and its labels, made small.

The scan is cut into axial slices side by side in one lossy WebP picture; labels are exact, as
deflated bytes. The page's script puts both back together as volumes. Nothing else is loaded.
"""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np

from bids_app.data import structures, tissues
from bids_app.reports.drawing import data_uri, to_grey
from bids_app.reports.figures import entropy_top
from bids_app.reports.planes import Frame, Volume, sample_grid

LARGEST = 3_600_000
"""Most voxels of the viewer's volume, which bounds its size to about one megabyte."""


def viewer_payload(
    scan: Volume,
    frame: Frame,
    window: tuple[float, float],
    *,
    mask: Volume | None = None,
    dseg: Volume | None = None,
    wholebrain: Volume | None = None,
    entropy: Volume | None = None,
) -> dict[str, Any]:
    """Return the viewer's volumes and tables, ready for JSON.

    Parameters
    ----------
    scan : Volume
        The scan.
    frame : Frame
        The part of the world to carry; the viewer's grid is RAS+ and isotropic.
    window : (float, float)
        Intensities of black and white.
    mask, dseg, wholebrain : Volume, optional
        Labels, merged to one byte a voxel with a table of what every value stands for.
    entropy : Volume, optional
        0 to 1; carried at half the resolution.

    Returns
    -------
    dict
        ``shape`` (x, y, z), ``spacing`` mm, ``origin`` of the first voxel's centre (mm),
        ``scan`` and ``entropy`` as pictures with ``tiles`` slices per line, ``labels`` as
        base64 of deflated bytes (x fastest), ``codes`` as [structure, tissue, mask] by value,
        ``names`` and ``colors`` by structure.
    """
    extent = frame.high - frame.low
    spacing = max(1.0, float((extent.prod() / LARGEST) ** (1 / 3)))
    shape = np.maximum(np.ceil(extent / spacing), 1).astype(int)
    origin = frame.low + (extent - (shape - 1) * spacing) / 2

    payload: dict[str, Any] = {
        'shape': shape.tolist(),
        'spacing': spacing,
        'origin': [round(float(value), 3) for value in origin],
        'scan': _sprite(to_grey(_resampled(scan, origin, spacing, shape, 1), window), 58),
    }
    codes = np.zeros(tuple(shape), np.uint32)
    for shift, volume in ((0, wholebrain), (12, dseg), (14, mask)):
        if volume is not None:
            values = _resampled(volume, origin, spacing, shape, 0).astype(np.int64)
            codes |= np.clip(values, 0, (1 << (12 if shift == 0 else 2)) - 1).astype(
                np.uint32
            ) << np.uint32(shift)
    if codes.any():
        table, inverse = np.unique(codes, return_inverse=True)
        inverse = inverse.reshape(codes.shape)
        if len(table) > 256:  # the rarest combinations give way
            keep = np.sort(np.argsort(-np.bincount(inverse.ravel()))[:256])
            nearest = np.clip(np.searchsorted(keep, np.arange(len(table))), 0, 255)
            table, inverse = table[keep], nearest[inverse]
        raw = inverse.astype(np.uint8).tobytes(order='F')
        payload['labels'] = base64.b64encode(zlib.compress(raw, 6)).decode('ascii')
        payload['codes'] = [[int(c) & 4095, int(c) >> 12 & 3, int(c) >> 14] for c in table]
    if entropy is not None:
        coarse = np.maximum(shape // 2, 1)
        start = origin + spacing / 2
        values = _resampled(entropy, start, spacing * 2, coarse, 1)
        top = entropy_top(entropy)
        payload['entropy'] = _sprite(to_grey(values, (0.0, top)), 45)
        payload['entropy']['top'] = top
        payload['entropy']['shape'] = coarse.tolist()
    payload['names'] = {s.index: s.name for s in structures()}
    payload['colors'] = {s.index: s.color for s in structures()}
    payload['tissues'] = {t.index: [t.name, t.color] for t in tissues()}
    return payload


def _resampled(
    volume: Volume, origin: np.ndarray, spacing: float, shape: np.ndarray, order: int
) -> np.ndarray:
    """Sample a volume on an isotropic RAS+ grid of the given shape."""
    axes = [origin[axis] + np.arange(shape[axis]) * spacing for axis in range(3)]
    return sample_grid(volume, axes, order)


def _sprite(volume: np.ndarray, quality: int) -> dict[str, Any]:
    """Lay the axial slices of a uint8 volume side by side in one picture, front up."""
    from PIL import Image

    nx, ny, nz = volume.shape
    tiles = int(np.ceil(np.sqrt(nz * ny / nx)))
    lines = int(np.ceil(nz / tiles))
    sheet = np.zeros((lines * ny, tiles * nx), np.uint8)
    for k in range(nz):
        top, left = k // tiles * ny, k % tiles * nx
        sheet[top : top + ny, left : left + nx] = volume[:, ::-1, k].T
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, 'WEBP', quality=quality, method=3)
    return {'uri': data_uri(stream.getvalue(), 'image/webp'), 'tiles': tiles}
