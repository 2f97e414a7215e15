# SPDX-License-Identifier: Apache-2.0
"""What the JSON files of diffusion derivatives say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app.interfaces.sidecars import Session, network_fields

SYNTHESIS_ROLE = 'synthesis'
"""Role of the model that synthesises a T1w among the models of a run."""

CAVEAT = (
    'Made by a network from diffusion images: detail below their resolution is a guess, and '
    'lesions or atrophy may be drawn as healthy tissue. Not for measuring atrophy in disease'
)

_TENSOR = ('dwi_fa', 'dwi_md', 'dwi_ad', 'dwi_rd', 'dwi_evals', 'dwi_colour')
_IN_ANAT = ('dwi_t1w', 'dwi_t1w_1mm', 'dwi_reference')


def of_diffusion(key: str, session: Session) -> dict[str, Any]:
    """Describe a derivative of diffusion images.

    Parameters
    ----------
    key : str
        Key of the table of derivatives that begins with ``dwi_``.
    session : Session
        Where it belongs.
    """
    series = session.steps.get('dwi_series', {})
    mapped = session.steps.get('dwi_maps', {})
    aligned = session.steps.get('dwi_regions', {})
    raw = [session.raw_uri(Path(image)) for image in series.get('images', ())]
    extra: dict[str, Any] = {'Sources': raw}
    if key in _IN_ANAT:
        extra['SpatialReference'] = session.uri('dwi_b0')
    if key.startswith('dwi_xfm'):
        extra.update(_registration(key, raw, aligned, session))
    elif key == 'dwi_reference':
        extra['Sources'] = [session.uri('preproc'), session.uri('dwi_xfm_from_reference')]
    elif key in ('dwi_dseg', 'dwi_regions'):
        extra['Sources'] = [session.uri('wholebrain_dseg')]
        if 'dwi_xfm_from_reference' in session.published:
            extra['Sources'].append(session.uri('dwi_xfm_from_reference'))
        if key == 'dwi_regions':
            extra['Sources'] += [session.uri('dwi_dseg'), *map(session.uri, _TENSOR[:4])]
    elif key.startswith('dwi_t1w'):
        extra.update(_synthesis_fields(session), Sources=raw)
    else:
        extra.update(_corrections(series))
        if key == 'dwi_mask':
            extra.update(network_fields(session.models.get('segmentation', {}), mapped))
        if key in _TENSOR:
            extra['Fit'] = 'weighted linear least squares'
            extra['MaximumBvalue'] = mapped.get('tensor_bmax')
            extra['WeightedVolumes'] = mapped.get('tensor_volumes')
    if mapped.get('notes'):
        extra['Notes'] = list(mapped['notes'])
    return extra


def of_synthesis(session: Session) -> dict[str, Any]:
    """Describe the reference of a session whose T1w was synthesised."""
    series = session.steps.get('dwi_series', {})
    return {
        'Sources': [session.raw_uri(Path(image)) for image in series.get('images', ())],
        'Description': 'T1w image at 1 mm that a network made from diffusion images'
        f'{", then corrected for bias" if "bias" in session.steps else ""}: not a measurement, '
        'and 0 outside the brain',
        'SkullStripped': True,
        **_synthesis_fields(session),
    }


def _synthesis_fields(session: Session) -> dict[str, Any]:
    mapped = session.steps.get('dwi_maps', {})
    model = session.models.get(SYNTHESIS_ROLE, {})
    return {
        'Caveat': CAVEAT,
        **network_fields(model, {**mapped, 'fallback': None}),
        **_corrections(session.steps.get('dwi_series', {})),
    }


def _corrections(series: Mapping[str, Any]) -> dict[str, Any]:
    """Say what was done to the series, and what was not."""
    return {
        'HeadMotion': series.get('motion'),
        'Denoising': 'MP-PCA' if 'noise' in series else None,
        'NotCorrected': list(series.get('uncorrected', ())) or None,
    }


def _registration(
    key: str, raw: list[str], aligned: Mapping[str, Any], session: Session
) -> dict[str, Any]:
    """Describe a rigid transform: what it was found through, and what else was tried."""
    reference = session.uri('preproc')
    sources = [*raw, reference] if key.endswith('to_reference') else [reference, *raw]
    return {
        'Sources': sources,
        'Through': aligned.get('through'),
        'Registrations': {
            way: {'Status': found['status'], 'Measures': found['measures']}
            for way, found in aligned.get('registrations', {}).items()
        },
        'ApartMm': aligned.get('apart_mm'),
    }
