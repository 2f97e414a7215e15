# SPDX-License-Identifier: Apache-2.0
"""Tables, quality lines and the methods text."""

from __future__ import annotations

import re

import pytest

from bids_app.reports import methods, quality, tables


def test_asymmetry_index():
    assert tables.asymmetry_index(3.0, 1.0) == 100
    assert tables.asymmetry_index(1.0, 1.0) == 0
    assert tables.asymmetry_index(0.0, 0.0) is None
    assert tables.asymmetry_index(None, 1.0) is None


def test_structures_are_paired():
    rows = [
        {'index': '17', 'name': 'Left-Hippocampus', 'volume_mm3': '4000'},
        {'index': '53', 'name': 'Right-Hippocampus', 'volume_mm3': '3000'},
        {'index': '16', 'name': 'Brain-Stem', 'volume_mm3': '20000'},
        {'index': '28', 'name': 'Left-VentralDC', 'volume_mm3': 'n/a'},
        {'index': '999', 'name': 'Something', 'volume_mm3': '5'},
    ]
    table = {row['name']: row for row in tables.structure_table(rows)}
    hippocampus = table['Hippocampus']
    assert hippocampus['left']['ml'] == 4
    assert hippocampus['asymmetry'] == pytest.approx(200 / 7)
    assert hippocampus['marked']
    assert table['Brain stem']['middle']['bar'] == 100
    assert table['Ventral DC']['right'] is None
    assert table['Ventral DC']['left']['ml'] is None
    assert table['Something']['middle']['ml'] == pytest.approx(0.005)


def test_tissues_and_total():
    rows = [
        {'index': '1', 'name': 'GM', 'volume_mm3': '600000', 'mean_probability': '0.9'},
        {'index': '2', 'name': 'WM', 'volume_mm3': '400000', 'mean_probability': 'n/a'},
        {'index': 'n/a', 'name': 'total-intracranial-volume', 'volume_mm3': '1500000'},
    ]
    assert tables.total_intracranial_volume(rows) == 1_500_000
    grey, white, total = tables.tissue_table(rows)
    assert grey['name'] == 'Grey matter'
    assert grey['percent'] == pytest.approx(40)
    assert white['bar'] == pytest.approx(100 * 400 / 600)
    assert white['probability'] is None
    assert total['color'] == ''


def test_read_tsv_with_byte_order_mark_and_short_line(tmp_path):
    path = tmp_path / 'a.tsv'
    path.write_bytes(b'\xef\xbb\xbfindex\tname\n1\tGM\n2\n')
    first, second = tables.read_tsv(path)
    assert first == {'index': '1', 'name': 'GM'}
    assert second['name'] is None
    assert tables.structure_table([second])  # a missing cell does not stop the table


def test_quality_lines_merge_verdicts_and_measures():
    verdict = {'checks': [{'name': 'cjv', 'value': 0.8, 'status': 'warn', 'threshold': '< 0.7'}]}
    lines = quality.checks({'cjv': '0.8', 'snr_wm': '20', 'comment': 'text'}, verdict)
    assert [line['name'] for line in lines] == ['cjv', 'snr_wm']
    assert lines[0]['status'] == 'warn'
    assert lines[0]['threshold'] == '< 0.7'
    assert lines[1]['status'] == ''
    assert lines[1]['label'] == 'SNR WM'


@pytest.mark.parametrize(
    ('session', 'verdict', 'css'),
    [
        ('completed', {'status': 'ok'}, 'ok'),
        ('completed', {'status': 'warn'}, 'warn'),
        ('completed', {'status': 'fail'}, 'fail'),
        ('completed', {}, 'none'),
        ('completed', {'status': 'nonsense'}, 'none'),
        ('failed', {'status': 'ok'}, 'fail'),
    ],
)
def test_traffic_light(session, verdict, css):
    assert quality.traffic_light(session, verdict, [])['css'] == css


def test_verdict_comes_from_the_table_where_the_context_has_none():
    metrics = {'qc_status': 'warn', 'qc_reasons': 'cjv is 2: noise; brain is cut'}
    verdict = quality.verdict_of({}, metrics)
    assert verdict['status'] == 'warn'
    assert verdict['reasons'] == ['CJV is 2: noise', 'brain is cut']
    assert quality.verdict_of({}, {'qc_reasons': 'n/a'})['reasons'] == []
    assert quality.verdict_of({'status': 'ok', 'reasons': []}, metrics)['status'] == 'ok'


def test_every_check_of_the_app_has_a_readable_label():
    from bids_app.morphometry.checks import LIMITS, REGISTRATION_LIMITS, assess

    verdict = assess({limit.name: 1e6 for limit in (*LIMITS, *REGISTRATION_LIMITS)})
    assert len(verdict['checks']) == len(LIMITS) + len(REGISTRATION_LIMITS)
    for line in quality.checks({}, verdict):
        assert '_' not in line['label']
        assert line['meaning']
        assert line['threshold']
        assert line['status'] in ('ok', 'warn', 'fail')


