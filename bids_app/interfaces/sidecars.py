# SPDX-License-Identifier: Apache-2.0
"""What the JSON file beside every derivative says: where it came from, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_app.bids.outputs import Outputs, file_id, parse_file_id, table
from bids_app.bids.spaces import STANDARD, resolution_mm
from bids_app.resume import relative

FROM_SCAN = ('preproc', 'brain_mask')
"""Derivatives whose source is the scan; the others are made from the corrected scan."""

FROM_NETWORK = {
    'brain_mask': ('segment', 'mask'),
    'dseg': ('tissue', 'segment'),
    'probseg_gm': ('tissue', 'segment'),
    'probseg_wm': ('tissue', 'segment'),
    'probseg_csf': ('tissue', 'segment'),
    'wholebrain_dseg': ('structures', 'segment'),
    'uncertainty': ('segment',),
    'tissue_morph': ('tissue', 'segment'),
    'wholebrain_morph': ('structures', 'segment'),
}
"""For every derivative that a network made, the step whose model, device and precision it names:
the first of these that there is."""


DEEPNAT_ROLES = ('foreground', 'structures')
"""Roles of the two networks of DeepNAT among the models of a run."""

LESIONS = ('lesion_probseg', 'lesion_mask', 'lesion_morph')
"""What a tissue model that finds lesions makes besides."""

TISSUES = ('probseg_gm', 'probseg_wm', 'probseg_csf')

NATIVE_SOURCES = {
    'xfm_forward': TISSUES,
    'xfm_backward': TISSUES,
    'std_preproc': ('preproc',),
    'std_mask': ('brain_mask',),
    'std_dseg': TISSUES,
    'std_probseg_gm': ('probseg_gm',),
    'std_probseg_wm': ('probseg_wm',),
    'std_probseg_csf': ('probseg_csf',),
    'vbm_gm': ('probseg_gm',),
    'vbm_wm': ('probseg_wm',),
    'jacobian': (),
    'regions_morph': TISSUES,
}
"""The native derivatives that those in template space are made from."""

MODULATION = 'Multiplied by the determinant of the full Jacobian, affine and nonlinear part'


@dataclass(frozen=True)
class Session:
    """What is known of a session when its derivatives are described.

    Attributes
    ----------
    outputs : Outputs
        Names of its derivatives.
    in_file, bids_dir : Path
        The scan, and the raw data set that it belongs to.
    published : tuple of str
        Keys and file ids of what is written.
    steps : mapping
        Findings of every step.
    models : mapping
        For every model, by its role (``segmentation``, ``registration`` or that of a
        classifier, :func:`classifier_role`): ``name``, ``version`` and ``sha256``.
    templates : mapping of str to str
        T1w image of every template, by the name of the space.
    contrasts : mapping of str to str
        Further scans, by their contrast.
    """

    outputs: Outputs
    in_file: Path
    bids_dir: Path
    published: tuple[str, ...]
    steps: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    contrasts: Mapping[str, str] = field(default_factory=dict)

    def uri(self, identifier: str) -> str:
        """Return the BIDS URI of a derivative."""
        path = self.outputs.path(identifier)
        return 'bids::' + relative(path, self.outputs.output_dir)

    def raw_uri(self, path: Path) -> str:
        """Return the BIDS URI of a file of the raw data set."""
        return 'bids:raw:' + relative(path, self.bids_dir)


def describe(identifier: str, session: Session) -> dict[str, Any]:
    """Return the sidecar of a derivative.

    Parameters
    ----------
    identifier : str
        Key of the table of derivatives, or a file id.
    session : Session
        Where it belongs.
    """
    key, labels = parse_file_id(identifier)
    if key == 'predictions':
        extra = _prediction(labels['model'], session)
    elif key.startswith('dwi_'):
        from bids_app.interfaces.dwi_sidecars import of_diffusion

        extra = of_diffusion(key, session)
    elif 'contrast' in labels:
        extra = _of_contrast(key, labels['contrast'], session)
    else:
        extra = _in_template_space(key, labels, session) if labels else _native(key, session)
    columns: dict[str, Any] = {}
    for step in ('tissue', 'measure', 'predict', 'regions', 'dwi_regions'):
        columns.update(session.steps.get(step, {}).get('columns', {}))
    return session.outputs.sidecar(identifier, **{**columns.get(identifier, {}), **extra})


def _native(key: str, session: Session) -> dict[str, Any]:
    """Describe a derivative on the grid of the scan."""
    if key in FROM_SCAN or 'preproc' not in session.published:
        source = session.raw_uri(session.in_file)
    else:
        source = session.uri('preproc')
    extra: dict[str, Any] = {'Sources': [source]}
    if key == 'preproc' and session.outputs.synthesized:
        from bids_app.interfaces.dwi_sidecars import of_synthesis

        extra.update(of_synthesis(session))
    elif key == 'preproc' and _stripped(session):
        extra['Description'] = (
            'Bias-corrected {reference} image on the grid of the scan, which came skull-stripped'
        )
    if key == 'preproc':
        extra.setdefault('SkullStripped', _stripped(session))
    for step in ('tissue',) if key in LESIONS else FROM_NETWORK.get(key, ()):
        if step in session.steps:
            found = session.steps[step]
            if step == 'tissue':
                extra.update(_tissue_model(found, source, session))
            elif step == 'structures':
                return {**extra, **_deepnat(key, found, source, session)}
            else:
                extra.update(network_fields(session.models.get('segmentation', {}), found))
            break
    if 'precomputed' in session.steps:
        extra.update(_replaced(key, source, session.steps['precomputed']['sources']))
    return extra


def _tissue_model(found: Mapping[str, Any], source: str, session: Session) -> dict[str, Any]:
    """Say which tissue model was used and on which images."""
    used = found['tissue_model']
    others = [name for name in used['contrasts'] if name != session.outputs.reference]
    return {
        'Sources': [
            source,
            *(session.uri(file_id('contrast_preproc', contrast=name)) for name in others),
        ],
        'Contrasts': list(used['contrasts']),
        'LesionsCorrected': used['corrected'] if used['lesions'] else None,
        **network_fields(session.models.get(tissue_role(used['name']), {}), found),
    }


def _deepnat(key: str, found: Mapping[str, Any], source: str, session: Session) -> dict[str, Any]:
    """Say that DeepNAT made the structures: both models, and what it does not tell apart."""
    first, second = (session.models.get(role, {}) for role in DEEPNAT_ROLES)
    description = str(table()[key]['sidecar']['Description'])
    absent = ', '.join(found['absent'])
    description += f'; the 25 structures of DeepNAT, which does not know {absent}'
    return {
        'Sources': [source, session.uri('brain_mask')],
        'Description': description,
        'Segmentation': 'DeepNAT',
        'ForegroundModel': network_fields(first, found)['Model'],
        **network_fields(second, found),
        'ConditionalRandomField': bool(found['crf']),
        'License': '; '.join(found['licences']),
    }


def _of_contrast(key: str, name: str, session: Session) -> dict[str, Any]:
    """Describe what the coregistration of a further contrast has made."""
    found = session.steps['coregister']['contrasts'][name]
    raw = session.raw_uri(Path(session.contrasts[name]))
    reference = session.uri('preproc')
    if key == 'xfm_from_reference':
        return {'Sources': [reference, raw]}
    extra: dict[str, Any] = {'Sources': [raw, reference]}
    if key == 'contrast_preproc':
        extra['Sources'] = [raw, session.uri(file_id('xfm_to_reference', contrast=name))]
        extra['SkullStripped'] = bool(found['skull_stripped'])
        if found['skull_stripped']:
            text = str(table()[key]['sidecar']['Description'])
            extra['Description'] = text.replace('not skull-stripped', 'which came skull-stripped')
    return extra


def _replaced(key: str, source: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Describe what another pipeline has made, or has changed in ours; given are BIDS URIs."""
    if key not in FROM_NETWORK:
        return {}
    tissues = [given[name] for name in TISSUES if name in given]
    mask = given.get('brain_mask')
    not_ours = dict.fromkeys(
        ('Model', 'Device', 'Precision', 'Fallback', 'Manual', 'Contrasts', 'LesionsCorrected')
    )
    description = str(table()[key]['sidecar']['Description'])
    if key in given:
        sources = [given[key], *([mask] if mask and key != 'brain_mask' else [])]
        return {
            **not_ours,
            'Sources': sources,
            'Description': f'{description}; not made by AnatNet but given as {_names(sources)}',
        }
    if tissues and key in ('dseg', 'tissue_morph', 'brain_mask'):
        sources = [*tissues, *([mask] if mask else [])]
        text = f'{description}; from tissue maps given as {_names(sources)}'
        return {**not_ours, 'Sources': sources, 'Description': text}
    if mask:
        text = f'{description}; limited to the brain mask given as {_names([mask])}'
        return {'Sources': [source, mask], 'Description': text}
    return {}


