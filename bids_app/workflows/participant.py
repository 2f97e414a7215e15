# SPDX-License-Identifier: Apache-2.0
"""The participant level: which sessions to compute, computing them, and how it went."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app import __version__
from bids_app.bids.files import atomic_write_text, remove_leftovers
from bids_app.bids.inputs import SessionRecord
from bids_app.config import RunConfig, brief_command_line
from bids_app.errors import ImageError
from bids_app.images.scans import check_file
from bids_app.interruption import Interrupted, Interruption
from bids_app.progress import Progress, scan_of
from bids_app.resume import (
    ANY_SIZE,
    SessionState,
    decide,
    input_records,
    read_state,
    relevant_options,
    session_lock,
)
from bids_app.workflows import reporting
from bids_app.workflows.execution import (
    Executor,
    configure_nipype,
    limit_workers,
)
from bids_app.workflows.jobs import (
    Job,
    ModelsInUse,
    deepnat_problem,
    make_jobs,
    node_info,
    tissue_problem,
    with_synthesis,
)
from bids_app.workflows.throughput import Meter, summary_json

if TYPE_CHECKING:
    from bids_app.workflows.dwi import DwiSettings
    from bids_app.workflows.throughput import Throughput
    from bids_app.workflows.vbm import VbmSettings

LOGGER = logging.getLogger('anatnet.workflow')

BATCH_SESSIONS = 64
"""Sessions in one Nipype graph: enough to keep all processors busy, few enough to plan fast."""


STOPPED = 'stopped at the first failure'


def run_participant(config: RunConfig, records: Sequence[SessionRecord]) -> int:
    """Process all sessions that need it.

    Parameters
    ----------
    config : RunConfig
        What to do and with which resources.
    records : sequence of SessionRecord
        The sessions that were found.

    Returns
    -------
    int
        Exit code: 0 if everything asked for is there, 1 if a session failed, 130 and 143 after
        an interruption.

    Raises
    ------
    AnatNetError
        If nothing can be processed because there is no model or no device.
    """
    jobs = make_jobs(config, records)
    if config.reports_only:
        reporting.rebuild_reports(config, jobs)
        return _summarise(config, jobs)
    if config.clean_workdir:
        _clean_work_dir(config.work_dir)

    models = with_synthesis(ModelsInUse.find(config), config, jobs)
    for job in jobs:
        if job.status == 'waiting':
            _plan(job, config, models)
    todo = [job for job in jobs if job.status == 'waiting']
    interruption = Interruption()
    meter = Meter()
    if todo:
        try:
            with interruption:
                _compute(config, todo, models, interruption, meter)
        except Interrupted:
            _interrupted(todo)
    code = _summarise(config, jobs, meter.read(config.nprocs, todo))
    return code if interruption.number is None else 128 + interruption.number


def _interrupted(jobs: Sequence[Job]) -> None:
    """Note what an interruption has cut off; its traces in the log are no crashes."""
    LOGGER.error('Interrupted: the same command goes on where this run stopped')
    for job in jobs:
        if job.status == 'waiting':
            job.end('stopped', 'interrupted')
            for crash_file in job.own_crash_files():
                crash_file.unlink(missing_ok=True)


def _clean_work_dir(work_dir: Path) -> None:
    """Remove what earlier runs left, except where another run is at work."""
    for folder in sorted(work_dir.glob('anatnet_*/*_wf')):
        with session_lock(folder.with_name(f'.{folder.name}.lock')) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def _plan(job: Job, config: RunConfig, models: ModelsInUse) -> None:
    """Decide whether a session must be computed."""
    decision = decide(
        read_state(job.outputs.state_file),
        config=job.config(config),
        inputs=job.input_files,
        models=job.models(models).checksums,
        version=__version__,
    )
    if decision.action != 'run':
        job.end(decision.action, decision.reason)
        return
    if problem := tissue_problem(job, models) or deepnat_problem(job, models):
        job.end('failed', problem)
        return
    job.reason = decision.reason


def _compute(
    config: RunConfig,
    jobs: Sequence[Job],
    models: ModelsInUse,
    interruption: Interruption,
    meter: Meter,
) -> None:
    """Compute sessions in batches."""
    from bids_app.inference.device import resolve_device
    from bids_app.workflows.anat import EXPECTED_SECONDS, anat_steps
    from bids_app.workflows.deepnat import deepnat_settings
    from bids_app.workflows.vbm import vbm_settings

    for folder in (config.output_dir, config.output_dir / 'logs'):
        remove_leftovers(folder, recursive=False)
    environment = limit_workers(config)
    choice = resolve_device(config.device)
    LOGGER.info('Device: %s', choice.reason)
    configure_nipype(config, _log_file_handler())

    vbm = vbm_settings(config, models.registration, choice.device, models.classifiers)
    deepnat = deepnat_settings(config, models)
    for licence in dict.fromkeys(model.licence for model in models.deepnat):
        LOGGER.warning('Weights of DeepNAT: %s', licence)
    steps_of = {
        job.name: anat_steps(
            job.modules, job.record.precomputed, vbm, job.contrasts, config.tissue_model,
            _dwi_of(job, config, models), deepnat,
        )
        for job in jobs
    }  # fmt: skip
    by_name = {job.name: job for job in jobs}
    order = {job.name: index for index, job in enumerate(jobs)}

    def rank(node: Any) -> tuple[int, int]:
        steps = steps_of.get(scan_of(node), ())
        step = steps.index(node.name) if node.name in steps else -1
        return order.get(scan_of(node), -1), -step

    def status(node: Any, what: str) -> None:
        interruption.check()
        progress(node, what)

    def on_crash(node: Any, crash_file: Path) -> None:
        job = by_name.get(scan_of(node))
        if job is not None:
            job.crashed(node.name, crash_file)

    progress = Progress(
        {job.name: (job.label, steps_of[job.name]) for job in jobs},
        EXPECTED_SECONDS,
        parallel=max(1, config.nprocs // max(1, config.omp_nthreads)),
        on_scan_end=lambda name: _finish(by_name[name], config, models),
    )
    LOGGER.info(
        'Processing %d session%s, %d processors', len(jobs), 's'[: len(jobs) > 1], config.nprocs
    )
    with (
        progress,
        Executor(
            config,
            status=status,
            on_crash=on_crash,
            rank=rank,
            environment=environment,
            devices=choice.devices,
        ) as executor,
    ):
        meter.start(choice.devices, executor.usage)
        # Nipype's serial plugin would do the first step of all scans before the second of any.
        size = 1 if executor.name == 'Linear' else BATCH_SESSIONS
        for first in range(0, len(jobs), size):
            batch = jobs[first : first + size]
            with _locked(batch, config, models) as locked:
                if locked:
                    _run_batch(config, locked, models, choice, executor, vbm)
                for job in locked:
                    if job.status == 'failed':
                        _fail(job, config, models, choice.reason, vbm)
            if config.stop_on_first_crash and any(job.status == 'failed' for job in batch):
                break
    for job in jobs:
        if job.status == 'waiting':
            job.end('stopped', STOPPED)


@contextlib.contextmanager
def _locked(jobs: Sequence[Job], config: RunConfig, models: ModelsInUse) -> Iterator[list[Job]]:
    """Hold the work folders of a batch; leave out what another process has or has done."""
    with contextlib.ExitStack() as stack:
        held = []
        for job in jobs:
            if not stack.enter_context(session_lock(job.lock_file)):
                job.end('skipped', 'another process is working on it')
                continue
            if not config.overwrite:
                _plan(job, config, models)
            if job.status == 'waiting':
                held.append(job)
        yield held


def _run_batch(
    config: RunConfig,
    jobs: Sequence[Job],
    models: ModelsInUse,
    choice: Any,
    executor: Executor,
    vbm: VbmSettings | None,
) -> None:
    """Build and run the graph of some sessions."""
    from nipype.pipeline import engine as pe

    from bids_app.workflows.anat import init_anat_wf
    from bids_app.workflows.deepnat import deepnat_settings

    outer = pe.Workflow(name=jobs[0].work_dir.parent.name, base_dir=str(config.work_dir))
    for job in jobs:
        LOGGER.info('%s: %s (%s)', job.label, job.record.reference.path.name, job.reason)
        try:
            _begin(job, config)
        except (OSError, ImageError) as error:
            own = isinstance(error, ImageError)
            job.end('failed', str(error) if own else f'cannot write {error.filename}: '
                    f'{error.strerror}')  # fmt: skip
            LOGGER.error('%s: failed: %s', job.label, job.reason)
            continue
        own_vbm = vbm if 'vbm' in job.modules else None
        workflow = init_anat_wf(
            subject=job.record.subject,
            session=job.record.session,
            scan=job.record.reference.path,
            bids_dir=config.bids_dir,
            output_dir=config.output_dir,
            model=models.segmentation.folder,
            models=job.models(models).infos,
            modules=job.modules,
            reference=job.outputs.reference,
            contrasts=job.contrasts,
            tissue_model=config.tissue_model,
            models_dir=config.models_dir,
            correct_lesions=config.correct_lesions,
            vbm=own_vbm,
            dwi=_dwi_of(job, config, models),
            deepnat=deepnat_settings(config, job.models(models)),
            precomputed=job.record.precomputed,
            precomputed_uris=job.precomputed_uris(config.derivatives),
            device=choice.device,
            precision=config.precision,
            omp_nthreads=config.omp_nthreads,
            low_mem=config.low_mem,
            sloppy=config.sloppy,
            voxels=job.voxels(),
            report_context=reporting.context(
                job, job.config(config), job.models(models), choice.reason, own_vbm
            ),
            name=job.name,
        )
        crash_settings = {'execution': {'crashdump_dir': str(job.log_dir)}}
        for node in workflow._get_all_nodes():
            node.config = crash_settings
        outer.add_nodes([workflow])
    begun = any(job.status == 'waiting' for job in jobs)
    problem = executor.run(outer) if begun else None
    for job in jobs:
        if job.status == 'waiting':
            job.find_crash_files()
    crashed = any(job.status == 'failed' for job in jobs)
    for job in jobs:
        if job.status != 'waiting':
            continue
        if config.stop_on_first_crash and crashed:
            job.end('stopped', STOPPED)
        else:
            job.end('failed', f'not finished by the plugin {executor.name} ({problem})')
            LOGGER.error('%s: failed: %s', job.label, job.reason)


def _dwi_of(job: Job, config: RunConfig, models: ModelsInUse) -> DwiSettings | None:
    """Return what is made of the diffusion images of a session; None for nothing."""
    from bids_app.workflows.dwi import dwi_settings

    model = job.models(models).synthesis
    return dwi_settings(
        job.record,
        job.config(config),
        model.folder if model is not None else None,
        model.sha256 if model is not None else '',
    )


def _begin(job: Job, config: RunConfig) -> None:
    """Make a session one that is not finished, and keep the configuration beside its results.

    Raises
    ------
    OSError
        If the output cannot be written.
    ImageError
        If an image of the session is not there, or is a pipe or a device.
    """
    job.outputs.state_file.unlink(missing_ok=True)
    remove_leftovers(job.outputs.subject_dir)  # figures and state are there, too
    # Not the labels of all others: with thousands of them, copies would fill the disk.
    own = config.replace(
        participant_label=(job.record.subject,), batch=None,
        command_line=brief_command_line(config.command_line),
    )  # fmt: skip
    atomic_write_text(job.log_dir / 'anatnet.toml', own.to_toml())
    for path in job.input_files:
        if not path.is_file():  # Nipype stops the whole batch for a file that is not there
            check_file(path)


def _finish(job: Job, config: RunConfig, models: ModelsInUse) -> None:
    """Write the state of a session that is through, and remove its work folder."""
    # A worker of a killed run may have gone on for a moment after this run had cleaned up.
    remove_leftovers(job.outputs.subject_dir)
    published = node_info(job.work_dir, 'publish')
    reported = node_info(job.work_dir, 'report')
    content = reporting.portable(reported.get('content', {}), config)
    outputs = dict(published.get('outputs', {}))
    page = job.outputs.path('report')
    if reported.get('problem'):
        job.report_problem = reported['problem']
        LOGGER.error('%s: the report was not written: %s', job.label, job.report_problem)
    # The page may be made again by --reports-only: that it is there is enough.
    outputs[page.relative_to(config.output_dir).as_posix()] = ANY_SIZE
    if not published.get('outputs'):
        job.end('failed', 'the results of its last step were lost; run the same command again')
        return
    _write_state(job, config, models, status='done', outputs=outputs, content=content)
    job.end('finished', '')
    _warn(job, content)
    for step, found in published.get('steps', {}).items():
        for rung in fallbacks(found):
            LOGGER.warning('%s: memory ran out in step %s: done on %s', job.label, step, rung)
    if 'workdir' not in config.debug and not job.report_problem:
        shutil.rmtree(job.work_dir, ignore_errors=True)


def _warn(job: Job, content: Mapping[str, Any]) -> None:
    """Tell what is unusual about a scan and what the quality check says."""
    for note in content.get('conform', {}).get('notes', []):
        LOGGER.warning('%s: %s', job.label, note)
    for one in content.get('contrasts', []):
        if one['status'] != 'ok':
            reasons = '; '.join(one['reasons'])
            LOGGER.warning(
                '%s: %s is not used, registration %s: %s',
                job.label, one['name'], one['status'], reasons,
            )  # fmt: skip
    if reasons := content.get('dwi', {}).get('reasons'):
        LOGGER.warning('%s: diffusion images: %s', job.label, '; '.join(reasons))
    for note in content.get('dwi', {}).get('notes', ()):
        LOGGER.warning('%s: diffusion images: %s', job.label, note)
    if used := content.get('tissue_model'):
        LOGGER.info(
            '%s: tissue model %s, %s', job.label, used['name'], ', '.join(used['contrasts'])
        )
    verdict = content.get('qc', {})
    if verdict.get('status') in ('warn', 'fail'):
        level = logging.WARNING if verdict['status'] == 'fail' else logging.INFO
        reasons = '; '.join(verdict.get('reasons', [])[:3])
        LOGGER.log(level, '%s: quality check: %s: %s', job.label, verdict['status'], reasons)


def fallbacks(found: Mapping[str, Any]) -> Iterator[str]:
    """List what steps fell back to where memory ran out, from what they found."""
    for key, value in found.items():
        if key == 'fallback' and value:
            yield value
        elif isinstance(value, Mapping):
            yield from fallbacks(value)


def _fail(
    job: Job,
    config: RunConfig,
    models: ModelsInUse,
    device_reason: str,
    vbm: VbmSettings | None,
) -> None:
    """Write the state and a report of a session that failed."""
    content = reporting.failure_report(
        job, job.config(config), job.models(models), device_reason,
        vbm if 'vbm' in job.modules else None,
    )  # fmt: skip
    _write_state(
        job, config, models, status='failed', content=reporting.portable(content, config),
        error=job.reason,
    )  # fmt: skip


def _write_state(
    job: Job,
    config: RunConfig,
    models: ModelsInUse,
    *,
    status: str,
    content: dict[str, Any],
    outputs: dict[str, int] | None = None,
    error: str | None = None,
) -> None:
    state = SessionState(
        status=status,
        version=__version__,
        inputs=input_records(job.input_files, config.bids_dir),
        options=relevant_options(job.config(config)),
        modules=list(job.modules),
        models=job.models(models).checksums,
        outputs=outputs or {},
        error=error,
        run={
            'uuid': config.run_uuid,
            'reference': job.outputs.reference,
            'report': content,
        },
    )
    try:
        atomic_write_text(job.outputs.state_file, state.to_json())
    except OSError as problem:
        LOGGER.warning('Cannot write %s: %s', job.outputs.state_file, problem.strerror)


def _log_file_handler() -> logging.Handler | None:
    """Find the handler of the run's log file, for what Nipype has to say."""
    for name in ('', 'anatnet'):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.FileHandler):
                return handler
    return None


