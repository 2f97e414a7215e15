# SPDX-License-Identifier: Apache-2.0
"""A head of ellipsoids: small, quick, with every structure on its own side."""

import numpy as np
import pytest

from bids_app.registration.shares import scan_shares

# Numbers of structures: centre (mm, RAS) and radii (mm).
PARTS = {
    2: ((-30, -15, 15), (30, 55, 40)), 41: ((30, -15, 15), (30, 55, 40)),
    4: ((-10, -10, 20), (6, 22, 8)), 43: ((10, -10, 20), (6, 22, 8)),
    10: ((-12, -18, 5), (8, 12, 8)), 49: ((12, -18, 5), (8, 12, 8)),
    11: ((-18, 12, 12), (6, 12, 9)), 50: ((18, 12, 12), (6, 12, 9)),
    12: ((-27, 2, 0), (6, 15, 9)), 51: ((27, 2, 0), (6, 15, 9)),
    17: ((-28, -25, -14), (8, 18, 7)), 53: ((28, -25, -14), (8, 18, 7)),
    16: ((0, -30, -30), (10, 10, 18)), 14: ((0, -12, 2), (3, 12, 10)),
    8: ((-24, -60, -35), (20, 18, 16)), 47: ((24, -60, -35), (20, 18, 16)),
}  # fmt: skip


def phantom(affine, shape, warp=lambda points: points):
    """Labels of the head on a grid; ``warp`` carries world points to the head's own frame."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing='ij')).reshape(3, -1)
    points = warp(affine[:3, :3] @ index + affine[:3, 3:])
    labels = np.zeros(points.shape[1], np.int16)
    for side, value in ((-1, 3), (1, 42)):
        shell = (((points - [[0], [-15], [15]]) / [[64], [82], [62]]) ** 2).sum(axis=0) < 1
        labels[shell & (points[0] * side > 0)] = value
    for value, (centre, radii) in PARTS.items():
        inside = (((points - np.reshape(centre, (3, 1))) / np.reshape(radii, (3, 1))) ** 2).sum(
            axis=0
        ) < 1
        labels[inside] = value
    return labels.reshape(shape)


def shares_of(labels, affine):
    """Shares of a phantom: white matter is 2, 41, 16; CSF 4, 43, 14; the rest is grey."""
    wm = np.isin(labels, (2, 41, 16)).astype(np.float32)
    gm = ((labels > 0) & ~np.isin(labels, (2, 41, 16, 4, 43, 14))).astype(np.float32)
    return scan_shares(gm, wm, labels, affine)


@pytest.fixture(scope='session')
def template():
    """The phantom on the registration grid."""
    from bids_app.images.templates import REGISTRATION_AFFINE, REGISTRATION_SHAPE
    from bids_app.registration.shares import template_shares

    labels = phantom(REGISTRATION_AFFINE, REGISTRATION_SHAPE)
    wm = np.isin(labels, (2, 41, 16))
    gm = (labels > 0) & ~np.isin(labels, (2, 41, 16, 4, 43, 14))
    return template_shares(np.stack([gm, wm]).astype(np.float32), labels, REGISTRATION_AFFINE)


@pytest.fixture(scope='session')
def phantoms():
    """The two functions of this module, for test modules that draw their own heads."""
    return phantom, shares_of
