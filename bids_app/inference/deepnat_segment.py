# SPDX-License-Identifier: Apache-2.0
"""DeepNAT's two networks in sequence: the foreground, then 25 structures inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bids_app.errors import ImageError, ModelError
from bids_app.images.masks import bounding_box, clean_mask
from bids_app.inference.coordinates import LEAST_BRAIN_MM3, brain_coordinates
from bids_app.inference.deepnat import DensePredictor
from bids_app.inference.deepnat_classes import mirrored_classes
from bids_app.inference.deepnat_input import ODD_ROWS, brain_image, coordinate_rows
from bids_app.inference.device import resolve_precision
from bids_app.inference.models import ModelCard, load_card, resident_networks

FOREGROUND_MODEL = 'deepnat-foreground-miccai2012'
STRUCTURES_MODEL = 'deepnat-structures-miccai2012'
LOW_MEMORY_TILE = 64

FOREGROUND_PROBABILITY = 0.1
"""Where the first network is at least this sure, the second one looks.

It should miss nothing: the second network knows background, too. At 0.5 parts of the ventricles,
which are open to the outside, were lost, and the mean Dice of both validation scans was 0.850;
from 0.05 to 0.2 it was 0.880 (with weights of two thirds of the training).
"""

Refine = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes probabilities (classes, x, y, z), image and mask (x, y, z); returns probabilities."""


@dataclass
class DeepNATStage:
    """A network with what it needs.

    Attributes
    ----------
    predictor : DensePredictor
        The network on its device.
    rows : list of int
        Which of the six coordinates it takes.
    """

    predictor: DensePredictor
    rows: list[int]


@dataclass
class DeepNATPosterior:
    """What the networks found, on a box of the conformed grid.

    Attributes
    ----------
    classes : torch.Tensor, shape (27, x, y, z), float32
        Probabilities (:data:`bids_app.inference.deepnat_classes.CLASSES`); outside the foreground
        all of it is background.
    foreground : torch.Tensor, shape (x, y, z), bool
        What the first network found.
    corner : tuple of int
        First voxel of the box on the conformed grid.
    """

    classes: torch.Tensor
    foreground: torch.Tensor
    corner: tuple[int, int, int]


def check_card(card: ModelCard, folder: Path, outputs: int) -> None:
    """Check, without its weights, that a model is a network of DeepNAT.

    Raises
    ------
    ModelError
        If it is not, or has another number of outputs.
    """
    stages = list(card.stages.values())
    if (
        len(stages) != 1
        or stages[0].get('network') != 'DeepNAT'
        or stages[0].get('arguments', {}).get('outputs') != outputs
    ):
        raise ModelError(
            f'{folder}: not a DeepNAT network with {outputs} outputs: give another model, or '
            'another folder with --models-dir'
        )


def load_stage(
    folder: Path,
    outputs: int,
    *,
    device: str = 'cpu',
    precision: str = 'auto',
    low_mem: bool = False,
    parities: int = 2,
    tile: int | None = None,
) -> DeepNATStage:
    """Return one of the two networks from its model folder.

    Parameters
    ----------
    folder : pathlib.Path
        Model folder.
    outputs : int
        What it must have: 2 for the foreground, 27 for the structures.
    device, precision : str
        Where and how to compute.
    low_mem : bool
        Start with small tiles.
    parities : int
        See :data:`bids_app.inference.deepnat.PARITIES`; networks with one task always use all.
    tile : int, optional
        Edge of the tiles to start with, voxels; ``low_mem`` wins over a larger one.

    Raises
    ------
    ModelError
        If the folder holds no network of DeepNAT with so many outputs.
    """
    card = load_card(folder)
    check_card(card, folder, outputs)
    (network,) = resident_networks(folder).values()
    rows = coordinate_rows(card.content['training_data']['coordinates'])
    predictor = DensePredictor(
        network,
        device,
        resolve_precision(precision, device),
        min(tile or LOW_MEMORY_TILE, LOW_MEMORY_TILE) if low_mem else tile,
        parities if network.tasks > 1 else 8,
    )
    return DeepNATStage(predictor, rows)


