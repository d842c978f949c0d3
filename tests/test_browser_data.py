"""The data of the zoo browser, and the folder that it is built into."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import npm_package
import pytest
from test_tables import ROW

from tinyvit_zoo.bench import write_rows
from tinyvit_zoo.browser import build_site, site, zoo, zoo_facts
from tinyvit_zoo.browser.measured import figures, results_folder
from tinyvit_zoo.browser.runtime import FILES
from tinyvit_zoo.browser.sources import Sources
from tinyvit_zoo.browser.zoo import is_own_size
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.releases import FAMILIES, all_releases, find_release
from tinyvit_zoo.releases.rivals import RIVALS

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / 'space' / 'zoo.schema.json').read_text())


@pytest.fixture(scope='module')
def facts() -> dict:
    return json.loads(json.dumps(zoo_facts()))


@pytest.fixture
def quick(facts, monkeypatch) -> None:
    """The data are not gathered again."""
    monkeypatch.setattr(site, 'zoo_facts', lambda: dict(facts))


def package(folder: Path) -> Path:
    """A folder like the unpacked npm package, with other content."""
    (folder / 'dist').mkdir(parents=True)
    (folder / 'package.json').write_text('{"name": "onnxruntime-web", "version": "9.8.7"}')
    for file in FILES:
        (folder / 'dist' / file).write_text(file)
    (folder / 'dist' / 'ort.all.js').write_text('not needed')
    return folder


# --- data


def test_the_data_are_valid_by_the_schema(facts):
    data = facts | dict(trial=dict(runtime=None, model=None, images=[]))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA, cls=jsonschema.Draft202012Validator)
    model = next(model for model in facts['models'] if model['measured'])
    (speed, *_), params = model['measured'], model['params']
    for wrong in (
        dict(top1=80.0), dict(params=params['value']), dict(params=params | dict(value=0)),
        dict(params=params | dict(source='')), dict(measured=[speed | dict(ms=0.0)]), dict(stars=5),
        dict(measured=[speed | dict(date='yesterday')]), dict(license=model['license'] | dict(url='http://a.example')),
    ):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data | dict(models=[model | wrong]), SCHEMA)


def numbers_without_source(value, known, has_source=False, path='') -> list[str]:
    """Where numbers stand that neither carry the key of a source nor lie within an object that does."""
    if isinstance(value, dict):
        has_source = has_source or value.get('source') in known
        return [
            bad for key, one in value.items() for bad in numbers_without_source(one, known, has_source, f'{path}/{key}')
        ]
    if isinstance(value, list):
        return [
            bad for i, one in enumerate(value) for bad in numbers_without_source(one, known, has_source, f'{path}/{i}')
        ]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [path] if is_number and not has_source else []


def test_every_number_has_a_source(facts):
    assert numbers_without_source(facts['models'], facts['sources']) == []
    assert numbers_without_source([dict(params=1)], facts['sources']) == ['/0/params']
    used = set(re.findall(r'"source": "([^"]+)"', json.dumps(facts['models'])))
    assert used == set(facts['sources'])


def test_every_release_and_every_anchor_is_there_with_the_numbers_of_its_record(facts):
    models = {model['name']: model for model in facts['models']}
    assert list(models) == [release.name for release in all_releases()] + [rival.name for rival in RIVALS]
    for release in all_releases():
        model, result = models[release.name], release.protocol.result()
        assert (model['params']['value'], model['img_size']['value']) == (release.profile.params, release.img_size)
        assert (model['top1'] and model['top1']['top1']) == (result and result.top1)
        assert len(model['results']) == sum(len(protocol.results) for protocol in release.protocols)
    for rival in RIVALS:
        assert (models[rival.name]['top1']['top1'], models[rival.name]['params']['value']) == (rival.top1, rival.params)
    assert {model['family'] for model in facts['models']} == {*FAMILIES, None}


def test_speeds_are_those_of_the_rows_and_nothing_else_has_one(facts):
    rows = [row for row in figures(results_folder()) if row['mode'] == 'inference']
    for model in facts['models']:
        if model['of'] == 'timm':
            same_model = is_own_size(next(rival for rival in RIVALS if rival.name == model['name']))
        else:
            same_model = find_release(model['name']).profile == find_release(model['architecture']).profile
        own = [row['images_per_second'] for row in rows if row['model'] == model['architecture'] and same_model]
        assert sorted(row['images_per_second'] for row in model['measured']) == sorted(own)
    assert sum(bool(model['measured']) for model in facts['models']) >= 8


def test_a_larger_head_has_no_speed_that_was_measured_with_a_smaller_one(facts):
    speeds = {model['name']: bool(model['measured']) for model in facts['models']}
    assert speeds['tinyvit_21m_224.dist_in22k_ft_in1k']
    assert not speeds['tinyvit_21m_224.dist_in22k']


def test_figures_of_the_models_name_their_machine(tmp_path):
    write_rows(tmp_path / 'x_emulated.csv', [ROW, replace(ROW, batch=1, state='oom')])
    (figure,) = figures(tmp_path)
    assert (figure['machine'], figure['threads'], figure['dtype'], figure['date']) == (
        'Some CPU, AVX512', 1, 'float32', '2026-01-01',
    )  # fmt: skip
    assert (figure['ms'], figure['images_per_second'], figure['emulated']) == (800.0, 10.0, True)


def test_two_sources_with_the_same_words_have_two_keys():
    sources = Sources()
    keys = [
        sources.key('Table 1', 'https://a'),
        sources.key('Table 1', 'https://b'),
        sources.key('Table 1', 'https://a'),
    ]
    assert keys == ['table-1', 'table-1-2', 'table-1']


def test_every_tag_says_how_it_was_trained(facts):
    methods = {model['name']: model['method'] for model in facts['models'] if model['of'] == 'zoo'}
    assert set(methods.values()) == set(zoo.METHODS.values())
    for name, method in methods.items():
        assert (method == 'TinyMIM') == name.startswith('tinymim')


# --- the folder


def test_the_page_alone_is_whole_and_says_that_trying_is_left_out(cli, tmp_path, quick):
    code, out, _ = cli('browser', 'build', '-o', str(tmp_path / 'page'))
    assert (code, 'trying an image is left out' in out) == (0, True)
    written = {
        path.relative_to(tmp_path / 'page').as_posix() for path in (tmp_path / 'page').rglob('*') if path.is_file()
    }
    static = {path.relative_to(ROOT / 'space').as_posix() for path in (ROOT / 'space').rglob('*') if path.is_file()}
    assert written == static | {'zoo.json'}
    data = json.loads((tmp_path / 'page' / 'zoo.json').read_text())
    assert data['trial'] == dict(runtime=None, model=None, images=[])
    jsonschema.validate(data, SCHEMA)


def test_three_files_of_the_runtime_come_with_their_license(tmp_path, quick):
    model = tmp_path / 'm.onnx'
    model.write_bytes(b'preprocessing')
    built = build_site(tmp_path / 'page', package(tmp_path / 'npm'), demo_model=model)
    assert (built.runtime, built.trial) == ('9.8.7', True)
    assert {path.name for path in (tmp_path / 'page' / 'runtime').iterdir()} == {*FILES, 'LICENSE.txt'}
    assert 'MIT License' in (tmp_path / 'page' / 'runtime' / 'LICENSE.txt').read_text()
    assert (tmp_path / 'page' / 'trial' / 'model.onnx').read_bytes() == model.read_bytes()


def test_a_new_build_takes_the_place_of_the_old_one(tmp_path, quick):
    build_site(tmp_path / 'page', package(tmp_path / 'npm'))
    build_site(tmp_path / 'page')
    assert not (tmp_path / 'page' / 'runtime').exists()
    assert {path.name for path in tmp_path.iterdir()} == {'page', 'npm'}


def test_a_folder_of_something_else_is_refused(cli, tmp_path, quick):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'README.md').write_text('my own')
    code, _, err = cli('browser', 'build', '-o', str(tmp_path / 'mine'))
    assert (code, err.count('\n')) == (1, 1)
    assert 'choose a new folder' in err
    assert (tmp_path / 'mine' / 'README.md').read_text() == 'my own'


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(runtime='npm', npm=True), 'exclude each other'),
        (dict(demo_model='m.onnx'), 'needs onnxruntime-web'),
        (dict(runtime='nothing'), 'not an unpacked npm package'),
        (dict(runtime='npm', demo_model='nothing.onnx'), 'neither an .onnx file nor a folder'),
        (dict(runtime='npm', demo_model='empty'), 'is not the output of'),
        (dict(runtime='npm', demo_model='other.onnx'), 'labels and preprocessing'),
    ],
)
def test_what_cannot_be_built_is_one_sentence_and_nothing_is_left(tmp_path, quick, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    package(tmp_path / 'npm')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'other.onnx').write_bytes(b'preprocessing, segment_anything')
    with pytest.raises(ModelError, match=words):
        build_site('page', **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['empty', 'npm', 'other.onnx']


def test_without_npm_the_other_option_is_named(tmp_path, quick, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ModelError, match=r'npm, which is not installed: .* --runtime'):
        build_site(tmp_path / 'page', npm=True)


@pytest.mark.skipif(sys.platform == 'win32', reason='the npm of this test is a shell script')
@pytest.mark.parametrize('script', ['exit 1', 'exit 0', 'exec sleep 5'], ids=['refused', 'nothing', 'late'])
def test_a_registry_out_of_reach_leaves_no_package_and_no_error(tmp_path, monkeypatch, script):
    (tmp_path / 'npm').write_text(f'#!/bin/sh\nPATH=/bin:/usr/bin {script}\n')
    (tmp_path / 'npm').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(npm_package, 'CACHE', tmp_path / 'cache')
    monkeypatch.setattr(npm_package, 'SECONDS', 0.5)
    assert npm_package.npm_package('some-package', '1.0.0') is None
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['some-package-1.0.0.lock']


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_a_build_that_is_killed_leaves_the_old_page_and_nothing_after_the_next(tmp_path, quick, monkeypatch):
    folder = tmp_path / 'site' / 'page'
    build_site(folder)
    before = (folder / 'index.html').stat().st_ino

    def killed() -> None:
        monkeypatch.setattr(site, 'copy_runtime', lambda package, place: os.kill(os.getpid(), signal.SIGKILL))
        build_site(folder, 'npm')

    process = multiprocessing.get_context('fork').Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(folder.parent.iterdir())) == 2  # the old page, and what was begun
    assert (folder / 'index.html').stat().st_ino == before
    build_site(folder)
    assert [path.name for path in folder.parent.iterdir()] == ['page']


# --- the static files


def test_no_file_of_the_page_asks_another_host():
    texts = {path: path.read_text() for path in (ROOT / 'space').rglob('*') if path.suffix in ('.js', '.css', '.html')}
    assert len(texts) > 15
    for path, text in texts.items():
        addresses = set(re.findall(r'\w+://[^\s\'"`]+', text))
        assert addresses <= {'http://www.w3.org/2000/svg'}, path  # a name, which nothing fetches
    page = texts[ROOT / 'space' / 'index.html']
    assert "default-src 'none'" in page
    assert not re.search(r'\son\w+=|<style|\sstyle=', page)


def test_every_module_is_found_where_it_is_imported():
    imports = [
        path.parent / name
        for path in (ROOT / 'space' / 'js').rglob('*.js')
        for name in re.findall(r"^import .* from '(\..+)';", path.read_text(), re.MULTILINE)
    ]
    assert len(imports) > 30
    assert [path for path in imports if not path.is_file()] == []


@pytest.mark.slow
def test_the_wheel_builds_the_page(tmp_path):
    build = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '-o', str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob('*.whl'))
    subprocess.run([sys.executable, '-m', 'zipfile', '-e', wheel, tmp_path / 'site'], check=True)
    command = [sys.executable, '-m', 'tinyvit_zoo.cli', 'browser', 'build', '-o', 'page']
    env = os.environ | {'PYTHONPATH': str(tmp_path / 'site')}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        sum(bool(model['measured']) for model in json.loads((tmp_path / 'page' / 'zoo.json').read_text())['models'])
        >= 8
    )
