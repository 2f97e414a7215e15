# SPDX-License-Identifier: Apache-2.0
"""Worker processes: what they do, how they are started and how they end."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from traceback import format_exception
from typing import Any

_TERMINATED = 128 + signal.SIGTERM
_INNOCENT_EXIT_CODES = (None, 0, -signal.SIGTERM, _TERMINATED)
_leaving = threading.Event()
_JOIN_SECONDS = 10.0
_UNWIND_SECONDS = 3.0


class WorkerPool:
    """Processes that run nodes, started when they are first needed and again after a death.

    Parameters
    ----------
    size : int
        Most processes at a time.
    cwd : str
        Their working folder.
    environment : mapping of str to str
        Variables to set in them.
    start_method : str
        Of :mod:`multiprocessing`.
    preload : sequence of str
        Modules that they share.
    """

    def __init__(
        self,
        size: int,
        cwd: str,
        environment: Mapping[str, str],
        *,
        start_method: str = 'forkserver',
        preload: Sequence[str] = (),
    ) -> None:
        self.size = size
        self._cwd = cwd
        self._environment = dict(environment)
        self._start_method = start_method
        self._preload = tuple(preload)
        self._executor: ProcessPoolExecutor | None = None
        # The executor forgets its processes when it breaks; they are remembered at every submit.
        self._known: dict[int, Any] = {}

    def submit(self, node: Any, updatehash: bool, taskid: int) -> Future | None:
        """Give a node to a worker; None if a worker has died since the last look."""
        if self._executor is None:
            self._executor = self._start()
        try:
            future = self._executor.submit(run_task, node, updatehash, taskid, self._cwd)
        except BrokenProcessPool:
            return None
        self._remember()
        return future

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context(self._start_method)
        if context.get_start_method() == 'forkserver':
            context.set_forkserver_preload(['__main__', *self._preload])
        return ProcessPoolExecutor(
            max_workers=self.size,
            mp_context=context,
            initializer=start_worker,
            initargs=(self._cwd, self._environment),
        )

    def _remember(self) -> list[Any]:
        self._known.update(getattr(self._executor, '_processes', None) or {})
        return list(self._known.values())

    def bury(self) -> dict[int, int]:
        """End a pool of which a worker has died; returns the exit codes of the dead by their pid.

        Workers that the executor itself has ended are not among them.
        """
        if self._executor is None:
            return {}
        workers = self._remember()
        self._executor.shutdown(wait=True, cancel_futures=True)
        deadline = time.monotonic() + _JOIN_SECONDS
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        dead = {
            worker.pid: worker.exitcode
            for worker in workers
            if worker.exitcode not in _INNOCENT_EXIT_CODES
        }
        stop_processes(workers)
        self._known.clear()
        self._executor = None
        return dead

    def release(self, kill: bool = False) -> list[Any]:
        """End the workers: wait for what they do, or return those that are to be stopped."""
        executor, self._executor = self._executor, None
        if executor is None:
            return []
        if not kill:
            executor.shutdown(wait=True, cancel_futures=True)
            return []
        self._known.update(getattr(executor, '_processes', None) or {})
        executor.shutdown(wait=False, cancel_futures=True)
        return list(self._known.values())


def pid_file(node: Any) -> Path:
    """Return the file that names the worker of a node while it runs."""
    folder = Path(node.output_dir())
    return folder.parent / f'.{folder.name}.pid'


def read_pid(path: Path) -> int | None:
    """Read a :func:`pid_file`; None if there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def stop_processes(processes: list[Any], patience: float = 3.0) -> None:
    """Ask processes to end, and kill those that are still there after ``patience`` seconds."""
    for process in processes:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            process.terminate()
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                process.kill()
            process.join(1.0)


def run_task(node: Any, updatehash: bool, taskid: int, cwd: str) -> dict[str, Any]:
    """Run a node in a worker and bring home its result or its traceback.

    Also when it ran (``span``, seconds of the monotonic clock that all processes share) and the
    ``cpu_seconds`` that it took.
    """
    result: dict[str, Any] = {'result': None, 'traceback': None, 'taskid': taskid}
    started, cpu = time.monotonic(), time.process_time()
    _end_with_main()
    file = pid_file(node)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(os.getpid()))
    try:
        result['result'] = node.run(updatehash=updatehash)
    except BaseException:
        # Nipype and the executor swallow the exit that SIGTERM asks for and would wait for ever.
        if _leaving.is_set():
            os._exit(_TERMINATED)
        result['traceback'] = format_exception(*sys.exc_info())
        with contextlib.suppress(Exception):
            result['result'] = node.result
    os.chdir(cwd)
    with contextlib.suppress(OSError):
        file.unlink()
    result['span'] = started, time.monotonic()
    result['cpu_seconds'] = time.process_time() - cpu
    return result


def start_worker(cwd: str, environment: dict[str, str]) -> None:
    """Prepare a fresh worker: quiet, deaf to Ctrl-C, and gone when the main process is gone."""
    os.chdir(cwd)
    os.environ.update(environment)
    # The terminal sends Ctrl-C to every process; only the main process answers and then ends
    # the workers with SIGTERM, which unwinds the stack so that temporary files are removed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    quiet_nipype()
    threading.Thread(target=_watch_main, daemon=True).start()


def _leave(number: int, frame: object) -> None:
    _leaving.set()
    last_word = threading.Timer(_UNWIND_SECONDS, os._exit, (_TERMINATED,))
    last_word.daemon = True
    last_word.start()
    raise SystemExit(_TERMINATED)


def _end_with_main() -> None:
    """Have the system end this worker when the main process is gone.

    A thread would have to wait until a library gives the interpreter back, and ANTs does not for
    minutes. The worker holds the reading end of a pipe whose writing end only the main process
    has, and asks for the signal SIGIO, which ends a process by default, when that end closes.

    Called with the first task, not earlier: main writes what starts a worker to the same pipe,
    and has done so when it gives out tasks.
    """
    main = multiprocessing.parent_process()
    if main is None:
        return
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(main.sentinel, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(main.sentinel, fcntl.F_GETFL)
    fcntl.fcntl(main.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)


def _watch_main() -> None:
    """Leave when the main process is gone: it cannot end us if it was killed.

    The parent that the system knows is the fork server, which lives as long as its workers do.
    """
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)


def quiet_nipype(handler: logging.Handler | None = None, level: int = logging.WARNING) -> None:
    """Send what Nipype logs to ``handler`` alone, or nowhere."""
    logger = logging.getLogger('nipype')
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler or logging.NullHandler())
    logger.propagate = False
    for name in ('workflow', 'utils', 'filemanip', 'interface'):
        logging.getLogger(f'nipype.{name}').setLevel(level)
