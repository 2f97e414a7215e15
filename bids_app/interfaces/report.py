# SPDX-License-Identifier: Apache-2.0
"""Interface that writes the report of one session; its failure costs no result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    Str,
    TraitedSpec,
    traits,
)

from bids_app.bids.outputs import table
from bids_app.interfaces.anat import Stopwatch, read_info, write_info
from bids_app.interfaces.sidecars import LESIONS, tissue_role

COSTS = ('seconds', 'cpu_seconds', 'peak_gb')
"""What :func:`bids_app.interfaces.anat.write_info` adds to the findings of a step."""

LARGEST_VOLUME_ERROR = 0.01
"""Part of the volume of a tissue by which its modulated map may differ without a word."""

SPACE_FILES = ('std_preproc', 'vbm_gm', 'vbm_gm_smooth', 'jacobian')
"""Derivatives in template space that a report shows, by their keys in the table of outputs."""


class _ReportInputSpec(BaseInterfaceInputSpec):
    info = File(exists=True, mandatory=True, desc='findings of all steps, from PublishSession')
    context = traits.Dict(mandatory=True, desc='what was known before the scan was processed')
    output_dir = Str(mandatory=True, desc='root of the derivatives')
    subject = Str(mandatory=True, desc='label without sub-')
    session = Str('', usedefault=True, desc='label without ses-, empty for none')
    reference = Str('T1w', usedefault=True, desc='contrast of the scan')


class _ReportOutputSpec(TraitedSpec):
    info = File(exists=True, desc='content of the report, files written, and what went wrong')


class WriteReport(SimpleInterface):
    """Write the report of one session."""

    input_spec = _ReportInputSpec
    output_spec = _ReportOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.bids.outputs import Outputs

        watch = Stopwatch()
        outputs = Outputs(
            Path(self.inputs.output_dir),
            self.inputs.subject,
            self.inputs.session or None,
            self.inputs.reference,
        )
        content = report_content(self.inputs.context, read_info(self.inputs.info), outputs)
        problem = make_page(content, outputs)
        self._results['info'] = write_info(
            runtime.cwd, watch, {'content': content, 'problem': problem}
        )
        return runtime


def report_content(
    context: Mapping[str, Any], info: Mapping[str, Any], outputs: Any
) -> dict[str, Any]:
    """Put together what a report shows, as JSON types.

    Parameters
    ----------
    context : mapping
        Fields of :class:`bids_app.reports.session.SessionReport` that were known beforehand; of
        every space its name, voxel size, smoothing widths and template, of every atlas and every
        classifier its name.
    info : mapping
        What ``PublishSession`` wrote: ``steps`` and ``outputs``. ``steps['normalise']['spaces']``
        holds, by the name of the space, what
        :func:`bids_app.registration.run.normalise_files` returned.
    outputs : Outputs
        Names of the session's derivatives.
    """
    from bids_app.interfaces.publish import PUBLISHED

    steps = info.get('steps', {})
    network = steps.get('segment') or steps.get('mask') or {}
    run = {
        **context.get('run', {}),
        'device': network.get('device'),
        'precision': network.get('precision'),
        'fallback': network.get('fallback'),
        'peak_memory_gb': max((step.get('peak_gb', 0) for step in steps.values()), default=None),
    }
    costs = [
        {'name': name, **{cost: step[cost] for cost in COSTS if cost in step}}
        for name, step in [*steps.items(), ('publish', info)]
        if 'seconds' in step
    ]
    conform = {k: value for k, value in steps.get('conform', {}).items() if k not in COSTS}
    files = {
        key: str(outputs.path(key)) for key in (*PUBLISHED, *LESIONS)
        if _written(outputs.path(key), outputs, info)
    }  # fmt: skip
    files.update(context.get('files', {}))
    warnings = list(context.get('warnings', []))
    if suspect := steps.get('mask', {}).get('orientation_suspect'):
        warnings.append(f'The orientation of the head does not fit the header: {suspect}')
    notes = steps.get('precomputed', {}).get('notes', [])
    warnings += [f'What --derivatives gives: {note}' for note in notes]
    used = steps.get('tissue', {}).get('tissue_model', {})
    if labelled := steps.get('structures'):
        run['structures'] = _deepnat_words(labelled)
        warnings += [f'Weights of DeepNAT: {licence}' for licence in labelled['licences']]
    return {
        **context,
        'models': [
            # Of the tissue models that were at hand, one was used.
            model
            for model in context.get('models', [])
            if model.get('role') in (None, tissue_role(used.get('name', '')))
        ],
        'conform': conform,
        'qc': steps.get('measure', {}).get('qc', {}),
        'run': {name: value for name, value in run.items() if value is not None},
        'steps': costs,
        'files': files,
        'warnings': warnings,
        'spaces': _spaces(context, info, outputs),
        'regions': _with_tables('regions', context, info, outputs),
        'predictions': _with_tables('predictions', context, info, outputs),
        'contrasts': _contrasts(context, info, outputs),
        'tissue_model': used,
        'dwi': diffusion_content(context.get('dwi', {}), info, outputs),
    }


def _deepnat_words(found: Mapping[str, Any]) -> str:
    """Say what labelled the structures, and which of the usual ones are missing."""
    field = 'with' if found['crf'] else 'without'
    return (
        f'DeepNAT, {field} conditional random field; it does not know {", ".join(found["absent"])}'
    )


def _written(path: Path, outputs: Any, info: Mapping[str, Any]) -> bool:
    return path.relative_to(outputs.output_dir).as_posix() in info.get('outputs', {})


def diffusion_content(
    context: Mapping[str, Any], info: Mapping[str, Any], outputs: Any
) -> dict[str, Any]:
    """Put together what a report shows of diffusion images; empty if there are none.

    Parameters
    ----------
    context : mapping
        The field ``dwi`` of what was known beforehand: ``alone``.
    info, outputs
        As for :func:`report_content`.
    """
    steps = info.get('steps', {})
    if 'dwi_series' not in steps:
        return {}
    series, mapped, aligned = (
        steps.get(step, {}) for step in ('dwi_series', 'dwi_maps', 'dwi_regions')
    )
    paths = {key: outputs.path(key) for key in table() if key.startswith('dwi_')}
    described = ('volumes', 'shells', 'directions', 'uncorrected', 'motion', 'noise')
    failed = next(
        (s for s in (series, mapped, aligned) if s.get('status') not in (None, 'ok')), {}
    )
    motion = series.get('motion') or {}
    return {
        **context,
        'status': failed.get('status', 'ok'),
        'reasons': list(failed.get('reasons', ())),
        'notes': [*series.get('notes', ()), *mapped.get('notes', ())],
        'no_tensor': series.get('no_tensor') or '',
        'model': mapped.get('synthesis', {}).get('name', ''),
        **{name: series[name] for name in described if name in series and name != 'motion'},
        'motion': {k: v for k, v in motion.items() if k != 'displacement_mm'},
        **{
            name: aligned[name]
            for name in ('registrations', 'through', 'apart_mm', 'agreement')
            if name in aligned
        },
        'files': {key: str(path) for key, path in paths.items() if _written(path, outputs, info)},
    }


def _contrasts(
    context: Mapping[str, Any], info: Mapping[str, Any], outputs: Any
) -> list[dict[str, Any]]:
    """Add to every contrast what its coregistration found, and its file if it is used."""
    found = info.get('steps', {}).get('coregister', {}).get('contrasts', {})
    contrasts = []
    for one in context.get('contrasts', []):
        if one['name'] not in found:
            continue  # the session ended before
        kept = ('status', 'reasons', 'measures', 'notes')
        result = {key: value for key, value in found[one['name']].items() if key in kept}
        path = outputs.path('contrast_preproc', contrast=one['name'])
        if _written(path, outputs, info):
            result['file'] = str(path)
        contrasts.append({'name': one['name'], **result})
    return contrasts


def _spaces(
    context: Mapping[str, Any], info: Mapping[str, Any], outputs: Any
) -> list[dict[str, Any]]:
    """Add to every output space what the registration found, and the files that were written."""
    registered = info.get('steps', {}).get('normalise', {}).get('spaces', {})
    spaces = []
    for space in context.get('spaces', []):
        given: dict[str, Any] = {'space': space['space'], 'res': space['voxel_size']}
        keys = [key for key in SPACE_FILES if key != 'vbm_gm_smooth' or space.get('fwhm')]
        if space.get('fwhm'):
            given['fwhm'] = space['fwhm'][0]
        paths = {key: outputs.path(key, **given) for key in keys}
        files = {key: str(path) for key, path in paths.items() if _written(path, outputs, info)}
        found = registered.get(space['space'], {})
        if not found and not files:
            continue  # the session ended before this space
        notes = list(space.get('notes', []))
        if found.get('fallback'):
            notes.append(f'Fallback of the registration: {found["fallback"]}')
        for change in info['steps'].get('modulate', {}).get('volumes', []):
            if (change['space'], change['voxel_size']) == (space['space'], space['voxel_size']):
                notes += _volume_notes(change['tissues'])
        measures = found.get('measures', found)
        spaces.append(
            {
                **space,
                'method': found.get('method', ''),
                'measures': {k: v for k, v in measures.items() if k not in COSTS},
                'files': files,
                'notes': notes,
            }
        )
    return spaces


def _volume_notes(tissues: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Tell of tissues whose modulated map does not sum to their volume in the scan."""
    notes = []
    for name, volume in tissues.items():
        change = volume['modulated_mm3'] / max(volume['native_mm3'], 1e-9) - 1
        if abs(change) > LARGEST_VOLUME_ERROR:
            notes.append(
                f'The sum of modulated {name.upper()} differs from its volume in the scan by '
                f'{100 * change:+.1f} %: a part may lie outside the field of view of the template.'
            )
    return notes


_TABLES = {'regions': ('regions_morph', 'atlas'), 'predictions': ('predictions', 'model')}
"""Key of the tables of atlases and classifiers, and what names one of them."""


def _with_tables(
    part: str, context: Mapping[str, Any], info: Mapping[str, Any], outputs: Any
) -> list[dict[str, Any]]:
    """Add to every atlas or classifier its table, and leave out those without one."""
    key, name = _TABLES[part]
    tables = [
        {**one, 'file': outputs.path(key, **{name: one[name]})} for one in context.get(part, [])
    ]
    return [
        {**table, 'file': str(table['file'])}
        for table in tables
        if _written(table['file'], outputs, info)
    ]


def make_page(content: Mapping[str, Any], outputs: Any) -> str | None:
    """Write the page; return why it could not be written, or None."""
    try:
        from bids_app.reports.session import SessionReport, write_report

        write_report(
            SessionReport.from_dict(content, outputs.output_dir),
            outputs.path('report'),
            outputs.figures_dir,
        )
    except Exception as error:  # soft by design: the derivatives are already in place
        return f'{type(error).__name__}: {error}'
    return None
