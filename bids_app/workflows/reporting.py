# SPDX-License-Identifier: Apache-2.0
"""What the main process puts into reports: inputs, run, model, failures."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app import __version__
from bids_app.bids.files import MAX_TABLE_BYTES, read_text
from bids_app.bids.inputs import SessionRecord, Skipped
from bids_app.config import RunConfig, brief_command_line
from bids_app.interfaces.publish import STEPS
from bids_app.interfaces.report import make_page, report_content
from bids_app.resume import read_state, relative
from bids_app.workflows.jobs import Job, ModelsInUse, node_info
from bids_app.workflows.wording import run_methods

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bids_app.workflows.vbm import VbmSettings

LOGGER = logging.getLogger('anatnet.workflow')

CRASH_CHARACTERS = 20_000


_OPTION_WARNINGS = {
    'sloppy': 'Made with --sloppy: rough, to test an installation. Do not use the results.',
    'low_mem': 'Made with --low-mem: no averaging over the mirrored scan, so results are slightly '
    'less accurate.',
}


def context(
    job: Job,
    config: RunConfig,
    models: ModelsInUse,
    device_reason: str,
    vbm: VbmSettings | None = None,
) -> dict[str, Any]:
    """Return what is known of a session before it is computed, as fields of a SessionReport."""
    record = job.record
    given = _precomputed(record)
    scan = record.reference
    return {
        'label': job.label,
        'reference': record.reference_name,
        'inputs': _inputs(job, config),
        'skipped': [
            {'path': relative(skipped.path, config.bids_dir), 'reason': skipped.reason}
            for skipped in (*record.skipped, *_not_processed(job))
        ],
        'files': {'scan': str(scan.path)} if scan is not None and not record.dwi_alone else {},
        'participant': participant(config.bids_dir, record.subject),
        'run': {
            'version': __version__,
            'command_line': list(brief_command_line(config.command_line)),
            'run_uuid': config.run_uuid,
            'started': datetime.now().astimezone().isoformat(timespec='seconds'),
            'device_reason': device_reason,
            'modules': list(config.modules),
        },
        'warnings': [
            *_no_t1w(record),
            *(text for option, text in _OPTION_WARNINGS.items() if getattr(config, option)),
        ],
        'models': [
            {
                **model.info,
                'licence': model.licence,
                **({'role': role} if model in models.tissue else {}),
            }
            for role, model in models.by_role.items()
        ],
        'contrasts': [
            {'name': name, 'scan': str(path)} for name, path in job.contrasts.items()
        ],
        'precomputed': given,
        'dwi': {'alone': record.dwi_alone} if 'dwi' in job.modules else {},
        **(_template_space(vbm) if vbm is not None else {}),
        'methods': run_methods(
            config,
            models.certain,
            [f'{one["what"]} ("{one["name"]}")' for one in given],
            references=[record.reference_name],
            contrasts=list(job.contrasts),
        ),
    }  # fmt: skip


def _precomputed(record: SessionRecord) -> list[dict[str, Any]]:
    """Say what is taken from other pipelines; the three tissue maps are one thing."""
    wording = {'brain_mask': ('brain mask', 'mask'), 'probseg_gm': ('tissue maps', 'tissues')}
    return [
        {
            'what': wording[one.kind][0],
            'name': one.name,
            'path': str(one.path if one.kind == 'brain_mask' else one.path.parent),
            'figure': wording[one.kind][1],
        }
        for one in record.precomputed
        if one.kind in wording
    ]


def _template_space(vbm: VbmSettings) -> dict[str, Any]:
    """Say what the report shows in template space: the first voxel size of every space."""
    from bids_app.bids.spaces import atlas_parts

    return {
        'spaces': [
            {
                'space': space.space,
                'voxel_size': space.voxel_sizes[0],
                'fwhm': list(vbm.smooth_fwhm),
                'template': {
                    't1w': str(vbm.templates[space.space].t1w),
                    'tissues': str(vbm.templates[space.space].tissues),
                },
            }
            for space in vbm.spaces
        ],
        'regions': [
            {'atlas': name, 'space': space, 'source': str(atlas_parts(text)[0])}
            for space, name, text in vbm.atlases
        ],
        'predictions': [
            {'model': model.name, 'sha256': model.sha256} for model in vbm.classifiers
        ],
    }


def _inputs(job: Job, config: RunConfig) -> list[dict[str, str]]:
    """List the scans that are used, the reference first."""
    record = job.record
    if record.reference is None:
        return []
    used = [scan for scan in record.contrasts if scan.path in job.contrasts.values()]
    diffusion = [
        {'path': relative(scan.path, config.bids_dir), 'suffix': scan.suffix}
        for scan in record.dwi
        if 'dwi' in job.modules
    ]
    if record.dwi_alone:
        return diffusion
    inputs = [
        {'path': relative(scan.path, config.bids_dir), 'suffix': scan.suffix}
        for scan in (record.reference, *used)
    ]
    if record.stand_in is not None:
        inputs[0]['note'] = 'stands in for a T1w: everything is computed on it'
    for one in inputs[1:]:
        one['note'] = f'registered to the {record.reference.suffix}'
    return inputs + diffusion


def _no_t1w(record: SessionRecord) -> list[str]:
    """Warn of a reference that is no T1w."""
    if record.dwi_alone and record.no_tensor:
        return [
            'This session has no anatomical image, and its diffusion images allow no tensor '
            f'({record.no_tensor}): there are mean images and a brain mask only.'
        ]
    if record.dwi_alone:
        return [
            'This session has no anatomical image. Everything is computed on a T1w that a network '
            'synthesised from the diffusion images. It is no measurement: volumes must not be '
            'mixed with those of measured T1w images, nor used to measure atrophy in disease.'
        ]
    if record.stand_in is None:
        return []
    return [
        f'This session has no T1w image. The {record.reference_name} image stands in for it: '
        'volumes are less exact than those of a T1w, and must not be mixed with them.'
    ]


def _not_processed(job: Job) -> list[Skipped]:
    """List what was found for modules that do not run."""
    left = [scan for scan in job.record.contrasts if scan.path not in job.contrasts.values()]
    return [
        *(
            Skipped(scan.path, 'needed for the modules tissue and wholebrain only')
            for scan in left
        ),
        *(
            Skipped(scan.path, 'needed for the module dwi only (--dwi)')
            for scan in job.record.dwi
            if 'dwi' not in job.modules
        ),
    ]


def failure_report(
    job: Job,
    config: RunConfig,
    models: ModelsInUse,
    device_reason: str,
    vbm: VbmSettings | None = None,
) -> dict[str, Any]:
    """Write the report of a session that failed, with what was found out before; return it."""
    steps = {step: info for step in STEPS if (info := node_info(job.work_dir, step))}
    content = report_content(
        context(job, config, models, device_reason, vbm), {'steps': steps}, job.outputs
    )
    content['status'] = 'failed'
    if 'conform' not in steps:  # a scan that cannot be read cannot be shown either
        content['files'] = {}
    content['errors'] = [
        {
            'step': job.step,
            'message': job.reason,
            'traceback': _tail(crash_file),
            'file': relative(crash_file, config.output_dir),
        }
        for crash_file in job.crash_files
    ] or [{'step': job.step, 'message': job.reason}]
    problem = make_page(content, job.outputs)
    if problem is not None:
        LOGGER.warning('%s: the report was not written: %s', job.label, problem)
    return content


def portable(content: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Make the paths of a report's content relative to the derivatives folder."""
    from bids_app.reports.session import with_paths

    return with_paths(content, lambda path: relative(Path(path), config.output_dir))


