# SPDX-License-Identifier: Apache-2.0
"""Builder of the workflow that turns the scans of one session into derivatives and a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_app.bids.outputs import reference_blanks
from bids_app.interfaces.anat import (
    ConformScan,
    CorrectBias,
    LocateBrain,
    RestoreMask,
    SegmentBrain,
)
from bids_app.interfaces.contrasts import CoregisterContrasts, SegmentTissues
from bids_app.interfaces.measure import MeasureBrain
from bids_app.interfaces.precomputed import OWN, UsePrecomputed
from bids_app.interfaces.publish import PublishSession
from bids_app.interfaces.report import WriteReport
from bids_app.workflows.deepnat import DEEPNAT_SECONDS, DeepNATSettings, structures_node
from bids_app.workflows.dwi import (
    DWI_SECONDS,
    DwiSettings,
    align_node,
    init_dwi_wf,
    series_memory,
    series_nodes,
)
from bids_app.workflows.vbm import INPUTS, VbmSettings, init_vbm_wf

if TYPE_CHECKING:
    from bids_app.bids.precomputed import Precomputed

EXPECTED_SECONDS = {
    'conform': 2.0, 'mask': 5.0, 'bias': 5.0, 'segment': 20.0, 'coregister': 20.0, 'tissue': 15.0,
    'restore': 1.0, 'precomputed': 3.0, 'normalise': 15.0, 'measure': 3.0, 'warp': 3.0,
    'modulate': 3.0, 'predict': 2.0, 'regions': 2.0, 'publish': 6.0, 'report': 10.0,
    **DEEPNAT_SECONDS, **DWI_SECONDS,
}  # fmt: skip
"""Rough times on 2 CPU cores, until the first scan has been measured."""

TISSUE_MAPS = ('dseg', 'probseg_gm', 'probseg_wm', 'probseg_csf')
"""What a tissue model makes in place of the segmentation model."""

NETWORK_MEM_GB = 4.0
BYTES_PER_VOXEL = 60
"""Memory of the steps that hold native volumes: some 15 of them as float32."""


def anat_steps(
    modules: Sequence[str],
    precomputed: Sequence[Precomputed] = (),
    vbm: VbmSettings | None = None,
    contrasts: Collection[str] = (),
    tissue_model: str = 'none',
    dwi: DwiSettings | None = None,
    deepnat: DeepNATSettings | None = None,
) -> tuple[str, ...]:
    """Return the names of the nodes that a session needs, in order.

    Parameters
    ----------
    modules : sequence of str
        What is computed.
    precomputed : sequence of Precomputed
        What replaces ours.
    vbm : VbmSettings, optional
        What is wanted in template space.
    contrasts : collection of str
        Contrasts that the session has besides its reference.
    tissue_model : str
        ``none``, or what makes the tissue maps.
    dwi : DwiSettings, optional
        What is made of diffusion images.
    deepnat : DeepNATSettings, optional
        How DeepNAT labels the structures; without it, the segmentation model does.
    """
    series = ('dwi_series', 'dwi_maps') if dwi else ()
    if dwi and dwi.maps_only:
        return (*series, 'publish', 'report')
    if not {'tissue', 'wholebrain'} & set(modules):
        given = any(one.kind == 'brain_mask' for one in precomputed)
        replacing = ('precomputed',) if given else ()
        return (*series, 'conform', 'mask', 'restore', *replacing, 'publish', 'report')
    others = ('coregister',) if contrasts else ()
    tissue = ('tissue',) if tissue_model != 'none' and 'tissue' in modules else ()
    replacing = ('precomputed',) if precomputed else ()
    labelling = ('structures',) if deepnat and 'wholebrain' in modules else ()
    register = ('normalise',) if vbm else ()
    after = vbm.steps if vbm else ()
    return (
        *series, 'conform', 'mask', 'bias', 'segment', *others, *tissue, *replacing, *labelling,
        *register, 'measure', *after, *(('dwi_regions',) if dwi else ()), 'publish', 'report',
    )  # fmt: skip


def init_anat_wf(
    *,
    subject: str,
    session: str | None,
    scan: Path,
    bids_dir: Path,
    output_dir: Path,
    model: Path,
    models: Mapping[str, Mapping[str, str]],
    modules: Sequence[str] = ('mask', 'tissue', 'wholebrain'),
    reference: str = 'T1w',
    contrasts: Mapping[str, Path] | None = None,
    tissue_model: str = 'none',
    models_dir: Path | None = None,
    correct_lesions: bool = False,
    vbm: VbmSettings | None = None,
    dwi: DwiSettings | None = None,
    deepnat: DeepNATSettings | None = None,
    precomputed: Sequence[Precomputed] = (),
    precomputed_uris: Mapping[str, str] | None = None,
    device: str = 'cpu',
    precision: str = 'auto',
    omp_nthreads: int = 1,
    low_mem: bool = False,
    sloppy: bool = False,
    voxels: int = 0,
    report_context: Mapping[str, Any] | None = None,
    name: str = 'anat_wf',
) -> pe.Workflow:
    """Build the workflow of one session.

    Workflow Graph
        conform -> mask -> bias -> segment -> measure -> publish -> report, and for the module
        ``mask`` alone conform -> mask -> restore -> publish -> report. All of them pass files.
        Further contrasts go through ``coregister``, which follows ``segment``, and a tissue model
        through ``tissue`` after both. Where other pipelines have made a mask or tissues,
        ``precomputed`` follows (or comes after ``restore``), and DeepNAT's ``structures`` after
        it. In template space, normalise ->
        warp, modulate, predict, regions lie between these and ``publish``. Diffusion images go
        through dwi_series -> dwi_maps -> dwi_regions, the last of which needs the structures;
        where there is nothing else, dwi_maps makes what ``conform`` begins with.

    Parameters
    ----------
    subject, session : str
        Labels without ``sub-`` and ``ses-``; ``session`` may be None.
    scan : Path
        The reference, on which everything is computed: nearly always a T1w.
    bids_dir, output_dir : Path
        Roots of the raw data set and of the derivatives.
    model : Path
        Folder of the segmentation model.
    models : mapping
        ``name``, ``version`` and ``sha256`` of the models by their role, ``segmentation``,
        ``registration`` and those of classifiers; a changed checksum makes cached results invalid.
    modules : sequence of str
        ``mask``, ``tissue``, ``wholebrain``: which native outputs are written.
    reference : str
        Contrast of the reference.
    contrasts : mapping of str to Path, optional
        Further scans, by their contrast; for the module ``mask`` alone they are not needed.
    tissue_model : str
        ``none``, ``auto``, or name or folder of the model that makes the tissue maps.
    models_dir : Path, optional
        Where tissue models are, instead of the folder of the installation.
    correct_lesions : bool
        Count lesions that the tissue model finds as white matter.
    vbm : VbmSettings, optional
        What is wanted in template space.
    dwi : DwiSettings, optional
        What is made of diffusion images.
    deepnat : DeepNATSettings, optional
        How DeepNAT labels the structures; without it, the segmentation model does.
    precomputed : sequence of Precomputed
        Files of other pipelines that replace ours.
    precomputed_uris : mapping of str to str, optional
        Their BIDS URIs by their kinds.
    device, precision : str
        Resolved device (``cpu``, ``cuda`` or ``cuda:N``), and the precision of the networks.
    omp_nthreads : int
        Threads of one node. Network nodes on a GPU take one processor and one GPU slot, because
        Nipype gives a GPU node as many GPU slots as it has processors.
    low_mem, sloppy : bool
        Small tiles; coarser estimates for tests.
    voxels : int
        Voxels of the scan, for the estimate of memory.
    report_context : mapping, optional
        What the report shows and no node finds out.
    name : str
        Name of the workflow.

    Inputs
    ------
    scan
        The reference.

    Outputs
    -------
    info
        JSON file with the content of the report.

    Returns
    -------
    nipype.pipeline.engine.Workflow
    """
    contrasts = dict(contrasts or {})
    steps = anat_steps(modules, precomputed, vbm, contrasts, tissue_model, dwi, deepnat)
    full = 'segment' in steps
    native_gb = BYTES_PER_VOXEL * voxels / 1e9
    on_gpu = device.startswith('cuda')
    resources = {
        'precision': precision,
        'device': device,
        'threads': omp_nthreads,
        'low_mem': low_mem,
        'use_gpu': on_gpu,
    }
    network = {
        'model': str(model),
        'model_sha256': models['segmentation']['sha256'],
        **resources,
    }
    network_resources = {
        'n_procs': 1 if on_gpu else omp_nthreads,
        'mem_gb': NETWORK_MEM_GB + native_gb,
    }
    place = {
        'output_dir': str(output_dir),
        'subject': subject,
        'session': session or '',
        'reference': reference,
    }

    if dwi is not None and dwi.maps_only:
        return init_dwi_wf(
            settings=dwi,
            place=place,
            bids_dir=bids_dir,
            models=models,
            network=network,
            resources=network_resources,
            report_context=report_context,
            threads=omp_nthreads,
            name=name,
        )

    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['scan']), name='inputnode')
    inputnode.inputs.scan = str(scan)
    outputnode = pe.Node(niu.IdentityInterface(fields=['info']), name='outputnode')
    scan_node, scan_field = inputnode, 'scan'
    dwi_maps = None
    if dwi is not None:
        dwi_series, dwi_maps = series_nodes(
            dwi, network=network, resources=network_resources, series_gb=series_memory(dwi)
        )
        workflow.connect([(dwi_series, dwi_maps, [('info', 'series_info')])])
        if dwi.alone:  # everything is computed on the T1w that is made of them
            scan_node, scan_field = dwi_maps, 't1w'

    conform = pe.Node(ConformScan(), name='conform', mem_gb=1.0 + native_gb)
    mask = pe.Node(LocateBrain(**network), name='mask', **network_resources)
    publish = pe.Node(
        PublishSession(
            bids_dir=str(bids_dir),
            models={role: dict(info) for role, info in models.items()},
            templates={
                space: str(template.t1w)
                for space, template in (vbm.templates.items() if vbm else ())
            },
            contrasts={name: str(path) for name, path in contrasts.items()},
            threads=omp_nthreads,
            **place,
        ),
        name='publish',
        n_procs=omp_nthreads,
        mem_gb=0.5,
    )
    report = pe.Node(
        WriteReport(context=dict(report_context or {}), **place),
        name='report',
        mem_gb=1.0 + native_gb,
    )
    workflow.connect([
        (scan_node, conform, [(scan_field, 'in_file')]),
        (conform, mask, [('out_file', 'in_file')]),
        (inputnode, publish, [('scan', 'in_file')]),
        (conform, publish, [('info', 'conform_info')]),
        (mask, publish, [('info', 'mask_info')]),
        (publish, report, [('info', 'info')]),
        (report, outputnode, [('info', 'info')]),
    ])  # fmt: skip
    if dwi_maps is not None:
        workflow.connect([
            (dwi_series, publish, [('info', 'dwi_series_info')]),
            (dwi_maps, publish, [('info', 'dwi_maps_info')]),
        ])  # fmt: skip

    replacing = None
    if 'precomputed' in steps:
        replacing = pe.Node(
            UsePrecomputed(
                given={one.kind: str(one.path) for one in precomputed},
                sources=dict(precomputed_uris or {}),
                stamps=[_stamp(one.path) for one in precomputed],
            ),
            name='precomputed',
            mem_gb=1.0 + native_gb,
        )
        workflow.connect([(replacing, publish, [('info', 'precomputed_info')])])

    if not full:
        restore = pe.Node(RestoreMask(), name='restore', mem_gb=0.5 + native_gb)
        workflow.connect([
            (scan_node, restore, [(scan_field, 'native_file')]),
            (mask, restore, [('mask_file', 'mask_file')]),
            (restore, publish, [('info', 'restore_info')]),
        ])  # fmt: skip
        if dwi_maps is not None and dwi.alone:  # nobody else has the image of this grid
            workflow.connect([(dwi_maps, publish, [('t1w', 'preproc')])])
        if replacing is not None:
            workflow.connect([
                (restore, replacing, [('brain_mask', 'brain_mask'), ('info', 'info')]),
            ])  # fmt: skip
        workflow.connect([(replacing or restore, publish, [('brain_mask', 'brain_mask')])])
        return workflow

    bias = pe.Node(
        CorrectBias(sloppy=sloppy, threads=omp_nthreads),
        name='bias',
        n_procs=omp_nthreads,
        mem_gb=1.5 + native_gb,
    )
    segment = pe.Node(SegmentBrain(**network, sloppy=sloppy), name='segment', **network_resources)
    measure = pe.Node(MeasureBrain(reference=reference), name='measure', mem_gb=1.0 + native_gb)
    images = ['brain_mask']
    tables = [('qc_stats', 'qc_stats')]
    if 'tissue' in modules:
        images += TISSUE_MAPS
        tables.append(('tissue_morph', 'tissue_morph'))
    if 'wholebrain' in modules:
        images.append('wholebrain_dseg')
        tables.append(('wholebrain_morph', 'wholebrain_morph'))
    workflow.connect([
        (conform, bias, [('out_file', 'in_file')]),
        (mask, bias, [('mask_file', 'mask_file')]),
        (scan_node, bias, [(scan_field, 'native_file')]),
        (bias, segment, [('out_file', 'in_file')]),
        (mask, segment, [('coarse_file', 'coarse_file')]),
        # Its header has passed our rule for contradictory matrices; the scan's own has not.
        (bias, segment, [('native_file', 'native_file')]),
        (scan_node, measure, [(scan_field, 'raw_file')]),
        (bias, measure, [('native_file', 'preproc')]),
        (mask, measure, [('info', 'mask_info')]),
        (bias, publish, [('native_file', 'preproc'), ('info', 'bias_info')]),
        (segment, publish, [('info', 'segment_info')]),
        (measure, publish, [*tables, ('info', 'measure_info')]),
    ])  # fmt: skip
    coregister = None
    if 'coregister' in steps:
        coregister = pe.Node(
            CoregisterContrasts(
                contrasts=list(contrasts),
                scans=[str(path) for path in contrasts.values()],
                sloppy=sloppy,
                **network,
            ),
            name='coregister',
            **network_resources,
        )
        workflow.connect([
            (bias, coregister, [('native_file', 'reference'), ('out_file', 'conformed')]),
            (segment, coregister, [('brain_mask', 'brain_mask')]),
            (coregister, measure, [('info', 'coregister_info')]),
            (coregister, publish, [('info', 'coregister_info')]),
        ])  # fmt: skip
    maps = dict.fromkeys((*OWN, 'info'), segment)
    if 'tissue' in steps:
        tissue = pe.Node(
            SegmentTissues(
                reference=reference_blanks(reference)['reference'],
                tissue_model=tissue_model,
                models_dir=str(models_dir or ''),
                sha256=[
                    info['sha256'] for role, info in models.items() if role.startswith('tissue ')
                ],
                correct_lesions=correct_lesions,
                **resources,
            ),
            name='tissue',
            **network_resources,
        )
        workflow.connect([
            (bias, tissue, [('out_file', 'in_file')]),
            (segment, tissue, [
                ('brain_mask', 'brain_mask'), ('wholebrain_dseg', 'wholebrain_dseg'),
                ('info', 'segment_info'),
            ]),
            (tissue, publish, [('info', 'tissue_info')]),
        ])  # fmt: skip
        if coregister is not None:
            workflow.connect([(coregister, tissue, [('info', 'coregister_info')])])
        maps.update(dict.fromkeys((*TISSUE_MAPS, 'info'), tissue))
    if replacing is not None:
        for key, node in maps.items():
            workflow.connect(node, key, replacing, key)
        maps = dict.fromkeys(maps, replacing)
    # Registration compares groups of structures as the segmentation model knows them.
    final = dict(maps)
    if 'structures' in steps:
        structures = structures_node(
            deepnat, resources, n_procs=network_resources['n_procs'], native_gb=native_gb
        )
        where = (mask, 'mask_file') if replacing is None else (replacing, 'brain_mask')
        workflow.connect(*where, structures, 'mask_file')
        workflow.connect(maps['info'], 'info', structures, 'info')
        workflow.connect([
            (bias, structures, [('out_file', 'in_file'), ('native_file', 'native_file')]),
            (mask, structures, [('info', 'mask_info')]),
            (structures, publish, [('info', 'structures_info')]),
        ])  # fmt: skip
        final.update(wholebrain_dseg=structures, info=structures)
    for key in OWN:
        workflow.connect(final[key], key, measure, key)
    workflow.connect(final['info'], 'info', measure, 'segment_info')
    for key in (*images, 'uncertainty'):
        workflow.connect(final[key], key, publish, key)
    if dwi is not None:
        align = align_node(dwi, native_gb)
        for key in ('brain_mask', 'dseg', 'wholebrain_dseg'):
            workflow.connect(final[key], key, align, key)
        workflow.connect([
            (dwi_maps, align, [('info', 'maps_info')]),
            (bias, align, [('native_file', 'reference')]),
            (align, publish, [('info', 'dwi_regions_info')]),
        ])  # fmt: skip
    if vbm is not None:
        in_template = init_vbm_wf(
            settings=vbm,
            device=device,
            precision=precision,
            omp_nthreads=omp_nthreads,
            sloppy=sloppy,
            native_gb=native_gb,
        )
        for key in INPUTS:
            if key != 'preproc':
                workflow.connect(maps[key], key, in_template, f'inputnode.{key}')
        workflow.connect([
            (bias, in_template, [('native_file', 'inputnode.preproc')]),
            (in_template, measure, [('outputnode.normalise_info', 'normalise_info')]),
            (in_template, publish, [
                (f'outputnode.{step}_info', f'{step}_info') for step in ('normalise', *vbm.steps)
            ]),
        ])  # fmt: skip
    return workflow


def _stamp(path: Path) -> list[int]:
    """Return size and time of change of a file, which tell it from an earlier one."""
    try:
        stat = path.stat()
    except OSError:  # said by the step that reads it
        return []
    return [stat.st_size, stat.st_mtime_ns]
