# SPDX-License-Identifier: Apache-2.0
"""``python -m bids_app.training RECIPE --data DIR``: train the networks of a model folder."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from bids_app.errors import AnatNetError, UsageError


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser of ``python -m bids_app.training``."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_app.training',
        description='Train the networks of a model folder by its recipe. A run that was stopped '
        'goes on where it was.',
    )
    parser.add_argument('recipe', type=Path, help='recipe.toml of a model folder')
    parser.add_argument(
        '--data', type=Path, required=True, nargs='+', metavar='DIR',
        help='folders of label maps (for registration also AnatNet derivatives; for tissue-scans '
        'the data set)',
    )  # fmt: skip
    parser.add_argument(
        '--out', type=Path, help='folder for checkpoints and logs (default: beside the recipe)'
    )
    parser.add_argument('--stage', action='append', help='train only this stage (repeatable)')
    parser.add_argument('--steps', type=int, help="steps per stage, instead of the recipe's")
    parser.add_argument('--minutes', type=float, help='stop each stage after so many minutes')
    parser.add_argument('--threads', type=int, help='CPU threads')
    parser.add_argument(
        '--workers', type=int, default=0, help='processes that draw samples ahead (default: 0)'
    )
    parser.add_argument('--device', default='cpu', help='torch device (default: cpu)')
    parser.add_argument(
        '--init', type=Path, help='start from these weights (a weights.safetensors file)'
    )
    parser.add_argument(
        '--export-only', action='store_true', help='write card and weights from the checkpoints'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    try:
        _train(options)
    except AnatNetError as error:
        print(f'anatnet: error: {error}', file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print('stopped: the same command goes on from the last checkpoint', file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace) -> None:
    import torch

    from bids_app.inference.models import load_weights
    from bids_app.training.export import export_model
    from bids_app.training.loop import load_coarse
    from bids_app.training.recipe import read_recipe

    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = read_recipe(options.recipe)
    model_folder = options.recipe.parent
    out = options.out or model_folder / 'checkpoints'
    stages = options.stage or list(recipe.stages)
    for name in stages:
        if name not in recipe.stages:
            raise UsageError(f'{name}: no such stage: the recipe has {", ".join(recipe.stages)}')
    if not options.export_only:
        initial = load_weights(options.init) if options.init else None
        if initial is not None and (missing := [name for name in stages if name not in initial]):
            raise UsageError(
                f'{options.init}: has weights for {", ".join(initial) or "nothing"}, not for '
                f'{missing[0]}: give those of the same model, or choose with --stage'
            )
        files = find_files(options.data, recipe.data['pattern'])
        apart = set(recipe.data['validation'])
        load, trainer_class = _task(recipe.data, out)
        # Some data sets have a folder for each subject, and the same file names in all.
        held_out = [file for file in files if {file.name, file.parent.name} & apart]
        # What a recipe keeps for tests is neither trained on nor chosen by.
        tests = set(recipe.data.get('test', []))
        tested = [file for file in files if {file.name, file.parent.name} & tests]
        train = load([file for file in files if file not in held_out and file not in tested])
        validation = load(held_out)
        for name in stages:
            coarse = None
            if name != 'coarse' and 'coarse' in recipe.stages:
                coarse = load_coarse(recipe.stages['coarse'], out / 'coarse' / 'best.pt')
            trainer = trainer_class(
                recipe.stages[name],
                train,
                validation,
                out / name,
                seed=recipe.seed,
                device=options.device,
                initial=initial[name] if initial else None,
                coarse=coarse,
                workers=options.workers,
            )
            trainer.run(options.steps, options.minutes)
    if all((out / name / 'best.pt').exists() for name in recipe.stages):
        export_model(recipe, model_folder, out)


def find_files(folders: list[Path], patterns: str | list[str]) -> list[Path]:
    """Return the files of some folders that match any of the patterns, in a fixed order."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return [
        file for pattern in patterns for folder in folders for file in sorted(folder.glob(pattern))
    ]


def _task(data: dict[str, Any], out: Path) -> tuple[Any, Any]:
    """Return what reads the data of a recipe's task, and its trainer."""
    name = data.get('task', 'segmentation')
    if name == 'segmentation':
        from bids_app.training.label_maps import load_label_maps
        from bids_app.training.loop import Trainer

        return load_label_maps, Trainer
    if name == 'registration':
        from bids_app.training.heads import load_heads
        from bids_app.training.registration import RegistrationTrainer

        return load_heads, RegistrationTrainer
    if name == 'tissue':
        from functools import partial

        from bids_app.training.label_maps import load_label_maps
        from bids_app.training.tissue import TissueTrainer

        return load_label_maps, partial(TissueTrainer, contrasts=data['contrasts'])
    if name == 'tissue-scans':
        from functools import partial

        from bids_app.training.scan_training import ScanTrainer
        from bids_app.training.scans import load_scans

        contrasts, classes = data['contrasts'], data.get('classes', 4)
        least = data.get('least_labelled', 0.1)
        return (
            partial(
                load_scans, layout=data.get('layout', ''), contrasts=contrasts, classes=classes
            ),
            partial(ScanTrainer, contrasts=contrasts, least=least),
        )
    if name == 'synthesis':
        from bids_app.training.deepanat_samples import load_anatomies

        if 'adversarial' in data:
            from functools import partial

            from bids_app.training.deepanat_gan import AdversarialTrainer, Adversary

            adversary = Adversary(**data['adversarial'])
            return load_anatomies, partial(AdversarialTrainer, adversary=adversary)
        from bids_app.training.deepanat import SynthesisTrainer

        return load_anatomies, SynthesisTrainer
    if name == 'deepnat':
        from functools import partial

        from bids_app.training.deepnat import DeepNATTrainer
        from bids_app.training.deepnat_scans import load_prepared

        return (
            partial(
                load_prepared, cache=out / 'prepared', replace=data['replace'],
                numbers=data['numbers'],
            ),
            partial(
                DeepNATTrainer, kinds=data['coordinates'], sampling=data.get('sampling', {})
            ),
        )  # fmt: skip
    raise UsageError(
        f'the recipe has an unknown task "{name}": segmentation, registration, tissue, '
        'tissue-scans, deepnat or synthesis'
    )


if __name__ == '__main__':
    sys.exit(main())
