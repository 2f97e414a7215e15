# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.errors import ImageError
from bids_app.images.templates import Template
from bids_app.networks import build_network
from bids_app.registration.normalisation import Normalisation
from bids_app.registration.refine import Level, refine
from bids_app.registration.run import METHODS, normalise, normalise_files, soft_dice
from bids_app.registration.velocity import full_flows

SCAN = np.diag([2.0, 2.0, 2.0, 1.0])
SCAN[:3, 3] = (-96, -120, -90)
SHAPE = (96, 110, 92)


def bent(points):
    """A smooth nonlinear map of the world, up to 5 mm."""
    x, y, z = points
    return np.stack([
        x + 4 * np.sin(y / 22) * np.cos(z / 30),
        y + 4 * np.sin(z / 25),
        z + 4 * np.cos(x / 25) * np.sin(y / 30),
    ])  # fmt: skip


@pytest.fixture(scope='module')
def bent_head(phantoms):
    phantom, shares_of = phantoms
    labels = phantom(SCAN, SHAPE, bent)
    return labels, shares_of(labels, SCAN)


def test_refinement_undoes_a_bend(template, bent_head):
    found = normalise(bent_head[1], template, space='T', method='refined')
    measures = found.measures
    assert measures['dice_wm'] > 0.93
    assert measures['dice_gm'] > 0.88
    assert measures['inverse_error_mm'] < 0.1
    assert measures['jacobian_min'] > 0


def test_network_without_training_is_the_affine(template, bent_head):
    torch.manual_seed(0)
    network = build_network('SymNet', {}).eval()
    found = normalise(bent_head[1], template, space='T', method='network', network=network)
    assert np.abs(found.forward).max() < 0.5
    assert found.measures['inverse_error_mm'] < 0.01


def test_syn_is_in_the_same_frame(template, bent_head):
    affine = normalise(bent_head[1], template, space='T', method='network',
                       network=build_network('SymNet', {}).eval())  # fmt: skip
    found = normalise(bent_head[1], template, space='T', method='ants', sloppy=True)
    # A displacement with a wrong sign or axis would make the overlap worse than the affine's.
    assert found.measures['dice_wm'] > affine.measures['dice_wm'] + 0.005
    assert found.measures['inverse_error_mm'] < 0.3


def test_unknown_method_and_missing_network(template, bent_head):
    with pytest.raises(ValueError, match='method must be one of'):
        normalise(bent_head[1], template, space='T', method='x')
    with pytest.raises(ValueError, match='needs a network'):
        normalise(bent_head[1], template, space='T', method='network')
    assert METHODS == ('network', 'refined', 'ants')


def write(path, data, affine, dtype):
    nib.Nifti1Image(np.asarray(data, dtype), affine).to_filename(path)
    return path


@pytest.fixture
def files(tmp_path, template, bent_head):
    labels, _ = bent_head
    wm = np.isin(labels, (2, 41, 16))
    csf = np.isin(labels, (4, 43, 14))
    maps = {'gm': (labels > 0) & ~wm & ~csf, 'wm': wm, 'csf': csf, 'mask': labels > 0}
    paths = {
        name: write(tmp_path / f'{name}.nii', m, SCAN, np.float32) for name, m in maps.items()
    }
    paths['labels'] = write(tmp_path / 'labels.nii', labels, SCAN, np.uint8)
    tissues = np.stack([template.data[0], template.data[1], 0 * template.data[0]], axis=-1) * 255
    fixed = Template(
        'T', tmp_path / 'none.nii', None,
        write(tmp_path / 'tissues.nii', tissues.round(), template.affine, np.uint8),
        write(tmp_path / 'fixed.nii', 0 * tissues[..., 0], template.affine, np.uint8),
    )  # fmt: skip
    return {**paths, 'template': fixed, 'out_file': tmp_path / 'out.npz'}


def test_files_without_structures_in_the_template(files):
    found = normalise_files(**files, method='refined', model=None, sloppy=True)
    saved = Normalisation.load(files['out_file'])
    assert (found['space'], found['method'], found['fallback']) == ('T', 'refined', None)
    assert saved.measures == found['measures']
    assert saved.space == 'T'


def test_refinement_stays_on_its_device():
    images = torch.zeros(2, 1, 6, 20, 24, 16, device='meta')
    start = torch.zeros(1, 3, 5, 6, 4)  # as the network gives it, on the CPU
    velocities = refine(*images, (start, start), levels=(Level(4, 1, 1.2, 0.6),))
    flows = full_flows(*velocities, shape=(20, 24, 16))
    assert {one.device.type for one in (*velocities, *flows)} == {'meta'}


def test_registration_goes_on_on_the_cpu_where_memory_runs_out(files, monkeypatch, caplog):
    from bids_app.registration import run

    tried, real = [], run.normalise

    def normalise(*scans, device, **options):
        tried.append(device)
        if device != 'cpu':
            raise RuntimeError('CUDNN_STATUS_ALLOC_FAILED')
        return real(*scans, device=device, **options)

    monkeypatch.setattr(run, 'normalise', normalise)
    options = {'method': 'refined', 'model': None, 'sloppy': True}
    found = normalise_files(**files, **options, device='cuda:1')
    assert tried == ['cuda:1', 'cpu']
    assert found['device'] == 'cpu'
    assert found['fallback'] == 'cpu, because cuda:1 was out of memory'
    assert 'out of memory on cuda:1' in caplog.text


def test_lack_of_memory_on_the_cpu_is_the_end(files, monkeypatch):
    from bids_app.registration import run

    def normalise(*scans, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(run, 'normalise', normalise)
    with pytest.raises(RuntimeError, match='memory'):
        normalise_files(**files, method='refined', model=None)


def test_empty_brain_is_an_error_of_the_scan(files, tmp_path):
    files['mask'] = write(tmp_path / 'empty.nii', np.zeros(SHAPE), SCAN, np.uint8)
    with pytest.raises(ImageError, match='no grey or white matter'):
        normalise_files(**files, method='refined', model=None, sloppy=True)


def test_soft_dice():
    assert soft_dice(np.array([1.0, 0.5]), np.array([1.0, 0.5])) == pytest.approx(1)
    assert soft_dice(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0
