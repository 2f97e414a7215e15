# SPDX-License-Identifier: Apache-2.0
"""A MultiProc plugin for Nipype that survives the death of a worker.

Nipype's own plugin waits forever when the operating system kills a worker, because the callback
that would have stored the result raises instead. Here the node whose worker died fails with a
message that says so, nodes that merely shared the pool are run again, and the scans that were
started first are finished first, so that results appear early and the work folder stays small.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin

WORKER_DIED = 'WorkerDied'
"""Name of the error in the crash file of a node whose worker process was killed."""

_TERMINATED = 128 + signal.SIGTERM
_INNOCENT_EXIT_CODES = (None, 0, -signal.SIGTERM, _TERMINATED)
_leaving = threading.Event()
_JOIN_SECONDS = 10.0
_UNWIND_SECONDS = 3.0


class SteadyMultiProcPlugin(MultiProcPlugin):
    """Run a workflow in worker processes and fail single nodes only.

    Parameters
    ----------
    plugin_args : dict
        As for Nipype's ``MultiProc`` (``n_procs``, ``memory_gb``, ``n_gpu_procs``,
        ``raise_insufficient``, ``mp_context``, ``status_callback``), and also ``on_crash``, a
        function that receives the node and the path of its crash file, ``rank``, a function
        that gives a sortable priority to a node (low first), ``environment``, variables to set in
        the workers, and ``preload``, modules that the workers share.

    Notes
    -----
    The pool outlives one call of ``run``, so that the modules that a worker has imported stay
    loaded for the next batch: close it with :meth:`close`, or use the plugin in a ``with``
    statement.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()
        self._on_crash = self.plugin_args.get('on_crash')
        self._rank = self.plugin_args.get('rank')
        self._flight: dict[int, tuple[Any, bool]] = {}
        self._lost: set[int] = set()
        self._workers: dict[int, Any] = {}
        self._situation: tuple[int, int, int] | None = None
        self.pool = self._new_pool()

    def __enter__(self) -> SteadyMultiProcPlugin:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close(kill=kind is not None)

    def run(self, graph: Any, config: dict[str, Any], updatehash: bool = False) -> None:
        """Run a graph; raise at its end if any of its nodes failed."""
        self.pending_tasks = []
        self._situation = None
        self._task_obj.clear()
        self._taskresult.clear()
        self._flight.clear()
        try:
            super().run(graph, config, updatehash=updatehash)
        except BaseException:
            self.close(kill=True)
            raise

    def close(self, kill: bool = False) -> None:
        """End the workers: wait for what they do, or stop them (``kill``) within seconds."""
        pool, self.pool = self.pool, None
        if pool is None:
            return
        if kill:
            workers = self._known_workers(pool)
            pool.shutdown(wait=False, cancel_futures=True)
            stop_processes(workers)
        else:
            pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context(self.plugin_args.get('mp_context', 'forkserver'))
        if context.get_start_method() == 'forkserver':
            context.set_forkserver_preload(['__main__', *self.plugin_args.get('preload', ())])
        return ProcessPoolExecutor(
            max_workers=self.processors,
            mp_context=context,
            initializer=start_worker,
            initargs=(self._cwd, self.plugin_args.get('environment', {})),
        )

    def _known_workers(self, pool: ProcessPoolExecutor) -> list[Any]:
        # The executor forgets its processes when it breaks; they are remembered at every submit.
        self._workers.update(getattr(pool, '_processes', None) or {})
        return list(self._workers.values())

    def _postrun_check(self) -> None:
        """Keep the pool for the next batch (Nipype shuts it down here)."""

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        self._flight[self._taskid] = (node, updatehash)
        self._submit(self._taskid)
        return self._taskid

    def _submit(self, taskid: int) -> None:
        if self.pool is None:
            self.pool = self._new_pool()
        node, updatehash = self._flight[taskid]
        try:
            future = self.pool.submit(run_task, node, updatehash, taskid, self._cwd)
        except BrokenProcessPool:  # a worker died since the last look
            self._lost.add(taskid)
            return
        self._known_workers(self.pool)
        self._task_obj[taskid] = future
        future.add_done_callback(lambda done, taskid=taskid: self._store(taskid, done))

    def _store(self, taskid: int, future: Future) -> None:
        """Keep a result; runs in a thread of the executor and must not raise."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._taskresult[taskid] = future.result()
        elif isinstance(error, BrokenProcessPool):
            self._lost.add(taskid)
        else:  # for instance a node or a result that cannot be pickled
            self._taskresult[taskid] = {
                'result': None,
                'traceback': format_exception(type(error), error, error.__traceback__),
                'taskid': taskid,
            }

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        if self._lost:
            self._recover()
        return self._taskresult.get(taskid)

    def _clear_task(self, taskid: int) -> None:
        self._task_obj.pop(taskid, None)
        self._flight.pop(taskid, None)
        self._taskresult.pop(taskid, None)

    def _recover(self) -> None:
        """Fail the nodes whose worker was killed, run the others of the broken pool again."""
        workers = self._known_workers(self.pool)
        self.pool.shutdown(wait=True, cancel_futures=True)
        deadline = time.monotonic() + _JOIN_SECONDS
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        dead = {
            worker.pid: worker.exitcode
            for worker in workers
            if worker.exitcode not in _INNOCENT_EXIT_CODES
        }
        stop_processes(workers)
        self._workers.clear()
        self.pool = self._new_pool()

        lost, self._lost = sorted(self._lost), set()
        pids = {taskid: _read_pid(_pid_file(self._flight[taskid][0])) for taskid in lost}
        guilty = [taskid for taskid in lost if pids[taskid] in dead]
        if not guilty:  # it cannot be told which node it was: none is tried for ever
            guilty = [taskid for taskid in lost if pids[taskid] is not None] or lost
        for taskid in lost:
            if taskid in guilty:
                self._taskresult[taskid] = {
                    'result': None,
                    'traceback': [_death_message(dead.get(pids[taskid]))],
                    'taskid': taskid,
                }
            else:
                self._submit(taskid)

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        """Look for work only when something has changed.

        Nipype looks at every poll and collects garbage each time, which costs a seventh of a core.
        """
        if self.pending_tasks:
            situation = (
                len(self.pending_tasks),
                int(self.proc_done.sum()),
                int(self.proc_pending.sum()),
            )
            if situation == self._situation:
                return
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        self._situation = (
            len(self.pending_tasks),
            int(self.proc_done.sum()),
            int(self.proc_pending.sum()),
        )

    def _sort_jobs(self, jobids: Any, scheduler: str = 'tsort') -> Any:
        """Return the ready nodes that may start now, the most urgent first.

        Small nodes of later scans must not slip in front of a node that waits for processors or
        memory: all scans would have their first step done before any had its second.
        """
        if self._rank is None:
            return super()._sort_jobs(jobids, scheduler=scheduler)
        memory, processors, gpu_slots = self._check_resources(self.pending_tasks)
        chosen = []
        for jobid in sorted(jobids, key=lambda jobid: self._rank(self.procs[jobid])):
            node = self.procs[jobid]
            if node.is_gpu_node():
                if min(node.n_procs, self.n_gpu_procs) > gpu_slots:
                    continue  # others need not wait for the GPU
                gpu_slots -= min(node.n_procs, self.n_gpu_procs)
            processors -= min(node.n_procs, self.processors)
            memory -= min(node.mem_gb_runtime, self.memory_gb)
            if processors < 0 or memory < 0:
                break
            chosen.append(jobid)
        return chosen

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> str:
        crash_file = super()._report_crash(node, result=result)
        if self._on_crash is not None:
            self._on_crash(node, Path(crash_file))
        return crash_file


def _death_message(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL or exit_code is None:
        cause = (
            'the worker process was killed, most likely because memory ran out; '
            'give the job more memory, or use --low-mem or fewer --nprocs'
        )
    else:
        how = f'signal {-exit_code}' if exit_code < 0 else f'exit code {exit_code}'
        cause = (
            f'the worker process died ({how}), possibly because memory ran out; '
            'try --low-mem or fewer --nprocs'
        )
    return f'{WORKER_DIED}: {cause}\n'


def _pid_file(node: Any) -> Path:
    folder = Path(node.output_dir())
    return folder.parent / f'.{folder.name}.pid'


def _read_pid(path: Path) -> int | None:
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
    """Run a node in a worker and bring home its result or its traceback."""
    result: dict[str, Any] = {'result': None, 'traceback': None, 'taskid': taskid}
    pid_file = _pid_file(node)
    with contextlib.suppress(OSError):
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        pid_file.write_text(str(os.getpid()))
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
        pid_file.unlink()
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


def reason_of_crash(crash_file: Path) -> tuple[str, bool]:
    """Find the one-line reason in a crash file.

    Returns
    -------
    reason : str
        The message of the last error in the file, with the name of the error in front unless it
        is one that was written for users.
    foreseen : bool
        Whether it was such an error (of :mod:`bids_app.errors`, a killed worker, or no memory).
    """
    try:
        text = crash_file.read_text(errors='replace')
    except OSError:
        return f'see {crash_file}', False
    found = re.findall(r'^[ \t]*((?:\w+\.)*\w+)(?:: (.*))?$', text, flags=re.MULTILINE)
    errors = [
        (name, message)
        for name, message in found
        if re.search(r'(Error|Exception|Exit|Interrupt|Died|Warning)$', name)
        and not name.endswith('NodeExecutionError')
    ]
    if not errors:
        return f'see {crash_file}', False
    name, message = errors[-1]
    if name.startswith('bids_app.errors.') or name == WORKER_DIED:
        return message.strip(), True
    short = name.rsplit('.', 1)[-1]
    if short.endswith('MemoryError'):
        hint = 'give the job more memory, or use --low-mem or fewer --nprocs'
        what = message.strip() or 'memory ran out'
        return (what if '--low-mem' in what else f'{what}; {hint}'), True
    return f'{short}: {message.strip()}' if message else short, False
