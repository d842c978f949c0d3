"""The facts of the releases: weights, their origin, published results, and `info` as a view of them."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from conftest import for_each
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import tinyvit_zoo
from tinyvit_zoo.build import build_model
from tinyvit_zoo.hub import configs_folder, save_folder
from tinyvit_zoo.info import describe, list_releases, token_lines
from tinyvit_zoo.releases import FAMILIES, all_releases, find_family, find_release, record

facts_of = functools.cache(describe)  # builds the model
PLAIN = FAMILIES['tinymim'] + FAMILIES['mae_lite']
FINE_TUNED = [release for release in PLAIN if release.num_classes]

# Architecture -> (tags, the default first; heads of all blocks but the last, of the last; prefix tokens).
PLAIN_VITS = {
    'tinymim_vit_tiny_patch16_224': (['ft_in1k'], (3, 3), ['cls']),
    'tinymim_vit_small_patch16_224': (['ft_in1k'], (6, 6), ['cls']),
    'tinymim_vit_base_patch16_224': (['ft_in1k'], (12, 12), ['cls']),
    'tinymim_vit_tiny_star_patch16_224': (['ft_in1k'], (12, 12), ['cls', 'dist']),
    'tinymim_vit_tiny_student_patch16_224': (['mim_in1k'], (6, 12), ['cls']),
    'tinymim_vit_small_student_patch16_224': (['mim_in1k'], (6, 12), ['cls']),
    'tinymim_vit_base_student_patch16_224': (['mim_in1k'], (12, 16), ['cls']),
    'mae_lite_vit_tiny_patch16_224': (
        ['mae_in1k_ft_in1k', 'dmae_in1k_ft_in1k', 'mocov3_in1k_ft_in1k', 'deit_impr_in1k'],
        (12, 12),
        ['cls'],
    ),
    'mae_lite_vit_tiny_encoder_patch16_224': (['mae_in1k', 'dmae_in1k', 'mocov3_in1k'], (12, 12), ['cls']),
    'mae_lite_vit_tiny_rpe_patch16_224': (['mae_in1k_ft_in1k_1000e'], (12, 12), ['cls']),
    'mae_lite_vit_small_patch16_224': (
        ['mae_in1k_ft_in1k', 'dmae_in1k_ft_in1k', 'deit_impr_in1k'],
        (12, 12),
        ['cls'],
    ),
    'mae_lite_vit_small_encoder_patch16_224': (['mae_in1k', 'dmae_in1k'], (12, 12), ['cls']),
}


def names(releases):
    return [release.name for release in releases]


# --- all families


def test_the_facts_need_no_package():
    """So the command line can list them within a second: loaded by path, without `tinyvit_zoo` itself."""
    folder = Path(tinyvit_zoo.releases.__file__).parent
    code = f"""
import importlib.util, sys
before = set(sys.modules)
spec = importlib.util.spec_from_file_location('facts', {str(folder / '__init__.py')!r})
facts = sys.modules['facts'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(facts)
print(len(facts.list_releases()))
new = {{name.partition('.')[0] for name in sys.modules.keys() - before}} - {{'facts'}}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(len(all_releases()))]


