# SPDX-License-Identifier: Apache-2.0
"""The methods text of a run, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.outputs import SYNTHESIZED
from bids_app.bids.spaces import atlas_parts, output_spaces
from bids_app.config import RunConfig


def run_methods(
    config: RunConfig,
    models: Sequence[Mapping[str, Any]],
    precomputed: Sequence[str] = (),
    *,
    references: Sequence[str] = ('T1w',),
    contrasts: Sequence[str] = (),
) -> str:
    """Word the methods of a run as Markdown.

    Parameters
    ----------
    config : RunConfig
        The options.
    models : sequence of mapping
        ``name``, ``version`` and ``sha256`` of the models.
    precomputed : sequence of str
        What was taken from other pipelines, in words.
    references : sequence of str
        Contrasts of the images that were processed, ``T1w`` nearly always.
    contrasts : sequence of str
        Contrasts that were registered to them.
    """
    from bids_app.inference.classifier import read_task
    from bids_app.inference.models import load_card
    from bids_app.morphometry.regions import atlas_label
    from bids_app.reports.methods import methods_text

    spaces = output_spaces(config.output_spaces, config.voxel_size)
    sizes = sorted({size for space in spaces for size in space.voxel_sizes})
    classifiers = []
    for folder in map(Path, config.classifier):
        card = load_card(folder)
        grid, target = read_task(card, folder)
        classifiers.append({'name': card.name, 'target': target, 'map': grid.words})
    return methods_text(
        __version__,
        models,
        config.modules,
        sloppy=config.sloppy,
        low_mem=config.low_mem,
        registration=config.registration,
        spaces=[space.space for space in spaces],
        voxel_sizes=sizes,
        fwhm=config.smooth_fwhm,
        atlases=[atlas_label(atlas_parts(text)[0]) for text in config.atlas],
        classifiers=classifiers,
        precomputed=precomputed,
        references=references,
        contrasts=contrasts,
        tissue_model=_tissue_model(config),
        correct_lesions=config.correct_lesions,
        dwi=_dwi(config, references),
        deepnat=config.segmentation == 'deepnat',
        crf=config.crf,
        mirror=config.deepnat_mirror,
    )


def _dwi(config: RunConfig, references: Sequence[str]) -> dict[str, str] | None:
    """Say how diffusion images are processed; None if they are not."""
    if 'dwi' not in config.modules and SYNTHESIZED not in references:
        return None
    return {
        'synth_model': Path(config.synth_model).name,
        'motion': config.dwi_motion,
        'denoise': config.dwi_denoise,
    }


def _tissue_model(config: RunConfig) -> str:
    """Return ``none``, ``auto`` or the name of the tissue model."""
    if config.tissue_model in ('none', 'auto'):
        return config.tissue_model
    return Path(config.tissue_model).name
