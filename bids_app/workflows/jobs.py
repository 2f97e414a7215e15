# SPDX-License-Identifier: Apache-2.0
"""One session of a run: where it works, how it went, and the model that it uses."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bids_app.bids.inputs import SessionRecord
from bids_app.bids.outputs import SYNTHESIZED, SYNTHESIZED_AS_PREPROC, Outputs
from bids_app.config import RunConfig
from bids_app.interfaces.dwi_sidecars import SYNTHESIS_ROLE
from bids_app.interfaces.sidecars import DEEPNAT_ROLES, classifier_role, tissue_role
from bids_app.resume import relative

LOGGER = logging.getLogger('anatnet.workflow')

REGISTRATION_MODEL = 'symnet'


@dataclass(frozen=True)
class ModelInUse:
    """The model of a run: its folder and what identifies it."""

    folder: Path
    name: str
    version: str
    sha256: str
    licence: str

    @classmethod
    def find(cls, name: str, models_dir: Path | None = None) -> ModelInUse:
        """Find a model by its name.

        Raises
        ------
        ModelError
            If it is not there, or its weights are not those of its card.
        """
        from bids_app.inference.models import check_weights, find_model, load_card

        folder = find_model(name, models_dir)
        card = load_card(folder)
        return cls(folder, card.name, card.version, check_weights(folder, card), card.licence)

    @property
    def info(self) -> dict[str, str]:
        """Name, version and checksum."""
        return {'name': self.name, 'version': self.version, 'sha256': self.sha256}


@dataclass(frozen=True)
class ModelsInUse:
    """The models of a run by their role; without ``vbm``, or with ANTs, none registers.

    ``classifiers`` are those that ``--classifier`` applies, ``tissue`` those that
    ``--tissue-model`` may use, one of them for a session. ``synthesis`` makes a T1w of diffusion
    images. ``deepnat`` are the two networks of DeepNAT, the foreground first; empty without it.
    """

    segmentation: ModelInUse
    registration: ModelInUse | None = None
    classifiers: tuple[ModelInUse, ...] = ()
    tissue: tuple[ModelInUse, ...] = ()
    synthesis: ModelInUse | None = None
    deepnat: tuple[ModelInUse, ...] = ()

    @classmethod
    def find(cls, config: RunConfig) -> ModelsInUse:
        """Find the models that a run needs.

        Raises
        ------
        ModelError
            If one is not there or broken.
        """
        segmentation = ModelInUse.find(config.model, config.models_dir)
        tissue: tuple[ModelInUse, ...] = ()
        if config.tissue_model != 'none' and 'tissue' in config.modules:
            from bids_app.inference.tissue import tissue_models

            names = [config.tissue_model]
            if config.tissue_model == 'auto':
                names = [str(folder) for folder in tissue_models(config.models_dir)]
            tissue = tuple(ModelInUse.find(name, config.models_dir) for name in names)
            _check_tissue_models(tissue, config)
        deepnat = _deepnat_models(config)
        if 'vbm' not in config.modules:
            return cls(segmentation, tissue=tissue, deepnat=deepnat)
        registration = None
        if config.registration != 'ants':
            registration = ModelInUse.find(REGISTRATION_MODEL, config.models_dir)
        classifiers = tuple(ModelInUse.find(folder) for folder in config.classifier)
        return cls(segmentation, registration, classifiers, tissue, deepnat=deepnat)

    @property
    def by_role(self) -> dict[str, ModelInUse]:
        """The models that are there, by their role."""
        found = {'segmentation': self.segmentation}
        if self.registration is not None:
            found['registration'] = self.registration
        return {
            **found,
            **({SYNTHESIS_ROLE: self.synthesis} if self.synthesis is not None else {}),
            **dict(zip(DEEPNAT_ROLES, self.deepnat, strict=False)),
            **{tissue_role(model.name): model for model in self.tissue},
            **{classifier_role(model.name): model for model in self.classifiers},
        }

    @property
    def certain(self) -> list[dict[str, str]]:
        """Name, version and checksum of the models that every session uses.

        Of several tissue models, each session uses one.
        """
        choice = self.tissue if len(self.tissue) > 1 else ()
        return [model.info for model in self.by_role.values() if model not in choice]

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of every model by its role; those of every run by their name."""
        always = ('segmentation', 'registration', SYNTHESIS_ROLE, *DEEPNAT_ROLES)
        return {
            model.name if role in always else role: model.sha256
            for role, model in self.by_role.items()
        }

    @property
    def infos(self) -> dict[str, dict[str, str]]:
        """Name, version and checksum of every model by its role."""
        return {role: model.info for role, model in self.by_role.items()}


