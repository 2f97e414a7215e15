# SPDX-License-Identifier: Apache-2.0
"""Interface that puts a mask or tissue maps of another pipeline in the place of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_app.interfaces.anat import Stopwatch, read_info, write_info

OWN = {
    'brain_mask': 'mask', 'dseg': 'dseg', 'probseg_gm': 'gm', 'probseg_wm': 'wm',
    'probseg_csf': 'csf', 'wholebrain_dseg': 'wholebrain', 'uncertainty': 'entropy',
}  # fmt: skip
"""Our derivatives, and what :func:`bids_app.inference.precomputed.replace` calls them."""


class _InputSpec(BaseInterfaceInputSpec):
    info = File(exists=True, mandatory=True, desc='findings of the step that made ours')
    given = traits.Dict(mandatory=True, desc='files that replace ours, by their keys')
    sources = traits.Dict(mandatory=True, desc='BIDS URI of each of them')
    stamps = traits.List(desc='size and time of the files, for the cache')


class _OutputSpec(TraitedSpec):
    info = File(exists=True, desc='the findings with new volumes, what was replaced, and notes')


for _key in OWN:
    _InputSpec.add_class_trait(_key, File(exists=True, desc=f'our {_key}'))
    _OutputSpec.add_class_trait(_key, File(exists=True, desc=f'{_key} after the replacement'))


class UsePrecomputed(SimpleInterface):
    """Replace mask and tissues, and what follows from them; or the mask alone."""

    input_spec = _InputSpec
    output_spec = _OutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.steps import use_precomputed

        watch = Stopwatch()
        traitsfree = self.inputs.get_traitsfree()
        found = use_precomputed(
            {OWN[key]: Path(traitsfree[key]) for key in OWN if key in traitsfree},
            {key: Path(path) for key, path in self.inputs.given.items()},
            read_info(self.inputs.info),
            Path(runtime.cwd),
        )
        for key, name in OWN.items():
            if key in traitsfree:
                self._results[key] = str(Path(runtime.cwd) / f'{name}.nii')
        found['given'] = dict(self.inputs.given)
        found['sources'] = dict(self.inputs.sources)
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime
