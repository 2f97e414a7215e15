# SPDX-License-Identifier: Apache-2.0
"""The report of one session: what it needs to know, and the page that it becomes."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_app.bids.files import atomic_write_text
from bids_app.reports.page import FILE_KEYS, render_page

LOGGER = logging.getLogger('anatnet.reports')

__all__ = ['FILE_KEYS', 'SessionReport', 'with_paths', 'write_report']


@dataclass
class SessionReport:
    """Everything that the report of a session shows; made of JSON types only.

    Every field but ``label`` may be empty: the report shows what there is.

    Attributes
    ----------
    label : str
        ``sub-01_ses-1``.
    status : str
        ``completed`` or ``failed``.
    reference : str
        Contrast of the image on whose grid everything is; ``T1w`` nearly always.
    inputs : list of dict
        The scans that were used: ``path``, ``suffix`` and, optionally, ``note``.
    skipped : list of dict
        Scans that were left out: ``path`` and ``reason``.
    conform : dict
        What :func:`bids_app.images.conform.conform_file` reported; ``notes`` is a list of text.
    files : dict of str
        Derivatives by the keys of :data:`FILE_KEYS`; additionally ``scan``, the raw scan, which
        is shown where there is no preprocessed one. Files that do not exist are passed over.
    qc : dict
        ``status`` (``ok``, ``warn`` or ``fail``), ``reasons`` (list of text) and ``checks``
        (list of dict with ``name``, ``value``, ``status``, ``threshold`` and ``reason``).
    participant : dict
        Fields of ``participants.tsv`` such as ``age`` and ``sex``.
    run : dict
        ``version``, ``command_line`` (list or text), ``run_uuid``, ``started``, ``device``,
        ``device_reason``, ``precision``, ``fallback`` and whatever else is worth a line.
    models : list of dict
        ``name``, ``version``, ``sha256``, ``licence``.
    steps : list of dict
        ``name`` and ``seconds`` in the order of the workflow.
    errors : list of dict
        ``step``, ``message``, ``traceback`` (text of the crash file) and ``file``.
    warnings : list of str
        One line each.
    precomputed : list of dict
        What was taken from elsewhere (``--derivatives NAME=PATH``) instead of being made:
        ``what`` (``brain mask``, ``tissue maps``), ``name`` (``NAME``), ``path`` (the file, or
        the folder) and, optionally, ``figure``: the figure that says so, too (``mask``,
        ``tissues``).
    spaces : list of dict
        One per output space, in the order of the command line; the first is shown unfolded:

        - ``space``: name, as in ``space-<name>``;
        - ``method``: ``network``, ``refined`` or ``ants``;
        - ``voxel_size``: of the maps, mm;
        - ``fwhm``: list of the smoothing widths, mm, in the order of the command line;
        - ``measures``: what the registration says of itself (``Normalisation.measures``),
          judged with the limits of :mod:`bids_app.morphometry.checks`;
        - ``files``: derivatives in this space by their keys in the table of outputs. Shown are
          ``std_preproc``, ``vbm_gm``, ``vbm_gm_smooth`` (the one of the first width) and
          ``jacobian`` (affine and nonlinear part); others may be there;
        - ``template``: files of the template: ``t1w`` and ``tissues``
          (:class:`bids_app.images.templates.Template`); they may lie anywhere;
        - ``notes``: list of text, such as which registration had to replace which, and why.
    regions : list of dict
        One per atlas: ``atlas`` (name), ``file`` (the table that holds what
        :func:`bids_app.morphometry.regions.regional_volumes` returned) and, optionally,
        ``space`` (the space of the atlas) and ``source`` (its file).
    predictions : list of dict
        One per classifier: ``model`` (name), ``file`` (the table that holds what
        :func:`bids_app.inference.classifier.predict_files` returned) and, optionally, ``sha256``.
    contrasts : list of dict
        One per image that was registered to the reference: ``name`` (``T2w``, ``FLAIR``),
        ``status`` (``ok``, ``doubtful`` or ``failed``; only the first is used), ``reasons`` (list
        of text), ``measures`` of the registration, ``notes`` and, where it is used, ``file``, the
        image on the grid of the reference.
    tissue_model : dict
        What made the tissue maps, if it was not the segmentation model: ``name``, ``contrasts``
        that it used, ``unused``, ``lesions`` (whether it looked for them) and ``corrected``.
    dwi : dict
        What was made of diffusion images: ``alone`` (there was nothing else), ``status``,
        ``reasons``, ``notes``, ``no_tensor``, ``model`` (that of the synthesis), ``volumes``,
        ``shells``, ``directions``, ``uncorrected``, ``motion``, ``registrations`` by what they
        went through, ``through``, ``apart_mm``, ``agreement`` and ``files`` by their keys in the
        table of outputs; empty without diffusion images.
    methods : str
        Methods text in Markdown with citations such as ``[@n4]``.
    """

    label: str
    status: str = 'completed'
    reference: str = 'T1w'
    inputs: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    conform: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    qc: dict[str, Any] = field(default_factory=dict)
    participant: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    precomputed: list[dict[str, Any]] = field(default_factory=list)
    spaces: list[dict[str, Any]] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    contrasts: list[dict[str, Any]] = field(default_factory=list)
    tissue_model: dict[str, Any] = field(default_factory=dict)
    dwi: dict[str, Any] = field(default_factory=dict)
    methods: str = ''

    def to_dict(self, root: str | Path | None = None) -> dict[str, Any]:
        """Return the report's content as JSON types.

        Parameters
        ----------
        root : path, optional
            Derivatives folder; paths of files below it are written relative to it, so that the
            folder may be moved.
        """
        values = json.loads(json.dumps(dataclasses.asdict(self), default=_plain))
        if root is not None:
            values = with_paths(values, lambda path: _relative(path, root))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], root: str | Path | None = None) -> SessionReport:
        """Make a report from :meth:`to_dict`'s result; fields that it does not know are ignored.

        Raises
        ------
        ValueError
            If there is no ``label``.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        chosen = {name: value for name, value in values.items() if name in known}
        if not chosen.get('label'):
            raise ValueError('the saved context of a report has no label')
        if root is not None:
            chosen = with_paths(chosen, lambda path: str(Path(root, path)))
        return cls(**chosen)

    def save(self, path: str | Path, root: str | Path | None = None) -> Path:
        """Write the content to a JSON file, from which the page can be made again."""
        text = json.dumps(self.to_dict(root), indent=1) + '\n'
        return atomic_write_text(Path(path), text)

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> SessionReport:
        """Read what :meth:`save` wrote.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read or is not a saved report.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding='utf-8')), root)


def with_paths(content: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return the content of a report with every path of a file that it shows changed.

    Parameters
    ----------
    content : mapping
        Fields of :class:`SessionReport`, all or some; files without a path are left out.
    change : callable
        From the path that is there to the one that is wanted.
    """

    def files(given: Mapping[str, Any] | None) -> dict[str, str]:
        return {key: change(str(path)) for key, path in (given or {}).items() if path}

    result = dict(content)
    if 'files' in result:
        result['files'] = files(result['files'])
    if result.get('dwi'):
        result['dwi'] = {**result['dwi'], 'files': files(result['dwi'].get('files'))}
    if 'spaces' in result:
        result['spaces'] = [
            {**space, 'files': files(space.get('files')), 'template': files(space.get('template'))}
            for space in result['spaces']
        ]
    for name in ('regions', 'predictions', 'contrasts'):
        if name in result:
            result[name] = [
                {**one, 'file': change(str(one['file']))} if one.get('file') else one
                for one in result[name]
            ]
    return result


