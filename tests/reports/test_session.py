# SPDX-License-Identifier: Apache-2.0
"""The page as a whole: complete, self-contained, escaped, robust."""

from __future__ import annotations

import re
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.reports.session import SessionReport, write_report

NASTY = 'sub-01_<img src=x onerror=alert(1)>&"\'_T1w.nii.gz'


@pytest.fixture(scope='module')
def derivatives(tmp_path_factory) -> dict[str, str]:
    """Make the files of a small session: a head with a brain, thick slices, LPS."""
    folder = tmp_path_factory.mktemp('derivatives')
    affine = np.diag([-2.0, -2.0, 4.0, 1.0])
    affine[:3, 3] = (95, 110, -90)
    shape = (96, 110, 45)
    grid = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    radius = np.sqrt((grid / (70, 85, 65)) ** 2 @ np.ones(3)).reshape(shape)
    rng = np.random.default_rng(0)
    scan = (60 * (radius < 1.2) + 40 * (radius < 1) + rng.normal(0, 3, shape)).astype(np.float32)
    left = (grid[:, 0] < 0).reshape(shape)
    dseg = np.select([radius < 0.6, radius < 0.9, radius < 1], [2, 1, 3], 0).astype(np.uint8)
    structures = np.select(
        [(dseg == 2) & left, dseg == 2, (dseg == 1) & left, dseg == 1], [2, 41, 3, 42], 0
    ).astype(np.uint8)
    volumes = {
        'preproc': scan,
        'brain_mask': (radius < 1).astype(np.uint8),
        'dseg': dseg,
        'wholebrain_dseg': structures,
        'uncertainty': np.where(radius < 1, rng.random(shape) * 0.2, 0).astype(np.float32),
    }
    files = {}
    for key, data in volumes.items():
        files[key] = str(folder / f'{key}.nii.gz')
        nib.save(nib.Nifti1Image(data, affine), files[key])
    tables = {
        'tissue_morph': 'index\tname\tvolume_mm3\n1\tGM\t600000\nn/a\tTIV\t1400000\n',
        'wholebrain_morph': 'index\tname\tvolume_mm3\tmean_probability\n'
        '17\tLeft-Hippocampus\t4000\t0.9\n53\tRight-Hippocampus\t3000\t0.8\n',
        'qc_stats': 'snr_total\tcjv\n11.5\t0.43\n',
    }
    for key, text in tables.items():
        files[key] = str(folder / f'{key}.tsv')
        Path(files[key]).write_text(text)
    return files


def full_report(files: dict[str, str]) -> SessionReport:
    return SessionReport(
        'sub-01_ses-1',
        inputs=[{'path': NASTY, 'suffix': 'T1w'}],
        skipped=[{'path': 'sub-01_run-2_T1w.nii.gz', 'reason': 'run-1 was <chosen>'}],
        conform={'native_shape': [96, 110, 45], 'native_zooms': [2.0, 2.0, 4.0],
                 'notes': ['slices of 4 mm & more']},
        files=files,
        qc={'status': 'warn', 'reasons': ['noise & bias'],
            'checks': [{'name': 'cjv', 'value': 0.43, 'status': 'warn', 'threshold': '< 0.4'}]},
        participant={'age': '31', 'sex': 'F'},
        run={'version': '0.1.0', 'command_line': ['anatnet', 'a b', '<out>', 'participant'],
             'device': 'cpu', 'device_reason': 'no CUDA device'},
        models=[{'name': 'brain', 'version': '1', 'sha256': 'ab' * 32, 'licence': 'Apache-2.0'}],
        steps=[{'name': 'conform', 'seconds': 2.5}, {'name': 'segment', 'seconds': None}],
        warnings=['a <warning>'],
    )  # fmt: skip


@pytest.fixture(scope='module')
def page(derivatives, tmp_path_factory) -> tuple[str, Path, float]:
    folder = tmp_path_factory.mktemp('out')
    started = time.perf_counter()
    path = write_report(full_report(derivatives), folder / 'sub-01_ses-1.html')
    return path.read_text(encoding='utf-8'), path, time.perf_counter() - started


def test_loads_nothing_from_elsewhere(parse, page):
    text, _, _ = page
    parsed = parse(text)
    assert all(address.startswith(('data:', '#')) for address in parsed.loaded)
    assert not parsed.stack  # every element is closed
    assert "default-src 'none'; img-src data:;" in text  # the browser enforces it, too
    style = re.search(r'<style>(.*?)</style>', text, re.S).group(1)
    assert '@import' not in style
    assert 'url(' not in style
    script = text[text.rindex('<script>') :]
    for word in ('http', 'fetch(', 'XMLHttpRequest', 'import(', 'eval('):
        assert word not in script


def test_anchors_and_ids(parse, page):
    parsed = parse(page[0])
    assert len(parsed.ids) == len(set(parsed.ids))
    for address in parsed.anchors:
        assert address.startswith('https://') or address[1:] in parsed.ids
    labels = [values['for'] for tag, values in parsed.tags if tag == 'label' and 'for' in values]
    assert set(labels) <= set(parsed.ids)


def test_small_fast_and_nothing_left_behind(page):
    _, path, seconds = page
    assert path.stat().st_size < 5e6
    assert seconds < 10
    assert [p.name for p in path.parent.iterdir() if p.name.endswith('.part')] == []


def test_content(parse, page):
    text = page[0]
    for words in (
        'sub-01', 'ses-1', 'Look at it', 'noise &amp; bias', '2 × 2 × 4 mm', 'age 31',
        'slices of 4 mm &amp; more', 'Hippocampus', '+28.6', '&lt; 0.4', 'ab' * 32, 'no CUDA',
        'anatnet &#39;a b&#39;', 'neurological convention', 'No errors to report', '2.5 s',
        'Left-Cerebral-Cortex', 'Normalised entropy', 'doi.org/10.1109/TMI.2010.2046908',
    ):  # fmt: skip
        assert words in text, words
    parsed = parse(text)
    rows = [values for tag, values in parsed.tags if tag == 'svg' and values.get('role') == 'img']
    assert len(rows) == 4 * 3 + 1
    assert all(values.get('aria-label') for values in rows)


def test_everything_is_escaped(page):
    text = page[0]
    assert '<img src=x' not in text
    assert '<warning>' not in text
    assert '<chosen>' not in text
    assert '<out>' not in text
    assert '&lt;img src=x' in text


def test_figures_are_written_with_nipreps_names(page):
    figures = page[1].parent / 'sub-01' / 'figures'
    assert sorted(path.name for path in figures.iterdir()) == [
        'sub-01_ses-1_desc-brain_mask.svg',
        'sub-01_ses-1_desc-entropy_uncertainty.svg',
        'sub-01_ses-1_desc-wholebrain_dseg.svg',
        'sub-01_ses-1_dseg.svg',
    ]
    import xml.etree.ElementTree as ElementTree

    for path in figures.iterdir():
        root = ElementTree.parse(path).getroot()
        assert root.tag == '{http://www.w3.org/2000/svg}svg'
        assert path.stat().st_size < 1.5e6


def test_the_same_page_comes_from_the_saved_context(page, derivatives, tmp_path):
    root = Path(derivatives['dseg']).parent
    saved = full_report(derivatives).save(tmp_path / 'report.json', root)
    assert str(root) not in saved.read_text()
    again = SessionReport.load(saved, root)
    assert again == full_report(derivatives)
    text = write_report(again, tmp_path / 'x.html', tmp_path / 'figures').read_text()
    drop = re.compile(r'in \d+\.\d s')
    assert drop.sub('', text) == drop.sub('', page[0])


def test_context_ignores_unknown_fields_and_wants_a_label():
    assert SessionReport.from_dict({'label': 'sub-1', 'later': 3}).label == 'sub-1'
    with pytest.raises(ValueError, match='label'):
        SessionReport.from_dict({'status': 'failed'})


def test_context_turns_paths_and_arrays_to_json(tmp_path):
    report = SessionReport(
        'sub-1', files={'t1w': tmp_path / 'a.nii'}, conform={'zooms': np.ones(3)},
        skipped=[(Path('x'), 'why')],
    )  # fmt: skip
    values = report.to_dict(tmp_path)
    assert values['files'] == {'t1w': 'a.nii'}
    assert values['conform'] == {'zooms': [1.0, 1.0, 1.0]}
    assert values['skipped'] == [['x', 'why']]