def _names(uris: list[str]) -> str:
    """Name the data sets of BIDS URIs."""
    return ' and '.join(dict.fromkeys(f'"{uri.split(":")[1]}"' for uri in uris))


def _in_template_space(key: str, labels: Mapping[str, str], session: Session) -> dict[str, Any]:
    """Describe a derivative that a registration has made."""
    space = labels.get('space') or _space_of_atlas(labels['atlas'], session)
    found = session.steps.get('normalise', {}).get('spaces', {}).get(space, {})
    extra: dict[str, Any] = {'Registration': _registration(space, found, session)}
    sources = [session.uri(name) for name in NATIVE_SOURCES.get(key, ())]
    if key == 'regions_morph':
        sources.append(session.uri(file_id('xfm_backward', space=space)))
        extra['Atlas'] = _atlas(labels['atlas'], session)
    elif key.endswith('_smooth'):
        plain = file_id(key.removesuffix('_smooth'), space=space, res=labels['res'])
        sources.append(session.uri(plain))
        extra['SmoothingFWHM'] = float(labels['fwhm'].replace('p', '.'))
        extra['SmoothingFWHMUnits'] = 'mm'
    elif not key.startswith('xfm_'):
        sources.append(session.uri(file_id('xfm_forward', space=space)))
    extra['Sources'] = sources
    if key.startswith('vbm_'):
        extra['Modulation'] = MODULATION
    if key == 'std_preproc':
        extra['SkullStripped'] = _stripped(session)
    if 'res' in labels:
        size = resolution_mm(labels['res'])
        extra['Resolution'] = f'Isotropic voxels of {size:g} mm'
        extra['VoxelSize'] = [size] * 3
        extra['VoxelSizeUnits'] = 'mm'
    if space.partition('+')[0] not in STANDARD and space in session.templates:
        extra['SpatialReference'] = Path(session.templates[space]).absolute().as_uri()
    return extra


def tissue_role(name: str) -> str:
    """Return the role of a tissue model among the models of a run."""
    return f'tissue {name}'


def classifier_role(name: str) -> str:
    """Return the role of a classifier among the models of a run."""
    return f'classifier {name}'


def _prediction(name: str, session: Session) -> dict[str, Any]:
    """Describe what a classifier says: it runs on the CPU in float32."""
    from bids_app.inference.classifier import CAVEAT

    found = next(
        one for one in session.steps['predict']['predictions'] if one['model'] == name
    )  # fmt: skip
    model = session.models.get(classifier_role(name), {})
    return {
        'Sources': [session.uri(found['map'])],
        'Target': found['target'],
        'Caveat': CAVEAT,
        **network_fields(model, {'device': 'cpu', 'precision': 'float32'}),
    }


def _registration(space: str, found: Mapping[str, Any], session: Session) -> dict[str, Any]:
    """Say how a scan was registered."""
    method = found.get('method')
    fields: dict[str, Any] = {'Template': space, 'Method': method}
    if method == 'ants':
        fields['Software'] = 'ANTs (SyN)'
    else:
        fields.update(network_fields(session.models.get('registration', {}), found))
    return {name: value for name, value in fields.items() if value is not None}


def network_fields(model: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Say which network was used, where and how."""
    return {
        'Model': {
            'Name': model.get('name'),
            'Version': model.get('version'),
            'SHA256': model.get('sha256'),
        },
        'Device': found.get('device'),
        'Precision': found.get('precision'),
        'Fallback': found.get('fallback'),
    }


def _atlas(name: str, session: Session) -> dict[str, str]:
    for atlas in session.steps.get('regions', {}).get('atlases', ()):
        if atlas['atlas'] == name:
            return {'Name': name, 'File': Path(atlas['source']).name, 'Space': atlas['space']}
    return {'Name': name}


def _space_of_atlas(name: str, session: Session) -> str:
    return _atlas(name, session).get('Space', '')


def _stripped(session: Session) -> bool:
    return bool(session.steps.get('bias', {}).get('skull_stripped', False))
