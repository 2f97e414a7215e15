# SPDX-License-Identifier: Apache-2.0
"""Which device and which precision to compute with; resolved once, said in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

from bids_app.errors import UsageError

PRECISIONS = ('auto', 'float32', 'bfloat16')

_PROBE = """
import json, torch
found = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if found else []
print(json.dumps({"names": names, "cuda": torch.version.cuda}))
"""


DEVICE_VARIABLE = 'ANATNET_DEVICE'
"""Set in a worker that serves one of several GPUs."""


@dataclass(frozen=True)
class DeviceChoice:
    """The devices to use and, in one line, why.

    Attributes
    ----------
    device : str
        The first of them.
    reason : str
        Why this one.
    devices : tuple of str
        All that networks are spread over.
    """

    device: str
    reason: str
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.devices:
            object.__setattr__(self, 'devices', (self.device,))


def device_here(device: str) -> str:
    """Return the device that a step of this process uses.

    Steps are asked for the first GPU; a worker that serves another one says so by
    ``ANATNET_DEVICE``. The CPU stays the CPU.
    """
    return os.environ.get(DEVICE_VARIABLE, device) if device.startswith('cuda') else device


def probe_cuda() -> tuple[list[str], str]:
    """Return the names of the usable GPUs and, if there is none, the reason.

    The question is asked in a child process: CUDA that was initialised in a parent cannot be used
    by its forked workers.
    """
    try:
        done = subprocess.run(
            [sys.executable, '-c', _PROBE], capture_output=True, text=True, timeout=120
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return [], 'torch could not be asked for GPUs'
    if answer['cuda'] is None:
        return [], 'this torch is a CPU build'
    return answer['names'], 'no GPU is visible (driver, CUDA_VISIBLE_DEVICES, --gpus, --nv?)'


def resolve_device(requested: str = 'auto') -> DeviceChoice:
    """Turn the value of ``--device`` into a torch device.

    Parameters
    ----------
    requested : {'auto', 'cpu', 'cuda', 'cuda:N', 'cuda:N,cuda:M'}
        What the user asked for. ``auto`` takes the first GPU and falls back to the CPU, and says
        so; the other values are taken literally.

    Returns
    -------
    DeviceChoice

    Raises
    ------
    UsageError
        If the value is unknown, or a GPU was asked for that cannot be had.
    """
    if requested == 'cpu':
        return DeviceChoice('cpu', 'cpu (asked for)')
    if not re.fullmatch(r'auto|cuda|cuda:\d+(,cuda:\d+)*', requested):
        raise UsageError(
            f"--device {requested}: choose 'auto', 'cpu', 'cuda', 'cuda:N' or 'cuda:0,cuda:1'"
        )
    names, reason = probe_cuda()
    if requested == 'auto' and not names:
        return DeviceChoice('cpu', f'cpu (auto: {reason})')
    indices = sorted({int(one.partition(':')[2] or 0) for one in requested.split(',')})
    if indices[-1] >= len(names):
        found = f'only {len(names)} found' if names else reason
        raise UsageError(f'--device {requested}: {found}: use --device auto or cpu')
    asked = 'auto' if requested == 'auto' else 'asked for'
    said = ', '.join(f'cuda:{index} ({asked}: {names[index]})' for index in indices)
    return DeviceChoice(f'cuda:{indices[0]}', said, tuple(f'cuda:{index}' for index in indices))


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU computes with bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    import torch

    try:
        flags = torch.cpu.get_capabilities()
        return bool(flags.get('avx512_bf16') or flags.get('amx_bf16') or flags.get('arm_bf16'))
    except AttributeError:  # older torch
        probe = getattr(torch.cpu, '_is_avx512_bf16_supported', None)
        return bool(probe and probe())


def resolve_precision(requested: str, device: str) -> str:
    """Turn the value of ``--precision`` into ``float32`` or ``bfloat16`` for a device.

    Parameters
    ----------
    requested : {'auto', 'float32', 'bfloat16'}
        ``auto`` takes bfloat16 where the hardware has it.
    device : str
        A torch device.

    Returns
    -------
    str
    """
    if requested not in PRECISIONS:
        raise UsageError(f'--precision {requested}: choose one of {", ".join(PRECISIONS)}')
    if requested != 'auto':
        return requested
    if device.startswith('cuda'):
        import torch

        return 'bfloat16' if torch.cuda.is_bf16_supported() else 'float32'
    return 'bfloat16' if cpu_has_bfloat16() else 'float32'
