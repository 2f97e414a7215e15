# SPDX-License-Identifier: Apache-2.0
"""What the page shows of T2w and FLAIR, and of lesions."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app.morphometry.lesions import find_lesions, lesion_table
from bids_app.morphometry.volumes import write_table
from bids_app.reports.session import SessionReport, write_report

SHAPE = (40, 48, 40)
AFFINE = np.array([[-4.0, 0, 0, 78], [0, 4, 0, -94], [0, 0, 4, -78], [0, 0, 0, 1]])
MEASURES = {
    'similarity_header': 1.04, 'similarity': 1.11, 'dice': 0.95, 'coverage': 0.99,
    'shift_mm': 2.5, 'rotation_degrees': 1.25, 'displacement_mm': 3.0, 'seconds': 2.0,
    'start': 'header',
}  # fmt: skip


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A head of shells: brain, white matter, ventricle; T1w, FLAIR and a lesion."""
    folder = tmp_path_factory.mktemp('contrasts')
    world = AFFINE[:3, :3] @ np.indices(SHAPE).reshape(3, -1) + AFFINE[:3, 3:]
    radius = np.linalg.norm(world / [[60], [75], [60]], axis=0).reshape(SHAPE)
    dseg = np.select([radius < 0.25, radius < 0.7, radius < 1], [3, 2, 1], 0)
    lesion = np.linalg.norm(world - [[25], [10], [5]], axis=0).reshape(SHAPE) < 9
    images = {
        'preproc': np.select([dseg == 3, dseg == 2, dseg == 1], [30.0, 120, 80], 20) - 30 * lesion,
        'FLAIR': np.select([dseg == 3, dseg == 2, dseg == 1], [20.0, 90, 110], 15) + 90 * lesion,
        'brain_mask': radius < 1,
        'dseg': dseg,
        'lesion_mask': lesion,
    }
    paths = {}
    for name, data in images.items():
        paths[name] = str(folder / f'{name}.nii.gz')
        kind = np.float32 if name in ('preproc', 'FLAIR') else np.uint8
        nib.save(nib.Nifti1Image(data.astype(kind), AFFINE), paths[name])
    found = find_lesions(lesion.astype(np.float32), AFFINE, dseg == 3)
    paths['lesion_morph'] = str(write_table(lesion_table(found, wm=5e5), folder / 'lesions.tsv'))
    return paths


@pytest.fixture
def report(files):
    flair = files['FLAIR']
    return SessionReport(
        'sub-01',
        files={key: path for key, path in files.items() if key != 'FLAIR'},
        contrasts=[
            {'name': 'FLAIR', 'status': 'ok', 'reasons': [], 'measures': MEASURES, 'file': flair,
             'notes': ['a <note> on the header']},
            {'name': 'T2w', 'status': 'doubtful', 'reasons': ['dice is 0.61'],
             'measures': {**MEASURES, 'dice': 0.61}},
        ],
    )  # fmt: skip


def test_page(parse, report, tmp_path):
    path = write_report(report, tmp_path / 'sub-01.html')
    text = path.read_text()
    page = parse(text)
    assert not page.stack
    assert len(page.ids) == len(set(page.ids))
    used = [values['href'] for tag, values in page.tags if tag == 'use']
    assert {address[1:] for address in used} <= set(page.ids)
    assert '#contrast-FLAIR-axial' in used
    labels = [values['for'] for tag, values in page.tags if tag == 'label' and 'for' in values]
    assert set(labels) <= set(page.ids)
    assert {'contrasts', 'lesions'} <= set(page.ids)
    for words in (
        'Other contrasts', 'FLAIR on the T1w', 'a &lt;note&gt; on the header', 'not used',
        'the registration to the T1w is doubtful', 'dice is 0.61', 'the brains do not lie',
        'White-matter hyperintensities', 'Periventricular', 'Deep', 'On the FLAIR',
    ):  # fmt: skip
        assert words in text, words
    assert 'could not be shown' not in text
    figures = {file.name for file in (tmp_path / 'sub-01' / 'figures').iterdir()}
    assert {'sub-01_desc-preproc_FLAIR.svg', 'sub-01_desc-wmh_mask.svg'} <= figures
    assert 'sub-01_desc-preproc_T2w.svg' not in figures


def test_documents_need_no_other_file(parse, report, tmp_path):
    write_report(report, tmp_path / 'sub-01.html')
    for name in ('desc-preproc_FLAIR', 'desc-wmh_mask'):
        page = parse((tmp_path / 'sub-01' / 'figures' / f'sub-01_{name}.svg').read_text())
        assert page.loaded
        assert all(address.startswith('data:') for address in page.loaded)


def test_lesions_on_the_reference_where_there_is_no_flair(parse, report, tmp_path):
    report.contrasts, report.reference = [], 'FLAIR'
    text = write_report(report, tmp_path / 'sub-01.html').read_text()
    page = parse(text)
    used = [values['href'] for tag, values in page.tags if tag == 'use']
    assert {address[1:] for address in used} <= set(page.ids)
    assert 'Other contrasts' not in text
    assert 'On the FLAIR.' in text


def test_a_file_that_cannot_be_read_is_a_note(report, tmp_path):
    bad = tmp_path / 'bad.nii.gz'
    bad.write_bytes(b'no image')
    report.contrasts[0]['file'] = str(bad)
    text = write_report(report, tmp_path / 'sub-01.html').read_text()
    assert 'The FLAIR on the T1w could not be shown' in text
    assert '0.950' in text  # the measures are there


def test_without_any_picture(report, tmp_path):
    report.files = {}
    text = write_report(report, tmp_path / 'sub-01.html').read_text()
    assert 'Overlap of the brains' in text
    assert 'White-matter hyperintensities' not in text
