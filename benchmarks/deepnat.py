# SPDX-License-Identifier: Apache-2.0
"""DeepNAT: how fast it runs densely, how well it segments, and what its parts are worth.

``speed``      seconds of a whole brain, and against whole patches one by one
``evaluate``   Dice of each structure on named scans, with and without the random field
``ablations``  short trainings of equal length with other coordinates or one task
``table``      what ``evaluate`` and ``ablations`` wrote, as Markdown

All take the scans of MICCAI 2012 from ``--data`` (``sub-1000_T1w.nii.gz`` with
``sub-1000_labels.nii.gz``; ``--labels``, ``--replace`` and ``--numbers`` name others) and append
lines of JSON to ``--out``. ``evaluate`` and ``ablations`` leave out what the file holds already.
Scans are prepared as the app does (conformed, brain mask of the default model, N4, coordinates)
and kept in ``--cache``.

Dice is hard, on all voxels of the grid: vermis, ventral DC and the other structures that are none
of the 25 are one more class, and a voxel of them that gets a structure counts against it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[1] / 'models' / 'deepnat-structures-miccai2012' / 'recipe.toml'

VARIANTS: dict[str, tuple[tuple[str, ...], int]] = {
    'both, 7 tasks': (('cartesian', 'spectral'), 7),
    'cartesian, 7 tasks': (('cartesian',), 7),
    'spectral, 7 tasks': (('spectral',), 7),
    'none, 7 tasks': ((), 7),
    'both, 1 task': (('cartesian', 'spectral'), 1),
}
"""Coordinates and number of tasks of the ablations."""


BATCH = 64
"""Patches at a time where they are evaluated one by one."""


def load(options: argparse.Namespace, names: list[str]) -> list[Any]:
    """Return prepared scans by their names (``sub-1000``)."""
    from bids_app.training.deepnat_scans import load_prepared

    files = [options.data / options.labels.format(scan=name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SystemExit(f'{options.data}: no {", ".join(missing)}')
    return load_prepared(files, options.cache, options.replace, options.numbers)


def load_stages(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return both networks from their model folders."""
    from bids_app.inference.deepnat_segment import (
        FOREGROUND_MODEL,
        STRUCTURES_MODEL,
        load_stage,
    )
    from bids_app.inference.models import find_model

    how = {'device': options.device, 'precision': options.precision, 'parities': options.parities}
    return (
        load_stage(find_model(options.foreground or FOREGROUND_MODEL), 2, **how),
        load_stage(find_model(options.structures or STRUCTURES_MODEL), 27, **how),
    )


def brain_box(scan: Any) -> tuple[slice, ...]:
    """Return the box of the mask and all labels: the margin for training crops is not needed."""
    from bids_app.images.masks import bounding_box

    return bounding_box((scan.wide | (scan.classes > 0)).numpy(), 1)


def machine() -> dict[str, Any]:
    """Return what a time depends on."""
    import torch

    return {
        'threads': torch.get_num_threads(), 'torch': torch.__version__,
        'machine': platform.machine(), 'load': round(os.getloadavg()[0], 1),
    }  # fmt: skip


