# SPDX-License-Identifier: Apache-2.0
"""Interfaces of the steps in template space; each serves all output spaces of a scan.

The list ``normalisations`` that passes between them holds one file per space, in the order in
which the spaces were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    OutputMultiPath,
    SimpleInterface,
    Str,
    TraitedSpec,
    traits,
)

from bids_app.interfaces.anat import Stopwatch, borrowed_gpu, read_info, write_info


class _NormaliseInputSpec(BaseInterfaceInputSpec):
    probseg_gm = File(exists=True, mandatory=True, desc='probability of grey matter')
    probseg_wm = File(exists=True, mandatory=True, desc='probability of white matter')
    probseg_csf = File(exists=True, mandatory=True, desc='probability of CSF')
    wholebrain_dseg = File(exists=True, mandatory=True, desc="FreeSurfer's numbers")
    brain_mask = File(exists=True, mandatory=True, desc='brain mask, 0 and 1')
    templates = traits.List(
        traits.Dict, mandatory=True, desc='space, t1w, mask, tissues and labels of every template'
    )
    method = traits.Enum('refined', 'network', 'ants', usedefault=True, desc='registration')
    model = Str('', usedefault=True, nohash=True, desc='folder of the model, empty for none')
    model_sha256 = Str('', usedefault=True, desc='checksum of the model')
    precision = Str('auto', usedefault=True, desc='auto, float32 or bfloat16')
    device = Str('cpu', usedefault=True, nohash=True, desc='cpu, cuda or cuda:N')
    threads = traits.Int(1, usedefault=True, nohash=True, desc='CPU threads')
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='takes a GPU slot of Nipype')
    sloppy = traits.Bool(False, usedefault=True, desc='quick and less accurate, for tests')


class _NormaliseOutputSpec(TraitedSpec):
    normalisations = OutputMultiPath(File(exists=True), desc='one file per space')
    info = File(exists=True, desc='measures of every registration, device, precision, fallback')


class Normalise(SimpleInterface):
    """Register a scan to templates."""

    input_spec = _NormaliseInputSpec
    output_spec = _NormaliseOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.images.templates import Template
        from bids_app.inference.device import device_here
        from bids_app.registration.run import normalise_files

        watch = Stopwatch()
        inputs = self.inputs
        files, spaces = [], {}
        for files_of_template in inputs.templates:
            template = Template(**{
                key: Path(value) if value and key != 'space' else value
                for key, value in files_of_template.items()
            })  # fmt: skip
            files.append(str(Path(runtime.cwd) / f'{template.space}.npz'))
            with borrowed_gpu(inputs.device):
                spaces[template.space] = normalise_files(
                    gm=Path(inputs.probseg_gm),
                    wm=Path(inputs.probseg_wm),
                    csf=Path(inputs.probseg_csf),
                    labels=Path(inputs.wholebrain_dseg),
                    mask=Path(inputs.brain_mask),
                    template=template,
                    method=inputs.method,
                    model=Path(inputs.model) if inputs.model else None,
                    out_file=Path(files[-1]),
                    device=device_here(inputs.device),
                    precision=inputs.precision,
                    threads=inputs.threads,
                    sloppy=inputs.sloppy,
                )
        self._results['normalisations'] = files
        self._results['info'] = write_info(runtime.cwd, watch, {'spaces': spaces})
        return runtime


class _TemplateInputSpec(BaseInterfaceInputSpec):
    normalisations = InputMultiPath(
        File(exists=True), mandatory=True, desc='registrations, one file per space'
    )
    voxel_sizes = traits.List(
        traits.List(traits.Float), mandatory=True, desc='voxel sizes of every space, mm'
    )

    def each(self) -> Iterator[tuple[Path, list[float]]]:
        """Yield the registration and the voxel sizes of every space."""
        for file, sizes in zip(self.normalisations, self.voxel_sizes, strict=True):
            yield Path(file), sizes

    def images(self) -> dict[str, Path]:
        """Return the native images that are given, by their keys in the table of derivatives."""
        return {
            key: Path(value)
            for key, value in self.get_traitsfree().items()
            if key in ('preproc', 'brain_mask') or key.startswith('probseg_')
        }


class _WarpInputSpec(_TemplateInputSpec):
    preproc = File(exists=True, mandatory=True, desc='scan without bias field')
    brain_mask = File(exists=True, mandatory=True, desc='brain mask, 0 and 1')
    probseg_gm = File(exists=True, mandatory=True, desc='probability of grey matter')
    probseg_wm = File(exists=True, mandatory=True, desc='probability of white matter')
    probseg_csf = File(exists=True, mandatory=True, desc='probability of CSF')


class _InfoOutputSpec(TraitedSpec):
    info = File(exists=True, desc='files written, by their ids, and what was found')


class WarpToTemplate(SimpleInterface):
    """Bring scan, mask and tissues to template space, and write the transforms."""

    input_spec = _WarpInputSpec
    output_spec = _InfoOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.template_steps import warp_files

        watch = Stopwatch()
        files: dict[str, str] = {}
        for file, sizes in self.inputs.each():
            found = warp_files(file, self.inputs.images(), Path(runtime.cwd), voxel_sizes=sizes)
            files.update(found['files'])
        self._results['info'] = write_info(runtime.cwd, watch, {'files': files})
        return runtime


class _ModulateInputSpec(_TemplateInputSpec):
    probseg_gm = File(exists=True, mandatory=True, desc='probability of grey matter')
    probseg_wm = File(exists=True, mandatory=True, desc='probability of white matter')
    smooth_fwhm = traits.List(traits.Float, usedefault=True, desc='widths of the kernels, mm')


class Modulate(SimpleInterface):
    """Write modulated and smoothed maps of grey and white matter."""

    input_spec = _ModulateInputSpec
    output_spec = _InfoOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.template_steps import modulate_files

        watch = Stopwatch()
        files: dict[str, str] = {}
        volumes: list[dict[str, Any]] = []
        for file, sizes in self.inputs.each():
            found = modulate_files(
                file, self.inputs.images(), Path(runtime.cwd), voxel_sizes=sizes,
                smooth_fwhm=self.inputs.smooth_fwhm,
            )  # fmt: skip
            files.update(found['files'])
            volumes += found['volumes']
        self._results['info'] = write_info(
            runtime.cwd, watch, {'files': files, 'volumes': volumes}
        )
        return runtime


class _PredictInputSpec(BaseInterfaceInputSpec):
    modulate_info = File(exists=True, mandatory=True, desc='files of Modulate, by their ids')
    classifiers = traits.List(Str, mandatory=True, nohash=True, desc='folders of the models')
    sha256 = traits.List(Str, mandatory=True, desc='checksums of the models')
    threads = traits.Int(1, usedefault=True, nohash=True, desc='CPU threads')


class PredictFromMaps(SimpleInterface):
    """Apply classifiers to the modulated maps of a scan."""

    input_spec = _PredictInputSpec
    output_spec = _InfoOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.template_steps import prediction_files

        watch = Stopwatch()
        maps = read_info(self.inputs.modulate_info)['files']
        found = prediction_files(
            {name: Path(path) for name, path in maps.items()},
            [Path(folder) for folder in self.inputs.classifiers],
            Path(runtime.cwd),
            threads=self.inputs.threads,
        )
        self._results['info'] = write_info(runtime.cwd, watch, found)
        return runtime


class _RegionsInputSpec(BaseInterfaceInputSpec):
    normalisations = InputMultiPath(
        File(exists=True), mandatory=True, desc='registrations, one file per space'
    )
    probseg_gm = File(exists=True, mandatory=True, desc='probability of grey matter')
    probseg_wm = File(exists=True, mandatory=True, desc='probability of white matter')
    probseg_csf = File(exists=True, mandatory=True, desc='probability of CSF')
    atlases = traits.List(
        traits.List(Str), mandatory=True, desc='atlases of every space, FILE[:TABLE]'
    )
    atlas_files = InputMultiPath(File(exists=True), desc='files of all atlases, for the cache')


class MeasureRegions(SimpleInterface):
    """Measure the tissues in the regions of atlases."""

    input_spec = _RegionsInputSpec
    output_spec = _InfoOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_app.interfaces.template_steps import region_files

        watch = Stopwatch()
        images = {
            f'probseg_{name}': Path(getattr(self.inputs, f'probseg_{name}'))
            for name in ('gm', 'wm', 'csf')
        }
        info: dict[str, Any] = {'files': {}, 'columns': {}, 'atlases': []}
        for file, atlases in zip(self.inputs.normalisations, self.inputs.atlases, strict=True):
            if not atlases:
                continue
            found = region_files(Path(file), images, Path(runtime.cwd), atlases=atlases)
            info['files'].update(found['files'])
            info['columns'].update(found['columns'])
            info['atlases'] += found['atlases']
        self._results['info'] = write_info(runtime.cwd, watch, info)
        return runtime
