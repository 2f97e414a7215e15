# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.interfaces.publish import PUBLISHED
from bids_app.workflows.anat import EXPECTED_SECONDS, anat_steps, init_anat_wf

ALL = ('mask', 'tissue', 'wholebrain')


@pytest.fixture
def build(tmp_path):
    scan = tmp_path / 'raw' / 'sub-01_T1w.nii.gz'
    scan.parent.mkdir()
    scan.touch()

    def make(**options):
        settings = {
            'subject': '01',
            'session': None,
            't1w': scan,
            'bids_dir': scan.parent,
            'output_dir': tmp_path / 'out',
            'model': tmp_path / 'model',
            'model_info': {'name': 'brain', 'version': '1', 'sha256': 'abc'},
            **options,
        }
        return init_anat_wf(**settings)

    return make


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
    assert set(anat_steps(ALL)) | set(anat_steps(('mask',))) == set(EXPECTED_SECONDS)


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
    other_model = {'name': 'brain', 'version': '1', 'sha256': 'def'}
    assert node_hash(build(model_info=other_model), 'mask') != reference
    assert node_hash(build(precision='float32'), 'mask') != reference
    for change in ({'omp_nthreads': 4}, {'device': 'cuda:0'}, {'low_mem': True}):
        assert node_hash(build(**change), 'mask') == reference


def test_results_are_published_and_reported_again_even_if_cached(build):
    found = nodes(build())
    assert found['publish'].interface.always_run
    assert found['report'].interface.always_run
    assert not found['segment'].interface.always_run


def test_every_trait_is_described(build):
    for node in nodes(build()).values():
        spec = node.interface.inputs
        if node.name in ('inputnode', 'outputnode'):
            continue
        for name, trait in spec.traits(transient=None).items():
            assert trait.desc, f'{node.name}.{name}'
