# SPDX-License-Identifier: Apache-2.0
"""Interface that turns a segmentation into tables: volumes and quality measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, Str, TraitedSpec

from bids_app.interfaces.anat import Stopwatch, read_info, write_info


class _MeasureInputSpec(BaseInterfaceInputSpec):
    raw_file = File(exists=True, mandatory=True, desc='scan as it was acquired')
    preproc = File(exists=True, mandatory=True, desc='scan without bias field')
    brain_mask = File(exists=True, mandatory=True, desc='brain mask, 0 and 1')
    dseg = File(exists=True, mandatory=True, desc='1 GM, 2 WM, 3 CSF')
    probseg_gm = File(exists=True, mandatory=True, desc='probability of grey matter')
    probseg_wm = File(exists=True, mandatory=True, desc='probability of white matter')
    probseg_csf = File(exists=True, mandatory=True, desc='probability of CSF')
    wholebrain_dseg = File(exists=True, mandatory=True, desc="FreeSurfer's numbers")
    uncertainty = File(exists=True, mandatory=True, desc='normalised entropy, 0 to 1')
    mask_info = File(exists=True, mandatory=True, desc='findings of LocateBrain')
    segment_info = File(exists=True, mandatory=True, desc='findings of SegmentBrain')
    normalise_info = File(exists=True, desc='findings of Normalise')
    coregister_info = File(exists=True, desc='findings of CoregisterContrasts')
    reference = Str('T1w', usedefault=True, desc='contrast of the scan')


class _MeasureOutputSpec(TraitedSpec):
    tissue_morph = File(exists=True, desc='volumes of tissues and their total, mm^3')
    wholebrain_morph = File(exists=True, desc='volumes of structures, mm^3')
    qc_stats = File(exists=True, desc='one row of quality measures')
    info = File(exists=True, desc='verdict of the quality check, meaning of the columns')


class MeasureBrain(SimpleInterface):
    """Write the tables of volumes and of quality measures."""

    input_spec = _MeasureInputSpec
    output_spec = _MeasureOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.measuring import measure

        watch = Stopwatch()
        given = self.inputs.get_traitsfree()
        found = {
            name: read_info(given.pop(name)) if name in given else {}
            for name in ('mask_info', 'segment_info', 'normalise_info', 'coregister_info')
        }
        reference = given.pop('reference')
        folder = Path(runtime.cwd)
        info = measure(
            {key: Path(path) for key, path in given.items()},
            folder,
            located=found['mask_info'],
            segmented=found['segment_info'],
            registered=next(iter(found['normalise_info'].get('spaces', {}).values()), {}),
            coregistered=found['coregister_info'].get('contrasts', {}),
            reference=reference,
        )
        for key in ('tissue_morph', 'wholebrain_morph', 'qc_stats'):
            self._results[key] = str(folder / f'{key}.tsv')
        self._results['info'] = write_info(folder, watch, info)
        return runtime
