# SPDX-License-Identifier: Apache-2.0
"""The whole app in processes of its own, on small heads, with a network that needs no torch.

The stand-in of ``tests/workflows/fake_site`` takes the place of the network, everything else is
real: command line, BIDS, Nipype with its workers, N4, tables, derivatives and report.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_app import VOXEL_MM, App, head, nifti, pack, wait_for, wait_until_gone


def zero_voxel_size():
    image = nifti(head())
    image.header['pixdim'][1:4] = 0
    image.header['sform_code'] = image.header['qform_code'] = 0
    content = bytearray(image.to_bytes())
    content[80:92] = bytes(12)  # nibabel would repair the field while writing
    content[252:256] = bytes(4)
    return bytes(content)


def with_nan():
    data = head(1)
    data[0, 0, :5] = np.nan, np.inf, -np.inf, np.nan, np.nan
    return data


def turned():
    """Return a head with permuted, flipped and oblique axes."""
    image = nifti(head(4))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt('PIL')
    )
    image = image.as_reoriented(turn)
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.15))
    affine = tilt @ image.affine
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image


def sform_of_another_space():
    image = nifti(head(5))
    image.set_sform(np.diag([1.25, 1.25, 1.25, 1]) @ image.affine, 4)
    return image


SHIFT = (4, -6, 2)  # of the T2w against the T1w, mm

# Content of a scan, and what its line says; None for scans that are processed.
SCANS = {
    'good': (lambda: pack(nifti(head()).to_bytes()), None),
    'nan': (lambda: pack(nifti(with_nan()).to_bytes()), None),
    'volumes': (lambda: pack(nifti(np.stack([head(2), head(3)], -1)).to_bytes()), None),
    'turned': (lambda: pack(turned().to_bytes()), None),
    'othersform': (lambda: pack(sform_of_another_space().to_bytes()), None),
    'thick': (lambda: pack(nifti(head()[..., ::3], (2, 2, 6)).to_bytes()), None),
    'html': (lambda: b'<!DOCTYPE html><html><body>404</body></html>' * 20, 'web page'),
    'empty': (lambda: b'', 'is empty'),
    'cut': (lambda: pack(nifti(head()).to_bytes())[:-2000], 'cut off'),
    'constant': (lambda: pack(nifti(np.full((32,) * 3, 7.0)).to_bytes()), 'the same value'),
    'zero': (lambda: pack(nifti(np.zeros((32,) * 3)).to_bytes()), 'only zeros'),
    'allnan': (lambda: pack(nifti(np.full((32,) * 3, np.nan)).to_bytes()), 'no voxel'),
    'slice': (lambda: pack(nifti(head()[:, :, :1]).to_bytes()), 'not a volume'),
    'novoxel': (lambda: pack(zero_voxel_size()), 'voxel'),
    'huge': (lambda: pack(nifti(head(), (900.0,) * 3).to_bytes()), 'voxels of 900'),
    'nobrain': (lambda: pack(nifti(head() * 0.1 + 100).to_bytes()), 'no brain'),
}
GOOD = [name for name, (_, reason) in SCANS.items() if reason is None]
BAD = [name for name in SCANS if name not in GOOD]


@pytest.fixture(scope='module')
def bad_data(tmp_path_factory, project_dir):
    """Run good and bad scans once; return the app, its exit code and its messages."""
    app = App(tmp_path_factory.mktemp('bad'), project_dir)
    for subject, (content, _) in SCANS.items():
        app.add(subject, content())
    app.add('flair', pack(nifti(head()).to_bytes()), 'FLAIR')
    app.add('vessels', pack(nifti(head()).to_bytes()), 'angio')
    code, text = app.run()
    return app, code, text


def test_exit_code_and_summary_tell_of_the_bad_scans(bad_data):
    app, code, text = bad_data
    assert code == 1, text
    assert f'{len(GOOD) + 1} processed, 1 skipped, {len(BAD)} failed' in text
    assert 'Traceback' not in text


@pytest.mark.parametrize('subject', BAD)
def test_bad_scan_is_one_clear_line_a_crash_file_and_a_report(bad_data, subject):
    app, _, text = bad_data
    summary = [line for line in text.splitlines() if f'sub-{subject}: failed:' in line]
    assert len(summary) == 2  # when it happens, and at the end with the crash file
    assert SCANS[subject][1] in summary[0]
    (crash_file,) = (app.out / f'sub-{subject}' / 'log').glob('*/crash-*.txt')
    assert str(crash_file) in summary[1]
    assert 'Traceback' in crash_file.read_text()
    page = (app.out / f'sub-{subject}.html').read_text()
    assert SCANS[subject][1] in page
    assert app.state(subject)['status'] == 'failed'
    assert not (app.out / f'sub-{subject}' / 'anat').exists()


@pytest.mark.parametrize('subject', GOOD)
def test_other_scans_are_finished(bad_data, subject):
    app, _, text = bad_data
    state = app.state(subject)
    assert state['status'] == 'done', text
    for name, size in state['outputs'].items():
        file = app.out / name
        assert file.is_file()
        assert size in (-1, file.stat().st_size)
    assert len(state['outputs']) == 23  # 11 derivatives with their sidecars, and the report
    scan = nib.load(app.raw / f'sub-{subject}' / 'anat' / f'sub-{subject}_T1w.nii.gz')
    for file in (app.out / f'sub-{subject}' / 'anat').glob('*.nii.gz'):
        image = nib.load(file)
        assert image.shape == scan.shape[:3]
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        assert np.isfinite(image.get_fdata()).all()


def test_what_is_unusual_is_a_warning_and_in_the_report(bad_data):
    app, _, text = bad_data
    assert 'WARNING: sub-volumes: the file holds 2 volumes; the first was used' in text
    assert 'WARNING: sub-good: quality check: fail: ' in text  # 32 mm is no human brain
    assert '2 volumes; the first was used' in (app.out / 'sub-volumes.html').read_text()
    assert 'WARNING: sub-othersform: the sform has voxels of 2.5 x' in text
    assert 'WARNING: sub-turned: sform' not in text
    assert 'WARNING: sub-thick: slices are 6 mm thick' in text
    assert 'NaN or infinite' in (app.out / 'sub-nan.html').read_text()


def test_nothing_half_written_and_work_folders_removed(bad_data):
    app, _, _ = bad_data
    assert app.temporary_files() == []
    left = {folder.name for folder in app.work.glob('anatnet_*/*_wf')}
    assert left == {f'sub_{subject}_wf' for subject in BAD}


def test_session_without_anatomical_image_is_named_with_the_reason(bad_data):
    _, _, text = bad_data
    assert 'sub-vessels: skipped: no anatomical image that can be used' in text


def test_session_without_t1w_is_processed_and_says_so_everywhere(bad_data):
    app, _, text = bad_data
    assert 'sub-flair: there is no T1w: the FLAIR stands in for it' in text
    state = app.state('flair')
    assert state['status'] == 'done'
    assert state['run']['reference'] == 'FLAIR'
    assert 'sub-flair/anat/sub-flair_desc-preproc_FLAIR.nii.gz' in state['outputs']
    for file in (app.out / 'sub-flair' / 'anat').glob('*.json'):
        assert json.loads(file.read_text())['Reference'] == 'FLAIR'
    page = (app.out / 'sub-flair.html').read_text()
    assert 'This session has no T1w image' in page


def lopsided(data):
    """Return a head that shows how it is turned."""
    data = data.copy()
    data[17:24, 18:25, 9:14] = 160
    data[9:14, 12:17, 17:21] = 290
    return data


@pytest.fixture(scope='module')
def contrasts(tmp_path_factory, project_dir):
    """Run a session with three contrasts, one of which is not a head."""
    app = App(tmp_path_factory.mktemp('contrasts'), project_dir)
    t1w, t2w = (lopsided(head(seed)) for seed in (0, 1))
    app.add('01', pack(nifti(t1w).to_bytes()))
    data = t2w[..., ::2]
    inverted = np.where(data > 100, 480 - data, data).astype(np.float32)
    affine = nifti(data, (2, 2, 4)).affine
    affine[:3, 3] += SHIFT
    app.add('01', pack(nib.Nifti1Image(inverted, affine).to_bytes()), 'T2w')
    app.add('01', b'', 'FLAIR')
    code, text = app.run(timeout=300)
    return app, code, text


def test_contrast_is_brought_to_the_t1w(contrasts):
    app, code, text = contrasts
    assert code == 0, text
    anat = app.out / 'sub-01' / 'anat'
    t1w, t2w = (nib.load(anat / f'sub-01_desc-preproc_{name}.nii.gz') for name in ('T1w', 'T2w'))
    assert t1w.shape == t2w.shape
    np.testing.assert_allclose(t1w.affine, t2w.affine)
    from bids_app.images.transforms import read_linear

    matrix = read_linear(anat / 'sub-01_from-T2w_to-T1w_mode-image_xfm.txt')
    np.testing.assert_allclose(matrix[:3, 3], SHIFT, atol=1.0)
    assert (anat / 'sub-01_from-T1w_to-T2w_mode-image_xfm.txt').is_file()
    fields = json.loads((anat / 'sub-01_desc-preproc_T2w.json').read_text())
    assert fields['Sources'][0] == 'bids:raw:sub-01/anat/sub-01_T2w.nii.gz'
    assert 'Reference' not in json.loads((anat / 'sub-01_dseg.json').read_text())


def test_contrast_that_cannot_be_used_is_said_and_costs_nothing(contrasts):
    app, _, text = contrasts
    assert 'sub-01: FLAIR is not used, registration failed: ' in text
    assert 'is empty' in text
    assert not (app.out / 'sub-01' / 'anat' / 'sub-01_desc-preproc_FLAIR.nii.gz').exists()
    assert 'FLAIR is not used' in (app.out / 'sub-01.html').read_text()
    assert app.state('01')['status'] == 'done'


def test_output_with_several_contrasts_is_valid(contrasts):
    app, _, _ = contrasts
    assert validator_errors(app.out) == []


def test_tissue_model_without_its_contrast_is_one_clear_line(contrasts):
    app, _, _ = contrasts
    model = app.folder / 'models' / 'tissue-pd'
    model.mkdir()
    card = {**json.loads((app.folder / 'models' / 'brain' / 'card.json').read_text())}
    sha256 = hashlib.sha256(b'x').hexdigest()
    card.update(name='tissue-pd', task='tissue', contrasts=['T1w', 'PDw'], sha256=sha256)
    (model / 'card.json').write_text(json.dumps(card))
    (model / 'weights.safetensors').write_bytes(b'x')
    code, text = app.run('--tissue-model', 'tissue-pd')
    assert code == 1
    assert (
        'sub-01: failed: the tissue model tissue-pd needs PDw, of which this session has no image'
        in text
    )


def validator_errors(folder):
    validator = shutil.which('bids-validator-deno') or str(
        Path(sys.executable).with_name('bids-validator-deno')
    )
    if not Path(validator).exists():
        pytest.skip('bids-validator-deno is not installed')
    done = subprocess.run(
        [validator, '--format', 'json', '--datasetTypes', 'derivative', str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    issues = json.loads(done.stdout)['issues']['issues']
    return [issue for issue in issues if issue['severity'] == 'error']


def test_output_is_a_valid_derivative(bad_data):
    app, _, _ = bad_data
    assert validator_errors(app.out) == []


def test_unchanged_sessions_are_not_done_again(bad_data):
    app, _, _ = bad_data
    before = {p: p.stat().st_mtime_ns for p in app.out.rglob('anat/*')}
    code, text = app.run('--skip-failed')
    assert code == 0, text
    assert f'{len(GOOD) + 1} already done' in text  # and the FLAIR that stands in for a T1w
    assert f'{len(BAD)} failed before and left alone' in text
    assert before == {p: p.stat().st_mtime_ns for p in app.out.rglob('anat/*')}


def test_serial_plugin_repairs_a_lost_output(bad_data):
    app, _, _ = bad_data
    (app.folder / 'serial.yml').write_text('plugin: Linear\n')
    lost = app.out / 'sub-good' / 'anat' / 'sub-good_dseg.nii.gz'
    content = lost.read_bytes()
    lost.unlink()
    options = ('--participant-label', 'good', 'html', '--use-plugin', 'serial.yml')
    code, text = app.run(*options)
    assert code == 1
    assert 'output missing: sub-good/anat/sub-good_dseg.nii.gz' in text
    assert '1 processed, 1 failed' in text
    assert lost.read_bytes() == content


def test_reports_alone_can_be_made_again(bad_data):
    app, _, _ = bad_data
    page = app.out / 'sub-nan.html'
    page.unlink()
    code, text = app.run('--reports-only', '--participant-label', 'nan')
    assert code == 0, text
    assert 'NaN or infinite' in page.read_text()


@pytest.fixture
def two_heads(tmp_path, project_dir):
    app = App(tmp_path, project_dir)
    for number in (1, 2):
        app.add(f'0{number}', pack(nifti(head(number)).to_bytes()))
    return app


def test_killed_worker_ends_with_a_hint_and_the_next_call_goes_on(two_heads):
    app = two_heads
    pid_file = app.hold('mask')
    process = app.start('--modules', 'mask')
    worker = wait_for(pid_file)
    app.release('mask')
    os.kill(worker, signal.SIGKILL)
    code, text = app.finish(process)
    assert code == 1
    (failed,) = {
        line.split('failed:')[0].split()[-1] for line in text.splitlines() if 'failed:' in line
    }
    assert 'step mask: the worker process was killed' in text
    assert 'memory' in text
    assert '1 processed, 1 failed' in text
    code, text = app.run('--modules', 'mask')
    assert code == 0, text
    assert '1 processed, 1 already done' in text
    assert app.temporary_files() == []


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_stopped_run_leaves_nothing_and_the_next_call_goes_on(two_heads, number, code):
    app = two_heads
    pid_file = app.hold('mask')
    process = app.start('--modules', 'mask')
    worker = wait_for(pid_file)
    process.send_signal(number)
    assert app.finish(process, 20)[0] == code
    wait_until_gone(worker)
    assert not list(app.out.rglob('anat/*'))
    assert app.temporary_files() == []
    app.release('mask')
    if number == signal.SIGKILL:  # the others go on in the same way
        again, text = app.run('--modules', 'mask')
        assert again == 0, text
        assert '2 processed' in text


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=['SIGTERM', 'SIGINT']
)
def test_signal_to_all_processes_at_once_is_no_crash(two_heads, number, code):
    """Slurm sends SIGTERM, and a terminal sends Ctrl-C, to workers and fork server as well."""
    app = two_heads
    pid_file = app.hold('mask')
    process = app.start('--modules', 'mask')
    worker = wait_for(pid_file)
    os.killpg(process.pid, number)
    ended, text = app.finish(process, 20)
    assert ended == code, text
    wait_until_gone(worker)
    assert text.count('Interrupted: the same command goes on') == 1
    assert 'Traceback' not in text
    assert 'failed' not in text
    assert not list(app.out.rglob('crash-*'))
    assert app.temporary_files() == []
    app.release('mask')
    again, text = app.run('--modules', 'mask')
    assert again == 0, text
    assert '2 processed' in text


def test_two_runs_at_once_do_not_disturb_each_other(two_heads):
    app = two_heads
    pid_file = app.hold('mask')
    first = app.start('--modules', 'mask', '--participant-label', '01')
    wait_for(pid_file)
    second = app.start('--modules', 'mask')
    pid_file.unlink()
    wait_for(pid_file)
    app.release('mask')
    code, text = app.finish(second)
    assert code == 0, text
    assert 'sub-01: skipped: another process is working on it' in text
    assert '1 processed, 1 skipped' in text
    assert app.finish(first)[0] == 0
    assert [app.state(subject)['status'] for subject in ('01', '02')] == ['done', 'done']


def test_unwritable_output_is_one_clear_line(two_heads):
    app = two_heads
    app.out.write_text('a file where the folder should be')
    code, text = app.run()
    assert code != 0
    assert 'cannot write' in text
    assert 'Traceback' not in text


SPACE = 'MNI152NLin2009aSym'
COARSE = ('--output-spaces', f'{SPACE}:res-4', '--smooth-fwhm', '8')


@pytest.fixture(scope='module')
def template_space(tmp_path_factory, project_dir):
    """Run one head to template space, with an atlas and a mask of another pipeline."""
    app = App(tmp_path_factory.mktemp('vbm'), project_dir)
    scan = nifti(head())
    app.add('01', pack(scan.to_bytes()))
    app.add('bad', pack(nifti(head()[:31]).to_bytes()))
    labels = np.ones((20, 20, 20), np.uint8)
    labels[10:] = 2
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -76
    nib.save(nib.Nifti1Image(labels, affine), app.folder / 'atlas-halves_dseg.nii.gz')
    (app.folder / 'halves.tsv').write_text('index\tname\n3\tnowhere\n2\tright\n1\tleft\n')
    mask = head() > 120
    mask[:, :, 24:] = False  # another brain than ours
    file = app.folder / 'prep' / 'sub-01' / 'anat' / 'sub-01_desc-brain_mask.nii.gz'
    file.parent.mkdir(parents=True)
    nib.save(nifti(mask.astype(np.uint8)), file)
    code, text = app.run(*COARSE, '--atlas', 'atlas-halves_dseg.nii.gz:halves.tsv', '-d', 'prep')
    return app, code, text


def table_of(path):
    lines = [line.split('\t') for line in path.read_text().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_files_in_template_space(template_space):
    app, code, text = template_space
    assert code == 1, text  # of the bad scan
    anat = app.out / 'sub-01' / 'anat'
    names = {p.name for p in anat.iterdir()}
    std = f'sub-01_space-{SPACE}_res-4'
    expected = {
        f'{std}_desc-preproc_T1w', f'{std}_desc-brain_mask', f'{std}_dseg',
        f'{std}_desc-jacobian_morph',
        *(f'{std}_label-{label}_probseg' for label in ('GM', 'WM', 'CSF')),
        *(f'{std}_label-{label}_desc-modulated{smooth}_probseg'
          for label in ('GM', 'WM') for smooth in ('', 'smooth8mm')),
    }  # fmt: skip
    assert {f'{name}.nii.gz' for name in expected} | {f'{name}.json' for name in expected} <= names
    assert {
        f'sub-01_from-T1w_to-{SPACE}_mode-image_xfm.h5',
        f'sub-01_from-{SPACE}_to-T1w_mode-image_xfm.h5',
        'sub-01_atlas-halves_desc-regions_morph.tsv',
    } <= names
    assert sum('space-' in name or '_xfm' in name for name in names) == 2 * len(expected) + 4
    assert set(app.state('01')['outputs']) == {
        *(p.relative_to(app.out).as_posix() for p in anat.iterdir()), 'sub-01.html',
    }  # fmt: skip
    for name in expected:
        image = nib.load(anat / f'{name}.nii.gz')
        assert image.shape == (42, 54, 42)
        assert image.header['sform_code'] == 4
        assert np.isfinite(image.get_fdata()).all()


def test_modulated_maps_hold_the_volume_of_the_scan(template_space):
    app, _, _ = template_space
    anat = app.out / 'sub-01' / 'anat'
    for label in ('GM', 'WM'):
        native = nib.load(anat / f'sub-01_label-{label}_probseg.nii.gz').get_fdata()
        std = f'sub-01_space-{SPACE}_res-4_label-{label}_desc-modulated'
        plain = nib.load(anat / f'{std}_probseg.nii.gz').get_fdata()
        smooth = nib.load(anat / f'{std}smooth8mm_probseg.nii.gz').get_fdata()
        assert plain.sum() * 4**3 == pytest.approx(native.sum() * VOXEL_MM**3, rel=0.01)
        assert smooth.sum() == pytest.approx(plain.sum(), rel=0.01)
    jacobian = nib.load(anat / f'sub-01_space-{SPACE}_res-4_desc-jacobian_morph.nii.gz')
    np.testing.assert_allclose(jacobian.get_fdata(), 0.125, rtol=1e-4)


def test_sidecars_in_template_space(template_space):
    app, _, _ = template_space
    anat = app.out / 'sub-01' / 'anat'
    std = f'sub-01_space-{SPACE}_res-4'

    def fields(name):
        return json.loads((anat / f'{name}.json').read_text())

    smooth = fields(f'{std}_label-GM_desc-modulatedsmooth8mm_probseg')
    assert smooth['SmoothingFWHM'] == 8
    assert smooth['VoxelSize'] == [4, 4, 4]
    assert smooth['Units'] == 'mm^3/mm^3'
    assert 'full Jacobian' in smooth['Modulation']
    assert smooth['Sources'] == [
        f'bids::sub-01/anat/{std}_label-GM_desc-modulated_probseg.nii.gz'
    ]  # fmt: skip
    assert smooth['Registration']['Method'] == 'refined'
    assert smooth['Registration']['Model'] == {'Name': 'symnet', 'Version': 'x', 'SHA256':
        hashlib.sha256(b'symnet').hexdigest()}  # fmt: skip
    t1w = fields(f'{std}_desc-preproc_T1w')
    assert t1w['SkullStripped'] is True  # a ball without a scalp
    assert t1w['Resolution'] == 'Isotropic voxels of 4 mm'
    assert 'SpatialReference' not in t1w
    regions = fields('sub-01_atlas-halves_desc-regions_morph')
    assert regions['Atlas']['Space'] == SPACE
    assert regions['gm_mm3']['Units'] == 'mm^3'


def test_regions_are_joined_by_value_and_sum_to_the_tissues(template_space):
    app, _, _ = template_space
    anat = app.out / 'sub-01' / 'anat'
    rows = {
        row['name']: row for row in table_of(anat / 'sub-01_atlas-halves_desc-regions_morph.tsv')
    }
    assert {name: row['index'] for name, row in rows.items()} == {
        'left': '1', 'right': '2', 'nowhere': '3',
    }  # fmt: skip
    assert rows['nowhere']['flag'] == 'absent'
    tissues = {
        row['name']: float(row['volume_mm3'])
        for row in table_of(anat / 'sub-01_desc-tissue_morph.tsv')
    }
    names = list(tissues)
    for column, tissue in zip(('gm_mm3', 'wm_mm3', 'csf_mm3'), names, strict=False):
        assert sum(float(row[column]) for row in rows.values()) == pytest.approx(
            tissues[tissue], abs=1.0
        )


def test_mask_of_another_pipeline_is_used_and_named(template_space):
    app, _, text = template_space
    anat = app.out / 'sub-01' / 'anat'
    mask = nib.load(anat / 'sub-01_desc-brain_mask.nii.gz').get_fdata()
    given = nib.load(app.folder / 'prep/sub-01/anat/sub-01_desc-brain_mask.nii.gz').get_fdata()
    np.testing.assert_array_equal(mask, given)
    for name in ('dseg', 'desc-wholebrain_dseg', 'label-GM_probseg', 'desc-entropy_uncertainty'):
        assert not nib.load(anat / f'sub-01_{name}.nii.gz').get_fdata()[given == 0].any()
    uri = 'bids:prep:sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    fields = json.loads((anat / 'sub-01_desc-brain_mask.json').read_text())
    assert fields['Sources'] == [uri]
    assert 'Model' not in fields
    assert 'not made by AnatNet' in fields['Description']
    fields = json.loads((anat / 'sub-01_dseg.json').read_text())
    assert fields['Sources'][1] == uri
    assert fields['Model']['Name'] == 'brain'
    links = json.loads((app.out / 'dataset_description.json').read_text())['DatasetLinks']
    assert links['prep'] == (app.folder / 'prep').as_uri()
    assert 'sub-bad: --derivatives holds no brain mask' in text
    assert 'prep' in (app.out / 'sub-01.html').read_text()


def test_scan_that_cannot_be_registered_fails_alone(template_space):
    app, _, text = template_space
    assert 'sub-bad: failed: step normalise: mask.nii: cannot be registered' in text
    assert app.state('bad')['status'] == 'failed'
    assert 'cannot be registered' in (app.out / 'sub-bad.html').read_text()


def test_output_in_template_space_is_a_valid_derivative(template_space):
    app, _, _ = template_space
    assert validator_errors(app.out) == []


def test_maps_are_done_again_only_if_something_changed(template_space):
    app, _, _ = template_space
    options = ('--participant-label', '01', '--atlas', 'atlas-halves_dseg.nii.gz:halves.tsv')
    code, text = app.run(*COARSE, *options, '-d', 'prep')
    assert code == 0, text
    assert '1 already done' in text
    code, text = app.run(*options[:2], '-d', 'prep')  # native results alone
    assert '1 already done' in text
    mask = app.folder / 'prep/sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    os.utime(mask, ns=(1, 1))
    nib.save(nifti((head() > 120).astype(np.uint8)), mask)
    code, text = app.run(*COARSE, *options, '-d', 'prep')
    assert code == 0, text
    assert 'input changed: ' in text
    assert '1 processed' in text


@pytest.fixture(scope='module')
def with_tissue_model(tmp_path_factory, project_dir):
    """Run a session with T1w and FLAIR with a tissue model whose weights are random."""
    import torch
    from safetensors.torch import save_file

    from bids_app.networks import build_network

    app = App(tmp_path_factory.mktemp('tissue'), project_dir)
    t1w, flair = (lopsided(head(seed)) for seed in (0, 1))
    app.add('01', pack(nifti(t1w).to_bytes()))
    inverted = np.where(flair > 100, 480 - flair, flair).astype(np.float32)
    app.add('01', pack(nifti(inverted).to_bytes()), 'FLAIR')
    folder = app.folder / 'models' / 'tissue-three'
    folder.mkdir()
    stage = {
        'network': 'ContextUNet3D',
        'arguments': {'in_channels': 3, 'out_channels': 5, 'base': 2},
        'shape': [32, 32, 32],
        'spacing': 1.0,
    }
    torch.manual_seed(0)
    network = build_network(stage['network'], stage['arguments'])
    weights = {f'tissue.{name}': value for name, value in network.state_dict().items()}
    save_file(weights, folder / 'weights.safetensors')
    card = {
        'name': 'tissue-three', 'version': '1.0.0', 'description': 'random', 'licence': 'x',
        'sha256': hashlib.sha256((folder / 'weights.safetensors').read_bytes()).hexdigest(),
        'task': 'tissue', 'contrasts': ['T1w', 'T2w', 'FLAIR'], 'missing_contrasts': True,
        'classes': ['background', 'csf', 'gm', 'wm', 'lesion'], 'stages': {'tissue': stage},
    }  # fmt: skip
    (folder / 'card.json').write_text(json.dumps(card))
    code, text = app.run('--tissue-model', 'auto', '--correct-lesions', timeout=300)
    return app, code, text


def test_tissue_model_makes_the_maps_and_is_named(with_tissue_model):
    app, code, text = with_tissue_model
    assert code == 0, text
    assert 'sub-01: tissue model tissue-three, T1w, FLAIR' in text
    anat = app.out / 'sub-01' / 'anat'
    fields = json.loads((anat / 'sub-01_label-GM_probseg.json').read_text())
    assert fields['Model']['Name'] == 'tissue-three'
    assert fields['Contrasts'] == ['T1w', 'FLAIR']
    assert fields['LesionsCorrected'] is True
    mask = nib.load(anat / 'sub-01_desc-brain_mask.nii.gz').get_fdata() > 0
    maps = [nib.load(anat / f'sub-01_label-{name}_probseg.nii.gz').get_fdata()
            for name in ('GM', 'WM', 'CSF')]  # fmt: skip
    assert sum(maps)[mask].min() > 0.5
    assert sum(maps)[mask].max() < 1 + 1e-5
    for name in ('label-WMH_probseg.nii.gz', 'desc-wmh_mask.nii.gz', 'desc-wmh_morph.tsv'):
        assert (anat / f'sub-01_{name}').is_file()
    page = (app.out / 'sub-01.html').read_text()
    assert 'Made by the tissue model <b>tissue-three</b> from T1w, FLAIR; lesions count' in page
    assert 'White-matter hyperintensities' in page
    assert validator_errors(app.out) == []


def test_other_tissue_model_or_none_is_another_result(with_tissue_model):
    app, _, _ = with_tissue_model
    options = ('--dry-run', '--tissue-model', 'tissue-three', '--correct-lesions')
    assert app.run(*options)[0] == 0
    code, text = app.run()
    assert code == 0
    assert 'option changed: tissue_model was auto, is none' in text
    assert not list((app.out / 'sub-01' / 'anat').glob('*wmh*'))  # of the model that is gone
    assert 'Contrasts' not in json.loads(
        (app.out / 'sub-01' / 'anat' / 'sub-01_label-GM_probseg.json').read_text()
    )
