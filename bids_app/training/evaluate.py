# SPDX-License-Identifier: Apache-2.0
"""``python -m bids_app.training.evaluate``: Dice and Hausdorff distance per structure.

Compares label maps with a reference, either maps that exist (``--predictions``) or those that a
model makes from the scans beside the reference (``--model``).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.data import structures
from bids_app.errors import AnatNetError, ImageError, UsageError

IGNORE = -1
"""Index of the mapping table for voxels that take no part in the comparison."""


def read_mapping(path: Path) -> dict[int, int]:
    """Read a label-mapping table.

    Parameters
    ----------
    path : pathlib.Path
        TSV with columns ``value`` (of the reference) and ``index`` (FreeSurfer's number, 0 for
        background, -1 for "leave these voxels out"). Values that are not listed count as 0.

    Returns
    -------
    dict
        ``value -> index``.
    """
    try:
        with path.open(encoding='utf-8', newline='') as stream:
            return {
                int(row['value']): int(row['index'])
                for row in csv.DictReader(stream, delimiter='\t')
            }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f'{path}: not a mapping table ({error}): it needs the columns value and index'
        ) from error


def apply_mapping(labels: np.ndarray, mapping: dict[int, int]) -> np.ndarray:
    """Translate the values of a label map; see :func:`read_mapping`. Returns int16."""
    table = np.zeros(max(int(labels.max()), *mapping, 0) + 1, dtype=np.int16)
    for value, index in mapping.items():
        table[value] = index
    return table[labels]


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Return the Dice overlap of two boolean arrays; nan if both are empty."""
    size = int(reference.sum()) + int(prediction.sum())
    return 2 * int((reference & prediction).sum()) / size if size else float('nan')


def hausdorff95(
    reference: np.ndarray, prediction: np.ndarray, zooms: tuple[float, float, float]
) -> float:
    """Return the 95th percentile of the symmetric surface distance.

    Parameters
    ----------
    reference, prediction : ndarray, shape (x, y, z), bool
        Structures.
    zooms : tuple of float
        Voxel size, mm.

    Returns
    -------
    float
        mm; the larger of the two directed percentiles; nan if either is empty.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not reference.any() or not prediction.any():
        return float('nan')
    either = reference | prediction
    box = tuple(
        slice(max(0, int(hit[0]) - 1), int(hit[-1]) + 2)
        for hit in (
            np.flatnonzero(either.any(axis=tuple(a for a in range(3) if a != axis)))
            for axis in range(3)
        )
    )
    reference, prediction = np.pad(reference[box], 1), np.pad(prediction[box], 1)
    surfaces = [mask & ~binary_erosion(mask) for mask in (reference, prediction)]
    distances = []
    for own, other in (surfaces, surfaces[::-1]):
        distances.append(np.percentile(distance_transform_edt(~other, sampling=zooms)[own], 95))
    return float(max(distances))


def compare(
    reference: np.ndarray,
    prediction: np.ndarray,
    zooms: tuple[float, float, float],
    *,
    surface: bool = True,
) -> dict[int, dict[str, float]]:
    """Compare two label maps structure by structure.

    Parameters
    ----------
    reference, prediction : ndarray, shape (x, y, z)
        FreeSurfer numbers on one grid; reference voxels of -1 are left out of both.
    zooms : tuple of float
        Voxel size, mm.
    surface : bool
        Compute Hausdorff distances too.

    Returns
    -------
    dict
        For each structure of the reference: ``dice``, ``hd95`` (mm), ``reference_mm3``,
        ``prediction_mm3``.
    """
    counted = reference != IGNORE
    voxel = float(np.prod(zooms))
    result = {}
    for structure in structures():
        own = (reference == structure.index) & counted
        found = (prediction == structure.index) & counted
        if not own.any():
            continue
        result[structure.index] = {
            'dice': dice(own, found),
            'hd95': hausdorff95(own, found, zooms) if surface else float('nan'),
            'reference_mm3': float(own.sum()) * voxel,
            'prediction_mm3': float(found.sum()) * voxel,
        }
    return result


def compare_tissues(reference: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Return the Dice of CSF, grey and white matter, each the union of its structures.

    Parameters
    ----------
    reference, prediction : ndarray, shape (x, y, z)
        FreeSurfer numbers on one grid; reference voxels of -1 are left out of both.
    """
    counted = reference != IGNORE
    result = {}
    for tissue in ('CSF', 'GM', 'WM'):
        members = [s.index for s in structures() if s.tissue == tissue]
        own, found = np.isin(reference, members), np.isin(prediction, members)
        result[tissue] = dice(own & counted, found & counted)
    return result


