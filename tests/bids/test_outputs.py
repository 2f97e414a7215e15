# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.dataset import write_dataset_files
from bids_app.bids.files import atomic_save_nifti, atomic_write_text, write_sidecar
from bids_app.bids.outputs import (
    ENTITY_ORDER,
    SYNTHESIZED,
    SYNTHESIZED_AS_PREPROC,
    Outputs,
    file_id,
    number_label,
    parameters,
    parse_file_id,
    table,
)
from bids_app.config import RunConfig

NAMES = {
    'preproc': '_desc-preproc_T1w.nii.gz',
    'brain_mask': '_desc-brain_mask.nii.gz',
    'dseg': '_dseg.nii.gz',
    'probseg_gm': '_label-GM_probseg.nii.gz',
    'probseg_wm': '_label-WM_probseg.nii.gz',
    'probseg_csf': '_label-CSF_probseg.nii.gz',
    'wholebrain_dseg': '_desc-wholebrain_dseg.nii.gz',
    'uncertainty': '_desc-entropy_uncertainty.nii.gz',
    'tissue_morph': '_desc-tissue_morph.tsv',
    'wholebrain_morph': '_desc-wholebrain_morph.tsv',
    'qc_stats': '_desc-qc_stats.tsv',
    'lesion_probseg': '_label-WMH_probseg.nii.gz',
    'lesion_mask': '_desc-wmh_mask.nii.gz',
    'lesion_morph': '_desc-wmh_morph.tsv',
}


def test_names_are_those_of_the_conventions():
    outputs = Outputs(Path('out'), '01', 'a')
    assert set(NAMES) <= set(table())
    for key, ending in NAMES.items():
        assert outputs.path(key) == Path(f'out/sub-01/ses-a/anat/sub-01_ses-a{ending}')
    assert Outputs(Path('out'), '01').path('dseg') == Path('out/sub-01/anat/sub-01_dseg.nii.gz')


TEMPLATE_NAMES = {
    'xfm_forward': '_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5',
    'xfm_backward': '_from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5',
    'std_preproc': '_space-MNI152NLin2009aSym_res-1p5_desc-preproc_T1w.nii.gz',
    'std_mask': '_space-MNI152NLin2009aSym_res-1p5_desc-brain_mask.nii.gz',
    'std_dseg': '_space-MNI152NLin2009aSym_res-1p5_dseg.nii.gz',
    'std_probseg_gm': '_space-MNI152NLin2009aSym_res-1p5_label-GM_probseg.nii.gz',
    'std_probseg_wm': '_space-MNI152NLin2009aSym_res-1p5_label-WM_probseg.nii.gz',
    'std_probseg_csf': '_space-MNI152NLin2009aSym_res-1p5_label-CSF_probseg.nii.gz',
    'vbm_gm': '_space-MNI152NLin2009aSym_res-1p5_label-GM_desc-modulated_probseg.nii.gz',
    'vbm_wm': '_space-MNI152NLin2009aSym_res-1p5_label-WM_desc-modulated_probseg.nii.gz',
    'vbm_gm_smooth':
        '_space-MNI152NLin2009aSym_res-1p5_label-GM_desc-modulatedsmooth8mm_probseg.nii.gz',
    'vbm_wm_smooth':
        '_space-MNI152NLin2009aSym_res-1p5_label-WM_desc-modulatedsmooth8mm_probseg.nii.gz',
    'jacobian': '_space-MNI152NLin2009aSym_res-1p5_desc-jacobian_morph.nii.gz',
    'regions_morph': '_atlas-aal_desc-regions_morph.tsv',
    'predictions': '_desc-sexpif_predictions.tsv',
    'contrast_preproc': '_desc-preproc_FLAIR.nii.gz',
    'xfm_to_reference': '_from-FLAIR_to-T1w_mode-image_xfm.txt',
    'xfm_from_reference': '_from-T1w_to-FLAIR_mode-image_xfm.txt',
}  # fmt: skip
GIVEN = {
    'space': 'MNI152NLin2009aSym', 'res': 1.5, 'fwhm': 8, 'atlas': 'aal', 'model': 'sexpif',
    'contrast': 'FLAIR',
}  # fmt: skip


