# SPDX-License-Identifier: Apache-2.0
"""What a large study costs besides the computing: finding, listing, resuming, the group level.

``python benchmarks/large_study.py --subjects 1000 5000`` makes data sets of tiny images with
derivatives that count as finished (random tables, the same small image under every name), runs the
app on them, every time in a process of its own, and prints seconds, processor seconds and peak
memory as JSON, with how much more the largest data set takes than the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from group import SPACE, random_tables  # beside this file
from indexing import MEASURE, make_dataset

from bids_app import __version__
from bids_app.bids.inputs import collect_sessions
from bids_app.bids.outputs import file_id, parameters, table
from bids_app.cli import parse
from bids_app.config import RunConfig
from bids_app.resume import ANY_SIZE, SessionState, input_records, relevant_options
from bids_app.workflows.jobs import Job, ModelsInUse, make_jobs

PROJECT = Path(__file__).resolve().parents[1]
KERNELS = (6, 8)
FIGURES = 8
"""Figures of the report of a session with template space."""


def main() -> None:
    """Make the data sets, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--subjects', type=int, nargs='+', default=[1000, 5000])
    parser.add_argument('--folder', type=Path, help='make the data sets here and keep them')
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix='anatnet-large-') as temporary:
        for subjects in sorted(arguments.subjects):
            root = (arguments.folder or Path(temporary)) / str(subjects)
            results[subjects] = measure_study(root, subjects)
    few, *_, many = sorted(results) * 2
    result = {
        'command': 'python benchmarks/large_study.py --subjects '
        + ' '.join(map(str, arguments.subjects)),
        'date': time.strftime('%Y-%m-%d'),
        'machine': f'{os.cpu_count()} CPU cores ({platform.machine()}), '
        f'Python {platform.python_version()}, AnatNet {__version__}',
        'subjects': results,
        'times_as_many_subjects': round(many / few, 2),
        'times_as_many_cpu_seconds': {
            name: round(values['cpu_seconds'] / results[few][name]['cpu_seconds'], 2)
            for name, values in results[many].items()
            if isinstance(values, dict)
        },
    }
    print(json.dumps(result, indent=2))


def measure_study(root: Path, subjects: int) -> dict[str, Any]:
    """Make one data set with its derivatives and measure everything on it."""
    raw, out, work = root / 'raw', root / 'out', root / 'work'
    begin = time.perf_counter()
    make_raw(raw, subjects)
    files = make_derivatives(raw, out, work)
    print(f'{subjects} subjects made in {time.perf_counter() - begin:.0f} s', file=sys.stderr)
    database = str(root / 'database')
    last = f'{subjects - 1:05d}'

    def app(*options: str) -> dict[str, float]:
        return timed(
            sys.executable, '-m', 'bids_app', str(raw), str(out), *options, '-w', str(work),
            '--device', 'cpu', '--nprocs', '1',
        )  # fmt: skip

    def index(*options: str) -> dict[str, float]:
        return timed(sys.executable, '-c', MEASURE, str(raw), *options)

    return {
        'files_per_subject': files,
        'index_without_database': index('', ''),
        'index_making_a_database': index(database, ''),
        'index_with_that_database': index(database, ''),
        'dry_run_without_database': app('participant', '--dry-run'),
        'dry_run_with_database': app('participant', '--dry-run', '--bids-database-dir', database),
        'nothing_left_to_do': app('participant', '--bids-database-dir', database),
        'nothing_left_to_do_for_one': app('participant', '--participant-label', last),
        'group': app('group'),
    }


def make_raw(root: Path, subjects: int) -> None:
    """Write a data set in which every T1w is a small image, and a table of participants."""
    make_dataset(root, subjects)
    random = np.random.default_rng(0)
    content = _image(random)
    lines = ['participant_id\tage\tsex\tgroup']
    for number in range(subjects):
        subject = f'sub-{number:05d}'
        (root / subject / 'anat' / f'{subject}_T1w.nii.gz').write_bytes(content)
        group = random.choice(['control', 'patient'])
        lines.append(
            f'{subject}\t{random.uniform(18, 85):.0f}\t{random.choice(list("FM"))}\t{group}'
        )
    (root / 'participants.tsv').write_text('\n'.join(lines) + '\n')