def segment_deepnat(
    data: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    foreground: DeepNATStage,
    structures: DeepNATStage,
    refine: Refine | None = None,
    mirror: bool = False,
) -> DeepNATPosterior:
    """Segment a brain into 25 structures and the remaining foreground.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Conformed T1w, 1 mm, RAS+, bias-corrected.
    affine : array-like, shape (4, 4)
        Voxel-to-world matrix, mm.
    mask : ndarray, shape (x, y, z)
        The app's brain mask.
    foreground, structures : DeepNATStage
        The networks.
    refine : callable, optional
        What comes after them, such as the conditional random field.
    mirror : bool
        See :func:`segment_prepared`.

    Returns
    -------
    DeepNATPosterior

    Raises
    ------
    ImageError
        If the mask, or what the first network leaves of it, has less than 20 cm^3.
    """
    image, wide = brain_image(data, affine, mask)
    box = bounding_box(wide.numpy(), 1)
    coordinates = torch.from_numpy(brain_coordinates(np.asarray(mask)[box], affine))
    voxel = abs(float(np.linalg.det(np.asarray(affine)[:3, :3])))
    classes, inside = segment_prepared(
        image[box], wide[box], coordinates, foreground, structures, refine, mirror=mirror,
        voxel=voxel,
    )  # fmt: skip
    return DeepNATPosterior(classes, inside, tuple(part.start for part in box))


def segment_prepared(
    image: torch.Tensor,
    wide: torch.Tensor,
    coordinates: torch.Tensor,
    foreground: DeepNATStage,
    structures: DeepNATStage,
    refine: Refine | None = None,
    *,
    mirror: bool = False,
    voxel: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run both networks on an image that is prepared already.

    Parameters
    ----------
    image, wide : torch.Tensor, shape (x, y, z)
        From :func:`bids_app.inference.deepnat_input.brain_image`.
    coordinates : torch.Tensor, shape (6, x, y, z)
        From :func:`bids_app.inference.coordinates.brain_coordinates`.
    foreground, structures : DeepNATStage
        The networks.
    refine : callable, optional
        What comes after them.
    mirror : bool
        Average the second network with what it says of the mirrored brain: twice its time. The
        published system does not.
    voxel : float
        Volume of a voxel, mm^3.

    Returns
    -------
    classes : torch.Tensor, shape (27, x, y, z), float32
        Probabilities.
    inside : torch.Tensor, shape (x, y, z), bool
        The foreground.

    Raises
    ------
    ImageError
        If the foreground has less than 20 cm^3.
    """
    image, wide = image.float().contiguous(), wide.contiguous()
    coordinates = coordinates.float()
    found = foreground.predictor.probabilities(image, coordinates[foreground.rows], wide)
    inside = torch.from_numpy(clean_mask((found[1] > FOREGROUND_PROBABILITY).numpy()))
    volume = float(inside.sum()) * voxel
    if volume < LEAST_BRAIN_MM3:
        raise ImageError(
            f'DeepNAT found {volume / 1e3:.1f} cm^3 of foreground (least: '
            f'{LEAST_BRAIN_MM3 / 1e3:.0f} cm^3): look at the scan and its brain mask'
        )
    classes = structures.predictor.probabilities(image, coordinates[structures.rows], inside)
    if mirror:
        classes += _mirrored(structures, image, coordinates, inside)
        classes /= 2
    if refine is not None:
        classes = refine(classes, image, inside)
    return classes, inside


def _mirrored(
    stage: DeepNATStage, image: torch.Tensor, coordinates: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """Return what a network says of the mirrored brain, mirrored back."""
    signs = torch.tensor([-1.0 if row in ODD_ROWS else 1.0 for row in stage.rows])
    given = coordinates[stage.rows].flip(1) * signs.view(-1, 1, 1, 1)
    found = stage.predictor.probabilities(image.flip(0), given, inside.flip(0))
    return found.flip(1)[torch.from_numpy(mirrored_classes())]
