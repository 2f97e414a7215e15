# SPDX-License-Identifier: Apache-2.0
"""Scans with manual tissue labels, as public challenges lay them out, and crops of them.

With these a user who has the data repeats the tables of the MedicalZoo thesis (2019), or trains
a tissue network on manual labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from bids_app.data import structures
from bids_app.errors import ImageError, UsageError
from bids_app.images.intensity import normalise_brain_zscore
from bids_app.training.evaluate import read_mapping
from bids_app.training.overlap import class_overlaps
from bids_app.training.tissue import TISSUES, TissueSample

UNKNOWN = -1
"""Class of voxels that take no part in training and scores."""

_TRIES = 100

_BACKGROUND, _CSF, _GM, _WM = range(len(TISSUES))
_ISEG = {0: _BACKGROUND, 10: _CSF, 150: _GM, 250: _WM}
# Cerebellum (7), brain stem (8), infarction (9) and "other" (10) have no tissue.
_MRBRAINS = {0: _BACKGROUND, 1: _GM, 2: _GM, 3: _WM, 4: _WM, 5: _CSF, 6: _CSF}
_MRBRAINS_NAMES = (
    'background', 'cortical-gm', 'basal-ganglia', 'wm', 'wm-lesions', 'outer-csf', 'ventricles',
    'cerebellum', 'brain-stem',
)  # fmt: skip


def _neuromorphometrics() -> dict[int, int]:
    tissue_of = {one.index: TISSUES.index(one.tissue.lower()) for one in structures()}
    with as_file(files('bids_app.data') / 'mappings' / 'neuromorphometrics.tsv') as path:
        mapping = read_mapping(path)
    return {0: _BACKGROUND} | {
        value: tissue_of.get(index, UNKNOWN if index < 0 else _BACKGROUND)
        for value, index in mapping.items()
    }


@dataclass(frozen=True)
class Layout:
    """How a data set names its files and numbers its labels.

    Attributes
    ----------
    labels : str
        Part of the name of a label map that stands for "labels".
    images : dict of str to str
        What stands there for each contrast.
    classes : dict
        For each number of classes: their names, and a function that gives the class of each
        value of the label maps. Values that it does not name are :data:`UNKNOWN`.
    """

    labels: str
    images: dict[str, str]
    classes: dict[int, tuple[tuple[str, ...], Callable[[], dict[int, int]]]]

    def image(self, labels: Path, contrast: str) -> Path:
        """Return the file of a contrast beside a label map."""
        return labels.parent / labels.name.replace(self.labels, self.images[contrast])

    def subject(self, labels: Path) -> str:
        """Return the name of the subject of a label map."""
        return labels.name.partition(self.labels)[0] or labels.parent.name


LAYOUTS = {
    # subject-1-T1.hdr, subject-1-T2.hdr, subject-1-label.hdr (and .img): 6-month-old infants
    'iseg2017': Layout('-label', {'T1w': '-T1', 'T2w': '-T2'}, {4: (TISSUES, lambda: _ISEG)}),
    # 1/segm.nii.gz, 1/pre/reg_T1.nii.gz, 1/pre/reg_IR.nii.gz, 1/pre/FLAIR.nii.gz
    'mrbrains2018': Layout(
        'segm',
        {'T1w': 'pre/reg_T1', 'IR': 'pre/reg_IR', 'FLAIR': 'pre/FLAIR'},
        {
            4: (TISSUES, lambda: _MRBRAINS),
            9: (_MRBRAINS_NAMES, lambda: {value: value for value in range(9)}),
        },
    ),
    # sub-1000_T1w.nii.gz, sub-1000_labels.nii.gz, numbers of Neuromorphometrics
    'miccai': Layout('_labels', {'T1w': '_T1w'}, {4: (TISSUES, _neuromorphometrics)}),
}
"""Layouts of iSeg-2017, MRBrainS-2018, and labels of the MICCAI 2012 multi-atlas challenge."""


@dataclass
class Scan:
    """A subject.

    Attributes
    ----------
    name : str
        Of the subject.
    image : torch.Tensor, shape (contrasts, x, y, z), float32
        Each with mean 0 and SD 1 over its voxels that are not zero, on the grid of the file.
    classes : torch.Tensor, shape (x, y, z), int64
        Class of each voxel, or :data:`UNKNOWN`.
    names : tuple of str
        Of the classes.
    """

    name: str
    image: torch.Tensor
    classes: torch.Tensor
    names: tuple[str, ...]


def find_layout(name: str, classes: int) -> Layout:
    """Return a layout that tells so many classes apart.

    Raises
    ------
    UsageError
        If there is no such layout, or it has other classes.
    """
    layout = LAYOUTS.get(name)
    if layout is None:
        raise UsageError(f'the recipe has an unknown layout "{name}": {" or ".join(LAYOUTS)}')
    if classes not in layout.classes:
        known = ' or '.join(str(count) for count in layout.classes)
        raise UsageError(f'the layout {name} has {known} classes, not {classes}')
    return layout


def _read(path: Path) -> np.ndarray:
    """Read an image in RAS+ order; a fourth axis of length one, as Analyze files have, goes."""
    try:
        image = nib.squeeze_image(nib.load(path))
        if len(image.shape) != 3:
            raise ImageError(f'{path}: a 3-D image is needed, not one of shape {image.shape}')
        return np.asarray(nib.as_closest_canonical(image).dataobj)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise ImageError(f'{path}: cannot be read ({error})') from error


def read_scan(
    labels: Path, layout: Layout, contrasts: Sequence[str], classes: int = len(TISSUES)
) -> Scan:
    """Read the images and the labels of a subject.

    Parameters
    ----------
    labels : pathlib.Path
        Its label map.
    layout : Layout
        Of the data set.
    contrasts : sequence of str
        Keys of ``layout.images``, in the order of the channels.
    classes : int
        A key of ``layout.classes``.

    Raises
    ------
    ImageError
        If a file is missing or unreadable, or the grids differ.
    UsageError
        If the data set lacks a contrast.
    """
    values = np.rint(_read(labels)).astype(np.int64)
    names, table = layout.classes[classes]
    class_of = table()
    # One place more than the largest value: negative values find it from the end.
    lookup = np.full(max(int(values.max()), *class_of) + 2, UNKNOWN, np.int64)
    lookup[list(class_of)] = list(class_of.values())
    mapped = lookup[np.maximum(values, -1)]
    images = []
    for contrast in contrasts:
        if contrast not in layout.images:
            known = ', '.join(layout.images)
            raise UsageError(f'the recipe asks for {contrast}; the layout has {known}')
        path = layout.image(labels, contrast)
        data = _read(path)
        if data.shape != values.shape:
            raise ImageError(f'{path}: {data.shape} voxels, the labels have {values.shape}')
        image = torch.from_numpy(data.astype(np.float32))
        images.append(normalise_brain_zscore(image, image != 0))
    return Scan(layout.subject(labels), torch.stack(images), torch.from_numpy(mapped), names)


def load_scans(
    files: list[Path], layout: str, contrasts: Sequence[str], classes: int = len(TISSUES)
) -> list[Scan]:
    """Read all subjects of some label maps; see :func:`read_scan`.

    Raises
    ------
    ImageError
        If there is no file.
    """
    if not files:
        raise ImageError(
            'no scans with labels to train on, or none held out: check --data, and pattern and '
            'validation in the recipe'
        )
    found = find_layout(layout, classes)
    return [read_scan(file, found, contrasts, classes) for file in files]


class ScanSampler:
    """Draws crops of scans without end.

    The corner of a crop is uniform over all places where the crop fits. A crop is taken if it
    holds a share of all labelled voxels of its scan; after 100 tries the fullest is.

    Parameters
    ----------
    scans : list of Scan
        What to draw from, each as likely.
    shape : tuple of int
        Voxels of a crop; scans that are smaller get zeros at the end, which do not count.
    seed : int
        Seed of the sequence.
    least : float
        Share of the labelled voxels that a crop must hold. With 0 one voxel is enough.
    """

    def __init__(
        self, scans: list[Scan], shape: tuple[int, int, int], seed: int, least: float = 0.1
    ) -> None:
        self.scans, self.shape, self.least = scans, shape, least
        self.generator = torch.Generator().manual_seed(seed)
        self.labelled = [int((scan.classes > 0).sum()) for scan in scans]

    def _integer(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def _crop(self, size: Sequence[int]) -> tuple[slice, ...]:
        corner = [
            self._integer(max(0, n - edge) + 1) for n, edge in zip(size, self.shape, strict=True)
        ]
        return tuple(slice(c, c + edge) for c, edge in zip(corner, self.shape, strict=True))

    def draw(self) -> TissueSample:
        """Return one sample."""
        index = self._integer(len(self.scans))
        scan = self.scans[index]
        wanted = max(1.0, self.least * self.labelled[index])
        best, most = None, -1
        for _ in range(_TRIES):
            at = self._crop(scan.classes.shape)
            held = int((scan.classes[at] > 0).sum())
            if held > most:
                best, most = at, held
            if held >= wanted:
                break
        image, classes = scan.image[(slice(None), *best)], scan.classes[best]
        missing = [edge - n for edge, n in zip(self.shape, classes.shape, strict=True)]
        padding = [end for n in reversed(missing) for end in (0, n)]
        image = functional.pad(image, padding)
        classes = functional.pad(classes, padding, value=UNKNOWN)
        # A class of its own takes the unknown voxels and is cut away: their target is all zero.
        target = functional.one_hot(classes + 1, len(scan.names) + 1)[..., 1:]
        return TissueSample(image, target.movedim(-1, 0).float(), ())


def class_dice(found: torch.Tensor, truth: torch.Tensor, count: int) -> list[float]:
    """Return the Dice of every class but background; nan for a class that neither has.

    Parameters
    ----------
    found, truth : torch.Tensor of int, shape (x, y, z)
        Classes; voxels that are :data:`UNKNOWN` in the truth do not count.
    count : int
        Number of classes.
    """
    known = truth != UNKNOWN
    overlaps = class_overlaps(found[known], truth[known], count)
    both, sizes = (values[1:].tolist() for values in overlaps)
    return [2 * b / size if size else float('nan') for b, size in zip(both, sizes, strict=True)]
