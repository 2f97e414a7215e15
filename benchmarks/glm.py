# SPDX-License-Identifier: Apache-2.0
"""How long voxelwise statistics take, what they find and how often they are wrong.

``python benchmarks/glm.py speed|null|planted`` prints what it measured as JSON:

- ``speed``: the whole analysis (files to files) of ``--sessions`` maps on the 1.5 mm grid with
  ``--permutations``, voxelwise and with threshold-free cluster enhancement, and its peak memory.
- ``null``: ``--designs`` random designs (groups and ages that have nothing to do with the maps,
  next to a head size that has) on 4.5 mm maps: how many of them find anything at p < 0.05.
- ``planted``: 10 % less grey matter in the left hippocampus of half of the subjects: how much of
  the region is found, and how far from it anything else.

Maps are simulated: the grey matter of the template that comes with the app, times smooth noise
(10 % standard deviation, different in every subject), head size and age, smoothed with 6 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

FWHM = 6.0
HIPPOCAMPUS = 17
SIGMA = 1 / np.sqrt(8 * np.log(2))


class Simulation:
    """Makes smoothed modulated maps on the grid of the template, or on every n-th voxel of it.

    Parameters
    ----------
    step : int
        1 for 1.5 mm, 3 for 4.5 mm.
    """

    def __init__(self, step: int = 1) -> None:
        import nibabel as nib

        from bids_app.images.templates import REGISTRATION_AFFINE, find_template

        template = find_template('MNI152NLin2009aSym')
        thin = (slice(None, None, step),) * 3
        tissues = nib.load(template.tissues)
        self.grey = (np.asarray(tissues.dataobj[..., 0])[thin] / 255).astype(np.float32)
        self.labels = np.asarray(nib.load(template.labels).dataobj)[thin]
        self.affine = REGISTRATION_AFFINE @ np.diag([step, step, step, 1.0])
        self.spacing = 1.5 * step

    def cohort(self, n: int, seed: int) -> pd.DataFrame:
        """Draw a group, an age, a sex and a head size (mm^3) for every subject."""
        rng = np.random.default_rng(seed)
        group = np.array(['control', 'patient'])[rng.permutation(n) % 2]
        return pd.DataFrame(
            {
                'participant_id': [f'sub-{number:04d}' for number in range(n)],
                'group': group,
                'age': rng.uniform(20, 80, n),
                'sex': np.array(['F', 'M'])[rng.integers(0, 2, n)],
                'tiv': rng.normal(1.5e6, 1.3e5, n),
            }
        )

    def map(self, row: pd.Series, seed: int, loss: float = 0.0) -> np.ndarray:
        """Make the map of one subject; ``loss`` is planted into patients before smoothing."""
        data = self.grey * (1 + 0.1 * self.noise([seed, int(row['participant_id'][4:])]))
        if loss and row['group'] == 'patient':
            data[self.labels == HIPPOCAMPUS] *= 1 - loss
        return self.smooth(data, FWHM) * _size(row)

    def noise(self, seed: list[int]) -> np.ndarray:
        """Return noise of unit standard deviation that is smooth over about a centimetre."""
        noise = np.random.default_rng(seed).standard_normal(self.grey.shape, dtype=np.float32)
        noise = self.smooth(noise, 4.0 / SIGMA)
        return noise / noise.std()

    def smooth(self, data: np.ndarray, fwhm: float) -> np.ndarray:
        """Smooth with a Gaussian of a FWHM in mm."""
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(data, fwhm * SIGMA / self.spacing)

    def many(self, table: pd.DataFrame, seed: int, patterns: int = 32) -> Iterator[np.ndarray]:
        """Yield maps that mix some patterns of noise: far quicker than one by one.

        They are as smooth as those of :meth:`map`; for timing, not for statistics.
        """
        rng = np.random.default_rng(seed)
        mean = self.smooth(self.grey, FWHM)
        noise = np.stack(
            [self.smooth(self.grey * self.noise([seed, n]), FWHM).ravel() for n in range(patterns)]
        )
        for _, row in table.iterrows():
            weights = rng.standard_normal(patterns, dtype=np.float32) * 0.1 / patterns**0.5
            yield (mean + (weights @ noise).reshape(mean.shape)) * _size(row)


def _size(row: pd.Series) -> float:
    """Return by how much grey matter differs with head size and age."""
    return float(row['tiv'] / 1.5e6 * (1 - 0.003 * (row['age'] - 50)))


def speed(arguments: argparse.Namespace) -> dict[str, object]:
    """Write maps, analyse them in a process of its own."""
    import nibabel as nib

    from bids_app.bids.files import atomic_save_nifti

    simulation = Simulation()
    table = simulation.cohort(arguments.sessions, 1)
    with tempfile.TemporaryDirectory(prefix='anatnet-glm-', dir=arguments.work_dir) as name:
        folder = Path(name)
        for number, data in enumerate(simulation.many(table, 2)):
            image = nib.Nifti1Image(data, simulation.affine)
            atomic_save_nifti(image, folder / f'{number}.nii.gz')
        table.to_pickle(folder / 'table.pkl')
        results = {}
        for tfce in (False, True):
            finished = subprocess.run(
                [sys.executable, __file__, 'worker', '--work-dir', name, '--permutations',
                 str(arguments.permutations), '--jobs', str(arguments.jobs),
                 '--tfce', str(int(tfce))],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            results['tfce' if tfce else 'voxel'] = json.loads(finished.stdout.splitlines()[-1])
    return {'sessions': arguments.sessions, 'permutations': arguments.permutations,
            'jobs': arguments.jobs, **results}  # fmt: skip


def worker(arguments: argparse.Namespace) -> dict[str, object]:
    """Analyse the maps of a folder."""
    from bids_app.group.glm import Settings, analyse, template_regions

    folder = Path(arguments.work_dir)
    table = pd.read_pickle(folder / 'table.pkl')
    settings = Settings(
        '~ group + age + C(sex) + tiv', ('group[T.patient]',), tfce=bool(arguments.tfce),
        n_permutations=arguments.permutations, n_jobs=arguments.jobs,
    )  # fmt: skip
    begin = time.perf_counter()
    paths = [folder / f'{number}.nii.gz' for number in range(len(table))]
    regions = template_regions('MNI152NLin2009aSym')
    result = analyse(table, paths, settings, out_dir=folder / 'out', regions=regions)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        'voxels': result['mask_voxels'],
        'seconds': round(time.perf_counter() - begin, 1),
        'cpu_seconds': round(usage.ru_utime + usage.ru_stime, 1),
        'peak_gb': round(usage.ru_maxrss / 2**20, 2),
        'significant': result['contrasts'][0]['significant'],
    }


def null(arguments: argparse.Namespace) -> dict[str, object]:
    """Count designs without any relation to the maps that find something."""
    from scipy.stats import binom

    from bids_app.group.design import make_contrast, make_design
    from bids_app.group.linear import fit, partition
    from bids_app.group.permutation import corrected, null_distribution, permutations
    from bids_app.group.tfce import Enhancer

    simulation = Simulation(step=3)
    n = arguments.sessions
    cohort = simulation.cohort(n, 3)
    maps = np.stack([simulation.map(row, 4) for _, row in cohort.iterrows()])
    mask = maps.mean(0) > 0.1
    values = maps[:, mask] - maps[:, mask].mean(0)
    enhancer = Enhancer(mask)
    alarms = {'fwe': 0, 'tfce': 0}
    limit = -np.log10(0.05 + 1e-9)
    for design_seed in range(arguments.designs):
        table = simulation.cohort(n, 1000 + design_seed)
        table['tiv'], table['true_age'] = cohort['tiv'], cohort['age']
        design = make_design(table, '~ group + age + C(sex) + tiv + true_age')
        part = partition(design.matrix, make_contrast('group[T.patient]', design).weights)
        orders = permutations(n, arguments.permutations, design_seed)
        found = null_distribution(values, part, orders, enhancer=enhancer, n_jobs=arguments.jobs)
        statistic = fit(values, part).statistic
        alarms['fwe'] += bool((corrected(statistic, found.voxel) >= limit).any())
        enhanced = enhancer(statistic)
        alarms['tfce'] += bool((corrected(enhanced, found.tfce) >= limit).any())
    bounds = [int(binom.ppf(q, arguments.designs, 0.05)) for q in (0.025, 0.975)]
    return {'sessions': n, 'designs': arguments.designs, 'permutations': arguments.permutations,
            'voxels': int(mask.sum()), 'false_alarms': alarms,
            'expected': 0.05 * arguments.designs, 'bounds_95': bounds}  # fmt: skip


def planted(arguments: argparse.Namespace) -> dict[str, object]:
    """Look for a planted loss with every correction."""
    import nibabel as nib
    from scipy.ndimage import distance_transform_edt

    from bids_app.bids.files import atomic_save_nifti
    from bids_app.group.glm import Settings, analyse, template_regions

    simulation = Simulation()
    table = simulation.cohort(arguments.sessions, 5)
    region = simulation.labels == HIPPOCAMPUS
    away = distance_transform_edt(~region) * simulation.spacing
    with tempfile.TemporaryDirectory(prefix='anatnet-glm-', dir=arguments.work_dir) as name:
        paths = []
        for number, row in table.iterrows():
            image = nib.Nifti1Image(simulation.map(row, 6, 0.1), simulation.affine)
            paths.append(atomic_save_nifti(image, Path(name) / f'{number}.nii.gz'))
        settings = Settings(
            '~ group + age + C(sex) + tiv', ('group[T.patient]',),
            n_permutations=arguments.permutations, n_jobs=arguments.jobs,
        )  # fmt: skip
        out_dir = Path(arguments.keep or name) / 'model'
        regions = template_regions('MNI152NLin2009aSym')
        result = analyse(table, paths, settings, out_dir=out_dir, regions=regions)
        contrast = result['contrasts'][0]
        found = {}
        mask = nib.load(result['files']['mask']).get_fdata() > 0
        for correction, file in (('fwe', 'logpfwe'), ('tfce', 'logptfce'), ('fdr', 'logpfdr')):
            chosen = nib.load(contrast['files'][file]).get_fdata() > -np.log10(0.05)
            found[correction] = {
                'voxels': int(chosen.sum()),
                'share_of_region': round(float(chosen[region & mask].mean()), 3),
                'farthest_mm': round(float(away[chosen].max()), 1) if chosen.any() else None,
                'voxels_beyond_one_fwhm': int((away[chosen] > FWHM).sum()),
                'clusters': sum(row['correction'] == correction for row in contrast['clusters']),
            }
    return {'sessions': arguments.sessions, 'permutations': arguments.permutations,
            'strongest': contrast['largest'], **found}  # fmt: skip


PROGRAMS = {'speed': speed, 'null': null, 'planted': planted, 'worker': worker}
DEFAULTS = {'speed': (1000, 1000), 'null': (60, 199), 'planted': (100, 500), 'worker': (0, 0)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=PROGRAMS)
    parser.add_argument('--sessions', type=int)
    parser.add_argument('--permutations', type=int)
    parser.add_argument('--designs', type=int, default=200)
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument('--tfce', type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument('--work-dir', help='where maps are written')
    parser.add_argument('--keep', help='folder in which the results of planted stay')
    arguments = parser.parse_args()
    sessions, permutations = DEFAULTS[arguments.what]
    arguments.sessions = arguments.sessions or sessions
    arguments.permutations = arguments.permutations or permutations
    begin = time.perf_counter()
    result = PROGRAMS[arguments.what](arguments)
    if arguments.what != 'worker':
        result = {
            'program': arguments.what,
            'date': time.strftime('%Y-%m-%d'),
            'machine': f'{platform.machine()}, {os.cpu_count()} cores, '
            f'Python {platform.python_version()}',
            **result,
            'seconds_in_all': round(time.perf_counter() - begin),
        }
    print(json.dumps(result))


if __name__ == '__main__':
    main()
