# SPDX-License-Identifier: Apache-2.0
"""The files that make the output folder a BIDS derivatives data set."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app import __version__
from bids_app.bids.files import atomic_write_bytes, file_lock, read_json, write_if_different
from bids_app.errors import AnatNetError, UsageError

if TYPE_CHECKING:
    from bids_app.config import RunConfig

LOGGER = logging.getLogger('anatnet.bids')

PIPELINE = 'AnatNet'
BIDS_VERSION = '1.10.0'

# 'figures' without a trailing slash: the validator does not match 'figures/' below a subject.
BIDSIGNORE = """\
*.html
logs
log
figures
*_xfm.*
*_morph.*
*_stats.*
*_uncertainty.*
*_predictions.*
*_dwiref.*
*_dwimap.*
group_*.tsv
group_*.json
group
"""

README = """\
# AnatNet derivatives

Written by AnatNet {version} from the raw data set "{name}".

Per session, in `sub-*/[ses-*/]anat/`, all on the grid of the T1w scan:

- `desc-preproc_T1w`: the scan after bias correction, not skull-stripped
- `desc-brain_mask`: brain mask
- `dseg`: tissues, 1 grey matter, 2 white matter, 3 cerebrospinal fluid (`dseg.tsv`)
- `label-{{GM,WM,CSF}}_probseg`: tissue probabilities
- `desc-wholebrain_dseg`: brain structures with FreeSurfer's numbers (`desc-wholebrain_dseg.tsv`)
- `desc-entropy_uncertainty`: where the network is unsure, 0 to 1
- `desc-tissue_morph.tsv`, `desc-wholebrain_morph.tsv`: volumes in mm^3
- `desc-qc_stats.tsv`: quality measures
- `desc-preproc_{{T2w,FLAIR}}`, `from-*_to-*_xfm.txt`: further contrasts and their rigid transforms
- `label-WMH_probseg`, `desc-wmh_mask`, `desc-wmh_morph.tsv`: white-matter hyperintensities, where
  a tissue model looked for them

In a session without a T1w, another image stands in for it, in names, too: see `Reference` in the
JSON files. Volumes are then less exact. In a session with nothing but diffusion images, all is
on the grid of `desc-synthesized_T1w`, which a network made from them.

Of diffusion images, where the module `dwi` has run, on their grid:

- `dwi/desc-{{b0,meandwi}}_dwiref`, `dwi/desc-brain_mask`: mean images and brain mask
- `dwi/model-tensor_param-{{fa,md,ad,rd,evals}}_dwimap`: maps of the diffusion tensor, um^2/ms
- `anat/space-dwi_desc-synthesized_T1w`: a T1w that a network made, not a measurement
- `anat/space-dwi_desc-preproc_T1w`, `dwi/desc-wholebrain_dseg`: the T1w and the structures
- `dwi/desc-wholebrain_stats.tsv`: mean and standard deviation of the maps in the structures
- `dwi/from-*_to-*_xfm.txt`: rigid transforms between diffusion images and T1w

In template space, where the module `vbm` has run:

- `from-T1w_to-*_xfm.h5`, `from-*_to-T1w_xfm.h5`: transforms for ANTs, ITK and fMRIPrep
- `space-*_res-*_{{T1w,mask,dseg,probseg}}`: scan, mask and tissues
- `space-*_res-*_label-{{GM,WM}}_desc-modulated_probseg`: modulated maps, and smoothed ones
- `space-*_res-*_desc-jacobian_morph`: volume of the scan per volume of the template
- `atlas-*_desc-regions_morph.tsv`: tissue volumes in the regions of atlases, mm^3
- `desc-*_predictions.tsv`: what classifiers say of the scan; not for clinical use

