"""Fine-tuning recipes: the published numbers, and what timm's optimizer and scheduler make of them."""

import dataclasses
import json
import math

import pytest
import timm
import torch
from golden_rule import GOLDEN
from PIL import Image
from timm.data import Mixup

from tinyvit_zoo.checkpoints import TINYVIT_KEYS
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.training.ingredients import (
    create_mixup,
    create_optimizer,
    create_scheduler,
    create_transforms,
    reset_head,
)
from tinyvit_zoo.training.recipes import DEFAULT, RECIPES, STARTS, Rates, find_recipe

# Highest, last and first learning rate as the papers and READMEs have them for their batch; warm-up, epochs, batch;
# where the cosine begins.
TOGETHER, SHIFTED, BY_EPOCH = 'with the warm-up', 'after the warm-up', 'with the warm-up, by epoch'
PUBLISHED = {
    'tinyvit_scratch': (1e-3, 1e-5, 1e-6, 20, 300, 1024, TOGETHER),
    'tinyvit_22kto1k': (5e-4, 2e-5, 1e-6, 5, 30, 1024, TOGETHER),
    'tinyvit_384': (4e-5, 4e-7, 4e-8, 5, 30, 1024, TOGETHER),
    'tinyvit_512': (4e-5, 4e-7, 4e-8, 5, 30, 1024, TOGETHER),
    'mini_deit_384': (2.5e-6, 5e-6, 1e-6, 5, 30, 256, BY_EPOCH),
    'mini_swin_384': (1e-5, 2.5e-6, 2.5e-7, 5, 30, 256, TOGETHER),
    'minivit_transfer': (5e-3, 1e-5, 1e-6, 5, 1000, 256, BY_EPOCH),
    'minivit_transfer_flowers': (5e-3, 1e-5, 1e-6, 5, 300, 256, BY_EPOCH),
    'minivit_transfer_cars': (1e-3, 1e-5, 1e-6, 5, 300, 256, BY_EPOCH),
    'tinymim': (2e-3, 1e-6, 0, 5, 100, 1024, SHIFTED),
    'tinymim_star': (2e-3, 1e-6, 0, 5, 1000, 1024, SHIFTED),
    'mae_lite_default': (4e-3, 1e-6, 0, 5, 100, 1024, SHIFTED),
    'mae_lite_improved': (4e-3, 1e-6, 0, 5, 300, 1024, SHIFTED),
    'mae_lite_100': (4e-3, 1e-6, 0, 5, 100, 1024, SHIFTED),
    'mae_lite_1000': (4e-3, 1e-6, 0, 5, 1000, 1024, SHIFTED),
    'mae_lite_transfer': (0.03, 1e-6, 0, 20, 300, 512, SHIFTED),
    'mae_lite_cifar100': (0.1, 1e-6, 0, 10, 50, 512, SHIFTED),
}
UPDATES = 3  # in an epoch


def lr_in_words(name, update):
    """The learning rate of an update, from 0, straight from the papers' formulas."""
    high, low, first, warmup, epochs, _, kind = PUBLISHED[name]
    at = update // UPDATES if kind == BY_EPOCH else update / UPDATES
    if at < warmup:
        return first + (high - first) * at / warmup
    share = (at - warmup) / (epochs - warmup) if kind == SHIFTED else at / epochs
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def train_nothing(model, recipe, updates_per_epoch):
    """Yields the groups of the optimizer as they are for every update of a training."""
    optimizer = create_optimizer(model, recipe, recipe.batch_size)
    scheduler = create_scheduler(optimizer, recipe, recipe.batch_size, updates_per_epoch)
    for epoch in range(recipe.epochs):
        for update in range(updates_per_epoch):
            yield optimizer.param_groups
            scheduler.step_update(epoch * updates_per_epoch + update + 1)
        scheduler.step(epoch + 1)


def test_every_recipe_is_checked_here_and_says_where_it_is_from():
    assert RECIPES.keys() == PUBLISHED.keys() | {DEFAULT}
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.source
        with pytest.raises(dataclasses.FrozenInstanceError):
            recipe.epochs = 1


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_learning_rate_of_every_update_is_the_published_one(name):
    recipe = dataclasses.replace(RECIPES[name], layer_decay=None)
    *_, epochs, batch, _ = PUBLISHED[name]
    assert (recipe.epochs, recipe.batch_size) == (epochs, batch)
    rates = [groups[0]['lr'] for groups in train_nothing(torch.nn.Linear(2, 2), recipe, UPDATES)]
    assert rates == pytest.approx([lr_in_words(name, i) for i in range(epochs * UPDATES)], rel=1e-9, abs=1e-15)


