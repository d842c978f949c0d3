"""The pages in `hub_configs/`: valid to the Hub's own classes, every number from a record, every program runs."""

import importlib
import io
import json
import math
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import GRAPHS, for_each
from golden_rule import GOLDEN
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from timm.models._input import get_model_input_config

from tinyvit_zoo.build import build_model
from tinyvit_zoo.checkpoints import imported_path
from tinyvit_zoo.hub import configs as pages
from tinyvit_zoo.hub import configs_folder, save_folder
from tinyvit_zoo.hub.sizes import SIDES
from tinyvit_zoo.info import profile_model
from tinyvit_zoo.releases import FAMILIES, TEACHERS, Release, all_releases, find_family, find_release
from tinyvit_zoo.releases.profile import PROFILES

RELEASES = all_releases()
NAMES = [release.name for release in RELEASES]
FIRST_TAGS = list({release.architecture: release.name for release in reversed(RELEASES)}.values())[::-1]
PRINTED = re.compile(r'# (\((?:\d+, )+\d+\)|[\d.]+ (?:center|squash))$', re.MULTILINE)
"""A line that a program of a card prints according to its comment: a shape, or a crop."""


def page(name: str) -> Path:
    return configs_folder() / name


def card(name: str) -> ModelCard:
    return ModelCard.load(page(name) / 'README.md')


def section(name: str, title: str) -> str:
    _, found, rest = card(name).text.partition(f'\n## {title}\n')
    return rest.partition('\n## ')[0] if found else ''


