# SPDX-License-Identifier: Apache-2.0
"""Patch individual filters: how fast is the layer, and does it help?

``python benchmarks/pif.py speed`` times the layer against a loop over scans and patches.
``python benchmarks/pif.py cohorts --out FILE`` simulates cohorts of normalised grey matter maps
with a loss at known places, trains the PIF network, its matched baseline and the linear model on
them, and appends one line for each to FILE. It goes on where it was when it is called again.
``python benchmarks/pif.py table FILE`` prints the table of the paper.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

PLACES = ((-28, -20, -15), (52, -22, -18), (0, -52, 28))
"""Where patients lose grey matter: left hippocampus, right middle temporal, posterior cingulate
(mm, MNI)."""
VOXEL = 5
TEST = 400
"""Subjects of the test set of every repeat, half of them patients."""


def template() -> tuple[np.ndarray, np.ndarray]:
    """Return the grey matter of the template that nilearn carries, cropped, and its affine."""
    from nilearn.datasets import load_mni152_gm_template

    image = load_mni152_gm_template(resolution=VOXEL)
    data = np.asarray(image.dataobj, np.float32)
    used = np.argwhere(data > 0.1)
    low, high = used.min(0), used.max(0) + 1
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    return data[tuple(map(slice, low, high))], affine


def simulate(
    number: int, seed: int, loss: float = 0.3, width: float = 20.0
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate modulated maps of healthy subjects and patients, half of each.

    Every map is the template, moved by a smooth field (1.5 mm, what registration leaves), times
    the size of the head (10 %), times smooth fields of 60, 30 and 15 mm (8 % each), plus noise.
    A patient loses ``loss`` (varying by half of it) in Gaussian spheres of ``width`` mm (FWHM) at
    :data:`PLACES`.

    Returns
    -------
    maps : ndarray of float16, shape (number, x, y, z)
    values : ndarray of int, shape (number,)
        1 for patients.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    rng = np.random.default_rng(seed)
    mean, affine = template()
    grid = np.indices(mean.shape).astype(np.float32)
    world = np.tensordot(affine[:3, :3], grid, 1) + affine[:3, 3][:, None, None, None]
    spheres = sum(
        np.exp(
            -((world - np.array(p)[:, None, None, None]) ** 2).sum(0) / (2 * (width / 2.355) ** 2)
        )
        for p in PLACES
    )

    def field(fwhm: float) -> np.ndarray:
        noise = gaussian_filter(
            rng.standard_normal(mean.shape, np.float32), fwhm / VOXEL / 2.355, mode='wrap'
        )
        return noise / noise.std()

    values = rng.permutation(np.arange(number) % 2)
    maps = np.empty((number, *mean.shape), np.float16)
    for row, patient in enumerate(values):
        moved = map_coordinates(
            mean,
            grid + np.stack([field(30) for _ in range(3)]) * (1.5 / VOXEL),
            order=1,
            mode='nearest',
        )
        growth = 1 + 0.1 * rng.standard_normal() + sum(0.08 * field(f) for f in (60, 30, 15))
        change = 1 - patient * loss * (1 + 0.5 * rng.standard_normal()) * spheres
        noise = 0.03 * rng.standard_normal(mean.shape)
        maps[row] = np.clip(moved * growth * change + noise * (mean > 0.05), 0, None)
    return maps, values


def models(shape: tuple[int, ...]) -> dict[str, dict]:
    """Return the arguments of the networks that are compared."""
    from bids_app.networks.pif import compact

    return {
        'pif': compact(shape, pif=True, pool=2),
        'baseline': compact(shape, pif=False, pool=2),
    }


def measure(
    name: str, maps: np.ndarray, values: np.ndarray, number: int, seed: int
) -> dict[str, float]:
    """Train on the first subjects, test on the last :data:`TEST`."""
    from bids_app.group.classifier_linear import project, train_linear
    from bids_app.group.classifier_training import train_network
    from bids_app.group.folds import Fold, deal
    from bids_app.group.scores import class_scores

    rows = np.arange(number)
    part = deal(values[:number], rows.astype(str), 2, 5, seed)
    fold = Fold(rows[part != 0], rows[part == 0], np.arange(len(maps) - TEST, len(maps)))
    begin = time.process_time()
    if name == 'linear':
        trained = train_linear(project(maps, fold.train, outputs=1), maps, values, fold, 2)
    else:
        trained = train_network(
            'ConvClassifier3D', models(maps.shape[1:])[name], maps, values, fold.train,
            fold.validation, 2, seed=seed,
        )  # fmt: skip
    seconds = time.process_time() - begin
    found = class_scores(values[fold.test], trained.predict(maps, fold.test))
    return {
        **{key: round(value, 4) for key, value in found.items()},
        'epochs': trained.epochs,
        'best_epoch': trained.best_epoch,
        'parameters': trained.parameters,
        'cpu_seconds': round(seconds, 1),
    }


def cohorts(out: Path, sizes: list[int], repeats: int, loss: float) -> None:
    """Fill the file with what it lacks."""
    done = set()
    if out.exists():
        done = {
            (row['repeat'], row['subjects'], row['model'], row['loss'])
            for row in map(json.loads, out.read_text().splitlines())
        }
    for repeat in range(repeats):
        wanted = [
            (number, name)
            for number in sizes
            for name in ('pif', 'baseline', 'linear')
            if (repeat, number, name, loss) not in done
        ]
        if not wanted:
            continue
        # One cohort for each repeat: smaller samples are its first subjects, the last are tested.
        maps, values = simulate(800 + TEST, 1000 + repeat, loss)
        for number, name in wanted:
            row = {
                'repeat': repeat,
                'subjects': number,
                'model': name,
                'loss': loss,
                **measure(name, maps, values, number, repeat),
            }
            with out.open('a') as stream:
                stream.write(json.dumps(row) + '\n')
            print(json.dumps(row), flush=True)


def table(path: Path) -> None:
    """Print Markdown tables: mean and standard deviation over repeats, and paired differences."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    titles = {'pif': 'PIF', 'baseline': 'baseline', 'linear': 'linear'}
    print('| subjects | model | repeats | balanced accuracy % | AUC | epochs to stop | CPU s |')
    print('|---|---|---|---|---|---|---|')
    for number in sorted({row['subjects'] for row in rows}):
        for name, title in titles.items():
            some = [row for row in rows if (row['subjects'], row['model']) == (number, name)]
            if not some:
                continue

            def mean(key: str, factor: float = 1, digits: int = 1, some: list = some) -> str:
                values = [row[key] * factor for row in some]
                shown = f'{statistics.fmean(values):.{digits}f}'
                if len(values) > 1:
                    shown += f' ± {statistics.stdev(values):.{digits}f}'
                return shown

            epochs = '-' if name == 'linear' else mean('epochs')
            print(
                f'| {number} | {title} | {len(some)} | {mean("balanced_accuracy", 100)} | '
                f'{mean("auc", 1, 3)} | {epochs} | {mean("cpu_seconds")} |'
            )
    print('\n| subjects | repeats | PIF minus baseline | PIF ahead | minus linear | ahead |')
    print('|---|---|---|---|---|---|')
    for number in sorted({row['subjects'] for row in rows}):
        of = {
            (row['repeat'], row['model']): 100 * row['balanced_accuracy']
            for row in rows
            if row['subjects'] == number
        }
        repeats = sorted({repeat for repeat, _ in of})
        cells = []
        for rival in ('baseline', 'linear'):
            pairs = [(of.get((r, 'pif')), of.get((r, rival))) for r in repeats]
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            spread = f' ± {statistics.stdev(gaps):.1f}' if len(gaps) > 1 else ''
            cells += [f'{statistics.fmean(gaps):+.1f}{spread}', str(sum(gap > 0 for gap in gaps))]
        print(f'| {number} | {len(repeats)} | {" | ".join(cells)} |')


def loop(layer, x):
    """Apply a layer as the published code does: a scan at a time, a patch at a time."""
    import torch
    import torch.nn.functional as F

    p = layer.patch
    x = F.pad(x, (0, layer.pad[2], 0, layer.pad[1], 0, layer.pad[0]))
    weight = layer.filters.weight.unflatten(0, (-1, layer.out_channels))
    bias = layer.filters.bias.unflatten(0, (-1, layer.out_channels))
    scans = []
    for scan in x:
        patches, number = [], 0
        for (x0, a), (y0, b), (z0, c) in layer.sets:
            for i, j, k in np.ndindex(a, b, c):
                u, v, w = x0 + i * p, y0 + j * p, z0 + k * p
                cut = scan[None, :, u : u + p, v : v + p, w : w + p]
                patches.append(F.conv3d(cut, weight[number], bias[number])[0])
                number += 1
        scans.append(torch.stack(patches))
    return torch.stack(scans)


def speed(batch: int, repeats: int, threads: int) -> None:
    """Time the layers of the published networks, and of the one that the app trains."""
    import torch

    torch.set_num_threads(threads)

    from bids_app.networks.pif import PatchIndividualFilters3D

    cases = {
        'ADNI 2021 A': (64, 3, (10, 13, 10), 'duplicate'),
        'UKB 2021 A': (64, 6, (15, 19, 15), 'duplicate'),
        'UKB 2019': (64, 8, (15, 19, 15), 'none'),
        'compact, 3 mm': (32, 3, (11, 15, 12), 'half'),
        'on the maps themselves, 48x60x50': (1, 4, (48, 60, 50), 'none'),
    }

    def forward(function: Callable, x: torch.Tensor) -> None:
        with torch.inference_mode():
            function(x)

    def train(function: Callable, x: torch.Tensor) -> None:
        function(x).square().mean().backward()

    def best(*functions: Callable[[], object]) -> list[float]:
        """Return the shortest time of each, ms; taken in turns, as other programs come and go."""
        seconds: list[list[float]] = [[] for _ in functions]
        for turn in range(repeats + 1):
            for function, found in zip(functions, seconds, strict=True):
                begin = time.perf_counter()
                function()
                if turn:
                    found.append(time.perf_counter() - begin)
        return [min(found) * 1e3 for found in seconds]

    print(f'{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, '
          f'batch {batch}, best of {repeats}')  # fmt: skip
    print('| layer | patches | loop ms | grouped ms | factor | trained: loop | grouped | factor |')
    print('|---|---|---|---|---|---|---|---|')
    for name, (channels, filters, shape, overlap) in cases.items():
        layer = PatchIndividualFilters3D(channels, filters, shape, overlap=overlap)
        x = torch.randn(batch, channels, *shape, requires_grad=True)
        error = float((layer(x) - loop(layer, x)).detach().abs().max())
        assert error < 1e-5, error

        cells = []
        for step in (forward, train):
            slow, fast = best(partial(step, partial(loop, layer), x), partial(step, layer, x))
            cells += [f'{slow:.1f}', f'{fast:.1f}', f'{slow / fast:.1f}']
        print(f'| {name} | {sum(layer.patches)} | {" | ".join(cells)} |', flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    timed = commands.add_parser('speed')
    timed.add_argument('--batch', type=int, default=4)
    timed.add_argument('--repeats', type=int, default=5)
    timed.add_argument('--threads', type=int, default=1)
    made = commands.add_parser('cohorts')
    made.add_argument('--out', type=Path, required=True)
    made.add_argument('--sizes', type=int, nargs='+', default=[40, 80, 160, 320, 800])
    made.add_argument('--repeats', type=int, default=10)
    made.add_argument('--loss', type=float, default=0.3)
    shown = commands.add_parser('table')
    shown.add_argument('file', type=Path)
    arguments = parser.parse_args()
    if arguments.command == 'speed':
        speed(arguments.batch, arguments.repeats, arguments.threads)
    elif arguments.command == 'cohorts':
        cohorts(arguments.out, arguments.sizes, arguments.repeats, arguments.loss)
    else:
        table(arguments.file)


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    main()
