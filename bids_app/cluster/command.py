# SPDX-License-Identifier: Apache-2.0
"""The command ``anatnet slurm``: write job scripts and hand them to the cluster."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.cluster.script import (
    LONGEST_ARRAY,
    Job,
    gpu_count,
    group_script,
    participant_script,
)
from bids_app.errors import AnatNetError, UsageError

if TYPE_CHECKING:
    from bids_app.config import RunConfig

REQUESTS = ('--partition', '--account', '--qos', '--constraint', '--time')
"""Options of ``sbatch`` that both jobs get as they are."""

_EPILOG = """\
Every other option goes to AnatNet itself and is checked before anything is submitted. --nprocs is
what a task gets (default 4), and so is --mem. Scripts and logs are in OUTPUT_DIR/logs/slurm.

example:
  anatnet slurm /data/study /data/study/derivatives/anatnet --array --partition gpu \\
      --gres gpu:1 --time 1:00:00 --nprocs 4 --mem 8G --smooth-fwhm 8
"""


def main(argv: Sequence[str]) -> int:
    """Run ``anatnet slurm``.

    Parameters
    ----------
    argv : sequence of str
        What follows ``slurm``.

    Returns
    -------
    int
        0.

    Raises
    ------
    AnatNetError
        If something asked for cannot be, or Slurm refuses the job.
    """
    from bids_app.bids.dataset import check_output_dir
    from bids_app.bids.files import atomic_write_text

    settings, positionals, rest = _read(argv)
    job = make_job(settings, positionals, rest)
    texts = {job.script: participant_script(job)}
    if settings.group:
        texts[job.group_script] = group_script(job)
    if settings.dry_run:
        for path, text in texts.items():
            print(f'# {path}\n{text}')
        return 0
    check_output_dir(job.output_dir)
    for path, text in texts.items():
        atomic_write_text(path, text)
        print(path)
    if not settings.submit:
        print(f'sbatch {shlex.quote(str(job.script))}')
        if settings.group:
            print(f'sbatch --dependency=afterany:JOB {shlex.quote(str(job.group_script))}')
        return 0
    number = _submit(job.script)
    tasks = f', {job.tasks} tasks' if job.array else ''
    print(f'Submitted job {number} ({job.name}{tasks})')
    if settings.group:
        last = _submit(job.group_script, f'--dependency=afterany:{number}')
        print(f'Submitted job {last} ({job.name}-group), which waits for {number}')
    return 0


def make_job(settings: argparse.Namespace, positionals: Sequence[str], rest: list[str]) -> Job:
    """Turn options into a job, after AnatNet has checked its own.

    Parameters
    ----------
    settings : argparse.Namespace
        Options of ``anatnet slurm``.
    positionals : sequence of str
        Data set and output folder.
    rest : list of str
        Options of AnatNet.

    Raises
    ------
    UsageError
        If AnatNet would refuse them.
    """
    from bids_app.bids.inputs import find_participants
    from bids_app.cli import parse
    from bids_app.options import normalise

    rest = normalise(rest)
    gpus = gpu_count(settings.gres)
    if gpus and not any(token.split('=')[0] == '--device' for token in rest):
        rest += ['--device', ','.join(f'cuda:{i}' for i in range(gpus)) if gpus > 1 else 'cuda']
    group_options = shlex.split(settings.group_options)
    config = parse([*positionals, 'participant', *rest])
    group = parse([*positionals, 'group', *group_options])
    if config.batch is not None:
        raise UsageError('anatnet slurm splits the participants itself: leave out --batch')
    values, rest = _take(rest, {
        '--nprocs': 1, '--nthreads': 1, '--n-cpus': 1, '--mem': 1, '--mem-mb': 1, '--mem-gb': 1,
        '-w': 1, '--work-dir': 1,
    })  # fmt: skip
    people = find_participants(config.bids_dir, config.participant_label)
    per_task = settings.per_task or math.ceil(len(people) / LONGEST_ARRAY)
    tasks = math.ceil(len(people) / per_task)
    if settings.array and tasks > LONGEST_ARRAY:
        print(
            f'anatnet: {tasks} tasks are more than Slurm takes in one array as it is installed '
            f'({LONGEST_ARRAY}); --per-task {math.ceil(len(people) / LONGEST_ARRAY)} would do',
            file=sys.stderr,
        )
    asked_cpus = bool({'--nprocs', '--nthreads', '--n-cpus'} & set(values))
    container = None if settings.container is None else _existing(settings.container)
    return Job(
        bids_dir=config.bids_dir,
        output_dir=config.output_dir,
        folder=config.output_dir / 'logs' / 'slurm' / config.run_uuid,
        command=_command(),
        options=tuple(rest),
        group_options=tuple(group_options),
        tasks=tasks,
        array=settings.array,
        max_tasks=settings.max_tasks,
        name=settings.job_name,
        cpus=config.nprocs if asked_cpus else 4,
        mem_mb=None if config.mem_gb is None else math.ceil(config.mem_gb * 1000),
        gres=settings.gres,
        requests=tuple(settings.requests),
        grace=settings.grace,
        setup=tuple(settings.setup),
        scratch=settings.scratch,
        work_dir=config.work_dir if {'-w', '--work-dir'} & set(values) else None,
        container=container,
        binds=_binds(config, group, rest, settings.bind) if container else (),
    )


def _read(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Tell our options, the two folders and the options of AnatNet from each other."""
    parser = _parser()
    argv = list(argv)
    if not argv or '-h' in argv or '--help' in argv:
        parser.print_help()
        raise SystemExit(0 if argv else 2)
    arities = {
        name: 0 if action.nargs == 0 else 1
        for action in parser._actions
        for name in action.option_strings
    }
    given, rest = _take_tokens(argv, arities)
    settings = parser.parse_args(given)
    settings.requests = [
        f'{name}={getattr(settings, name[2:])}' for name in REQUESTS if getattr(settings, name[2:])
    ] + settings.sbatch
    if len(rest) < 2 or rest[0].startswith('-') or rest[1].startswith('-'):
        raise UsageError('use: anatnet slurm BIDS_DIR OUTPUT_DIR [options] (see its --help)')
    positionals, rest = rest[:2], rest[2:]
    if rest[:1] == ['group']:
        raise UsageError(
            'anatnet slurm submits the participants and then the group; what the group shall do '
            'is said with --group-options, for instance --group-options \'--model "~ age"\''
        )
    return settings, positionals, rest[1:] if rest[:1] == ['participant'] else rest


