# SPDX-License-Identifier: Apache-2.0
"""Tests of what the page shows of diffusion images."""

from __future__ import annotations

import contextlib
import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_app.bids.outputs import SYNTHESIZED
from bids_app.reports.dwi import diffusion_entry, diffusion_figure
from bids_app.reports.methods import cited, methods_text
from bids_app.reports.page import render_page
from bids_app.reports.session import SessionReport

SHAPE = (24, 28, 20)


@pytest.fixture
def files(tmp_path):
    """Write a ball of a brain on a diffusion grid."""
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = [-69, -81, -57]
    grid = np.indices(SHAPE) - (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    mask = np.sqrt((grid**2).sum(axis=0)) < 9
    ramp = mask * (100 + 5 * grid[0])
    images = {
        'dwi_b0': ramp, 'dwi_mean': ramp / 2, 'dwi_mask': mask, 'dwi_t1w': ramp,
        'dwi_reference': mask * (100 - 5 * grid[0]), 'dwi_dseg': np.where(mask, 2, 0),
        'dwi_colour': mask[..., None] * np.array([0.8, 0, 0]),
    }  # fmt: skip
    paths = {}
    for key, data in images.items():
        kind = np.uint8 if key in ('dwi_mask', 'dwi_dseg') else np.float32
        paths[key] = str(tmp_path / f'{key}.nii')
        nib.save(nib.Nifti1Image(data.astype(kind), affine), paths[key])
    table = tmp_path / 'regions.tsv'
    names = [f'{name}_{what}' for name in ('fa', 'md', 'ad', 'rd') for what in ('mean', 'sd')]
    table.write_text(
        '\t'.join(['index', 'name', 'voxels', *names]) + '\n'
        + '\t'.join(['10', 'Left-Thalamus', '40', '0.31', '0.05', *['0.8', '0.1'] * 3]) + '\n'
        + '\t'.join(['11', 'Left-Caudate', '0', *['n/a'] * 8]) + '\n'
    )  # fmt: skip
    return {**paths, 'dwi_regions': str(table)}


def content(files, **changes):
    measures = {'dice': 0.91, 'tissue_fit': 0.4, 'similarity': 1.2}
    return {
        'alone': False, 'status': 'ok', 'volumes': 8, 'shells': [[1000.0, 7]], 'directions': 7,
        'uncorrected': ['Distortion by susceptibility was not corrected.'], 'model': 'deepanat',
        'registrations': {
            'synthesized': {'status': 'ok', 'measures': measures},
            'b0': {'status': 'ok', 'measures': {**measures, 'dice': 0.85}},
        },
        'through': 'synthesized', 'apart_mm': 1.3, 'agreement': {'dwi_t1w': 0.7, 'dwi_fa': 0.3},
        'files': files, **changes,
    }  # fmt: skip


@contextlib.contextmanager
def strict(what):
    yield


def pictures(svg):
    """Decode the pictures of an SVG, from top to bottom."""
    import base64
    import re

    found = re.findall(r'base64,([A-Za-z0-9+/=]+)', svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert('RGB'))
            for one in found]  # fmt: skip


def test_all_images_on_the_same_slices(files):
    figure, document = diffusion_figure(files, 'T1w')
    assert [title for title, _ in figure['rows']] == [
        'mean b=0', 'mean DWI', 'FA by direction', 'synthesised T1w', 'measured T1w', 'difference'
    ]  # fmt: skip
    assert figure['key'] == [('Border of cerebral white matter', '#E69F00')]
    shown = pictures(document)
    assert len(shown) == 6
    assert len({picture.shape for picture in shown}) == 1
    middle = shown[2].shape[0] // 2
    red = shown[2][middle].max(axis=0)
    assert red[0] > 200
    assert red[1:].max() < 60
    # Synthesised minus measured grows to the right: from blue to red.
    difference = shown[5].astype(int)
    tile = difference.shape[1] // 7 * 3
    line = difference[middle, tile : tile + difference.shape[1] // 7]
    coloured = line[(line.sum(axis=1) > 0)]
    assert coloured[2, 2] > coloured[2, 0]
    assert coloured[-3, 0] > coloured[-3, 2]


def test_entry_with_registrations_and_regions(files):
    documents = {}
    entry = diffusion_entry(content(files), 'T1w', strict, documents)
    assert list(documents) == ['desc-diffusion_dwi']
    assert [(way['name'], way['used']) for way in entry['ways']] == [
        ('through the synthesised T1w', True), ('through b=0', False)
    ]  # fmt: skip
    assert entry['measures'][0]['values'] == ['0.910', '0.850']
    assert entry['regions'] == [
        {'name': 'Left-Thalamus', 'voxels': '40',
         'values': ['0.31 ± 0.05', *['0.80 ± 0.10'] * 3]}
    ]  # fmt: skip
    assert ('Shells', 'b = 1000 s/mm² (7 volumes)') in entry['facts']
    assert diffusion_entry({}, 'T1w', strict, documents) is None


def test_page_of_a_session_of_diffusion_alone(files):
    only = {key: files[key] for key in ('dwi_b0', 'dwi_mean', 'dwi_mask')}
    dwi = content(only, alone=True, no_tensor='4 different directions', registrations={},
                  agreement={}, notes=['partial coverage'])  # fmt: skip
    page, documents = render_page(SessionReport('sub-01', dwi=dwi))
    assert 'desc-diffusion_dwi' in documents
    for text in ('No tensor: 4 different directions', 'partial coverage',
                 'What was not corrected', 'susceptibility'):  # fmt: skip
        assert text in page
    assert 'could not be shown' not in page
    alone, _ = render_page(SessionReport('sub-01', dwi=content(files, alone=True)))
    assert 'There is no anatomical image.' in alone
    plain, _ = render_page(SessionReport('sub-01'))
    assert 'id="diffusion"' not in plain


def test_a_page_of_images_that_could_not_be_used(files):
    dwi = content({}, status='failed', reasons=['2 b-values, but 8 vectors'], registrations={})
    page, _ = render_page(SessionReport('sub-01', dwi=dwi))
    assert '2 b-values, but 8 vectors' in page
    assert 'could not be shown' not in page


def test_methods_text_tells_what_was_done_and_what_was_not():
    plain = methods_text('1', dwi={'synth_model': 'none', 'motion': 'none', 'denoise': 'none'})
    assert 'through b=0' in plain
    assert 'was not corrected' in plain
    assert '@mppca' not in plain
    assert '@deepanat' not in plain
    full = methods_text(
        '1', references=[SYNTHESIZED],
        dwi={'synth_model': 'deepanat', 'motion': 'rigid', 'denoise': 'mppca'},
    )  # fmt: skip
    assert full.count('There being no anatomical image, a T1-weighted image was synthesised') == 1
    assert 'registered rigidly through' not in full
    assert {'mppca', 'wls', 'fa', 'deepanat'} <= {reference.key for reference in cited(full)}
    both = methods_text('1', references=['T1w', SYNTHESIZED])
    assert 'Each T1-weighted image, or where there was no anatomical image a' in both
