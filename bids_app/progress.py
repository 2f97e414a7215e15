# SPDX-License-Identifier: Apache-2.0
"""Show how far every scan is: one live line per scan on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from bids_app.logs import VERBOSE

LOGGER = logging.getLogger('anatnet.progress')

_BAR_CELLS = 14
_REDRAW_SECONDS = 0.5


@dataclass
class ScanProgress:
    """Where one scan is; times are in seconds of a monotonic clock."""

    label: str
    steps: tuple[str, ...]
    done: list[str] = field(default_factory=list)
    current: str | None = None
    started: float | None = None
    step_started: float = 0.0
    ended: float | None = None
    failed: str | None = None


class Progress:
    """Follow the steps of all scans through Nipype's status callback.

    Parameters
    ----------
    scans : mapping of str to (str, sequence of str)
        For every workflow of a scan, its label and the names of its nodes in order.
    expected : mapping of str to float
        Seconds that a step is expected to take; replaced by the mean of what is measured.
    parallel : int
        How many scans are likely to run at once, for the estimate of the whole.
    stream : text stream
        Where live lines go (standard error).
    live : bool, optional
        Whether to draw live lines; by default only where ``stream`` is a terminal.
    on_scan_end : callable, optional
        Called with the workflow's name when the last step of its scan is over.
    clock : callable
        Monotonic seconds, replaceable in tests.

    Notes
    -----
    Use it as a context manager: inside, the handlers of the root and ``anatnet`` loggers that
    write to the same terminal are routed around the live lines.
    """

    def __init__(
        self,
        scans: Mapping[str, tuple[str, Sequence[str]]],
        expected: Mapping[str, float],
        *,
        parallel: int = 1,
        stream: TextIO | None = None,
        live: bool | None = None,
        on_scan_end: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scans = {key: ScanProgress(label, tuple(steps)) for key, (label, steps) in
                      scans.items()}  # fmt: skip
        self._expected = dict(expected)
        self._measured: dict[str, tuple[int, float]] = {}
        # What is left is counted by step, so that a look at it does not visit thousands of scans.
        self._left: Counter[str] = Counter()
        self._active: dict[int, ScanProgress] = {}
        self._over = self._failed = 0
        for scan in self.scans.values():
            self._left.update(scan.steps)
        self._parallel = max(1, parallel)
        self._stream = stream or sys.stderr
        self._live = _is_terminal(self._stream) if live is None else live
        self._on_scan_end = on_scan_end
        self._clock = clock
        self._lock = threading.RLock()
        self._drawn = 0
        self._stop = threading.Event()

    # Nipype's side

    def __call__(self, node: Any, status: str) -> None:
        """Take note of a node's ``start``, ``end`` or ``exception`` (Nipype's callback)."""
        scan_key = scan_of(node)
        if scan_key in self.scans:
            self.note(scan_key, node.name, status)

    def note(self, scan_key: str, step: str, status: str) -> None:
        """Take note of one step of one scan."""
        scan = self.scans[scan_key]
        now = self._clock()
        with self._lock, self._recounted(scan):
            if scan.started is None:
                scan.started = scan.step_started = now
            if status == 'start':
                scan.current, scan.step_started = step, now
                return
            if status == 'exception':
                scan.failed, scan.current, scan.ended = step, None, now
                return
            if step in scan.done or scan.failed:
                return
            if scan.current == step:  # a cached step ends without a start and says nothing
                count, total = self._measured.get(step, (0, 0.0))
                self._measured[step] = count + 1, total + now - scan.step_started
            scan.current = None
            scan.done.append(step)
            over = len(scan.done) == len(scan.steps)
            if over:
                scan.ended = now
            message = self._step_message(scan, step, now)
        LOGGER.log(VERBOSE if self._live and not over else logging.INFO, '%s', message)
        if over and self._on_scan_end is not None:
            self._on_scan_end(scan_key)

    @contextlib.contextmanager
    def _recounted(self, scan: ScanProgress) -> Iterator[None]:
        """Keep what is counted over all scans true while one of them changes."""
        self._count(scan, -1)
        try:
            yield
        finally:
            self._count(scan, 1)

    def _count(self, scan: ScanProgress, sign: int) -> None:
        self._over += sign * (scan.ended is not None)
        self._failed += sign * (scan.failed is not None)
        self._active.pop(id(scan), None)
        if scan.ended is None:
            for step in self._steps_left(scan):
                self._left[step] += sign
            if sign > 0 and scan.started is not None:
                self._active[id(scan)] = scan

    # Estimates

    @staticmethod
    def _steps_left(scan: ScanProgress) -> list[str]:
        """List the steps of a scan that have not begun."""
        return [step for step in scan.steps if step not in scan.done and step != scan.current]

    def expected(self, step: str) -> float:
        """Return how many seconds a step is expected to take."""
        count, total = self._measured.get(step, (0, 0.0))
        return total / count if count else self._expected.get(step, 1.0)

    def remaining(self, scan: ScanProgress, now: float) -> float:
        """Estimate the seconds that a scan still needs."""
        if scan.ended is not None:
            return 0.0
        left = sum(self.expected(step) for step in self._steps_left(scan))
        return left + self._of_current(scan, now)

    def _of_current(self, scan: ScanProgress, now: float) -> float:
        if scan.current is None:
            return 0.0
        return max(self.expected(scan.current) - (now - scan.step_started), 0.0)

    def remaining_all(self, now: float) -> float:
        """Estimate the seconds until all scans are over."""
        left = sum(count * self.expected(step) for step, count in self._left.items())
        left += sum(self._of_current(scan, now) for scan in self._active.values())
        return left / self._parallel

    def _step_message(self, scan: ScanProgress, step: str, now: float) -> str:
        elapsed = clock_time(now - (scan.started or now))
        count = f'{len(scan.done)}/{len(scan.steps)}'
        if len(scan.done) == len(scan.steps):
            return f'{scan.label}: finished in {elapsed}'
        left = clock_time(self.remaining(scan, now))
        return f'{scan.label}: {step} done ({count}), elapsed {elapsed}, about {left} left'

    # The terminal's side

    def __enter__(self) -> Progress:
        if self._live:
            self._routed = list(self._route_handlers())
            self._thread = threading.Thread(target=self._redraw_forever, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        if not self._live:
            return
        self._stop.set()
        self._thread.join(2)
        with self._lock:
            self._erase()
        for handler, stream in self._routed:
            handler.setStream(stream)

    def _route_handlers(self) -> Iterator[tuple[logging.StreamHandler, TextIO]]:
        loggers = [logging.getLogger(name) for name in ('', 'anatnet', 'bids_app')]
        handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}
        for handler in handlers.values():
            stream = getattr(handler, 'stream', None)
            if type(handler) is logging.StreamHandler or _is_terminal(stream):
                yield handler, stream
                handler.setStream(_Above(self, stream))

    def lines(self, now: float, width: int = 80, height: int = 24) -> list[str]:
        """Return what is shown of the scans that are being worked on."""
        active = sorted(self._active.values(), key=lambda scan: (scan.started, scan.label))
        lines = [self._line(scan, now) for scan in active[: max(1, height - 2)]]
        if len(self.scans) > 1:
            text = f'{self._over} of {len(self.scans)} scans over'
            if self._failed:
                text += f', {self._failed} failed'
            lines.append(f'{text}, about {clock_time(self.remaining_all(now))} left')
        return [line[: width - 1] for line in lines]

    def _line(self, scan: ScanProgress, now: float) -> str:
        total = sum(self.expected(step) for step in scan.steps) or 1.0
        left = self.remaining(scan, now)
        cells = round(_BAR_CELLS * min(max(1 - left / total, 0.0), 1.0))
        bar = '=' * cells + ' ' * (_BAR_CELLS - cells)
        step = scan.current or 'waiting'
        elapsed = clock_time(now - (scan.started or now))
        count = f'{min(len(scan.done) + 1, len(scan.steps))}/{len(scan.steps)}'
        return (
            f'{scan.label}  [{bar}] {count:>5} {step:<11} '
            f'{elapsed} elapsed, about {clock_time(left)} left'
        )

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f'\r\x1b[{self._drawn}A\x1b[J')
            self._drawn = 0
            self._stream.flush()

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        lines = self.lines(self._clock(), size.columns, size.lines)
        self._erase()
        if lines:
            self._stream.write('\n'.join(lines) + '\n')
            self._stream.flush()
        self._drawn = len(lines)

    def _redraw_forever(self) -> None:
        while not self._stop.wait(_REDRAW_SECONDS):
            with self._lock, contextlib.suppress(OSError, ValueError):
                self._draw()


class _Above:
    """A stream that writes above the live lines."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress = progress
        self._stream = stream

    def write(self, text: str) -> int:
        with self._progress._lock:
            self._progress._erase()
            count = self._stream.write(text)
            self._stream.flush()
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def scan_of(node: Any) -> str:
    """Return the name of the workflow, just below the outermost, that a node belongs to."""
    parts = (node._hierarchy or '').split('.')
    return parts[1] if len(parts) > 1 else parts[0]


def clock_time(seconds: float) -> str:
    """Write seconds as ``m:ss`` or ``h:mm:ss``.

    Examples
    --------
    >>> clock_time(75.2), clock_time(3700)
    ('1:15', '1:01:40')
    """
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f'{hours}:{minutes:02d}:{second:02d}' if hours else f'{minutes}:{second:02d}'


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty()) and os.environ.get('TERM') != 'dumb'
    except (AttributeError, ValueError):
        return False