class Clock:
    """Seconds on the wall and of the processors since its making."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            'seconds': round(time.monotonic() - self.wall, 2),
            'cpu_seconds': round(time.process_time() - self.cpu, 2),
        }


def append(path: Path, row: dict[str, Any]) -> None:
    """Write one line and show it."""
    with path.open('a', encoding='utf-8') as stream:
        stream.write(json.dumps(row) + '\n')
    print(json.dumps(row), flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, or none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def speed(options: argparse.Namespace) -> None:
    """Time a whole brain by the app's functions, and patches one by one."""
    import numpy as np
    import torch

    from bids_app.images.grids import conform_grid
    from bids_app.images.masks import bounding_box
    from bids_app.images.resample import resample_separable
    from bids_app.images.scans import load_scan
    from bids_app.inference.brain import load_predictors, locate
    from bids_app.inference.coordinates import brain_coordinates
    from bids_app.inference.crf import dense_crf
    from bids_app.inference.deepnat_input import brain_image
    from bids_app.inference.deepnat_segment import segment_prepared
    from bids_app.inference.models import find_model

    foreground, structures = load_stages(options)
    labels = options.data / options.labels.format(scan=options.scan)
    scan = load_scan(labels.with_name(labels.name.replace(*options.replace)))
    shape, affine = conform_grid(scan.shape, scan.affine)
    data = resample_separable(scan.data, scan.affine, shape, affine, outside='edge')
    brain = find_model('brain')
    coarse = locate(torch.from_numpy(data.astype(np.float32)), brain, load_predictors(brain))
    mask = (coarse.brain_probability(shape) > 0.5).numpy()
    times = {}
    whole = Clock()
    clock = Clock()
    image, wide = brain_image(data, affine, mask)
    coordinates = torch.from_numpy(brain_coordinates(mask, affine))
    box = bounding_box(wide.numpy(), 1)
    image, wide, coordinates = image[box], wide[box], coordinates[(slice(None), *box)]
    times['coordinates'] = clock.read()
    clock = Clock()
    classes, inside = segment_prepared(image, wide, coordinates, foreground, structures)
    times['networks'] = clock.read()
    clock = Clock()
    dense_crf(classes, image, inside)
    times['crf'] = clock.read()
    times['whole_brain'] = whole.read()
    # Both networks, as they are used: the first on the mask and its rim, the second inside.
    one_by_one = {'seconds': 0.0, 'cpu_seconds': 0.0}
    differences = []
    for stage, where in ((foreground, wide), (structures, inside)):
        taken, difference = patch_wise(stage, image, coordinates, where, options.patches)
        for key in one_by_one:
            one_by_one[key] += taken[key] * int(where.sum()) / options.patches
        differences.append(difference)
    row = {
        'what': 'speed', 'scan': options.scan, 'parities': options.parities,
        'precision': structures.predictor.precision,
        'voxels': {'foreground_network': int(wide.sum()), 'structures_network': int(inside.sum())},
        'dense': times,
        'patch_wise': {
            **{key: round(value, 1) for key, value in one_by_one.items()},
            'note': f'extrapolated from {options.patches} patches of each network in batches of '
            f'{BATCH} to one patch for each voxel',
        },
        'times_faster': round(one_by_one['seconds'] / times['networks']['seconds'], 1),
        'times_faster_cpu': round(one_by_one['cpu_seconds'] / times['networks']['cpu_seconds'], 1),
        'largest_difference': max(differences),
        **machine(),
    }  # fmt: skip
    append(options.out, row)


def patch_wise(
    stage: Any, image: Any, coordinates: Any, where: Any, count: int
) -> tuple[dict[str, float], float]:
    """Time whole patches around random voxels; compare with dense evaluation of the same voxels.

    The comparison is in float32 whatever the precision of the times.
    """
    import torch
    from torch.nn import functional

    from bids_app.inference.deepnat import DensePredictor
    from bids_app.networks.deepnat import CENTRE, PATCH

    generator = torch.Generator().manual_seed(0)
    voxels = where.nonzero()
    voxels = voxels[torch.randperm(len(voxels), generator=generator)[:count]]
    around = functional.pad(image.float(), (CENTRE, PATCH - 1 - CENTRE) * 3)
    network = stage.predictor.network
    rows = coordinates[stage.rows].float()
    device = stage.predictor.device

    def evaluate(some: Any, mixed: bool) -> Any:
        patches = [around[tuple(slice(int(n), int(n) + PATCH) for n in voxel)] for voxel in some]
        given = rows[(slice(None), *some.T)].T.to(device)
        kind = torch.device(device).type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=mixed):
            logits = network(torch.stack(patches)[:, None].to(device), given)
            return logits.float().softmax(dim=2).cpu()

    mixed = stage.predictor.precision == 'bfloat16'
    batch = min(count, BATCH)
    evaluate(voxels[:batch], mixed)  # warm up
    clock = Clock()
    for some in voxels.split(batch):
        evaluate(some, mixed)
    taken = clock.read()
    # Of a parity class that only one patch reaches, dense and single evaluation must agree.
    own = voxels[(voxels % 2).sum(dim=1) == 0][:16]
    exact = DensePredictor(network, device, 'float32')
    mask = torch.zeros_like(where)
    mask[tuple(own.T)] = True
    if network.tasks == 1:
        exact.parities = 8
    dense = exact.probabilities(image.float(), rows, mask)[(slice(None), *own.T)].T
    difference = float((dense - evaluate(own, mixed=False)[:, 0]).abs().max())
    return taken, difference


def score(found: Any, truth: Any) -> dict[str, Any]:
    """Return the Dice of each structure and their mean."""
    from bids_app.inference.deepnat_classes import CLASSES
    from bids_app.training.deepnat_labels import UNKNOWN
    from bids_app.training.overlap import class_overlaps

    known = truth != UNKNOWN
    both, size = class_overlaps(found[known], truth[known].long(), len(CLASSES))
    dice = (2 * both / size.clamp_min(1)).tolist()
    names = CLASSES[1:-1]
    return {
        'mean_dice': round(sum(dice[1:-1]) / len(names), 4),
        'dice': {name: round(value, 4) for name, value in zip(names, dice[1:-1], strict=True)},
        'dice_other': round(dice[-1], 4),
    }


def evaluate(options: argparse.Namespace) -> None:
    """Score scans with and without the random field."""
    import torch

    from bids_app.inference.crf import CRFParameters, dense_crf
    from bids_app.inference.deepnat_segment import (
        FOREGROUND_MODEL,
        FOREGROUND_PROBABILITY,
        STRUCTURES_MODEL,
        segment_prepared,
    )
    from bids_app.inference.models import find_model, model_checksum

    given = {name: getattr(options, name) for name in asdict(CRFParameters())}
    parameters = replace(CRFParameters(), **{k: v for k, v in given.items() if v is not None})
    foreground, structures = load_stages(options)
    weights = [
        model_checksum(find_model(name))[:12]
        for name in (
            options.foreground or FOREGROUND_MODEL,
            options.structures or STRUCTURES_MODEL,
        )
    ]
    common = {
        'what': 'evaluate', 'weights': weights, 'parities': options.parities,
        'precision': structures.predictor.precision, 'mirror': options.mirror,
        'foreground_probability': FOREGROUND_PROBABILITY,
    }  # fmt: skip
    kinds = [('none', None), ('crf', asdict(parameters))]
    done = [
        {key: row.get(key) for key in (*common, 'scan', 'refine', 'parameters')}
        for row in rows_of(options.out)
    ]
    for name in options.scans:
        wanted = [
            {**common, 'scan': name, 'refine': kind, 'parameters': values}
            for kind, values in kinds
            if kind == 'none' or not options.no_crf
        ]
        wanted = [row for row in wanted if row not in done]
        if not wanted:
            continue
        (scan,) = load(options, [name])
        box = brain_box(scan)
        code = hashlib.sha256(json.dumps([name, common]).encode()).hexdigest()[:12]
        kept = options.cache / f'posterior-{name}-{code}.pt'
        image = scan.image[box].float()
        clock = Clock()
        if kept.exists():
            classes, inside = torch.load(kept, weights_only=True)
            classes = classes.float()
        else:
            classes, inside = segment_prepared(
                image, scan.wide[box], scan.coordinates[(slice(None), *box)],
                foreground, structures, mirror=options.mirror,
            )  # fmt: skip
            if options.keep:
                torch.save((classes.half(), inside), kept)
        times = {'networks': clock.read()}
        truth = scan.classes[box]
        lost = int(((truth > 0) & ~scan.wide[box]).sum())
        for row in wanted:
            clock = Clock()
            result = classes
            if row['refine'] == 'crf':
                result = dense_crf(classes, image, inside, parameters=parameters)
                times['crf'] = clock.read()
            brain = 2 * int((inside & (truth > 0)).sum()) / int(inside.sum() + (truth > 0).sum())
            append(
                options.out,
                {
                    **row,
                    **score(result.argmax(dim=0), truth),
                    'dice_foreground': round(brain, 4),
                    'voxels_beyond_the_mask': lost,
                    'times': dict(times),
                    **machine(),
                },
            )