def _parser() -> argparse.ArgumentParser:
    from bids_app.options import Parser

    parser = Parser(
        prog='anatnet slurm',
        usage='anatnet slurm bids_dir output_dir [options of this list or of AnatNet]',
        description='Process a study on a cluster with Slurm: write the job scripts, submit them, '
        'and let the group level follow.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        '--array',
        action='store_true',
        help='a task of its own for every participant (recommended; default: one job for all)',
    )
    add('--per-task', type=_positive, metavar='N', help='N participants per task of the array')
    add('--max-tasks', type=_positive, metavar='N', help='at most N tasks at a time')
    for name in REQUESTS:
        add(name, metavar=name[2:].upper(), help=f'of sbatch; {name[2:]} of both jobs')
    add('--gres', metavar='GRES', help='of sbatch, for the participants: gpu:1')
    add(
        '--sbatch',
        action='append',
        default=[],
        metavar='OPTION',
        help='any other option of sbatch for both jobs: --sbatch=--exclude=node7',
    )
    add('--job-name', default='anatnet', metavar='NAME', help='of sbatch (default: anatnet)')
    add(
        '--grace',
        type=_positive,
        default=120,
        metavar='SECONDS',
        help='stop so long before the time limit, and go on in a new turn (default: 120)',
    )
    add(
        '--scratch',
        metavar='DIR',
        help='folder on the nodes for intermediate files, may hold variables: /scratch/$USER '
        '(default: $SLURM_TMPDIR, else $TMPDIR, else /tmp)',
    )
    add(
        '--setup',
        action='append',
        default=[],
        metavar='COMMAND',
        help='shell command at the start of the jobs: --setup "module load apptainer"',
    )
    add('--container', type=Path, metavar='IMAGE.sif', help='run in this image with Apptainer')
    add(
        '--bind',
        action='append',
        default=[],
        metavar='FROM[:TO]',
        help='another folder for the container; those that options name are there',
    )
    add('--no-group', dest='group', action='store_false', help='leave out the group level')
    add('--group-options', default='', metavar='OPTIONS', help='options of the group level')
    add('--no-submit', dest='submit', action='store_false', help='only write the scripts')
    add('--dry-run', action='store_true', help='only show the scripts')
    return parser  # fmt: skip