def test_traffic_light_falls_back_to_the_worst_line():
    lines = [{'status': 'ok'}, {'status': 'warn'}, {'status': ''}]
    assert quality.traffic_light('completed', {}, lines)['css'] == 'warn'


def test_methods_cite_only_known_references():
    text = methods.methods_text('1.2', [{'name': 'brain', 'version': '1', 'sha256': 'ab' * 32}])
    keys = set(re.findall(r'@([\w-]+)', text))
    assert keys <= {reference.key for reference in methods.REFERENCES}
    markdown = methods.citation_markdown(text)
    assert '@' not in markdown
    assert 'abababababab' in markdown
    assert markdown.count('https://doi.org/') == len(methods.cited(text))


def test_methods_tell_of_the_steps_that_ran_and_of_no_others():
    full = methods.methods_text('1')
    for step in ('3 mm', '@n4', 'three resolutions', 'at 1 mm', 'mirrored', 'DeepNAT', '@mriqc'):
        assert step in full
    mask = methods.methods_text('1', [], ('mask',))
    for step in ('@n4', 'second network', 'Volumes', '@mriqc'):
        assert step not in mask
    assert 'DeepNAT' not in methods.methods_text('1', [], ('mask', 'tissue'))
    sloppy = methods.methods_text('1', sloppy=True)
    assert 'two resolutions' in sloppy
    assert 'mirrored' not in sloppy
    assert 'mirrored' not in methods.methods_text('1', low_mem=True)


def test_methods_of_morphometry_vary_with_the_options():
    modules = ('mask', 'tissue', 'wholebrain', 'vbm')
    assert '@vbm' not in methods.methods_text('1', [], modules[:3], atlases=('A',))
    refined = methods.methods_text('1', [], modules)
    for words in ('@symnet', '@dartel', '@demons', '@mni2009', '@modulation', '6 and 8 mm',
                  'voxels of 1.5 mm', '@deepmriprep'):  # fmt: skip
        assert words in refined, words
    assert '@templateflow' not in refined
    assert 'atlas' not in refined
    network = methods.methods_text('1', [], modules, registration='network')
    assert '@symnet' in network
    assert '@demons' not in network
    ants = methods.methods_text(
        '1', [], modules, registration='ants', spaces=('OASIS30ANTs',), voxel_sizes=(1, 2),
        fwhm=(), atlases=('A', 'B'), precomputed=('brain mask', 'tissue maps'),
    )  # fmt: skip
    for words in ('@syn', '@templateflow', 'voxels of 1 and 2 mm', 'The atlases A and B were',
                  'brain mask and tissue maps'):  # fmt: skip
        assert words in ants, words
    for words in ('@symnet', '@mni2009', 'smoothed'):
        assert words not in ants, words
    assert 'a Gaussian kernel of 8 mm' in methods.methods_text('1', [], modules, fwhm=(8,))
    for text in (refined, network, ants):
        keys = set(re.findall(r'@([\w-]+)', text))
        assert keys <= {reference.key for reference in methods.REFERENCES}


def test_methods_tell_of_classifiers():
    one = {'name': 'sexpif', 'target': 'sex', 'map': 'vbm_gm, space A, res 2, unsmoothed'}
    vbm = ('mask', 'tissue', 'wholebrain', 'vbm')
    text = methods.methods_text('1', [], vbm, classifiers=[one])
    assert 'The classifier sexpif (sex, from the map vbm_gm, space A, res 2, unsmoothed)' in text
    assert 'was applied' in text
    assert 'not for clinical use' in text
    two = methods.methods_text('1', [], vbm, classifiers=[one, {**one, 'name': 'agepif'}])
    assert 'were applied' in two
    assert 'clinical' not in methods.methods_text('1', [], vbm)
    assert 'clinical' not in methods.methods_text('1', [], vbm[:3], classifiers=[one])


def test_references_are_unique_and_complete():
    keys = [reference.key for reference in methods.REFERENCES]
    assert len(keys) == len(set(keys))
    assert all(reference.doi.startswith('10.') for reference in methods.REFERENCES)
    bibtex = methods.citation_bibtex()
    assert bibtex.count('@') == len(keys)
    assert bibtex.count('{') == bibtex.count('}')
    assert 'Wachinger, C. and Reuter, M. and Klein, T.' in bibtex


def test_markdown_to_html_escapes():
    page = methods.to_html(
        '# A & B\n\nText with <b>tags</b>, **bold** and `co<de>`.\n\n1. One\n2. https://doi.org/10.1/x\n'
    )
    assert '<h2>A &amp; B</h2>' in page
    assert '&lt;b&gt;tags&lt;/b&gt;' in page
    assert '<strong>bold</strong>' in page
    assert '<code>co&lt;de&gt;</code>' in page
    assert '<a href="https://doi.org/10.1/x" rel="noreferrer">' in page
    assert page.count('<li>') == 2
