"""What a fine-tuning starts from: weights, classifier, and what is said where a recipe's source has it otherwise."""

import dataclasses

import pytest
import timm
import torch
from conftest import small_of

from tinyvit_zoo.checkpoints import CLASSES_22K, head_22k_to_1k
from tinyvit_zoo.cli.evaluator_options import load_backbone
from tinyvit_zoo.data.class_map import synsets
from tinyvit_zoo.downstream.starts import Start, departures, find_start, start_model
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.training.recipes import RECIPES, find_recipe

TO_1K = find_recipe('tinyvit_22kto1k')


@pytest.mark.parametrize(
    ('name', 'options', 'kind', 'classes'),
    [
        ('tinyvit_21m_224.dist_in22k', {}, 'in22k', 21841),
        ('tiny_vit_21m_224.dist_in22k', {}, 'in22k', 21841),  # timm's own
        ('tinyvit_21m_224.dist_in22k_ft_in1k', {}, 'in1k', 1000),
        ('mae_lite_vit_tiny_encoder_patch16_224', {}, 'encoder', 0),
        ('resnet10t', {}, 'in1k', 1000),
        ('tinyvit_21m_224', dict(random=True), 'random', None),
        ('tinymim_vit_tiny_patch16_224', dict(as_init=True), 'encoder', 0),
    ],
)
def test_the_name_of_the_weights_says_what_they_are(name, options, kind, classes):
    start = find_start(name, **options)
    assert (start.kind, start.classes) == (kind, classes)


def test_a_file_and_a_folder_say_what_they_are(tmp_path):
    for file, classes in (('a.pth', CLASSES_22K), ('b.pth', 7)):
        torch.save(small_of('tinyvit', num_classes=classes).state_dict(), tmp_path / file)
    torch.save(timm.create_model('resnet10t', num_classes=5).state_dict(), tmp_path / 'c.pth')
    torch.save(dict(a=torch.zeros(3)), tmp_path / 'd.pth')
    tinyvit = 'tinyvit_5m_224'
    assert find_start(tinyvit, tmp_path / 'a.pth') == Start('in22k', CLASSES_22K)
    assert find_start(tinyvit, tmp_path / 'b.pth') == Start(None, 7)
    assert find_start('resnet10t', tmp_path / 'c.pth') == Start(None, 5)
    assert find_start('resnet10t', tmp_path / 'd.pth') == Start(None)
    assert find_start('resnet10t', tmp_path / 'none.pth') == Start(None)  # loading it will say so
    student, teacher = (
        {f'{name}.{k}': v for k, v in small_of('tinyvit', num_classes=classes).state_dict().items()}
        for name, classes in dict(student=4, teacher=6).items()
    )
    torch.save(student | teacher, tmp_path / 'e.pth')
    assert find_start(tinyvit, tmp_path / 'e.pth', part='teacher') == Start(None, 6)
    assert find_start(tinyvit, tmp_path / 'e.pth') == Start(None)  # loading it will ask for --part
    save_folder(small_of('tinyvit', img_size=64, num_classes=2), tmp_path / 'model', label_names=['x', 'y'], tag='mine')
    assert find_start(f'local-dir:{tmp_path / "model"}') == Start(None, 2, ('x', 'y'), 64)
    assert find_start(str(tmp_path)) == Start(None, 2, ('x', 'y'), 64)  # as `finetune` leaves it


# --- classifiers


@pytest.fixture(scope='module')
def folder_22k(tmp_path_factory):
    """A model of 22k classes in a folder, and its tensors."""
    model = small_of('tinyvit', img_size=32, num_classes=CLASSES_22K)
    torch.nn.init.normal_(model.head.fc.weight)
    torch.nn.init.normal_(model.head.fc.bias)
    return save_folder(model, tmp_path_factory.mktemp('22k') / 'model', tag='in22k'), model.state_dict()


def maker(folder):
    def make(num_classes, random=False):
        return load_backbone(f'local-dir:{folder}', None, not random, None, 0, num_classes=num_classes)

    return make