def _take_tokens(argv: Sequence[str], arities: dict[str, int]) -> tuple[list[str], list[str]]:
    """Take options with their values out of a command line; returns them and the rest."""
    taken: list[str] = []
    rest: list[str] = []
    waiting = iter(argv)
    for token in waiting:
        name, equals, value = token.partition('=')
        key = name.replace('_', '-') if name.startswith('--') else name
        if key not in arities:
            rest.append(token)
        elif equals or not arities[key]:
            taken.append(key + equals + value)
        else:
            value = next(waiting, None)
            if value is None:
                raise UsageError(f'{key} needs a value (see anatnet slurm --help)')
            taken.append(f'{key}={value}')
    return taken, rest


def _take(argv: Sequence[str], arities: dict[str, int]) -> tuple[dict[str, str], list[str]]:
    """Take options out of a command line; returns their values by name, and the rest."""
    taken, rest = _take_tokens(argv, arities)
    return {name: value for name, _, value in (token.partition('=') for token in taken)}, rest


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number above 0')
    return int(text)


def _existing(image: Path) -> Path:
    image = Path(os.path.abspath(os.path.expanduser(image)))
    if not image.exists():
        raise UsageError(f'there is no container image {image}')
    return image


def _command() -> tuple[str, ...]:
    """Return what starts this AnatNet with this Python, installed or not."""
    program = Path(__file__).resolve().parents[2] / 'run.py'
    if program.is_file():
        return (sys.executable, str(program))
    return (sys.executable, '-m', 'bids_app')


def _binds(
    config: RunConfig, group: RunConfig, options: Sequence[str], more: Sequence[str]
) -> tuple[str, ...]:
    """List the folders that a container must see: those that options name, read-only."""
    seen = {str(config.bids_dir): ':ro', str(config.output_dir): '', str(Path.cwd()): ''}
    named: list[Any] = [config.models_dir, config.use_plugin, *config.derivatives.values()]
    named += [Path(text.partition(':')[0]) for text in config.atlas]
    named += [Path(one) for one in config.classifier]
    chosen = (config.tissue_model, config.synth_model, config.deepnat_model)
    named += [Path(one) for one in chosen if os.sep in one]
    values, _ = _take(options, {'--bids-filter-file': 1, '--config-file': 1})
    named += [Path(os.path.abspath(value)) for value in values.values()]
    for path in named:
        if path is not None and path.exists():
            folder = path if path.is_dir() else path.parent
            seen.setdefault(str(folder), ':ro')
    for path in (config.bids_database_dir, group.bids_database_dir):
        if path is not None:
            seen.setdefault(str(path), '')
    for path in seen:
        if set(path) & {':', ','}:
            raise UsageError(f'a container cannot be given the path {path}: it holds : or ,')
    # A folder that is mounted later hides what was mounted below it before.
    ordered = sorted(seen.items(), key=lambda item: len(Path(item[0]).parts))
    return (*(f'{path}:{path}{rights}' for path, rights in ordered), *more)


def _submit(script: Path, *options: str) -> str:
    """Give a script to Slurm and return the number of the job."""
    if shutil.which('sbatch') is None:
        raise AnatNetError(
            f'there is no sbatch on this machine: submit {script} where there is one, '
            'or use --no-submit'
        )
    done = subprocess.run(
        ['sbatch', '--parsable', *options, str(script)], capture_output=True, text=True
    )
    if done.returncode:
        reason = ' '.join(done.stderr.split()) or f'exit code {done.returncode}'
        raise AnatNetError(f'Slurm does not take {script}: {reason}')
    return done.stdout.strip().splitlines()[-1].partition(';')[0]
