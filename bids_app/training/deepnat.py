# SPDX-License-Identifier: Apache-2.0
"""Training of DeepNAT's networks: convolutions on crops, the rest on chosen patches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bids_app.errors import UsageError
from bids_app.inference.deepnat_classes import CLASSES, OTHER
from bids_app.inference.deepnat_input import COORDINATES, coordinate_rows
from bids_app.networks.deepnat import CENTRE, PATCH, DeepNAT, gather_patches
from bids_app.training.deepnat_labels import UNKNOWN
from bids_app.training.deepnat_sampling import (
    PatchSample,
    PatchSampler,
    Sampling,
    at_centres,
    eligible,
)
from bids_app.training.deepnat_scans import DeepNATScan
from bids_app.training.loop import Trainer, Validator
from bids_app.training.overlap import class_overlaps

FOREGROUND_CLASSES: tuple[str, ...] = ('background', 'foreground')
"""What the first network predicts."""

_BLOCK = 26
"""Edge of the blocks of a held-out scan that are scored, voxels."""


class DeepNATTrainer(Trainer):
    """Trains one of the networks; ``maps`` and ``validation_maps`` are lists of scans.

    Parameters
    ----------
    kinds : sequence of str
        Coordinates that the network gets: ``cartesian``, ``spectral``.
    sampling : dict
        See :class:`bids_app.training.deepnat_sampling.Sampling`.

    Notes
    -----
    The loss is the mean of the cross-entropies of the tasks, not weighted (``ce-mean``), or their
    sum as published (``ce-sum``). With the loop's limit on the norm of gradients the mean is the
    better choice: the sum is at the limit nearly always.
    """

    losses = ('ce-mean', 'ce-sum')

    def __init__(
        self, *args: Any, kinds: list[str], sampling: dict[str, Any], **kwargs: Any
    ) -> None:
        if unknown := set(kinds) - set(COORDINATES):
            raise UsageError(
                f'the recipe has unknown coordinates "{sorted(unknown)[0]}": '
                f'{" and ".join(COORDINATES)}'
            )
        try:
            self.sampling = Sampling(**sampling)
        except TypeError as error:
            raise UsageError(f'the recipe has a wrong entry in data.sampling ({error})') from error
        self.kinds = list(kinds)
        super().__init__(*args, **kwargs)
        network = self.network
        if not isinstance(network, DeepNAT) or network.outputs not in (
            len(FOREGROUND_CLASSES),
            len(CLASSES),
        ):
            raise UsageError(
                f'DeepNAT has 2 outputs (foreground) or {len(CLASSES)} (structures): '
                'check network and arguments of the recipe'
            )
        if network.coordinates != len(coordinate_rows(self.kinds)):
            raise UsageError(
                f'the network takes {network.coordinates} coordinates, data.coordinates has '
                f'{len(coordinate_rows(self.kinds))}: make them agree'
            )

    @property
    def _foreground(self) -> bool:
        return self.stage.arguments['outputs'] == len(FOREGROUND_CLASSES)

    def _sampler(self, seed: int, late: bool) -> PatchSampler:
        ranges, sampling = self.stage.ranges, self.sampling
        if late:
            ranges = self.stage.late_ranges
            sampling = replace(sampling, centres=sampling.late_centres)
        return PatchSampler(
            self.maps, ranges, self.stage.shape, seed,
            foreground=self._foreground, kinds=self.kinds, sampling=sampling,
        )  # fmt: skip

    def _loss(self, drawn: list[PatchSample]) -> tuple[torch.Tensor, dict[str, float]]:
        image = torch.stack([sample.image for sample in drawn]).to(self.device)
        index = torch.cat(
            [functional.pad(s.index, (1, 0), value=number) for number, s in enumerate(drawn)]
        )
        coordinates = torch.cat([sample.coordinates for sample in drawn]).to(self.device)
        target = torch.cat([sample.target for sample in drawn]).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            features = gather_patches(self.network.trunk(image), index.to(self.device))
            logits = self.network.head(features, coordinates)
        return task_loss(logits.float(), target, mean=self.stage.loss == 'ce-mean')

    def _make_validator(self, maps: list[DeepNATScan]) -> Validator:
        blocks = [block for scan in maps for block in _blocks(scan, self._foreground)]
        rows = coordinate_rows(self.kinds)
        names = (FOREGROUND_CLASSES if self._foreground else CLASSES)[1:]

        def validate(network: nn.Module) -> dict[str, float]:
            both, size, present = 0.0, 0.0, 0.0
            for image, coordinates, classes, places in blocks:
                index = functional.pad(places.nonzero(), (1, 0)).to(self.device)
                given = coordinates[rows][:, places].T.float().to(self.device)
                with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                    features = network.trunk(image[None, None].float().to(self.device))
                    logits = network.head(gather_patches(features, index), given)[:, 0]
                found, truth = logits.float().argmax(dim=1).cpu(), classes[places].long()
                hit, voxels = class_overlaps(found, truth, len(names) + 1)
                both, size = both + hit, size + voxels
                present = present + torch.bincount(truth, minlength=len(names) + 1)
            dice = (2 * both / size.clamp_min(1))[1:]
            # Of the structures network the remaining foreground does not count.
            counted = (present[1:] > 0)[: OTHER - 1 if len(names) > 1 else 1]
            scores = dice[: len(counted)][counted]
            return {
                'score': float(scores.mean()),
                'dice_min': float(scores.min()),
                'dice': [round(float(value), 3) for value in dice],
            }

        return validate


def task_loss(
    logits: torch.Tensor, target: torch.Tensor, mean: bool = True
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the mean or the sum over the tasks of their cross-entropies.

    Parameters
    ----------
    logits : torch.Tensor, shape (patches, tasks, outputs)
    target : torch.Tensor of int64, shape (patches, 7)
        Classes; what is not known does not count. Further columns than tasks are not used.
    mean : bool
        Divide the sum by the number of tasks.

    Returns
    -------
    loss : torch.Tensor, scalar
    parts : dict of float
        ``ce`` of the centre and its ``error``, the share of centres that are wrong.
    """
    tasks = logits.shape[1]
    terms = [
        functional.cross_entropy(logits[:, task], target[:, task], ignore_index=UNKNOWN)
        for task in range(tasks)
    ]
    loss = torch.stack(terms).sum() / (tasks if mean else 1)
    wrong = (logits[:, 0].detach().argmax(dim=1) != target[:, 0]).float().mean()
    return loss, {'ce': float(terms[0].detach()), 'error': float(wrong)}


