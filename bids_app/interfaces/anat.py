# SPDX-License-Identifier: Apache-2.0
"""Interfaces of the image steps of one scan: conform, brain mask, bias field, segmentation.

Every step writes, beside its images, a small JSON file with what it found out, how long it took
(``seconds`` on the wall, ``cpu_seconds`` of all processors together) and the largest memory of its
process so far (``peak_gb``, 10^9 bytes).
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    Str,
    TraitedSpec,
    traits,
)

INFO_FILE = 'info.json'


class Stopwatch:
    """Time since its making: on the wall, and of the processors that this process has used."""

    def __init__(self) -> None:
        self._wall = time.monotonic()
        self._cpu = time.process_time()

    def read(self) -> dict[str, float]:
        """Return ``seconds`` and ``cpu_seconds``."""
        return {
            'seconds': round(time.monotonic() - self._wall, 3),
            'cpu_seconds': round(time.process_time() - self._cpu, 3),
        }


def write_info(folder: str | Path, watch: Stopwatch, info: dict[str, Any]) -> str:
    """Write what a step found out and what it cost; ``watch`` was started with the step."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1e9 if sys.platform == 'darwin' else 1e6  # bytes there, kilobytes elsewhere
    info = {**info, **watch.read(), 'peak_gb': round(usage / unit, 3)}
    path = Path(folder) / INFO_FILE
    path.write_text(json.dumps(info, indent=1, default=_plain))
    return str(path)


def read_info(path: str | Path) -> dict[str, Any]:
    """Read what a step wrote with :func:`write_info`."""
    return json.loads(Path(path).read_text())


@contextlib.contextmanager
def borrowed_gpu(device: str) -> Iterator[None]:
    """Give back the GPU memory that torch keeps for itself: other workers share the device."""
    try:
        yield
    finally:
        if device.startswith('cuda'):
            import torch

            torch.cuda.empty_cache()


def _plain(value: Any) -> Any:
    """Turn NumPy values and paths into what JSON can hold."""
    if hasattr(value, 'tolist'):
        return value.tolist()
    return str(value)


class _ConformInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='scan as it was acquired')
    voxel_size = traits.Float(1.0, usedefault=True, desc='edge of the new voxels, mm')


class _ConformOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='scan in RAS order at the requested voxel size')
    info = File(exists=True, desc='shape, zooms, orientation and header repairs')


class ConformScan(SimpleInterface):
    """Check a scan and bring it to RAS order and an isotropic grid."""

    input_spec = _ConformInputSpec
    output_spec = _ConformOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.images.conform import conform_file

        watch = Stopwatch()
        out_file = Path(runtime.cwd) / 'conformed.nii'
        info = conform_file(Path(self.inputs.in_file), out_file, self.inputs.voxel_size)
        self._results['out_file'] = str(out_file)
        self._results['info'] = write_info(runtime.cwd, watch, info)
        return runtime


class DeviceInputSpec(BaseInterfaceInputSpec):
    """Where and how a network is computed."""

    precision = Str('auto', usedefault=True, desc='auto, float32 or bfloat16')
    device = Str('cpu', usedefault=True, nohash=True, desc='cpu, cuda or cuda:N')
    threads = traits.Int(1, usedefault=True, nohash=True, desc='CPU threads')
    low_mem = traits.Bool(False, usedefault=True, nohash=True, desc='small tiles')
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='takes a GPU slot of Nipype')

    def options(self) -> dict[str, Any]:
        """Return the arguments that all network steps share."""
        from bids_app.inference.device import device_here

        return {
            'device': device_here(self.device),
            'precision': self.precision,
            'threads': self.threads,
            'low_mem': self.low_mem,
        }


class NetworkInputSpec(DeviceInputSpec):
    """The segmentation model, and where and how it is computed."""

    model = Str(mandatory=True, nohash=True, desc='folder of the model')
    model_sha256 = Str(mandatory=True, desc='checksum of the model: another one makes the '
                                            'results of earlier runs invalid')  # fmt: skip

    def options(self) -> dict[str, Any]:
        """Return the arguments that all steps with this model share."""
        return {'model': Path(self.model), **super().options()}