def ablations(options: argparse.Namespace) -> None:
    """Train each variant for the same number of steps and score it inside the true foreground."""
    import torch

    from bids_app.inference.deepnat import DensePredictor
    from bids_app.inference.deepnat_input import coordinate_rows
    from bids_app.inference.device import resolve_precision
    from bids_app.training.deepnat import DeepNATTrainer
    from bids_app.training.recipe import read_recipe

    recipe = read_recipe(RECIPE)
    (stage,) = recipe.stages.values()
    apart = {*recipe.data['validation'], *recipe.data['test']}
    files = sorted(options.data.glob(recipe.data['pattern']))
    train = [file.name.partition('_')[0] for file in files if file.name not in apart]
    settings = {'steps': options.steps, 'seed': recipe.seed, 'trained_on': len(train)}
    precision = resolve_precision(options.precision, options.device)
    done = [
        (row['variant'], row['scan']) for row in rows_of(options.out)
        if row['what'] == 'ablation' and all(row.get(k) == v for k, v in settings.items())
    ]  # fmt: skip
    scans: list[Any] = []
    for variant in options.variants:
        missing = [name for name in options.scans if (variant, name) not in done]
        if not missing:
            continue
        kinds, tasks = VARIANTS[variant]
        rows = coordinate_rows(kinds)
        arguments = {**stage.arguments, 'coordinates': len(rows), 'tasks': tasks}
        # A mean over 200 steps would lag behind in so short a training.
        average = min(stage.average, 1 - 6 / max(options.steps, 7))
        own = replace(
            stage, arguments=arguments, average=average, validate_every=options.steps + 1
        )
        code = json.dumps([variant, settings, asdict(own)], sort_keys=True, default=str)
        folder = options.work / hashlib.sha256(code.encode()).hexdigest()[:10]
        scans = scans or load(options, train)
        trainer = DeepNATTrainer(
            own, scans, scans[:1], folder, seed=recipe.seed, device=options.device,
            validator=lambda network: {'score': 0.0}, kinds=list(kinds),
            sampling=recipe.data['sampling'],
        )  # fmt: skip
        clock = Clock()
        trainer.run(options.steps)
        taken = clock.read()
        predictor = DensePredictor(
            trainer.average, options.device, precision, parities=2 if tasks > 1 else 8
        )
        for name in missing:
            (scan,) = load(options, [name])
            box = brain_box(scan)
            truth = scan.classes[box]
            given = scan.coordinates[(slice(None), *box)][rows].float() if rows else None
            clock = Clock()
            found = predictor.probabilities(scan.image[box].float(), given, truth > 0)
            append(
                options.out,
                {
                    'what': 'ablation', 'variant': variant, 'scan': name, **settings,
                    'parities': predictor.parities, **score(found.argmax(dim=0), truth),
                    'training': taken, 'inference': clock.read(), **machine(),
                },
            )  # fmt: skip
        torch.save(trainer.average.state_dict(), folder / 'last.pt')


