# SPDX-License-Identifier: Apache-2.0
"""Apply a classifier that the group level has trained to the maps of a scan.

A classifier is a model folder whose stages are the networks of the cross-validation; what they
say is averaged. The card states the grid of the maps, how they are made coarser and cropped, and
how the networks were calibrated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    from bids_app.inference.models import ModelCard

CAVEAT = 'not for clinical use'


@dataclass(frozen=True)
class InputGrid:
    """Which maps a classifier takes and what is done with them.

    Attributes
    ----------
    kind, space, res : str
        Key of the table of outputs (``vbm_gm``), template, resolution label.
    fwhm : float
        Smoothing of the maps, mm; 0 for none.
    shape, affine
        Grid of the maps: voxels, and voxel-to-world in mm (RAS+).
    factor : tuple of int
        Blocks of so many voxels are averaged on each axis.
    box : tuple of (int, int)
        Part of the coarser grid that is used: first voxel, and the one after the last.
    """

    kind: str
    space: str
    res: str
    fwhm: float
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    factor: tuple[int, int, int]
    box: tuple[tuple[int, int], ...]

    @property
    def key(self) -> str:
        """Key of the maps in ``bids/outputs.json``."""
        return f'{self.kind}_smooth' if self.fwhm else self.kind

    @property
    def words(self) -> str:
        """Which maps these are, in words."""
        return f'{self.kind}, space {self.space}, res {self.res}, ' + (
            f'smoothed with {self.fwhm:g} mm' if self.fwhm else 'unsmoothed'
        )

    @property
    def file_id(self) -> str:
        """Name of the maps among the files of a session, see ``bids/outputs.file_id``."""
        width = f'{self.fwhm:g}'.replace('.', 'p')
        smoothing = f' fwhm-{width}' if self.fwhm else ''
        return f'{self.key} space-{self.space} res-{self.res}{smoothing}'

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Voxels of what the networks see."""
        return tuple(stop - start for start, stop in self.box)

    @property
    def input_affine(self) -> np.ndarray:
        """Voxel-to-world of what the networks see, shape (4, 4), mm, RAS+."""
        to_fine = np.eye(4)
        for axis, (factor, (start, _)) in enumerate(zip(self.factor, self.box, strict=True)):
            to_fine[axis, axis] = factor
            to_fine[axis, 3] = start * factor + (factor - 1) / 2
        return np.asarray(self.affine) @ to_fine

    def fits(self, shape: Sequence[int], affine: np.ndarray) -> bool:
        """Return whether a map is on the grid."""
        return tuple(shape) == self.shape and np.allclose(affine, self.affine, atol=1e-3)

    def prepare(self, data: np.ndarray) -> np.ndarray:
        """Average blocks of a map and cut the box out: float32, shape ``input_shape``."""
        coarse = shrink(data, self.factor)
        return coarse[tuple(slice(*side) for side in self.box)]

    def read(self, path: Path) -> np.ndarray:
        """Read a map and :meth:`prepare` it.

        Raises
        ------
        ModelError
            If it cannot be read or is on another grid.
        """
        import nibabel as nib

        try:
            image = nib.load(path)
            data = np.asarray(image.dataobj, dtype=np.float32)
        except Exception as error:  # a broken file may fail in many ways
            raise ModelError(f'{path}: cannot be read ({" ".join(str(error).split())})') from error
        if not self.fits(image.shape, image.affine):
            raise ModelError(
                f'{path}: not on the grid of the classifier '
                f'({"x".join(map(str, self.shape))} voxels, space {self.space}, res {self.res}): '
                'make the maps with the same space and voxel size as those it was trained on'
            )
        return np.nan_to_num(self.prepare(data))

    def as_card(self) -> dict[str, Any]:
        """Return the entry ``input`` of a model card."""
        return asdict(self)

    @classmethod
    def from_card(cls, entry: Mapping[str, Any]) -> InputGrid:
        """Read the entry ``input`` of a model card."""
        return cls(
            entry['kind'],
            entry['space'],
            entry['res'],
            float(entry['fwhm']),
            tuple(entry['shape']),
            tuple(tuple(row) for row in entry['affine']),
            tuple(entry['factor']),
            tuple(tuple(side) for side in entry['box']),
        )


