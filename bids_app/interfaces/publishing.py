# SPDX-License-Identifier: Apache-2.0
"""Put the files of one session into the derivatives folder: compressed, described, atomic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bids_app.bids.files import atomic_copy, write_sidecar
from bids_app.bids.outputs import Outputs, file_id, table
from bids_app.errors import AnatNetError
from bids_app.interfaces.sidecars import LESIONS, Session, describe
from bids_app.resume import relative

COMPRESSION = 2
"""Level of gzip: higher ones take several times as long for a few percent."""


def publish(
    files: Mapping[str, Path],
    outputs: Outputs,
    in_file: Path,
    bids_dir: Path,
    *,
    steps: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    templates: Mapping[str, str] | None = None,
    contrasts: Mapping[str, str] | None = None,
    threads: int = 1,
) -> dict[str, int]:
    """Write derivatives and their sidecars; each of them is there as a whole or not at all.

    Parameters
    ----------
    files : mapping
        Keys of the table of derivatives, or file ids, with the files to publish: uncompressed
        NIfTI, transforms or TSV.
    outputs : Outputs
        Names of the session's derivatives.
    in_file, bids_dir : Path
        The scan, and the raw data set that it belongs to.
    steps : mapping
        Findings of every step.
    models : mapping
        ``name``, ``version`` and ``sha256`` of every model by its role, ``segmentation`` and
        ``registration``.
    templates : mapping of str to str, optional
        T1w image of every template, by the name of the space.
    contrasts : mapping of str to str, optional
        Further scans of the session, by their contrast.
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
        session = Session(
            outputs, in_file, bids_dir, tuple(files), steps, models, templates or {},
            contrasts or {},
        )  # fmt: skip
        for key in files:
            fields = describe(key, session)
            written.append(write_sidecar(outputs.sidecar_path(key), fields))
        remove_outdated(outputs, files)
    except OSError as error:
        place = error.filename2 or error.filename or outputs.session_dir
        raise AnatNetError(
            f'cannot write {place}: {error.strerror or error}; check free space and permissions'
        ) from error
    return sizes(written, outputs.output_dir)


def remove_outdated(outputs: Outputs, files: Iterable[str]) -> None:
    """Remove what an earlier run wrote of contrasts, lesions and diffusion and this one did not.

    A contrast that was registered then and is not now, or lesions of another tissue model, would
    be taken for results of this run.

    Parameters
    ----------
    outputs : Outputs
        Names of the session's derivatives.
    files : iterable of str
        Keys and file ids of what was written.
    """
    kinds = ('contrast_preproc', 'xfm_to_reference', 'xfm_from_reference')
    optional = [
        *LESIONS,
        *(key for key in table() if key.startswith('dwi_')),
        *(
            file_id(kind, contrast=name)
            for name in ('T2w', 'FLAIR')
            if name != outputs.reference
            for kind in kinds
        ),
    ]
    for key in set(optional) - set(files):
        outputs.path(key).unlink(missing_ok=True)
        outputs.sidecar_path(key).unlink(missing_ok=True)


def sizes(paths: Iterable[Path], root: Path) -> dict[str, int]:
    """Return the size in bytes of files, by their path relative to ``root``."""
    return {relative(path, root): path.stat().st_size for path in paths}
