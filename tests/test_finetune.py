"""Fine-tuning: it learns, measures as its recipe says, and refuses what it cannot train."""

import copy
import dataclasses

import numpy as np
import pytest
import timm
import torch
from finetuning import PLAIN, assert_same, fit, losses, plain_vit, read_results, read_state, small_model
from PIL import Image
from timm.data import create_transform
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_post_hook

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.seeded import SeededDataset
from tinyvit_zoo.data.split import stratified_split
from tinyvit_zoo.downstream.reports.finetune import print_finetuned, summary, write_finetuned
from tinyvit_zoo.training.recipes import DEFAULT, find_recipe


@pytest.fixture(scope='module')
def digits():
    train, test = load_dataset('digits', 'train'), load_dataset('digits', 'test')
    return train.subset(range(160)), test.subset(range(50))


# --- learning


@pytest.mark.slow
def test_a_small_tinyvit_learns_the_digits(tmp_path):
    train, test = load_dataset('digits', 'train'), load_dataset('digits', 'test')
    recipe = PLAIN.changed(epochs=5, batch_size=16, lr_batch=16)
    result = fit(small_model(), train.subset(range(640)), recipe, tmp_path, test=test)
    assert losses(result)[-1] < losses(result)[0] / 2
    assert result.test.accuracy > 80
    assert result.history[result.best_epoch - 1].validation_accuracy > 80


def test_the_best_epoch_on_held_out_images_is_the_result(tmp_path, digits):
    train, test = digits
    model = small_model()
    result = fit(model, train, PLAIN, tmp_path, test=test)
    scores = [epoch.validation_accuracy for epoch in result.history]
    assert result.best_epoch == 1 + scores.index(max(scores))
    assert result.validation_images == pytest.approx(0.1 * len(train), abs=5)
    weights = torch.load(tmp_path / 'best.pt', weights_only=True)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_held_out_images_are_of_every_class_and_never_trained_on(tmp_path, digits, monkeypatch):
    train, _ = digits
    trained, original = set(), SeededDataset.__getitem__
    monkeypatch.setattr(
        SeededDataset,
        '__getitem__',
        lambda self, draw: trained.add(self.dataset.describe(draw.position)) or original(self, draw),
    )
    result = fit(small_model(), train, PLAIN, tmp_path)
    _, held = stratified_split(train.labels, 0.1, seed=0)
    assert len(held) == result.validation_images
    assert set(train.labels[held]) == set(range(10))
    assert not trained & {train.describe(i) for i in held}
    assert len(trained) > 0.9 * (len(train) - len(held))
    assert result.test is None


def test_test_images_are_read_once_and_at_the_end(tmp_path, digits):
    train, test = digits
    read = []

    class Watched(type(test)):
        def __getitem__(self, i):
            read.append((i, (tmp_path / 'state.pt').exists() and len(read_state(tmp_path)['history'])))
            return super().__getitem__(i)

    watched = test.subset(range(len(test)))
    watched.__class__ = Watched
    fit(small_model(), train, PLAIN, tmp_path, test=watched)
    assert read == [(i, PLAIN.epochs) for i in range(len(test))]


def test_without_held_out_images_the_last_epoch_is_the_result(tmp_path, digits):
    train, _ = digits
    model = small_model()
    result = fit(model, train, PLAIN, tmp_path, held_out=0)
    assert (result.best_epoch, result.validation_images) == (PLAIN.epochs, 0)
    assert [epoch.validation_accuracy for epoch in result.history] == [None] * PLAIN.epochs
    last = read_state(tmp_path)['model']
    assert all(torch.equal(v, last[k]) for k, v in model.state_dict().items())


def test_images_to_choose_with_can_be_given(tmp_path, digits):
    train, test = digits
    result = fit(small_model(), train, PLAIN.changed(epochs=1), tmp_path, validation=test.subset(range(20)))
    assert result.validation_images == 20
    assert result.history[0].validation_accuracy in np.arange(0, 101, 5)