def with_synthesis(models: ModelsInUse, config: RunConfig, jobs: Sequence[Job]) -> ModelsInUse:
    """Add the synthesis model, if a session needs it.

    Sessions of diffusion images alone end as ``failed`` where there is none.

    Raises
    ------
    ModelError
        If diffusion images are asked for, and the model is not there or broken.
    """
    from bids_app.errors import ModelError

    needing = [
        job for job in jobs
        if job.status == 'waiting' and 'dwi' in job.modules and not job.record.no_tensor
    ]  # fmt: skip
    if not needing:
        return models
    problem = '--synth-model none'
    if config.synth_model != 'none':
        from bids_app.inference.deepanat import synthesis_model

        try:
            folder = synthesis_model(config.synth_model, config.models_dir)
            return replace(models, synthesis=ModelInUse.find(str(folder)))
        except ModelError as error:
            if 'dwi' in config.modules:
                raise
            problem = str(error)
    for job in needing:
        if job.record.dwi_alone:
            job.end('failed', f'no anatomical image, and no T1w can be synthesised: {problem}')
    return models


def _deepnat_models(config: RunConfig) -> tuple[ModelInUse, ...]:
    """Return the two networks of DeepNAT, or none where the run does not use it.

    Raises
    ------
    ModelError
        If one is not there, broken, or another network.
    """
    if config.segmentation != 'deepnat' or 'wholebrain' not in config.modules:
        return ()
    from bids_app.inference.deepnat_segment import FOREGROUND_MODEL, check_card
    from bids_app.inference.models import load_card

    found = []
    for name, outputs in ((FOREGROUND_MODEL, 2), (config.deepnat_model, 27)):
        model = ModelInUse.find(name, config.models_dir)
        check_card(load_card(model.folder), model.folder, outputs)
        found.append(model)
    return tuple(found)


def _check_tissue_models(models: Sequence[ModelInUse], config: RunConfig) -> None:
    """Raise a ModelError where there is none, or one for another task."""
    from bids_app.errors import ModelError
    from bids_app.inference.models import load_card, models_folder

    if not models:
        raise ModelError(
            f'no tissue model in {config.models_dir or models_folder()}: name one with '
            '--tissue-model, or give a folder that has some with --models-dir'
        )
    for model in models:
        if load_card(model.folder).content.get('task') != 'tissue':
            raise ModelError(
                f'{model.folder} is no tissue model: --tissue-model takes one whose card.json has '
                '"task": "tissue"'
            )