def test_mean_and_standard_deviation_are_those_of_timm():
    assert (record.IMAGENET_MEAN, record.IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_names_are_unique_and_found():
    assert len(set(names(all_releases()))) == len(all_releases())
    for family, releases in FAMILIES.items():
        for release in releases:
            assert find_release(release.name) is release
            assert find_family(release.name) == find_family(release.architecture) == family


@for_each('name', names(all_releases()))
def test_every_release_says_where_its_weights_are(name):
    release = find_release(name)
    assert (release.url is None) == (release.manual_download is not None)
    assert (release.url or release.download_page).startswith('https://')
    if release.url:
        assert release.url.endswith(f'/{release.file}')
    else:
        assert f' from {release.download_page}' in release.manual_download
        assert (release.file or 'its name is not known') in release.manual_download


@for_each('name', names(all_releases()))
def test_labels_are_those_of_the_head(name):
    release = find_release(name)
    if not release.num_classes:
        assert release.labels is None
        assert release.protocol.result() is None
    else:
        assert len(timm.data.ImageNetInfo(release.labels).label_names()) == release.num_classes


@for_each('name', names(all_releases()))
def test_every_number_has_a_source_and_every_license_too(name):
    release = find_release(name)
    assert release.license.source.startswith('https://')
    assert release.training
    for protocol in release.protocols:
        assert protocol.source
        for result in protocol.results:
            assert 0 < result.top1 < 100
            assert result.source
            assert result.by in ('authors', 'timm')


@for_each('architecture', sorted({release.architecture for release in all_releases()}))
def test_the_default_is_a_classifier_where_one_was_released(architecture):
    tags = [release for release in all_releases() if release.architecture == architecture]
    assert (tags[0].num_classes == 1000) == any(release.num_classes == 1000 for release in tags)
    assert timm.create_model(architecture, device='meta').pretrained_cfg['tag'] == tags[0].tag


@for_each('name', names(all_releases()))
def test_the_cfg_of_timm_is_a_view_of_the_release(name):
    release, cfg = find_release(name), timm.get_pretrained_cfg(name)
    assert (cfg.url, cfg.hf_hub_id, cfg.num_classes) == (release.url, release.hf_hub_id, release.num_classes)
    assert (cfg.license, cfg.origin_url) == (release.license.spdx, release.origin_url)
    assert set(release.notes) <= set(cfg.notes or ())
    if release.manual_download:
        assert release.manual_download in cfg.notes[-1]


# --- TinyMIM and MAE-Lite


def test_architectures_and_tags_are_those_released():
    tags = {}
    for release in PLAIN:
        tags.setdefault(release.architecture, []).append(release.tag)
    assert tags == {architecture: expected[0] for architecture, expected in PLAIN_VITS.items()}


@pytest.mark.parametrize('architecture', PLAIN_VITS)
def test_heads_tokens_and_classes_of_a_model_are_those_of_its_weights(architecture):
    _, (first, last), prefix = PLAIN_VITS[architecture]
    model = facts_of(architecture)['model']
    assert model['heads'] == [first] * 11 + [last]
    assert (model['prefix_tokens'], model['patches']) == (prefix, [14, 14])
    assert bool(model['num_classes']) == any(r.num_classes for r in PLAIN if r.architecture == architecture)


@for_each('name', names(PLAIN))
def test_the_notes_give_the_heads_that_the_model_has(name):
    heads = facts_of(name)['model']['heads']
    first, *last = map(int, re.findall(r'(\d+)(?: heads|(?= in the last block))', find_release(name).notes[0])[:2])
    assert (first, *last[:1]) == ((heads[0], heads[-1]) if heads[0] != heads[-1] else (heads[0],))


@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_the_features_of_a_student_end_before_what_was_never_trained(size):
    facts = facts_of(f'tinymim_vit_{size}_student_patch16_224')
    assert facts['model']['blocks_run'] == 11
    assert any(note.startswith('never trained: ') for note in facts['release']['notes'])
    assert facts_of(f'tinymim_vit_{size}_patch16_224')['model']['blocks_run'] == 12


def test_classifiers_pool_the_patches_and_norm_afterwards():
    pooling = {release.architecture: facts_of(release.name)['model']['pooling'] for release in FINE_TUNED}
    star = pooling.pop('tinymim_vit_tiny_star_patch16_224')
    assert set(pooling.values()) == {'mean of the patch tokens, fc_norm'}
    assert star == (
        'conv1x1 to 1280 channels, mean of the patch tokens, fc_norm; the dist token to a classifier of its own'
    )


def test_a_distilled_mae_lite_says_that_its_class_token_is_classified_too(tmp_path):
    model = timm.create_model('mae_lite_vit_tiny_patch16_224', distilled=True)
    facts = facts_of(f'local-dir:{save_folder(model, tmp_path / "model")}')['model']
    assert facts['prefix_tokens'] == ['cls']
    assert facts['pooling'] == (
        'mean of the patch tokens, fc_norm; dist_norm of the cls token to a classifier of its own'
    )


def test_encoders_pool_what_their_features_end_in():
    """MAE-Lite's final norm was trained and comes before the mean; a student's was not and is left out."""
    pooling = {release.architecture: facts_of(release.name)['model']['pooling'] for release in PLAIN}
    assert {p for name, p in pooling.items() if '_encoder_' in name} == {'norm, mean of the patch tokens'}
    assert {p for name, p in pooling.items() if '_student_' in name} == {'mean of the patch tokens'}


def test_results_of_the_released_files_come_first():
    top1 = {release.name: release.protocol.result().top1 for release in FINE_TUNED}
    assert top1 == {
        'tinymim_vit_tiny_patch16_224.ft_in1k': 75.8,
        'tinymim_vit_small_patch16_224.ft_in1k': 83.0,
        'tinymim_vit_base_patch16_224.ft_in1k': 85.0,
        'tinymim_vit_tiny_star_patch16_224.ft_in1k': 79.6,
        'mae_lite_vit_tiny_patch16_224.mae_in1k_ft_in1k': 77.978,
        'mae_lite_vit_tiny_patch16_224.dmae_in1k_ft_in1k': 78.4,
        'mae_lite_vit_tiny_patch16_224.mocov3_in1k_ft_in1k': 76.8,
        'mae_lite_vit_tiny_patch16_224.deit_impr_in1k': 75.8,
        'mae_lite_vit_tiny_rpe_patch16_224.mae_in1k_ft_in1k_1000e': 79.002,
        'mae_lite_vit_small_patch16_224.mae_in1k_ft_in1k': 82.1,
        'mae_lite_vit_small_patch16_224.dmae_in1k_ft_in1k': 82.5,
        'mae_lite_vit_small_patch16_224.deit_impr_in1k': 80.2,
    }
    moco = find_release('mae_lite_vit_tiny_patch16_224.mocov3_in1k_ft_in1k').protocol.results
    assert [(r.top1, 'paper' in r.source) for r in moco] == [(76.8, False), (73.7, True)]


def test_licenses_are_those_stated():
    for release in PLAIN:
        assert any('CC-BY-NC 4.0' in note for note in release.notes)
        assert release.license.given == (find_family(release.name) == 'mae_lite')


def test_every_file_of_mae_lite_has_a_page_of_its_own_and_tinymim_one_folder():
    pages = [release.download_page for release in FAMILIES['mae_lite']]
    assert len(set(pages)) == len(pages) == 13
    assert all(re.fullmatch(r'https://drive\.google\.com/file/d/[\w-]{33}/view', page) for page in pages)
    assert len({release.download_page for release in FAMILIES['tinymim']}) == 1


def test_names_of_files_that_nobody_confirmed_are_marked():
    confirmed = [release.file for release in FAMILIES['tinymim'] if release.file_doubt is None]
    assert sorted(confirmed) == ['TinyMIM-FT-Tstar.pth', 'TinyMIM-PT-B.pth']
    assert 'missing' in find_release('tinymim_vit_tiny_student_patch16_224').file_doubt


# --- views of them in timm and `info`


def test_timm_lists_weights_that_it_could_download_and_we_list_all():
    ours = {row['name'] for row in list_releases()}
    listed = set(timm.list_pretrained()) & ours
    assert ours == set(names(all_releases()))
    assert ours - listed == set(names(PLAIN))
    assert {release.architecture for release in PLAIN} <= set(timm.list_models())


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('deit_tiny_distilled_patch16_224', (3, ['cls', 'dist'], 'norm, the first token; the dist token to a')),
        ('vit_medium_patch16_reg4_gap_256', (8, ['reg'] * 4, 'mean of the patch tokens, fc_norm')),
        ('beit_base_patch16_224', (12, ['cls'], 'mean of the patch tokens, fc_norm')),
        ('mini_deit_tiny_patch16_224', (3, [], 'norm, mean of the patch tokens')),
    ],
)
def test_info_knows_the_tokens_of_other_models_too(name, expected):
    facts = facts_of(name)['model']
    heads, prefix, pooling = expected
    assert set(facts['heads']) == {heads}
    assert facts['prefix_tokens'] == prefix
    assert facts['pooling'].startswith(pooling)


