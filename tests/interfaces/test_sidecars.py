# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.bids.outputs import Outputs, file_id, parameters, table
from bids_app.interfaces.sidecars import NATIVE_SOURCES, Session, describe

GIVEN = {
    'space': 'MNIPediatricAsym+3', 'res': 1.5, 'fwhm': 7.5, 'atlas': 'aal', 'model': 'sexpif',
    'contrast': 'FLAIR',
}  # fmt: skip
URIS = {
    'brain_mask': 'bids:prep:mask.nii.gz',
    **{f'probseg_{name}': f'bids:prep:{name}.nii.gz' for name in ('gm', 'wm', 'csf')},
}


@pytest.fixture
def session(tmp_path):
    """Return a function that makes what is known of a session."""

    def make(given=(), reference='T1w', tissue=None, **found):
        steps = {
            'segment': {'device': 'cpu', 'precision': 'bfloat16', 'fallback': None},
            'normalise': {'spaces': {GIVEN['space']: {'method': 'refined', 'device': 'cuda:0',
                                                      **found}}},
            'regions': {'atlases': [{'atlas': 'aal', 'space': GIVEN['space'],
                                     'source': '/atlas/aal.nii.gz'}]},
            'predict': {
                'predictions': [{'model': 'sexpif', 'target': 'sex',
                                 'map': identifier('vbm_gm_smooth')}],
                'columns': {identifier('predictions'): {'probability_F': {'Description': 'F'}}},
            },
            'coregister': {'contrasts': {'FLAIR': {'status': 'ok', 'skull_stripped': True}}},
        }  # fmt: skip
        if given:
            steps['precomputed'] = {'sources': {key: URIS[key] for key in given}}
        if tissue is not None:
            steps['tissue'] = {
                'device': 'cuda:1', 'precision': 'float32', 'fallback': None,
                'tissue_model': tissue,
                'columns': {'lesion_morph': {'name': {'Description': 'x'}}},
            }  # fmt: skip
        return Session(
            Outputs(tmp_path / 'out', '01', reference=reference),
            tmp_path / 'raw' / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz',
            tmp_path / 'raw',
            ('preproc', *table()),
            steps,
            {
                'segmentation': {'name': 'brain', 'version': '1', 'sha256': 'abc'},
                'registration': {'name': 'symnet', 'version': '2', 'sha256': 'def'},
                'classifier sexpif': {'name': 'sexpif', 'version': '3', 'sha256': 'ghi'},
                'tissue three': {'name': 'three', 'version': '4', 'sha256': 'jkl'},
            },
            {GIVEN['space']: str(tmp_path / 't1w.nii.gz')},
            {'FLAIR': str(tmp_path / 'raw' / 'sub-01' / 'anat' / 'sub-01_FLAIR.nii.gz')},
        )

    return make


def identifier(key):
    return file_id(key, **{name: GIVEN[name] for name in parameters(key)})


def test_every_derivative_in_template_space_says_how_it_came_there(session):
    others = ((), ('model',), ('contrast',))
    keys = [key for key in table() if parameters(key) not in others]
    assert {key.removesuffix('_smooth') for key in keys} == set(NATIVE_SOURCES)
    for key in keys:
        fields = describe(identifier(key), session())
        assert fields['Registration']['Method'] == 'refined'
        assert fields['Registration']['Model']['Name'] == 'symnet'
        assert fields['Registration']['Device'] == 'cuda:0'
        assert fields['Sources']
        assert all(source.startswith('bids::sub-01/anat/') for source in fields['Sources'])
        assert fields['SpatialReference'].startswith('file:///')
        assert ('Resolution' in fields) == ('res' in parameters(key))
        assert ('Modulation' in fields) == key.startswith('vbm_')


def test_smoothed_map_names_its_width_and_source(session):
    fields = describe(identifier('vbm_wm_smooth'), session())
    assert (fields['SmoothingFWHM'], fields['SmoothingFWHMUnits']) == (7.5, 'mm')
    assert fields['Sources'] == [
        'bids::sub-01/anat/sub-01_space-MNIPediatricAsym+3_res-1p5_label-WM_desc-modulated_'
        'probseg.nii.gz'
    ]
    assert fields['VoxelSize'] == [1.5] * 3


def test_prediction_names_its_model_and_what_it_is_not_for(session):
    fields = describe(identifier('predictions'), session())
    assert fields['Model'] == {'Name': 'sexpif', 'Version': '3', 'SHA256': 'ghi'}
    assert fields['Caveat'] == 'not for clinical use'
    assert fields['Target'] == 'sex'
    assert fields['Sources'] == [session().uri(identifier('vbm_gm_smooth'))]
    assert fields['probability_F'] == {'Description': 'F'}
    assert 'Registration' not in fields
    assert set(fields) >= {'prediction', 'probability', 'version', 'caveat'}