def _summarise(
    config: RunConfig, jobs: Sequence[Job], throughput: Throughput | None = None
) -> int:
    """Say how every session went, also in ``summary.json``; return the exit code."""
    counts = Counter(job.status for job in jobs)
    words = {
        'finished': 'processed', 'done': 'already done', 'skipped': 'skipped',
        'failed-before': 'failed before and left alone', 'failed': 'failed',
        'stopped': 'not finished', 'reported': 'reports rebuilt',
    }  # fmt: skip
    for job in jobs:
        if job.status == 'skipped':
            LOGGER.warning('%s: skipped: %s', job.label, job.reason)
        elif job.status == 'failed-before':
            LOGGER.warning('%s: left alone, it failed before: %s', job.label, job.reason)
    for job in jobs:
        if job.status == 'failed':
            place = f' [{job.crash_files[0]}]' if job.crash_files else ''
            LOGGER.error('%s: failed: %s%s', job.label, job.reason, place)
    if any(job.reason == STOPPED for job in jobs):
        LOGGER.error('Stopped at the first failure, as --stop-on-first-crash asks')
    LOGGER.info(
        'Sessions: %s',
        ', '.join(f'{counts[status]} {word}' for status, word in words.items() if counts[status]),
    )
    if throughput is not None:
        LOGGER.info('Throughput: %s', throughput.line())
    outcome = {
        job.label: {'status': job.status, **({'reason': job.reason} if job.reason else {})}
        for job in jobs
    }
    text = summary_json(__version__, config.run_uuid, outcome, throughput)
    try:
        atomic_write_text(config.log_dir / 'summary.json', text)
    except OSError as problem:
        LOGGER.warning('Cannot write %s: %s', problem.filename, problem.strerror)
    LOGGER.info('Results and reports: %s', config.output_dir)
    wrong = counts['failed'] + counts['stopped'] + sum(bool(j.report_problem) for j in jobs)
    return 1 if wrong else 0
