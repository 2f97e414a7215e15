# SPDX-License-Identifier: Apache-2.0
"""Files and words of a classification: tables, maps, model folders, pictures, methods."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_app import __version__
from bids_app.bids.files import (
    atomic_save_nifti,
    atomic_write_bytes,
    atomic_write_text,
    write_sidecar,
)
from bids_app.group.classify_figures import draw_importance, draw_scores
from bids_app.group.folds import Fold
from bids_app.group.results import AnalysisResult
from bids_app.group.scores import SCORES, headline
from bids_app.group.targets import Target
from bids_app.inference.classifier import CAVEAT, InputGrid
from bids_app.morphometry.volumes import write_table

if TYPE_CHECKING:
    import pandas as pd

    from bids_app.group.classify import Options, Outcome

LOGGER = logging.getLogger('anatnet.group')

NULLS = {
    'p': 'Permutation of the values between subjects against the cross-validated predictions as '
    'they are; nothing is trained again. Null hypothesis: the predictions that were made are '
    'independent of the values.',
    'p_retrained': 'Permutation of the values between subjects, with the whole procedure '
    '(training, choice of the penalty) repeated on the same folds. Null hypothesis: the maps are '
    'independent of the values.',
}
_WORDS = {
    'balanced_accuracy': 'balanced accuracy',
    'auc': 'AUC',
    'brier': 'Brier score',
    'calibration_error': 'calibration error',
    'mae': 'mean absolute error',
    'r2': 'R²',
    'r': 'correlation',
}
_STATISTICS = {
    'occlusion': 'Rise of the loss in unseen sessions when the region behind a patch is hidden by '
    'the mean of the training maps; overlapping regions are averaged',
    'gradient': 'Mean absolute gradient times standardised input in unseen sessions',
    'weight': 'Weight of the linear model per standard deviation of the voxel, mean over folds',
}
_REGIONS = {
    'x': {'Description': 'Centre, world of the template, to the right', 'Units': 'mm'},
    'y': {'Description': 'Centre, world of the template, to the front', 'Units': 'mm'},
    'z': {'Description': 'Centre, world of the template, upward', 'Units': 'mm'},
    'size': {'Description': 'Edges of the box', 'Units': 'mm'},
    'importance': {
        'Description': 'Rise of the loss (cross-entropy in nats, or squared error in variances) '
        'when the box is hidden, mean over folds; below 0 the region misleads'
    },
    'sd': {'Description': 'Standard deviation of the importance between folds'},
}


def write_results(
    frame: pd.DataFrame,
    target: Target,
    folds: list[Fold],
    outcomes: dict[str, Outcome],
    grid: InputGrid,
    maps: np.ndarray,
    options: Options,
    facts: dict[str, Any],
    out_dir: Path,
) -> dict[str, Any]:
    """Write everything and return the facts, see :func:`bids_app.group.classify.classify`."""
    from bids_app.group.classify import METHODS

    out_dir.mkdir(parents=True, exist_ok=True)
    mean = maps.mean(axis=0, dtype=np.float32)
    result: dict[str, Any] = {
        'column': target.column,
        'task': 'classes' if target.classes else 'number',
        'classes': target.counts(),
        'n_subjects': len(set(target.subjects)),
        'n_sessions': len(target.rows),
        'excluded': [
            {'session': _session(frame, row), 'reason': reason} for row, reason in target.excluded
        ],
        'warning': target.warning,
        'folds': len(folds),
        'without_validation': sum(not len(fold.validation) for fold in folds),
        'seed': options.seed,
        'n_permutations': options.n_permutations,
        'maps': {**facts, 'input': [int(n) for n in maps.shape[1:]],
                 'voxel_mm': [round(float(v), 3) for v in _zooms(grid)]},
        'methods': {
            name: {
                'label': METHODS[name],
                'scores': {
                    key: {
                        'value': value,
                        'low': outcome.intervals.get(key, (None, None))[0],
                        'high': outcome.intervals.get(key, (None, None))[1],
                    }
                    for key, value in outcome.scores.items()
                },
                'p': outcome.p,
                'p_retrained': outcome.p_retrained,
                'parameters': outcome.trained[0].parameters,
                'epochs': [t.epochs for t in outcome.trained],
                'temperatures': [round(t.temperature, 3) for t in outcome.trained],
                'reliability': outcome.reliability,
                'regions': outcome.regions,
            }
            for name, outcome in outcomes.items()
        },
        'software': f'AnatNet {__version__}',
        'caveat': CAVEAT,
    }  # fmt: skip
    files: dict[str, Path] = {
        'predictions': _write_predictions(frame, target, folds, outcomes, out_dir),
        'scores': _write_scores(result, out_dir),
    }
    for name, outcome in outcomes.items():
        for statistic, values in outcome.maps.items():
            path = out_dir / f'model-{name}_stat-{statistic}_statmap.nii.gz'
            files[f'{name}_{statistic}'] = _save(values, grid, path)
            write_sidecar(
                path.with_name(path.name.replace('.nii.gz', '.json')),
                {'Description': f'{METHODS[name]}: {_STATISTICS[statistic]}',
                 'Target': target.column, 'Space': grid.space},
            )  # fmt: skip
        if outcome.regions:
            files[f'{name}_regions'] = _write_regions(outcome.regions, name, out_dir)
    files['figure'] = draw_scores(result, target, outcomes, out_dir / 'scores.png')
    for name in ('pif', 'linear'):
        if name in outcomes:
            statistic = 'occlusion' if name == 'pif' else 'weight'
            files[f'{name}_figure'] = draw_importance(
                outcomes[name].maps[statistic], mean, grid.input_affine,
                out_dir / f'model-{name}_stat-{statistic}_statmap.png',
                title=f'{METHODS[name]}: {target.column}',
                unit='rise of the loss when hidden' if name == 'pif' else 'weight per SD',
            )  # fmt: skip
    result['files'] = {key: str(path) for key, path in files.items()}
    result['models'] = {
        name: str(_write_model(name, outcome, target, grid, result, out_dir / 'models'))
        for name, outcome in outcomes.items()
        if name != 'total'
    }
    atomic_write_text(out_dir / 'classification.json', _json(_relative(result, out_dir)))
    for name, entry in result['methods'].items():
        LOGGER.info('%s: %s', METHODS[name], _scores_words(entry, result['task']))
    return result


def model_name(column: str, method: str) -> str:
    """Return the name of a model: letters and digits, as an entity of BIDS needs.

    Examples
    --------
    >>> model_name('age_group', 'pif')
    'agegrouppif'
    """
    return re.sub(r'[^a-zA-Z0-9]', '', column) + method


def _write_model(
    method: str, outcome: Outcome, target: Target, grid: InputGrid, result: dict, folder: Path
) -> Path:
    """Write a model folder whose stages are the networks of the folds."""
    from safetensors.torch import save

    name = model_name(target.column, method)
    folder = folder / name
    tensors, stages = {}, {}
    for number, trained in enumerate(outcome.trained, start=1):
        stages[f'fold{number}'] = {**trained.stage(), 'spacing': round(float(_zooms(grid)[0]), 3),
                                   'shape': list(grid.input_shape)}  # fmt: skip
        for key, value in trained.network.state_dict().items():
            tensors[f'fold{number}.{key}'] = value.contiguous()
    content = save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    entry = result['methods'][method]
    calibration, validation = _calibration_words(entry, result), _scores_words(
        entry, result['task']
    )  # fmt: skip
    card = {
        'name': name,
        'version': f'1.0.0+{digest[:8]}',
        'description': f'{entry["label"]} that predicts {target.column!r} from maps '
        f'{grid.kind or "of grey matter"}: the mean over the networks of a cross-validation.',
        'licence': 'that of the data of the study; the weights are derived from them',
        'sha256': digest,
        'classes': list(target.classes),
        'outputs': 'logits of the classes (one: of the second class)'
        if target.classes
        else 'standardised number',
        'stages': stages,
        'input': grid.as_card(),
        'target': {'column': target.column, 'task': result['task']},
        'training_data': {
            'subjects': result['n_subjects'],
            'sessions': result['n_sessions'],
            'classes': result['classes'],
        },
        'calibration': calibration,
        'validation_summary': validation + (f' {target.warning}' if target.warning else ''),
        'validation': {
            key: entry[key] for key in ('scores', 'p', 'p_retrained', 'reliability')
        },
        'null_hypotheses': NULLS,
        'folds': result['folds'],
        'seed': result['seed'],
        'software': result['software'],
        'caveat': CAVEAT,
    }  # fmt: skip
    atomic_write_bytes(folder / 'weights.safetensors', content)
    atomic_write_text(folder / 'card.json', _json(card))
    return folder


def _calibration_words(entry: dict[str, Any], result: dict[str, Any]) -> str:
    if result['task'] == 'number':
        return 'sd is the error of the validation sessions'
    if result['without_validation']:
        return 'not calibrated: too few sessions for a validation split'
    temperatures = entry['temperatures']
    return (
        'temperature scaling on validation sessions '
        f'({min(temperatures):.2f} to {max(temperatures):.2f}); probabilities hold where the '
        'classes are equally common; expected calibration error '
        f'{entry["scores"]["calibration_error"]["value"]:.3f} in cross-validation'
    )


def _scores_words(entry: dict[str, Any], task: str) -> str:
    """Say the scores of a model in one sentence."""
    names = ('balanced_accuracy', 'auc', 'brier') if task == 'classes' else ('mae', 'r2', 'r')
    parts = []
    for name in names:
        score = entry['scores'][name]
        parts.append(
            f'{_WORDS[name]} {score["value"]:.3f} ({score["low"]:.3f} to {score["high"]:.3f})'
        )
    return ', '.join(parts) + (f', p = {entry["p"]:.3g}' if entry['p'] is not None else '') + '.'


def _write_predictions(
    frame: pd.DataFrame,
    target: Target,
    folds: list[Fold],
    outcomes: dict[str, Outcome],
    out_dir: Path,
) -> Path:
    """Write what every model said of every session when it had not seen the subject."""
    import pandas as pd

    number = np.zeros(len(target.rows), int)
    for index, fold in enumerate(folds, start=1):
        number[fold.test] = index
    columns: dict[str, list] = {'participant_id': list(target.subjects)}
    dictionary: dict[str, Any] = {
        'fold': {'Description': 'Fold in which the session was tested'},
        'truth': {'Description': f'Value of {target.column}'},
    }
    if 'session_id' in frame.columns:
        columns['session_id'] = [frame['session_id'].iloc[row] for row in target.rows]
    columns['fold'] = number.tolist()
    if target.classes:
        columns['truth'] = [target.classes[code] for code in target.values]
    else:
        columns['truth'] = target.values.tolist()
    for name, outcome in outcomes.items():
        if not target.classes:
            columns[name] = outcome.predictions[:, 0].tolist()
            dictionary[name] = {'Description': 'Predicted number'}
            continue
        best = outcome.predictions.argmax(axis=1)
        columns[name] = [target.classes[code] for code in best]
        dictionary[name] = {'Description': 'Predicted class'}
        for code, label in enumerate(target.classes):
            columns[f'{name}_probability_{label}'] = outcome.predictions[:, code].tolist()
            dictionary[f'{name}_probability_{label}'] = {
                'Description': 'Calibrated probability where all classes are equally common'
            }
    write_sidecar(out_dir / 'predictions.json', {**dictionary, 'Caveat': CAVEAT})
    return write_table(pd.DataFrame(columns), out_dir / 'predictions.tsv')


def _write_scores(result: dict[str, Any], out_dir: Path) -> Path:
    """Write the scores of all models as one table with its dictionary."""
    import pandas as pd

    best = headline(len(result['classes']))
    rows = []
    for entry in result['methods'].values():
        for name, score in entry['scores'].items():
            tested = name == best
            rows.append(
                {
                    'model': entry['label'],
                    'score': _WORDS[name],
                    **score,
                    'p': entry['p'] if tested else None,
                    'p_retrained': entry['p_retrained'] if tested else None,
                    'parameters': entry['parameters'],
                    'epochs': float(np.mean(entry['epochs'])) if any(entry['epochs']) else None,
                }
            )
    dictionary = {
        'score': {
            'Description': 'What is scored',
            'Levels': {_WORDS[key]: text for key, text in SCORES.items()},
        },
        'value': {'Description': 'Score of the cross-validated predictions, by subject'},
        'low': {'Description': 'Lower end of the 95 % interval (bootstrap over subjects)'},
        'high': {'Description': 'Upper end of the 95 % interval'},
        'p': {'Description': NULLS['p']},
        'p_retrained': {'Description': NULLS['p_retrained']},
        'parameters': {'Description': 'Of one network'},
        'epochs': {'Description': 'After which training stopped, mean over folds'},
    }  # fmt: skip
    write_sidecar(out_dir / 'scores.json', dictionary)
    return write_table(pd.DataFrame(rows), out_dir / 'scores.tsv')


def _write_regions(regions: Sequence[dict[str, Any]], method: str, out_dir: Path) -> Path:
    import pandas as pd

    path = out_dir / f'model-{method}_regions.tsv'
    write_sidecar(path.with_suffix('.json'), _REGIONS)
    return write_table(pd.DataFrame(list(regions)), path)


def _save(values: np.ndarray, grid: InputGrid, path: Path) -> Path:
    import nibabel as nib

    image = nib.Nifti1Image(np.asarray(values, np.float32), grid.input_affine)
    image.header.set_xyzt_units('mm')
    image.set_sform(grid.input_affine, 4)
    image.set_qform(grid.input_affine, 4)
    return atomic_save_nifti(image, path)


def _zooms(grid: InputGrid) -> np.ndarray:
    return np.linalg.norm(grid.input_affine[:3, :3], axis=0)


def _session(frame: pd.DataFrame, row: int) -> str:
    name = str(frame['participant_id'].iloc[row])
    session = frame['session_id'].iloc[row] if 'session_id' in frame.columns else None
    return f'{name}_{session}' if isinstance(session, str) else name


def _json(content: dict[str, Any]) -> str:
    """Write JSON; numbers that are not finite, which it does not know, become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=2, ensure_ascii=False) + '\n'


