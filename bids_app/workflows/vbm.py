# SPDX-License-Identifier: Apache-2.0
"""Builder of the workflow in template space: registration, maps, predictions, regions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids.spaces import OutputSpace, atlas_parts, atlas_space, output_spaces
from bids_app.config import RunConfig

if TYPE_CHECKING:
    from nipype.pipeline import engine as pe

    from bids_app.images.templates import Template
    from bids_app.workflows.jobs import ModelInUse

INPUTS = (
    'preproc', 'brain_mask', 'probseg_gm', 'probseg_wm', 'probseg_csf', 'wholebrain_dseg',
)  # fmt: skip
"""What the workflow takes: native derivatives by their keys."""

REGISTRATION_MEM_GB = 4.0


@dataclass(frozen=True)
class VbmSettings:
    """What a run wants in template space.

    Attributes
    ----------
    spaces : tuple of OutputSpace
        Templates with the voxel sizes of the maps.
    templates : mapping of str to Template
        Their files, by the name of the space.
    method : str
        ``network``, ``refined`` or ``ants``.
    model : Path or None
        Folder of the registration model; ``ants`` needs none.
    model_sha256 : str
        Its checksum.
    smooth_fwhm : tuple of float
        Widths of the smoothing kernels, mm.
    atlases : tuple of (str, str, str)
        Space, name and ``FILE[:TABLE]`` of every atlas.
    classifiers : tuple of ModelInUse
        What predicts from the maps.
    """

    spaces: tuple[OutputSpace, ...]
    templates: Mapping[str, Template]
    method: str = 'refined'
    model: Path | None = None
    model_sha256: str = ''
    smooth_fwhm: tuple[float, ...] = (6.0, 8.0)
    atlases: tuple[tuple[str, str, str], ...] = field(default=())
    classifiers: tuple[ModelInUse, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the nodes that follow the registration."""
        predict = ('predict',) if self.classifiers else ()
        return ('warp', 'modulate', *predict, *(('regions',) if self.atlases else ()))


def vbm_settings(
    config: RunConfig,
    model: ModelInUse | None,
    device: str = 'cpu',
    classifiers: Sequence[ModelInUse] = (),
) -> VbmSettings | None:
    """Return what a run wants in template space; None if nothing.

    The maps of a template that AnatNet does not bring along are made now if they have not been
    before: once for all scans, in a process of its own that gives its memory back.

    Parameters
    ----------
    config : RunConfig
        The options.
    model : ModelInUse or None
        The registration model.
    device : str
        Where the maps of a template are made.
    classifiers : sequence of ModelInUse
        What predicts from the maps.

    Raises
    ------
    AnatNetError
        If a template or an atlas cannot be used.
    """
    if 'vbm' not in config.modules:
        return None
    spaces = output_spaces(config.output_spaces, config.voxel_size)
    atlases: tuple[tuple[str, str, str], ...] = ()
    if config.atlas:
        from bids_app.morphometry.regions import read_atlases

        found = read_atlases(config.atlas)
        atlases = tuple(
            (atlas_space(atlas.path, spaces), atlas.name, text)
            for atlas, text in zip(found, config.atlas, strict=True)
        )
    return VbmSettings(
        spaces=spaces,
        templates={space.space: _template(space.space, config, device) for space in spaces},
        method=config.registration,
        model=None if model is None else model.folder,
        model_sha256='' if model is None else model.sha256,
        smooth_fwhm=config.smooth_fwhm,
        atlases=atlases,
        classifiers=tuple(classifiers),
    )


def _template(space: str, config: RunConfig, device: str) -> Template:
    from bids_app.images.templates import DEFAULT_SPACE, find_template

    if space == DEFAULT_SPACE:
        return find_template(space)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from bids_app.inference.models import find_model
    from bids_app.workflows.workers import start_worker

    folder = config.work_dir / 'templates'
    folder.mkdir(parents=True, exist_ok=True)
    # Like the workers of the plugin it must not outlive the main process.
    with ProcessPoolExecutor(
        1, get_context('forkserver'), initializer=start_worker, initargs=(os.getcwd(), {})
    ) as pool:
        making = pool.submit(
            find_template,
            space,
            cache_dir=folder,
            model=find_model(config.model, config.models_dir),
            device=device,
            precision=config.precision,
            threads=config.nprocs,
            low_mem=config.low_mem,
        )
        return making.result()


