# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bids_app.bids.precomputed import Precomputed
from bids_app.bids.spaces import OutputSpace
from bids_app.images.templates import Template
from bids_app.interfaces.publish import PUBLISHED, STEPS
from bids_app.workflows.anat import EXPECTED_SECONDS, anat_steps, init_anat_wf
from bids_app.workflows.deepnat import DeepNATSettings
from bids_app.workflows.dwi import DwiSettings
from bids_app.workflows.jobs import ModelInUse
from bids_app.workflows.vbm import VbmSettings

ALL = ('mask', 'tissue', 'wholebrain')
MODELS = {
    'segmentation': {'name': 'brain', 'version': '1', 'sha256': 'abc'},
    'registration': {'name': 'symnet', 'version': '1', 'sha256': 'def'},
}
GIVEN = (Precomputed('brain_mask', 'prep', Path('/prep/mask.nii')),)


@pytest.fixture
def build(tmp_path):
    scan = tmp_path / 'raw' / 'sub-01_T1w.nii.gz'
    scan.parent.mkdir()
    scan.touch()

    def make(**options):
        settings = {
            'subject': '01',
            'session': None,
            'scan': scan,
            'bids_dir': scan.parent,
            'output_dir': tmp_path / 'out',
            'model': tmp_path / 'model',
            'models': MODELS,
            **options,
        }
        return init_anat_wf(**settings)

    return make


ATLASES = (('MNI305', 'aal', '/atlas/aal.nii'),)
DEEPNAT = DeepNATSettings(Path('/models/foreground'), Path('/models/structures'), ('a', 'b'))
CLASSIFIERS = (ModelInUse(Path('/models/sexpif'), 'sexpif', '1', 'abc', 'x'),)


def settings(**changes):
    names = ('MNI152NLin2009aSym', 'MNI305')
    files = [Path(f'/templates/{name}') for name in ('t1w', 'mask', 'tissues', 'labels')]
    values = {
        'spaces': tuple(OutputSpace(name, (1.5, 2.0)) for name in names),
        'templates': {name: Template(name, *files) for name in names},
        'model': Path('/models/symnet'),
        'model_sha256': 'def',
        'smooth_fwhm': (6.0,),
        **changes,
    }
    return VbmSettings(**values)


def nodes(workflow):
    return {node.name: node for node in workflow._get_all_nodes()}


def published(workflow):
    """Return what is connected to the node that publishes."""
    publish = workflow.get_node('publish')
    return {
        target
        for _, node, data in workflow._graph.in_edges(publish, data=True)
        for _, target in data['connect']
    } & set(PUBLISHED)


@pytest.mark.parametrize(
    ('modules', 'missing'),
    [
        (ALL, set()),
        (('mask', 'tissue'), {'wholebrain_dseg', 'wholebrain_morph'}),
        (
            ('mask', 'wholebrain'),
            {'dseg', 'probseg_gm', 'probseg_wm', 'probseg_csf', 'tissue_morph'},
        ),
        (('mask',), set(PUBLISHED) - {'brain_mask'}),
    ],
)
def test_modules_choose_what_is_published(build, modules, missing):
    workflow = build(modules=modules)
    assert published(workflow) == set(PUBLISHED) - missing
    assert set(nodes(workflow)) == {'inputnode', 'outputnode', *anat_steps(modules)}


def test_every_step_has_an_expected_time():
    steps = {
        *anat_steps(
            ALL,
            GIVEN,
            settings(atlases=ATLASES, classifiers=CLASSIFIERS),
            ['T2w'],
            'auto',
            DwiSettings((), (), ()),
            DEEPNAT,
        ),  # fmt: skip
        *anat_steps(('mask',)),
    }
    assert steps == set(EXPECTED_SECONDS)
    assert steps - {'publish', 'report'} == set(STEPS)


def sources(workflow, name):
    """Return the node that every input of a node comes from."""
    node = workflow.get_node(name)
    return {
        target: source.name
        for source, _, data in workflow._graph.in_edges(node, data=True)
        for _, target in data['connect']
    }