`sub-*.html` are the reports to look at first. Results are for research, not for clinical use.
"""


def dataset_description(config: RunConfig) -> dict[str, Any]:
    """Return the content of the derivatives' ``dataset_description.json``.

    Name, DOI and licence of the source are taken over from its own description; the container is
    named by ``ANATNET_DOCKER_TAG`` or ``ANATNET_SINGULARITY_URL``, which our images set.
    """
    raw = read_description(config.bids_dir)
    generated: dict[str, Any] = {'Name': PIPELINE, 'Version': __version__}
    if tag := os.environ.get('ANATNET_DOCKER_TAG'):
        generated['Container'] = {'Type': 'docker', 'Tag': tag}
    elif uri := os.environ.get('ANATNET_SINGULARITY_URL'):
        # Our definition names the file of the image, where nobody has named its place of origin.
        uri = Path(uri).as_uri() if os.path.isabs(uri) else uri
        generated['Container'] = {'Type': 'singularity', 'URI': uri}
    description: dict[str, Any] = {
        'Name': f'{PIPELINE}: segmentation of structural MRI',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [generated],
        'HowToAcknowledge': 'Cite the works listed in logs/CITATION.md',
        'DatasetLinks': {
            'raw': Path(os.path.abspath(config.bids_dir)).as_uri(),
            **{name: Path(os.path.abspath(f)).as_uri() for name, f in config.derivatives.items()},
        },
    }
    if doi := raw.get('DatasetDOI'):
        description['SourceDatasets'] = [{'DOI': doi}]
    if licence := raw.get('License'):
        description['License'] = licence
    return description


def read_description(folder: Path) -> dict[str, Any]:
    """Read a ``dataset_description.json``; empty where there is none or it is not JSON."""
    try:
        content = read_json(Path(folder) / 'dataset_description.json')
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_output_dir(output_dir: Path) -> None:
    """Check that the output folder can be made and written and is not another data set.

    Raises
    ------
    UsageError
        If it holds a raw data set or the derivatives of another pipeline.
    AnatNetError
        If it cannot be written.
    """
    description = read_description(output_dir)
    makers = {maker.get('Name', '?'): maker.get('Version')
              for maker in description.get('GeneratedBy') or ()
              if isinstance(maker, dict)}  # fmt: skip
    if description and PIPELINE not in makers:
        whose = f'the derivatives of {next(iter(makers))}' if makers else 'another data set'
        raise UsageError(
            f'{output_dir} holds {whose} (see its dataset_description.json); '
            'choose a folder of its own for the output'
        )
    made_by = makers.get(PIPELINE)
    if made_by is not None and made_by != __version__:
        LOGGER.warning(
            '%s was made by %s %s, this is %s: results of two versions will stand side by side',
            output_dir, PIPELINE, made_by, __version__,
        )  # fmt: skip
    probe = Path(output_dir) / '.anatnet-can-write'
    try:
        atomic_write_bytes(probe, b'')
        probe.unlink(missing_ok=True)  # another run may probe at the same time
    except OSError as error:
        raise AnatNetError(
            f'cannot write to the output folder {output_dir}: {error.strerror}; '
            'check its permissions (and the mount, in a container)'
        ) from None


def write_dataset_files(
    config: RunConfig, methods: str | None = None, bibliography: str | None = None
) -> None:
    """Write the top-level files of the derivatives, those that are missing or different.

    Parameters
    ----------
    config : RunConfig
        Names input and output.
    methods, bibliography : str, optional
        Texts of ``logs/CITATION.md`` and ``logs/CITATION.bib``; left as they are where ``None``.

    Raises
    ------
    AnatNetError
        If the description cannot be written. Everything else is a warning: a protected
        ``.bidsignore`` must not end a run.
    """
    root = Path(config.output_dir)
    description = dataset_description(config)
    try:
        with file_lock(root / 'logs' / '.lock'):
            # Sidecars of earlier runs, and of those beside us, refer to their data sets by name.
            before = read_description(root).get('DatasetLinks')
            if isinstance(before, dict):
                description['DatasetLinks'] = {**before, **description['DatasetLinks']}
            text = json.dumps(description, indent=2, ensure_ascii=False) + '\n'
            write_if_different(root / 'dataset_description.json', text)
    except OSError as error:
        raise AnatNetError(f'cannot write {error.filename}: {error.strerror}') from None
    name = read_description(config.bids_dir).get('Name') or Path(config.bids_dir).name
    files = {
        '.bidsignore': BIDSIGNORE,
        'README.md': README.format(version=__version__, name=name),
        **_label_tables(),
        'logs/CITATION.md': methods,
        'logs/CITATION.bib': bibliography,
    }
    for file, text in files.items():
        if text is None:
            continue
        try:
            write_if_different(root / file, text)
        except OSError as error:
            LOGGER.warning('Cannot write %s (%s); going on', root / file, error.strerror)


def _label_tables() -> dict[str, str]:
    """Write the label tables of the two segmentations: index, name, color."""
    from bids_app.data import structures, tissues

    return {
        file: 'index\tname\tcolor\n'
        + ''.join(f'{label.index}\t{label.name}\t{label.color}\n' for label in labels)
        for file, labels in (
            ('dseg.tsv', tissues()),
            ('desc-wholebrain_dseg.tsv', structures()),
        )
    }