def init_vbm_wf(
    *,
    settings: VbmSettings,
    device: str = 'cpu',
    precision: str = 'auto',
    omp_nthreads: int = 1,
    sloppy: bool = False,
    native_gb: float = 0.0,
    name: str = 'vbm_wf',
) -> pe.Workflow:
    """Build the part of a session's workflow that works in template space.

    Workflow Graph
        normalise -> warp, modulate and, where there are atlases, regions; where there are
        classifiers, modulate -> predict. Every node serves all output spaces.

    Parameters
    ----------
    settings : VbmSettings
        What is wanted.
    device, precision : str
        Resolved device (``cpu``, ``cuda`` or ``cuda:N``), and the precision of the network.
    omp_nthreads : int
        Threads of one node. A registration on a GPU takes one processor and one GPU slot.
    sloppy : bool
        Fewer iterations, for tests.
    native_gb : float
        Memory for volumes of the scan's size, GB.
    name : str
        Name of the workflow.

    Inputs
    ------
    preproc, brain_mask, probseg_gm, probseg_wm, probseg_csf, wholebrain_dseg
        On the grid of the scan, not compressed.

    Outputs
    -------
    normalise_info, warp_info, modulate_info, predict_info, regions_info
        JSON files with what was found, and with the files that were written.

    Returns
    -------
    nipype.pipeline.engine.Workflow
    """
    from nipype.interfaces import utility as niu
    from nipype.pipeline import engine as pe

    from bids_app.interfaces.vbm import (
        MeasureRegions,
        Modulate,
        Normalise,
        PredictFromMaps,
        WarpToTemplate,
    )

    on_gpu = device.startswith('cuda') and settings.method != 'ants'
    sizes = [list(space.voxel_sizes) for space in settings.spaces]
    tissues = [(key, key) for key in INPUTS if key.startswith('probseg_')]

    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=list(INPUTS)), name='inputnode')
    outputnode = pe.Node(
        niu.IdentityInterface(fields=['normalise_info', *(f'{s}_info' for s in settings.steps)]),
        name='outputnode',
    )
    normalise = pe.Node(
        Normalise(
            templates=[
                _plain(settings.templates[space.space]) for space in settings.spaces
            ],
            method=settings.method,
            model='' if settings.model is None else str(settings.model),
            model_sha256=settings.model_sha256,
            precision=precision,
            device=device,
            threads=omp_nthreads,
            use_gpu=on_gpu,
            sloppy=sloppy,
        ),
        name='normalise',
        n_procs=1 if on_gpu else omp_nthreads,
        mem_gb=REGISTRATION_MEM_GB + native_gb,
    )  # fmt: skip
    warp = pe.Node(WarpToTemplate(voxel_sizes=sizes), name='warp', mem_gb=1.0 + native_gb)
    modulate = pe.Node(
        Modulate(voxel_sizes=sizes, smooth_fwhm=list(settings.smooth_fwhm)),
        name='modulate',
        mem_gb=1.0 + native_gb,
    )
    workflow.connect([
        (inputnode, normalise, [(key, key) for key in INPUTS if key != 'preproc']),
        (inputnode, warp, [(key, key) for key in INPUTS if key != 'wholebrain_dseg']),
        (inputnode, modulate, [pair for pair in tissues if pair[0] != 'probseg_csf']),
        (normalise, warp, [('normalisations', 'normalisations')]),
        (normalise, modulate, [('normalisations', 'normalisations')]),
        (normalise, outputnode, [('info', 'normalise_info')]),
        (warp, outputnode, [('info', 'warp_info')]),
        (modulate, outputnode, [('info', 'modulate_info')]),
    ])  # fmt: skip
    if settings.classifiers:
        predict = pe.Node(
            PredictFromMaps(
                classifiers=[str(model.folder) for model in settings.classifiers],
                sha256=[model.sha256 for model in settings.classifiers],
            ),
            name='predict',
            mem_gb=1.0,
        )
        workflow.connect([
            (modulate, predict, [('info', 'modulate_info')]),
            (predict, outputnode, [('info', 'predict_info')]),
        ])  # fmt: skip
    if settings.atlases:
        regions = pe.Node(
            MeasureRegions(
                atlases=_atlases(settings),
                atlas_files=_atlas_files(settings.atlases),
            ),
            name='regions',
            mem_gb=1.0 + native_gb,
        )
        workflow.connect([
            (inputnode, regions, tissues),
            (normalise, regions, [('normalisations', 'normalisations')]),
            (regions, outputnode, [('info', 'regions_info')]),
        ])  # fmt: skip
    return workflow


def _plain(template: Template) -> dict[str, Any]:
    """Return the files of a template as text."""
    return {key: value if value is None else str(value) for key, value in asdict(template).items()}


def _atlases(settings: VbmSettings) -> list[list[str]]:
    """Return the atlases of every space."""
    return [
        [text for place, _, text in settings.atlases if place == space.space]
        for space in settings.spaces
    ]


def _atlas_files(atlases: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return images and tables of all atlases."""
    return [str(path) for *_, text in atlases for path in atlas_parts(text)]