def test_the_loss_of_every_kind_of_target_falls(tmp_path, digits):
    """Mixup with smoothing, smoothing alone, RandAugment and erasing: what the recipes are made of."""
    train, _ = digits
    for name in ('tinyvit_scratch', 'tinyvit_22kto1k', 'mae_lite_improved'):
        own = dict(auto_augment=find_recipe(name).auto_augment, random_erase=find_recipe(name).random_erase)
        recipe = dataclasses.replace(
            PLAIN, mixup=find_recipe(name).mixup, cutmix=find_recipe(name).cutmix, label_smoothing=0.1, **own
        )
        result = fit(small_model(), train, recipe.changed(epochs=4), tmp_path / name, held_out=0)
        assert losses(result)[-1] < losses(result)[0], name


@pytest.mark.parametrize('images', [12, 20])
def test_the_default_recipe_trains_on_fewer_images_than_its_batch(tmp_path, digits, images):
    train, _ = digits
    result = fit(small_model(), train.subset(range(images)), find_recipe(DEFAULT).changed(epochs=2), tmp_path)
    assert result.recipe.batch_size == 8
    assert len(result.history) == 2
    assert np.isfinite(losses(result)).all()
    assert result.validation_images > 0


@pytest.mark.slow
def test_the_default_recipe_learns_a_few_hundred_digits_from_random_weights(tmp_path):
    train, test = load_dataset('digits', 'train'), load_dataset('digits', 'test')
    recipe = find_recipe(DEFAULT)
    result = fit(plain_vit(), train.subset(range(400)), recipe, tmp_path, test=test)
    assert result.test.accuracy > 50, result.test.accuracy  # chance: 10


def test_fine_tuning_starts_from_an_encoder_with_a_fresh_head(tmp_path, digits):
    """Of TinyMIM's six heads the classifier has three, as released."""
    from tinyvit_zoo import pretrain
    from tinyvit_zoo.build import load_model

    torch.manual_seed(0)
    encoder = pretrain.tinymim_student('tiny', img_size=32).vit.state_dict()
    torch.save(dict(model=encoder), tmp_path / 'encoder.pth')
    options = dict(num_classes=10, img_size=(32, 32), drop_path_rate=0.0, as_init=True)
    model = load_model('tinymim_vit_tiny_patch16_224', str(tmp_path / 'encoder.pth'), **options)
    assert torch.equal(model.state_dict()['blocks.0.attn.qkv.weight'], encoder['blocks.0.attn.qkv.weight'])
    train, test = digits
    recipe = find_recipe('tinymim').changed(epochs=1, batch_size=32)
    result = fit(model, train.subset(range(48)), recipe, tmp_path / 'run', test=test)
    about = dict(name='tinymim_vit_tiny_patch16_224', weights='encoder.pth', seed=0, say=lambda text: None)
    write_finetuned(tmp_path / 'run', result, model, train, test, **about)
    again = timm.create_model(f'local-dir:{tmp_path / "run" / "model"}', pretrained=True)
    assert_same(dict(again.state_dict()), dict(model.state_dict()))


# --- what is held out, and how the result is measured


def test_which_images_choose_the_epoch_is_reported_before_the_first_one(tmp_path, digits):
    train, test = digits
    recipe = PLAIN.changed(epochs=1, held_out=0.0)
    said = {}
    for name, options in dict(
        none={}, share=dict(held_out=0.2), given=dict(validation=test), both=dict(validation=test, held_out=0.2)
    ).items():
        said[name] = []
        result = fit(small_model(), train, recipe, tmp_path / name, say=said[name].append, **options)
        assert said[name][-1].startswith('Epoch 1/1')
        assert result.training_images + (name == 'share') * result.validation_images == len(train)
        assert result.validation_images == dict(none=0, share=33, given=50, both=50)[name]  # of each class
    assert said['none'][0].startswith('Trained on: all 160 images of digits (train); none is held out, so the last')
    assert said['share'][0].startswith('Held out: 33 of the 160 images of digits (train), about 20% of each class')
    assert said['given'][0].endswith('the epoch is chosen with the 50 of test.')
    assert said['both'][0].endswith('the epoch is chosen with the 50 of test, so --held-out has no effect.')


