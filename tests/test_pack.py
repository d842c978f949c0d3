"""A page is packed whole or not at all, and `verify` notices every change."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from conftest import refused, small_of
from golden_rule import golden, noise
from PIL import Image
from safetensors.torch import load_file, save_file

from tinyvit_zoo.checkpoints import CheckpointError
from tinyvit_zoo.checkpoints.manifest import read_manifest
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.hub.own_card import render_own_card
from tinyvit_zoo.hub.pack import pack
from tinyvit_zoo.hub.verify import verify

NAME = 'tinyvit_5m_224.in1k'
FILES = ['README.md', 'config.json', 'model.safetensors', 'modeling_tinyvit_zoo.py', 'test/rand_tensors.safetensors']
LABELS = [f'label {i}' for i in range(11)]


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory) -> Path:
    """A small model's folder, not packed yet."""
    return save_folder(small_of('tinyvit', img_size=32), tmp_path_factory.mktemp('model') / 'model')


@pytest.fixture(scope='module')
def packed_once(model_folder, tmp_path_factory) -> Path:
    return pack(
        str(model_folder),
        tmp_path_factory.mktemp('page') / 'page',
        tag='mine',
        labels=LABELS,
        license='mit',
        repo='me/x',
    )


@pytest.fixture
def page(packed_once, tmp_path) -> Path:
    """A packed page that a test may damage."""
    return Path(shutil.copytree(packed_once, tmp_path / 'page'))


def flip(path: Path, position: float = 0.5) -> None:
    """Change one byte, at this share of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def edit_config(page: Path, **changes) -> None:
    config = json.loads((page / 'config.json').read_text())
    (page / 'config.json').write_text(json.dumps(config | changes))


def test_a_page_holds_these_files_and_the_manifest_lists_them_all(page):
    assert sorted(read_manifest(page / 'manifest.json')) == FILES
    found = sorted(p.relative_to(page).as_posix() for p in page.rglob('*') if p.is_file())
    assert found == sorted([*FILES, 'manifest.json'])
    proof = verify(page)
    assert proof.listed == len(FILES)
    assert proof.commit is None
    assert proof.difference < 1e-6


def test_the_test_tensors_are_as_timms_tests_read_them(page):
    pair = load_file(page / 'test/rand_tensors.safetensors')
    assert pair['input'].shape == (1, 3, 32, 32)
    with torch.inference_mode():
        output = timm.create_model(f'local-dir:{page}', pretrained=True).eval()(pair['input'])
    assert torch.allclose(output, pair['output'], rtol=1e-3, atol=1e-4)
    assert pair['output'].abs().max() > 0.01


@pytest.mark.parametrize('position', [0, 0.01, 0.3, 0.9, 1])
def test_one_flipped_byte_of_weights_fails(page, position):
    flip(page / 'model.safetensors', position)
    refused(lambda: verify(page), 'model.safetensors', 'sha256 differs')


@pytest.mark.parametrize('file', [f for f in FILES if f != 'model.safetensors'])
def test_one_flipped_byte_of_any_file_fails(page, file):
    flip(page / file)
    refused(lambda: verify(page), file, 'sha256 differs')


@pytest.mark.parametrize('file', FILES)
def test_a_missing_file_is_named(page, file):
    (page / file).unlink()
    refused(lambda: verify(page), file, 'missing')


def test_without_a_manifest_the_output_still_shows_a_change(page):
    (page / 'manifest.json').unlink()
    assert verify(page).listed == 0
    weights = load_file(page / 'model.safetensors')
    weights['stages.3.blocks.0.mlp.fc1.weight'][0] *= 1.5
    save_file(weights, page / 'model.safetensors')
    refused(lambda: verify(page), 'does not give the expected output')


@pytest.mark.parametrize('spoil', [0, 0.002, 1])
def test_without_a_manifest_damaged_weights_are_refused_or_harmless(page, spoil):
    (page / 'manifest.json').unlink()
    data = (page / 'model.safetensors').read_bytes()
    (page / 'model.safetensors').write_bytes(data[: int(spoil * len(data)) - (spoil == 1)])
    refused(lambda: verify(page), 'model.safetensors')


def test_a_configuration_of_another_model_is_refused(page):
    (page / 'manifest.json').unlink()
    edit_config(page, num_classes=12)
    with pytest.raises(CheckpointError):
        verify(page)


def test_an_output_of_nan_fails(page):
    (page / 'manifest.json').unlink()
    weights = load_file(page / 'model.safetensors')
    weights['head.fc.bias'][0] = float('nan')
    save_file(weights, page / 'model.safetensors')
    refused(lambda: verify(page), 'does not give the expected output')


def test_a_folder_without_test_tensors_fails(model_folder):
    refused(lambda: verify(model_folder), 'test/rand_tensors.safetensors')


@pytest.mark.parametrize(
    'content',
    ['', '[]', '{"sha256": 3}', '{"sha256": {"../secret": "%064d"}}', '{"sha256": {"/etc/passwd": "%064d"}}',
     '{"sha256": {"config.json": "short"}}'],
)  # fmt: skip
def test_an_invalid_manifest_is_refused(page, content):
    (page / 'manifest.json').write_text(content % 0 if '%' in content else content)
    refused(lambda: verify(page), 'manifest.json is not a list')


@pytest.mark.parametrize('file', [None, 'config.json', 'model.safetensors', 'test/rand_tensors.safetensors'])
def test_a_manifest_without_the_needed_files_is_refused(page, file):
    listed = read_manifest(page / 'manifest.json')
    kept = {name: sha256 for name, sha256 in listed.items() if file and name != file}
    (page / 'manifest.json').write_text(json.dumps({'sha256': kept}))
    refused(lambda: verify(page), f'does not list {file or "config.json"}')


@pytest.mark.parametrize(
    'changes',
    [
        dict(architecture=5),
        dict(model_args=[1]),
        dict(model_args=dict(num_heads=[0, 0, 0, 0])),
        dict(model_args=dict(global_pool='nope')),
        dict(model_args=dict(device='meta')),
        dict(pretrained_cfg=5),
    ],
    ids=str,
)
@pytest.mark.filterwarnings('ignore')  # of torch, of a model without values
def test_a_configuration_that_makes_no_model_is_reported_in_one_sentence(page, changes):
    (page / 'manifest.json').unlink()
    edit_config(page, **changes)
    with pytest.raises((CheckpointError, ModelError), match='page'):
        verify(page)


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 4, 32, 32), (1, 0, 32, 32)])
def test_test_tensors_that_do_not_fit_the_model_are_reported_in_one_sentence(page, shape):
    (page / 'manifest.json').unlink()
    pair = load_file(page / 'test/rand_tensors.safetensors')
    save_file(pair | {'input': torch.zeros(shape)}, page / 'test/rand_tensors.safetensors')
    refused(lambda: verify(page), 'takes its test tensors')
    save_file(pair | {'output': torch.zeros(0, 11)}, page / 'test/rand_tensors.safetensors')
    refused(lambda: verify(page), 'no numbers to compare with')


def test_a_place_that_is_neither_folder_nor_page_is_reported(tmp_path):
    refused(lambda: verify(tmp_path / 'nothing'), 'neither a folder nor the name of a page')


def test_own_weights_carry_no_facts_of_a_release(page):
    config = json.loads((page / 'config.json').read_text())
    assert config['pretrained_cfg']['tag'] == 'mine'
    assert not config['pretrained_cfg'].get('license')
    assert config['label_names'] == LABELS
    card = (page / 'README.md').read_text()
    assert 'license: mit' in card
    assert 'hf-hub:me/x' in card
    assert 'arxiv' not in card


@pytest.mark.slow
@pytest.mark.parametrize('kwargs', [dict(num_classes=3), dict(img_size=64), dict(in_chans=1)], ids=str)
def test_weights_trained_from_a_release_and_saved_without_a_tag_are_not_a_release(tmp_path, kwargs):
    model = timm.create_model(NAME, **kwargs)
    assert model.pretrained_cfg['tag'] == 'in1k'
    page = pack(str(save_folder(model, tmp_path / 'model')), tmp_path / 'page')
    cfg = json.loads((page / 'config.json').read_text())['pretrained_cfg']
    assert cfg['tag'] == 'own'
    assert 'license' not in cfg
    assert 'arxiv' not in (page / 'README.md').read_text()
    assert not (page / '.eval_results').exists()
    assert verify(page).listed == len(FILES)


@pytest.mark.slow
@pytest.mark.parametrize(('saved_as', 'tag'), [(None, None), ('ft_digits', 'mine')])
def test_the_labels_of_a_folder_stay_whatever_it_is_called(saved_as, tag, tmp_path):
    folder = save_folder(small_of('tinyvit', img_size=32), tmp_path / 'model', LABELS, {'label 3': 'three'}, saved_as)
    config = json.loads((pack(str(folder), tmp_path / 'page', tag=tag) / 'config.json').read_text())
    assert (config['label_names'], config['label_descriptions']) == (LABELS, {'label 3': 'three'})
    assert config['pretrained_cfg']['tag'] == (tag or saved_as or 'own')


@pytest.mark.parametrize('facts', [dict(labels=['x']), dict(license='mit'), dict(img_size=(64, 64))], ids=str)
def test_weights_of_a_release_take_no_facts_of_others(tmp_path, facts):
    refused(lambda: pack(NAME, tmp_path / 'page', 'file', **facts), NAME, '--tag', kind=ModelError)


def test_a_license_for_a_card_that_is_kept_is_refused(page, tmp_path):
    refused(lambda: pack(str(page), tmp_path / 'new', license='mit'), 'write the license there', kind=ModelError)


def test_the_card_of_own_weights_names_the_class_that_loads_them_and_their_input(tmp_path):
    model = timm.create_model('tinyvit_5m_224', num_classes=3, in_chans=1)
    ours = render_own_card(model)
    assert 'Image: 1 channel, 224x224' in ours
    assert '`tinyvit_5m_224` of tinyvit-zoo' in ours
    assert 'import tinyvit_zoo' in ours
    for card in (render_own_card(model, for_timm=True), render_own_card(timm.create_model('tiny_vit_5m_224'))):
        assert '`tiny_vit_5m_224` of timm' in card
        assert 'zoo' not in card
    page = pack('tinyvit_5m_224', tmp_path / 'page', random_seed=1, for_timm=True)
    assert '`tiny_vit_5m_224` of timm' in (page / 'README.md').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('classes', [11, 0])
def test_the_program_of_an_own_card_runs_as_pasted(classes, tmp_path, monkeypatch, capsys):
    model = small_of('tinyvit', img_size=32, num_classes=classes)
    labels = [f'label {i}' for i in range(classes)] or None
    page = pack(str(save_folder(model, tmp_path / 'model', labels)), tmp_path / 'page', tag='mine', repo='me/x')
    (program,) = re.findall(r'```python\n(.*?)```', (page / 'README.md').read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.new('L', (50, 40), 99).save('image.jpg')
    exec(compile(program.replace('hf-hub:me/x', f'local-dir:{page}'), 'README.md', 'exec'), {})
    shape, *lines = capsys.readouterr().out.splitlines()
    assert shape == str((1, classes or model.num_features))
    assert len(lines) == min(classes, 5)
    assert all(re.fullmatch(r'[\d.]+% label \d+', line) for line in lines)


@pytest.mark.slow
def test_a_card_can_be_given_the_name_of_its_page_later(model_folder, tmp_path):
    page = pack(str(model_folder), tmp_path / 'page')
    assert "'hf-hub:OWNER/NAME'" in (page / 'README.md').read_text()
    pack(str(page), page, repo='me/x')
    assert "'hf-hub:me/x'" in (page / 'README.md').read_text()
    assert verify(page).listed == len(FILES)
    refused(lambda: pack(str(page), page, repo='x'), "'x' is not the name of a page", kind=ModelError)


@pytest.mark.parametrize('license', ['MIT', 'mit\ntags: x', 'a: b', ''])
def test_an_invalid_license_id_is_refused(model_folder, tmp_path, license):
    refused(lambda: pack(str(model_folder), tmp_path / 'page', license=license), 'is not a license id', kind=ModelError)


@pytest.mark.slow
def test_the_expected_output_is_computed_in_another_process(
    model_folder, tmp_path, monkeypatch, pack_by_another_process
):
    """That process knows only the files: a model that is broken here does not affect it."""
    monkeypatch.setattr('tinyvit_zoo.models.tinyvit.TinyViT.forward', lambda *_: pytest.fail('computed here'))
    pair = load_file(pack(str(model_folder), tmp_path / 'page') / 'test/rand_tensors.safetensors')
    monkeypatch.undo()
    with torch.inference_mode():
        expected = (
            timm.create_model(f'local-dir:{model_folder}', pretrained=True).eval().double()(pair['input'].double())
        )
    torch.testing.assert_close(pair['output'], expected.float(), rtol=1e-6, atol=1e-7)


# (name, file of `official_file`, reference): the authors' code in double precision, of weights filled by a rule.
GOLDEN = [
    (NAME, 'tiny_vit_5m_224', 'tiny_vit_5m_224'),
    ('mini_deit_tiny_patch16_224.distill_in1k',) + 2 * ('mini_deit_tiny_patch16_224',),
    ('mini_swin_tiny_patch4_window7_224.distill_in1k',) + 2 * ('mini_swin_tiny',),
]


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'file', 'reference'), GOLDEN)
def test_the_expected_output_can_come_from_the_authors_code(name, file, reference, official_file, tmp_path, cli):
    output = torch.from_numpy(golden(reference)['logits_f64'])
    save_file(dict(input=noise(224, 224), output=output), tmp_path / 'pair.safetensors')
    arguments = (name, '--weights', official_file(file), '--test-tensors', tmp_path / 'pair.safetensors')
    code, _, err = cli('pack', *arguments, '-o', tmp_path / 'page')
    assert code == 0, err
    pair = load_file(tmp_path / 'page/test/rand_tensors.safetensors')
    assert torch.equal(pair['output'], output.float())
    assert verify(tmp_path / 'page').difference < 1e-6


def test_an_expected_output_that_the_model_does_not_give_is_refused(packed_once, tmp_path):
    pair = load_file(packed_once / 'test/rand_tensors.safetensors')
    file = tmp_path / 'pair.safetensors'
    save_file(pair, file)
    pack(str(packed_once), tmp_path / 'page', tensors=file)
    save_file(pair | dict(output=pair['output'] + 1e-4), file)
    message = refused(
        lambda: pack(str(packed_once), tmp_path / 'new', tensors=file),
        'pair.safetensors',
        'does not give the expected output',
    )
    assert '/.new.' not in message
    save_file(dict(input=pair['input']), file)
    refused(lambda: pack(str(packed_once), tmp_path / 'new', tensors=file), 'holds no test tensors')
    refused(lambda: pack(str(packed_once), tmp_path / 'new', tensors=tmp_path / 'none'), 'holds no test tensors')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['page', 'pair.safetensors']


def test_a_page_that_would_not_rebuild_its_model_is_not_written(
    model_folder, tmp_path, monkeypatch, pack_by_another_process
):
    monkeypatch.setattr(sys, 'executable', shutil.which('false'))
    refused(lambda: pack(str(model_folder), tmp_path / 'page'), 'does not rebuild its model')
    assert list(tmp_path.iterdir()) == []


def test_packing_again_replaces_the_page_and_keeps_an_edited_card(page):
    (page / 'README.md').write_text('# Mine\n')
    refused(lambda: verify(page), 'README.md', '`tinyvit-zoo pack`')
    weights = (page / 'model.safetensors').read_bytes()
    assert pack(str(page), page) == page
    assert (page / 'README.md').read_text() == '# Mine\n'
    assert (page / 'model.safetensors').read_bytes() == weights
    assert verify(page).listed == len(FILES)
    assert [p.name for p in page.parent.iterdir()] == ['page']


def test_an_edited_page_is_not_replaced_by_another(page, model_folder):
    (page / 'README.md').write_text('# Mine\n')
    refused(lambda: pack(str(model_folder), page), 'README.md was changed since', kind=FileExistsError)
    assert (page / 'README.md').read_text() == '# Mine\n'
    (page / 'README.md').unlink()
    assert pack(str(model_folder), page) == page
    assert verify(page).listed == len(FILES)


@pytest.mark.slow
def test_a_kept_card_keeps_its_results_and_random_weights_get_neither(page, tmp_path):
    results = page / '.eval_results/imagenet-1k.yaml'
    results.parent.mkdir()
    results.write_text('- value: 1\n')
    again = pack(str(page), tmp_path / 'again')
    assert (again / '.eval_results/imagenet-1k.yaml').read_text() == '- value: 1\n'
    assert (again / 'README.md').read_text() == (page / 'README.md').read_text()
    random = pack(str(page), tmp_path / 'random', random_seed=1)
    assert 'are random (seed 1)' in (random / 'README.md').read_text()
    assert not (random / '.eval_results').exists()


def test_a_folder_with_other_files_is_never_replaced(page, model_folder):
    (page / 'test/thesis.tex').write_text('years of work')
    refused(lambda: pack(str(model_folder), page), 'test/thesis.tex', kind=FileExistsError)
    assert (page / 'test/thesis.tex').read_text() == 'years of work'


@pytest.mark.parametrize(
    ('name', 'kwargs', 'words'),
    [
        (NAME, {}, ('--weights', '--random')),
        (NAME, dict(weights='x', random_seed=1), ('either',)),
        ('tinyvit_5m', dict(random_seed=1), ('Unknown model', 'Did you mean')),
        ('tinyvit_5m_224.mine', dict(random_seed=1), ("no weights called 'mine'",)),
        ('local-dir:x', dict(random_seed=1), ('without it',)),
        ('some/where', {}, ('not the folder of a model', 'config.json')),
    ],
)
def test_wrong_arguments_are_reported(tmp_path, name, kwargs, words):
    refused(lambda: pack(name, tmp_path / 'page', **kwargs), *words, kind=ModelError)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_no_other_weights(model_folder, tmp_path):
    refused(lambda: pack(str(model_folder), tmp_path / 'page', weights='x'), 'of its own', kind=ModelError)


def test_a_wrong_number_of_labels_is_refused(model_folder, tmp_path):
    refused(lambda: pack(str(model_folder), tmp_path / 'page', labels=['one']), 'label names for 11', kind=ModelError)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_is_named_in_a_sentence(cli, tmp_path):
    file = tmp_path / 'none.txt'
    code, _, err = cli('pack', 'tinyvit_5m_224', '--labels', file, '-o', tmp_path / 'page')
    sentence = f'{file} cannot be read ({os.strerror(errno.ENOENT)}): --labels takes a file, one name per line.'
    assert (code, ' '.join(err.split())) == (2, f'Invalid value: {sentence}')


@pytest.mark.slow
def test_labels_are_read_as_utf8_with_or_without_a_byte_order_mark(model_folder, tmp_path, cli):
    labels = tmp_path / 'labels.txt'
    labels.write_bytes('größe\n'.encode('latin-1'))
    code, _, err = cli('pack', model_folder, '--labels', labels, '-o', tmp_path / 'page')
    assert (code, 'not UTF-8 text' in err, 'Traceback' in err) == (2, True, False)
    labels.write_text('\n'.join(f'größe {i}' for i in range(11)), encoding='utf-8-sig')
    assert cli('pack', model_folder, '--labels', labels, '-o', tmp_path / 'page')[0] == 0
    names = json.loads((tmp_path / 'page/config.json').read_text())['label_names']
    assert names == [f'größe {i}' for i in range(11)]


def test_the_name_of_a_page_is_checked_before_anything_is_packed(cli, monkeypatch):
    monkeypatch.setattr('tinyvit_zoo.hub.pack.pack', None)
    code, _, err = cli('push', NAME, '--random', '--seed', 1, '--to', 'small')
    assert (code, err) == (1, "'small' is not the name of a page: write owner/name.\n")


@pytest.mark.slow
def test_random_weights_are_the_same_for_the_same_seed_and_the_card_says_so(tmp_path):
    state = torch.get_rng_state()
    pages = [pack(NAME, tmp_path / str(i), random_seed=seed) for i, seed in enumerate((1, 1, 2))]
    assert torch.equal(torch.get_rng_state(), state)
    data = [(p / 'model.safetensors').read_bytes() for p in pages]
    assert data[0] == data[1] != data[2]
    card = (pages[0] / 'README.md').read_text()
    assert 'are random (seed 1)' in card
    assert 'arxiv' not in card
    config = json.loads((pages[0] / 'config.json').read_text())
    assert (config['pretrained_cfg']['tag'], config['pretrained_cfg']['license']) == ('in1k', 'mit')
    assert not (pack(str(pages[0]), tmp_path / 'again') / '.eval_results').exists()


@pytest.mark.slow
def test_weights_of_a_release_and_of_ones_own_from_a_file(tmp_path, cli):
    def file(**kwargs) -> Path:
        path = tmp_path / 'weights.safetensors'
        path.write_bytes(safetensors.torch.save(timm.create_model('tinyvit_5m_224', **kwargs).state_dict()))
        return path

    released = pack(NAME, tmp_path / 'released', file(num_classes=1000))
    assert 'arxiv' in (released / 'README.md').read_text()
    assert '.eval_results/imagenet-1k.yaml' in read_manifest(released / 'manifest.json')
    (tmp_path / 'labels.txt').write_text('cat\ndog\nbird\n')
    code, out, err = cli(
        'pack', 'tinyvit_5m_224', '--weights', file(num_classes=3, img_size=(32, 64)), '--img-size', '32x64',
        '--labels', tmp_path / 'labels.txt', '--license', 'cc0-1.0', '-o', tmp_path / 'own',
    )  # fmt: skip
    assert (code, err) == (0, '')
    assert str(tmp_path / 'own') in out
    code, out, err = cli('verify', tmp_path / 'own')
    assert code == 0, err
    assert 'Proved' in out
    model = timm.create_model(f'local-dir:{tmp_path / "own"}', pretrained=True)
    assert model.pretrained_cfg['label_names'] == ['cat', 'dog', 'bird']
    assert model.pretrained_cfg['tag'] == 'own'
    refused(lambda: pack(NAME, tmp_path / 'page', file(num_classes=3)), '3 classes')


def test_the_command_line_fails_with_one_sentence(page, cli):
    flip(page / 'model.safetensors')
    code, out, err = cli('verify', page)
    assert (code, out) == (1, '')
    assert len(err.splitlines()) == 1


MULTIPLEXED: dict[str, Callable[[], torch.nn.Module]] = {
    'vit': lambda: timm.create_model('deit_tiny_patch16_224', img_size=64, embed_dim=48, depth=4, num_classes=7),
    'swin': lambda: timm.create_model(
        'swin_tiny_patch4_window7_224', img_size=64, window_size=4, embed_dim=16, depths=(2, 2, 4, 2),
        num_heads=(1, 2, 2, 4), num_classes=7,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('kind', MULTIPLEXED)
def test_a_multiplexed_model_is_packed_and_verified(tmp_path, kind):
    model = multiplex(MULTIPLEXED[kind](), 2).eval()
    page = pack(str(save_folder(model, tmp_path / 'model')), tmp_path / 'page')
    assert verify(page).listed >= 4
    image = load_file(page / 'test/rand_tensors.safetensors')['input']
    with torch.inference_mode():
        again = timm.create_model(f'local-dir:{page}', pretrained=True).eval()
        torch.testing.assert_close(again(image), model(image), rtol=0, atol=1e-6)
