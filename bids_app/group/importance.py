# SPDX-License-Identifier: Apache-2.0
"""Where in the brain a classifier looks: what it loses when a region is hidden.

A region is hidden by giving it the mean of the training maps, in subjects that the network has
not seen. The regions are those behind the patches of the PIF layer, both sets, so that they
overlap by half. (Zeiler and Fergus, ECCV 2014.) The gradient times the input, a finer map but
one that is noisier and says less, goes with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bids_app.group.classifier_training import Trained, loss_of
from bids_app.group.scores import class_weights

Box = tuple[slice, slice, slice]


def occlusion(
    trained: Trained,
    maps: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    boxes: Sequence[Box],
    device: str = 'cpu',
) -> np.ndarray:
    """Return how much the loss rises when each box is hidden.

    Parameters
    ----------
    trained : Trained
        With a ``standardise`` layer, whose mean is what hides a box.
    maps : ndarray, shape (sessions, x, y, z)
    values : ndarray, shape (sessions,)
    rows : ndarray of int
        Sessions that were not trained on.
    boxes : sequence of slices
    device : str

    Returns
    -------
    ndarray, shape (boxes,)
        Mean rise of the cross-entropy (nats) or of the squared error (in variances). Below 0:
        the region misleads.
    """
    network = trained.network.to(device)
    mean = network.standardise.mean
    x = torch.from_numpy(maps[rows].astype(np.float32))[:, None]
    y = torch.from_numpy(values[rows])
    weights = torch.from_numpy(_weights(values[rows], trained)).float()

    def loss(hidden: Box | None) -> float:
        found = []
        with torch.inference_mode():
            for part in x.split(16):
                part = part.to(device, copy=True)
                if hidden is not None:
                    part[(slice(None), slice(None), *hidden)] = mean[hidden]
                found.append(network(part).cpu())
        outputs = torch.cat(found)
        if trained.task.classes:
            outputs = outputs / trained.temperature
        return float(loss_of(outputs, y, trained.task, weights))

    full = loss(None)
    rises = np.array([loss(box) - full for box in boxes])
    trained.network.cpu()
    return rises


def paint(rises: np.ndarray, boxes: Sequence[Box], shape: Sequence[int]) -> np.ndarray:
    """Give every voxel the mean of the boxes that hold it, float32."""
    total = np.zeros(tuple(shape))
    count = np.zeros(tuple(shape))
    for rise, box in zip(rises, boxes, strict=True):
        total[box] += rise
        count[box] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


def gradient_times_input(
    trained: Trained, maps: np.ndarray, rows: np.ndarray, device: str = 'cpu'
) -> np.ndarray:
    """Return the mean over scans of the absolute gradient times the standardised input.

    Parameters
    ----------
    trained : Trained
    maps : ndarray, shape (sessions, x, y, z)
    rows : ndarray of int
        Sessions that were not trained on.
    device : str

    Returns
    -------
    ndarray of float32, shape (x, y, z)
        Of the largest output minus the others' mean, of the only logit, or of the number.
    """
    network = trained.network.to(device)
    layer = network.standardise
    total = torch.zeros(tuple(maps.shape[1:]))
    for part in torch.from_numpy(maps[rows].astype(np.float32))[:, None].split(16):
        x = part.to(device).requires_grad_(True)
        outputs = network(x)
        if outputs.shape[1] > 1:
            outputs = outputs.max(dim=1).values - outputs.mean(dim=1)
        (slope,) = torch.autograd.grad(outputs.sum(), x)
        total += (slope * (x - layer.mean)).abs().sum(dim=(0, 1)).detach().cpu()
    trained.network.cpu()
    return (total / len(rows)).numpy()


def _weights(values: np.ndarray, trained: Trained) -> np.ndarray:
    if trained.task.classes:
        return class_weights(values, trained.task.classes)
    return np.full(len(values), 1 / len(values))
