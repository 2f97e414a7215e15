# SPDX-License-Identifier: Apache-2.0
"""Builder of the workflow that turns one T1w scan into derivatives and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_app.interfaces.anat import (
    ConformScan,
    CorrectBias,
    LocateBrain,
    RestoreMask,
    SegmentBrain,
)
from bids_app.interfaces.measure import MeasureBrain
from bids_app.interfaces.precomputed import OWN, UsePrecomputed
from bids_app.interfaces.publish import PublishSession
from bids_app.interfaces.report import WriteReport
from bids_app.workflows.vbm import INPUTS, VbmSettings, init_vbm_wf

if TYPE_CHECKING:
    from bids_app.bids.precomputed import Precomputed

EXPECTED_SECONDS = {
    'conform': 2.0, 'mask': 5.0, 'bias': 5.0, 'segment': 20.0, 'restore': 1.0, 'precomputed': 3.0,
    'normalise': 15.0, 'measure': 3.0, 'warp': 3.0, 'modulate': 3.0, 'predict': 2.0,
    'regions': 2.0, 'publish': 6.0, 'report': 10.0,
}  # fmt: skip
"""Rough times on 2 CPU cores, until the first scan has been measured."""

NETWORK_MEM_GB = 4.0
BYTES_PER_VOXEL = 60
"""Memory of the steps that hold native volumes: some 15 of them as float32."""


def anat_steps(
    modules: Sequence[str],
    precomputed: Sequence[Precomputed] = (),
    vbm: VbmSettings | None = None,
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
    """
    if not {'tissue', 'wholebrain'} & set(modules):
        given = any(one.kind == 'brain_mask' for one in precomputed)
        replacing = ('precomputed',) if given else ()
        return ('conform', 'mask', 'restore', *replacing, 'publish', 'report')
    replacing = ('precomputed',) if precomputed else ()
    register = ('normalise',) if vbm else ()
    after = vbm.steps if vbm else ()
    return (
        'conform', 'mask', 'bias', 'segment', *replacing, *register, 'measure', *after, 'publish',
        'report',
    )  # fmt: skip


def init_anat_wf(
    *,
    subject: str,
    session: str | None,
    t1w: Path,
    bids_dir: Path,
    output_dir: Path,
    model: Path,
    models: Mapping[str, Mapping[str, str]],
    modules: Sequence[str] = ('mask', 'tissue', 'wholebrain'),
    vbm: VbmSettings | None = None,
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
        Where other pipelines have made a mask or tissues, ``precomputed`` follows ``segment`` (or
        ``restore``). In template space, normalise -> warp, modulate, predict, regions lie
        between ``segment`` and ``publish``.

    Parameters
    ----------
    subject, session : str
        Labels without ``sub-`` and ``ses-``; ``session`` may be None.
    t1w : Path
        The scan.
    bids_dir, output_dir : Path
        Roots of the raw data set and of the derivatives.
    model : Path
        Folder of the segmentation model.
    models : mapping
        ``name``, ``version`` and ``sha256`` of the models by their role, ``segmentation``,
        ``registration`` and those of classifiers; a changed checksum makes cached results invalid.
    modules : sequence of str
        ``mask``, ``tissue``, ``wholebrain``: which native outputs are written.
    vbm : VbmSettings, optional
        What is wanted in template space.
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
    t1w
        The scan.

    Outputs
    -------
    info
        JSON file with the content of the report.

    Returns
    -------
    nipype.pipeline.engine.Workflow
    """
    steps = anat_steps(modules, precomputed, vbm)
    full = 'segment' in steps
    native_gb = BYTES_PER_VOXEL * voxels / 1e9
    on_gpu = device.startswith('cuda')
    network = {
        'model': str(model),
        'model_sha256': models['segmentation']['sha256'],
        'precision': precision,
        'device': device,
        'threads': omp_nthreads,
        'low_mem': low_mem,
        'use_gpu': on_gpu,
    }
    network_resources = {
        'n_procs': 1 if on_gpu else omp_nthreads,
        'mem_gb': NETWORK_MEM_GB + native_gb,
    }
    place = {'output_dir': str(output_dir), 'subject': subject, 'session': session or ''}

    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['t1w']), name='inputnode')
    inputnode.inputs.t1w = str(t1w)
    outputnode = pe.Node(niu.IdentityInterface(fields=['info']), name='outputnode')

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
        (inputnode, conform, [('t1w', 'in_file')]),
        (conform, mask, [('out_file', 'in_file')]),
        (inputnode, publish, [('t1w', 'in_file')]),
        (conform, publish, [('info', 'conform_info')]),
        (mask, publish, [('info', 'mask_info')]),
        (publish, report, [('info', 'info')]),
        (report, outputnode, [('info', 'info')]),
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
            (inputnode, restore, [('t1w', 'native_file')]),
            (mask, restore, [('mask_file', 'mask_file')]),
            (restore, publish, [('info', 'restore_info')]),
        ])  # fmt: skip
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
    measure = pe.Node(MeasureBrain(), name='measure', mem_gb=1.0 + native_gb)
    images = [('brain_mask', 'brain_mask')]
    tables = [('qc_stats', 'qc_stats')]
    if 'tissue' in modules:
        images += [(key, key) for key in ('dseg', 'probseg_gm', 'probseg_wm', 'probseg_csf')]
        tables.append(('tissue_morph', 'tissue_morph'))
    if 'wholebrain' in modules:
        images.append(('wholebrain_dseg', 'wholebrain_dseg'))
        tables.append(('wholebrain_morph', 'wholebrain_morph'))
    workflow.connect([
        (conform, bias, [('out_file', 'in_file')]),
        (mask, bias, [('mask_file', 'mask_file')]),
        (inputnode, bias, [('t1w', 'native_file')]),
        (bias, segment, [('out_file', 'in_file')]),
        (mask, segment, [('coarse_file', 'coarse_file')]),
        # Its header has passed our rule for contradictory matrices; the scan's own has not.
        (bias, segment, [('native_file', 'native_file')]),
        (inputnode, measure, [('t1w', 'raw_file')]),
        (bias, measure, [('native_file', 't1w_preproc')]),
        (mask, measure, [('info', 'mask_info')]),
        (bias, publish, [('native_file', 't1w_preproc'), ('info', 'bias_info')]),
        (segment, publish, [('info', 'segment_info')]),
        (measure, publish, [*tables, ('info', 'measure_info')]),
    ])  # fmt: skip
    maps = segment
    if replacing is not None:
        own = [(key, key) for key in OWN]
        workflow.connect([(segment, replacing, [*own, ('info', 'info')])])
        maps = replacing
    workflow.connect([
        (maps, measure, [*((key, key) for key in OWN), ('info', 'segment_info')]),
        (maps, publish, [*images, ('uncertainty', 'uncertainty')]),
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
        inputs = [(key, f'inputnode.{key}') for key in INPUTS if key != 't1w_preproc']
        workflow.connect([
            (bias, in_template, [('native_file', 'inputnode.t1w_preproc')]),
            (maps, in_template, inputs),
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