@dataclass
class Job:
    """One session of a run.

    Attributes
    ----------
    record : SessionRecord
        What was found.
    outputs : Outputs
        Names of its derivatives.
    name : str
        Name of its workflow.
    work_dir, lock_file, log_dir : Path
        Its folder for intermediate files, the lock of that folder, and where crash files go.
    status : str
        ``waiting``, ``done`` (by an earlier run), ``skipped``, ``failed-before``, ``finished``,
        ``failed``, ``stopped`` or ``reported``.
    reason : str
        Why, in one line.
    step : str, optional
        The step that failed.
    all_contrasts : bool
        Whether images besides the reference are processed, too.
    modules : tuple of str
        What is computed of this session: ``dwi`` only where there are diffusion images, and where
        these are all there is, also if nobody asked for it.
    """

    record: SessionRecord
    outputs: Outputs
    name: str
    work_dir: Path
    lock_file: Path
    log_dir: Path
    status: str = 'waiting'
    reason: str = ''
    step: str | None = None
    crash_files: list[Path] = field(default_factory=list)
    report_problem: str | None = None
    all_contrasts: bool = True
    modules: tuple[str, ...] = ()

    def config(self, config: RunConfig) -> RunConfig:
        """Return the configuration of a run as it is for this session."""
        return config.replace(modules=self.modules)

    def models(self, models: ModelsInUse) -> ModelsInUse:
        """Return those of the models of a run that this session may use."""
        if 'dwi' not in self.modules or self.record.no_tensor:
            models = replace(models, synthesis=None)
        if 'vbm' not in self.modules:
            models = replace(models, registration=None, classifiers=())
        if 'wholebrain' not in self.modules:
            models = replace(models, deepnat=())
        return models if 'tissue' in self.modules else replace(models, tissue=())

    @property
    def label(self) -> str:
        """Name of the session as files carry it."""
        return self.record.label

    @property
    def input_files(self) -> list[Path]:
        """Files that the results depend on."""
        reference = self.record.t1w or self.record.stand_in
        scans = [reference.path] if reference is not None else []
        scans += self.contrasts.values()
        if 'dwi' in self.modules:
            for scan in self.record.dwi:
                tables = [table for table in (scan.bval, scan.bvec) if table is not None]
                scans += [scan.path, *tables]
        scans += [one.path for one in self.record.precomputed]
        return list(dict.fromkeys(scans))

    @property
    def contrasts(self) -> dict[str, Path]:
        """Scans besides the reference that are processed, by their contrast."""
        if not self.all_contrasts:
            return {}
        return {scan.suffix: scan.path for scan in self.record.contrasts}

    def precomputed_uris(self, derivatives: Mapping[str, Path]) -> dict[str, str]:
        """Return the BIDS URIs of the files of other pipelines, by their kinds."""
        return {
            one.kind: f'bids:{one.name}:{relative(one.path, derivatives[one.name])}'
            for one in self.record.precomputed
        }

    def end(self, status: str, reason: str) -> None:
        """Note how the session ended; the first word counts."""
        if self.status == 'waiting':
            self.status, self.reason = status, reason

    def crashed(self, step: str, crash_file: Path) -> None:
        """Note a crash and tell the user at once, in one line."""
        from bids_app.workflows.plugin import reason_of_crash

        if crash_file in self.crash_files:
            return
        self.crash_files.append(crash_file)
        reason, foreseen = reason_of_crash(crash_file)
        if self.status != 'waiting':
            return
        self.step = step
        self.end('failed', reason if foreseen else f'unexpected error in step {step}: {reason}')
        if step not in ('conform',) and foreseen:
            self.reason = f'step {step}: {reason}'
        LOGGER.error('%s: failed: %s', self.label, self.reason)

    def own_crash_files(self) -> list[Path]:
        """List the crash files of this session; all sessions of a subject share the folder."""
        return [
            crash_file for crash_file in sorted(self.log_dir.glob('crash-*.txt'))
            if crash_workflow(crash_file) in (self.name, None)
        ]  # fmt: skip

    def find_crash_files(self) -> None:
        """Look for crash files that a plugin has left without telling."""
        for crash_file in self.own_crash_files():
            self.crashed(crash_step(crash_file), crash_file)

    def voxels(self) -> int:
        """Count the voxels of the largest scan, from the headers; 0 where none can be read.

        Of a scan that is synthesised at 1 mm, these are the voxels that it will have.
        """
        import math

        import numpy as np

        from bids_app.images.scans import read_grid

        scans = [self.record.reference.path, *self.contrasts.values()]
        largest = 0
        for path in scans:
            try:
                grid = read_grid(path)
                count = math.prod(grid.shape)
                if self.record.dwi_alone:
                    count = int(count * abs(np.linalg.det(grid.affine[:3, :3])))
                largest = max(largest, count)
            except Exception:  # whatever is wrong is said by the step that reads the scan
                continue
        return largest


