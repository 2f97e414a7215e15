# SPDX-License-Identifier: Apache-2.0
"""What can be said of the container files without building them.

``make image`` and ``make sif`` build them; docs/operations.md has what was measured.
"""

from __future__ import annotations

import fnmatch
import functools
import gzip
import http.server
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import threading
from configparser import ConfigParser

import pytest

from bids_app import __version__

packaging = pytest.importorskip('packaging.requirements')


def load(project_dir, name):
    spec = importlib.util.spec_from_file_location(name, project_dir / 'containers' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def setup_cfg(project_dir):
    parser = ConfigParser()
    parser.read(project_dir / 'setup.cfg')
    return parser


@pytest.fixture(scope='module')
def instructions(project_dir):
    """Return the instructions of the Dockerfile: keyword and the rest, continued lines joined."""
    text = (project_dir / 'Dockerfile').read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith('#')]
    joined = re.sub(r'\\\n\s*', '', '\n'.join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope='module')
def definition(project_dir):
    """Return the header and the sections of the Singularity definition."""
    text = (project_dir / 'Singularity.def').read_text()
    parts = re.split(r'^%(\w+)\n', text, flags=re.MULTILINE)
    return {'header': parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.fixture(scope='module')
def arguments(definition):
    return dict(line.strip().split('=', 1) for line in definition['arguments'].split('\n') if line)


def pins(path):
    lines = [line.strip() for line in path.read_text().splitlines()]
    return dict(line.split('==') for line in lines if line and not line.startswith('#'))


def canonical(name):
    return re.sub('[-_.]+', '-', name).lower()


def test_all_requirements_are_pinned_within_their_bounds(project_dir, setup_cfg):
    pinned = pins(project_dir / 'containers' / 'requirements.txt')
    assert all(name == canonical(name) for name in pinned)
    assert list(pinned) == sorted(pinned)
    needed = [
        packaging.Requirement(line)
        for line in setup_cfg['options']['install_requires'].splitlines()
        if line.strip()
    ]
    for requirement in needed:
        if requirement.marker and not requirement.marker.evaluate({'python_version': '3.11'}):
            continue
        version = pinned[canonical(requirement.name)]
        assert requirement.specifier.contains(version), requirement
    assert 'bids-validator-deno' in pinned


def test_pins_agree_with_the_constraints(project_dir):
    pinned = pins(project_dir / 'containers' / 'requirements.txt')
    constraints = pins(project_dir / 'constraints.txt')
    assert 'torch' in constraints
    assert {name: pinned[name] for name in constraints} == constraints


def test_base_images_and_stages(instructions):
    images = [rest.split()[0] for word, rest in instructions if word == 'FROM']
    assert images[0] == 'python:3.11-slim-bookworm'
    stages = [rest.split(' AS ')[1] for word, rest in instructions if ' AS ' in rest]
    assert set(images[1:]) <= set(stages)
    base = [rest for word, rest in instructions if 'image.base.name' in rest]
    assert f'library/{images[0]}"' in base[0]


def copied(instructions):
    for word, rest in instructions:
        if word != 'COPY' or '--from=' in rest:
            continue
        yield from shlex.split(rest)[:-1]


def test_sources_of_copies_exist_and_are_not_ignored(project_dir, instructions):
    sources = list(copied(instructions))
    assert {'bids_app', 'models', 'setup.cfg'} <= set(sources)
    rules = (project_dir / '.dockerignore').read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith('#')]
    assert rules[0] == '*'
    for source in sources:
        assert (project_dir / source).exists(), source
        assert f'!{source.split("/")[0]}' in rules, source
    for rule in rules:
        if rule.startswith('!'):
            assert (project_dir / rule[1:]).exists(), rule


def test_what_must_not_travel_is_ignored(project_dir):
    rules = (project_dir / '.dockerignore').read_text().splitlines()
    assert any(fnmatch.fnmatch('models/brain/checkpoints', rule) for rule in rules[1:])
    assert '**/__pycache__' in rules


def test_stages_that_are_copied_from_exist(instructions):
    stages = {rest.split(' AS ')[1] for word, rest in instructions if ' AS ' in rest}
    for _, rest in instructions:
        assert set(re.findall(r'(?:--|,)from=(\w+)', rest)) <= stages


def test_cache_knows_of_stages_that_are_mounted(instructions):
    """Buildah's cache looks at what is copied from a stage, not at what is mounted from it."""
    copied_from, mounted = set(), set()
    for word, rest in instructions:
        if word == 'FROM':
            copied_from = set()
        elif word == 'COPY':
            copied_from |= set(re.findall(r'--from=(\w+)', rest))
        elif word == 'RUN':
            mounted |= set(re.findall(r',from=(\w+)', rest))
            assert set(re.findall(r',from=(\w+)', rest)) <= copied_from, rest
    assert mounted == {'wheel'}


