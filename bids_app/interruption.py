# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM (``docker stop``, Slurm) stop a run cleanly and within seconds."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

PATIENCE_SECONDS = 8.0
"""Time to unwind the stack; Docker kills what is still there 10 s after its first signal."""

ENDING_SECONDS = 1.0
"""Time for what is registered for the end of the process, after that."""

ECHO_SECONDS = 1.0
"""A signal that comes so soon after the first is the same wish."""

MESSAGE = 'anatnet: interrupted; the same command goes on from here'


class Interrupted(BaseException):
    """A signal asks the run to stop; not an Exception, so that no step takes it for its own."""


class Interruption:
    """Listen for Ctrl-C and SIGTERM while the block runs.

    The first signal raises :class:`Interrupted`. Nipype swallows even that while an interface
    runs in the main process; :meth:`check`, called between the steps, raises it again. A second
    signal, later than a second, does what it does by default.

    Where the block has not ended `patience` seconds after the first signal, for instance because
    a pool of threads waits for its last task, an alarm ends the process with 128 plus the number
    of the signal. That is safe: files take their names when they are complete, and workers leave
    when the main process is gone.

    Parameters
    ----------
    patience : float
        Seconds between the first signal and the end of the process.

    Attributes
    ----------
    number : int, optional
        The signal that came.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._patience = patience
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *details: object) -> None:
        if self.number is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.number = number
        self._since = time.monotonic()
        for known in self._before:
            signal.signal(known, self._again)
        # Not a thread: the signal may have come while the lock that starts threads was held.
        self._before[signal.SIGALRM] = _end_within(self._patience, 128 + number, MESSAGE)
        raise Interrupted

    def _again(self, number: int, frame: object) -> None:
        """Do what a second signal does by default, unless it is the echo of the first.

        Slurm sends SIGTERM to every process of a job, and the job script passes it on to us.
        """
        if time.monotonic() - self._since > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self.number is not None:
            raise Interrupted


def leave(code: int) -> NoReturn:
    """End the process with what is registered for its end, but without waiting for threads.

    The interpreter itself would wait for all threads of all pools, however long they take.
    """
    _end_within(ENDING_SECONDS, code)
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_within(seconds: float, code: int, message: str = '') -> Any:
    """Set an alarm that ends the process with a code; return its handler until now."""

    def end(number: int, frame: object) -> None:
        if message:
            with contextlib.suppress(OSError):
                os.write(2, f'{message}\n'.encode())
        os._exit(code)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    return before