class _LocateInputSpec(NetworkInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed scan')


class _LocateOutputSpec(TraitedSpec):
    coarse_file = File(exists=True, desc='posteriors on a coarse grid')
    mask_file = File(exists=True, desc='brain mask on the grid of the conformed scan')
    info = File(exists=True, desc='confidence, device, precision, fallback')


class LocateBrain(SimpleInterface):
    """Find the brain in a conformed scan."""

    input_spec = _LocateInputSpec
    output_spec = _LocateOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.inference.brain import locate_brain

        watch = Stopwatch()
        with borrowed_gpu(self.inputs.device):
            found = locate_brain(
                Path(self.inputs.in_file), Path(runtime.cwd), **self.inputs.options()
            )
        self._results['coarse_file'] = str(found['coarse_file'])
        self._results['mask_file'] = str(found['mask_file'])
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime


class _BiasInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed scan')
    mask_file = File(exists=True, mandatory=True, desc='brain mask on the same grid')
    native_file = File(exists=True, mandatory=True, desc='scan as it was acquired')
    threads = traits.Int(1, usedefault=True, nohash=True, desc='CPU threads')
    sloppy = traits.Bool(False, usedefault=True, desc='fewer iterations, for tests')


class _BiasOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc='conformed scan without bias field')
    native_file = File(exists=True, desc='scan on its own grid without bias field')
    info = File(exists=True, desc='range of the field, whether the scan was skull-stripped')


class CorrectBias(SimpleInterface):
    """Estimate the bias field inside the brain and divide both scans by it."""

    input_spec = _BiasInputSpec
    output_spec = _BiasOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.steps import correct_bias

        watch = Stopwatch()
        out_file = Path(runtime.cwd) / 'corrected.nii'
        native_file = Path(runtime.cwd) / 'preproc.nii'
        info = correct_bias(
            Path(self.inputs.in_file),
            Path(self.inputs.mask_file),
            Path(self.inputs.native_file),
            out_file,
            native_file,
            threads=self.inputs.threads,
            sloppy=self.inputs.sloppy,
        )
        self._results['out_file'] = str(out_file)
        self._results['native_file'] = str(native_file)
        self._results['info'] = write_info(runtime.cwd, watch, info)
        return runtime


class _SegmentInputSpec(NetworkInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed scan without bias field')
    coarse_file = File(exists=True, mandatory=True, desc='posteriors on a coarse grid')
    native_file = File(exists=True, mandatory=True, desc='scan whose grid the results get')
    sloppy = traits.Bool(False, usedefault=True, desc='quick and less accurate, for tests')


_SEGMENT_FILES = {
    'brain_mask': 'mask',
    'dseg': 'dseg',
    'probseg_gm': 'gm',
    'probseg_wm': 'wm',
    'probseg_csf': 'csf',
    'wholebrain_dseg': 'wholebrain',
    'uncertainty': 'entropy',
}
"""Derivatives (keys of ``bids/outputs.json``) and the files that ``segment_brain`` writes."""


class _SegmentOutputSpec(TraitedSpec):
    brain_mask = File(exists=True, desc='brain mask, 0 and 1')
    dseg = File(exists=True, desc='1 GM, 2 WM, 3 CSF')
    probseg_gm = File(exists=True, desc='probability of grey matter')
    probseg_wm = File(exists=True, desc='probability of white matter')
    probseg_csf = File(exists=True, desc='probability of CSF')
    wholebrain_dseg = File(exists=True, desc="structures with FreeSurfer's numbers")
    uncertainty = File(exists=True, desc='normalised entropy, 0 to 1')
    info = File(exists=True, desc='volumes, device, precision, fallback')


class SegmentBrain(SimpleInterface):
    """Segment tissues and structures and bring them to the grid of the scan."""

    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.inference.brain import segment_brain

        watch = Stopwatch()
        with borrowed_gpu(self.inputs.device):
            found = segment_brain(
                Path(self.inputs.in_file),
                Path(self.inputs.coarse_file),
                Path(self.inputs.native_file),
                Path(runtime.cwd),
                sloppy=self.inputs.sloppy,
                **self.inputs.options(),
            )
        for key, name in _SEGMENT_FILES.items():
            self._results[key] = str(Path(runtime.cwd) / f'{name}.nii')
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime


class _RestoreMaskInputSpec(BaseInterfaceInputSpec):
    mask_file = File(exists=True, mandatory=True, desc='brain mask on the conformed grid')
    native_file = File(exists=True, mandatory=True, desc='scan whose grid the mask gets')


class _RestoreMaskOutputSpec(TraitedSpec):
    brain_mask = File(exists=True, desc='brain mask, 0 and 1')
    info = File(exists=True, desc='volume of the mask')


class RestoreMask(SimpleInterface):
    """Bring a brain mask back to the grid of the scan, where nothing else is asked for."""

    input_spec = _RestoreMaskInputSpec
    output_spec = _RestoreMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.steps import restore_mask

        watch = Stopwatch()
        out_file = Path(runtime.cwd) / 'mask.nii'
        info = restore_mask(Path(self.inputs.mask_file), Path(self.inputs.native_file), out_file)
        self._results['brain_mask'] = str(out_file)
        self._results['info'] = write_info(runtime.cwd, watch, info)
        return runtime