def table(options: argparse.Namespace) -> None:
    """Print means over the scans as Markdown: one row for each variant or way of refinement."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(options.file):
        if row['what'] == 'evaluate':
            name = f'{row["refine"]}, {"+".join(row["weights"])}, parities {row["parities"]}'
            name += ', mirrored too' if row['mirror'] else ''
            if row['parameters']:
                name += ' ' + ' '.join(str(value) for value in row['parameters'].values())
        elif row['what'] == 'ablation':
            name = f'{row["variant"]}, {row["steps"]} steps'
        else:
            continue
        groups.setdefault(name, []).append(row)
    if not groups:
        raise SystemExit(f'{options.file}: neither scores nor ablations in it')
    print('| what | scans | mean Dice | least of a structure |')
    print('|---|---|---|---|')
    means = {}
    for name, rows in groups.items():
        structures = {
            key: sum(row['dice'][key] for row in rows) / len(rows) for key in rows[0]['dice']
        }
        means[name] = structures
        mean = sum(row['mean_dice'] for row in rows) / len(rows)
        worst = min(structures, key=structures.__getitem__)
        scans = ', '.join(row['scan'] for row in rows)
        print(f'| {name} | {scans} | {mean:.4f} | {worst} {structures[worst]:.3f} |')
    if options.structures:
        print('\n| structure | ' + ' | '.join(means) + ' |')
        print('|---|' + '---|' * len(means))
        for key in next(iter(means.values())):
            print(f'| {key} | ' + ' | '.join(f'{m[key]:.3f}' for m in means.values()) + ' |')


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    for name in ('speed', 'evaluate', 'ablations'):
        command = commands.add_parser(name)
        command.add_argument('--data', type=Path, required=True, help='scans and labels')
        command.add_argument('--out', type=Path, required=True, help='lines of JSON')
        command.add_argument('--cache', type=Path, default=Path('deepnat-prepared'))
        command.add_argument('--device', default='cpu')
        command.add_argument('--precision', default='auto')
        command.add_argument('--threads', type=int, help='CPU threads')
        command.add_argument(
            '--labels', default='{scan}_labels.nii.gz', help='where the labels of a scan are'
        )
        command.add_argument(
            '--replace', nargs=2, default=('_labels', '_T1w'), metavar=('OLD', 'NEW'),
            help='turns the name of a label map into that of its scan',
        )  # fmt: skip
        command.add_argument('--numbers', default='neuromorphometrics', help='of the labels')
        if name == 'ablations':
            command.add_argument('--scans', nargs='+', required=True, help='scans to score')
            command.add_argument('--steps', type=int, default=300)
            command.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS))
            command.add_argument('--work', type=Path, default=Path('deepnat-ablations'))
            continue
        command.add_argument('--foreground', help='model folder of the first network')
        command.add_argument('--structures', help='model folder of the second network')
        command.add_argument('--parities', type=int, choices=(1, 2, 8), default=2)
        if name == 'speed':
            command.add_argument('--scan', required=True, help='such as sub-1002')
            command.add_argument('--patches', type=int, default=512)
        else:
            command.add_argument('--scans', nargs='+', required=True)
            command.add_argument('--no-crf', action='store_true')
            command.add_argument(
                '--mirror', action='store_true', help='average with the mirrored brain'
            )
            command.add_argument(
                '--keep', action='store_true',
                help='keep probabilities in the cache, to try other parameters of the field',
            )  # fmt: skip
            for entry in ('smoothness_weight', 'smoothness_mm', 'appearance_weight',
                          'appearance_mm', 'appearance_brightness'):  # fmt: skip
                command.add_argument(f'--{entry.replace("_", "-")}', type=float)
            command.add_argument('--iterations', type=int)
    command = commands.add_parser('table')
    command.add_argument('file', type=Path)
    command.add_argument('--structures', action='store_true', help='each structure as well')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = make_parser().parse_args(argv)
    if options.command != 'table' and options.threads:
        import torch

        torch.set_num_threads(options.threads)
    {'speed': speed, 'evaluate': evaluate, 'ablations': ablations, 'table': table}[
        options.command
    ](options)
    return 0


if __name__ == '__main__':
    sys.exit(main())