def given(key, **changes):
    return {name: {**GIVEN, **changes}[name] for name in parameters(key)}


def test_names_in_template_space_are_those_of_the_conventions():
    outputs = Outputs(Path('out'), '01')
    assert set(TEMPLATE_NAMES) == {key for key in table() if parameters(key)}
    for key, ending in TEMPLATE_NAMES.items():
        assert outputs.path(key, **given(key)).name == f'sub-01{ending}'
        assert outputs.path(file_id(key, **given(key))) == outputs.path(key, **given(key))
        sidecar = outputs.sidecar_path(key, **given(key)).name
        assert sidecar == f'sub-01{ending.split(".")[0]}.json'


def test_names_follow_a_reference_that_is_no_t1w():
    outputs = Outputs(Path('out'), '01', reference='T2w')
    assert outputs.path('preproc').name == 'sub-01_desc-preproc_T2w.nii.gz'
    assert outputs.path('dseg').name == 'sub-01_dseg.nii.gz'
    assert outputs.path('std_preproc', space='MNI305', res=1).name == (
        'sub-01_space-MNI305_res-1_desc-preproc_T2w.nii.gz'
    )
    names = [outputs.path('xfm_forward', space='MNI305').name,
             outputs.path('xfm_backward', space='MNI305').name,
             outputs.path('xfm_to_reference', contrast='FLAIR').name]  # fmt: skip
    assert names == [
        'sub-01_from-T2w_to-MNI305_mode-image_xfm.h5',
        'sub-01_from-MNI305_to-T2w_mode-image_xfm.h5',
        'sub-01_from-FLAIR_to-T2w_mode-image_xfm.txt',
    ]
    fields = outputs.sidecar('xfm_to_reference contrast-FLAIR')
    assert fields['Reference'] == 'T2w'
    assert 'resamples the FLAIR scan onto the T2w scan' in fields['Description']
    assert 'Reference' not in Outputs(Path('out'), '01').sidecar('preproc')


def test_file_id_there_and_back():
    for key in table():
        found, labels = parse_file_id(file_id(key, **given(key)))
        assert found == key
        assert labels == {
            name: value if isinstance(value, str) else number_label(value)
            for name, value in given(key).items()
        }


def test_what_a_name_needs_must_be_given():
    with pytest.raises(KeyError, match='res'):
        Outputs(Path('out'), '01').path('std_preproc', space='MNI305')
    with pytest.raises(KeyError, match='space'):
        Outputs(Path('out'), '01').path('std_preproc')


def test_only_the_tissue_segmentation_has_no_desc():
    """smriprep takes any native dseg or probseg without further entities for its own."""
    for key, entry in table().items():
        if entry['suffix'] in ('dseg', 'probseg') and 'space' not in entry['entities']:
            assert ('desc' in entry['entities']) != (key == 'dseg' or 'probseg_' in f'{key}_')


@pytest.mark.parametrize('key', sorted(table()))
def test_entries_are_well_formed(key):
    entry = table()[key]
    assert set(entry) == {'folder', 'entities', 'suffix', 'extension', 'sidecar'}
    assert set(entry['entities']) <= set(ENTITY_ORDER)
    values = [
        re.sub(r'\{(space|res|fwhm|atlas|model|reference|preproc|contrast)\}', 'x', v)
        for v in (*entry['entities'].values(), entry['suffix'])
    ]
    assert all(re.fullmatch('[0-9a-zA-Z+]+', value) for value in values)
    assert entry['sidecar']['Description']


def test_paths_of_report_figures_logs_and_state():
    outputs = Outputs(Path('out'), '01', 'a')
    assert outputs.path('report') == Path('out/sub-01_ses-a.html')
    assert outputs.figure('dseg') == Path('out/sub-01/figures/sub-01_ses-a_dseg.svg')
    assert outputs.log_dir('x') == Path('out/sub-01/log/x')
    assert outputs.state_file.parent == Path('out/sub-01/log')
    assert Outputs(Path('out'), '01', 'b').state_file != outputs.state_file
    assert outputs.sidecar_path('dseg').name == 'sub-01_ses-a_dseg.json'


