# SPDX-License-Identifier: Apache-2.0
"""Marks and pictures: letters, contours, colours."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from bids_app.reports.charts import intensity_histogram
from bids_app.reports.drawing import (
    Row,
    contour_path,
    heat_picture,
    label_picture,
    magma,
    to_grey,
)
from bids_app.reports.figures import Gallery, entropy_top
from bids_app.reports.planes import Frame, Volume
from bids_app.reports.viewer import viewer_payload


def polygons(path: str) -> list[np.ndarray]:
    """Read path data made of ``M``, relative ``l`` and ``z`` back to points (pixels)."""
    result = []
    for piece in path.split('z')[:-1]:
        start, rest = re.fullmatch(r'M(.*?)l(.*)', piece).groups()
        first = np.array([float(v) for v in start.split()])
        steps = np.array([float(v) for v in re.findall(r'-?\d+', rest)]).reshape(-1, 2)
        result.append(np.vstack([first, first + np.cumsum(steps, 0)]) / 10)
    return result


def area(points: np.ndarray) -> float:
    """Area of a polygon."""
    x, y = points.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_contour_of_a_disc():
    row, column = np.mgrid[:80, :90]
    disc = ((row - 40) ** 2 + (column - 50) ** 2 < 20**2).astype(np.float32)
    (outline,) = polygons(contour_path(disc))
    assert abs(area(outline) - np.pi * 400) < 40
    # the centre of pixel (40, 50) is at 50.5, 40.5 in the picture
    np.testing.assert_allclose((outline.min(0) + outline.max(0)) / 2, (50.5, 40.5), atol=0.15)
    assert len(outline) < 130  # simplified


def test_contour_at_the_edge_is_closed_and_empty_mask_has_none():
    assert len(polygons(contour_path(np.ones((10, 12))))) == 1
    assert contour_path(np.zeros((10, 12))) == ''


def test_letters_are_on_the_sides_they_name():
    frame = Frame(
        np.full(3, -50.0), np.full(3, 50.0), 1.0,
        {plane: np.array([-20.0, 0.0, 20.0]) for plane in ('axial', 'coronal', 'sagittal')},
    )  # fmt: skip
    for plane, (first, second) in {
        'axial': 'LR', 'coronal': 'LR', 'sagittal': 'PA',
    }.items():  # fmt: skip
        marks = Row(frame, plane).marks()
        letters = re.findall(r'class="letter" x="(\d+)"[^>]*>(\w)<', marks)
        assert [letter for _, letter in letters] == [first, second] * 3
        places = [int(x) for x, _ in letters]
        assert places == sorted(places)
    notes = re.findall(r'>(x [^<]+)<', Row(frame, 'sagittal').marks())
    assert notes == ['x \u221220 (left)', 'x +0', 'x +20 (right)']


def test_label_picture_colours_and_transparency():
    labels = np.array([[0, 2, 41], [99, 2, 0]])
    picture = label_picture(labels, {2: '#102030', 41: '#FF0000'})
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert('RGBA'))
    assert tuple(pixels[0, 1]) == (16, 32, 48, 255)
    assert tuple(pixels[0, 2]) == (255, 0, 0, 255)
    assert pixels[0, 0, 3] == 0
    assert pixels[1, 0, 3] == 0  # a label without a colour


def test_heat_is_clear_at_zero_and_bright_at_the_top():
    picture = heat_picture(np.array([[0.0, 0.25, 0.5, 3.0]]), top=0.5)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert('RGBA')).astype(int)
    assert pixels[0, 0, 3] == 0
    assert pixels[0, 2].tolist() == pixels[0, 3].tolist()
    light = pixels[0, :, :3].sum(-1)
    assert light[0] < light[1] < light[2]
    np.testing.assert_array_equal(magma(np.array([0.0, 1.0]))[1], (252, 253, 191))


def test_grey_window():
    np.testing.assert_array_equal(to_grey(np.array([-1.0, 0, 5, 10, 20]), (0, 10)),
                                  [0, 0, 128, 255, 255])  # fmt: skip


def test_entropy_scale():
    for top, value in ((0.25, 0.2), (0.5, 0.4), (1.0, 0.9)):
        assert entropy_top(Volume(np.full((9, 9, 9), value), np.eye(4))) == top
    assert entropy_top(Volume(np.zeros((9, 9, 9)), np.eye(4))) == 0.25


def test_overlay_lies_on_the_left_of_the_picture_for_a_left_structure():
    """An LAS scan with a label in the left of the head: its colour is in the left half."""
    affine = np.diag([-4.0, 4, 4, 1])
    affine[:3, 3] = (78, -78, -78)
    data = np.zeros((40, 40, 40), np.float32)
    data[5:35, 5:35, 5:35] = 100
    labels = np.zeros(data.shape, np.int16)
    labels[24:32, 10:30, 10:30] = 17  # high first index is left in LAS
    scan = Volume(data, affine)
    gallery = Gallery(scan, Volume((data > 0).astype(np.uint8), affine), n_cuts=3)
    row = gallery.rows['axial']
    picture = row.joined(Volume(labels, affine), order=0)
    width = row.tile[0]
    middle = picture[:, width + 4 : 2 * width + 4]  # the second of three slices
    columns = np.nonzero((middle == 17).any(0))[0]
    assert len(columns)
    assert columns.max() < width / 2
    figure = gallery.structures(Volume(labels, affine))
    assert figure.key == [('17 Left-Hippocampus', '#DCD814')]


def test_viewer_volume_is_ras_and_labels_are_exact():
    import base64
    import zlib

    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = (40, -40, -40)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[30:36, 20:30, 10:30] = 53
    scan = Volume((labels > 0) * np.float32(100), affine)
    frame = Frame(np.full(3, -40.0), np.full(3, 40.0), 1.0, {})
    payload = viewer_payload(scan, frame, (0.0, 100.0), wholebrain=Volume(labels, affine))
    raw = zlib.decompress(base64.b64decode(payload['labels']))
    volume = np.frombuffer(raw, np.uint8).reshape(payload['shape'], order='F')
    code = [structure for structure, _, _ in payload['codes']].index(53)
    at = np.argwhere(volume == code).mean(0) * payload['spacing'] + payload['origin']
    expected = np.argwhere(labels == 53).mean(0) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(at, expected, atol=0.6)
    count = (volume == code).sum() * payload['spacing'] ** 3
    assert abs(count / ((labels == 53).sum() * 8.0) - 1) < 0.1


def test_histogram_needs_tissue_on_the_same_grid():
    scan = Volume(np.random.default_rng(0).random((20, 20, 20)), np.eye(4))
    labels = np.zeros((20, 20, 20), np.uint8)
    assert intensity_histogram(scan, Volume(labels, np.eye(4))) == ''
    labels[:, :10] = 1
    labels[:, 10:] = 2
    drawing = intensity_histogram(scan, Volume(labels, np.eye(4)))
    assert drawing.startswith('<svg')
    assert drawing.count('<path') == 3
    assert intensity_histogram(scan, Volume(labels[1:], np.eye(4))) == ''