def _relative(result: dict[str, Any], out_dir: Path) -> dict[str, Any]:
    """Return the result with paths relative to its folder: outputs name no machine."""
    return {
        **result,
        **{
            key: {name: Path(path).relative_to(out_dir).as_posix()
                  for name, path in result[key].items()}
            for key in ('files', 'models')
        },
    }  # fmt: skip


def methods(result: dict[str, Any]) -> str:
    """Word the methods of a classification."""
    size = ' x '.join(f'{v:g}' for v in result['maps']['voxel_mm'])
    text = (
        f'The column {result["column"]} was predicted from the maps, averaged to voxels of {size} '
        'mm, cropped to the tissue and standardised voxel by voxel with the training sessions. A '
        'convolutional network with patch individual filters (Eitel et al. 2019, 2021), a network '
        'of the same number of parameters without them, logistic or ridge regression on principal '
        'components, and the total of the map alone were compared in a cross-validation with '
        f'{result["folds"]} folds that were stratified by the value and kept all sessions of a '
        'subject together. Networks were trained with Adam, dropout and early stopping on a '
        'validation split inside the training folds.'
    )
    if result['task'] == 'classes':
        text += (
            ' Classes weighed the same in every loss and score; probabilities were calibrated by '
            'temperature scaling on the validation split (Guo et al. 2017).'
        )
    text += ' Confidence intervals are percentiles of a bootstrap over subjects.'
    if result['n_permutations']:
        text += f' {NULLS["p"]} ({result["n_permutations"]} permutations.)'
    return text


