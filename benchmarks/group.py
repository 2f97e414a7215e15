# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the group level: tables, quality and page of many synthetic sessions.

``python benchmarks/group.py --sessions 1000 --size 112 144 112`` writes derivatives with smooth
random maps to a temporary folder, runs the group level on them in a process of its own and prints
seconds, peak memory and the size of the page. Every tenth session fails, one is a gross outlier.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bids_app import __version__
from bids_app.bids.files import atomic_save_nifti, atomic_write_text
from bids_app.bids.outputs import Outputs
from bids_app.data import structures
from bids_app.resume import SessionState

SPACE, RES, FWHM = 'MNI152NLin2009aSym', 1.5, 6
OUTLIER = 7
"""Number of the session whose measures and map are unlike the others."""


def main() -> None:
    """Make a study, run the group level on it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sessions', type=int, default=1000)
    parser.add_argument('--size', type=int, nargs=3, default=(28, 36, 28), metavar='N',
                        help='voxels of a map; 112 144 112 are those of the app')  # fmt: skip
    parser.add_argument('--no-maps', action='store_true')
    parser.add_argument('--distinct', type=int, metavar='N',
                        help='draw N maps; those of other sessions are links to them')  # fmt: skip
    parser.add_argument('--nprocs', type=int, nargs='+', default=[1], help='one run for each')
    parser.add_argument('--folder', type=Path, help='keep the study here')
    parser.add_argument('--out', type=Path, help='JSON file for the results')
    options = parser.parse_args()
    if options.distinct is not None and options.distinct <= OUTLIER:
        parser.error(f'--distinct must be above {OUTLIER}')
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        begin = time.perf_counter()
        size = None if options.no_maps else tuple(options.size)
        make_study(root, options.sessions, size, distinct=options.distinct)
        print(f'made {options.sessions} sessions in {time.perf_counter() - begin:.0f} s')
        runs = []
        for nprocs in options.nprocs:
            runs.append(measure(root, nprocs))
            print(json.dumps(runs[-1]), flush=True)
    if options.out:
        result = {
            'command': shlex.join(['python', 'benchmarks/group.py', *sys.argv[1:]]),
            'date': time.strftime('%Y-%m-%d'),
            'machine': f'{os.cpu_count()} CPU cores ({platform.machine()}), '
            f'Python {platform.python_version()}, AnatNet {__version__}',
            'sessions': options.sessions,
            'voxels': 0 if options.no_maps else int(np.prod(options.size)),
            'distinct_maps': options.distinct or 'all',
            'runs': runs,
        }
        options.out.write_text(json.dumps(result, indent=2) + '\n')


def measure(root: Path, nprocs: int) -> dict[str, float]:
    """Run the group level in a process of its own; memory is that of its largest process."""
    shutil.rmtree(root / 'work', ignore_errors=True)
    begin, before = time.perf_counter(), os.times()
    command = [
        sys.executable, '-m', 'bids_app', str(root / 'raw'), str(root / 'out'), 'group',
        '--nprocs', str(nprocs), '-w', str(root / 'work'),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    seconds, after = time.perf_counter() - begin, os.times()
    used = after.children_user + after.children_system
    return {
        'nprocs': nprocs,
        'seconds': round(seconds, 1),
        'cpu_seconds': round(used - before.children_user - before.children_system, 1),
        'peak_memory_gb': round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
        'page_mb': round((root / 'out' / 'group.html').stat().st_size / 1e6, 2),
    }


def make_study(
    root: Path,
    count: int,
    size: tuple[int, ...] | None,
    seed: int = 0,
    distinct: int | None = None,
) -> None:
    """Write raw tables and the derivatives of sessions with random values.

    Parameters
    ----------
    root : Path
        Gets ``raw`` and ``out``.
    count : int
        Number of sessions.
    size : tuple of int, optional
        Voxels of the maps; None for no maps.
    seed : int
    distinct : int, optional
        Maps that are drawn; by default that of every session. Drawing takes longer than the group
        level does.
    """
    random = np.random.default_rng(seed)
    raw, out = root / 'raw', root / 'out'
    description = {'Name': 'Synthetic study', 'BIDSVersion': '1.10.0'}
    atomic_write_text(raw / 'dataset_description.json', json.dumps(description))
    made = {'Name': 'AnatNet', 'Version': __version__}
    atomic_write_text(
        out / 'dataset_description.json',
        json.dumps({**description, 'DatasetType': 'derivative', 'GeneratedBy': [made]}),
    )
    lines = ['participant_id\tage\tsex\tgroup']
    shapes = None if size is None else _Shapes(size, random)
    drawn: list[Path] = []
    for number in range(count):
        label = f'{number:04d}'
        age, sex = random.uniform(18, 85), random.choice(['F', 'M'])
        lines.append(f'sub-{label}\t{age:.0f}\t{sex}\t{random.choice(["control", "patient"])}')
        outputs = Outputs(out, label)
        failed = number % 10 == 3
        state = SessionState(
            'failed' if failed else 'done', '0.1.0' if number % 50 else '0.0.9', {},
            {'model': 'brain', 'precision': 'auto', 'sloppy': False}, ['mask', 'tissue'],
            {'brain': '0' * 64}, error='the file is truncated' if failed else None,
        )  # fmt: skip
        if not failed:
            for key, text in random_tables(random, age, sex, number == OUTLIER).items():
                atomic_write_text(outputs.path(key), text)
            if shapes is not None:
                path = outputs.path('vbm_gm_smooth', space=SPACE, res=RES, fwhm=FWHM)
                if distinct is None or len(drawn) < distinct:
                    atomic_save_nifti(shapes.draw(number == OUTLIER), path)
                    drawn.append(path)
                else:  # not that of the outlier again, which is among the first
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.hardlink_to(drawn[OUTLIER + number % (distinct - OUTLIER)])
        atomic_write_text(outputs.state_file, state.to_json())
    atomic_write_text(raw / 'participants.tsv', '\n'.join(lines) + '\n')


def random_tables(
    random: np.random.Generator, age: float, sex: str, outlier: bool = False
) -> dict[str, str]:
    """Return tables of volumes and quality measures of one session, by their keys."""
    tiv = random.normal(1.55e6 if sex == 'M' else 1.38e6, 1.2e5)
    shares = np.array([0.47 - 0.0012 * (age - 45), 0.33, 0.20 + 0.0012 * (age - 45)])
    shares = shares * np.exp(random.normal(0, 0.03, 3))
    shares /= shares.sum()
    rows = ['index\tname\tvolume_mm3']
    rows += [f'{i + 1}\t{n}\t{tiv * s:.1f}' for i, (n, s) in
             enumerate(zip(('GM', 'WM', 'CSF'), shares, strict=True))]  # fmt: skip
    rows.append(f'n/a\tTIV\t{tiv:.1f}')
    found = {'tissue_morph': '\n'.join(rows) + '\n'}
    rows = ['index\tname\tvolume_mm3']
    for structure in structures():
        share = 0.01 * np.exp(random.normal(0, 0.1))
        rows.append(f'{structure.index}\t{structure.name}\t{tiv * share:.1f}')
    found['wholebrain_morph'] = '\n'.join(rows) + '\n'
    noise = 3.0 if outlier else 1.0
    measures = {
        'snr_total': 8 / noise * np.exp(random.normal(0, 0.06)),
        'cnr': 2.8 / noise * np.exp(random.normal(0, 0.06)),
        'cjv': 0.48 * noise * np.exp(random.normal(0, 0.06)),
        'overlap_mean': random.normal(0.72, 0.02),
        'tiv_ml': tiv / 1000,
        'icvs_gm': shares[0],
        'icvs_wm': shares[1],
        'icvs_csf': shares[2],
        'mean_entropy': random.normal(0.15, 0.01),
        'confidence': random.normal(0.68, 0.02),
    }
    values = [f'{value:.6g}' for value in measures.values()]
    head = '\t'.join([*measures, 'qc_status', 'qc_reasons'])
    found['qc_stats'] = f'{head}\n' + '\t'.join([*values, 'ok', 'n/a']) + '\n'
    return found


class _Shapes:
    """Draws smooth maps: a brain-like ball and a few random patterns on it."""

    def __init__(self, size: tuple[int, ...], random: np.random.Generator) -> None:
        from scipy.ndimage import gaussian_filter

        self.random = random
        grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing='ij')
        radius = np.sqrt(sum(axis**2 for axis in grid))
        self.base = (0.5 * np.exp(-(((radius - 0.75) / 0.12) ** 2))).astype(np.float32)
        width = max(size) / 25
        patterns = [gaussian_filter(random.standard_normal(size), width) for _ in range(12)]
        self.patterns = np.stack([p / p.std() for p in patterns]).astype(np.float32)
        # Grain as fine as that of a real map, so that files compress as real ones do.
        self.grain = (gaussian_filter(random.standard_normal(size), 1) * 0.1).astype(np.float32)

    def draw(self, outlier: bool) -> object:
        """Return the map of one session."""
        import nibabel as nib

        weights = self.random.normal(0, 0.06, len(self.patterns)).astype(np.float32)
        data = self.base * (1 + np.tensordot(weights, self.patterns, 1))
        data += self.base * np.roll(self.grain, self.random.integers(0, 20, 3), (0, 1, 2))
        if outlier:
            data = np.roll(data, data.shape[1] // 12, axis=1)
        return nib.Nifti1Image(data.clip(0), np.diag([RES, RES, RES, 1.0]))


if __name__ == '__main__':
    main()
