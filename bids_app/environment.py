# SPDX-License-Identifier: Apache-2.0
"""Make the process safe to run anywhere: any user, any home, a given number of threads."""

from __future__ import annotations

import contextlib
import getpass
import os
import stat
import tempfile
from pathlib import Path

from bids_app.errors import UsageError

THREAD_VARIABLES = (
    'OMP_NUM_THREADS',
    'OPENBLAS_NUM_THREADS',
    'MKL_NUM_THREADS',
    'NUMEXPR_NUM_THREADS',
    'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS',
)


def prepare_environment() -> None:
    """Keep libraries from phoning home and from a home folder that cannot be written.

    Nipype asks a server for news unless ``NO_ET`` is set. In a container the user often has no
    home folder; Nipype, matplotlib and templateflow then get one in the temporary folder.
    Idle threads sleep instead of spinning: where other processes want the same cores, spinning
    made the network steps five times slower. Nipype's plugins for clusters need ``LOGNAME``.

    Raises
    ------
    UsageError
        If there is no folder at all for temporary files.
    """
    os.environ['NO_ET'] = '1'
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    if not os.environ.get('LOGNAME'):  # not set in jobs of some clusters, nor in containers
        os.environ['LOGNAME'] = _user_name()
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UsageError(
            'no folder for temporary files can be written (TMPDIR, /tmp, /var/tmp); give a '
            'container one with --tmpfs /tmp, or set TMPDIR to a folder that is writable'
        ) from None
    home = Path(os.environ.get('HOME') or os.path.expanduser('~'))
    if not _is_writable(home):
        os.environ['HOME'] = str(_own_temporary_folder('anatnet-home'))
        for name in ('XDG_CACHE_HOME', 'XDG_CONFIG_HOME'):
            os.environ.pop(name, None)
    config = os.environ.get('MPLCONFIGDIR')
    if config is not None and not _is_writable(Path(config)):
        del os.environ['MPLCONFIGDIR']


def limit_threads(number: int) -> None:
    """Set how many threads one process may use; before numpy, torch and ITK are loaded."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(number)


def default_work_dir(bids_dir: Path) -> Path:
    """Return ``./work``, or a folder in the temporary folder where that cannot be."""
    here = Path.cwd()
    if _is_writable(here) and not here.is_relative_to(bids_dir):
        return here / 'work'
    return _own_temporary_folder('anatnet-work')


def _own_temporary_folder(name: str) -> Path:
    """Make a folder of this user, the same in every call unless somebody else has taken its place.

    What lies in it is trusted: Nipype unpickles the results of steps. In a temporary folder that
    all users share, another one could have put it there.
    """
    folder = Path(tempfile.gettempdir()) / f'{name}-{_uid()}'
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == _uid() and not status.st_mode & 0o022
    if mine and _is_writable(folder):
        return folder
    return Path(tempfile.mkdtemp(prefix=f'{name}-'))


def default_nprocs() -> int:
    """Count the CPU cores this process may use: its affinity and its container's share."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    for text in cgroup_values('cpu.max'):
        with contextlib.suppress(ValueError):  # "max"
            quota, period = text.split()
            cores = min(cores, max(1, int(quota) // int(period)))
    return max(1, cores)


def memory_bytes() -> int:
    """Return the memory this process may use: that of the machine, or its container's or job's."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for text in (*cgroup_values('memory.max'), *cgroup_values('memory.limit_in_bytes', 'memory')):
        with contextlib.suppress(ValueError):  # "max"
            total = min(total, int(text))
    return total


def cgroup_values(
    name: str,
    controller: str = '',
    *,
    own: Path = Path('/proc/self/cgroup'),
    root: Path = Path('/sys/fs/cgroup'),
) -> list[str]:
    """Read a file of the control groups that this process is in.

    A container sees its own group as the root; a job of a cluster is somewhere below it.

    Parameters
    ----------
    name : str
        Of the file.
    controller : str
        Of version 1; without it, of version 2.
    own, root : Path
        Where the groups of the process are listed, and where they are.

    Returns
    -------
    list of str
        Contents in the group of the process and all above it, as far as they can be read.
    """
    folders = [root / controller]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(':', 2)
            if controller in controllers.split(','):
                group = root / controller / path.strip('/')
                folders += [group, *group.parents]
    found = []
    for folder in dict.fromkeys(folders):
        if folder.is_relative_to(root):
            with contextlib.suppress(OSError):
                found.append((folder / name).read_text())
    return found


def _is_writable(folder: Path) -> bool:
    """Whether a folder exists (or could be made where its parent exists) and takes files."""
    if not folder.is_absolute():  # "~" of a user without a home
        return False
    if not folder.exists():
        return folder.parent.exists() and os.access(folder.parent, os.W_OK | os.X_OK)
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in a container
        return f'user{_uid()}'


def _uid() -> int:
    return os.getuid() if hasattr(os, 'getuid') else 0
