# SPDX-License-Identifier: Apache-2.0
"""Figures in template space."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_app.reports import charts
from bids_app.reports.drawing import diverging, ratio_picture
from bids_app.reports.planes import Volume, load_volume
from bids_app.reports.spaces import (
    SpaceGallery,
    TemplateImages,
    load_tissues,
    scale_top,
    template_frame,
)


@pytest.fixture(scope='module')
def gallery(space) -> SpaceGallery:
    template = space['template']
    images = TemplateImages(load_volume(template['t1w']), *load_tissues(template['tissues']))
    return SpaceGallery(0, space['space'], images, n_cuts=3, spacing=3.0)


def pixels(svg: str, mode: str = 'RGBA') -> np.ndarray:
    """Decode the first picture of an SVG."""
    found = re.search(r'data:image/\w+;base64,([^"]+)', svg).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert(mode))


def test_ratios_have_a_symmetric_logarithmic_scale():
    values = np.array([[1.0, 2.0, 0.5, 8.0, 0.0, 1.0]])
    inside = np.array([[True] * 5 + [False]])
    data = ratio_picture(values, inside)
    picture = np.asarray(Image.open(io.BytesIO(data)).convert('RGBA'))[0]
    middle, low, high = (diverging(np.array([place]))[0] for place in (0.5, 0, 1))
    assert (picture[:, 3] == [255] * 5 + [0]).all()
    assert (picture[0, :3] == middle).all()
    for number, color in ((1, high), (2, low), (3, high), (4, low)):
        assert (picture[number, :3] == color).all()
    blue, red = diverging(np.array([0.2, 0.8])).astype(int)
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_tissues_may_be_bytes_or_probabilities(tmp_path):
    shares = np.zeros((2, 2, 2, 3), np.float32)
    shares[0, 0, 0] = (0.4, 0.4, 0.2)
    shares[1, 1, 1] = (0, 0, 1)
    for name, data in (('f', shares), ('b', np.rint(shares * 255).astype(np.uint8))):
        path = tmp_path / f'{name}.nii.gz'
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)
        inside, brain, white = load_tissues(path)
        assert inside.data[0, 0, 0] == pytest.approx(1)
        assert brain.data[0, 0, 0] == pytest.approx(0.8)
        assert white.data[0, 0, 0] == pytest.approx(0.4)
        assert inside.data[1, 1, 1] == pytest.approx(1)
        assert brain.data[1, 1, 1] == 0
    nib.save(nib.Nifti1Image(shares[..., 0], np.eye(4)), path)
    with pytest.raises(ValueError, match='three tissue maps'):
        load_tissues(path)


def test_the_frame_holds_the_brain_and_ten_millimetres(gallery):
    frame = template_frame(gallery.images, 3)
    voxels = np.argwhere(gallery.images.inside.data > 0.5)
    affine = gallery.images.inside.affine
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    assert (np.abs(world.min(0) - frame.low - 10) <= 1.5 + 1e-6).all()
    assert (np.abs(frame.high - 10 - world.max(0)) <= 1.5 + 1e-6).all()
    assert frame.cuts['axial'].shape == (3,)
    without = template_frame(TemplateImages(gallery.images.t1w), 3)
    assert (without.high - without.low > 100).all()


@pytest.mark.parametrize(('high', 'top'), [(0.4, 0.5), (0.9, 1), (1.3, 1.5), (2.7, 3), (50, 6)])
def test_scale_top_is_round(high, top):
    data = np.linspace(0, high, 1000, dtype=np.float32).reshape(10, 10, 10)
    assert scale_top(Volume(data, np.eye(4))) == top


def test_registration_figure(gallery, space):
    figure, document = gallery.registration(load_volume(space['files']['std_preproc']))
    assert [plane for plane, _ in figure['rows']] == ['axial', 'coronal', 'sagittal']
    assert len(figure['second']) == 3
    definitions = gallery.definitions() + figure['pictures']
    ids = re.findall(r' id="([^"]+)"', definitions)
    assert len(ids) == len(set(ids)) == 9
    for _, row in figure['rows'] + figure['second']:
        assert set(re.findall(r'href="#([^"]+)"', row)) <= set(ids)
        assert 'data:' not in row  # embedded once, referred to everywhere
        assert '>L<' in row or '>P<' in row
    root = ElementTree.fromstring(document)
    assert root.tag.endswith('svg')
    assert '#borders' not in document
    assert document.count('data:image/jpeg') == 6
    assert 'prefers-reduced-motion' in document


def test_borders_are_those_of_the_template(gallery):
    """The contour of white matter covers the middle of the axial row, not its corners."""
    text = gallery.definitions()
    assert text.count('border') + text.count('White | grey') > 0
    numbers = re.search(r'id="borders-0-axial">.*?d="M(\d+) (\d+)', text, re.S)
    assert numbers is not None
    width, height = gallery.rows['axial'].size
    assert 0 < int(numbers[1]) / 10 < width
    assert 0 < int(numbers[2]) / 10 < height


def test_density_shows_left_on_the_left(gallery):
    """A map that is bright at the left of the patient is bright in the left half of a slice."""
    inside = gallery.images.inside
    x = inside.affine[0, 0] * np.arange(inside.data.shape[0]) + inside.affine[0, 3]
    left = np.broadcast_to((x < 0)[:, None, None], inside.data.shape) * inside.data
    figure, document = gallery.density(
        Volume(left.astype(np.float32), inside.affine), 'map', 'A <map>', 'caption'
    )
    picture = pixels(figure['rows'][0][1])[..., 3]
    tile = gallery.rows['axial'].tile[0]
    middle = picture[:, tile + 4 : 2 * tile + 4]
    half = tile // 2
    assert middle[:, : half - 2].sum() > 100 * max(int(middle[:, half + 2 :].sum()), 1)
    assert figure['bar_ticks'] == ('0', '0.5', '1')
    assert 'mm\u00b3' in document
    assert 'linearGradient' in document
    ElementTree.fromstring(document)


def test_jacobian_is_coloured_inside_the_brain_only(gallery, space):
    volume = load_volume(space['files']['jacobian'])
    figure, document = gallery.jacobian(volume, 'jacobian', 'caption')
    row = gallery.rows['axial']
    alpha = pixels(figure['rows'][0][1])[..., 3]
    assert (alpha > 0).sum() == (row.joined(gallery.images.inside) > 0.5).sum()
    assert figure['bar_ticks'][0] == '0.5'
    assert figure['bar_ticks'][-1] == '2'
    ElementTree.fromstring(document)


def test_values_inside(gallery, space):
    volume = load_volume(space['files']['jacobian'])
    ratios = gallery.values_inside(volume)
    expected = volume.data[gallery.images.inside.data > 0.5]
    assert np.median(ratios) == pytest.approx(np.median(expected), rel=0.01)
    assert ratios.size * 8 == pytest.approx(expected.size * 27, rel=0.05)


def test_histogram_of_ratios():
    ratios = np.exp(np.random.default_rng(0).normal(0, 0.2, 5000))
    svg = charts.ratio_histogram(ratios)
    ElementTree.fromstring(svg)
    low, middle, high = np.percentile(ratios, (1, 50, 99))
    for value in (low, middle, high):
        assert f'{value:.2f}' in svg
    assert charts.ratio_histogram(ratios[:5]) == ''
    ElementTree.fromstring(charts.ratio_histogram(np.full(200, -1.0)))  # folded everywhere
