# SPDX-License-Identifier: Apache-2.0
"""What the sessions of a study were made with, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bids_app.group.quality import GROUPS, thresholds

if TYPE_CHECKING:
    from bids_app.group.derivatives import SessionRecord, Study
    from bids_app.group.homogeneity import Homogeneity

_SCAN_FACTS = {'Voxel size of the scan (mm)', 'Voxels of the scan'}


@dataclass(frozen=True)
class Fact:
    """Something that a session was made with.

    Attributes
    ----------
    name : str
        Such as ``AnatNet version``.
    values : tuple of (str, tuple of str)
        Every value with its sessions, the most frequent first.
    of_scan : bool
        Whether it is a property of the scan, which no rerun changes.
    """

    name: str
    values: tuple[tuple[str, tuple[str, ...]], ...]
    of_scan: bool

    @property
    def varies(self) -> bool:
        """Whether not all sessions agree."""
        return len(self.values) > 1


def facts(study: Study) -> list[Fact]:
    """Collect with what the finished sessions were made, in a fixed order."""
    found: dict[str, dict[str, list[str]]] = {}
    for record in study.done:
        for name, value in _facts_of(record):
            found.setdefault(name, {}).setdefault(value, []).append(record.prefix)
    return [
        Fact(
            name,
            tuple(
                (value, tuple(sessions))
                for value, sessions in sorted(
                    values.items(), key=lambda item: (-len(item[1]), item[0])
                )
            ),
            name in _SCAN_FACTS,
        )
        for name, values in found.items()
    ]


def _facts_of(record: SessionRecord) -> Iterator[tuple[str, str]]:
    """Yield what one session was made with."""
    state = record.state
    if state is None:
        return
    report = _mapping(state.run.get('report'))
    run = _mapping(report.get('run'))
    yield 'AnatNet version', state.version
    versions = {
        str(model.get('sha256')): f' {model["version"]}'
        for model in report.get('models') or ()
        if isinstance(model, dict) and model.get('version')
    }
    for name, checksum in sorted(state.models.items()):
        yield f'Model {name}', f'{checksum[:12]}{versions.get(checksum, "")}'
    yield 'Modules', ', '.join(state.modules)
    for name, value in sorted(state.options.items()):
        yield f'Option {name}', _words(value)
    for space in report.get('normalisation') or ():
        if isinstance(space, dict):
            how = [_words(space[name]) for name in ('method', 'res') if space.get(name)]
            yield f'Registration to {space.get("space")}', ', '.join(how) or 'unknown'
    yield 'Warnings', '; '.join(map(str, report.get('warnings') or ())) or 'none'
    for name in ('device', 'precision', 'fallback'):
        yield name.capitalize(), _words(run.get(name) or 'none')
    conform = _mapping(report.get('conform'))
    if zooms := conform.get('native_zooms'):
        yield 'Voxel size of the scan (mm)', ' × '.join(f'{float(size):.2f}' for size in zooms)
    if shape := conform.get('native_shape'):
        yield 'Voxels of the scan', ' × '.join(map(str, shape))


def methods_texts(study: Study) -> list[tuple[str, tuple[str, ...]]]:
    """Return the different methods texts of the sessions with their sessions, most frequent first.

    Sessions that do not say are left out.
    """
    found: dict[str, list[str]] = {}
    for record in study.done:
        report = _mapping(record.state.run.get('report')) if record.state else {}
        text = report.get('methods')
        if isinstance(text, str) and text.strip():
            found.setdefault(text.strip(), []).append(record.prefix)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(text, tuple(sessions)) for text, sessions in ordered]


def group_methods(study: Study, version: str, homogeneity: Homogeneity | None) -> str:
    """Word what the group level does, as a paragraph of the methods."""
    rules = thresholds()
    people = len({record.subject for record in study.done})
    text = (
        f'The results of {len(study.done)} sessions of {people} participants were compared with '
        f'AnatNet {version}. Measures of quality and volumes relative to the total intracranial '
        f'volume were expressed as robust z-scores ({rules["comparison"]}). '
    )
    if homogeneity is not None:
        text += (
            'The smoothed maps of modulated grey matter were compared by their mean correlation '
            'with the other maps'
        )
        if homogeneity.components:
            text += (
                f' and by their Mahalanobis distance over the first {homogeneity.components} '
                'principal components'
            )
        text += '. '
    return text + (
        f'A score was formed from {len(GROUPS)} groups of measures as {rules["score"]}; the cost '
        f'of a measure is {rules["cost"]}.'
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, list | tuple):
        return ', '.join(map(_words, value)) or 'none'
    if isinstance(value, Mapping):
        return '; '.join(f'{name}: {_words(item)}' for name, item in sorted(value.items()))
    return str(value)