def test_the_recipe_decides_how_many_images_are_held_out(tmp_path, digits):
    train, _ = digits
    for name, held in (('small', True), ('tinymim', False)):
        recipe = find_recipe(name).changed(epochs=1, batch_size=32)
        result = fit(plain_vit(), train.subset(range(60)), recipe, tmp_path / name)
        assert (result.validation_images > 0) == held
        assert result.chosen_by == ('held-out images' if held else 'nothing: it is the last one')


def test_the_test_images_are_measured_as_the_recipe_and_as_the_model_has_it(tmp_path, digits):
    train, test = digits
    model = plain_vit()
    model.pretrained_cfg = {**model.pretrained_cfg, 'crop_pct': 0.5}
    recipe = PLAIN.changed(epochs=1, crop_pct=1.0, crop_mode='squash', interpolation='nearest')
    result = fit(model, train, recipe, tmp_path, test=test)
    measured = [(m.preprocessing['crop_pct'], m.preprocessing['crop_mode']) for m in (result.test, result.test_own)]
    assert measured == [(1.0, 'squash'), (0.5, 'center')]
    assert not np.array_equal(result.test.predictions, result.test_own.predictions)
    for one in (result.test, result.test_own):
        transform = create_transform(**one.preprocessing)
        with torch.inference_mode():
            answers = model(torch.stack([transform(test.image(i)) for i in range(len(test))])).argmax(dim=1)
        assert np.array_equal(answers.numpy(), one.predictions)
    about = dict(name='tinymim_vit_tiny_patch16_224', weights='pretrained', seed=0, say=lambda text: None)
    write_finetuned(tmp_path, result, model, train, test, **about)
    results = read_results(tmp_path)
    assert results['test_preprocessing']['crop_pct'] == 1
    assert results['own_preprocessing']['test_preprocessing']['crop_pct'] == 0.5
    assert results['own_preprocessing']['test_accuracy'] == result.test_own.accuracy
    saved = timm.create_model(f'local-dir:{tmp_path / "model"}').pretrained_cfg
    assert (saved['crop_pct'], saved['crop_mode'], saved['interpolation']) == (1.0, 'squash', 'nearest')
    alike = fit(plain_vit(), train, PLAIN.changed(epochs=1), tmp_path / 'alike', test=test)
    assert alike.test_own is None


def test_epochs_that_are_equally_good_are_counted(tmp_path, digits):
    train, _ = digits
    result = fit(
        small_model(), train, PLAIN.changed(lr=0.0, min_lr=0.0, warmup_lr=0.0, freeze_batch_norm=True), tmp_path
    )
    assert (result.best_epoch, result.tied_epochs) == (1, 3)
    said = []
    print_finetuned(summary(result), said.append)
    assert 'Epoch 1 of 3, chosen with' in said[0]
    assert 'the first of 3 that are equally good' in said[0]


# --- moving average, BatchNorm, heads


def test_a_moving_average_that_stays_the_initial_weights_is_reported(tmp_path, digits):
    train, said = digits[0], []
    fit(small_model(), train, PLAIN.changed(epochs=1, ema_decay=0.99), tmp_path / 'a', say=said.append)
    assert 'of decay 0.99, will be made of the initial weights by 96% after 4 updates' in ' '.join(said)
    said.clear()
    fit(small_model(), train, PLAIN.changed(epochs=1, ema_decay=0.3), tmp_path / 'b', say=said.append)
    assert 'average' not in ' '.join(said)


def test_the_moving_average_equals_a_plain_recomputation(tmp_path, digits):
    train, _ = digits
    model, decay, seen = small_model(), 0.9, []
    average = {k: v.clone() for k, v in model.state_dict().items()}

    def follow(optimizer, args, kwargs):
        seen.append(1)
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                average[key] = decay * average[key] + (1 - decay) * value
            else:
                average[key] = value.clone()

    hook = register_optimizer_step_post_hook(follow)
    try:
        fit(model, train, PLAIN.changed(epochs=2, ema_decay=decay), tmp_path, held_out=0)
    finally:
        hook.remove()
    assert len(seen) == 2 * (len(train) // 32)
    state = read_state(tmp_path)
    for key, value in state['ema'].items():
        torch.testing.assert_close(value, average[key], rtol=1e-5, atol=1e-6)
    # The average is the result, not the weights that were trained.
    assert all(torch.equal(v, state['ema'][k]) for k, v in model.state_dict().items())
    assert not torch.equal(state['ema']['head.fc.weight'], state['model']['head.fc.weight'])


@pytest.mark.parametrize('frozen', [True, False])
def test_frozen_batch_norm_keeps_its_statistics_to_the_bit_and_trains_its_weights(tmp_path, digits, frozen):
    train, _ = digits
    model = small_model()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    before = {name: {k: v.clone() for k, v in norm.state_dict().items()} for name, norm in norms.items()}
    fit(model, train, PLAIN.changed(epochs=1, freeze_batch_norm=frozen), tmp_path, held_out=0)
    assert norms
    for name, norm in norms.items():
        for key in ('running_mean', 'running_var', 'num_batches_tracked'):
            assert torch.equal(getattr(norm, key), before[name][key]) == frozen, (name, key)
        assert not torch.equal(norm.weight, before[name]['weight']), name


def test_a_head_for_other_classes_is_fresh_and_the_rest_is_the_released_weights(tmp_path, official_file):
    from tinyvit_zoo.cli.evaluator_options import load_backbone

    weights = official_file('tiny_vit_5m_224')
    released = load_backbone('tinyvit_5m_224', weights, True, None, 0)
    other = load_backbone('tinyvit_5m_224', weights, True, None, 0, num_classes=7, drop_path_rate=0.1)
    assert other.num_classes == 7
    assert other.get_classifier().weight.shape == (7, 320)
    expected = {k: v for k, v in released.state_dict().items() if not k.startswith('head.fc')}
    assert {k for k in other.state_dict() if not k.startswith('head.fc')} == expected.keys()
    assert all(torch.equal(other.state_dict()[k], v) for k, v in expected.items())
    assert other.training is False


# --- refusals


def test_a_loss_that_is_not_a_number_stops_the_run_before_its_state_is_written(tmp_path, digits):
    train, _ = digits
    fit(small_model(), train, PLAIN, tmp_path / 'good')
    model = small_model()
    torch.nn.init.constant_(model.get_classifier().weight, float('nan'))
    with pytest.raises(
        EvaluationError, match=r'no longer a number in update 1 of epoch 1: choose another --output and a lower --lr'
    ):
        fit(model, train, PLAIN, tmp_path / 'bad')
    assert not (tmp_path / 'bad' / 'state.pt').exists()


def test_outputs_that_are_not_numbers_are_never_an_accuracy(tmp_path, digits, monkeypatch):
    """The last update of an epoch may do what no loss has seen."""
    train, _ = digits

    def ruin(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            for parameter in group['params']:
                parameter.data.fill_(float('nan'))

    hook = register_optimizer_step_post_hook(ruin)
    try:
        with pytest.raises(EvaluationError, match=r'returns NaN .* choose another --output and a lower --lr'):
            fit(small_model(), train, PLAIN.changed(epochs=1, batch_size=128), tmp_path)
    finally:
        hook.remove()
    assert not (tmp_path / 'state.pt').exists()


def test_batch_norm_over_a_single_image_is_one_sentence(tmp_path, digits):
    train, recipe = digits[0].subset(range(20)), PLAIN.changed(epochs=1, batch_size=2)
    for options in (dict(recipe=recipe.changed(batch_size=1)), dict(recipe=recipe, micro_batch=1)):
        with pytest.raises(EvaluationError, match='a --batch-size, or a --micro-batch, of at least 2'):
            fit(small_model(), train, output=tmp_path / 'norm', **options)
    assert len(fit(plain_vit(), train, recipe, tmp_path / 'none', micro_batch=1).history) == 1


def test_classes_that_do_not_fit_are_refused(tmp_path, digits):
    train, _ = digits
    with pytest.raises(EvaluationError, match=r'model has 7 classes and digits has 10: make it with num_classes=10'):
        fit(small_model(num_classes=7), train, PLAIN, tmp_path)
    textures = load_dataset('textures', 'test')
    with pytest.raises(EvaluationError, match=r'classes of textures \(test\) are not those of digits'):
        fit(small_model(), train, PLAIN, tmp_path, test=textures)
    one_class = train.subset(np.flatnonzero(train.labels == 3))
    with pytest.raises(EvaluationError, match=r'images of digits \(train\) are of one class'):
        fit(small_model(), one_class, PLAIN, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_is_named_by_its_path_whoever_reads_it(tmp_path, workers):
    for name in ('a', 'b'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for i in range(8):
            Image.new('RGB', (32, 32), (i, i, i)).save(tmp_path / 'train' / name / f'{i}.png')
    bad = tmp_path / 'train' / 'b' / '3.png'
    bad.write_bytes(b'no image')
    train = load_dataset(str(tmp_path), 'train')
    with pytest.raises(EvaluationError) as e:
        fit(small_model(num_classes=2), train, PLAIN.changed(batch_size=16), tmp_path, held_out=0, workers=workers)
    assert str(e.value).startswith(f'{bad} is not a readable image')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    ('recipe', 'options', 'words'),
    [
        (dict(batch_size=256), {}, '143 training images cannot fill a batch of 256: choose a smaller --batch-size'),
        (
            dict(batch_size=128),
            dict(held_out=0.5),
            '128, without the 8[0-9] images held out: .* smaller --batch-size or --held-out',
        ),
        ({}, dict(micro_batch=5), 'batch of 32 is not a multiple of 1 x 5 images'),
        ({}, dict(micro_batch=64), 'batch of 32 is not a multiple of 1 x 64 images'),
        (dict(batch_size=9, mixup=0.8), {}, '9 images at once is an odd number: choose an even --batch-size'),
        ({}, dict(held_out=1.0), 'held-out share is 1'),
        ({}, dict(precision='fp16'), 'fp16 needs a CUDA device'),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(tmp_path, digits, recipe, options, words):
    train, _ = digits
    with pytest.raises(EvaluationError, match=words):
        fit(small_model(), train, PLAIN.changed(**recipe), tmp_path, **options)


def test_a_folder_that_cannot_be_written_says_so_before_the_training(tmp_path, digits):
    train, said = digits[0], []
    (tmp_path / 'file').write_text('')
    with pytest.raises(EvaluationError, match=r'cannot be written .*: choose another --output'):
        fit(small_model(), train, PLAIN.changed(epochs=1), tmp_path / 'file' / 'folder', say=said.append)
    assert not any(line.startswith('Epoch') for line in said)  # none was trained for nothing


# --- files


def test_the_entry_for_the_card_and_the_results_are_written_even_if_the_model_cannot_be(tmp_path, digits):
    train, test = (copy.copy(part) for part in digits)
    train.name = test.name = 'imagenet-1k'
    model, recipe = small_model(), PLAIN.changed(epochs=1)
    result = fit(model, train, recipe, tmp_path, test=test)
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'notes.txt').write_text('mine')
    about = dict(name='tinyvit_5m_224', weights='elsewhere/mine.pth', seed=0, say=lambda text: None)
    with pytest.raises(FileExistsError, match='holds other files'):
        write_finetuned(tmp_path, result, model, train, test, **about)
    assert read_results(tmp_path)['test_accuracy'] == result.test.accuracy
    entry = (tmp_path / '.eval_results' / 'imagenet-1k.yaml').read_text()
    assert 'ILSVRC/imagenet-1k' in entry
    assert f'value: {round(result.test.accuracy, 4)}' in entry
    assert 'recipe tinyvit_scratch, from weights: mine.pth' in ' '.join(entry.split())
    (tmp_path / 'model' / 'notes.txt').unlink()
    write_finetuned(tmp_path, result, model, train, test, **about)
    assert timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True).num_classes == 10


def test_a_file_of_weights_that_is_not_there_is_named_and_no_other_option_is_advised(cli, tmp_path):
    code, _, err = cli(
        'finetune', 'test_vit', '--weights', tmp_path / 'gone.pth', '-d', 'digits', '-o', tmp_path / 'run'
    )
    assert (code, err.strip()) == (1, f'No checkpoint at {tmp_path / "gone.pth"}.')