def make_jobs(config: RunConfig, records: Sequence[SessionRecord]) -> list[Job]:
    """Make a job of every session; those that cannot be processed are ``skipped``.

    Work folders are apart for every pair of data set and output folder, so that many runs may
    share one ``--work-dir``.
    """
    pair = f'{os.path.abspath(config.bids_dir)}\0{os.path.abspath(config.output_dir)}'
    base = config.work_dir / f'anatnet_{hashlib.sha256(pair.encode()).hexdigest()[:8]}'
    jobs = []
    for record in records:
        name = workflow_name(record)
        reference = record.reference_name
        if reference == SYNTHESIZED and config.synth_as_preproc:
            reference = SYNTHESIZED_AS_PREPROC
        outputs = Outputs(config.output_dir, record.subject, record.session, reference)
        modules = _modules_of(record, config)
        job = Job(
            record,
            outputs,
            name,
            base / name,
            base / f'.{name}.lock',
            outputs.log_dir(config.run_uuid),
            all_contrasts=bool({'tissue', 'wholebrain'} & set(modules)),
            modules=modules,
        )
        if record.problem is not None:
            job.end('skipped', record.problem)
        jobs.append(job)
    return jobs


def _modules_of(record: SessionRecord, config: RunConfig) -> tuple[str, ...]:
    """Return what is computed of a session."""
    if record.dwi_alone:
        others = () if record.no_tensor else (m for m in config.modules if m != 'dwi')
        return (*others, 'dwi')
    return tuple(m for m in config.modules if m != 'dwi' or record.dwi)


def workflow_name(record: SessionRecord) -> str:
    """Name the workflow of a session; labels may hold a plus sign, names of workflows may not."""
    text = f'sub_{record.subject}' + (f'_ses_{record.session}' if record.session else '')
    return re.sub(r'[^0-9a-zA-Z_]', lambda found: f'_{ord(found.group()):x}_', text) + '_wf'


def crash_step(crash_file: Path) -> str:
    """Read the name of the node from the name of a crash file.

    Examples
    --------
    >>> unique = '66e85e8f-bcea-42d1-9861-14b2159e7a0a'
    >>> crash_step(Path(f'crash-20261121-015941-root-mask-{unique}.txt'))
    'mask'
    """
    name = re.sub(r'-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.txt$', '', crash_file.name)
    return name.rsplit('-', 1)[-1]


def crash_workflow(crash_file: Path) -> str | None:
    """Read the name of a session's workflow from a crash file; None if it does not say."""
    try:
        with crash_file.open(errors='replace') as stream:
            first = stream.readline()
    except OSError:
        return None
    found = re.match(r'Node: \w+\.(\w+)\.\w+', first)
    return found.group(1) if found else None


def node_info(work_dir: Path, node: str) -> dict[str, Any]:
    """Read what a node wrote about itself; empty if there is nothing."""
    from bids_app.interfaces.anat import INFO_FILE, read_info

    for folder in (work_dir, work_dir / 'vbm_wf'):
        try:
            return read_info(folder / node / INFO_FILE)
        except (OSError, ValueError):
            continue
    return {}


def tissue_problem(job: Job, models: ModelsInUse) -> str | None:
    """Say what a session lacks for every tissue model that may be used; None if one will do.

    It is asked before anything is computed.
    """
    if not models.tissue or 'tissue' not in job.modules:
        return None
    from bids_app.inference.models import load_card
    from bids_app.inference.tissue import usable_contrasts

    reference = job.outputs.contrast
    available = {reference, *job.contrasts}
    cards = [load_card(model.folder) for model in models.tissue]
    if any(usable_contrasts(card, available, reference) for card in cards):
        return None
    there = ', '.join(sorted(available))
    if len(cards) > 1:
        return f'no tissue model fits what this session has ({there}): give --tissue-model none'
    wanted = cards[0].content['contrasts']
    if cards[0].content.get('missing_contrasts'):
        needed = ' or '.join(wanted)
    else:
        needed = ' and '.join(one for one in wanted if one not in available)
    return (
        f'the tissue model {cards[0].name} needs {needed}, of which this session has no image (it '
        f'has {there}): give --tissue-model auto or another model'
    )


def deepnat_problem(job: Job, models: ModelsInUse) -> str | None:
    """Say why DeepNAT cannot label a session; None if it can, or is not asked to."""
    if not models.deepnat or 'wholebrain' not in job.modules or job.outputs.contrast == 'T1w':
        return None
    return (
        f'DeepNAT labels T1w images, and this session has none ({job.outputs.contrast} would '
        'stand in): give --segmentation default'
    )