@pytest.mark.parametrize('name', ['tinyvit_5m_224', 'mini_swin_tiny_patch4_window7_224', 'resnet18'])
def test_models_without_tokens_have_no_such_facts(name):
    facts = facts_of(name)['model']
    assert [facts[k] for k in ('heads', 'prefix_tokens', 'patches', 'pooling', 'blocks_run')] == [None] * 5


def test_patches_follow_the_size():
    assert facts_of('deit_tiny_patch16_224', (192, 320))['model']['patches'] == [12, 20]


def test_heads_and_tokens_in_words():
    facts = dict(heads=[3] * 12, prefix_tokens=['cls', 'dist'], patches=[14, 20], pooling='norm, none', blocks_run=12)
    assert token_lines(facts) == {
        'attention heads': '3 in every block',
        'tokens': 'cls, dist, 14x20 patches',
        'pooling': 'norm, none',
    }
    early = token_lines(facts | dict(heads=[6] * 11 + [12], blocks_run=11))
    assert early['attention heads'] == '6 in blocks 0-10, 12 in block 11'
    assert early['features'] == 'those after block 11 of 12'
    assert token_lines(facts | dict(heads=[4, 8, 8]))['attention heads'] == '4 in block 0, 8 in blocks 1-2'
    assert token_lines(facts | dict(heads=None)) == {}