def test_a_22k_head_becomes_that_of_imagenet_1k_whatever_the_recipe(folder_22k):
    folder, tensors = folder_22k
    start, expected = find_start(f'local-dir:{folder}'), head_22k_to_1k(tensors)
    assert start.classes == CLASSES_22K
    for recipe in (TO_1K, find_recipe('small')):
        model, words = start_model(maker(folder), start, synsets(), recipe)
        assert model.num_classes == 1000
        assert 'rows of the 22k head' in words
        assert model.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('classes', 'recipe'),
    [
        (tuple('abc'), 'tinyvit_22kto1k'),
        (tuple(reversed(synsets())), 'tinyvit_22kto1k'),  # not the order of the head
        (synsets()[:200], 'tinyvit_22kto1k'),
        (synsets(), 'tinymim'),  # which draws its head
    ],
)
def test_elsewhere_the_classifier_is_fresh_and_reported_as_such(folder_22k, classes, recipe):
    folder, tensors = folder_22k
    model, words = start_model(maker(folder), find_start(f'local-dir:{folder}'), classes, find_recipe(recipe))
    assert model.get_classifier().weight.shape[0] == len(classes)
    assert words.startswith('fresh')
    assert not torch.isin(model.get_classifier().weight, tensors['head.fc.weight']).all()
    assert torch.equal(model.state_dict()['head.norm.weight'], tensors['head.norm.weight'])


@pytest.mark.parametrize(
    ('start', 'classes', 'words'),
    [
        (Start('in22k', 21841), 'ab', 'fresh, as the weights have 21841 classes and the data has 2'),
        (Start('encoder', 0), 'ab', 'fresh, as the weights have no classifier and the data has 2'),
        (Start(None, 2, ('a', 'b')), 'ab', 'that of the weights, which have 2 classes, too'),
        (Start(None, 2, ('b', 'a')), 'ab', "that of the weights, whose classes have another order than the data's"),
        (Start(None, 2, ('c', 'd')), 'ab', "that of the weights, whose classes have other names than the data's"),
        (Start(None, None), 'ab', ''),
        (Start('random'), 'ab', ''),
    ],
)
def test_the_classifier_in_words(start, classes, words):
    assert start_model(lambda **kwargs: torch.nn.Identity(), start, tuple(classes), TO_1K)[1] == words


# --- departures from the source of a recipe


def said(recipe, start, model=None):
    return '; '.join(departures(recipe, start, model or torch.nn.Identity()))


@pytest.mark.parametrize('name', RECIPES)
def test_layer_decay_from_random_weights_is_reported_by_every_recipe_that_has_one(name):
    recipe = find_recipe(name)
    has = 'layer decay' in said(recipe, Start('random'))
    assert has == (recipe.layer_decay is not None)
    assert 'layer decay' not in said(recipe.changed(layer_decay=1.0), Start('random'))
    assert 'layer decay' not in said(recipe, Start('encoder', 0, side=224))


@pytest.mark.parametrize('name', RECIPES)
def test_a_start_that_a_recipe_was_not_published_for_is_reported_by_every_recipe(name):
    recipe = find_recipe(name)
    for kind, classes in dict(random=None, in22k=21841, in1k=1000, encoder=0).items():
        words = said(recipe, Start(kind, classes, side=recipe.starts_at))
        assert ('it is published for' in words) == (bool(recipe.starts) and kind not in recipe.starts)
    own = said(recipe, Start(None, 7))
    assert not recipe.starts or own.endswith('and this training starts from weights of 7 classes')


def test_weights_for_another_size_than_the_recipe_s_are_reported():
    assert 'weights for 384 pixels, and this training starts from weights for 224' in said(
        find_recipe('tinyvit_512'), Start('in1k', 1000, side=224)
    )
    assert not said(find_recipe('tinyvit_512'), Start('in1k', 1000, side=384))
    assert not said(find_recipe('tinyvit_512'), Start('in1k', 1000))  # of a file, which does not say


def test_statistics_that_random_weights_lack_are_reported():
    recipe = dataclasses.replace(TO_1K, layer_decay=None, starts=())
    assert 'running statistics' in said(recipe, Start('random'), timm.create_model('test_resnet'))
    assert not said(recipe, Start('random'), timm.create_model('test_vit'))
    assert not said(recipe, Start('in1k', 1000), timm.create_model('test_resnet'))