def test_learning_rates_grow_with_the_batch_as_in_the_released_code():
    assert find_recipe('tinyvit_22kto1k').rates(512) == Rates(2.5e-4, 1e-5, 5e-7)
    assert find_recipe('tinymim').rates(256) == Rates(5e-4, 1e-6, 0.0)
    assert find_recipe('mini_deit_384').rates(512) == Rates(5e-6, 5e-6, 1e-6)


# --- layer decay


def test_layer_decay_of_tinyvit_is_applied_once():
    """The released code, run with timm of today, squares it; the golden file has both trajectories."""
    reference = json.loads((GOLDEN / 'tinyvit_lr_scale.json').read_text())
    recipe = find_recipe('tinyvit_22kto1k')
    model = timm.create_model('tinyvit_21m_224')
    official = {id(p): k for k, p in TINYVIT_KEYS.to_official(dict(model.named_parameters())).items()}
    once = reference['lr_trajectory_intended_scale_once']['values']
    squared = reference['lr_trajectory_official_wrapper_on_new_timm_SCALE_SQUARED']
    compared = 0
    for update, groups in enumerate(train_nothing(model, recipe, 4)):
        if str(update) not in once:
            continue
        compared += 1
        assert sorted({g['lr'] for g in groups}) == pytest.approx(sorted(set(once[str(update)])), rel=1e-9)
        assert min(g['lr'] for g in groups) > 2 * min(squared[str(update)])
        head = max(g['lr'] for g in groups)
        for group in groups:
            for parameter in group['params']:
                scale = reference['lr_scale'][official[id(parameter)]]
                assert group['lr'] == pytest.approx(head * scale, rel=1e-9)
    assert compared > 5


@pytest.mark.parametrize(
    ('name', 'model_name', 'file', 'key'),
    [
        ('tinymim', 'tinymim_vit_base_patch16_224', 'tinymim_layer_decay.json', None),
        ('mae_lite_default', 'mae_lite_vit_tiny_patch16_224', 'maelite_layer_decay.json', 'vit_tiny_patch16'),
        ('mae_lite_improved', 'mae_lite_vit_tiny_rpe_patch16_224', 'maelite_layer_decay.json', 'vit_tiny_patch16_rpe'),
    ],
)
def test_learning_rate_and_weight_decay_of_each_parameter_equal_the_released_recipe(name, model_name, file, key):
    reference = json.loads((GOLDEN / file).read_text())
    expected = reference['lr_scale_and_wd']
    expected = expected if key is None else expected[key]
    recipe, model = find_recipe(name), timm.create_model(model_name)
    assert recipe.layer_decay == reference['layer_decay']
    names = {id(p): n for n, p in model.named_parameters()}
    for update, groups in enumerate(train_nothing(model, recipe.changed(epochs=20), 2)):
        assert {names[id(p)] for g in groups for p in g['params']} == expected.keys()
        head = max(g['lr'] for g in groups)
        for group in groups:
            for parameter in group['params']:
                scale, decay = expected[names[id(parameter)]]
                assert (group['lr'], group['weight_decay']) == pytest.approx((head * scale, decay), rel=1e-9)
        if update == 5:
            break


def test_weight_decay_of_tinyvit_spares_what_the_released_code_spares():
    reference = json.loads((GOLDEN / 'tinyvit_lr_scale.json').read_text())
    model = timm.create_model('tinyvit_21m_224')
    official = TINYVIT_KEYS.to_official(dict(model.named_parameters()))
    names = {id(p): k for k, p in official.items()}
    for name in ('tinyvit_scratch', 'tinyvit_22kto1k'):
        recipe = find_recipe(name)
        groups = create_optimizer(model, recipe, 1024).param_groups
        decay = {names[id(p)]: g['weight_decay'] for g in groups for p in g['params']}
        assert decay == {
            **dict.fromkeys(reference['decay'], recipe.weight_decay), **dict.fromkeys(reference['no_decay'], 0.0)
        }  # fmt: skip


