# SPDX-License-Identifier: Apache-2.0
"""Interface that moves the results of one session into the derivatives folder."""

from __future__ import annotations

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

from bids_app.interfaces.anat import Stopwatch, read_info, write_info

PUBLISHED = (
    'preproc', 'brain_mask', 'dseg', 'probseg_gm', 'probseg_wm', 'probseg_csf',
    'wholebrain_dseg', 'uncertainty', 'tissue_morph', 'wholebrain_morph', 'qc_stats',
)  # fmt: skip
"""Keys of ``bids/outputs.json`` that this interface takes, in the order they are written."""

STEPS = (
    'conform', 'mask', 'bias', 'segment', 'coregister', 'tissue', 'restore', 'precomputed',
    'structures',
    'normalise', 'measure', 'warp', 'modulate', 'predict', 'regions', 'dwi_series', 'dwi_maps',
    'dwi_regions',
)  # fmt: skip
"""Steps whose findings are gathered. Files in template space are listed in them, too."""


class _PublishInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='scan that everything came from')
    bids_dir = Str(mandatory=True, desc='root of the raw data set')
    output_dir = Str(mandatory=True, desc='root of the derivatives')
    subject = Str(mandatory=True, desc='label without sub-')
    session = Str('', usedefault=True, desc='label without ses-, empty for none')
    reference = Str('T1w', usedefault=True, desc='contrast of the scan')
    contrasts = traits.Dict(desc='further scans by their contrast')
    models = traits.Dict(desc='name, version and sha256 of the models by their role')
    templates = traits.Dict(desc='T1w image of every template')
    threads = traits.Int(1, usedefault=True, nohash=True, desc='files compressed at once')


for _key in PUBLISHED:
    _PublishInputSpec.add_class_trait(_key, File(exists=True, desc=f'derivative {_key}'))
for _step in STEPS:
    _PublishInputSpec.add_class_trait(
        f'{_step}_info', File(exists=True, desc=f'findings of the step {_step}')
    )


class _PublishOutputSpec(TraitedSpec):
    info = File(exists=True, desc='findings of all steps, and the files written with their size')


class PublishSession(SimpleInterface):
    """Compress the results once, write their sidecars, and put both in place.

    It runs even if Nipype believes it has: the user may have removed its files.
    """

    input_spec = _PublishInputSpec
    output_spec = _PublishOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.bids.outputs import Outputs
        from bids_app.interfaces.publishing import publish

        watch = Stopwatch()
        given = self.inputs.get_traitsfree()
        steps = {
            step: read_info(given[f'{step}_info']) for step in STEPS if f'{step}_info' in given
        }
        outputs = Outputs(
            Path(self.inputs.output_dir),
            self.inputs.subject,
            self.inputs.session or None,
            self.inputs.reference,
        )
        files = {key: Path(given[key]) for key in PUBLISHED if key in given}
        for info in steps.values():
            files.update((key, Path(path)) for key, path in info.pop('files', {}).items())
        written = publish(
            files,
            outputs,
            Path(self.inputs.in_file),
            Path(self.inputs.bids_dir),
            steps=steps,
            models=given.get('models', {}),
            templates=given.get('templates', {}),
            contrasts=given.get('contrasts', {}),
            threads=self.inputs.threads,
        )
        self._results['info'] = write_info(
            runtime.cwd, watch, {'steps': steps, 'outputs': written, 'files': list(files)}
        )
        return runtime
