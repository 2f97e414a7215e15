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
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nibabel as nib

MAX_JSON_BYTES = 1 << 24
"""Size of JSON, TOML and YAML files up to which they are read: such files have a few kilobytes."""
MAX_TABLE_BYTES = 1 << 27
"""The same of tables: a hundred thousand lines of a kilobyte."""

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
    unique = f'{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}'
    temporary = path.with_name(f'.{path.name}.{unique}.part')
    try:
        with open(temporary, 'wb') as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename2 is None:
            # A full disk does not say where it is, and nobody knows the temporary name.
            error.filename = str(path)
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


def read_text(
    path: Path, limit: int = MAX_JSON_BYTES, encoding: str = 'utf-8', errors: str = 'strict'
) -> str:
    """Read a text file that somebody else has made; memory is bounded.

    Parameters
    ----------
    path : Path
        The file.
    limit : int
        Bytes that it may have.
    encoding : str
        ``utf-8``, or ``utf-8-sig`` where a byte order mark may come first.
    errors : str
        ``strict``, or ``replace`` where a wrong character must not cost the whole file.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it has more bytes, is not text, or is a pipe or a device, which may never end.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ValueError('it is not a regular file')
    with open(path, 'rb') as stream:
        content = stream.read(limit + 1) if status.st_size <= limit else None
    if content is None or len(content) > limit:
        size = max(status.st_size, limit + 1)
        raise ValueError(f'it has {size / 1e6:,.1f} MB, at most {limit / 1e6:.1f} MB can be read')
    return content.decode(encoding, errors)


def read_json(path: Path, limit: int = MAX_JSON_BYTES, encoding: str = 'utf-8') -> Any:
    """Read a JSON file that somebody else has made; like :func:`read_text`.

    Raises
    ------
    ValueError
        Also if it is not JSON, or so deeply nested that no such file is meant.
    """
    try:
        return json.loads(read_text(path, limit, encoding))
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


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
    host = _host()
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


@contextlib.contextmanager
def file_lock(path: Path, patience: float = 60.0) -> Iterator[bool]:
    """Keep other processes out while a file is read, changed and written again.

    Parameters
    ----------
    path : Path
        File that stands for the lock; made if it is missing, and it stays.
    patience : float
        Seconds to wait for the others.

    Yields
    ------
    bool
        Whether the lock is held. It is not where the file system has none, where the folder
        cannot be written, or where the others hold it for too long: the work goes on all the same.
    """
    import fcntl

    with contextlib.ExitStack() as stack:
        held = False
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(path.open('ab'))
            deadline = time.monotonic() + patience
            while not held and time.monotonic() < deadline:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                except BlockingIOError:
                    time.sleep(0.02)
        yield held


def _host() -> str:
    """Name the machine and the space of its process numbers: containers count anew."""
    name = socket.gethostname().split('.')[0]
    try:
        return f'{name}-{os.stat("/proc/self/ns/pid").st_ino}'
    except OSError:  # not Linux
        return name


def _gzip(stream: IO[bytes], level: int) -> gzip.GzipFile:
    return gzip.GzipFile(filename='', mode='wb', fileobj=stream, compresslevel=level, mtime=0)


def _is_alive(pid: int) -> bool:
    import psutil

    try:
        # A zombie writes no more. In containers without an init nobody may ever wait for it.
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