def make_derivatives(raw: Path, out: Path, work: Path) -> int:
    """Write finished derivatives of all sessions; return the number of files per subject."""
    argv = [str(raw), str(out), 'participant', '-w', str(work), '--device', 'cpu', '--nprocs', '1']
    config = parse(argv)
    models = ModelsInUse.find(config)
    random = np.random.default_rng(1)
    content = _image(random)
    out.mkdir(parents=True)
    description = {
        'Name': 'Synthetic study', 'BIDSVersion': '1.10.0', 'DatasetType': 'derivative',
        'GeneratedBy': [{'Name': 'AnatNet', 'Version': __version__}],
    }  # fmt: skip
    (out / 'dataset_description.json').write_text(json.dumps(description))
    for job in make_jobs(config, collect_sessions(config)):
        _finish(job, config, models, random, content)
    return sum(len(files) for _, _, files in os.walk(job.outputs.subject_dir)) + 1


def file_ids() -> list[str]:
    """Name everything that a default run writes for a session with a T1w alone."""
    named = []
    for key in table():
        wanted = parameters(key)
        if set(wanted) - {'space', 'res', 'fwhm'} or key.startswith('lesion'):
            continue
        for fwhm in KERNELS if 'fwhm' in wanted else (0,):
            given = {'space': SPACE, 'res': 1.5, 'fwhm': fwhm}
            named.append(file_id(key, **{name: given[name] for name in wanted}))
    return named


def _finish(
    job: Job, config: RunConfig, models: ModelsInUse, random: np.random.Generator, content: bytes
) -> None:
    """Write what a run leaves of one session: derivatives, sidecars, figures, page and state."""
    outputs = job.outputs
    tables = random_tables(random, random.uniform(18, 85), random.choice(['F', 'M']))
    written: dict[str, int] = {}
    for identifier in file_ids():
        path = outputs.path(identifier)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = tables.get(identifier)
        # Only the maps that the group level compares differ between sessions.
        own = _image(random) if identifier.startswith('vbm_gm_smooth') else content
        path.write_bytes(own if text is None else text.encode())
        sidecar = outputs.sidecar_path(identifier)
        sidecar.write_text(json.dumps(outputs.sidecar(identifier, Sources=['bids:raw:x'])))
        for one in (path, sidecar):
            written[one.relative_to(config.output_dir).as_posix()] = one.stat().st_size
    outputs.figures_dir.mkdir(parents=True, exist_ok=True)
    for number in range(FIGURES):
        outputs.figure(f'desc-{number}_T1w').write_text('<svg/>')
    page = outputs.path('report')
    page.write_text('<html></html>')
    written[page.name] = ANY_SIZE
    state = SessionState(
        'done', __version__, input_records(job.input_files, config.bids_dir),
        relevant_options(config), list(config.modules), models.checksums, written,
        run={'report': {'label': job.label, 'methods': 'as always ' * 150}},
    )  # fmt: skip
    log_dir = outputs.log_dir(config.run_uuid)
    log_dir.mkdir(parents=True)
    (log_dir / 'anatnet.toml').write_text(config.to_toml())
    outputs.state_file.write_text(state.to_json())


def _image(random: np.random.Generator) -> bytes:
    """Return a small compressed image."""
    import gzip

    data = random.random((12, 14, 12), np.float32)
    image = nib.Nifti1Image(data, np.diag([12.0, 12.0, 12.0, 1.0]))
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def timed(*command: str) -> dict[str, float]:
    """Run a command; return its seconds, processor seconds and peak memory in megabytes."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            output.seek(0)
            raise SystemExit(f'{" ".join(command)}\n{output.read().decode()[-3000:]}')
    print(f'{seconds:8.1f} s  {" ".join(command[3:])[:120]}', file=sys.stderr)
    return {
        'seconds': round(seconds, 2),
        'cpu_seconds': round(usage.ru_utime + usage.ru_stime, 2),
        'peak_mb': usage.ru_maxrss // 1024,
    }


if __name__ == '__main__':
    main()