def _blocks(scan: DeepNATScan, foreground: bool) -> Iterator[tuple[torch.Tensor, ...]]:
    """Cut half of a scan into crops, as the white squares of a chessboard.

    Yields image, coordinates, classes and places; the last three at the centres of patches.
    """
    where = eligible(scan.classes, scan.wide, foreground)
    hits = where.nonzero()
    first, last = hits.amin(dim=0), hits.amax(dim=0)
    length = PATCH + _BLOCK - 2
    number = [
        range(int(low), min(int(high) + 1, size - (length - CENTRE)), _BLOCK)
        for low, high, size in zip(first, last, scan.classes.shape, strict=True)
    ]
    classes = scan.classes
    if foreground:
        classes = torch.where(classes == UNKNOWN, classes, (classes > 0).to(classes.dtype))
    for i, x in enumerate(number[0]):
        for j, y in enumerate(number[1]):
            for k, z in enumerate(number[2]):
                at = tuple(slice(n - CENTRE, n - CENTRE + length) for n in (x, y, z))
                places = at_centres(where[at])
                if (i + j + k) % 2 == 0 and bool(places.any()):
                    yield (
                        scan.image[at].clone(),
                        at_centres(scan.coordinates[(slice(None), *at)]).clone(),
                        at_centres(classes[at]).clone(),
                        places.clone(),
                    )
