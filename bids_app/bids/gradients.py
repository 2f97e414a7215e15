# SPDX-License-Identifier: Apache-2.0
"""Gradient tables of diffusion images by BIDS' inheritance principle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


class GradientFinder:
    """Find the ``.bval`` and ``.bvec`` file that applies to a diffusion image.

    Parameters
    ----------
    bids_dir : Path
        Root of the data set: nothing above it applies.
    tables : iterable of Path
        All gradient tables of the data set.

    Notes
    -----
    A table applies if it lies in the image's folder or above it, has the image's suffix and no
    entity that the image has not; of several the nearest one counts, then the one with the most
    entities (BIDS specification, "The inheritance principle").
    """

    def __init__(self, bids_dir: Path, tables: Iterable[Path]) -> None:
        self.bids_dir = Path(bids_dir)
        self._by_folder: dict[Path, list[Path]] = defaultdict(list)
        for table in sorted(tables):
            self._by_folder[table.parent].append(table)

    def find(self, image: Path, extension: str) -> Path | None:
        """Return the table with this extension (``.bval`` or ``.bvec``), or ``None``."""
        entities, suffix = _parse(image)
        folder = image.parent
        while True:
            applying = [
                (len(found), table)
                for table in self._by_folder.get(folder, ())
                if table.suffix == extension
                for found, own_suffix in [_parse(table)]
                if own_suffix == suffix and found <= entities
            ]
            if applying:
                return max(applying)[1]
            if folder in (self.bids_dir, folder.parent):
                return None
            folder = folder.parent


def _parse(path: Path) -> tuple[frozenset[str], str]:
    """Split a file name into its entities (``run-1``) and its suffix."""
    *entities, suffix = path.name.split('.')[0].split('_')
    return frozenset(entities), suffix