def rebuild_reports(config: RunConfig, jobs: Sequence[Job]) -> None:
    """Write the reports of all sessions again from what earlier runs left."""
    saved = []
    for job in jobs:
        if job.status != 'waiting':
            continue
        state = read_state(job.outputs.state_file)
        content = state.run.get('report') if state is not None else None
        if not content:
            job.end('skipped', 'not processed yet, so there is nothing to report')
            continue
        saved.append((job, content))
    for (job, _), problem in zip(saved, _make_pages(saved, config.nprocs), strict=True):
        if problem is None:
            job.end('reported', '')
        else:
            job.end('failed', f'the report was not written: {problem}')


def _make_pages(
    saved: Sequence[tuple[Job, dict[str, Any]]], processes: int
) -> Iterable[str | None]:
    if processes < 2 or len(saved) < 2:
        for job, content in saved:
            yield make_page(content, job.outputs)
        return
    with ProcessPoolExecutor(min(processes, len(saved)), get_context('forkserver')) as pool:
        yield from pool.map(
            make_page, [content for _, content in saved], [job.outputs for job, _ in saved]
        )


def participant(bids_dir: Path, subject: str) -> dict[str, Any]:
    """Return what ``participants.tsv`` says about a subject; empty if nothing."""
    return _participants(Path(bids_dir) / 'participants.tsv').get(f'sub-{subject}', {})


@lru_cache(maxsize=4)
def _participants(path: Path) -> dict[str, dict[str, str]]:
    try:
        text = read_text(path, MAX_TABLE_BYTES, 'utf-8-sig')
        rows = list(csv.DictReader(io.StringIO(text, newline=''), delimiter='\t'))
    except (OSError, ValueError, csv.Error):
        return {}
    return {
        row['participant_id']: {
            key: value for key, value in row.items()
            if key and key != 'participant_id' and value not in (None, '', 'n/a')
        }
        for row in rows if row.get('participant_id')
    }  # fmt: skip


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors='replace')[-CRASH_CHARACTERS:]
    except OSError:
        return ''