def test_version_is_the_same_everywhere(project_dir, instructions, arguments, definition):
    (version,) = [
        rest.partition('=')[2]
        for word, rest in instructions
        if word == 'ARG' and rest.startswith('VERSION=')
    ]
    assert version == __version__
    assert arguments['version'] == __version__
    labels = ' '.join(rest for word, rest in instructions if word == 'LABEL')
    assert 'org.opencontainers.image.version="${VERSION}"' in labels
    assert 'org.opencontainers.image.version {{ version }}' in definition['labels']
    for name in ('Dockerfile', 'Singularity.def'):
        text = (project_dir / name).read_text()
        assert set(re.findall(r'anatnet[:_](\d+\.\d+\.\d+)', text)) == {__version__}


def test_the_image_is_named_in_the_output(instructions):
    values = ' '.join(rest for word, rest in instructions if word in ('ARG', 'ENV'))
    assert 'IMAGE_TAG=anatnet:${VERSION}' in values
    assert 'ANATNET_DOCKER_TAG=${IMAGE_TAG}' in values


def test_user_signal_and_entry_point(instructions, setup_cfg):
    last = dict(instructions)
    assert int(last['USER'].split(':')[0]) > 0
    assert last['STOPSIGNAL'] == 'SIGTERM'
    tini, separator, command = json.loads(last['ENTRYPOINT'])
    assert (tini, separator) == ('/usr/bin/tini', '--')
    assert f'{command} = ' in setup_cfg['options.entry_points']['console_scripts']
    assert isinstance(json.loads(last['CMD']), list)


def test_no_upgrades_and_nothing_unpinned(instructions):
    for word, rest in instructions:
        if word != 'RUN':
            continue
        assert 'upgrade' not in rest
        for command in re.findall(r'pip (?:install|wheel) [^&]*', rest):
            assert re.search('--(constraint|requirement|no-deps) ', command), command
        for command in re.findall(r'apt-get install [^&]*', rest):
            packages = [word for word in shlex.split(command)[2:] if not word.startswith('-')]
            assert all('=' in package for package in packages), command
            assert '--no-install-recommends' in command
            assert 'rm -rf /var/lib/apt/lists/*' in rest


def test_nothing_of_a_machine_is_in_the_files(project_dir):
    for path in (project_dir / 'Dockerfile', project_dir / 'Singularity.def',
                 *(project_dir / 'containers').iterdir()):  # fmt: skip
        if not path.is_file():
            continue
        text = path.read_text()
        hosts = set(re.findall(r"https?://([^/\"'\s:}]+)", text))
        assert hosts <= {'download.pytorch.org', 'templateflow.s3.amazonaws.com'}, path
        assert not re.search(r'/(work|home|root)/', text), path


def test_models_and_package_data_are_installed(project_dir, setup_cfg):
    """Every model with weights is among the files that the wheel takes along."""
    listed = setup_cfg['options.data_files']
    for weights in (project_dir / 'models').glob('*/weights.safetensors'):
        name = weights.parent.name
        patterns = listed[f'share/anatnet/models/{name}'].split()
        for file in ('weights.safetensors', 'card.json', 'recipe.toml'):
            assert any(fnmatch.fnmatch(f'models/{name}/{file}', p) for p in patterns), name


def test_definition_has_the_same_sources(project_dir, instructions, definition, arguments):
    assert 'Bootstrap: {{ bootstrap }}\nFrom: {{ from }}\n' in definition['header']
    assert arguments['bootstrap'] == 'docker'
    assert arguments['from'] == next(r.split()[0] for w, r in instructions if w == 'FROM')
    sources = [line.split()[0] for line in definition['files'].splitlines() if line.strip()]
    assert all((project_dir / source).exists() for source in sources)
    assert {source.split('/')[0] for source in copied(instructions)} == set(sources)
    known = set(arguments)
    everything = ''.join(definition.values())
    assert set(re.findall(r'\{\{ (\w+) \}\}', everything)) == known


def test_definition_installs_runs_and_tests_the_same(definition, setup_cfg):
    for command in re.findall(r'pip install [^\n]*', definition['post']):
        assert re.search('--(constraint|requirement|no-deps) ', command), command
    assert 'check_image.py' in definition['post']
    assert 'exec anatnet "$@"' in definition['runscript']
    assert 'ANATNET_SINGULARITY_URL' in definition['environment']
    assert 'python -m bids_app.demo' in definition['test']
    assert re.search(r'anatnet .* participant', definition['test'])