def write_report(
    context: SessionReport, out_file: str | Path, figures_dir: str | Path | None = None
) -> Path:
    """Write the report of a session as one HTML file that needs no other file.

    Whatever cannot be drawn or read becomes a line of the report, never an exception: a figure
    that fails must not cost a result.

    Parameters
    ----------
    context : SessionReport
        What to show.
    out_file : path
        The HTML file.
    figures_dir : path, optional
        Where every figure is written as an SVG file of its own, too (names as NiPreps give
        them); default ``sub-<label>/figures`` beside the HTML file.

    Returns
    -------
    Path
        ``out_file``.

    Raises
    ------
    OSError
        If the HTML file cannot be written.
    """
    started = time.perf_counter()
    out_file = Path(out_file)
    page, figures = render_page(context, started)
    atomic_write_text(out_file, page)
    if figures_dir is None:
        figures_dir = out_file.parent / context.label.split('_')[0] / 'figures'
    for name, drawing in figures.items():
        try:
            atomic_write_text(Path(figures_dir) / f'{context.label}_{name}.svg', drawing)
        except OSError as error:
            LOGGER.warning('figure %s of %s was not written: %s', name, context.label, error)
    return out_file


def _plain(value: Any) -> Any:
    """Turn paths, tuples and numpy values into JSON types."""
    if hasattr(value, 'tolist'):
        return value.tolist()
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return list(value)
    return str(value)


def _relative(path: str, root: str | Path) -> str:
    try:
        return Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        return os.path.abspath(path)
