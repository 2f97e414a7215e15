# SPDX-License-Identifier: Apache-2.0
"""The group level from the command line to the page."""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from bids_app import cli
from bids_app.bids.files import atomic_save_nifti, atomic_write_text

RUN = {'device': 'cpu', 'precision': 'float32'}
CONFORM = {'native_zooms': [1.0, 1.0, 1.2], 'native_shape': [4, 5, 6]}


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / 'raw'
    atomic_write_text(
        folder / 'participants.tsv',
        'participant_id\tage\tsex\tnote\n'
        + ''.join(f'sub-{n:02d}\t{20 + n}\t{"FM"[n % 2]}\t</script>{n}\n' for n in range(12)),
    )
    description = {'Name': 'A <study> & more', 'BIDSVersion': '1.8.0'}
    atomic_write_text(folder / 'dataset_description.json', json.dumps(description))
    return folder


@pytest.fixture
def study(out, raw, add_session):
    random = np.random.default_rng(0)
    base = random.random((12, 14, 12)).astype(np.float32) + 0.2
    for number in range(12):
        label = f'{number:02d}'
        if number == 9:
            add_session(label, status='failed', error='broken <file>')
            continue
        report = {'methods': 'Processed with [@n4].', 'run': RUN, 'conform': CONFORM,
                  'models': [{'sha256': 'abc', 'version': '1'}]}  # fmt: skip
        place = add_session(
            label, version='0.1.0' if number else '0.0.9', run={'report': report},
            measures={'snr_total': random.normal(8, 0.3)},
            structures={17: ('x', random.normal(4000, 99)), 53: ('y', random.normal(4000, 99))},
        )  # fmt: skip
        data = base * random.normal(1, 0.05, base.shape)
        path = place.path('vbm_gm_smooth', space='MNI152NLin2009aSym', res=6, fwhm=6)
        image = nib.Nifti1Image(data.astype(np.float32), np.diag([6.0, 6.0, 6.0, 1.0]))
        atomic_save_nifti(image, path)
    return out


def group(raw, out, *options):
    work = str(out.parent / 'work')
    return cli.main([str(raw), str(out), 'group', '-w', work, '--nprocs', '1', *options])


def page_of(out):
    text = (out / 'group.html').read_text()
    found = re.search(r'id="group-data">(.*?)</script>', text, re.DOTALL)
    return text, json.loads(found[1])


def test_page_and_tables(raw, study):
    assert group(raw, study) == 0
    text, data = page_of(study)
    assert len(data['sessions']) == 12
    assert data['links'][0] == 'sub-00.html'
    assert data['links'][9] is None
    assert data['states'][9] == 'failed'
    entries = {entry['label']: entry for entry in data['numeric']}
    assert entries['age']['values'][:2] == [20, 21]
    assert entries['Grey matter (ml)']['values'][0] == 700
    assert len(entries['SNR total']['z']) == 12
    assert entries['Mean correlation of the map']['values'][9] is None
    assert [c['label'] for c in data['classes']] == ['sex']
    (pair,) = data['pairs']
    assert pair['label'] == 'Hippocampus'
    for file in ('group_volumes.tsv', 'group_regions.tsv', 'group_qc.tsv'):
        assert len((study / file).read_text().splitlines()) == 13
    # what comes from outside is text, never markup
    assert 'A &lt;study&gt; &amp; more' in text
    assert 'broken &lt;file&gt;' in text
    assert '</script>1' not in text
    # nothing is loaded from elsewhere
    assert (
        re.findall(r'(?:src|href)="(?!data:|#|sub-|group_|https://(?:doi|creative))', text) == []
    )


def test_methods_name_variations(raw, study):
    group(raw, study)
    text, _ = page_of(study)
    assert 'Tustison' in text
    variations = text.split('<h3>Variations</h3>')[1].split('</section>')[0]
    assert '0.0.9' in variations
    assert 'sub-00' in variations
    assert 'Voxel size of the scan' not in variations
    assert 'Not all sessions were made in the same way' in text


def test_raw_data_may_be_gone_afterwards(raw, study):
    group(raw, study)
    before = (study / 'group_volumes.tsv').read_bytes()
    shutil.rmtree(raw)
    assert group(raw, study) == 0
    assert (study / 'group_volumes.tsv').read_bytes() == before


def test_without_maps_the_rest_works(raw, out, add_session):
    add_session('00')
    assert group(raw, out) == 0
    text, _ = page_of(out)
    assert 'there are no modulated maps' in text
    assert 'from 5 finished ones; there is 1' in text
    assert 'id="maps"' not in text


def test_sessions_without_t1w_and_other_tissue_models_are_named(raw, out, add_session):
    for subject in ('00', '01', '02', '03'):
        add_session(subject)
    used = {'reference': 'T2w', 'report': {'tissue_model': {'name': 'tissue-any'}}}
    add_session('04', run=used, measures={'snr_total': 8.0, 'coreg_flair_dice': 0.9})
    assert group(raw, out) == 0
    header, *rows = (out / 'group_qc.tsv').read_text().splitlines()
    place = header.split('\t').index('coreg_flair_dice')
    assert [row.split('\t')[place] for row in rows] == ['n/a'] * 4 + ['0.9']
    text, _ = page_of(out)
    assert 'volumes must not be compared with the others: sub-04 (T2w)' in text
    assert 'different tissue models: none in 4, tissue-any in 1 sessions' in text


def test_nothing_finished_is_66(raw, out, add_session, capsys):
    assert group(raw, out) == 66
    add_session('00', status='failed', error='broken')
    assert group(raw, out) == 66
    assert 'none of the 1 sessions' in capsys.readouterr().err
    assert not (out / 'group.html').exists()


@pytest.mark.parametrize(
    'options',
    [
        ('--model', '~ agee'), ('--model', '~ age', '--contrast', 'sex'),
        ('--classify', 'nothing'), ('--participant-label', '99'),
        ('--model', '~ age', '--map', 'wm'),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_data_is_2_and_writes_nothing(raw, study, options):
    assert group(raw, study, *options) == 2
    assert not (study / 'group_qc.tsv').exists()


def test_dry_run_lists_and_writes_nothing(raw, study, capsys):
    assert group(raw, study, '--dry-run') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'sub-00\tdone'
    assert lines[9] == 'sub-09\tfailed\tbroken <file>'
    assert not (study / 'group.html').exists()


def test_model_becomes_a_section(raw, study):
    options = ('--model', '~ age + sex', '--n-permutations', '10', '--no-tfce')
    assert group(raw, study, *options) == 0
    text, _ = page_of(study)
    assert '<h2>Model ~ age + sex</h2>' in text
    assert text.count('class="shot"') == 3
    (folder,) = (study / 'group').iterdir()
    assert (folder / 'design.tsv').is_file()
    assert not (study.parent / 'work').exists()


def test_sessions_that_need_a_look_come_first(raw, study, add_session):
    add_session('05', measures={'snr_total': 1.0}, verdict=('fail', 'noisy'))
    group(raw, study)
    text, _ = page_of(study)
    table = text.split('<tbody>')[1].split('</tbody>')[0]
    order = re.findall(r'data-state="(\w+)"', table)
    assert order[:2] == ['doubtful', 'failed']
    assert set(order[2:]) == {'ok'}
