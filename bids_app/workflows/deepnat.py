# SPDX-License-Identifier: Apache-2.0
"""What a session needs to be labelled by DeepNAT, and the node that does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.pipeline import engine as pe

from bids_app.interfaces.deepnat import SegmentStructures

if TYPE_CHECKING:
    from bids_app.config import RunConfig
    from bids_app.workflows.jobs import ModelsInUse

DEEPNAT_SECONDS = {'structures': 120.0}
"""Rough time on 2 CPU cores."""

DEEPNAT_MEM_GB = 6.0


@dataclass(frozen=True)
class DeepNATSettings:
    """How DeepNAT labels the structures of a run.

    Attributes
    ----------
    foreground, model : pathlib.Path
        Model folders of the first and the second network.
    sha256 : tuple of str
        Checksums of both.
    crf : bool
        Whether the conditional random field follows.
    mirror : bool
        Whether the mirrored brain is segmented, too.
    parities : int
        Parity classes of voxels that are centres of patches.
    tile : int
        Edge of the tiles to begin with, voxels; 0 for that of the installation.
    """

    foreground: Path
    model: Path
    sha256: tuple[str, str]
    crf: bool = True
    mirror: bool = False
    parities: int = 2
    tile: int = 0


def deepnat_settings(config: RunConfig, models: ModelsInUse) -> DeepNATSettings | None:
    """Return the settings of a run; None where the default network labels the structures."""
    if not models.deepnat:
        return None
    first, second = models.deepnat
    return DeepNATSettings(
        first.folder,
        second.folder,
        (first.sha256, second.sha256),
        config.crf,
        config.deepnat_mirror,
        config.deepnat_parities,
        config.deepnat_tile,
    )


def structures_node(
    settings: DeepNATSettings,
    resources: Mapping[str, Any],
    *,
    n_procs: int,
    native_gb: float,
) -> pe.Node:
    """Return the node that labels the structures.

    Parameters
    ----------
    settings : DeepNATSettings
        The networks and how to run them.
    resources : mapping
        Inputs that all network nodes share: device, precision, threads, memory.
    n_procs : int
        Processors of the node.
    native_gb : float
        Memory for volumes on the grid of the scan, GB.
    """
    return pe.Node(
        SegmentStructures(
            foreground=str(settings.foreground),
            model=str(settings.model),
            sha256=list(settings.sha256),
            crf=settings.crf,
            mirror=settings.mirror,
            parities=settings.parities,
            tile=settings.tile,
            **resources,
        ),
        name='structures',
        n_procs=n_procs,
        mem_gb=DEEPNAT_MEM_GB + native_gb,
    )