def summarise(result: dict[str, Any]) -> AnalysisResult:
    """Turn the result of a classification into a section of the page.

    Parameters
    ----------
    result : dict
        From :func:`bids_app.group.classify.classify`.
    """
    what = ', '.join(f'{name} {count}' for name, count in result['classes'].items())
    summary = [
        f'{result["n_sessions"]} sessions of {result["n_subjects"]} subjects'
        + (f' ({what})' if what else '')
        + f', {result["folds"]} folds. For research, {CAVEAT}.'
    ]
    for entry in result['methods'].values():
        text = f'{entry["label"]}: {_scores_words(entry, result["task"])}'
        if entry['p_retrained'] is not None:
            text += f' With training repeated: p = {entry["p_retrained"]:.3g}.'
        summary.append(text[0].upper() + text[1:])
    summary.append(_verdict(result))
    files = result['files']
    notes = [result['warning']] if result['warning'] else []
    if result['without_validation']:
        notes.append(
            f'{result["without_validation"]} of {result["folds"]} folds have too few sessions for '
            'a validation split: a fixed number of epochs was trained, without calibration.'
        )
    notes += [f'Not used: {entry["session"]}: {entry["reason"]}.' for entry in result['excluded']]
    tables = [('Scores', Path(files['scores'])), ('Predictions', Path(files['predictions']))]
    if 'pif_regions' in files:
        tables.append(('Regions by importance (PIF network)', Path(files['pif_regions'])))
    return AnalysisResult(
        title=f'Classification: {result["column"]}'
        if result['task'] == 'classes'
        else f'Prediction: {result["column"]}',
        summary=summary,
        methods=methods(result),
        figures=[Path(files[key]) for key in ('figure', 'pif_figure', 'linear_figure')
                 if key in files],
        tables=tables,
        notes=notes,
    )  # fmt: skip


def _verdict(result: dict[str, Any]) -> str:
    """Say what the comparison of the models comes to."""
    best = headline(len(result['classes']))
    sign = 1 if best == 'balanced_accuracy' else -1
    found = {name: entry['scores'][best] for name, entry in result['methods'].items()}

    def beats(name: str, other: str) -> bool:
        return sign * (found[name]['value'] - found[other]['value']) > 0

    networks = [name for name in ('pif', 'baseline') if name in found]
    said = []
    if 'linear' in found and networks and not any(beats(name, 'linear') for name in networks):
        said.append('No network is better than the linear model: use that one.')
    others = [name for name in found if name != 'total']
    if 'total' in found and others and not any(beats(name, 'total') for name in others):
        said.append('No model is better than the total of the map: what is recognised is size.')
    return ' '.join(said) or (
        'Compare the intervals before you prefer a model: where they overlap, the simpler one is '
        'the safer choice.'
    )
