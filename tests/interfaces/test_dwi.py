# SPDX-License-Identifier: Apache-2.0
"""Tests of the diffusion steps on small images; finding the brain and networks are replaced."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bids_app.bids.outputs import SYNTHESIZED, Outputs
from bids_app.data import structures
from bids_app.errors import ImageError
from bids_app.images.transforms import read_linear
from bids_app.interfaces import dwi_steps
from bids_app.interfaces.dwi import AlignDiffusion, MapDiffusion, PrepareSeries
from bids_app.interfaces.dwi_sidecars import SYNTHESIS_ROLE
from bids_app.interfaces.dwi_steps import align_diffusion, map_diffusion, prepare_series
from bids_app.interfaces.report import diffusion_content
from bids_app.interfaces.sidecars import Session, describe

SHAPE = (20, 22, 16)
TENSOR = np.diag([1.7, 0.4, 0.3])


def _vectors(count: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(5).normal(size=(count, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    return vectors


@pytest.fixture
def run(tmp_path):
    """Return a function that writes a run: a ball with fibres along x, in LAS order."""

    def make(name='sub-01_dwi', bvals=None, vectors=None, zooms=(6.0, 6.0, 6.0)):
        vectors = _vectors() if vectors is None else vectors
        bvals = np.r_[0, np.full(len(vectors) - 1, 1000.0)] if bvals is None else bvals
        grid = np.indices(SHAPE) - (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
        ball = 400.0 * (np.sqrt((grid**2).sum(axis=0)) < 7)
        decay = np.exp(-bvals / 1000 * np.einsum('ni,ij,nj->n', vectors, TENSOR, vectors))
        affine = np.diag([-zooms[0], zooms[1], zooms[2], 1])  # det < 0: bvecs are plain
        affine[:3, 3] = [57, -63, -45]
        data = (ball[..., None] * decay + 5).astype(np.float32)
        image = nib.Nifti1Image(data, affine)
        paths = [tmp_path / f'{name}{end}' for end in ('.nii.gz', '.bval', '.bvec')]
        nib.save(image, paths[0])
        np.savetxt(paths[1], bvals[None])
        np.savetxt(paths[2], vectors.T)
        return paths

    return make


@pytest.fixture
def networks(monkeypatch):
    """Find the ball by a threshold, and synthesise with a network that returns its input."""
    located = {'confidence': 0.9, 'device': 'cpu', 'precision': 'float32', 'fallback': None}
    monkeypatch.setattr(
        dwi_steps, 'brain_of', lambda image, *args, **kwargs: (image > 100, dict(located))
    )
    monkeypatch.setattr(
        'bids_app.images.bias.n4_bias_field', lambda data, *a, **k: np.ones(data.shape, 'f4')
    )

    class Plain(torch.nn.Module):
        divisor = 16

        def forward(self, channels):
            return channels[:, 2:3]

    monkeypatch.setattr(
        'bids_app.inference.deepanat.synthesise_t1w',
        lambda channels, mask, network, **options: channels[2] - 1,
    )
    monkeypatch.setattr(
        'bids_app.inference.models.resident_networks', lambda folder: {'generator': Plain()}
    )
    monkeypatch.setattr(
        'bids_app.inference.models.load_card', lambda folder: type('Card', (), {'name': 'net'})
    )


def prepared(paths, folder, **options):
    images, bvals, bvecs = ([path] for path in paths)
    return prepare_series(images, bvals, bvecs, folder, **{'b0_threshold': 50, **options})


def mapped(found, folder, **options):
    return map_diffusion(found, folder, model=Path('m'), b0_threshold=50, **options)


def test_a_series_to_maps_on_the_grid_of_its_file(run, networks, tmp_path):
    paths = run()
    series = prepared(paths, tmp_path)
    assert (series['volumes'], series['directions'], series['shells']) == (8, 7, [(1000.0, 7)])
    assert series['no_tensor'] is None
    assert any('Head motion' in line for line in series['uncorrected'])
    assert any('susceptibility' in line for line in series['uncorrected'])
    found = mapped(series, tmp_path, synth_model=Path('s'), one_mm=False)
    native = nib.load(paths[0])
    for key, path in found['files'].items():
        image = nib.load(path)
        assert image.shape[:3] == SHAPE, key
        assert_allclose(image.affine, native.affine)
    inside = nib.load(found['files']['dwi_mask']).get_fdata() > 0
    fa = nib.load(found['files']['dwi_fa']).get_fdata()
    deviation = np.array([1.7, 0.4, 0.3]) - 0.8
    expected = np.sqrt(1.5 * (deviation**2).sum() / (1.7**2 + 0.4**2 + 0.3**2))
    assert_allclose(np.median(fa[inside]), expected, atol=0.02)
    assert not fa[~inside].any()
    colour = nib.load(found['files']['dwi_colour']).get_fdata()[inside]
    assert (colour.argmax(axis=1) == 0).all()  # red: left-right
    values = nib.load(found['files']['dwi_evals']).get_fdata()
    assert values.shape == (*SHAPE, 3)
    assert (np.diff(values[inside], axis=1) <= 0).all()
    assert found['synthesis'] == {'name': 'net'}
    assert found['tensor_volumes'] == 7
    assert 'partial coverage' in found['notes'][0]


def test_a_t1w_at_1_mm_for_the_whole_workflow(run, networks, tmp_path):
    found = mapped(prepared(run(), tmp_path), tmp_path, synth_model=Path('s'), one_mm=True)
    image = nib.load(found['synthesis']['t1w_1mm'])
    assert image.shape == (120, 132, 96)
    assert_allclose(image.header.get_zooms(), 1)
    assert nib.aff2axcodes(image.affine) == ('R', 'A', 'S')
    assert image.get_fdata().min() == 0
    assert image.get_qform(coded=True)[1] == image.get_sform(coded=True)[1] == 1


def test_too_few_directions_give_mean_images_only(run, networks, tmp_path):
    series = prepared(run(vectors=_vectors(5)), tmp_path)
    assert '4 different directions' in series['no_tensor']
    found = mapped(series, tmp_path, synth_model=Path('s'), one_mm=False)
    assert set(found['files']) == {'dwi_b0', 'dwi_mean', 'dwi_mask'}
    assert 'synthesis' not in found


def test_no_b0_gives_the_mean_weighted_image_only(run, networks, tmp_path):
    series = prepared(run(bvals=np.full(8, 1000.0)), tmp_path)
    assert 'no b=0' in series['no_tensor']
    found = mapped(series, tmp_path)
    assert set(found['files']) == {'dwi_mean', 'dwi_mask'}


def test_vectors_that_are_all_zero(run, networks, tmp_path):
    series = prepared(run(vectors=np.zeros((8, 3))), tmp_path)
    assert 'are zero' in series['no_tensor']
    assert set(mapped(series, tmp_path)['files']) == {'dwi_b0', 'dwi_mean', 'dwi_mask'}


def test_options_of_the_series(run, networks, tmp_path, monkeypatch):
    paths = run()
    moved = {'displacement_max_mm': 1.0}
    monkeypatch.setattr(
        'bids_app.diffusion.preprocessing.correct_motion', lambda series, b0: (series, moved)
    )
    found = prepared(paths, tmp_path, denoise='mppca', motion='rigid')
    assert found['motion'] is moved
    assert found['noise']['sigma'] >= 0
    assert not any('Head motion' in line for line in found['uncorrected'])


def test_runs_that_cannot_be_used_cost_the_anatomy_nothing(run, tmp_path, monkeypatch):
    """Beside a T1w an error becomes a finding; where there is nothing else, the session fails."""
    paths = run()
    paths[1].write_text('0 1000\n')
    monkeypatch.chdir(tmp_path)
    inputs = {'images': [paths[0]], 'bvals': [paths[1]], 'bvecs': [paths[2]]}
    found = PrepareSeries(**inputs).run().outputs.info
    content = json.loads(Path(found).read_text())
    assert content['status'] == 'failed'
    assert '2 b-values, but sub-01_dwi.bvec has 8 vectors' in content['reasons'][0]
    with pytest.raises(ImageError, match='2 b-values'):
        PrepareSeries(**inputs, required=True).run()

    info = tmp_path / 'series.json'
    info.write_text(json.dumps(content))
    after = MapDiffusion(series_info=str(info), model='m', model_sha256='x').run().outputs
    assert json.loads(Path(after.info).read_text())['reasons'] == content['reasons']
    image = str(paths[0])
    last = AlignDiffusion(
        maps_info=after.info, reference=image, brain_mask=image, dseg=image, wholebrain_dseg=image
    ).run()
    end = json.loads(Path(last.outputs.info).read_text())
    assert (end['status'], end['reasons']) == ('failed', content['reasons'])
    outputs = Outputs(tmp_path / 'out', '01')
    shown = diffusion_content({}, {'steps': {'dwi_series': content}, 'outputs': {}}, outputs)
    assert (shown['status'], shown['files']) == ('failed', {})


@pytest.fixture
def anatomy(tmp_path):
    """Write a T1w of 3 mm voxels with its mask, tissues and structures."""
    shape = (44, 46, 40)
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = [-66, -70, -60]
    grid = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    radius = np.linalg.norm(grid - [6, 0, 0], axis=-1)  # the ball lies 6 mm to the right
    mask = radius < 42
    images = {
        'reference': np.where(mask, 300 - 3 * radius, 0).astype(np.float32),
        'mask': mask.astype(np.uint8),
        'dseg': np.select([radius < 25, mask], [2, 1], 0).astype(np.uint8),
        'wholebrain': np.select([grid[..., 0] > 6, mask], [41, 2], 0) * mask,
    }
    paths = {}
    for name, data in images.items():
        paths[name] = tmp_path / f'{name}.nii'
        nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), paths[name])
    return paths


def aligned(found, anatomy, folder, **options):
    return align_diffusion(
        found, anatomy['reference'], anatomy['mask'], anatomy['dseg'], anatomy['wholebrain'],
        folder, **options,
    )  # fmt: skip


@pytest.fixture
def registered(monkeypatch):
    """Let the registration find that the diffusion images lie 6 mm to the left of the T1w."""

    def register(fixed, fixed_affine, moving, moving_affine, **masks):
        matrix = np.eye(4)
        matrix[0, 3] = -6.0 if moving.max() < 300 else -8.0  # the b=0 is brighter
        measures = {'dice': 0.9, 'shift_mm': 6.0, 'similarity': 1.2, 'rotation_degrees': 0.0}
        return matrix, {**measures, 'coverage': 0.5, 'seconds': 3.0}  # a slab will do

    monkeypatch.setattr('bids_app.registration.rigid.register_rigid', register)


def test_structures_are_brought_to_the_diffusion_grid(
    run, networks, registered, anatomy, tmp_path
):
    found = mapped(prepared(run(), tmp_path), tmp_path, synth_model=Path('s'))
    result = aligned(found, anatomy, tmp_path)
    assert (result['status'], result['through']) == ('ok', 'synthesized')
    assert set(result['registrations']) == {'synthesized', 'b0'}
    assert result['apart_mm'] == 2.0
    image = nib.load(result['files']['dwi_dseg'])
    assert image.shape == SHAPE
    labels = np.asarray(image.dataobj)
    # In the middle of the ball, left and right of the plane that was at x = 6 in the T1w.
    middle = nib.affines.apply_affine(np.linalg.inv(image.affine), [[-9, 0, 0], [9, 0, 0]])
    left, right = (labels[tuple(np.rint(place).astype(int))] for place in middle)
    assert (left, right) == (2, 41)
    forward = read_linear(Path(result['files']['dwi_xfm_to_reference']))
    assert_allclose(forward[:3, 3], [-6, 0, 0])
    backward = read_linear(Path(result['files']['dwi_xfm_from_reference']))
    assert_allclose(backward @ forward, np.eye(4), atol=1e-12)
    rows = Path(result['files']['dwi_regions']).read_text().splitlines()
    assert len(rows) == 1 + len(structures())
    header = rows[0].split('\t')
    line = dict(
        zip(header, next(r for r in rows if r.startswith('41\t')).split('\t'), strict=True)
    )
    assert float(line['ad_mean']) == pytest.approx(1.7, abs=0.1)
    assert int(line['voxels']) > 300
    assert 0 <= result['registrations']['b0']['measures']['tissue_fit'] <= 1
    assert set(result['agreement']) <= {'dwi_t1w', 'dwi_b0', 'dwi_mean', 'dwi_fa', 'dwi_md'}


def test_without_a_synthesised_t1w_the_b0_is_registered(
    run, networks, registered, anatomy, tmp_path
):
    found = mapped(prepared(run(), tmp_path), tmp_path)
    result = aligned(found, anatomy, tmp_path)
    assert result['through'] == 'b0'
    assert 'apart_mm' not in result
    assert_allclose(result['matrix'][0][3], 8)


def test_a_registration_that_fails_brings_nothing_over(
    run, networks, anatomy, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        'bids_app.registration.rigid.register_rigid',
        lambda *a, **k: (np.eye(4), {'dice': 0.3, 'coverage': 0.2, 'shift_mm': 90.0}),
    )
    found = mapped(prepared(run(), tmp_path), tmp_path, synth_model=Path('s'))
    result = aligned(found, anatomy, tmp_path)
    assert result['status'] == 'failed'
    assert result['files'] == {}
    assert result['reasons']


def test_a_synthesised_reference_needs_no_registration(run, networks, anatomy, tmp_path):
    found = mapped(prepared(run(), tmp_path), tmp_path, synth_model=Path('s'))
    result = aligned(found, anatomy, tmp_path, same_space=True)
    assert result['through'] == 'same space'
    assert set(result['files']) == {'dwi_dseg', 'dwi_regions'}


def test_what_sidecars_say(tmp_path):
    outputs = Outputs(tmp_path / 'out', '01', reference=SYNTHESIZED)
    raw = tmp_path / 'raw'
    image = raw / 'sub-01/dwi/sub-01_dwi.nii.gz'
    session = Session(
        outputs, image, raw, ('dwi_fa', 'dwi_t1w', 'preproc', 'dseg'),
        {
            'dwi_series': {'images': [str(image)], 'uncorrected': ['nothing']},
            'dwi_maps': {'tensor_bmax': 1000.0, 'tensor_volumes': 7, 'device': 'cpu',
                         'notes': ['partial coverage']},
        },
        {SYNTHESIS_ROLE: {'name': 'deepanat', 'version': '1', 'sha256': 'abc'}},
    )  # fmt: skip
    uri = 'bids:raw:sub-01/dwi/sub-01_dwi.nii.gz'
    fa = describe('dwi_fa', session)
    assert fa['Sources'] == [uri]
    assert (fa['MaximumBvalue'], fa['WeightedVolumes']) == (1000.0, 7)
    assert fa['NotCorrected'] == ['nothing']
    assert fa['Notes'] == ['partial coverage']
    made = describe('dwi_t1w', session)
    assert made['SpatialReference'] == 'bids::sub-01/dwi/sub-01_desc-b0_dwiref.nii.gz'
    assert made['Model']['Name'] == 'deepanat'
    assert 'guess' in made['Caveat']
    reference = describe('preproc', session)
    assert reference['Sources'] == [uri]
    assert 'not a measurement' in reference['Description']
    assert 'synthesized' in reference['Reference']
    assert 'synthesized' in describe('dseg', session)['Reference']