def predict(
    data: np.ndarray, data_affine: np.ndarray, model: Path, *, precision: str, bias: bool
) -> tuple[np.ndarray, float]:
    """Segment one scan as the app does; return labels on its grid and seconds."""
    import torch

    from bids_app.images.grids import conform_grid
    from bids_app.images.resample import resample_separable
    from bids_app.inference.brain import load_predictors, locate
    from bids_app.inference.cascade import segment
    from bids_app.inference.native import to_native

    shape, affine = conform_grid(data.shape, data_affine)
    conformed = resample_separable(data, data_affine, shape, affine)
    predictors = load_predictors(model, precision=precision)
    started = time.monotonic()
    image = torch.from_numpy(np.ascontiguousarray(conformed, dtype=np.float32))
    coarse = locate(image, model, predictors)
    if bias:
        from bids_app.images.bias import n4_bias_field

        mask = (coarse.brain_probability(shape) > 0.5).numpy()
        image = image / torch.from_numpy(n4_bias_field(conformed, affine, mask))
    found = segment(image, coarse, predictors['fine'])
    result = to_native(found, affine, data.shape, data_affine)
    return result.labels.astype(np.int16), time.monotonic() - started


def evaluate(options: argparse.Namespace) -> dict[str, object]:
    """Evaluate all references of a folder; see the command's help."""
    from bids_app.images.scans import load_scan

    for needs, given in (('--synthesise', options.synthesise), ('--card', options.card)):
        if given and not options.model:
            raise UsageError(f'{needs} needs --model')
    drawn = options.bright_fat != 1 or options.slices != 1 or options.seed != 0
    if drawn and not options.synthesise:
        raise UsageError('--bright-fat, --slices and --seed need --synthesise')
    references = sorted(options.reference.glob(options.pattern))[: options.limit]
    if not references:
        raise UsageError(f'{options.reference}: nothing matches {options.pattern}')
    mapping = read_mapping(options.mapping) if options.mapping else None
    model = None
    if options.model:
        from bids_app.inference.models import find_model

        model = find_model(options.model, options.models_dir)
    scans = {}
    for path in references:
        other = path.name.replace(options.replace[0], options.replace[1])
        image = nib.load(path)
        labels = np.asarray(image.dataobj).astype(np.int16)
        if mapping:
            labels = apply_mapping(labels, mapping)
        how = {'precision': options.precision, 'bias': options.n4}
        if options.synthesise:
            from bids_app.training.synthetic_scans import synthetic_scan

            data, labels = synthetic_scan(
                path,
                options.synthesise,
                options.seed,
                bright_fat=options.bright_fat,
                slices=options.slices,
            )
            found, seconds = predict(data, np.eye(4), model, **how)
        elif model:
            scan = load_scan(path.with_name(other))
            found, seconds = predict(scan.data, scan.affine, model, **how)
        else:
            given = nib.load(options.predictions / other)
            found, seconds = np.asarray(given.dataobj).astype(np.int16), float('nan')
            if not np.allclose(given.affine, image.affine, atol=1e-3):
                raise ImageError(f'{options.predictions / other}: not on the grid of {path.name}')
        if found.shape != labels.shape:
            raise ImageError(f'{path.name}: shapes differ: {labels.shape} and {found.shape}')
        zooms = tuple(float(z) for z in image.header.get_zooms()[:3])
        rows = compare(labels, found, zooms, surface=not options.no_surface)
        brain = dice(labels > 0, (found > 0) & (labels != IGNORE))
        scans[path.name] = {
            'structures': rows,
            'tissues': compare_tissues(labels, found),
            'brain_dice': brain,
            'seconds': seconds,
        }
        core = [rows[s.index]['dice'] for s in structures() if s.core and s.index in rows]
        print(f'{path.name}: mean Dice {np.mean(core):.3f}, brain {brain:.3f}', file=sys.stderr)
    return summarise(scans)


def _mean(values: list[float]) -> float:
    """Mean of the numbers that are there; nan, without a warning, if there are none."""
    there = [value for value in values if value == value]
    return sum(there) / len(there) if there else float('nan')


