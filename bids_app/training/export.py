# SPDX-License-Identifier: Apache-2.0
"""Write a model folder from the checkpoints of a training run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from bids_app.inference.classes import CLASSES
from bids_app.networks import build_network
from bids_app.networks.pif import parameter_count
from bids_app.training.recipe import Recipe


def export_model(recipe: Recipe, folder: Path, checkpoints: Path) -> Path:
    """Write ``weights.safetensors`` (half precision), ``card.json`` and the training curve.

    Scores that an earlier card held (``validation``) are kept only if the weights are the same.

    Parameters
    ----------
    recipe : Recipe
        The recipe that was trained.
    folder : pathlib.Path
        The model folder.
    checkpoints : pathlib.Path
        Has ``<stage>/best.pt`` for every stage.

    Returns
    -------
    pathlib.Path
        The card.
    """
    from safetensors.torch import save

    tensors, trained = {}, {}
    for name in recipe.stages:
        state = torch.load(checkpoints / name / 'best.pt', map_location='cpu', weights_only=True)
        trained[name] = state['step']
        for key, value in state['network'].items():
            # Counters of batch normalisation stay whole numbers.
            value = value.half() if value.is_floating_point() else value
            tensors[f'{name}.{key}'] = value.contiguous()
    content = save(tensors)
    _replace(folder / 'weights.safetensors', content)
    digest = hashlib.sha256(content).hexdigest()
    path = folder / 'card.json'
    old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    card = {
        'name': recipe.name,
        'version': recipe.version,
        'description': recipe.description,
        'licence': recipe.licence,
        'sha256': digest,
        **_outputs(recipe),
        'stages': {
            name: {
                'network': stage.network,
                'arguments': stage.arguments,
                'spacing': stage.spacing,
                'shape': list(stage.shape),
                'steps': trained[name],
                'parameters': parameter_count(build_network(stage.network, stage.arguments)),
            }
            for name, stage in recipe.stages.items()
        },
        'training_data': recipe.data,
        **recipe.card,
    }
    if old.get('sha256') == digest and 'validation' in old:
        card['validation'] = old['validation']
    _replace(path, (json.dumps(card, indent=2) + '\n').encode())
    plot_curve(recipe, checkpoints, folder / 'curve.png')
    return path


def _outputs(recipe: Recipe) -> dict[str, Any]:
    """What the networks of a task take and predict; other tasks say so in their recipes."""
    task = recipe.data.get('task', 'segmentation')
    if task.startswith('tissue'):
        from bids_app.training.scans import find_layout
        from bids_app.training.tissue import TISSUES

        synthetic = task == 'tissue'
        count = recipe.stages['tissue'].arguments['out_channels']
        classes = (*TISSUES, 'lesion')[:count]
        if not synthetic:
            classes, _ = find_layout(recipe.data['layout'], count).classes[count]
        return {
            'task': 'tissue' if classes[: len(TISSUES)] == TISSUES else 'structures',
            'contrasts': recipe.data['contrasts'],
            'missing_contrasts': synthetic
            and any(s.ranges.missing > 0 for s in recipe.stages.values()),
            'classes': list(classes),
        }
    if task == 'deepnat':
        from bids_app.inference.deepnat_classes import CLASSES as STRUCTURES
        from bids_app.training.deepnat import FOREGROUND_CLASSES

        count = next(iter(recipe.stages.values())).arguments['outputs']
        foreground = count == len(FOREGROUND_CLASSES)
        return {
            'task': 'deepnat',
            'classes': list(FOREGROUND_CLASSES if foreground else STRUCTURES),
            'outputs': 'logits of the classes for each task: the centre of the patch and its '
            'neighbours at -x, +x, -y, +y, -z, +z, 1 mm',
        }
    if task == 'synthesis':
        from bids_app.diffusion.channels import CHANNELS

        return {'task': task, 'channels': list(CHANNELS)}
    if task != 'segmentation':
        return {}
    return {
        'classes': list(CLASSES),
        'outputs': 'logits of the classes, then the logit of "right side"',
    }


def plot_curve(recipe: Recipe, checkpoints: Path, out_file: Path) -> None:
    """Draw loss and validation score of every stage over the steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(recipe.stages), 3.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(recipe.stages), squeeze=False)[0]
    for axis, name in zip(axes, recipe.stages, strict=True):
        log = checkpoints / name / 'log.jsonl'
        if not log.exists():  # weights that were taken over from an earlier training
            axis.set(title=f'{name}: no log', xticks=[], yticks=[])
            continue
        entries = [json.loads(line) for line in log.read_text('utf-8').splitlines()]
        losses = [(entry['step'], entry['loss']) for entry in entries if 'loss' in entry]
        scores = [(e['step'], e['validation']['score']) for e in entries if 'validation' in e]
        if losses:
            axis.plot(*zip(*losses, strict=True), color='tab:blue', label='loss (running mean)')
        if scores:
            axis.plot(
                *zip(*scores, strict=True),
                color='tab:orange',
                marker='o',
                label='validation score',
            )
        axis.set(title=name, xlabel='step', ylim=(0, 2))
        axis.grid(alpha=0.3)
        axis.legend()
    temporary = out_file.with_name(f'.{os.getpid()}.{out_file.name}')
    figure.savefig(temporary, dpi=80)
    os.replace(temporary, out_file)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_bytes(content)
    os.replace(temporary, path)