def table(text: str) -> list[list[str]]:
    """Cells of the rows of the first table in a text, without its head."""
    rows = [line.strip('|').split('|') for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def published(release: Release) -> dict[str, list]:
    """Data set -> all of its results."""
    found = {}
    for protocol in release.protocols:
        for result in protocol.results:
            found.setdefault(result.dataset, []).append(result)
    return found


# --- drift


@pytest.mark.slow
def test_the_committed_pages_are_what_the_releases_say():
    assert pages.drifted_configs() == [], 'run: tinyvit-zoo cards build'


@pytest.fixture
def two_pages(tmp_path, monkeypatch) -> Path:
    """A `hub_configs/` of two pages, with the file of profiles in it."""
    monkeypatch.setattr(pages, 'configs_folder', lambda: tmp_path)
    monkeypatch.setattr(pages, 'PROFILES', tmp_path / PROFILES.name)
    monkeypatch.setattr(pages, 'all_releases', lambda: tuple(map(find_release, TWO)))
    pages.build_configs()
    return tmp_path


TWO = ('mae_lite_vit_tiny_patch16_224.mae_in1k_ft_in1k', 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k')


@pytest.mark.slow
def test_pages_are_built_and_changed_missing_or_extra_files_are_drift(two_pages, cli):
    assert cli('cards', 'check')[0] == 0
    first = two_pages / TWO[0]
    readme, results = first / 'README.md', first / '.eval_results' / 'imagenet-1k.yaml'
    for spoil in (
        lambda: readme.write_text(readme.read_text().replace('77.978', '78.978')),
        lambda: results.unlink(),
        lambda: (first / '.eval_results' / 'imagenet-a.yaml').write_text('[]'),
        lambda: (first / 'config.json').write_text('{}'),
    ):
        spoil()
        code, _, message = cli('cards', 'check')
        assert (code, TWO[0] in message, TWO[1] in message) == (1, True, False)
        assert cli('cards', 'build')[0] == 0
        assert cli('cards', 'check')[0] == 0
    (two_pages / PROFILES.name).write_text('{}')
    assert pages.drifted_configs() == [PROFILES.name]
    pages.build_configs()
    (two_pages / 'nothing').mkdir()
    assert pages.drifted_configs() == ['nothing']


# --- front matter and results, read by the classes of the Hub's client


@for_each('name', NAMES)
def test_the_front_matter_is_that_of_the_release(name):
    release, data = find_release(name), card(name).data
    task = 'image-classification' if release.num_classes else 'image-feature-extraction'
    assert (data.library_name, data.pipeline_tag, data.tags[:3]) == ('timm', task, [task, 'timm', 'transformers'])
    assert data.license == (release.license.spdx if release.license.given else 'unknown')
    assert data.datasets == [d for d in ('imagenet-22k', 'imagenet-1k') if d in release.datasets]
    assert data.base_model == release.hf_hub_id


@for_each('name', NAMES)
def test_the_model_index_holds_the_first_result_of_every_data_set(name):
    expected = {}
    for dataset, results in published(find_release(name)).items():
        for metric, value in (('top-1 accuracy', results[0].top1), ('top-5 accuracy', results[0].top5)):
            if value is not None:
                expected[dataset, metric] = (value, results[0].source_url)
    metadata = metadata_load(page(name) / 'README.md')
    assert ('model-index' in metadata) == bool(expected)
    if expected:
        model_name, found = model_index_to_eval_results(metadata['model-index'])
        assert model_name == name
        assert {(r.dataset_type, r.metric_name): (r.metric_value, r.source_url) for r in found} == expected
        assert card(name).data.eval_results == found


@for_each('name', NAMES)
def test_the_eval_results_are_all_published_top1_of_data_sets_on_the_hub(name):
    folder = page(name) / '.eval_results'
    files = sorted(folder.glob('*')) if folder.is_dir() else []
    results = published(find_release(name))
    assert {file.name for file in files} == {f'{dataset}.yaml' for dataset in results if dataset != 'imagenet-real'}
    for file in files:
        data = yaml.safe_load(file.read_text())
        for item in data:
            assert item.keys() == {'dataset', 'value', 'source', 'notes'}
            assert item['dataset'].keys() == {'id', 'task_id'}
            assert re.fullmatch(r'[\w.-]+/[\w.-]+', item['dataset']['id'])
            assert item['source'].keys() == {'url', 'name'}
            assert isinstance(item['value'], float)
        entries = [(e.value, e.source_url, e.source_name) for e in parse_eval_result_entries(data)]
        assert entries == [(r.top1, r.source_url, r.source) for r in results[file.stem]]


@for_each('name', NAMES)
def test_the_labels_of_a_head_are_named_by_reference(name):
    release, config = find_release(name), json.loads((page(name) / 'config.json').read_text())
    assert config.get('label_set') == release.labels
    assert 'label_names' not in config


def test_own_weights_carry_no_label_set(tmp_path):
    model = timm.create_model('mae_lite_vit_tiny_patch16_224')
    assert 'label_set' in json.loads((save_folder(model, tmp_path / 'released') / 'config.json').read_text())
    assert 'label_set' not in json.loads((save_folder(model, tmp_path / 'own', tag='own') / 'config.json').read_text())
    model.reset_classifier(7)
    assert 'label_set' not in json.loads((save_folder(model, tmp_path / 'seven') / 'config.json').read_text())


# --- what a card says


@for_each('name', NAMES)
def test_published_numbers_are_those_of_the_records_with_their_addresses(name):
    release = find_release(name)
    expected = [
        [r.dataset, str(r.top1), '-' if r.top5 is None else str(r.top5), f'{r.by}: [{r.source}]({r.source_url})']
        for protocol in release.protocols
        for r in protocol.results
    ]
    rows = table(section(name, 'Preprocessing and published accuracy'))
    assert [[*row[:3], row[4]] for row in rows] == expected
    expected = [
        [t.task, t.dataset, t.metric, str(t.value), t.setting or '-', f'[{t.source}]({t.source_url})']
        for t in release.transfers
    ]
    assert table(section(name, 'Published results on other tasks')) == expected
    details = section(name, 'Model Details')
    speed = release.speed
    measured = f'{speed.images_per_second} images/s on {speed.setting},' if speed else 'none known to be published\n'
    assert f'Throughput: {measured}' in details
    for source in (*published(release).values(), release.transfers, [release.speed] if release.speed else []):
        for result in source:
            assert re.match(r'https://(github\.com|arxiv\.org/abs)/', result.source_url)


FIRST_OF_FAMILY = {releases[0].name for releases in FAMILIES.values()}


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[] if n in FIRST_OF_FAMILY else [pytest.mark.slow]) for n in FIRST_TAGS]
)
def test_counted_numbers_are_those_of_the_model(name):
    release, rows = find_release(name), table(section(name, 'Resolutions'))
    model = build_model(release.architecture, device='meta', num_classes=release.num_classes)
    patch = 14 if '_patch14_' in name else 16
    sides = [math.ceil(side / patch) * patch for side in SIDES]
    assert [row[0] for row in rows] == [f'{s} (native)' if s == release.img_size else str(s) for s in sides]
    for side, row in ((sides[1], rows[1]), (sides[4], rows[4])):
        model.set_input_size(img_size=side)
        profile = profile_model(model)
        assert row[1:3] == [f'{profile.params / 1e6:.2f}', f'{profile.macs / 1e9:.2f}']
        if hasattr(model, 'window_sizes'):
            assert row[3].split(', ') == [f'{h}x{w}' for h, w in model.window_sizes[-len(row[3].split(', ')) :]]
        else:
            tokens = model.patch_embed(torch.empty(1, 3, side, side, device='meta')).flatten(1, -2).shape[1]
            assert int(row[3].partition(' ')[0]) == tokens + model.num_prefix_tokens
    native = next(row for row in rows if row[0].endswith('(native)'))
    details = section(name, 'Model Details')
    assert f'- Params (M): {native[1]}\n' in details
    assert float(re.search(r'- GMACs: ([\d.]+)', details)[1]) == pytest.approx(float(native[2]), abs=0.0051)