def summarise(scans: dict[str, dict]) -> dict[str, object]:
    """Average the comparisons of many scans, per structure and over the 25 core structures."""
    table = {}
    for structure in structures():
        rows = [s['structures'][structure.index] for s in scans.values()
                if structure.index in s['structures']]  # fmt: skip
        if rows:
            table[structure.name] = {
                key: round(float(_mean([row[key] for row in rows])), 4) for key in rows[0]
            } | {'scans': len(rows), 'dice_min': round(min(row['dice'] for row in rows), 4)}
    core = [table[s.name] for s in structures() if s.core and s.name in table]
    return {
        'scans': len(scans),
        'mean_dice_core': round(float(np.mean([row['dice'] for row in core])), 4),
        'mean_hd95_core': round(float(np.mean([row['hd95'] for row in core])), 3),
        'core_structures': len(core),
        'tissue_dice': {
            tissue: round(_mean([scan['tissues'][tissue] for scan in scans.values()]), 4)
            for tissue in next(iter(scans.values()))['tissues']
        },
        'brain_dice': round(float(np.mean([s['brain_dice'] for s in scans.values()])), 4),
        'seconds': round(float(np.mean([s['seconds'] for s in scans.values()])), 2),
        'structures': table,
        'per_scan': {
            name: round(
                float(np.mean([scan['structures'][s.index]['dice'] for s in structures()
                               if s.core and s.index in scan['structures']])), 4)
            for name, scan in scans.items()
        },
    }  # fmt: skip


def _numbers(row: dict[str, object]) -> dict[str, object]:
    """Leave out what was not measured: JSON has no nan."""
    return {key: value for key, value in row.items() if value == value}


def write_into_card(folder: Path, name: str, result: dict[str, object], command: str) -> None:
    """Put scores and the command that produced them into the card of a model.

    Parameters
    ----------
    folder : pathlib.Path
        Model folder.
    name : str
        Key below ``validation``.
    result : dict
        From :func:`summarise`.
    command : str
        How to get these scores again.
    """
    path = folder / 'card.json'
    card = json.loads(path.read_text(encoding='utf-8'))
    scores = {key: value for key, value in result.items() if key not in ('seconds', 'structures')}
    scores['structures'] = {
        structure: _numbers({key: row[key] for key in ('dice', 'hd95', 'dice_min')})
        for structure, row in result['structures'].items()
    }
    card.setdefault('validation', {})[name] = {'command': command, **_numbers(scores)}
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(json.dumps(card, indent=2) + '\n', encoding='utf-8')
    os.replace(temporary, path)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser of ``python -m bids_app.training.evaluate``."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_app.training.evaluate',
        description='Dice and 95 %% Hausdorff distance per structure, as JSON.',
    )
    parser.add_argument('reference', type=Path, help='folder of reference label maps')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--predictions', type=Path, help='folder of label maps to judge')
    source.add_argument('--model', help='model that segments the scans beside the references')
    parser.add_argument('--models-dir', type=Path, help='where models are')
    parser.add_argument('--pattern', default='*_labels.nii.gz', help='reference files')
    parser.add_argument(
        '--replace', nargs=2, default=('_labels', '_T1w'), metavar=('OLD', 'NEW'),
        help='turns the name of a reference into that of its prediction or scan',
    )  # fmt: skip
    parser.add_argument('--mapping', type=Path, help='label-mapping table of the reference (TSV)')
    parser.add_argument(
        '--synthesise', choices=('t1w', 't2w', 'flair', 'random'),
        help='the references are generation label maps: draw a scan of this contrast from each',
    )  # fmt: skip
    parser.add_argument(
        '--bright-fat', type=float, default=1.0, metavar='TIMES',
        help='with --synthesise: what lies outside the brain is up to so many times as bright',
    )  # fmt: skip
    parser.add_argument(
        '--slices', type=float, default=1.0, metavar='MM',
        help='with --synthesise: axial slices of this thickness',
    )  # fmt: skip
    parser.add_argument(
        '--seed', type=int, default=0, help='with --synthesise: of contrast and noise'
    )
    parser.add_argument('--limit', type=int, help='only the first so many')
    parser.add_argument('--precision', default='auto', help='auto, float32 or bfloat16')
    parser.add_argument('--n4', action='store_true', help='correct the bias field first')
    parser.add_argument('--threads', type=int, help='CPU threads')
    parser.add_argument('--no-surface', action='store_true', help='skip Hausdorff distances')
    parser.add_argument('--out', type=Path, help='write the JSON there as well')
    parser.add_argument(
        '--card', metavar='NAME', help='write the scores into the card of the model by this name'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = make_parser().parse_args(argv)
    try:
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        result = evaluate(options)
    except AnatNetError as error:
        print(f'anatnet: error: {error}', file=sys.stderr)
        return error.exit_code
    if options.card:
        from bids_app.inference.models import find_model

        words = sys.argv[1:] if argv is None else argv
        shown = ' '.join('DATA' if word == str(options.reference) else word for word in words)
        write_into_card(
            find_model(options.model, options.models_dir),
            options.card,
            result,
            f'python -m bids_app.training.evaluate {shown}',
        )
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