@for_each('name', names(all_releases()))
def test_a_card_states_the_facts_of_info(name):
    release, facts = find_release(name), facts_of(name)
    card = (configs_folder() / name / 'README.md').read_text()
    front, _, text = card.removeprefix('---\n').partition('---\n')
    assert f'license: {release.license.spdx if release.license.given else "unknown"}\n' in front
    for part in (name, release.url or release.manual_download, release.paper.url, *release.notes):
        assert part in text
    for label, value in token_lines(facts['model']).items():
        assert f'- {label.capitalize()}: {value}\n' in text
    for protocol in release.protocols:
        for result in protocol.results:
            assert f'| {result.dataset} | {result.top1} |' in text
            assert result.source in text
    assert (f'tinyvit-zoo import FILE --name {name}' in text) == (release.url is None)


def test_an_encoder_is_counted_without_a_classifier():
    rows = {row['name']: row for row in list_releases('tinymim_vit_tiny*')}
    assert rows['tinymim_vit_tiny_student_patch16_224.mim_in1k']['num_classes'] == 0
    assert rows['tinymim_vit_tiny_student_patch16_224.mim_in1k']['params'] == 5_524_416
    assert rows['tinymim_vit_tiny_patch16_224.ft_in1k']['params'] == 5_717_416
    student = build_model('tinymim_vit_tiny_student_patch16_224', device='meta')
    assert student.num_classes == 0


def test_the_accuracies_of_the_papers_tables_stand_beside_those_of_the_released_pages():
    results = {
        (release.name, r.dataset): r.top1
        for release in all_releases()
        for protocol in release.protocols
        for r in protocol.results
        if r.source == 'Table 1 of the paper'
    }
    assert results == {
        ('tinyvit_21m_224.dist_in22k_ft_in1k', 'imagenet-real'): 88.9,
        ('tinyvit_21m_224.dist_in22k_ft_in1k', 'imagenet-v2'): 75.1,
        ('tinyvit_21m_224.in1k', 'imagenet-real'): 88.1,
        ('tinyvit_21m_224.in1k', 'imagenet-v2'): 73.1,
    }
    coco = {
        (release.name.partition('.')[2], t.source.split()[0]): t.value
        for release in all_releases()
        for t in release.transfers
        if release.architecture.startswith('mae_lite') and t.metric == 'box AP'
    }
    assert coco == {
        ('mae_in1k', 'Table'): 38.9,
        ('mae_in1k', 'DETECTION.md'): 39.9,
        ('dmae_in1k', 'Table'): 42.7,
        ('dmae_in1k', 'DETECTION.md'): 42.3,
        ('mocov3_in1k', 'Table'): 40.0,
        ('mocov3_in1k', 'DETECTION.md'): 39.7,
        ('deit_impr_in1k', 'Table'): 40.7,
        ('deit_impr_in1k', 'DETECTION.md'): 40.4,
    }