@for_each('family', FAMILIES)
def test_the_comparison_is_of_the_whole_family(family):
    for release in FAMILIES[family]:
        rows = table(section(release.name, 'Model Comparison'))
        assert [row[0].strip('`') for row in rows] == [other.name for other in FAMILIES[family]]
        for row, other in zip(rows, FAMILIES[family], strict=True):
            result = other.protocol.result()
            assert row[5] == (f'{result.top1} ({result.by})' if result else '-')


@for_each('name', NAMES)
def test_a_card_states_license_origin_and_quirks(name):
    release, details = find_release(name), section(name, 'Model Details')
    stated = f'{release.license.title}, stated at' if release.license.given else 'no license given (looked for at'
    assert f'**License of the weights:** {stated} {release.license.source}' in details
    assert (release.url or release.manual_download) in details
    assert (f'**Trained from:** `{release.parent}`' in details) == (release.parent is not None)
    for note in release.notes:
        assert f'- {note}\n' in section(name, 'Known quirks')


@for_each('name', NAMES)
def test_a_card_claims_no_more_than_the_golden_tests_check(name):
    release, text = find_release(name), section(name, 'What was verified')
    assert (release.golden is None) == ('_star_' in name) == ('could not be compared with theirs' in text)
    if release.golden is None:
        return
    golden = release.golden
    assert f'`tests/golden/{golden.reference}.npz`' in text
    assert (GOLDEN / f'{golden.reference}.npz').is_file()
    if golden.what.startswith('logits'):
        family = find_family(name)
        modules = dict(tinyvit='tinyvit_golden', mini_deit='minivit_golden', mini_swin='minivit_golden')
        module = 'clip_vit' if family in TEACHERS else modules.get(family, 'plain_vit_golden')
        tests = vars(importlib.import_module(f'test_{module}')).values()
        cases = [case for value in tests if isinstance(value, list) for case in value if hasattr(case, 'reference')]
        held = {
            (case.reference, case.model.partition('.')[0]): case.atol
            for case in cases
            if not case.kwargs or family in TEACHERS  # a small one, which the card says
        }
        assert held[golden.reference, release.architecture] == golden.atol
    else:
        tests = ''.join(path.read_text() for path in Path(__file__).parent.glob('test_pretrain_*.py'))
        stem = golden.reference.rpartition('_')[0] if golden.reference.rpartition('_')[2] in SIZES else golden.reference
        assert stem.removeprefix('tinymim_').removeprefix('maelite_') in tests


