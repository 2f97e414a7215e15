# SPDX-License-Identifier: Apache-2.0
"""Writing files so that nobody ever sees a half of one.

Every function writes to a temporary name in the folder of the target and renames at the end. A
run that is killed leaves at most a hidden temporary file, which :func:`remove_leftovers` finds.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nibabel as nib

_CHUNK = 1 << 22
_TEMPORARY = re.compile(r'^\..+\.(?P<host>[^.]*)\.(?P<pid>\d+)\.[0-9a-f]{8}\.part$')


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when the block ends without an error.

    Parameters
    ----------
    path : Path
        Target; its folder is made if it is missing.

    Yields
    ------
    binary file
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().split('.')[0]
    temporary = path.with_name(f'.{path.name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part')
    try:
        with open(temporary, 'wb') as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def atomic_write_bytes(path: Path, content: bytes) -> Path:
    """Write bytes and return the path."""
    with atomic_open(path) as stream:
        stream.write(content)
    return Path(path)


def atomic_write_text(path: Path, text: str) -> Path:
    """Write text as UTF-8 and return the path."""
    return atomic_write_bytes(path, text.encode('utf-8'))


def write_if_different(path: Path, text: str) -> bool:
    """Write text unless the file holds it already; return whether it was written.

    Jobs that share an output folder write the same top-level files: a file that is right is left
    alone, even where it is write-protected.
    """
    with contextlib.suppress(OSError):
        if Path(path).read_bytes() == text.encode('utf-8'):
            return False
    atomic_write_text(path, text)
    return True


def write_sidecar(path: Path, fields: dict[str, Any]) -> Path:
    """Write a JSON sidecar; ``path`` is that of the JSON file."""
    return atomic_write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + '\n')


def atomic_copy(source: Path, path: Path, compresslevel: int = 1) -> Path:
    """Copy a file; compress it on the way if only the target's name ends with ``.gz``.

    The bytes depend on the content alone (no time and no name in the gzip header), so that two
    runs write the same file.
    """
    compress = str(path).endswith('.gz') and not str(source).endswith('.gz')
    with open(source, 'rb') as reading, atomic_open(path) as writing:
        if compress:
            with _gzip(writing, compresslevel) as packed:
                shutil.copyfileobj(reading, packed, _CHUNK)
        else:
            shutil.copyfileobj(reading, writing, _CHUNK)
    return Path(path)


def atomic_save_nifti(image: nib.Nifti1Image, path: Path, compresslevel: int = 1) -> Path:
    """Write a NIfTI image, compressed if the name ends with ``.gz``.

    The same image always gives the same bytes.
    """
    with atomic_open(path) as stream:
        if str(path).endswith('.gz'):
            with _gzip(stream, compresslevel) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(stream)
    return Path(path)


def remove_leftovers(
    folder: Path, older_than: float = 86400.0, *, recursive: bool = True
) -> list[Path]:
    """Remove temporary files that a killed run left in a folder and, by default, below it.

    A file goes if the process that wrote it is gone (on this machine) or if nobody has touched
    it for ``older_than`` seconds (on another).

    Returns
    -------
    list of Path
        What was removed.
    """
    removed = []
    host = socket.gethostname().split('.')[0]
    pattern = '**/.*.part' if recursive else '.*.part'
    for file in sorted(Path(folder).glob(pattern)):
        match = _TEMPORARY.match(file.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):
            if match['host'] == host and _is_alive(int(match['pid'])):
                continue
            if match['host'] != host and time.time() - file.stat().st_mtime < older_than:
                continue
            file.unlink()
            removed.append(file)
    return removed


def _gzip(stream: IO[bytes], level: int) -> gzip.GzipFile:
    return gzip.GzipFile(filename='', mode='wb', fileobj=stream, compresslevel=level, mtime=0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
