# SPDX-License-Identifier: Apache-2.0
"""Quality measures where the answer is known, and verdicts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bids_app.morphometry import qc
from bids_app.morphometry.checks import LIMITS, assess, qc_columns, qc_table
from bids_app.morphometry.volumes import write_table

AFFINE = np.diag([-3.0, 3.0, 3.0, 1.0])
MEANS = {'gm': 80.0, 'wm': 120.0, 'csf': 30.0}
NOISE = 4.0


@pytest.fixture(scope='module')
def head():
    """Concentric head in air with known intensities: (image, probabilities, mask)."""
    rng = np.random.default_rng(0)
    shape = (72, 80, 72)
    radius = np.sqrt(sum(((axis - (n - 1) / 2) * 3) ** 2 for axis, n in
                         zip(np.indices(shape), shape, strict=True)))  # fmt: skip
    probabilities = {
        'wm': (radius < 50).astype(np.float32),
        'gm': ((radius >= 50) & (radius < 66)).astype(np.float32),
        'csf': ((radius >= 66) & (radius < 70)).astype(np.float32),
    }
    mask = radius < 70
    image = sum(MEANS[name] * probabilities[name] for name in MEANS)
    image = image + np.where((radius >= 76) & (radius < 84), 90.0, 0)
    # Magnitude of a complex image: Gaussian in tissue, Rayleigh in air.
    noise = rng.normal(0, NOISE, (2, *shape))
    return np.hypot(image + noise[0], noise[1]).astype(np.float32), probabilities, mask


# -- formulas --------------------------------------------------------------------------------


def test_formulas_on_numbers():
    assert qc.snr(100, 5, 5) == pytest.approx(20 / math.sqrt(5 / 4))
    assert qc.snr_dietrich(100, 5) == pytest.approx(100 * math.sqrt(2 - math.pi / 2) / 5)
    assert qc.cnr(120, 80, 3, 4, 0) == pytest.approx(8)
    assert qc.cnr(120, 80, 2, 3, 6) == pytest.approx(40 / 7)
    assert qc.cnr(120, 80, 3, 4, math.nan) == pytest.approx(8)
    assert qc.cjv(120, 80, 3, 5) == pytest.approx(0.2)
    for value in (qc.snr(100, 0, 9), qc.snr(100, 1, 1), qc.snr_dietrich(100, 0),
                  qc.cnr(1, 1, 0, 0, 0), qc.cjv(5, 5, 1, 1)):  # fmt: skip
        assert math.isnan(value)


def test_efc_limits():
    assert qc.efc(np.full((8, 8, 8), 3.0)) == pytest.approx(1)
    single = np.zeros((8, 8, 8))
    single[4, 4, 4] = 7
    assert qc.efc(single) == pytest.approx(0)
    # Half of the voxels equally bright: sqrt(N / 2) log(sqrt(N / 2)) / (sqrt(N) log(sqrt(N))).
    half = np.zeros((32, 16))
    half[:16] = 1
    expected = math.sqrt(256) * math.log(16) / (math.sqrt(512) * math.log(math.sqrt(512)))
    assert qc.efc(half) == pytest.approx(expected)
    assert qc.efc(5 * half) == pytest.approx(expected)
    assert math.isnan(qc.efc(np.zeros((4, 4, 4))))


def test_reasons_give_large_values_in_full():
    (reason,) = assess({'tiv_ml': 2345.6})['reasons']
    assert reason.startswith('tiv_ml is 2346 (expected')


def test_efc_of_values_at_the_end_of_single_precision():
    image = np.full((8, 8, 8), 1e4, np.float32)
    image[0] = np.finfo(np.float32).smallest_subnormal
    assert 0 < qc.efc(image) < 1


def test_fber():
    image = np.array([[[3.0, -3.0, 1.0, 1.0, 0.0]]])
    foreground = np.array([[[1, 1, 0, 0, 0]]], bool)
    assert qc.fber(image, foreground, ~foreground) == pytest.approx(9 / (2 / 3))
    assert math.isnan(qc.fber(image, foreground, foreground & False))
    assert math.isnan(qc.fber(image * foreground, foreground, ~foreground))


def test_fuzzy_overlap():
    first, second = np.array([1, 0.5, 0.0]), np.array([0.5, 0.5, 0.5])
    assert qc.fuzzy_overlap(first, second) == pytest.approx(1 / 2)
    assert qc.fuzzy_overlap(first, first) == 1
    assert qc.fuzzy_overlap(first, 1 - np.ceil(first)) == 0
    assert math.isnan(qc.fuzzy_overlap(first * 0, first * 0))


def test_border_contact():
    mask = np.zeros((10, 12, 14), bool)
    mask[2:8, 3:9, 4:12] = True
    assert qc.border_contact(mask) == 0
    mask[2:5, 3:9, 12:] = True
    assert qc.border_contact(mask) == pytest.approx(0.5)
    assert qc.border_contact(mask & False) == 0


def test_intensity_posteriors():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 3000)
    values = np.array([10.0, 50.0, 90.0])[truth] + rng.normal(0, 3, 3000)
    hard = np.eye(3)[truth].T
    posterior = qc.intensity_posteriors(values, hard)
    np.testing.assert_allclose(posterior.sum(axis=0), 1)
    np.testing.assert_allclose(posterior, hard, atol=0.01)
    # A segmentation that has nothing to do with the image is told apart.
    shuffled = hard[:, rng.permutation(3000)]
    wrong = qc.intensity_posteriors(values, shuffled)
    assert qc.fuzzy_overlap(wrong[0], shuffled[0]) < 0.3
    # A tissue without any voxel keeps probability 0.
    posterior = qc.intensity_posteriors(values, hard * [[1], [1], [0]])
    assert not posterior[2].any()


# -- a head ----------------------------------------------------------------------------------


def test_measures_of_a_known_head(head):
    image, probabilities, mask = head
    found = qc.qc_measures(image, probabilities, mask, AFFINE, entropy=np.full(image.shape, 0.1))
    assert found['snr_wm'] == pytest.approx(120 / NOISE, rel=0.03)
    assert found['snr_gm'] == pytest.approx(80 / NOISE, rel=0.03)
    assert found['snrd_wm'] == pytest.approx(120 / NOISE, rel=0.03)
    assert found['cjv'] == pytest.approx(2 * NOISE / 40, rel=0.03)
    air = NOISE * math.sqrt(2 - math.pi / 2)
    assert found['cnr'] == pytest.approx(40 / math.sqrt(2 * NOISE**2 + air**2), rel=0.03)
    # The brightest 0.05 % of all voxels are the brightest 1.1 % of white matter: 2.3 sigma.
    assert found['wm2max'] == pytest.approx(120 / (120 + 2.3 * NOISE), rel=0.01)
    assert found['wm_gm_ratio'] == pytest.approx(1.5, rel=0.01)
    assert found['overlap_mean'] > 0.97
    assert found['tiv_ml'] == pytest.approx(4 / 3 * math.pi * 7**3, rel=0.01)
    assert found['brain_volume_ml'] == pytest.approx(4 / 3 * math.pi * 6.6**3, rel=0.01)
    assert found['icvs_wm'] == pytest.approx((50 / 70) ** 3, rel=0.02)
    assert found['mean_entropy'] == pytest.approx(0.1)
    assert found['border_contact'] == 0
    assert 0.2 < found['efc'] < 0.9
    assert found['fber'] > 100


def test_air_is_found(head):
    image, _, mask = head
    heads, air = qc.head_and_air(image, AFFINE, mask)
    # Brain, gap and scalp make a ball of 84 mm.
    assert heads.sum() * 27 == pytest.approx(4 / 3 * math.pi * 84**3, rel=0.02)
    assert not (heads & air).any()
    assert image[air].max() < 8 * NOISE
    assert air.mean() > 0.2


def test_zero_background_gives_not_available(head):
    image, probabilities, mask = head
    stripped = np.where(mask, image, 0)
    found = qc.qc_measures(stripped, probabilities, mask, AFFINE)
    for name in ('snrd_wm', 'snrd_total', 'efc', 'fber', 'mean_entropy'):
        assert math.isnan(found[name]), name
    for name in ('snr_wm', 'cnr', 'cjv', 'wm2max', 'overlap_mean'):
        assert math.isfinite(found[name]), name
    assert not any(math.isinf(value) for value in found.values())
    assert assess(found)['status'] == 'ok'


@pytest.mark.parametrize('case', ['empty', 'no_csf', 'constant', 'negative'])
def test_degenerate_input_never_raises(head, case, tmp_path):
    image, probabilities, mask = head
    if case == 'empty':
        probabilities = {name: 0 * value for name, value in probabilities.items()}
        mask = mask & False
    elif case == 'no_csf':
        probabilities = {**probabilities, 'csf': 0 * probabilities['csf']}
    elif case == 'constant':
        image = np.full_like(image, 5)
    else:
        image = image - 200
    with np.errstate(all='raise', under='ignore'):
        found = qc.qc_measures(
            image, probabilities, mask, AFFINE, entropy=0 * image, structure_volumes={}
        )
    assert not any(math.isinf(value) for value in found.values())
    verdict = assess(found)
    text = write_table(qc_table(found, verdict), tmp_path / 'qc.tsv').read_text()
    assert 'nan' not in text
    assert 'inf' not in text.replace('information', '')
    if case == 'empty':
        assert verdict['status'] == 'fail'


# -- verdicts --------------------------------------------------------------------------------

GOOD = {
    'brain_volume_ml': 1150.0, 'tiv_ml': 1500.0, 'gm_wm_ratio': 1.4, 'icvs_csf': 0.2,
    'border_contact': 0.0, 'hemisphere_asymmetry': 1.0, 'missing_structures': 0.0,
    'mean_entropy': 0.1, 'confidence': 0.97, 'wm_gm_ratio': 1.4, 'cjv': 0.4, 'cnr': 3.0,
    'snr_total': 9.0, 'overlap_mean': 0.8, 'efc': 0.6, 'fber': 300.0, 'wm2max': 0.65,
}  # fmt: skip


def test_good_scan_passes():
    verdict = assess(GOOD)
    assert verdict['status'] == 'ok'
    assert verdict['reasons'] == []
    assert {check['name'] for check in verdict['checks']} == {limit.name for limit in LIMITS}
    assert json.loads(json.dumps(verdict)) == verdict


@pytest.mark.parametrize(
    ('name', 'value', 'status', 'word'),
    [
        ('brain_volume_ml', 700, 'warn', 'missing'),
        ('brain_volume_ml', 300, 'fail', 'missing'),
        ('brain_volume_ml', 2500, 'fail', 'more than the brain'),
        ('border_contact', 0.2, 'warn', 'field of view'),
        ('border_contact', 0.9, 'fail', 'field of view'),
        ('hemisphere_asymmetry', -12, 'warn', 'left hemisphere'),
        ('hemisphere_asymmetry', 40, 'fail', 'right hemisphere'),
        ('mean_entropy', 0.6, 'fail', 'unsure'),
        ('confidence', 0.3, 'fail', 'recognise'),
        ('wm_gm_ratio', 0.7, 'warn', 'not a T1w'),
        ('overlap_mean', 0.1, 'fail', 'do not fit'),
        ('efc', 0.95, 'warn', 'movement'),
        ('missing_structures', 2, 'warn', 'not found'),
    ],
)
def test_every_kind_of_concern(name, value, status, word):
    verdict = assess({**GOOD, name: float(value)})
    assert verdict['status'] == status
    assert len(verdict['reasons']) == 1
    assert word in verdict['reasons'][0]
    assert name in verdict['reasons'][0]
    (check,) = [check for check in verdict['checks'] if check['status'] != 'ok']
    assert check['name'] == name
    assert check['threshold'] in check['reason']


def test_worst_comes_first_and_notes_count():
    verdict = assess(
        {**GOOD, 'efc': 0.95, 'confidence': 0.1}, [('warn', 'the head seems upside down')]
    )
    assert verdict['status'] == 'fail'
    assert verdict['reasons'][0].startswith('confidence')
    assert 'the head seems upside down' in verdict['reasons']
    assert assess(GOOD, [('warn', 'turned')])['status'] == 'warn'
    assert assess({**GOOD, 'efc': math.nan})['status'] == 'ok'


def test_limits_are_nested():
    for limit in LIMITS:
        assert limit.bearable[0] <= limit.ok[0] < limit.ok[1] <= limit.bearable[1], limit.name


def test_every_column_is_explained(head):
    image, probabilities, mask = head
    found = qc.qc_measures(
        image, probabilities, mask, AFFINE, entropy=0 * image,
        structure_volumes={3: 1.0, 42: 1.0}, confidence=1.0,
    )  # fmt: skip
    table = qc_table(found, assess(found))
    columns = qc_columns(table.columns)
    assert list(columns) == list(table.columns)
    assert all(entry['Description'] for entry in columns.values())
    assert {limit.name for limit in LIMITS} <= set(table.columns)


def test_manual_segmentations_pass(data_dir):
    """Skull-stripped scans with their manual labels: nothing to complain about."""
    nib = pytest.importorskip('nibabel')
    path = data_dir / 'miccai2012' / 'sub-1001_T1w.nii.gz'
    if not path.is_file():
        pytest.skip(f'{path} is missing')
    scan, labels = nib.load(path), nib.load(str(path).replace('T1w', 'labels'))
    labels = np.asarray(labels.dataobj)
    wm = np.isin(labels, (35, 40, 41, 44, 45, 61, 62, 69))
    csf = np.isin(labels, (4, 11, 46, 49, 50, 51, 52))
    maps = {'wm': wm, 'csf': csf, 'gm': (labels > 0) & ~wm & ~csf}
    maps = {name: value.astype(np.float32) for name, value in maps.items()}
    data = scan.get_fdata(dtype=np.float32)
    found = qc.qc_measures(data, maps, labels > 0, scan.affine)
    assert assess(found)['status'] == 'ok'
    assert 0.3 < found['cjv'] < 0.6
    assert math.isnan(found['fber'])