def test_a_stock_convnet_has_layers_to_decay():
    recipe = find_recipe('tinymim')
    groups = create_optimizer(timm.create_model('resnet10t'), recipe, 1024).param_groups
    assert len({g['lr_scale'] for g in groups}) > 2
    assert max(g['lr_scale'] for g in groups) == 1


# --- optimizers, augmentation, heads


def test_sgd_has_nesterov_momentum_as_in_the_released_code():
    for name in ('mae_lite_cifar100', 'minivit_transfer'):
        optimizer = create_optimizer(torch.nn.Linear(2, 2), dataclasses.replace(RECIPES[name], layer_decay=None), 512)
        assert isinstance(optimizer, torch.optim.SGD)
        assert (optimizer.defaults['nesterov'], optimizer.defaults['momentum']) == (True, 0.9)
    adamw = create_optimizer(torch.nn.Linear(2, 2), find_recipe('tinyvit_scratch'), 512)
    assert (adamw.defaults['betas'], adamw.defaults['eps']) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize(
    ('name', 'model', 'rate'),
    [
        ('tinyvit_scratch', 'tinyvit_5m_224', 0.0),
        ('tinyvit_scratch', 'tinyvit_11m_224.in1k', 0.1),
        ('tinyvit_scratch', 'tinyvit_21m_224', 0.2),
        ('tinyvit_22kto1k', 'tinyvit_11m_224', 0.0),
        ('tinyvit_22kto1k', 'tinyvit_21m_224', 0.1),
        ('tinyvit_384', 'tinyvit_5m_224', 0.0),
        ('tinyvit_512', 'tinyvit_21m_512', 0.1),
        ('tinymim', 'tinymim_vit_base_patch16_224', 0.2),
        ('mae_lite_default', 'resnet10t', 0.1),
        ('mae_lite_improved', 'mae_lite_vit_tiny_patch16_224', 0.0),
        ('mini_swin_384', 'mini_swin_base_patch4_window12_384', 0.2),
    ],
)
def test_drop_path_depends_on_the_model(name, model, rate):
    assert find_recipe(name).drop_path_of(model) == rate


def test_mixing_and_augmentation_are_the_published_ones():
    mixup = create_mixup(find_recipe('tinyvit_scratch'), 10)
    assert isinstance(mixup, Mixup)
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.label_smoothing) == (0.8, 1.0, 0.1)
    assert (mixup.mix_prob, mixup.switch_prob, mixup.mode) == (1.0, 0.5, 'batch')
    improved = create_mixup(find_recipe('mae_lite_improved'), 10)
    assert (improved.mixup_alpha, improved.cutmix_alpha, improved.label_smoothing) == (0.2, 0.0, 0.0)
    assert create_mixup(find_recipe('tinyvit_22kto1k'), 10) is None
    model = timm.create_model('resnet10t')
    steps = {
        name: [type(step).__name__ for step in create_transforms(model, find_recipe(name))[0].transforms]
        for name in ('tinyvit_scratch', 'mae_lite_improved', 'mae_lite_transfer')
    }
    crop = ['RandomResizedCropAndInterpolation', 'RandomHorizontalFlip']
    end = ['MaybeToTensor', 'Normalize']
    assert steps == dict(
        tinyvit_scratch=[*crop, 'RandAugment', *end, 'RandomErasing'],
        mae_lite_improved=[*crop, 'RandAugment', *end],
        mae_lite_transfer=[*crop, *end],
    )


def test_mae_lite_s_recipes_of_other_lengths_differ_from_the_improved_one_in_epochs_alone():
    improved = dataclasses.asdict(find_recipe('mae_lite_improved'))
    for name in ('mae_lite_100', 'mae_lite_1000'):
        other = dataclasses.asdict(find_recipe(name))
        different = {key for key in improved if improved[key] != other[key]}
        assert different <= {'name', 'source', 'notes', 'starts', 'epochs'}
        assert other['epochs'] == int(name.rpartition('_')[2])


def test_evaluation_crops_as_the_recipe_or_else_the_model_does():
    model = timm.create_model('tinyvit_5m_224', img_size=64)  # its own crop is 0.95
    sizes = {
        name: create_transforms(model, find_recipe(name))[1].transforms[0].size
        for name in ('tinyvit_384', 'tinymim', 'small')
    }
    assert sizes == dict(tinyvit_384=(64, 64), tinymim=math.floor(64 / 0.875), small=math.floor(64 / 0.95))


