# SPDX-License-Identifier: Apache-2.0
"""Job scripts for Slurm: a participant or a batch of participants per task, then the group."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bids_app import __version__

LONGEST_ARRAY = 1000
"""Tasks that Slurm takes in one array as it is installed (``MaxArraySize`` 1001)."""

MEMORY_MB = 2000
"""Memory per core where neither the user nor Slurm says anything."""

RESTARTS = 3
"""How often a task that runs into its time limit is queued again."""


@dataclass(frozen=True)
class Job:
    """What a cluster is asked for.

    Attributes
    ----------
    bids_dir, output_dir : Path
        Absolute paths.
    folder : Path
        Gets the scripts and the logs of the tasks.
    command : tuple of str
        Starts AnatNet outside a container.
    options, group_options : tuple of str
        Options of AnatNet for the participants, and for the group.
    tasks : int
        Number of batches.
    array : bool
        One task per batch; else one job does everything.
    max_tasks : int, optional
        Tasks that run at a time.
    name : str
        Name of the job.
    cpus : int
        Cores per task.
    mem_mb : int, optional
        Memory per task, MB.
    gres : str, optional
        As Slurm writes it: ``gpu:1``.
    requests : tuple of str
        Further options of ``sbatch`` for both jobs, ``--name=value``.
    grace : int
        Seconds before the time limit at which AnatNet is asked to stop.
    setup : tuple of str
        Shell commands that come first, such as ``module load apptainer``.
    scratch : str, optional
        Folder for intermediate files on a node, a shell word with variables; without it
        ``SLURM_TMPDIR``, ``TMPDIR`` or ``/tmp``.
    work_dir : Path, optional
        Folder for intermediate files that all tasks share and that stays.
    container : Path, optional
        Image of Apptainer (Singularity).
    binds : tuple of str
        What the container sees, ``/from:/to[:ro]``.
    cwd : Path
        Folder that relative paths refer to.
    """

    bids_dir: Path
    output_dir: Path
    folder: Path
    command: tuple[str, ...]
    options: tuple[str, ...] = ()
    group_options: tuple[str, ...] = ()
    tasks: int = 1
    array: bool = True
    max_tasks: int | None = None
    name: str = 'anatnet'
    cpus: int = 4
    mem_mb: int | None = None
    gres: str | None = None
    requests: tuple[str, ...] = ()
    grace: int = 120
    setup: tuple[str, ...] = ()
    scratch: str | None = None
    work_dir: Path | None = None
    container: Path | None = None
    binds: tuple[str, ...] = ()
    cwd: Path = field(default_factory=Path.cwd)

    @property
    def script(self) -> Path:
        """Script of the participants."""
        return self.folder / 'participant.sbatch'

    @property
    def group_script(self) -> Path:
        """Script of the group."""
        return self.folder / 'group.sbatch'


def participant_script(job: Job) -> str:
    """Write the script of the participants."""
    asked = [f'--job-name={job.name}']
    log = 'participant-%j.log'
    if job.array:
        most = f'%{job.max_tasks}' if job.max_tasks else ''
        asked.append(f'--array=1-{job.tasks}{most}')
        log = 'participant-%A_%a.log'
    asked += [f'--gres={job.gres}'] if job.gres else []
    asked += _asked(job, log)
    asked += ['--requeue', f'--signal=B:USR1@{job.grace}']
    batch = (
        ['--batch', f'"${{SLURM_ARRAY_TASK_ID:?submit this file with sbatch}}/{job.tasks}"']
        if job.array
        else []
    )
    how = (
        f'{job.tasks} tasks, participants dealt out over them by their labels'
        if job.array
        else 'all participants in one job'
    )
    return _script(
        job,
        asked,
        [
            f'Participants of {job.bids_dir}',
            how,
            'To go on after a failure, submit this file again: finished sessions are left alone.',
            *(['Single tasks: sbatch --array=3,7 and this file.'] if job.array else []),
        ],
        ['participant', *batch, *map(shlex.quote, job.options)],
        stopping=True,
    )


def group_script(job: Job) -> str:
    """Write the script of the group; what it waits for is said when it is submitted."""
    return _script(
        job,
        [f'--job-name={job.name}-group', *_asked(job, 'group-%j.log')],
        [f'Group level of {job.output_dir}'],
        ['group', *map(shlex.quote, job.group_options)],
        stopping=False,
    )


def _asked(job: Job, log: str) -> list[str]:
    """Return the options of sbatch that both jobs have."""
    place = str(job.folder).replace('\\', '\\\\').replace('%', '%%')
    memory = [f'--mem={job.mem_mb}M'] if job.mem_mb else []
    return [
        f'--cpus-per-task={job.cpus}', *memory, *job.requests, f'--chdir={job.cwd}',
        f'--output={place}/{log}', '--open-mode=append',
    ]  # fmt: skip


def _script(
    job: Job, asked: Sequence[str], about: Sequence[str], words: Sequence[str], stopping: bool
) -> str:
    """Put a script together; ``words`` are the arguments of AnatNet, quoted for the shell."""
    lines = ['#!/bin/bash', f'# Written by AnatNet {__version__}.']
    lines += [f'# {line}' for line in about]
    lines += [f'#SBATCH {_quoted_option(option)}' for option in asked]
    default = math.ceil((job.mem_mb or MEMORY_MB * job.cpus) / job.cpus)
    lines += ['', *job.setup, 'set -u']
    lines += [
        'export LOGNAME="${LOGNAME:-$(id -un 2>/dev/null || id -u)}"',
        f'cpus=${{SLURM_CPUS_PER_TASK:-{job.cpus}}}',
        f'memory=${{SLURM_MEM_PER_NODE:-$((${{SLURM_MEM_PER_CPU:-{default}}} * cpus))}}  # MB',
    ]
    lines += _work_lines(job)
    resources = ['--nprocs', '"$cpus"', '--mem', '"${memory}M"', '--work-dir', '"$work"']
    lines += ['', *_starter(job)]
    call = ['"${anatnet[@]}"', shlex.quote(str(job.bids_dir)), shlex.quote(str(job.output_dir))]
    call += [*words[:1], *resources, *words[1:]]
    if not stopping:
        return '\n'.join([*lines, _broken(call), ''])
    lines += [
        f'{_broken(call)} &',
        'child=$!',
        '',
        f'# USR1: the time limit is {job.grace} s away; the task goes on later, where it stopped.',
        '# TERM: somebody with more right to the node (preemption), or scancel.',
        'signals=0 again=no code=1',
        'stop() { signals=$((signals + 1)); kill -TERM "$child" 2>/dev/null; }',
        "trap 'again=yes; stop' USR1",
        'trap stop TERM INT',
        'while :; do  # a signal ends "wait", not AnatNet',
        '    seen=$signals',
        '    wait "$child"; now=$?',
        '    [ "$now" -eq 127 ] || code=$now',
        '    [ "$signals" -eq "$seen" ] && break',
        'done',
        f'if [ "$again" = yes ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RESTARTS} ]; then',
        '    clean',
        '    scontrol requeue "$SLURM_JOB_ID"',
        'fi',
        'exit "$code"',
        '',
    ]
    return '\n'.join(lines)


def _work_lines(job: Job) -> list[str]:
    """Choose the folder of intermediate files."""
    if job.work_dir is not None:
        return [
            f'work={shlex.quote(str(job.work_dir))}',
            'clean() { :; }',
            'mkdir -p "$work" || exit 1',
        ]
    scratch = job.scratch or '${SLURM_TMPDIR:-${TMPDIR:-/tmp}}'
    return [
        '# Intermediate files lie on the node and go with the task. A task that is queued again',
        '# keeps its number and finds what it has left there if it was killed.',
        f'mine="{scratch}/anatnet-$(id -u)-${{SLURM_CLUSTER_NAME:-local}}-"',
        'work="$mine${SLURM_JOB_ID:-$$}"',
        'clean() { rm -rf -- "$work"; }',
        'trap clean EXIT',
        'if jobs=$(squeue --noheader --user="$(id -u)" --format=%A 2>/dev/null); then',
        '    for old in "$mine"*; do  # of tasks that were killed and will not come back',
        '        grep -qx -- "${old#"$mine"}" <<< "$jobs" || rm -rf -- "$old"',
        '    done',
        'fi',
        'mkdir -p -m 700 "$work" || exit 1',
    ]


def _starter(job: Job) -> list[str]:
    """Define the array ``anatnet``: what starts AnatNet."""
    if job.container is None:
        return [f'anatnet=({shlex.join(job.command)})']
    binds = [f'    --bind {shlex.quote(bind)}' for bind in job.binds]
    gpu = ' --nv' if _has_gpu(job.gres) else ''
    visible = [
        '# --cleanenv would hide which GPUs the task was given.',
        'if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then',
        '    export APPTAINERENV_CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"',
        '    export SINGULARITYENV_CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"',
        'fi',
    ]
    return [
        *(visible if gpu else []),
        '# /tmp of the container lies in memory and is small.',
        'export APPTAINERENV_TMPDIR="$work" SINGULARITYENV_TMPDIR="$work"',
        'runtime=$(command -v apptainer || command -v singularity) || {',
        '    echo "no apptainer or singularity on the PATH of $HOSTNAME" >&2; exit 127; }',
        f'anatnet=("$runtime" run --containall --cleanenv{gpu}',
        *binds,
        f'    --bind "$work" --pwd {shlex.quote(str(job.cwd))}',
        f'    {shlex.quote(str(job.container))})',
    ]


def _broken(words: Sequence[str]) -> str:
    """Put every option of a command on a line of its own."""
    return ' '.join(f'\\\n    {word}' if word.startswith('--') else word for word in words)


def _has_gpu(gres: str | None) -> bool:
    return gres is not None and re.match(r'(gres[:/])?gpu\b', gres) is not None


def gpu_count(gres: str | None) -> int:
    """Count the GPUs of a request.

    Examples
    --------
    >>> [gpu_count(text) for text in ('gpu:2', 'gpu:a100:1', 'gpu', 'license:3', None)]
    [2, 1, 1, 0, 0]
    """
    if not _has_gpu(gres):
        return 0
    found = re.search(r':(\d+)$', gres.partition('(')[0])
    return int(found[1]) if found else 1


def _quoted_option(option: str) -> str:
    """Quote an option for a line of ``#SBATCH``, which knows quotes like a shell."""
    name, equals, value = option.partition('=')
    return f'{name}{equals}{shlex.quote(value)}' if value else option