def shrink(data: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """Average blocks of voxels.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
    factor : sequence of int
        Voxels of a block on each axis; what is left at the end of an axis is dropped.

    Returns
    -------
    ndarray of float32
        Its first voxel is centred in the first block.
    """
    whole = [size // block for size, block in zip(data.shape, factor, strict=True)]
    cut = data[tuple(slice(0, n * block) for n, block in zip(whole, factor, strict=True))]
    blocks = cut.reshape([n for pair in zip(whole, factor, strict=True) for n in pair])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def probabilities(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Turn logits into probabilities of the classes.

    Parameters
    ----------
    logits : Tensor, shape (scans, outputs)
        One output stands for the second of two classes.
    temperature : float
        By which the logits are divided (Guo et al., ICML 2017).

    Returns
    -------
    Tensor, shape (scans, classes)
    """
    import torch

    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return torch.softmax(logits / temperature, dim=1)


@dataclass(frozen=True)
class Classifier:
    """A classifier with its networks.

    Attributes
    ----------
    name, version : str
        Of the model.
    column : str
        What is predicted: a column of ``participants.tsv``.
    classes : tuple of str
        Its values; empty if it is a number.
    grid : InputGrid
        What the networks see.
    networks : dict of str to torch.nn.Module
        By stage.
    stages : dict
        Of the card, with the calibration of each network.
    card : dict
        The whole card.
    """

    name: str
    version: str
    column: str
    classes: tuple[str, ...]
    grid: InputGrid
    networks: dict[str, nn.Module]
    stages: dict[str, Any]
    card: dict[str, Any]

    def predict(self, data: np.ndarray) -> tuple[np.ndarray, float]:
        """Predict from one prepared map.

        Parameters
        ----------
        data : ndarray of float32, shape ``grid.input_shape``

        Returns
        -------
        values : ndarray
            Probability of each class, or the predicted number alone.
        deviation : float
            Standard deviation of the error of a predicted number; 0 for classes.
        """
        import torch

        x = torch.from_numpy(np.ascontiguousarray(data, np.float32))[None, None]
        values, variances = [], []
        with torch.inference_mode():
            for name, network in self.networks.items():
                out, stage = network(x), self.stages[name]
                if self.classes:
                    values.append(probabilities(out, stage['temperature'])[0].numpy())
                else:
                    values.append(out[0].numpy() * stage['sd'] + stage['mean'])
                    variances.append(stage['error_sd'] ** 2)
        deviation = float(np.sqrt(np.mean(variances))) if variances else 0.0
        return np.mean(values, axis=0), deviation


def read_task(card: ModelCard, folder: Path) -> tuple[InputGrid, str]:
    """Return what a classifier takes and the column that it predicts, from its card.

    Raises
    ------
    ModelError
        If it is the card of another kind of model.
    """
    try:
        return InputGrid.from_card(card.content['input']), card.content['target']['column']
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f'{folder}: not a classifier (its card lacks {error}): '
            'give a model folder that "group --classify" has written'
        ) from error


def load_classifier(folder: Path) -> Classifier:
    """Read a classifier.

    Parameters
    ----------
    folder : Path
        A model folder that ``group --classify`` has written.

    Raises
    ------
    ModelError
        If the folder, its card or its weights are missing, broken or of another kind of model.
    """
    from bids_app.inference.models import load_card, load_networks

    folder = Path(folder)
    card = load_card(folder)
    grid, column = read_task(card, folder)
    return Classifier(
        card.name, card.version, column, tuple(card.classes), grid, load_networks(folder),
        card.stages, card.content,
    )  # fmt: skip


def predict_files(maps: Mapping[str, Path], model_folder: Path) -> pd.DataFrame:
    """Apply a classifier to the maps of one session.

    Parameters
    ----------
    maps : mapping of str to Path
        Maps by their name among the files of a session (``bids/outputs.file_id``, such as
        ``vbm_gm_smooth space-MNI152NLin2009aSym res-1p5 fwhm-6``) or by their key alone.
    model_folder : Path
        Of the classifier.

    Returns
    -------
    DataFrame
        One row: ``model``, ``version``, ``target``, ``prediction``, ``probability`` (of the
        predicted class; None for a number), ``sd`` (of a number; None for classes), one column
        ``probability_<class>`` each, ``calibration`` and ``validation`` (what cross-validation
        found, in words), ``caveat``.

    Raises
    ------
    ModelError
        If the model is not usable, or the maps are missing or not those it was trained on.
    """
    import pandas as pd

    classifier = load_classifier(model_folder)
    path = _map_for(classifier.grid, maps, model_folder)
    values, deviation = classifier.predict(classifier.grid.read(path))
    row: dict[str, Any] = {
        'model': classifier.name,
        'version': classifier.version,
        'target': classifier.column,
    }
    if classifier.classes:
        best = int(np.argmax(values))
        row |= {
            'prediction': classifier.classes[best],
            'probability': round(float(values[best]), 4),
            'sd': None,
        }
        row |= {
            f'probability_{name}': round(float(value), 4)
            for name, value in zip(classifier.classes, values, strict=True)
        }
    else:
        row |= {
            'prediction': round(float(values[0]), 4),
            'probability': None,
            'sd': round(deviation, 4),
        }
    row |= {
        'calibration': classifier.card.get('calibration', ''),
        'validation': classifier.card.get('validation_summary', ''),
        'caveat': CAVEAT,
    }
    return pd.DataFrame([row])


def _map_for(grid: InputGrid, maps: Mapping[str, Path], model_folder: Path) -> Path:
    path = maps.get(grid.file_id) or maps.get(grid.key)
    if path is None:
        raise ModelError(
            f'{model_folder}: needs the map {grid.words}, which this run did not make'
        )
    name = Path(path).name
    smoothed = re.search(r'_desc-modulatedsmooth(\d+(?:p\d+)?)mm_', name)
    space = re.search(r'_space-([^_]+)_', name)
    if (smoothed and float(smoothed[1].replace('p', '.')) != grid.fwhm) or (
        space and grid.space and space[1] != grid.space
    ):
        raise ModelError(f'{model_folder}: needs the map {grid.words}, not {name}')
    return Path(path)
