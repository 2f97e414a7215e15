# SPDX-License-Identifier: Apache-2.0
"""The part of a session's workflow that handles diffusion images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_app.interfaces.dwi import AlignDiffusion, MapDiffusion, PrepareSeries
from bids_app.interfaces.publish import PublishSession
from bids_app.interfaces.report import WriteReport

if TYPE_CHECKING:
    from bids_app.bids.inputs import SessionRecord
    from bids_app.config import RunConfig

DWI_SECONDS = {'dwi_series': 5.0, 'dwi_maps': 40.0, 'dwi_regions': 40.0}
"""Rough times on 2 CPU cores, until the first scan has been measured."""

SERIES_BYTES_PER_VOXEL = 16
"""Memory of the steps that hold a series: four times its size as float32."""


@dataclass(frozen=True)
class DwiSettings:
    """Diffusion images of a session, and what is made of them.

    Attributes
    ----------
    images, bvals, bvecs : tuple of Path
        Runs of one grid with their tables.
    alone : bool
        There is no anatomical image: a T1w is synthesised at 1 mm and takes its place.
    tensor : bool
        Whether the runs allow a tensor; without one there are mean images only.
    synth_model : Path, optional
        Folder of the synthesis model.
    synth_sha256 : str
        Its checksum.
    one_mm : bool
        Publish the synthesised T1w at 1 mm beside a measured one.
    b0_threshold : float
        s/mm^2.
    motion, denoise : str
        ``rigid`` and ``mppca``, or ``none``.
    """

    images: tuple[Path, ...]
    bvals: tuple[Path, ...]
    bvecs: tuple[Path, ...]
    alone: bool = False
    tensor: bool = True
    synth_model: Path | None = None
    synth_sha256: str = ''
    one_mm: bool = False
    b0_threshold: float = 50.0
    motion: str = 'none'
    denoise: str = 'none'

    @property
    def maps_only(self) -> bool:
        """Whether there is nothing that anatomy could be computed on."""
        return self.alone and not self.tensor


def dwi_settings(
    record: SessionRecord, config: RunConfig, synth_model: Path | None, synth_sha256: str = ''
) -> DwiSettings | None:
    """Return the settings for a session; None if its diffusion images are not processed.

    Parameters
    ----------
    record : SessionRecord
    config : RunConfig
        That of the session (:meth:`bids_app.workflows.jobs.Job.config`).
    synth_model : Path, optional
        Folder of the synthesis model.
    synth_sha256 : str
        Its checksum.
    """
    if 'dwi' not in config.modules:
        return None
    return DwiSettings(
        tuple(scan.path for scan in record.dwi),
        tuple(scan.bval for scan in record.dwi if scan.bval is not None),
        tuple(scan.bvec for scan in record.dwi if scan.bvec is not None),
        alone=record.dwi_alone,
        tensor=not record.no_tensor,
        synth_model=synth_model,
        synth_sha256=synth_sha256,
        one_mm=config.synth_1mm,
        b0_threshold=config.b0_threshold,
        motion=config.dwi_motion,
        denoise=config.dwi_denoise,
    )


def series_nodes(
    settings: DwiSettings,
    *,
    network: Mapping[str, Any],
    resources: Mapping[str, Any],
    series_gb: float,
) -> tuple[pe.Node, pe.Node]:
    """Make the nodes ``dwi_series`` and ``dwi_maps``, not yet connected.

    Parameters
    ----------
    settings : DwiSettings
    network : mapping
        Inputs of every step with the segmentation model.
    resources : mapping
        ``n_procs`` and ``mem_gb`` of such steps.
    series_gb : float
        Memory that holding the series takes.
    """
    series = pe.Node(
        PrepareSeries(
            images=[str(path) for path in settings.images],
            bvals=[str(path) for path in settings.bvals],
            bvecs=[str(path) for path in settings.bvecs],
            b0_threshold=settings.b0_threshold,
            denoise=settings.denoise,
            motion=settings.motion,
            required=settings.alone,
        ),
        name='dwi_series',
        mem_gb=0.5 + series_gb,
    )
    maps = pe.Node(
        MapDiffusion(
            b0_threshold=settings.b0_threshold,
            synth_model=str(settings.synth_model or ''),
            synth_sha256=settings.synth_sha256,
            one_mm=settings.tensor and (settings.alone or settings.one_mm),
            published=settings.one_mm and not settings.alone,
            required=settings.alone,
            **network,
        ),
        name='dwi_maps',
        n_procs=resources['n_procs'],
        mem_gb=resources['mem_gb'] + series_gb,
    )
    return series, maps


def align_node(settings: DwiSettings, native_gb: float) -> pe.Node:
    """Make the node ``dwi_regions``, not yet connected."""
    return pe.Node(
        AlignDiffusion(same_space=settings.alone), name='dwi_regions', mem_gb=1.0 + native_gb
    )


def series_memory(settings: DwiSettings) -> float:
    """Estimate the memory of the series, GB, from the headers; 0 where they cannot be read."""
    import math

    from bids_app.errors import ImageError
    from bids_app.images.scans import count_volumes, read_grid

    try:
        voxels = sum(math.prod(read_grid(p).shape) * count_volumes(p) for p in settings.images)
    except ImageError:  # said by the step that reads the image
        return 0.0
    return SERIES_BYTES_PER_VOXEL * voxels / 1e9


def init_dwi_wf(
    *,
    settings: DwiSettings,
    place: Mapping[str, str],
    bids_dir: Path,
    models: Mapping[str, Mapping[str, str]],
    network: Mapping[str, Any],
    resources: Mapping[str, Any],
    report_context: Mapping[str, Any] | None = None,
    threads: int = 1,
    name: str = 'dwi_wf',
) -> pe.Workflow:
    """Build the workflow of a session of which there are mean diffusion images only.

    Workflow Graph
        dwi_series -> dwi_maps -> publish -> report.

    Parameters
    ----------
    settings : DwiSettings
    place : mapping
        ``output_dir``, ``subject``, ``session`` and ``reference`` for the last two steps.
    bids_dir : Path
        Root of the raw data set.
    models : mapping
        ``name``, ``version`` and ``sha256`` of the models by their role.
    network, resources : mapping
        As for :func:`series_nodes`.
    report_context : mapping, optional
        What the report shows and no node finds out.
    threads : int
        Files compressed at once.
    name : str
        Name of the workflow.

    Outputs
    -------
    info
        JSON file with the content of the report.

    Returns
    -------
    nipype.pipeline.engine.Workflow
    """
    workflow = pe.Workflow(name=name)
    outputnode = pe.Node(niu.IdentityInterface(fields=['info']), name='outputnode')
    series, maps = series_nodes(
        settings, network=network, resources=resources, series_gb=series_memory(settings)
    )
    publish = pe.Node(
        PublishSession(
            in_file=str(settings.images[0]),
            bids_dir=str(bids_dir),
            models={role: dict(info) for role, info in models.items()},
            threads=threads,
            **place,
        ),
        name='publish',
        n_procs=threads,
        mem_gb=0.5,
    )
    report = pe.Node(
        WriteReport(context=dict(report_context or {}), **place), name='report', mem_gb=1.0
    )
    workflow.connect([
        (series, maps, [('info', 'series_info')]),
        (series, publish, [('info', 'dwi_series_info')]),
        (maps, publish, [('info', 'dwi_maps_info')]),
        (publish, report, [('info', 'info')]),
        (report, outputnode, [('info', 'info')]),
    ])  # fmt: skip
    return workflow
