# SPDX-License-Identifier: Apache-2.0
"""The real sMRIPrep, fMRIPrep's anatomical part, finds our results and leaves out its own.

It is no dependency of ours: ``pip install smriprep``, or name the interpreter of an environment
that has it by ``ANATNET_SMRIPREP_PYTHON``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_app import App, head, nifti, pack

SPACE = 'MNI152NLin2009aSym'
PYTHON = os.environ.get('ANATNET_SMRIPREP_PYTHON') or sys.executable

COLLECT = """
import json, sys
from smriprep.utils.bids import collect_derivatives
out, space, *pairs = sys.argv[1:]
found = {}
for pair in pairs:
    subject, _, session = pair.partition('/')
    spaces = [space, 'fsnative']
    found[pair] = collect_derivatives(out, subject, spaces, session_id=session or None)
print(json.dumps(found, default=str))
"""

BUILD = """
import json, sys
from niworkflows.utils.spaces import Reference, SpatialReferences
from smriprep.utils.bids import collect_derivatives
from smriprep.workflows.anatomical import init_anat_fit_wf
raw, out, scan, space = sys.argv[1:]
spaces = SpatialReferences([space])
spaces.checkpoint()
workflow = init_anat_fit_wf(
    bids_root=raw, output_dir='unused', freesurfer=False, hires=False, longitudinal=False,
    msm_sulc=False, t1w=[scan], t2w=[], skull_strip_mode='force',
    skull_strip_template=Reference('OASIS30ANTs'), spaces=spaces,
    precomputed=collect_derivatives(out, '01', [space]), omp_nthreads=1,
)
print(json.dumps(workflow.list_node_names()))
"""


def ask(code, *arguments, cwd):
    """Run code where sMRIPrep is; return what its last line says."""
    done = subprocess.run(
        [PYTHON, '-c', code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, 'NO_ET': '1', 'PYTHONPATH': ''},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def app(tmp_path_factory, project_dir):
    """Process a person without sessions and one with two."""
    try:
        there = subprocess.run([PYTHON, '-c', 'import smriprep'], capture_output=True)
    except OSError as error:
        pytest.skip(f'ANATNET_SMRIPREP_PYTHON: {error}')
    if there.returncode:
        pytest.skip('sMRIPrep is not installed (see ANATNET_SMRIPREP_PYTHON)')
    app = App(tmp_path_factory.mktemp('fmriprep'), project_dir)
    app.add('01', pack(nifti(head(1)).to_bytes()))
    for session in ('a', 'b'):
        path = app.raw / f'sub-02/ses-{session}/anat/sub-02_ses-{session}_T1w.nii.gz'
        path.parent.mkdir(parents=True)
        path.write_bytes(pack(nifti(head(2)).to_bytes()))
    code, text = app.run('--output-spaces', f'{SPACE}:res-4', '--smooth-fwhm', '8')
    assert code == 0, text
    return app


@pytest.mark.parametrize('place', ['01', '02/a', '02/b'])
def test_everything_is_found_exactly_once(app, place):
    found = ask(COLLECT, app.out, SPACE, place, cwd=app.folder)[place]
    subject, _, session = place.partition('/')
    prefix = f'sub-{subject}' + f'_ses-{session}' * bool(session)
    # A list in the place of a path would reach a step that wants one file.
    names = {key: Path(found[f't1w_{key}']).name for key in ('preproc', 'mask', 'dseg')}
    assert names == {
        'preproc': f'{prefix}_desc-preproc_T1w.nii.gz',
        'mask': f'{prefix}_desc-brain_mask.nii.gz',
        'dseg': f'{prefix}_dseg.nii.gz',
    }
    assert [Path(path).name for path in found['t1w_tpms']] == [
        f'{prefix}_label-{label}_probseg.nii.gz' for label in ('GM', 'WM', 'CSF')
    ]
    transforms = {way: Path(path).name for way, path in found['transforms'][SPACE].items()}
    assert transforms == {
        'forward': f'{prefix}_from-T1w_to-{SPACE}_mode-image_xfm.h5',
        'reverse': f'{prefix}_from-{SPACE}_to-T1w_mode-image_xfm.h5',
    }
    assert set(found['transforms']) == {SPACE}


def test_two_sessions_without_a_choice_are_ambiguous_as_documented(app):
    found = ask(COLLECT, app.out, SPACE, '02', cwd=app.folder)['02']
    assert len(found['t1w_preproc']) == 2


def test_images_are_what_smriprep_takes_them_for(app):
    found = ask(COLLECT, app.out, SPACE, '01', cwd=app.folder)['01']
    t1w, mask, dseg = (nib.load(found[f't1w_{key}']) for key in ('preproc', 'mask', 'dseg'))
    maps = [nib.load(path) for path in found['t1w_tpms']]
    for image in (mask, dseg, *maps):
        assert image.shape == t1w.shape
        np.testing.assert_allclose(image.affine, t1w.affine, atol=1e-4)
    assert set(np.unique(mask.dataobj)) == {0, 1}
    labels = np.asarray(dseg.dataobj)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    shares = [np.asarray(image.dataobj) for image in maps]
    assert max(share.max() for share in shares) <= 1
    for number, share in enumerate(shares, 1):  # the order of labels, which others count otherwise
        assert share[labels == number].mean() > share[labels != number].mean()


def test_nothing_expensive_is_left_of_its_workflow(app):
    scan = app.raw / 'sub-01/anat/sub-01_T1w.nii.gz'
    nodes = ask(BUILD, app.raw, app.out, scan, SPACE, cwd=app.folder)
    assert 'apply_mask' in nodes
    costly = ('brain_extraction', 'n4', 'fast', 'register', 'registration', 'template_wf.')
    left = [node for node in nodes if not node.startswith('anat_reports_wf.')]
    assert [node for node in left if any(word in node.lower() for word in costly)] == []
    assert len(left) < 20