def test_failed_session_without_any_file(parse, tmp_path):
    report = SessionReport(
        'sub-02',
        status='failed',
        skipped=[('a.nii.gz', 'a tuple is fine, too')],
        files={'preproc': str(tmp_path / 'absent.nii.gz')},
        errors=[{'step': 'conform', 'message': 'a.nii.gz is not a NIfTI <file>',
                 'traceback': 'Traceback: <module>', 'file': 'log/crash.txt'}],
    )  # fmt: skip
    text = write_report(report, tmp_path / 'sub-02.html').read_text()
    assert 'Failed' in text
    assert 'a.nii.gz is not a NIfTI &lt;file&gt;' in text
    assert 'Traceback: &lt;module&gt;' in text
    assert 'a tuple is fine, too' in text
    assert 'Not made: preproc' in text
    assert 'viewer-data"' not in text
    assert not parse(text).stack


def test_failed_session_shows_the_raw_scan(derivatives, tmp_path):
    report = SessionReport('sub-03', 'failed', files={'scan': derivatives['preproc']})
    text = write_report(report, tmp_path / 'sub-03.html').read_text()
    assert 'There is no mask or segmentation of this scan.' in text
    assert 'id="explore"' in text


@pytest.mark.parametrize('content', [b'', b'<html>not found</html>', b'\x1f\x8b\x08\x00broken'])
def test_broken_files_become_notes(derivatives, tmp_path, content):
    broken = tmp_path / 'broken.nii.gz'
    broken.write_bytes(content)
    files = {**derivatives, 'dseg': str(broken), 'wholebrain_morph': str(broken)}
    text = write_report(SessionReport('sub-04', files=files), tmp_path / 'a.html').read_text()
    assert 'The file broken.nii.gz could not be shown' in text
    assert 'id="mask"' in text
    assert 'id="tissues"' not in text
    files['preproc'] = str(broken)
    text = write_report(SessionReport('sub-04', files=files), tmp_path / 'b.html').read_text()
    assert 'The scan could not be shown' in text


def test_derivatives_of_other_grids_and_empty_masks(parse, derivatives, tmp_path):
    empty = tmp_path / 'empty.nii.gz'
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)), empty)
    files = {**derivatives, 'brain_mask': str(empty), 'dseg': str(empty),
             'wholebrain_dseg': str(empty), 'uncertainty': str(empty)}  # fmt: skip
    text = write_report(SessionReport('sub-05', files=files), tmp_path / 'a.html').read_text()
    assert 'could not be shown' not in text
    assert not parse(text).stack


def test_unwritable_figures_do_not_cost_the_page(derivatives, tmp_path):
    blocked = tmp_path / 'figures'
    blocked.write_text('a file where the folder should be')
    report = SessionReport('sub-06', files={'scan': derivatives['preproc'],
                                            'brain_mask': derivatives['brain_mask']})  # fmt: skip
    path = write_report(report, tmp_path / 'a.html', blocked)
    assert path.is_file()


def test_sides_in_the_standalone_figure(derivatives, tmp_path):
    """Decode the axial row of the structures: left cortex colours are in the left halves."""
    import base64
    import io

    from PIL import Image

    write_report(full_report(derivatives), tmp_path / 'a.html', tmp_path)
    text = (tmp_path / 'sub-01_ses-1_desc-wholebrain_dseg.svg').read_text()
    overlay = re.search(r'data:image/png;base64,([^"]+)', text).group(1)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(overlay))).convert('RGB'))
    tile = (pixels.shape[1] + 4) // 7
    middle = pixels[:, 3 * tile : 4 * tile - 4]
    left = np.nonzero((middle == (0xCD, 0x3E, 0x4E)).all(-1).any(0))[0]
    right = np.nonzero((middle == (0xB4, 0x2F, 0x40)).all(-1).any(0))[0]
    assert len(left) > 10
    assert len(right) > 10
    assert left.max() < right.min() + 2
