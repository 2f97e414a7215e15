# SPDX-License-Identifier: Apache-2.0
"""Voxelwise statistics from files to files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from bids_app.errors import UsageError
from bids_app.group.clusters import RegionMap, find_clusters
from bids_app.group.derivatives import SessionRecord, Study
from bids_app.group.glm import Settings, analyse, run_glm, template_regions
from bids_app.group.maps import check_maps, load_matrix, mean_map

SHAPE = (18, 20, 16)
AFFINE = np.array([[3.0, 0, 0, -27], [0, 3, 0, -30], [0, 0, 3, -24], [0, 0, 0, 1]])
LESION = (slice(4, 8), slice(10, 14), slice(6, 10))


def _save(data: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    return path


def _study(folder: Path, n: int = 40, loss: float = 0.2) -> tuple[pd.DataFrame, list[Path]]:
    """Maps of a round brain in which every second subject has less grey matter in one place."""
    rng = np.random.default_rng(11)
    away = np.indices(SHAPE) - np.array([8.5, 9.5, 7.5])[:, None, None, None]
    brain = 0.6 * ((away**2).sum(0) < 49)
    brain = gaussian_filter(brain, 0.7)
    table = pd.DataFrame(
        {
            'participant_id': [f'sub-{number:02d}' for number in range(n)],
            'session_id': None,
            'group': [('control', 'patient')[number % 2] for number in range(n)],
            'age': rng.uniform(20, 80, n),
            'tiv': rng.normal(1.5e6, 1e5, n),
        }
    )
    paths = []
    for number, row in table.iterrows():
        noise = gaussian_filter(rng.normal(size=SHAPE), 1.2)
        data = brain * (1 + 0.25 * noise) * row['tiv'] / 1.5e6
        if row['group'] == 'patient':
            data[LESION] *= 1 - loss
        paths.append(_save(data, folder / f'{number}.nii'))
    return table, paths


@pytest.fixture(scope='module')
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, list[Path]]:
    """40 subjects with a planted loss."""
    return _study(tmp_path_factory.mktemp('maps'))


@pytest.fixture(scope='module')
def result(study, tmp_path_factory):
    """An analysis of them."""
    labels = np.zeros(SHAPE, int)
    labels[LESION] = 17
    regions = [RegionMap('structures', labels, AFFINE, {17: 'Left-Hippocampus'})]
    settings = Settings(
        '~ group + age + tiv', ('group[T.patient]', 'age', 'group[T.patient], age'),
        n_permutations=99, seed=4,
    )  # fmt: skip
    out_dir = tmp_path_factory.mktemp('out') / 'model'
    return analyse(study[0], study[1], settings, out_dir=out_dir, regions=regions)


def test_a_planted_loss_is_found_there_and_nowhere_else(result):
    """Voxelwise and with TFCE; smooth noise reaches one voxel beyond the border at most."""
    files = result['contrasts'][0]['files']
    t = nib.load(files['t']).get_fdata()
    inside = np.zeros(SHAPE, bool)
    inside[LESION] = True
    for name in ('logpfwe', 'logptfce'):
        found = nib.load(files[name]).get_fdata() > -np.log10(0.05)
        assert found[inside].mean() > 0.8
        assert not found[~inside].any()
    assert (t[inside] < 0).all()
    d = nib.load(files['d']).get_fdata()
    assert d[inside].mean() < -1
    assert result['contrasts'][1]['significant'] == {'fwe': 0, 'tfce': 0, 'fdr': 0}


def test_effect_in_units_of_the_maps(study, result):
    """The map of coefficients is that of least squares; the t map too, to 1e-4."""
    table, paths = study
    matrix = np.stack(
        [np.ones(40), table['group'] == 'patient', table['age'], table['tiv'] / 1e6], axis=1
    ).astype(float)
    values = np.stack([nib.load(path).get_fdata() for path in paths]).reshape(40, -1)
    beta, rss, *_ = np.linalg.lstsq(matrix, values, rcond=None)
    variance = np.linalg.inv(matrix.T @ matrix)[1, 1] * rss / 36
    mask = nib.load(result['files']['mask']).get_fdata().astype(bool)
    files = result['contrasts'][0]['files']
    effect = nib.load(files['effect']).get_fdata()[mask]
    expected = beta[1].reshape(SHAPE)[mask]
    assert np.abs(effect - expected).max() < 1e-4 * np.abs(expected).max()
    t = nib.load(files['t']).get_fdata()[mask]
    with np.errstate(invalid='ignore', divide='ignore'):
        expected = (beta[1] / np.sqrt(variance)).reshape(SHAPE)[mask]
    assert np.abs(t - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_table_of_clusters_says_where(result):
    """Peak in mm inside the planted place, with its region."""
    contrast = result['contrasts'][0]
    with open(contrast['table'], newline='') as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    row = next(row for row in rows if row['correction'] == 'fwe')
    assert row['direction'] == '-'
    assert row['region'] == 'Left-Hippocampus'
    assert float(row['size_mm3']) == int(row['voxels']) * 27
    voxel = np.linalg.inv(AFFINE) @ [float(row['x']), float(row['y']), float(row['z']), 1]
    assert all(cut.start <= v < cut.stop for cut, v in zip(LESION, voxel[:3], strict=True))
    assert float(row['p_fwe']) == pytest.approx(0.01)
    known = json.loads(contrast['table'].with_suffix('.json').read_text())
    assert set(row) == set(known)
    with open(result['contrasts'][1]['table'], newline='') as stream:
        assert list(csv.DictReader(stream, delimiter='\t')) == []


def test_the_sidecar_says_how(result):
    """Model, contrast, sessions, seed."""
    contrast = result['contrasts'][2]
    assert contrast['test'] == 'F'
    assert set(contrast['files']) >= {'f', 'etasq', 'logpfwe'}
    folder = contrast['table'].parent
    sidecar = json.loads((folder / f'contrast-{contrast["label"]}_statmap.json').read_text())
    assert sidecar['Model'] == '~ group + age + tiv'
    assert sidecar['Weights'] == [{'group[T.patient]': 1.0}, {'age': 1.0}]
    assert sidecar['NumberOfSessions'] == 40
    assert sidecar['Seed'] == 4
    assert set(sidecar['Statistics']) == set(contrast['files'])
    design = pd.read_csv(result['files']['design'], sep='\t')
    assert list(design.columns) == ['session', *result['columns']]
    assert design['session'][3] == 'sub-03'
    for picture in (contrast['figure'], result['files']['design_figure']):
        assert picture.read_bytes().startswith(b'\x89PNG')


def test_the_same_again_with_more_jobs(study, result, tmp_path):
    """Every file has the same bytes."""
    settings = Settings(
        '~ group + age + tiv', ('group[T.patient]',), n_permutations=99, seed=4, n_jobs=3
    )
    again = analyse(study[0], study[1], settings, out_dir=tmp_path)
    for name, path in again['contrasts'][0]['files'].items():
        assert path.read_bytes() == result['contrasts'][0]['files'][name].read_bytes(), name


def test_sessions_that_are_left_out_have_a_reason(study, tmp_path):
    """No value, no map, another grid, a broken file, values that are not finite."""
    table, paths = study[0].copy(), list(study[1])
    table.loc[1, 'age'] = np.nan
    paths[2] = None
    paths[3] = _save(np.ones((4, 4, 4)), tmp_path / 'small.nii')
    broken = tmp_path / 'broken.nii'
    broken.write_bytes(paths[4].read_bytes()[:5000])
    paths[4] = broken
    paths[5] = _save(np.full(SHAPE, np.nan), tmp_path / 'nan.nii')
    settings = Settings('~ group + age', n_permutations=0)
    found = analyse(table, paths, settings, out_dir=tmp_path / 'out', reasons={0: 'failed: odd'})
    reasons = {entry['session']: entry['reason'] for entry in found['dropped']}
    assert reasons['sub-00'] == 'failed: odd'
    assert reasons['sub-01'] == 'no value for age'
    assert reasons['sub-02'] == 'no map'
    assert 'another grid (4x4x4)' in reasons['sub-03']
    assert 'cannot read broken.nii' in reasons['sub-04']
    assert 'not finite' in reasons['sub-05']
    assert found['n'] == 34
    assert [contrast['name'] for contrast in found['contrasts']] == ['group[T.patient]', 'age']
    assert set(found['contrasts'][0]['significant']) == {'fdr'}
    assert any('6 sessions are not in the model' in note for note in found['notes'])
    assert 'permutation' not in found['methods']


def test_several_sessions_of_a_subject_are_refused_or_chosen_from(study, tmp_path):
    """They are not independent."""
    table = study[0].copy()
    table['session_id'] = 'ses-1'
    table.loc[5, ['participant_id', 'session_id']] = ['sub-04', 'ses-2']
    with pytest.raises(UsageError, match=r'1 of 39 subjects .*sub-04_ses-1, sub-04_ses-2.*choose'):
        analyse(table, study[1], Settings('~ age'), out_dir=tmp_path)
    for choice, left in (('first', 'sub-04_ses-2'), ('last', 'sub-04_ses-1')):
        settings = Settings('~ age', n_permutations=0, repeated=choice)
        found = analyse(table, study[1], settings, out_dir=tmp_path)
        assert found['n'] == 39
        assert found['dropped'] == [
            {'session': left, 'reason': f'not the {choice} session of its subject'}
        ]
    with pytest.raises(UsageError, match='repeated sessions'):
        Settings('~ age', repeated='all')


def test_a_threshold_that_leaves_nothing(study, tmp_path):
    """Says so."""
    with pytest.raises(UsageError, match='no voxel is above the threshold of 5'):
        analyse(study[0], study[1], Settings('~ age', threshold=5.0), out_dir=tmp_path)
    with pytest.raises(UsageError, match='no session can enter the model: no map'):
        analyse(study[0], [None] * 40, Settings('~ age'), out_dir=tmp_path)


def test_masks_by_mean_and_by_every_map(study):
    """The second is the smaller; voxels without variance are in neither."""
    paths = study[1]
    stack = np.stack([nib.load(path).get_fdata() for path in paths])
    mean, mask, affine, problems = mean_map(paths, threshold=0.1, n_jobs=2)
    assert np.allclose(mean, stack.mean(0), atol=1e-6)
    assert np.array_equal(mask, stack.mean(0) > 0.1)
    every = mean_map(paths, threshold=0.1, every=True)[1]
    assert np.array_equal(every, stack.min(0) > 0.1)
    assert problems == {}
    matrix = load_matrix(paths, mean, mask, affine)
    assert np.allclose(matrix.values, stack[:, mask] - mean[mask], atol=1e-6)


def test_a_large_matrix_goes_to_a_file(study, tmp_path, monkeypatch):
    """The file is gone as soon as it is open."""
    monkeypatch.setattr('bids_app.group.maps.IN_MEMORY_BYTES', 1000)
    mean, mask, affine, _ = mean_map(study[1])
    matrix = load_matrix(study[1], mean, mask, affine, work_dir=tmp_path)
    assert isinstance(matrix.values, np.memmap)
    assert list(tmp_path.iterdir()) == []
    assert np.allclose(matrix.values.mean(0), 0, atol=1e-6)


def test_maps_of_the_rarer_grid_are_left_out(study, tmp_path):
    """Even if the first one is of that grid."""
    other = _save(np.ones(SHAPE), tmp_path / 'other.nii', np.diag([2.0, 2, 2, 1]))
    assert list(check_maps([other, *study[1][:3], tmp_path / 'none.nii'])) == [4, 0]


def test_clusters_by_sign_and_neighbourhood():
    """Voxels that share an edge belong together, those of another sign or corner do not."""
    statistic = np.zeros((6, 6, 6))
    statistic[1, 1, 1], statistic[1, 2, 2] = 3.0, 5.0
    statistic[2, 3, 3], statistic[1, 2, 1] = 4.0, -9.0
    rows = find_clusters(statistic != 0, statistic, np.diag([2.0, 2, 2, 1]), {})
    assert [(row['peak'], row['voxels']) for row in rows] == [(-9.0, 1), (5.0, 2), (4.0, 1)]
    assert (rows[1]['x'], rows[1]['y'], rows[1]['z']) == (2.0, 4.0, 4.0)
    assert rows[1]['size_mm3'] == 16
    assert [row['cluster'] for row in rows] == [1, 2, 3]


def test_regions_near_a_peak():
    """The nearest within 3 mm, none beyond; shares of a cluster in percent."""
    labels = np.zeros((10, 10, 10), int)
    labels[4] = 7
    atlas = RegionMap('test', labels, np.eye(4), {})
    assert atlas.name_at(np.array([6.0, 5, 5])) == 'label 7'
    assert atlas.name_at(np.array([8.0, 5, 5])) == ''
    points = np.array([[4.0, 1, 1], [4, 2, 2], [5, 1, 1], [50, 1, 1]])
    assert atlas.shares(points) == 'label 7 50 %'


def test_a_study_of_derivatives(study, tmp_path, monkeypatch):
    """Sessions that are not done keep their reason; the maps are named in the sidecar."""
    table, paths = study
    sessions = tuple(
        SessionRecord(name[4:], None, name, 'failed' if number == 7 else 'done',
                      'the brain was not found' if number == 7 else '')
        for number, name in enumerate(table['participant_id'])
    )  # fmt: skip
    derivatives = Study(tmp_path, None, sessions)
    monkeypatch.setattr(Study, 'table', lambda self: table)
    monkeypatch.setattr(
        Study, 'map_choice', lambda self, *asked: ('vbm_gm', 6.0, 'MNI152NLin2009aSym', '1p5')
    )
    monkeypatch.setattr(
        Study, 'maps',
        lambda self, *asked: [None if n == 7 else path for n, path in enumerate(paths)],
    )  # fmt: skip
    found = run_glm(
        derivatives, '~ age', out_dir=tmp_path / 'out', n_permutations=0, threshold=0.2
    )
    assert found['dropped'] == [{'session': 'sub-07', 'reason': 'failed: the brain was not found'}]
    assert 'modulated grey matter maps, smoothed with 6 mm FWHM,' in found['methods']
    sidecar = json.loads((tmp_path / 'out' / 'contrast-age_statmap.json').read_text())
    assert (sidecar['Maps'], sidecar['FWHM'], sidecar['AbsoluteThreshold']) == ('vbm_gm', 6.0, 0.2)
    monkeypatch.setattr(Study, 'map_choice', lambda self, *asked: None)
    with pytest.raises(UsageError, match='no finished session has a map vbm_wm with .* 8 mm'):
        run_glm(derivatives, '~ age', out_dir=tmp_path, map_kind='vbm_wm', fwhm=8.0)


def test_structures_of_the_template_have_names():
    """The right and the left hippocampus are where they are in MNI space."""
    atlas = template_regions('MNI152NLin2009aSym')[0]
    assert atlas.name_at(np.array([-26.0, -18, -18])) == 'Left-Hippocampus'
    assert atlas.name_at(np.array([26.0, -18, -18])) == 'Right-Hippocampus'
    assert template_regions('MNIPediatricAsym') == []