# Of an image of 500 x 300 before the center crop: the short side as the released code has it; None for the whole image
# squashed to the model's size.
SHORT_SIDE = {
    'tinyvit_scratch': (224, 256),
    'tinyvit_22kto1k': (224, 256),
    'tinyvit_384': (384, None),
    'tinyvit_512': (512, None),
    'mini_deit_384': (384, 438),
    'mini_swin_384': (384, 438),
    'minivit_transfer': (384, 438),
    'minivit_transfer_flowers': (384, 438),
    'minivit_transfer_cars': (384, 438),
    **{name: (224, 256) for name in RECIPES if name.startswith(('tinymim', 'mae_lite'))},
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_paper_s_recipe_evaluates_with_its_crop_and_trains_on_all_images(name):
    recipe, (side, short) = find_recipe(name), SHORT_SIDE[name]
    assert side == (recipe.img_size or 224)
    model = timm.create_model('resnet10t')
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (3, side, side), 'crop_pct': 0.95}
    resize = create_transforms(model, recipe)[1].transforms[0]
    size = resize(Image.new('RGB', (500, 300))).size
    assert size == (side, side) if short is None else min(size) == short
    assert recipe.evaluation['interpolation'] == 'bicubic'
    assert recipe.held_out == 0
    assert set(recipe.starts) <= STARTS.keys()
    assert recipe.starts


def test_images_are_of_the_size_that_a_stock_model_was_made_for():
    """timm leaves 224 in its pretrained_cfg."""
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1)
    for transform in create_transforms(model, find_recipe('tinymim')):
        assert model(transform(Image.new('RGB', (40, 40)))[None]).shape == (1, 1000)
    grey = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1, in_chans=1)
    with pytest.raises(EvaluationError, match='takes images with 1 channel,'):
        create_transforms(grey, find_recipe('tinymim'))


def test_a_head_starts_anew_where_the_recipe_says_so():
    model = timm.create_model('tinymim_vit_tiny_patch16_224', embed_dim=48, depth=1, num_heads=3, num_classes=100)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reset_head(model, None, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    reset_head(model, find_recipe('tinymim').head_std, 0)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= {'head.weight', 'head.bias'}
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    again = model.head.weight.detach().clone()
    reset_head(model, find_recipe('tinymim').head_std, 0)
    assert torch.equal(model.head.weight, again)


# --- choosing and changing


@pytest.mark.parametrize(
    ('images', 'batch'), [(2, 2), (3, 2), (7, 4), (8, 8), (127, 8), (128, 16), (300, 32), (10**6, 32)]
)
def test_the_batch_of_the_default_recipe_shrinks_for_few_images_and_its_rates_stay(images, batch):
    recipe = find_recipe(DEFAULT)
    fitted = recipe.fitted(images)
    assert fitted.batch_size == batch
    assert fitted.rates() == recipe.rates()
    assert dataclasses.replace(fitted, batch_size=recipe.batch_size, lr_batch=recipe.lr_batch) == recipe


def test_a_batch_that_was_asked_for_never_shrinks():
    asked = find_recipe(DEFAULT).changed(batch_size=256)
    assert asked.fitted(10) is asked
    assert find_recipe('tinymim').fitted(10) is find_recipe('tinymim')


def test_the_default_recipe_trains_models_without_drop_path():
    assert find_recipe(DEFAULT).drop_path_of('vgg11') == 0


def test_fewer_epochs_keep_the_share_of_the_warmup():
    recipe = find_recipe('tinyvit_scratch').changed(epochs=30)
    assert (recipe.epochs, recipe.warmup_epochs) == (30, 2)
    assert find_recipe('tinyvit_scratch').changed(epochs=30, warmup_epochs=5).warmup_epochs == 5
    with pytest.raises(EvaluationError, match='it must end before'):
        recipe.changed(warmup_epochs=30)


def test_the_error_for_an_unknown_recipe_names_the_closest_and_all_others():
    with pytest.raises(EvaluationError, match=r"no recipe 'tinyvit_22k_to_1k'. Did you mean tinyvit_22kto1k\? Take"):
        find_recipe('tinyvit_22k_to_1k')
