# SPDX-License-Identifier: Apache-2.0
"""How many scans a run gets through, and how busy it keeps devices and processors."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bids_app.progress import clock_time

if TYPE_CHECKING:
    from bids_app.workflows.jobs import Job


@dataclass
class Usage:
    """When workers were busy.

    Attributes
    ----------
    spans : dict of str to list of (float, float)
        For every device, start and end of the steps on it, seconds of the monotonic clock.
    cpu_seconds : float
        Processor time of all steps.
    """

    spans: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    cpu_seconds: float = 0.0

    def note(self, device: str, span: tuple[float, float], cpu_seconds: float) -> None:
        """Take note of a step; device is empty for steps without a network."""
        self.spans[device].append(span)
        self.cpu_seconds += cpu_seconds


def busy_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Return the time in which at least one of several spans lasted.

    Examples
    --------
    >>> busy_seconds([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, until = 0.0, float('-inf')
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


@dataclass(frozen=True)
class Throughput:
    """What a run got through.

    Attributes
    ----------
    seconds : float
        From the first step to the last.
    sessions, subjects : int
        Finished in that time; a subject counts if one of its sessions was finished.
    busy : dict of str to float
        For every GPU the share of the time in which a network step was on it (its transfers and
        what the step does on the processor included), and for ``cpu`` the processor time of all
        steps as a share of what the processors could give. Empty where another plugin of Nipype
        ran the steps: it does not say.
    """

    seconds: float
    sessions: int
    subjects: int
    busy: dict[str, float] = field(default_factory=dict)

    @classmethod
    def measure(
        cls,
        started: float,
        finished: Sequence[str],
        usage: Usage | None,
        processors: int,
        devices: Sequence[str] = (),
    ) -> Throughput:
        """Sum up a run that ends now.

        Parameters
        ----------
        started : float
            When it began, seconds of the monotonic clock.
        finished : sequence of str
            The subject of every finished session.
        usage : Usage or None
            From the plugin.
        processors : int
            How many the run may use.
        devices : sequence of str
            Those of the run; GPUs that nothing ran on were busy for 0 % of the time.
        """
        seconds = max(time.monotonic() - started, 1e-3)
        busy: dict[str, float] = {}
        if usage is not None:
            for device in devices:
                if device != 'cpu':
                    busy[device] = min(1.0, busy_seconds(usage.spans[device]) / seconds)
            busy['cpu'] = min(1.0, usage.cpu_seconds / (seconds * max(1, processors)))
        return cls(seconds, len(finished), len(set(finished)), busy)

    @property
    def subjects_per_hour(self) -> float:
        """Finished subjects per hour."""
        return 3600 * self.subjects / self.seconds

    @property
    def sessions_per_hour(self) -> float:
        """Finished sessions per hour."""
        return 3600 * self.sessions / self.seconds

    def line(self) -> str:
        """Say it in one line."""
        rate = self.subjects_per_hour
        parts = [
            f'{self.sessions} session{"s"[: self.sessions != 1]} in {clock_time(self.seconds)}, '
            f'{rate:{".3g" if rate < 1000 else ".0f"}} subjects per hour'
        ]
        parts += [
            f'{"processors" if name == "cpu" else name} busy {100 * share:.0f} %'
            for name, share in self.busy.items()
        ]
        return '; '.join(parts)

    def as_json(self) -> dict[str, Any]:
        """Return what the summary of a run says about it."""
        return {
            'seconds': round(self.seconds, 1),
            'sessions': self.sessions,
            'subjects': self.subjects,
            'sessions_per_hour': round(self.sessions_per_hour, 2),
            'subjects_per_hour': round(self.subjects_per_hour, 2),
            'busy': {name: round(share, 4) for name, share in self.busy.items()},
        }


class Meter:
    """Measure the throughput of a run from the moment at which its workers may start."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._devices: tuple[str, ...] = ()
        self._usage: Usage | None = None

    def start(self, devices: Sequence[str], usage: Usage | None) -> None:
        """Begin: networks run on ``devices``, ``usage`` is filled by the plugin."""
        self._started, self._devices, self._usage = time.monotonic(), tuple(devices), usage

    def read(self, processors: int, jobs: Iterable[Job]) -> Throughput | None:
        """Return the throughput of what is finished; None if nothing was started."""
        if self._started is None:
            return None
        finished = [job.record.subject for job in jobs if job.status == 'finished']
        return Throughput.measure(self._started, finished, self._usage, processors, self._devices)


def summary_json(
    version: str,
    run_uuid: str,
    sessions: Mapping[str, Mapping[str, str]],
    throughput: Throughput | None,
) -> str:
    """Return the text of a run's ``summary.json``.

    Parameters
    ----------
    version, run_uuid : str
        Identity of AnatNet and of the run.
    sessions : mapping
        For every session its ``status`` and, where there is one, the ``reason``.
    throughput : Throughput or None
        None where nothing was computed.
    """
    counts: dict[str, int] = defaultdict(int)
    for session in sessions.values():
        counts[session['status']] += 1
    content = {
        'version': version,
        'run': run_uuid,
        'counts': counts,
        'throughput': None if throughput is None else throughput.as_json(),
        'sessions': sessions,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + '\n'
