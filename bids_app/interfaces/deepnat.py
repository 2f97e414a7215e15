# SPDX-License-Identifier: Apache-2.0
"""Interface that labels the structures of a brain with DeepNAT in place of the default network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, SimpleInterface, Str, TraitedSpec, traits

from bids_app.interfaces.anat import (
    DeviceInputSpec,
    Stopwatch,
    borrowed_gpu,
    read_info,
    write_info,
)


class _StructuresInputSpec(DeviceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed T1w without bias field')
    mask_file = File(exists=True, mandatory=True, desc='brain mask, conformed or native')
    native_file = File(exists=True, mandatory=True, desc='scan whose grid the labels get')
    mask_info = File(exists=True, mandatory=True, desc='findings of LocateBrain')
    info = File(exists=True, mandatory=True, desc='findings of the step that made the tissues')
    foreground = Str(mandatory=True, nohash=True, desc='model folder of the first network')
    model = Str(mandatory=True, nohash=True, desc='model folder of the second network')
    sha256 = traits.List(Str, mandatory=True, desc='checksums of both models')
    crf = traits.Bool(True, usedefault=True, desc='conditional random field')
    mirror = traits.Bool(False, usedefault=True, desc='average with the mirrored brain')
    parities = traits.Enum(2, 1, 8, usedefault=True, desc='parity classes of patch centres')
    tile = traits.Int(0, usedefault=True, nohash=True, desc='edge of tiles, voxels; 0 for ours')


class _StructuresOutputSpec(TraitedSpec):
    wholebrain_dseg = File(exists=True, desc="structures with FreeSurfer's numbers")
    info = File(exists=True, desc='the findings with other volumes of structures')


class SegmentStructures(SimpleInterface):
    """Label 25 structures with the two networks of DeepNAT and its random field."""

    input_spec = _StructuresInputSpec
    output_spec = _StructuresOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.inference.deepnat_files import segment_structures

        watch = Stopwatch()
        inputs = self.inputs
        with borrowed_gpu(inputs.device):
            found = segment_structures(
                Path(inputs.in_file),
                Path(inputs.mask_file),
                Path(inputs.native_file),
                Path(runtime.cwd),
                foreground=Path(inputs.foreground),
                model=Path(inputs.model),
                crf=inputs.crf,
                mirror=inputs.mirror,
                parities=inputs.parities,
                tile=inputs.tile or None,
                suspect=read_info(inputs.mask_info).get('orientation_suspect'),
                **inputs.options(),
            )
        self._results['wholebrain_dseg'] = str(Path(runtime.cwd) / 'wholebrain.nii')
        self._results['info'] = write_info(
            runtime.cwd, watch, {**_kept(read_info(inputs.info)), **found}
        )
        return runtime


def _kept(findings: dict[str, Any]) -> dict[str, Any]:
    """Leave out the files that another step publishes itself, and what it says of them."""
    return {key: value for key, value in findings.items() if key not in ('files', 'columns')}
