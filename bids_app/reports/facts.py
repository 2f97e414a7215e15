# SPDX-License-Identifier: Apache-2.0
"""Facts of a run and of a scan as pairs of label and text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_RUN_LABELS = {
    'version': 'AnatNet version',
    'run_uuid': 'Run',
    'started': 'Started',
    'device': 'Device',
    'device_reason': 'Why this device',
    'precision': 'Precision',
    'fallback': 'Memory fallback',
    'threads': 'CPU threads',
    'modules': 'Modules',
    'structures': 'Structures',
    'peak_memory_gb': 'Peak memory (GB)',
}


def run_rows(run: Mapping[str, Any], status: str) -> list[tuple[str, str]]:
    """Return the facts of a run as label and text, the known ones first."""
    rows = []
    for key in (*_RUN_LABELS, *(key for key in run if key not in _RUN_LABELS)):
        if key in ('command_line', 'seconds'):
            continue
        value = run.get(key)
        if key == 'fallback' and not value and 'device' in run and status == 'completed':
            value = 'none needed'
        if value is not None and value != '':
            rows.append((_RUN_LABELS.get(key, _words(key)), _text(value)))
    return rows


_CONFORM_LABELS = {
    'native_shape': ('Voxels of the scan', ' × ', ''),
    'native_zooms': ('Voxel size of the scan', ' × ', ' mm'),
    'native_orientation': ('Axis order of the scan', ', ', ''),
    'obliquity_degrees': ('Obliquity', ', ', '°'),
    'field_of_view_mm': ('Field of view', ' × ', ' mm'),
    'intensity_range': ('Intensities', ' to ', ''),
    'shape': ('Voxels after conforming (RAS)', ' × ', ''),
    'zooms': ('Voxel size after conforming', ' × ', ' mm'),
    'interpolated': ('Interpolated', ', ', ''),
}
"""Label, joint and unit of what the conform step reports."""


def conform_rows(conform: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of the conform step as label and text; matrices stay out."""
    keys = [key for key in _CONFORM_LABELS if key in conform]
    keys += [key for key in conform if key not in keys]
    rows = []
    for key in keys:
        value = conform[key]
        if key in ('notes', 'seconds', 'peak_gb', 'out_file', 'in_file') or 'affine' in key:
            continue
        if value is None or value == '' or isinstance(value, Mapping):
            continue
        label, joint, unit = _CONFORM_LABELS.get(key, (_words(key), ', ', ''))
        rows.append((label, _text(value, joint) + unit))
    return rows


def participant_rows(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the first few facts of a participant, age and sex before the others."""
    first = [key for key in ('age', 'sex', 'gender', 'group') if key in fields]
    keys = [*first, *sorted(key for key in fields if key not in first)]
    rows = [(key, fields[key]) for key in keys if fields[key] not in (None, '', 'n/a')]
    return [(key.replace('_', ' '), _text(value)) for key, value in rows[:5]]


def command_line(value: Any) -> str:
    """Return a command line as one text that a shell understands."""
    if isinstance(value, str) or not value:
        return value or ''
    return shlex.join(map(str, value))


def as_list(value: Any) -> list[str]:
    """Return one text or several as a list."""
    if value is None or value == '':
        return []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _words(key: str) -> str:
    return key.replace('_', ' ').capitalize()


def _text(value: Any, joint: str = ', ') -> str:
    """Write any JSON value for a reader."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, list | tuple):
        return joint.join(_text(item) for item in value)
    if isinstance(value, Mapping):
        return '; '.join(f'{name}: {_text(item)}' for name, item in value.items())
    return str(value)
