# SPDX-License-Identifier: Apache-2.0
"""DeepNAT: patch-wise segmentation of a brain, written so that it also runs densely.

Wachinger, Reuter, Klein: DeepNAT: Deep convolutional neural network for segmenting
neuroanatomy. NeuroImage 170:434-445, 2018. The layers are those of the published prototxt. A
patch goes through the trunk (convolutions), then through the head (fully connected layers), which
also gets the coordinates of the centre of the patch.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

PATCH = 24
"""Edge of a patch, voxels: 23, and one more at the end.

The first convolution leaves 17 of 23 voxels, and its pooling ends with a window that is cut off.
A patch of 24 leaves 18: no window is cut off, and the trunk on a large image gives exactly what it
gives on each patch. No layer changes its size. Patches of 23 voxels work too.
"""

CENTRE = 11
"""The voxel of a patch (along each axis) that the first task predicts."""

STRIDE = 2
"""Voxels between neighbouring patches of one pass of the trunk over an image."""

KERNEL = 3
"""Edge of the features of one patch after the trunk."""

OFFSETS: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0), (-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1),
)  # fmt: skip
"""What the tasks predict: the centre of the patch and its neighbours, voxels from the centre."""

_CONVOLUTIONS = ((1, 32, 7), (32, 64, 5), (64, 64, 3))
_HIDDEN = (1024, 512)


class DeepNAT(nn.Module):
    """One of the two networks of DeepNAT.

    Parameters
    ----------
    outputs : int
        Classes: 27 for the structures, 2 for foreground against background.
    coordinates : int
        Coordinates of the centre of a patch; 0 for none.
    tasks : int
        Voxels that a patch predicts: the first so many of :data:`OFFSETS`.

    Notes
    -----
    Batch normalisation (after the second and third convolution and the second fully connected
    layer) has neither scale nor shift, as in Caffe without a scale layer. Weights start as Caffe's
    "xavier": uniform with variance 1 / inputs. Biases start at 0; the published file fills those
    of convolutions by the same rule, which for a vector means -1.7 to 1.7.
    """

    def __init__(self, outputs: int, coordinates: int = 6, tasks: int = len(OFFSETS)) -> None:
        super().__init__()
        if not 1 <= tasks <= len(OFFSETS):
            raise ValueError(f'tasks is {tasks}: from 1 to {len(OFFSETS)}')
        self.outputs, self.coordinates, self.tasks = outputs, coordinates, tasks
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv3d(inputs, width, kernel) for inputs, width, kernel in _CONVOLUTIONS
        )
        width = _CONVOLUTIONS[-1][1]
        self.norm2 = nn.BatchNorm3d(width, affine=False)
        self.norm3 = nn.BatchNorm3d(width, affine=False)
        self.fc1 = nn.Linear(width * KERNEL**3, _HIDDEN[0])
        self.fc2 = nn.Linear(_HIDDEN[0] + coordinates, _HIDDEN[1])
        self.norm_fc2 = nn.BatchNorm1d(_HIDDEN[1], affine=False)
        self.heads = nn.Linear(_HIDDEN[1], tasks * outputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d | nn.Linear):
                bound = math.sqrt(3 / layer.weight[0].numel())
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.zeros_(layer.bias)

    def trunk(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features of an image.

        Parameters
        ----------
        image : torch.Tensor, shape (batch, 1, x, y, z)
            Each axis 24 voxels or more, an even number.

        Returns
        -------
        torch.Tensor, shape (batch, 64, x / 2 - 9, y / 2 - 9, z / 2 - 9)
            The 3 x 3 x 3 features from ``i`` on are those of the patch whose first voxel is
            ``2 i``, so whose centre is ``2 i + 11``.
        """
        return self.deep(self.conv1(image))

    def deep(self, first: torch.Tensor) -> torch.Tensor:
        """Return the features from what the first convolution gives, before its ReLU.

        Dense inference calls this once for every parity, on the same first convolution moved by a
        voxel.

        Parameters
        ----------
        first : torch.Tensor, shape (batch, 32, x, y, z)
        """
        found = functional.relu(_pool(first))
        found = functional.relu(self.norm2(self.conv2(found)))
        return functional.relu(self.norm3(self.conv3(found)))

    def head(self, features: torch.Tensor, coordinates: torch.Tensor | None) -> torch.Tensor:
        """Return the logits of some patches.

        Parameters
        ----------
        features : torch.Tensor, shape (patches, 1728)
            From :meth:`trunk`, channels first; see :func:`gather_patches`.
        coordinates : torch.Tensor, shape (patches, coordinates), or None

        Returns
        -------
        torch.Tensor, shape (patches, tasks, outputs)
        """
        hidden = functional.relu(self.fc1(features))
        hidden = functional.dropout(hidden, 0.5, self.training)
        if self.coordinates:
            hidden = torch.cat([hidden, coordinates.to(hidden.dtype)], dim=1)
        hidden = functional.relu(self.norm_fc2(self.fc2(hidden)))
        hidden = functional.dropout(hidden, 0.5, self.training)
        return self.heads(hidden).view(-1, self.tasks, self.outputs)

    def forward(self, patches: torch.Tensor, coordinates: torch.Tensor | None) -> torch.Tensor:
        """Return the logits of whole patches: shape (patches, tasks, outputs).

        Parameters
        ----------
        patches : torch.Tensor, shape (patches, 1, 24, 24, 24)
        coordinates : torch.Tensor, shape (patches, coordinates), or None
        """
        return self.head(self.trunk(patches).flatten(1), coordinates)


def _pool(volume: torch.Tensor) -> torch.Tensor:
    """Maximum over cubes of 2 voxels; a last window that is cut off counts, as in Caffe.

    Without gradients even sizes go axis by axis: a tenth of the time of the built-in pooling on a
    CPU. The gradient of that would be slower.
    """
    if volume.requires_grad or any(n % 2 for n in volume.shape[2:]):
        return functional.max_pool3d(volume, 2, 2, ceil_mode=True)
    for axis in (2, 3, 4):
        first, second = volume.unflatten(axis, (-1, 2)).unbind(axis + 1)
        volume = torch.maximum(first, second)
    return volume


def gather_patches(features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Cut the features of chosen patches out of those of whole images.

    Parameters
    ----------
    features : torch.Tensor, shape (batch, channels, x, y, z)
        From :meth:`DeepNAT.trunk`.
    index : torch.Tensor of int64, shape (patches, 4)
        Image, and first feature along each axis.

    Returns
    -------
    torch.Tensor, shape (patches, channels * 27)
        What the first fully connected layer takes.
    """
    batch, channels, *shape = features.shape
    rows = features.movedim(1, -1).reshape(-1, channels)
    strides = torch.tensor([math.prod(shape), shape[1] * shape[2], shape[2], 1])
    strides = strides.to(index.device)
    step = torch.arange(KERNEL, device=index.device)
    window = torch.stack(torch.meshgrid(step, step, step, indexing='ij')).reshape(3, -1)
    chosen = (index @ strides)[:, None] + strides[1:] @ window
    found = rows.index_select(0, chosen.flatten())
    return found.view(len(index), KERNEL**3, channels).transpose(1, 2).flatten(1)