def test_ants_is_no_model(session):
    fields = describe(identifier('std_preproc'), session(method='ants'))
    assert 'Model' not in fields['Registration']
    assert fields['Registration']['Software'] == 'ANTs (SyN)'


def test_table_of_an_atlas_names_it(session):
    fields = describe(identifier('regions_morph'), session())
    assert fields['Atlas'] == {'Name': 'aal', 'File': 'aal.nii.gz', 'Space': GIVEN['space']}
    assert fields['Sources'][-1].endswith('_from-MNIPediatricAsym+3_to-T1w_mode-image_xfm.h5')


def test_ours_is_as_before_without_other_pipelines(session):
    fields = describe('dseg', session())
    assert fields['Model']['Name'] == 'brain'
    assert fields['Sources'] == ['bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz']


def test_tissue_model_is_named_with_the_contrasts_it_used(session):
    used = {'name': 'three', 'contrasts': ['T1w', 'FLAIR'], 'lesions': True, 'corrected': True}
    known = session(tissue=used)
    for key in ('dseg', 'probseg_wm', 'tissue_morph', 'lesion_probseg', 'lesion_morph'):
        fields = describe(key, known)
        assert fields['Model'] == {'Name': 'three', 'Version': '4', 'SHA256': 'jkl'}
        assert fields['Device'] == 'cuda:1'
        assert fields['Contrasts'] == ['T1w', 'FLAIR']
        assert fields['LesionsCorrected'] is True
        assert fields['Sources'] == [
            'bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz',
            'bids::sub-01/anat/sub-01_desc-preproc_FLAIR.nii.gz',
        ]
    assert describe('lesion_mask', known)['Type'] == 'Lesion'
    assert describe('lesion_morph', known)['name'] == {'Description': 'x'}
    assert describe('brain_mask', known)['Model']['Name'] == 'brain'
    both = session(['probseg_gm', 'probseg_wm', 'probseg_csf'], tissue=used)
    assert 'Contrasts' not in describe('dseg', both)
    assert describe('lesion_mask', both)['Model']['Name'] == 'three'


def test_contrast_on_the_grid_of_the_reference_names_scan_and_transform(session):
    known = session()
    raw = 'bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz'
    image = describe('contrast_preproc contrast-FLAIR', known)
    assert image['SkullStripped'] is True
    assert 'which came skull-stripped' in image['Description']
    assert image['Sources'] == [
        raw, 'bids::sub-01/anat/sub-01_from-FLAIR_to-T1w_mode-image_xfm.txt',
    ]  # fmt: skip
    forward = describe('xfm_to_reference contrast-FLAIR', known)
    assert forward['Sources'] == [raw, 'bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz']
    assert 'resamples the FLAIR scan onto the T1w scan' in forward['Description']
    assert 'Reference' not in forward


def test_every_sidecar_says_that_the_reference_is_no_t1w(session):
    known = session(reference='T2w')
    for key in table():
        assert describe(identifier(key), known)['Reference'] == 'T2w'
    assert describe('preproc', known)['Description'].startswith('Bias-corrected T2w image')
    sources = describe(identifier('jacobian'), known)['Sources']
    assert sources[-1].endswith('_from-T2w_to-MNIPediatricAsym+3_mode-image_xfm.h5')


def test_given_mask_is_named_where_it_is_and_where_it_limits_ours(session):
    known = session(['brain_mask'])
    mask = describe('brain_mask', known)
    assert mask['Sources'] == [URIS['brain_mask']]
    assert 'not made by AnatNet but given as "prep"' in mask['Description']
    assert 'Model' not in mask
    assert mask['Type'] == 'Brain'
    for key in ('dseg', 'probseg_gm', 'wholebrain_dseg', 'uncertainty', 'tissue_morph'):
        fields = describe(key, known)
        assert fields['Sources'][1:] == [URIS['brain_mask']]
        assert fields['Model']['Name'] == 'brain'
        assert 'limited to the brain mask given as "prep"' in fields['Description']
    assert (
        describe('qc_stats', known)['Description'] == table()['qc_stats']['sidecar']['Description']
    )


def test_given_tissues_are_named_in_what_is_made_of_them(session):
    tissues = ['probseg_gm', 'probseg_wm', 'probseg_csf']
    known = session(tissues)
    assert describe('probseg_wm', known)['Sources'] == [URIS['probseg_wm']]
    for key in ('dseg', 'brain_mask', 'tissue_morph'):
        fields = describe(key, known)
        assert fields['Sources'] == [URIS[name] for name in tissues]
        assert 'Model' not in fields
        assert 'Manual' not in fields
    assert 'Model' in describe('wholebrain_dseg', known)
    both = session(['brain_mask', *tissues])
    assert describe('dseg', both)['Sources'] == [
        *(URIS[name] for name in tissues), URIS['brain_mask'],
    ]  # fmt: skip
    assert describe('brain_mask', both)['Sources'] == [URIS['brain_mask']]