SIZES = ('tiny', 'small', 'base')


@for_each('name', FIRST_TAGS)
def test_the_citation_names_the_paper(name):
    paper, text = find_release(name).paper, section(name, 'Citation')
    assert f'title={{{paper.title}}}' in text
    assert f'arXiv:{paper.arxiv_id}' in text
    assert text.count(' and ') == len(paper.authors) - 1


def test_the_papers_are_those_that_the_package_asks_to_cite():
    cited = yaml.safe_load((Path(__file__).parents[1] / 'CITATION.cff').read_text())['references']
    cited = {
        reference['identifiers'][0]['value'].removeprefix('arXiv:'): (
            reference['title'],
            tuple(f'{author["given-names"]} {author["family-names"]}' for author in reference['authors']),
            reference['conference']['name'].rpartition('(')[2].rstrip(')') + f' {reference["year"]}',
        )
        for reference in cited
    }
    papers = {release.paper for release in RELEASES}
    assert {paper.arxiv_id: (paper.title, paper.authors, paper.venue) for paper in papers} == cited


# --- programs


@pytest.fixture
def any_image(monkeypatch) -> None:
    """Every address that is opened gives this image."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format='PNG')
    monkeypatch.setattr(urllib.request, 'urlopen', lambda url: io.BytesIO(file.getvalue()))


@pytest.fixture
def random_weights(monkeypatch, tmp_path) -> Iterator:
    """Keeps random weights where those of a release would be after an import."""
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path))
    return lambda name: save_folder(timm.create_model(name), imported_path(name))


def programs(name: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', card(name).text, re.DOTALL)


SNIPPETS = [
    pytest.param(
        name,
        marks=[pytest.mark.full] * (name not in FIRST_TAGS or find_family(name) in TEACHERS)
        + [pytest.mark.slow] * (not name.startswith(GRAPHS)),
    )
    for name in NAMES
]


@pytest.mark.parametrize('name', SNIPPETS)
def test_every_program_of_a_card_runs_and_prints_what_it_says(name, any_image, random_weights, capsys):
    random_weights(name)
    found = programs(name)
    assert all(f"'{name}'," in code and 'pretrained=True' in code for code in found)
    for code in found:
        capsys.readouterr()
        exec(compile(code, name, 'exec'), {})
        printed = [line for line in capsys.readouterr().out.splitlines() if PRINTED.match(f'# {line}')]
        assert printed == PRINTED.findall(code)
        assert printed


@for_each('name', NAMES)
def test_a_card_has_a_program_for_each_use_and_protocol(name):
    release = find_release(name)
    overlays = sum(bool(protocol.results) for protocol in release.protocols[1:])
    assert len(programs(name)) == (3 if release.num_classes else 2) + overlays


@for_each('name', [name for name in NAMES if name not in FIRST_TAGS])
def test_the_programs_of_other_tags_are_those_of_the_first_but_for_name_and_labels(name):
    release = find_release(name)
    first = find_release(release.architecture)
    assert first.name in FIRST_TAGS
    expected = [code.replace(first.name, name) for code in programs(first.name)]
    if release.labels != first.labels:
        changes = {f'# (1, {first.num_classes})': f'# (1, {release.num_classes})', first.labels: release.labels}
        for old, new in changes.items():
            assert any(old in code for code in expected)
            expected = [code.replace(old, new) for code in expected]
    assert programs(name) == expected[: len(programs(name))]


def test_the_shapes_that_a_card_says_are_those_of_the_models_own_size():
    for name in FIRST_TAGS:
        size = get_model_input_config(build_model(name, device='meta'))['input_size']
        assert f'Image size: {size[1]} x {size[2]}\n' in section(name, 'Model Details')
