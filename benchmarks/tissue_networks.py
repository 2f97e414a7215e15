# SPDX-License-Identifier: Apache-2.0
"""All tissue networks, trained for the same short budget on the same synthetic images.

``python benchmarks/tissue_networks.py run --maps DIR --out FILE`` trains each network for one,
two and three contrasts, scores it on crops of label maps that are kept apart, and appends one
line of JSON for each to FILE. It goes on where it was when it is called again.
``python benchmarks/tissue_networks.py table FILE`` prints the table.

All networks of a number of contrasts see the same crops in the same order, with the same
optimiser and loss. Their dropout is off unless ``--published-dropout`` is given: a short training
does not get far with it. Dice is hard, over all crops together, without background. Seconds and
memory for a volume are those of one crop in one piece times the ratio of the voxels, for a brain
of 144 x 176 x 144 voxels; in tiles it takes longer and less memory. Memory is what comes on top of
what the process held before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONTRASTS = ('T1w', 'T2w', 'FLAIR')
VOLUME = (144, 176, 144)
VALIDATION = ('training_seg_05.nii.gz', 'training_seg_13.nii.gz')
NETWORKS: dict[str, tuple[int, ...]] = {
    'ContextUNet3D': (1, 2, 3),
    'VNetLight': (1, 2, 3),
    'VNet': (1, 2, 3),
    'DenseNet3D': (1, 2, 3),
    'EarlyFusionDenseNet3D': (2, 3),
    'LateFusionDenseNet3D': (2, 3),
    'HyperDenseNet3D': (2, 3),
}
"""Numbers of contrasts of each; with one, fusion is the same as a single stream."""


def arguments_of(network: str, contrasts: int, published_dropout: bool) -> dict[str, Any]:
    """Return the arguments of a network that tells four classes apart."""
    arguments: dict[str, Any] = {'in_channels': contrasts, 'out_channels': 4}
    if published_dropout or network == 'HyperDenseNet3D':
        return arguments
    if network.endswith('DenseNet3D'):
        arguments['head_dropout'] = 0.0
    return {**arguments, 'dropout': 0.0}


def make_stage(options: argparse.Namespace) -> Any:
    """Return how a network is trained."""
    from bids_app.training.recipe import StageRecipe
    from bids_app.training.synthesis import Ranges

    ranges = Ranges(rotation=15.0, bias=0.15, noise=0.05, gamma=0.15, low_resolution=0.2)
    return StageRecipe(
        network=options.network,
        arguments=arguments_of(options.network, options.contrasts, options.published_dropout),
        shape=(options.crop,) * 3, spacing=1.0, draws=2, steps=options.steps, batch=1,
        learning_rate=options.learning_rate, weight_decay=1e-4, warmup=min(20, options.steps),
        decay=0.5, average=0.98, validate_every=options.steps + 1, ranges=ranges,
        late_ranges=ranges, optimizer=options.optimizer, momentum=0.9, loss=options.loss,
    )  # fmt: skip


def load_maps(folder: Path, apart: bool) -> Any:
    """Return the label maps to train on, or those that are kept apart."""
    from bids_app.training.label_maps import load_label_maps

    files = sorted(folder.glob('training_seg_*.nii.gz'))
    return load_label_maps([file for file in files if (file.name in VALIDATION) == apart])


class PeakMemory:
    """The most memory that is used inside a ``with`` block over what was used before it, MB.

    Of the GPU where there is one, else of this process.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.megabytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.startswith('cuda'):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            Path('/proc/self/clear_refs').write_text('5')  # Linux: forget the peak so far
            self.before = self._status('VmRSS')
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.startswith('cuda'):
            import torch

            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = self._status('VmHWM')
        self.megabytes = round((peak - self.before) / 1e6)

    @staticmethod
    def _status(name: str) -> int:
        """Return an entry of /proc/self/status in bytes."""
        for line in Path('/proc/self/status').read_text('utf-8').splitlines():
            key, _, value = line.partition(':')
            if key == name:
                return 1024 * int(value.split()[0])
        raise KeyError(name)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and keep its last averaged weights."""
    import torch

    from bids_app.training.tissue import TissueTrainer

    trainer = TissueTrainer(
        make_stage(options), load_maps(options.maps, apart=False), None, options.folder,
        seed=1, device=options.device, validator=lambda network: {'score': 0.0},
        contrasts=CONTRASTS[: options.contrasts],
    )  # fmt: skip
    before, started = trainer.step, time.monotonic()
    with PeakMemory(options.device) as peak:
        trainer.run(options.steps, options.minutes)
    seconds = time.monotonic() - started
    torch.save(trainer.average.state_dict(), options.folder / 'last.pt')
    return {
        'steps': trainer.step,
        'seconds_per_step': round(seconds / max(1, trainer.step - before), 3),
        'train_peak_mb': peak.megabytes,
    }


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Score a trained network on crops of the maps that are kept apart."""
    import torch

    from bids_app.inference.tissue import predict_tissue
    from bids_app.networks import build_network
    from bids_app.networks.pif import parameter_count
    from bids_app.training.overlap import class_overlaps
    from bids_app.training.tissue import TISSUES, TissueSampler

    stage = make_stage(options)
    network = build_network(stage.network, stage.arguments).eval()
    network.load_state_dict(torch.load(options.folder / 'last.pt', weights_only=True))
    sampler = TissueSampler(
        load_maps(options.maps, apart=True), stage.ranges, (options.test_crop,) * 3, 1.0, 2,
        12345, CONTRASTS[: options.contrasts], target_draws=16,
    )  # fmt: skip
    overlap, size = torch.zeros(len(TISSUES)), torch.zeros(len(TISSUES))
    samples = [sampler.draw() for _ in range(options.test_crops)]
    settings = {'classes': len(TISSUES), 'device': options.device}
    predict_tissue(samples[0].image, network, shape=stage.shape, **settings)  # warm up
    # In one piece: how much tiles overlap depends on their size, not on the network.
    with PeakMemory(options.device) as peak:
        started = time.monotonic()
        predict_tissue(samples[0].image, network, shape=(options.test_crop,) * 3, **settings)
        seconds = time.monotonic() - started
    for sample in samples:
        probabilities, used = predict_tissue(sample.image, network, shape=stage.shape, **settings)
        found = probabilities.argmax(dim=0)
        both, voxels = class_overlaps(found, sample.target.argmax(dim=0), len(TISSUES))
        overlap, size = overlap + both, size + voxels
    dice = (2 * overlap / size.clamp_min(1))[1:].tolist()
    volume = VOLUME[0] * VOLUME[1] * VOLUME[2]
    return {
        **{f'dice_{name}': round(d, 4) for name, d in zip(TISSUES[1:], dice, strict=True)},
        'dice_mean': round(sum(dice) / len(dice), 4),
        'parameters': parameter_count(network),
        'seconds_per_crop': round(seconds, 3),
        'seconds_per_volume_scaled': round(seconds / options.test_crop**3 * volume, 1),
        'predict_peak_mb_scaled': round(peak.megabytes / options.test_crop**3 * volume),
        'precision': used['precision'],
    }


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells the rows of a file apart."""
    return row['network'], row['contrasts'], json.dumps(row['settings'], sort_keys=True)


def run(options: argparse.Namespace) -> None:
    """Train and score all networks that the file does not hold yet, a process for each step."""
    import torch

    names = (
        'steps', 'minutes', 'crop', 'learning_rate', 'optimizer', 'loss', 'published_dropout',
        'test_crop', 'test_crops', 'device',
    )  # fmt: skip
    settings = {name: getattr(options, name) for name in names}
    lines = options.out.read_text('utf-8').splitlines() if options.out.exists() else []
    done = {key_of(json.loads(line)) for line in lines}
    for network in options.networks:
        for contrasts in NETWORKS[network]:
            row = {'network': network, 'contrasts': contrasts, 'settings': settings}
            if contrasts not in options.count or key_of(row) in done:
                continue
            # Another budget is another training: it must not go on with these weights.
            code = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
            folder = options.work / f'{network}-{contrasts}-{code}'
            folder.mkdir(parents=True, exist_ok=True)
            for step in ('train', 'score'):
                command = [sys.executable, __file__, step, '--maps', str(options.maps)]
                command += ['--folder', str(folder), '--network', network]
                command += ['--contrasts', str(contrasts)]
                for name, value in settings.items():
                    flag = f'--{name.replace("_", "-")}'
                    if value is True:
                        command.append(flag)
                    elif value is not None and value is not False:
                        command += [flag, str(value)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                row |= json.loads(output.splitlines()[-1])
            row |= {
                'threads': torch.get_num_threads(),
                'machine': platform.machine(),
                'torch': torch.__version__,
            }
            with options.out.open('a', encoding='utf-8') as stream:
                stream.write(json.dumps(row) + '\n')
            print(json.dumps(row), flush=True)


def table(options: argparse.Namespace) -> None:
    """Print the rows of a file as a Markdown table."""
    print(
        '| network | contrasts | parameters | steps | CSF | GM | WM | mean | '
        's per step | s per volume | peak MB (train / volume) |'
    )
    print('|---|---|---|---|---|---|---|---|---|---|---|')
    rows = [json.loads(line) for line in options.file.read_text('utf-8').splitlines()]
    for row in sorted(rows, key=lambda row: (row['contrasts'], -row['dice_mean'])):
        dice = ' | '.join(
            f'{row[name]:.3f}' for name in ('dice_csf', 'dice_gm', 'dice_wm', 'dice_mean')
        )
        print(
            f'| {row["network"]} | {row["contrasts"]} | {row["parameters"]:,} | {row["steps"]} | '
            f'{dice} | {row["seconds_per_step"]} | {row["seconds_per_volume_scaled"]} | '
            f'{row["train_peak_mb"]} / {row["predict_peak_mb_scaled"]} |'
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    for name in ('run', 'train', 'score'):
        command = commands.add_parser(name)
        command.add_argument('--maps', type=Path, required=True, help='folder of label maps')
        command.add_argument('--steps', type=int, default=150)
        command.add_argument('--minutes', type=float, help='stop each training after so long')
        command.add_argument('--crop', type=int, default=32, help='voxels of a training crop')
        command.add_argument('--learning-rate', type=float, default=2e-3)
        command.add_argument('--optimizer', default='adamw', choices=('adamw', 'sgd'))
        command.add_argument('--loss', default='dice-ce')
        command.add_argument('--published-dropout', action='store_true')
        command.add_argument('--test-crop', type=int, default=64)
        command.add_argument('--test-crops', type=int, default=4)
        command.add_argument('--device', default='cpu')
        if name == 'run':
            command.add_argument('--out', type=Path, required=True)
            command.add_argument('--work', type=Path, default=Path('tissue_networks'))
            command.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
            command.add_argument('--count', nargs='+', type=int, default=[1, 2, 3])
        else:  # what `run` calls
            command.add_argument('--folder', type=Path, required=True)
            command.add_argument('--network', choices=NETWORKS, required=True)
            command.add_argument('--contrasts', type=int, required=True)
    commands.add_parser('table').add_argument('file', type=Path)
    options = parser.parse_args()
    if options.command == 'run':
        run(options)
    elif options.command == 'table':
        table(options)
    else:
        import torch

        if os.environ.get('OMP_NUM_THREADS'):
            torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
        print(json.dumps({'train': train, 'score': score}[options.command](options)))


if __name__ == '__main__':
    main()
