# SPDX-License-Identifier: Apache-2.0
"""Tables of one session: volumes of tissues and structures, quality measures and their verdict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app.images.conform import load_array


def measure(
    files: Mapping[str, Path],
    folder: Path,
    *,
    located: Mapping[str, Any],
    segmented: Mapping[str, Any],
    registered: Mapping[str, Any] | None = None,
    coregistered: Mapping[str, Mapping[str, Any]] | None = None,
    reference: str = 'T1w',
) -> dict[str, Any]:
    """Write ``tissue_morph.tsv``, ``wholebrain_morph.tsv`` and ``qc_stats.tsv``.

    Parameters
    ----------
    files : mapping
        Images on the grid of the scan by their key in the table of derivatives, and the scan as
        it was acquired as ``raw_file``.
    folder : Path
        Where the tables go.
    located, segmented : mapping
        What ``locate_brain`` and ``segment_brain`` found: confidence and orientation; volumes.
    registered : mapping, optional
        What ``normalise_files`` found for the first output space.
    coregistered : mapping, optional
        What ``coregister_contrasts`` found, by contrast.
    reference : str
        Contrast of the scan: what is judged of intensities holds for T1w scans only.

    Returns
    -------
    dict
        ``qc`` (status, reasons, checks), ``columns`` (for every table the meaning of its columns,
        as its sidecar wants it), ``tiv_mm3`` and ``entropy_mean``.
    """
    from bids_app.images.conform import load_scan
    from bids_app.morphometry import qc, volumes
    from bids_app.morphometry.checks import (
        T1W_ONLY,
        coregistration_measures,
        registration_measures,
    )

    structure_rows = segmented['structures']
    tissue_table = volumes.tissue_table(segmented['tissues'])
    tiv = volumes.total_intracranial_volume(segmented['tissues'])
    volumes.write_table(tissue_table, folder / 'tissue_morph.tsv')
    structure_table = volumes.structure_table(structure_rows, tiv)
    volumes.write_table(structure_table, folder / 'wholebrain_morph.tsv')

    # Its matrix is that of the rule for headers; nibabel's may have other voxel sizes.
    raw = load_scan(files['raw_file'])
    measures = qc.qc_measures(
        load_array(files['preproc'])[0],
        {name: load_array(files[f'probseg_{name}'])[0] for name in ('gm', 'wm', 'csf')},
        load_array(files['brain_mask'])[0] > 0.5,
        raw.affine,
        raw=raw.data,
        entropy=load_array(files['uncertainty'])[0],
        structure_volumes={row['index']: row['volume_mm3'] for row in structure_rows},
        confidence=located.get('confidence'),
    )
    registered = registered or {}
    found = registered.get('measures', registered)
    # Durations say nothing of quality, and would make equal results unequal.
    measures |= registration_measures({k: v for k, v in found.items() if 'seconds' not in k})
    notes = []
    for name, one in (coregistered or {}).items():
        measures |= coregistration_measures(name, one.get('measures', {}))
        if one['status'] != 'ok':
            reason = (
                f'{name} is not used, registration {one["status"]}: {"; ".join(one["reasons"])}'
            )
            notes.append(('warn', reason))
    if located.get('orientation_suspect'):
        notes.append(('warn', f'orientation: {located["orientation_suspect"]}'))
    judged = measures
    if reference != 'T1w':
        judged = {name: value for name, value in measures.items() if name not in T1W_ONLY}
    verdict = qc.assess(judged, notes)
    qc_table = qc.qc_table(measures, verdict)
    volumes.write_table(qc_table, folder / 'qc_stats.tsv')
    return {
        'qc': verdict,
        'columns': {
            'tissue_morph': _of(volumes.TISSUE_COLUMNS, tissue_table),
            'wholebrain_morph': _of(volumes.STRUCTURE_COLUMNS, structure_table),
            'qc_stats': qc.qc_columns(qc_table.columns),
        },
        'tiv_mm3': tiv,
        'entropy_mean': measures.get('mean_entropy'),
    }


def _of(columns: Mapping[str, Any], table: Any) -> dict[str, Any]:
    return {name: meaning for name, meaning in columns.items() if name in table.columns}