def test_sidecar_adds_and_leaves_out():
    outputs = Outputs(Path('out'), '01')
    fields = outputs.sidecar('brain_mask', Sources=['bids:raw:x'], Fallback=None)
    assert fields['Type'] == 'Brain'
    assert fields['Sources'] == ['bids:raw:x']
    assert 'Fallback' not in fields


def test_validator_finds_no_error_in_a_tree_of_all_outputs(make_bids, tmp_path):
    beside = Path(sys.executable).with_name('bids-validator-deno')
    validator = str(beside) if beside.exists() else shutil.which('bids-validator-deno')
    if validator is None:
        pytest.skip('bids-validator-deno is not installed')
    raw = make_bids(['sub-01/anat/sub-01_T1w.nii.gz'])
    out = tmp_path / 'out'
    config = RunConfig(raw, out)
    write_dataset_files(config, methods='text', bibliography='text')
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    image.header.set_xyzt_units('mm', 'sec')
    source = 'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    identifiers = [
        file_id(key, **given(key, **changes))
        for key in table()
        for changes in ({}, {'space': 'MNIPediatricAsym+3', 'res': 2, 'fwhm': 7.5, 'atlas': 'b'})
    ]
    for outputs in (Outputs(out, '01'), Outputs(out, '02', 'a')):
        for identifier in dict.fromkeys(identifiers):
            path, fields = outputs.path(identifier), {'Sources': [source]}
            if path.suffix == '.gz':
                atomic_save_nifti(image, path)
            else:
                atomic_write_text(path, 'index\tname\n1\tx\n')
            if '_res-' in path.name:
                fields['Resolution'] = 'of its own'
            if '_space-dwi_' in path.name:
                fields['SpatialReference'] = 'bids::sub-01/dwi/sub-01_desc-b0_dwiref.nii.gz'
            if 'MNIPediatric' in path.name:
                fields['SpatialReference'] = 'file:///templates/T1w.nii.gz'
            write_sidecar(outputs.sidecar_path(identifier), outputs.sidecar(identifier, **fields))
        for file in (
            outputs.path('report'),
            outputs.figure('desc-brain_mask'),
            outputs.figure('dseg', '.png'),
            outputs.state_file,
            outputs.log_dir('run') / 'crash.txt',
            config.log_dir / 'anatnet.log',
        ):
            atomic_write_text(file, 'text')  # fmt: skip
    finished = subprocess.run(
        [validator, '--format', 'json', '--datasetTypes', 'derivative', str(out)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    issues = json.loads(finished.stdout)['issues']['issues']
    assert [issue for issue in issues if issue['severity'] == 'error'] == []
    assert finished.returncode == 0


def test_names_of_a_synthesised_reference():
    """Only with the option are its files where fMRIPrep looks for those of a measured T1w."""
    made = Outputs(Path('out'), '01', reference=SYNTHESIZED)
    assert made.path('preproc').name == 'sub-01_desc-synthesized_T1w.nii.gz'
    assert made.path('dseg').name == 'sub-01_dseg.nii.gz'
    assert made.path('std_preproc', space='MNI305', res=2).name == (
        'sub-01_space-MNI305_res-2_desc-synthesized_T1w.nii.gz'
    )
    assert made.path('xfm_forward', space='MNI305').name == (
        'sub-01_from-T1w_to-MNI305_mode-image_xfm.h5'
    )
    asked = Outputs(Path('out'), '01', reference=SYNTHESIZED_AS_PREPROC)
    assert asked.path('preproc').name == 'sub-01_desc-preproc_T1w.nii.gz'
    for outputs in (made, asked):
        # What a run removes because it did not write it must not be what it wrote.
        paths = [outputs.path(key) for key in table() if not parameters(key)]
        assert len(paths) == len(set(paths))
        assert (outputs.contrast, outputs.synthesized) == ('T1w', True)
        assert 'synthesized from diffusion images' in outputs.sidecar('dseg')['Reference']
        assert 'Reference' not in outputs.sidecar('dwi_fa')
    flair = Outputs(Path('out'), '01', reference='FLAIR')
    assert (flair.contrast, flair.synthesized) == ('FLAIR', False)
    assert flair.path('dwi_xfm_to_reference').name == 'sub-01_from-dwi_to-FLAIR_mode-image_xfm.txt'
