# SPDX-License-Identifier: Apache-2.0
"""A MultiProc plugin for Nipype that survives the death of a worker.

Nipype's own plugin waits forever when the operating system kills a worker, because the callback
that would have stored the result raises instead. Here the node whose worker died fails with a
message that says so, nodes that merely shared the pool are run again, and the scans that were
started first are finished first, so that results appear early and the work folder stays small.
"""

from __future__ import annotations

import re
import signal
import tempfile
import threading
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin

from bids_app.inference.device import DEVICE_VARIABLE
from bids_app.workflows.throughput import Usage
from bids_app.workflows.workers import WorkerPool, pid_file, read_pid, stop_processes

WORKER_DIED = 'WorkerDied'
"""Name of the error in the crash file of a node whose worker process was killed."""

# Of the operating system (no space, quota, file too large, read-only), and of NumPy's tofile.
_NO_ROOM = re.compile(r'\[Errno (28|122|27|30)\] |\d+ requested and \d+ written')

CPU = 'cpu'
"""Lane of the networks where there is no GPU."""

GENERAL = ''
"""Workers of all other nodes."""


class SteadyMultiProcPlugin(MultiProcPlugin):
    """Run a workflow in worker processes and fail single nodes only.

    Nodes with a network go to workers of their own, so that a network is loaded once per device
    and stays there, whatever else the other workers do meanwhile. Such a group of workers is
    called a lane: one per GPU, or one for the CPU.

    Parameters
    ----------
    plugin_args : dict
        As for Nipype's ``MultiProc`` (``n_procs``, ``memory_gb``, ``n_gpu_procs``,
        ``raise_insufficient``, ``mp_context``, ``status_callback``), and also ``lanes``, the
        number of workers by the name of the device, ``on_crash``, a function that receives the
        node and the path of its crash file, ``rank``, a function that gives a sortable priority
        to a node (low first), ``environment``, variables to set in the workers, and ``preload``,
        modules that the workers share.

    Attributes
    ----------
    usage : Usage
        When the workers of each lane were busy, and what processor time all of them took.

    Notes
    -----
    A node that runs on a GPU takes a worker of a lane and no processor, so that the GPUs never
    wait for a processor that belongs to other scans.

    The pools outlive one call of ``run``, so that the modules and networks that a worker has
    loaded stay there for the next batch: close them with :meth:`close`, or use the plugin in a
    ``with`` statement.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()
        self.pool = None
        self.usage = Usage()
        self._on_crash = self.plugin_args.get('on_crash')
        self._rank = self.plugin_args.get('rank')
        self._flight: dict[int, tuple[Any, bool, str]] = {}
        self._lost: set[int] = set()
        self._lock = threading.Lock()
        self._situation: tuple[int, int, int] | None = None
        lanes = dict(self.plugin_args.get('lanes', {}))
        self._lanes = tuple(lanes)
        environment = self.plugin_args.get('environment', {})
        options = {
            'start_method': self.plugin_args.get('mp_context', 'forkserver'),
            'preload': self.plugin_args.get('preload', ()),
        }
        self._pools = {GENERAL: WorkerPool(self.processors, self._cwd, environment, **options)}
        for name, size in lanes.items():
            here = environment if name == CPU else {**environment, DEVICE_VARIABLE: name}
            self._pools[name] = WorkerPool(size, self._cwd, here, **options)

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
        stop_processes([one for pool in self._pools.values() for one in pool.release(kill)])

    def _postrun_check(self) -> None:
        """Keep the pools for the next batch (Nipype shuts its own down here)."""

    def _lane_of(self, node: Any) -> str:
        """Choose the workers for a node: of the lanes that may take it, the least busy."""
        if CPU in self._lanes:
            lanes = [CPU] if hasattr(node.inputs, 'device') else []
        else:
            lanes = list(self._lanes) if node.is_gpu_node() else []
        busy = Counter(lane for _, _, lane in self._flight.values())
        return min(lanes, key=busy.__getitem__, default=GENERAL)

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        self._flight[self._taskid] = (node, updatehash, self._lane_of(node))
        self._submit(self._taskid)
        return self._taskid

    def _submit(self, taskid: int) -> None:
        node, updatehash, lane = self._flight[taskid]
        future = self._pools[lane].submit(node, updatehash, taskid)
        if future is None:
            with self._lock:
                self._lost.add(taskid)
            return
        self._task_obj[taskid] = future
        future.add_done_callback(lambda done: self._store(taskid, lane, done))

    def _store(self, taskid: int, lane: str, future: Future) -> None:
        """Keep a result; runs in a thread of the executor and must not raise."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            result = future.result()
            self.usage.note(lane, result['span'], result['cpu_seconds'])
            self._taskresult[taskid] = result
        elif isinstance(error, BrokenProcessPool):
            with self._lock:
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
        with self._lock:
            lanes = {self._flight[taskid][2] for taskid in self._lost}
        for lane in lanes:
            dead = self._pools[lane].bury()  # after this, all that were lost are known
            with self._lock:
                lost = sorted(one for one in self._lost if self._flight[one][2] == lane)
                self._lost.difference_update(lost)
            pids = {taskid: read_pid(pid_file(self._flight[taskid][0])) for taskid in lost}
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

    def _free(self, running: Any) -> tuple[float, int, int]:
        """Return free memory (GB), processors and places on GPUs."""
        memory, processors, places = self.memory_gb, self.processors, self.n_gpu_procs
        for _, jobid in running:
            node = self.procs[jobid]
            memory -= min(node.mem_gb, memory)
            if node.is_gpu_node():
                places -= min(node.n_procs, places)
            else:
                processors -= min(node.n_procs, processors)
        return memory, processors, places

    def _check_resources(self, running_tasks: Any) -> tuple[float, int, int]:
        """Return free memory (GB), processors and places on GPUs, as Nipype counts.

        To Nipype a node on a GPU takes a processor as well: there is one for every free place.
        """
        memory, processors, places = self._free(running_tasks)
        return memory, processors + places, places

    def _sort_jobs(self, jobids: Any, scheduler: str = 'tsort') -> Any:
        """Return the ready nodes that may start now, the most urgent first.

        Small nodes of later scans must not slip in front of a node that waits for processors or
        memory: all scans would have their first step done before any had its second. What such a
        node needs is kept for it. Nodes of GPUs and all others do not wait for each other.
        """
        memory, processors, places = self._free(self.pending_tasks)
        if self._rank is not None:
            jobids = sorted(jobids, key=lambda jobid: self._rank(self.procs[jobid]))
        chosen = []
        for jobid in jobids:
            node = self.procs[jobid]
            if node.is_gpu_node():
                if min(node.n_procs, self.n_gpu_procs) > places:
                    continue
                places -= min(node.n_procs, self.n_gpu_procs)
            else:
                processors -= min(node.n_procs, self.processors)
            memory -= min(node.mem_gb_runtime, self.memory_gb)
            if memory >= 0 and (node.is_gpu_node() or processors >= 0):
                chosen.append(jobid)
        return chosen

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> str:
        try:
            crash_file = super()._report_crash(node, result=result)
        except OSError:  # a full disk must not hide the reason, nor stop the others
            node.config['execution']['crashdump_dir'] = tempfile.mkdtemp(prefix='anatnet-crash-')
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
    if _NO_ROOM.match(message):
        return f'{message.strip()}: make room where --work-dir is, or give another', True
    short = name.rsplit('.', 1)[-1]
    if short.endswith('MemoryError'):
        hint = 'give the job more memory, or use --low-mem or fewer --nprocs'
        what = message.strip() or 'memory ran out'
        return (what if '--low-mem' in what else f'{what}; {hint}'), True
    return f'{short}: {message.strip()}' if message else short, False
