# SPDX-License-Identifier: Apache-2.0
"""How long it takes to find the scans of a large data set.

``python benchmarks/indexing.py --subjects 10000`` makes a data set of empty files in a temporary
folder, lists its sessions without a database, while a database is made, and with that database,
and prints the seconds as JSON. Every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

FILES = (
    'anat/{0}_T1w.nii.gz', 'anat/{0}_T1w.json',
    'func/{0}_task-rest_bold.nii.gz', 'func/{0}_task-rest_bold.json',
    'func/{0}_task-rest_events.tsv',
)  # fmt: skip

MEASURE = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from bids_app.bids.inputs import collect_sessions
from bids_app.config import RunConfig
root, database, label = sys.argv[1:]
records = collect_sessions(RunConfig(
    Path(root), Path('out'), bids_database_dir=Path(database) if database else None,
    participant_label=(label,) if label else None,
))
print(json.dumps({
    'seconds': round(time.perf_counter() - started, 2),
    'sessions': sum(record.t1w is not None for record in records),
    'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
"""


def make_dataset(root: Path, subjects: int) -> int:
    """Write the empty files and return how many there are."""
    root.mkdir(parents=True)
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    for number in range(subjects):
        subject = f'sub-{number:05d}'
        for folder in ('anat', 'func'):
            (root / subject / folder).mkdir(parents=True)
        for file in FILES:
            (root / subject / file.format(subject)).touch()
    return subjects * len(FILES)


def measure(root: Path, database: str = '', label: str = '') -> dict[str, float]:
    """Find all sessions in a process of its own."""
    finished = subprocess.run(
        [sys.executable, '-c', MEASURE, str(root), database, label],
        cwd=PROJECT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Make the data set, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--subjects', type=int, default=10000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='anatnet-indexing-') as folder:
        root, database = Path(folder) / 'raw', str(Path(folder) / 'database')
        files = make_dataset(root, arguments.subjects)
        last = f'{arguments.subjects - 1:05d}'
        result = {
            'date': time.strftime('%Y-%m-%d'),
            'machine': f'{platform.machine()}, Python {platform.python_version()}',
            'subjects': arguments.subjects,
            'files': files,
            'all_without_database': measure(root),
            'one_participant_without_database': measure(root, label=last),
            'all_making_a_database': measure(root, database),
            'all_with_that_database': measure(root, database),
            'one_participant_with_that_database': measure(root, database, last),
        }
    print(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