def test_contrasts_are_registered_and_tissues_made_from_all_of_them(build, tmp_path):
    flair = tmp_path / 'raw' / 'sub-01_FLAIR.nii.gz'
    flair.touch()
    models = {**MODELS, 'tissue three': {'name': 'three', 'version': '1', 'sha256': 'ghi'}}
    given = {'contrasts': {'FLAIR': flair}, 'tissue_model': 'auto', 'models': models}
    workflow = build(**given)
    found = nodes(workflow)
    assert set(found) == {
        'inputnode', 'outputnode', *anat_steps(ALL, (), None, ['FLAIR'], 'auto'),
    }  # fmt: skip
    assert found['coregister'].inputs.contrasts == ['FLAIR']
    assert found['tissue'].inputs.sha256 == ['ghi']
    measure, publish = sources(workflow, 'measure'), sources(workflow, 'publish')
    for key in ('dseg', 'probseg_gm', 'probseg_wm', 'probseg_csf'):
        assert measure[key] == publish[key] == 'tissue'
    for key in ('brain_mask', 'wholebrain_dseg', 'uncertainty'):
        assert measure[key] == publish[key] == 'segment'
    assert measure['segment_info'] == 'tissue'
    assert publish['segment_info'] == 'segment'
    assert publish['tissue_info'] == 'tissue'
    assert sources(workflow, 'tissue')['coregister_info'] == 'coregister'
    # What other pipelines give replaces what the tissue model made.
    replaced = build(**given, precomputed=GIVEN)
    assert sources(replaced, 'precomputed')['dseg'] == 'tissue'
    assert sources(replaced, 'precomputed')['brain_mask'] == 'segment'
    assert sources(replaced, 'measure')['dseg'] == 'precomputed'


def test_mask_alone_needs_no_further_contrast(build, tmp_path):
    workflow = build(modules=('mask',), contrasts={'T2w': tmp_path}, tissue_model='auto')
    assert set(nodes(workflow)) == {'inputnode', 'outputnode', *anat_steps(('mask',))}


def test_reference_gives_results_their_name(build):
    found = nodes(build(reference='T2w'))
    for name in ('publish', 'report', 'measure'):
        assert found[name].inputs.reference == 'T2w'


def test_network_on_the_cpu_takes_all_threads_of_a_scan(build):
    found = nodes(build(device='cpu', omp_nthreads=6))
    for name in ('mask', 'segment'):
        assert not found[name].is_gpu_node()
        assert found[name].n_procs == 6
        assert found[name].inputs.threads == 6
        assert found[name].mem_gb >= 4


def test_network_on_the_gpu_takes_one_slot(build):
    """Nipype takes as many GPU slots as a node has processors."""
    found = nodes(build(device='cuda:1', omp_nthreads=6))
    for name, node in found.items():
        assert node.is_gpu_node() == (name in ('mask', 'segment'))
    assert found['segment'].n_procs == 1
    assert found['segment'].inputs.device == 'cuda:1'


def test_large_scans_ask_for_more_memory(build):
    small, large = (nodes(build(voxels=n))['segment'].mem_gb for n in (10**6, 10**8))
    assert large > small + 5


def node_hash(workflow, name):
    """Hash of a node whose file inputs are not there yet."""
    inputs = nodes(workflow)[name].inputs
    return inputs.get_hashval(hash_method='content')[1]


def test_cache_depends_on_model_and_precision_but_not_on_resources(build):
    reference = node_hash(build(), 'mask')
    other_model = {'name': 'brain', 'version': '1', 'sha256': 'xyz'}
    assert node_hash(build(models={'segmentation': other_model}), 'mask') != reference
    assert node_hash(build(precision='float32'), 'mask') != reference
    for change in ({'omp_nthreads': 4}, {'device': 'cuda:0'}, {'low_mem': True}):
        assert node_hash(build(**change), 'mask') == reference


def test_results_are_published_and_reported_again_even_if_cached(build):
    found = nodes(build())
    assert found['publish'].interface.always_run
    assert found['report'].interface.always_run
    assert not found['segment'].interface.always_run


def inputs_of(workflow, name):
    """Return for every connected input of a node the node and the output it comes from."""
    graph = workflow._create_flat_graph()
    node = next(node for node in graph.nodes if node.name == name)
    return {
        target: (source.name, output)
        for source, _, data in graph.in_edges(node, data=True)
        for output, target in data['connect']
    }


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, ('normalise', 'warp', 'modulate')),
        ({'atlases': ATLASES}, ('normalise', 'warp', 'modulate', 'regions')),
        ({'classifiers': CLASSIFIERS}, ('normalise', 'warp', 'modulate', 'predict')),
        ({'method': 'ants', 'model': None, 'model_sha256': ''}, ('normalise', 'warp', 'modulate')),
    ],
)
def test_template_space_has_one_node_per_step_for_all_spaces(
    build, monkeypatch, changes, expected
):
    monkeypatch.setattr('bids_app.workflows.vbm._atlas_files', lambda atlases: [__file__])
    vbm = settings(**changes)
    workflow = build(vbm=vbm)
    found = nodes(workflow)
    assert set(found) == {'inputnode', 'outputnode', *anat_steps(ALL, vbm=vbm)}
    assert set(expected) <= set(found)
    assert found['normalise'].inputs.method == changes.get('method', 'refined')
    assert [one['space'] for one in found['normalise'].inputs.templates] == [
        'MNI152NLin2009aSym', 'MNI305',
    ]  # fmt: skip
    assert found['modulate'].inputs.voxel_sizes == [[1.5, 2.0], [1.5, 2.0]]
    if 'regions' in found:
        assert found['regions'].inputs.atlases == [[], ['/atlas/aal.nii']]
    published_infos = {name for name in inputs_of(workflow, 'publish') if name.endswith('_info')}
    assert {f'{step}_info' for step in expected} <= published_infos
    assert 'normalise_info' in inputs_of(workflow, 'measure')


def test_without_template_space_the_graph_is_as_before(build):
    assert set(nodes(build())) == {
        'inputnode', 'outputnode', 'conform', 'mask', 'bias', 'segment', 'measure', 'publish',
        'report',
    }  # fmt: skip
    assert 'normalise_info' not in inputs_of(build(), 'measure')


@pytest.mark.parametrize('method', ['refined', 'ants'])
def test_registration_on_the_gpu_takes_one_slot_unless_ants_does_it(build, method):
    found = nodes(build(device='cuda', omp_nthreads=6, vbm=settings(method=method)))['normalise']
    assert found.is_gpu_node() == (method != 'ants')
    assert found.n_procs == (1 if method == 'refined' else 6)


def test_registration_depends_on_model_method_and_template(build):
    reference = node_hash(build(vbm=settings()), 'normalise')
    for change in (
        {'model_sha256': 'xyz'},
        {'method': 'network'},
        {'templates': {name: Template(name, *[Path('/other')] * 4) for name in
                       ('MNI152NLin2009aSym', 'MNI305')}},
    ):  # fmt: skip
        assert node_hash(build(vbm=settings(**change)), 'normalise') != reference
    assert node_hash(build(vbm=settings(model=Path('/moved'))), 'normalise') == reference


def test_predictions_depend_on_maps_and_checksums_alone(build):
    workflow = build(vbm=settings(classifiers=CLASSIFIERS))
    assert inputs_of(workflow, 'predict') == {'modulate_info': ('modulate', 'info')}
    reference = node_hash(workflow, 'predict')
    for change, same in (({'folder': Path('/moved')}, True), ({'sha256': 'xyz'}, False)):
        other = settings(classifiers=(dataclasses.replace(CLASSIFIERS[0], **change),))
        assert (node_hash(build(vbm=other), 'predict') == reference) == same


def test_what_other_pipelines_made_takes_the_place_of_ours(build):
    workflow = build(precomputed=GIVEN, precomputed_uris={'brain_mask': 'bids:prep:mask.nii'})
    assert set(nodes(workflow)) - {'inputnode', 'outputnode'} == set(anat_steps(ALL, GIVEN))
    for consumer in ('measure', 'publish'):
        found = inputs_of(workflow, consumer)
        for key in ('brain_mask', 'dseg', 'probseg_gm', 'wholebrain_dseg', 'uncertainty'):
            assert found[key] == ('precomputed', key)
    assert inputs_of(workflow, 'measure')['segment_info'] == ('precomputed', 'info')
    assert inputs_of(workflow, 'publish')['segment_info'] == ('segment', 'info')
    assert nodes(workflow)['precomputed'].inputs.given == {'brain_mask': '/prep/mask.nii'}


def test_mask_alone_may_come_from_another_pipeline_but_tissues_are_not_needed(build):
    workflow = build(modules=('mask',), precomputed=GIVEN)
    assert inputs_of(workflow, 'publish')['brain_mask'] == ('precomputed', 'brain_mask')
    tissues = (Precomputed('probseg_gm', 'prep', Path('/prep/gm.nii')),)
    workflow = build(modules=('mask',), precomputed=tissues)
    assert inputs_of(workflow, 'publish')['brain_mask'] == ('restore', 'brain_mask')


def test_every_trait_is_described(build):
    vbm = settings(classifiers=CLASSIFIERS)
    for node in nodes(build(vbm=vbm, precomputed=GIVEN)).values():
        spec = node.interface.inputs
        if node.name in ('inputnode', 'outputnode'):
            continue
        for name, trait in spec.traits(transient=None).items():
            assert trait.desc, f'{node.name}.{name}'
