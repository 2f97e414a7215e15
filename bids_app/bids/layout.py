# SPDX-License-Identifier: Apache-2.0
"""A pybids index of nothing but what AnatNet reads.

Indexing a large data set is slow because every file of every modality is matched against every
entity. Here only the ``anat`` and ``dwi`` images of the asked participants are looked at, and no
metadata. A database on disk carries a list of the files it was made from, per subject, so that
it is made anew when a subject, a session or a file has come or gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids.files import read_json
from bids_app.errors import InvalidBIDSError

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

LOGGER = logging.getLogger('anatnet.bids')

DATATYPES = ('anat', 'dwi')
IMAGES = ('.nii', '.nii.gz')
ABANDONED_SECONDS = 86400.0
"""Age from which an index that is being made is nobody's any more."""

LABEL = re.compile('[0-9a-zA-Z+]+')
GRADIENTS = ('.bval', '.bvec')


class Unwanted:
    """Tell pybids what to leave out; stands in for a compiled regular expression.

    Parameters
    ----------
    subjects : collection of str, optional
        Labels to index; all where ``None``.
    """

    def __init__(self, subjects: Collection[str] | None = None) -> None:
        self.subjects = None if subjects is None else frozenset(subjects)

    def search(self, path: str) -> bool:
        """Return whether ``path`` (``/`` and the path below the root) is to be left out."""
        return not self.wants(path.lstrip('/').split('/'))

    def wants(self, parts: list[str]) -> bool:
        """Return whether the folder or file of these path components is to be indexed."""
        if not parts[-1].isprintable():  # nor can the index hold it
            return False
        if parts[-1].endswith(GRADIENTS):  # these are inherited from any level
            return True
        top = parts[0]
        if not top.startswith('sub-') or not LABEL.fullmatch(top[4:]):
            return False
        if self.subjects is not None and top[4:] not in self.subjects:
            return False
        below = parts[1:]
        if below and below[0].startswith('ses-'):
            below = below[1:]
        if len(below) <= 1:  # the subject's or session's folder, or what lies directly in it
            return not below or below[0] in DATATYPES
        return len(below) == 2 and below[0] in DATATYPES and below[1].endswith(IMAGES)


def subject_labels(bids_dir: Path) -> list[str]:
    """List the labels of the ``sub-`` folders, sorted."""
    with os.scandir(bids_dir) as entries:
        return sorted(
            e.name[4:] for e in entries if e.name.startswith('sub-') and len(e.name) > 4
            and e.is_dir()
        )  # fmt: skip


def session_labels(bids_dir: Path, subject: str) -> list[str]:
    """List the labels of the ``ses-`` folders of a subject, sorted."""
    with os.scandir(bids_dir / f'sub-{subject}') as entries:
        return sorted(
            e.name[4:] for e in entries if e.name.startswith('ses-') and len(e.name) > 4
            and e.is_dir()
        )  # fmt: skip


def open_layout(
    bids_dir: Path, subjects: Collection[str] | None = None, database_dir: Path | None = None
) -> BIDSLayout:
    """Index a data set, or open an index that is still true.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw data set.
    subjects : collection of str, optional
        Labels of the participants that are asked for; all where ``None``.
    database_dir : Path, optional
        Folder for an index that later runs reuse. It always covers the whole data set, whoever
        is asked for, and lies in a folder of its own (``anatnet``), because the indices of other
        pipelines hold other files.

    Returns
    -------
    BIDSLayout
        Index of the NIfTI images of ``anat`` and ``dwi`` and of all gradient tables. It may hold
        more subjects than were asked for.
    """
    if database_dir is None:
        return _index(bids_dir, subjects)
    folder = Path(database_dir) / 'anatnet'
    labels = subject_labels(bids_dir) if subjects is None else subjects
    if _is_current(folder, bids_dir, labels, subjects is None):
        LOGGER.info('Using the index in %s', folder)
        return _index(bids_dir, None, folder / 'index')
    LOGGER.info('Indexing %s into %s', bids_dir, folder)
    try:
        return _rebuild(folder, bids_dir)
    except OSError as error:
        LOGGER.warning(
            'Cannot write an index into %s (%s): indexing in memory', folder, error.strerror
        )
        return _index(bids_dir, subjects)


def entities_config() -> dict[str, Any]:
    """Return pybids' table of entities with patterns that see the file name only.

    pybids matches on the absolute path: a data set below a folder such as ``/data/sub-99/run-3``
    would give every scan that subject and that run.
    """
    text = resources.files('bids.layout').joinpath('config/bids.json').read_text('utf-8')
    config = json.loads(text)
    config['name'] = 'anatnet'
    anchored = []
    for entity in config['entities']:
        name, pattern = entity['name'], entity['pattern']
        if name == 'datatype':
            pattern += r'[^/\\]+$'
        elif name not in ('suffix', 'extension', 'scans', 'fmap'):
            pattern += r'[^/\\]*$'
        if name not in ('scans', 'fmap'):
            anchored.append({**entity, 'pattern': pattern})
    config['entities'] = anchored
    return config


def entity_names() -> tuple[str, ...]:
    """List the entities by which a filter file may choose (pybids' names)."""
    return tuple(entity['name'] for entity in entities_config()['entities'])


def _index(
    bids_dir: Path, subjects: Collection[str] | None, database: Path | None = None
) -> BIDSLayout:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    _check_root(bids_dir)
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[Unwanted(subjects)])
    return BIDSLayout(
        str(bids_dir),
        validate=False,
        derivatives=False,
        config=[entities_config()],
        indexer=indexer,
        database_path=None if database is None else str(database),
    )


def _check_root(bids_dir: Path) -> None:
    """Refuse a description that pybids, which reads it whole, cannot cope with.

    One that is merely wrong is none for pybids, and somebody who leaves out the check of the input
    means it.
    """
    file = bids_dir / 'dataset_description.json'
    try:
        read_json(file)
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidBIDSError(f'cannot read {file}: {reason}; mend or remove it') from None


def _rebuild(folder: Path, bids_dir: Path) -> BIDSLayout:
    """Index everything into a new folder and put it in place of the old one.

    Other jobs may be doing the same or reading the old one: files are replaced whole, the list
    of files last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob('.new-*'):  # of a run that was killed
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix='.new-', dir=folder))
    try:
        labels = subject_labels(bids_dir)
        stored = {
            'bids_dir': str(bids_dir.resolve()),
            'root': _root_signature(bids_dir),
            'subjects': {label: _signature(bids_dir, label) for label in labels},
        }
        (temporary / 'files.json').write_text(json.dumps(stored), 'utf-8')
        _index(bids_dir, None, temporary / 'index')
        final = folder / 'index'
        final.mkdir(exist_ok=True)
        (folder / 'files.json').unlink(missing_ok=True)
        for file in (temporary / 'index').iterdir():
            os.replace(file, final / file.name)
        os.replace(temporary / 'files.json', folder / 'files.json')
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _index(bids_dir, None, folder / 'index')


def _is_current(folder: Path, bids_dir: Path, subjects: Collection[str], everyone: bool) -> bool:
    """Compare what the index was made from with what lies in the subjects' folders now."""
    try:
        stored = json.loads((folder / 'files.json').read_text('utf-8'))
        known: dict[str, str] = stored['subjects']
        if stored['bids_dir'] != str(bids_dir.resolve()):
            return False
        if stored['root'] != _root_signature(bids_dir):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if everyone and set(known) != set(subjects):
        return False
    return all(known.get(label) == _signature(bids_dir, label) for label in subjects)


# The list of files holds names, not times: file systems differ in how fine and how true their
# times are, and the index holds nothing but names.


def _root_signature(bids_dir: Path) -> str:
    """Digest the names of the gradient tables in the root."""
    with os.scandir(bids_dir) as entries:
        return _digest(e.name for e in entries if e.name.endswith(GRADIENTS))


def _signature(bids_dir: Path, subject: str) -> str:
    """Digest the names of all files that are indexed for a subject."""
    return _digest(_walk(bids_dir, [f'sub-{subject}'], Unwanted({subject})))


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256('\n'.join(sorted(names)).encode()).hexdigest()[:16]


def _walk(root: Path, parts: list[str], unwanted: Unwanted) -> Iterator[str]:
    """List the wanted files below a folder as paths relative to ``root``."""
    with os.scandir(root.joinpath(*parts)) as entries:
        for entry in entries:
            below = [*parts, entry.name]
            if not unwanted.wants(below):
                continue
            if entry.name.endswith((*IMAGES, *GRADIENTS)):
                yield '/'.join(below)
            elif entry.is_dir():
                yield from _walk(root, below, unwanted)
