# SPDX-License-Identifier: Apache-2.0
"""Interfaces for contrasts beside the reference: coregistration, and tissues from all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    File,
    InputMultiPath,
    SimpleInterface,
    Str,
    TraitedSpec,
    traits,
)

from bids_app.interfaces.anat import (
    DeviceInputSpec,
    NetworkInputSpec,
    Stopwatch,
    borrowed_gpu,
    read_info,
    write_info,
)


class _CoregisterInputSpec(NetworkInputSpec):
    contrasts = traits.List(Str, mandatory=True, desc='contrast of every scan, such as FLAIR')
    scans = InputMultiPath(File(exists=True), mandatory=True, desc='scans as they were acquired')
    reference = File(exists=True, mandatory=True, desc='reference without bias field')
    brain_mask = File(exists=True, mandatory=True, desc='brain mask on the grid of the reference')
    conformed = File(exists=True, mandatory=True, desc='conformed reference')
    sloppy = traits.Bool(False, usedefault=True, desc='fewer iterations, for tests')


class _CoregisterOutputSpec(TraitedSpec):
    info = File(exists=True, desc='what was found of every contrast, and the files written')


class CoregisterContrasts(SimpleInterface):
    """Bring further images of a session to the grid of its reference."""

    input_spec = _CoregisterInputSpec
    output_spec = _CoregisterOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.contrast_steps import coregister_contrasts

        watch = Stopwatch()
        inputs = self.inputs
        with borrowed_gpu(inputs.device):
            found = coregister_contrasts(
                dict(zip(inputs.contrasts, map(Path, inputs.scans), strict=True)),
                Path(inputs.reference),
                Path(inputs.brain_mask),
                Path(inputs.conformed),
                Path(runtime.cwd),
                sloppy=inputs.sloppy,
                **inputs.options(),
            )
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime


class _TissuesInputSpec(DeviceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed reference without bias field')
    reference = Str(mandatory=True, desc='contrast of the reference')
    brain_mask = File(exists=True, mandatory=True, desc='brain mask on the grid of the reference')
    wholebrain_dseg = File(exists=True, mandatory=True, desc="FreeSurfer's numbers")
    segment_info = File(exists=True, mandatory=True, desc='findings of SegmentBrain')
    coregister_info = File(exists=True, desc='findings of CoregisterContrasts')
    tissue_model = Str(mandatory=True, desc='auto, or name or folder of the model')
    models_dir = Str('', usedefault=True, nohash=True, desc='folder of models, empty for ours')
    sha256 = traits.List(Str, mandatory=True, desc='checksums of the models that may be used')
    correct_lesions = traits.Bool(False, usedefault=True, desc='count lesions as white matter')


class _TissuesOutputSpec(TraitedSpec):
    dseg = File(exists=True, desc='1 GM, 2 WM, 3 CSF')
    probseg_gm = File(exists=True, desc='probability of grey matter')
    probseg_wm = File(exists=True, desc='probability of white matter')
    probseg_csf = File(exists=True, desc='probability of CSF')
    info = File(exists=True, desc='findings of SegmentBrain with new volumes, and the model')


class SegmentTissues(SimpleInterface):
    """Make the tissue maps with the contrasts that there are."""

    input_spec = _TissuesInputSpec
    output_spec = _TissuesOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.inference.tissue import choose_tissue_model
        from bids_app.interfaces.contrast_steps import segment_tissues

        watch = Stopwatch()
        given = self.inputs.get_traitsfree()
        registered = {}
        if 'coregister_info' in given:
            registered = read_info(given['coregister_info'])['contrasts']
        images = {
            name: Path(found['conformed'])
            for name, found in registered.items()
            if 'conformed' in found
        }
        reference, named = self.inputs.reference, self.inputs.tissue_model
        model = choose_tissue_model(
            {reference, *images},
            None if named == 'auto' else named,
            reference=reference,
            models_dir=Path(self.inputs.models_dir) if self.inputs.models_dir else None,
        )
        with borrowed_gpu(self.inputs.device):
            found = segment_tissues(
                Path(self.inputs.in_file),
                images,
                {'mask': Path(given['brain_mask']), 'wholebrain': Path(given['wholebrain_dseg'])},
                read_info(given['segment_info']),
                Path(runtime.cwd),
                reference=reference,
                model=model,
                correct_lesions=self.inputs.correct_lesions,
                **self.inputs.options(),
            )
        for key in ('dseg', 'probseg_gm', 'probseg_wm', 'probseg_csf'):
            name = key.removeprefix('probseg_')
            self._results[key] = str(Path(runtime.cwd) / f'{name}.nii')
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime
