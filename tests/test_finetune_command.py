"""`tinyvit-zoo finetune`: the images, recipe and model that it trains, the files it writes, and its refusals."""

import dataclasses
import io
import json
import sys
import tarfile
from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import small_of
from PIL import Image
from timm.data import create_transform
from timm.layers import DropPath
from torch.utils.data import DataLoader

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo import pretrain
from tinyvit_zoo.checkpoints import CLASSES_22K, head_22k_to_1k
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash, tensors_hash
from tinyvit_zoo.data.class_map import synsets
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.registry import REGISTRY
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.training.recipes import RECIPES, find_recipe


@pytest.fixture
def tinyvit_zoo_cli(monkeypatch, capsys):
    from tinyvit_zoo.cli.app import run_app

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['tinyvit-zoo', 'finetune', *map(str, args)])
        with pytest.raises(SystemExit) as end:
            run_app()
        return SimpleNamespace(returncode=end.value.code or 0, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def asked_for(tinyvit_zoo_cli, tmp_path, monkeypatch):
    """The arguments that the command would train with; nothing is trained."""

    def run(*args, data='digits', random=('--random',)):
        calls = []

        def stop(model, train, recipe, output, **options):
            calls.append(SimpleNamespace(model=model, train=train, recipe=recipe, **options))
            raise EvaluationError('Enough.')

        monkeypatch.setattr('tinyvit_zoo.downstream.finetune.finetune', stop)
        done = tinyvit_zoo_cli(*args, *random, '--data', data, '--img-size', 32, '--output', tmp_path / 'out')
        return calls[0] if calls else done.err

    return run


@pytest.fixture
def trained_on(asked_for):
    """The same with weights."""
    return partial(asked_for, random=())


@pytest.mark.parametrize(
    ('name', 'recipe', 'rate'),
    [
        ('tinyvit_11m_224', 'tinyvit_22kto1k', 0.0),  # made with 0.1 if nothing is asked for
        ('tiny_vit_5m_224', 'tinyvit_scratch', 0.0),
        ('local-dir:tinyvit', 'tinyvit_scratch', 0.0),
        ('resnet10t', 'mae_lite_default', 0.1),
        ('vgg11', 'mae_lite_improved', 0.0),  # takes no drop path
    ],
)
def test_the_model_is_made_with_the_drop_path_of_the_recipe(asked_for, tmp_path, monkeypatch, name, recipe, rate):
    monkeypatch.chdir(tmp_path)
    if name == 'local-dir:tinyvit':
        save_folder(small_of('tinyvit', img_size=32, num_classes=10), tmp_path / 'tinyvit')
    model = asked_for(name, '--recipe', recipe).model
    drops = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert max(drops, default=0.0) == pytest.approx(rate)


def test_a_model_without_drop_path_is_not_trained_with_one(asked_for):
    assert 'add --drop-path 0' in asked_for('vgg11', '--recipe', 'tinymim')


def test_the_recipe_s_own_learning_rate_changes_none_of_its_rates(asked_for):
    own = find_recipe('tinyvit_scratch').rates()
    assert asked_for('resnet10t', '--recipe', 'tinyvit_scratch', '--lr', own.lr).recipe.rates() == own


@pytest.mark.parametrize(
    ('splits', 'validation', 'test'),
    [
        (dict(train=('train',), validation=('test',), test=('test',)), None, 'test'),  # as ImageNet-1k's
        (dict(train=('train',), validation=('test',)), None, 'validation'),
        (dict(train=('train',), validation=('train',), test=('test',)), 'validation', 'test'),
        (dict(train=('train',)), None, None),
    ],
)
def test_images_that_are_tested_on_never_choose_the_epoch(asked_for, monkeypatch, splits, validation, test):
    monkeypatch.setitem(REGISTRY, 'digits', dataclasses.replace(REGISTRY['digits'], splits=splits))
    asked = asked_for('resnet10t', '--recipe', 'tinyvit_scratch')
    assert [d and d.split for d in (asked.train, asked.validation, asked.test)] == ['train', validation, test]


def test_timm_s_data_sets_are_tested_on_their_test_split(asked_for, tmp_path):
    for split in ('train', 'val', 'test'):
        with tarfile.open(tmp_path / f'{split}-0.tar', 'w') as tar:
            for key in range(4):
                image = io.BytesIO()
                Image.new('RGB', (32, 32)).save(image, 'png')
                for name, content in ((f'{key}.png', image.getvalue()), (f'{key}.cls', b'%d' % (key % 2))):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    asked = asked_for('resnet10t', '--recipe', 'tinyvit_scratch', data=f'wds/{tmp_path}')
    assert (asked.validation, asked.test.split) == (None, 'test')


def test_the_recipe_for_small_data_sets_is_the_default(asked_for):
    assert asked_for('resnet10t').recipe == find_recipe('small')


@pytest.fixture
def encoder(tmp_path):
    """A file as the released code of MAE-Lite writes it in pretraining, and the encoder's own tensors."""
    model = pretrain.mae_lite_tiny(img_size=32)
    state_dict = {f'module.model.{key}': value for key, value in model.state_dict().items()}
    torch.save(dict(start_epoch=400, model=state_dict), tmp_path / 'mae.pth.tar')
    return tmp_path / 'mae.pth.tar', model.state_dict()


def test_a_file_of_pretraining_takes_one_option(trained_on, encoder):
    file, tensors = encoder
    name, own = 'mae_lite_vit_tiny_patch16_224', ('--weights', file, '--recipe', 'mae_lite_transfer')
    assert '--as-init' in trained_on(name, *own)
    model = trained_on(name, *own, '--as-init').model
    assert model.num_classes == 10
    assert torch.equal(model.blocks[3].mlp.fc1.weight, tensors['blocks.3.mlp.fc1.weight'])
    assert not any(key.startswith('decoder') for key in model.state_dict())


def test_the_weights_of_another_run_are_named_as_they_were_before_the_training(
    tinyvit_zoo_cli, tmp_path, monkeypatch
) -> None:
    from tinyvit_zoo.downstream import finetune

    for split in ('train', 'val', 'test'):
        for name, color in {'dark': 0, 'light': 255}.items():
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new('L', (32, 32), color).save(tmp_path / 'data' / split / name / f'{i}.png')
    model = timm.create_model('test_vit', num_classes=2, img_size=32)
    run = tmp_path / 'run'
    save_folder(model, run / 'model')
    for name in ('best.pt', 'state.pt'):  # as a training leaves them
        torch.save({}, run / name)
    train = finetune.finetune

    def train_and_move(*args, **options):
        run.rename(tmp_path / 'elsewhere')
        return train(*args, **options)

    monkeypatch.setattr(finetune, 'finetune', train_and_move)
    done = tinyvit_zoo_cli(
        'test_vit', '--weights', run, '--data', tmp_path / 'data', '--img-size', 32, '--epochs', 1, '--layer-decay', 1,
        '--batch-size', 4, '--device', 'cpu', '--output', tmp_path / 'out',
    )  # fmt: skip
    assert done.returncode == 0, done.err
    start = json.loads((tmp_path / 'out' / 'results.json').read_text())['start']
    assert start['tensors_sha256'] == tensors_hash(model.state_dict())


@pytest.mark.parametrize(
    ('name', 'options', 'words'),
    [
        ('resnet10t', ['--weights', 'encoder.pth'], 'without --as-init'),
        ('mae_lite_vit_tiny_patch16_224', ['--random'], 'leave one of them out'),
    ],
)
def test_as_init_is_for_models_of_this_package_and_for_weights(trained_on, tmp_path, monkeypatch, name, options, words):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model('resnet10t').state_dict(), 'encoder.pth')
    assert words in trained_on(name, '--as-init', *options)


def test_imagenet_1k_starts_from_the_rows_of_a_22k_head(tinyvit_zoo_cli, tmp_path):
    """A learning rate of 0 leaves the start as it is."""
    for i, wnid in enumerate(synsets()):
        (tmp_path / 'data' / 'train' / wnid).mkdir(parents=True)
        Image.new('RGB', (8, 8), (i % 256, 0, 0)).save(tmp_path / 'data' / 'train' / wnid / 'x.png')
    model = small_of('tinyvit', img_size=32, num_classes=CLASSES_22K)
    save_folder(model, tmp_path / '22k', tag='in22k')
    done = tinyvit_zoo_cli(
        f'local-dir:{tmp_path / "22k"}', '--img-size', 32, '--data', tmp_path / 'data', '--recipe', 'tinyvit_22kto1k',
        '--epochs', 1, '--batch-size', 1000, '--lr', 0, '--device', 'cpu', '--output', tmp_path / 'out',
    )  # fmt: skip
    assert done.returncode == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("Classifier: the rows of the 22k head for ImageNet-1k's 1000 classes")
    assert lines[1].startswith('Trained on: all 1,000 images')
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert results['start']['weights'] == 'weights of ImageNet-22k'
    trained = timm.create_model(f'local-dir:{tmp_path / "out" / "model"}', pretrained=True).state_dict()
    expected = head_22k_to_1k(model.state_dict())
    assert all(torch.equal(trained[key], value) for key, value in expected.items())


def test_what_a_recipe_has_otherwise_is_reported_before_the_first_epoch_and_kept(tinyvit_zoo_cli, tmp_path):
    common = (
        'test_resnet', '--random', '--data', 'digits', '--img-size', 32, '--device', 'cpu', '--epochs', 1,
        '--recipe', 'tinyvit_22kto1k', '--batch-size', 256, '--output',
    )  # fmt: skip
    done = tinyvit_zoo_cli(*common, tmp_path / 'out')
    assert done.returncode == 0, done.err
    (line,) = (line for line in done.out.partition('Epoch 1/1')[0].splitlines() if line.startswith('Recipe'))
    for words in (
        'published for weights of ImageNet-22k',
        'starts from random weights',
        '--layer-decay 1',
        'BatchNorm',
    ):
        assert words in line
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert len(results['start']['departures']) == 3
    assert results['validation_images'] == 0
    assert results['training_images'] == results['data']['train']['images']
    assert results['test_preprocessing']['crop_pct'] == 0.875
    assert f'{results["own_preprocessing"]["test_accuracy"]:.2f} %' in done.out


def test_recipes_are_listed_with_their_sources(tinyvit_zoo_cli):
    done = tinyvit_zoo_cli('--recipes')
    assert done.returncode == 0, done.err
    for name in ('tinyvit_22kto1k', 'mae_lite_cifar100'):
        assert f'\n{name}\n' in done.out
    assert 'From: microsoft/Cream' in done.out
    listed = ' '.join(done.out.split())
    assert listed.count('none held out') == len(RECIPES) - 1
    assert listed.count('holds 10% of train out') == 1
    assert 'Starts from weights of ImageNet-22k; trains on all' in listed
    assert 'evaluates with bicubic, crop 1 (squash)' in listed


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'data', 'recipe', 'extra'),
    [
        ('mini_swin_tiny_patch4_window7_224', 'digits', 'mini_swin_384', ['--img-size', 32]),
        ('tinymim_vit_tiny_patch16_224', 'textures', 'tinymim', ['--img-size', 64]),
        ('resnet10t', 'textures', 'mae_lite_transfer', ['--img-size', 64, '--precision', 'bf16']),
    ],
)
def test_the_command_trains_measures_and_saves_any_model(tinyvit_zoo_cli, tmp_path, name, data, recipe, extra):
    arguments = [
        name, '--random', '--data', data, '--recipe', recipe, '--output', tmp_path / 'out', '--epochs', 2,
        '--lr', 0.003, '--batch-size', 128, '--micro-batch', 64, '--drop-path', 0, '--held-out', 0.1,
        *extra,
    ]  # fmt: skip
    done = tinyvit_zoo_cli(*arguments)
    assert done.returncode == 0, done.err
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert (results['evaluator'], results['weights']) == ('finetune', 'random (seed 0)')
    assert results['recipe']['name'] == recipe
    low, high = results['test_ci95']
    assert low < results['test_accuracy'] < high < low + 10
    written = {p.name for p in (tmp_path / 'out').iterdir()}
    assert written >= {'results.json', 'history.csv', 'loss.png', 'accuracy.png', 'confusion.png', 'model', 'best.pt'}
    model = timm.create_model(f'local-dir:{tmp_path / "out" / "model"}', pretrained=True).eval()
    assert state_hash(model) == results['model']['weights_sha256']
    test = load_dataset(data, 'test')
    transform = create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        batches = DataLoader(test.with_transform(transform), batch_size=256)
        right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches)
    assert 100 * right / len(test) == pytest.approx(results['test_accuracy'], abs=0.5)  # bfloat16
    again = tinyvit_zoo_cli(*arguments)
    assert again.returncode == 0, again.err
    assert 'resumed after epoch 2 of 2' in again.out
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['test_accuracy'] == results['test_accuracy']


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--recipe', 'tinyvit', '--data', 'digits'], "no recipe 'tinyvit'. Did you mean"),
        (
            ['--recipe', 'tinymim', '--data', 'digitz'],
            "'digitz' is neither a data set nor a folder. Did you mean digits",
        ),
        (['--recipe', 'tinymim', '--data', 'digits', '--batch-size', '4096'], 'cannot fill a batch of 4096'),
    ],
)
def test_the_command_fails_in_one_sentence(tinyvit_zoo_cli, tmp_path, arguments, words):
    done = tinyvit_zoo_cli('tinyvit_5m_224', '--random', '--img-size', '32', '--output', tmp_path / 'out', *arguments)
    assert done.returncode == 1
    assert words in done.err
    assert done.err.count('\n') == 1
