# SPDX-License-Identifier: Apache-2.0
"""Put the files of one session into the derivatives folder: compressed, described, atomic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bids_app.bids.files import atomic_copy, write_sidecar
from bids_app.bids.outputs import Outputs
from bids_app.errors import AnatNetError
from bids_app.resume import relative

COMPRESSION = 2
"""Level of gzip: higher ones take several times as long for a few percent."""

FROM_SCAN = ('t1w_preproc', 'brain_mask')
"""Derivatives whose source is the scan; the others are made from the corrected scan."""

FROM_NETWORK = {
    'brain_mask': ('segment', 'mask'),
    'dseg': ('segment',),
    'probseg_gm': ('segment',),
    'probseg_wm': ('segment',),
    'probseg_csf': ('segment',),
    'wholebrain_dseg': ('segment',),
    'uncertainty': ('segment',),
    'tissue_morph': ('segment',),
    'wholebrain_morph': ('segment',),
}
"""For every derivative that a network made, the step whose device and precision it names."""


def publish(
    files: Mapping[str, Path],
    outputs: Outputs,
    in_file: Path,
    bids_dir: Path,
    *,
    steps: Mapping[str, Mapping[str, Any]],
    model: Mapping[str, Any],
    threads: int = 1,
) -> dict[str, int]:
    """Write derivatives and their sidecars; each of them is there as a whole or not at all.

    Parameters
    ----------
    files : mapping
        Keys of the table of derivatives with the files to publish: uncompressed NIfTI or TSV.
    outputs : Outputs
        Names of the session's derivatives.
    in_file, bids_dir : Path
        The scan, and the raw data set that it belongs to.
    steps : mapping
        Findings of every step.
    model : mapping
        ``name``, ``version`` and ``sha256``.
    threads : int
        How many files are compressed at once.

    Returns
    -------
    dict
        The files written, relative to the derivatives folder, with their size in bytes.

    Raises
    ------
    AnatNetError
        If the derivatives folder cannot be written.
    """
    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            written = list(
                pool.map(
                    lambda key: atomic_copy(files[key], outputs.path(key), COMPRESSION), files
                )
            )
        for key in files:
            fields = describe(key, files, outputs, in_file, bids_dir, steps=steps, model=model)
            written.append(write_sidecar(outputs.sidecar_path(key), fields))
    except OSError as error:
        place = error.filename2 or error.filename or outputs.session_dir
        raise AnatNetError(
            f'cannot write {place}: {error.strerror or error}; check free space and permissions'
        ) from error
    return sizes(written, outputs.output_dir)


def sizes(paths: Iterable[Path], root: Path) -> dict[str, int]:
    """Return the size in bytes of files, by their path relative to ``root``."""
    return {relative(path, root): path.stat().st_size for path in paths}


def describe(
    key: str,
    files: Mapping[str, Path],
    outputs: Outputs,
    in_file: Path,
    bids_dir: Path,
    *,
    steps: Mapping[str, Mapping[str, Any]],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the sidecar of a derivative; parameters as for :func:`publish`."""
    extra: dict[str, Any] = {'Sources': [_source(key, files, outputs, in_file, bids_dir)]}
    if key == 't1w_preproc':
        extra['SkullStripped'] = bool(steps.get('bias', {}).get('skull_stripped', False))
        if extra['SkullStripped']:
            extra['Description'] = (
                'Bias-corrected T1w image on the grid of the scan, which came skull-stripped'
            )
    for step in FROM_NETWORK.get(key, ()):
        if step in steps:
            found = steps[step]
            extra['Model'] = {
                'Name': model.get('name'),
                'Version': model.get('version'),
                'SHA256': model.get('sha256'),
            }
            extra['Device'] = found.get('device')
            extra['Precision'] = found.get('precision')
            extra['Fallback'] = found.get('fallback')
            break
    columns = steps.get('measure', {}).get('columns', {}).get(key, {})
    return outputs.sidecar(key, **{**columns, **extra})


def _source(
    key: str, files: Mapping[str, Path], outputs: Outputs, in_file: Path, bids_dir: Path
) -> str:
    if key in FROM_SCAN or 't1w_preproc' not in files:
        return 'bids:raw:' + relative(in_file, bids_dir)
    return 'bids::' + relative(outputs.path('t1w_preproc'), outputs.output_dir)