class Archive(http.server.BaseHTTPRequestHandler):
    """An archive with two templates; one has cohorts and no resolution in its names."""

    files = {
        '/tpl-A/tpl-A_res-01_T1w.nii.gz': gzip.compress(b'a'),
        '/tpl-A/tpl-A_res-01_desc-brain_mask.nii.gz': gzip.compress(b'mask'),
        '/tpl-B/cohort-3/tpl-B_cohort-3_T1w.nii.gz': gzip.compress(b'b'),
        '/tpl-Cut/tpl-Cut_res-01_T1w.nii.gz': gzip.compress(b'cut' * 99)[:20],
    }

    def do_GET(self):
        content = self.files.get(self.path)
        self.send_response(200 if content else 403)
        self.end_headers()
        self.wfile.write(content or b'')

    def log_message(self, *details):
        pass


@pytest.fixture(scope='module')
def archive():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Archive) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_fetched_templates_are_found_by_the_app(project_dir, archive, tmp_path, monkeypatch):
    from bids_app.images.templates import template_files

    fetch = load(project_dir, 'fetch_templates')
    monkeypatch.setenv('TEMPLATEFLOW_URL', archive)
    assert fetch.main([str(tmp_path), 'A B+3']) == 0
    t1w, mask = template_files('A', tmp_path)
    assert gzip.decompress(t1w.read_bytes()) == b'a'
    assert gzip.decompress(mask.read_bytes()) == b'mask'
    t1w, mask = template_files('B+3', tmp_path)
    assert (gzip.decompress(t1w.read_bytes()), mask) == (b'b', None)


@pytest.mark.parametrize(
    ('space', 'reason'),
    [('None', 'check the name'), ('../up', 'no name of a template'), ('Cut', 'ended before')],
)
def test_a_template_that_cannot_be_had_ends_the_build_with_a_line(
    project_dir, archive, tmp_path, monkeypatch, capsys, space, reason
):
    fetch = load(project_dir, 'fetch_templates')
    monkeypatch.setenv('TEMPLATEFLOW_URL', archive)
    assert fetch.main([str(tmp_path), 'A', space]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f'TemplateFlow: cannot fetch {space}: ')
    assert reason in text
    assert text.count('\n') == 1


def test_without_a_network_the_line_says_so(project_dir, tmp_path, monkeypatch, capsys):
    fetch = load(project_dir, 'fetch_templates')
    monkeypatch.setenv('TEMPLATEFLOW_URL', 'http://127.0.0.1:9')
    assert fetch.main([str(tmp_path), 'A']) == 1
    assert 'build where the network is' in capsys.readouterr().err


def test_no_templates_asked_for_is_an_empty_folder(project_dir, tmp_path):
    fetch = load(project_dir, 'fetch_templates')
    assert fetch.main([str(tmp_path / 'templateflow')]) == 0
    assert list((tmp_path / 'templateflow').iterdir()) == []


@pytest.mark.slow
def test_check_of_an_image(project_dir, tmp_path):
    pytest.importorskip('torch')
    import torch

    check = load(project_dir, 'check_image')
    here = 'cpu' if torch.version.cuda is None else 'cu'
    other = 'cu130' if here == 'cpu' else 'cpu'
    assert check.problem(here, __version__, project_dir / 'models') is None
    assert 'TORCH_INDEX_URL' in check.problem(other, __version__, project_dir / 'models')
    assert 'VERSION=9' in check.problem(here, '9', project_dir / 'models')
    (tmp_path / 'lost').mkdir()
    (tmp_path / 'lost' / 'weights.safetensors').touch()
    assert "no model 'lost'" in check.problem(here, __version__, tmp_path)


@pytest.mark.parametrize(
    ('target', 'torch', 'name'),
    [
        ('image', 'cpu', f'anatnet:{__version__}'),
        ('image', 'cu130', f'anatnet:{__version__}-cu130'),
        ('sif', 'cu130', f'anatnet_{__version__}-cu130.sif'),
    ],
)
def test_make_builds_what_the_files_describe(project_dir, arguments, target, torch, name):
    make = shutil.which('make')
    if make is None:
        pytest.skip('make is not installed')
    done = subprocess.run(
        [make, '--dry-run', '--no-print-directory', target, f'TORCH={torch}'],
        cwd=project_dir, capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = shlex.split(done.stdout.replace('\\\n', ' '))
    given = dict(words[i + 1].split('=', 1) for i, w in enumerate(words) if w == '--build-arg')
    assert name in words
    if target == 'image':
        assert given['TORCH'] == torch
        assert given['IMAGE_TAG'] == name
    else:
        assert given['torch'] == torch
        assert set(given) <= set(arguments)
