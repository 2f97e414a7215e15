# SPDX-License-Identifier: Apache-2.0
"""Interfaces for diffusion images: the series, its maps with a synthesised T1w, the structures.

Where a session has an anatomical image, nothing that is wrong with its diffusion images may cost
its anatomical results: the steps then write what is wrong into their findings (``status`` is
``failed``), and later ones pass it on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    Str,
    TraitedSpec,
    traits,
)

from bids_app.errors import AnatNetError
from bids_app.interfaces.anat import (
    NetworkInputSpec,
    Stopwatch,
    borrowed_gpu,
    read_info,
    write_info,
)


def _kept(required: bool, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work of a step; where it is not required, an error becomes a finding."""
    try:
        return {'status': 'ok', 'reasons': [], **work()}
    except (AnatNetError, ValueError, np.linalg.LinAlgError) as error:
        if required:
            raise
        return {'status': 'failed', 'reasons': [' '.join(str(error).split())]}


class _PrepareInputSpec(BaseInterfaceInputSpec):
    images = InputMultiPath(File(exists=True), mandatory=True, desc='diffusion runs of one grid')
    bvals = InputMultiPath(File(exists=True), mandatory=True, desc='their b-values')
    bvecs = InputMultiPath(File(exists=True), mandatory=True, desc='their b-vectors')
    b0_threshold = traits.Float(50.0, usedefault=True, desc='largest b-value of b=0, s/mm^2')
    denoise = Str('none', usedefault=True, desc='none or mppca')
    motion = Str('none', usedefault=True, desc='none or rigid')
    required = traits.Bool(False, usedefault=True, desc='fail where the runs cannot be used')


class _PrepareOutputSpec(TraitedSpec):
    info = File(exists=True, desc='the series, its gradients, and what was corrected')


class PrepareSeries(SimpleInterface):
    """Join the diffusion runs of a session to one series in RAS+ order."""

    input_spec = _PrepareInputSpec
    output_spec = _PrepareOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.dwi_steps import prepare_series

        watch = Stopwatch()
        inputs = self.inputs
        found = _kept(
            inputs.required,
            lambda: prepare_series(
                [Path(path) for path in inputs.images],
                [Path(path) for path in inputs.bvals],
                [Path(path) for path in inputs.bvecs],
                Path(runtime.cwd),
                b0_threshold=inputs.b0_threshold,
                denoise=inputs.denoise,
                motion=inputs.motion,
            ),
        )
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime


class _MapInputSpec(NetworkInputSpec):
    series_info = File(exists=True, mandatory=True, desc='findings of PrepareSeries')
    b0_threshold = traits.Float(50.0, usedefault=True, desc='largest b-value of b=0, s/mm^2')
    synth_model = Str('', usedefault=True, nohash=True, desc='folder of the synthesis model, empty'
                      ' for none')  # fmt: skip
    synth_sha256 = Str('', usedefault=True, desc='checksum of the synthesis model')
    one_mm = traits.Bool(False, usedefault=True, desc='synthesise at 1 mm, too')
    published = traits.Bool(False, usedefault=True, desc='publish the T1w at 1 mm')
    required = traits.Bool(False, usedefault=True, desc='fail where there is no brain')


class _MapOutputSpec(TraitedSpec):
    info = File(exists=True, desc='what was found, and the files written')
    t1w = File(exists=True, desc='synthesised T1w at 1 mm')


class MapDiffusion(SimpleInterface):
    """Make mean images, mask and tensor maps, and synthesise a T1w."""

    input_spec = _MapInputSpec
    output_spec = _MapOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.dwi_steps import map_diffusion

        watch = Stopwatch()
        inputs = self.inputs
        prepared = read_info(inputs.series_info)
        if prepared['status'] != 'ok':
            found = {'status': 'failed', 'reasons': prepared['reasons']}
        else:
            with borrowed_gpu(inputs.device):
                found = _kept(
                    inputs.required,
                    lambda: map_diffusion(
                        prepared,
                        Path(runtime.cwd),
                        synth_model=Path(inputs.synth_model) if inputs.synth_model else None,
                        one_mm=inputs.one_mm,
                        b0_threshold=inputs.b0_threshold,
                        **inputs.options(),
                    ),
                )
        fine = found.get('synthesis', {}).get('t1w_1mm')
        if fine:
            self._results['t1w'] = fine
            if inputs.published:
                found['files']['dwi_t1w_1mm'] = fine
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime


class _AlignInputSpec(BaseInterfaceInputSpec):
    maps_info = File(exists=True, mandatory=True, desc='findings of MapDiffusion')
    reference = File(exists=True, mandatory=True, desc='reference without bias field')
    brain_mask = File(exists=True, mandatory=True, desc='brain mask on the grid of the reference')
    dseg = File(exists=True, mandatory=True, desc='1 GM, 2 WM, 3 CSF')
    wholebrain_dseg = File(exists=True, mandatory=True, desc="FreeSurfer's numbers")
    same_space = traits.Bool(False, usedefault=True, desc='the reference was synthesised')


class _AlignOutputSpec(TraitedSpec):
    info = File(exists=True, desc='what was found, and the files written')


class AlignDiffusion(SimpleInterface):
    """Register diffusion images to the reference and describe them in its structures."""

    input_spec = _AlignInputSpec
    output_spec = _AlignOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.dwi_steps import align_diffusion

        watch = Stopwatch()
        inputs = self.inputs
        mapped = read_info(inputs.maps_info)
        if mapped['status'] != 'ok' or 'dwi_b0' not in mapped['files']:
            reasons = mapped['reasons'] or ['there is no b=0 to register']
            found = {'status': 'failed', 'reasons': reasons}
        else:
            found = _kept(
                inputs.same_space,
                lambda: align_diffusion(
                    mapped,
                    Path(inputs.reference),
                    Path(inputs.brain_mask),
                    Path(inputs.dseg),
                    Path(inputs.wholebrain_dseg),
                    Path(runtime.cwd),
                    same_space=inputs.same_space,
                ),
            )
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime
