"""From a state dict into a model, of every family: names mapped, every key accounted for, the classifier settled."""

import copy
import functools
import logging
import pickle
from collections.abc import Iterator
from itertools import product

import pytest
import timm
import torch
from conftest import FEATURE_CLASSES, SMALL_OF, TAGGED, assert_same, classifiers, key_map_of, load, refused
from golden_rule import manifest
from timm.models import adapt_input_conv
from timm.models._hub import save_for_hf

from tinyvit_zoo.checkpoints import find_key_map
from tinyvit_zoo.releases import find_release

# Names and shapes of a released state dict, and the model that they are those of.
MANIFESTS = {
    'tiny_vit_5m_224': 'tinyvit_5m_224',
    'tiny_vit_11m_224': 'tinyvit_11m_224',
    'tiny_vit_21m_224': 'tinyvit_21m_224',
    'tiny_vit_21m_384': 'tinyvit_21m_384',
    'tiny_vit_21m_512': 'tinyvit_21m_512',
    'tiny_vit_5m_224_22khead': 'tinyvit_5m_224.dist_in22k',
    'mini_deit_tiny_patch16_224': 'mini_deit_tiny_patch16_224',
    'mini_deit_small_patch16_224': 'mini_deit_small_patch16_224',
    'mini_deit_base_patch16_224': 'mini_deit_base_patch16_224',
    'mini_deit_base_patch16_384': 'mini_deit_base_patch16_384',
    'mini_swin_tiny': 'mini_swin_tiny_patch4_window7_224',
    'mini_swin_small': 'mini_swin_small_patch4_window7_224',
    'mini_swin_base': 'mini_swin_base_patch4_window7_224',
    'mini_swin_base_384': 'mini_swin_base_patch4_window12_384',
    'tinymim_vit_tiny_patch16_ft': 'tinymim_vit_tiny_patch16_224',
    'tinymim_vit_small_patch16_ft': 'tinymim_vit_small_patch16_224',
    'tinymim_vit_base_patch16_ft': 'tinymim_vit_base_patch16_224',
    'tinymim_student_tiny': 'tinymim_vit_tiny_student_patch16_224',
    'tinymim_student_small': 'tinymim_vit_small_student_patch16_224',
    'tinymim_student_base': 'tinymim_vit_base_student_patch16_224',
    'maelite_vit_tiny_patch16_ft': 'mae_lite_vit_tiny_patch16_224',
    'maelite_vit_small_patch16_ft': 'mae_lite_vit_small_patch16_224',
    'maelite_vit_tiny_patch16_rpe': 'mae_lite_vit_tiny_rpe_patch16_224',
    'maelite_mae_tiny': 'mae_lite_vit_tiny_encoder_patch16_224',
    'maelite_mae_small': 'mae_lite_vit_small_encoder_patch16_224',
}
ENTRIES = {
    'TinyViT': {296},
    'Mini-DeiT': {139},
    'Mini-Swin': {204, 436},
    'plain ViT (TinyMIM, MAE-Lite)': {150, 152, 170, 212},
}
# Leaves of released files that follow from the size: no weights.
BUFFERS = ('attn_mask', 'relative_position_index')
# Whose official names are ours and whose files hold nothing else: one layout. (MAE-Lite's RPE model stores an index.)
SAME_FILES = ('tinymim', 'tinymim_student', 'tinymim_star')
# Of pre-training: the encoder alone is a model of ours here, the whole is in `tinyvit_zoo.pretrain`.
DECODER = ('mask_token', 'decoder_')


def without_memory(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, dtype=dtype, device='meta') for key, (shape, dtype) in manifest(name).items()}


def shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in state_dict.items()}


# --- names


@pytest.mark.parametrize('name', MANIFESTS)
def test_names_map_both_ways_one_to_one(name):
    official = without_memory(name)
    key_map = find_key_map(official)
    assert len(official) in ENTRIES[key_map.family]
    ours, layout = key_map.to_ours(official)
    assert layout == ('ours' if key_map.same_names else 'official')
    assert find_key_map(ours) is key_map
    model = {key: value for key, value in official.items() if not key.startswith(DECODER)}
    assert len(ours) == sum(key.split('.')[-1] not in BUFFERS for key in model)
    assert shapes(key_map.to_official(ours)) == shapes(model)
    again, layout = key_map.to_ours(ours)
    assert (layout, list(again)) == ('ours', list(ours))
    if not key_map.same_names:
        assert key_map.to_official(official) == official


@pytest.mark.parametrize(('name', 'model'), MANIFESTS.items())
def test_every_key_of_a_release_is_one_of_the_model(name, model):
    official = without_memory(name)
    ours, _ = find_key_map(official).to_ours(official)
    assert shapes(ours) == shapes(timm.create_model(model, device='meta').state_dict())


@pytest.mark.parametrize('tag', [t for t in TAGGED if '5m' in t])
def test_names_are_those_of_the_hub_copies(tag):
    """The weights on the Hub were saved by timm's own class: the same names and shapes."""
    stock = timm.create_model(tag.replace('tinyvit', 'tiny_vit'), device='meta').state_dict()
    assert shapes(timm.create_model(tag, device='meta').state_dict()) == shapes(stock)


def test_a_name_without_an_official_one_is_reported(family, any_small):
    state_dict = {**any_small().state_dict(), 'extra.weight': torch.zeros(1)}
    refused(lambda: key_map_of(family).to_official(state_dict), 'extra.weight')


@pytest.mark.parametrize(
    ('name', 'ours'),
    [
        ('tiny_vit_5m_224', 'patch_embed.conv1.conv.weight'),
        ('mini_deit_tiny_patch16_224', 'blocks.0.attn.qkv.weight'),
        ('mini_swin_tiny', 'stages.0.blocks.0.attn.qkv.weight'),
    ],
)
def test_an_official_name_beside_ours_for_one_thing_is_reported(name, ours):
    both = {**without_memory(name), ours: torch.zeros(1)}
    key_map = find_key_map(both)
    refused(lambda: key_map.to_ours(both), key_map.official_name(ours), 'at once')


def test_a_state_dict_of_no_family_has_no_map():
    for stock in ('resnet18', 'swin_tiny_patch4_window7_224', 'levit_128'):
        assert find_key_map(timm.create_model(stock, device='meta').state_dict()) is None


# --- every key is accounted for


LAYOUTS = {f: ['ours'] if f in SAME_FILES else ['official', 'ours'] for f in SMALL_OF}
SOURCES = [(family, layout) for family, layouts in LAYOUTS.items() for layout in layouts]
in_every_layout = pytest.mark.parametrize(('family', 'layout'), SOURCES)


@pytest.fixture
def layout(family) -> str:
    """The layout of the checkpoint: that of the released files, unless a test asks for every one."""
    return LAYOUTS[family][0]


@pytest.fixture
def checkpoint(family, any_small, layout) -> dict[str, torch.Tensor]:
    """A checkpoint of the small model of a family, with 11 classes."""
    state_dict = any_small().state_dict()
    return key_map_of(family).to_official(state_dict) if layout == 'official' else dict(state_dict)


@pytest.fixture
def create(family):
    """Makes the small model of a family with the weights of a state dict."""
    name, arguments = SMALL_OF[family]

    def run(state_dict, **kwargs) -> torch.nn.Module:
        overlay = dict(state_dict=state_dict)
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **{**arguments, **kwargs}
        ).eval()  # fmt: skip

    return run


@pytest.fixture
def create_as_released(family):
    """The same without the number of classes: the file must fit the tag."""
    name, arguments = SMALL_OF[family]
    arguments = {k: v for k, v in arguments.items() if k != 'num_classes'}

    def run(state_dict) -> torch.nn.Module:
        overlay = dict(state_dict=state_dict)
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)

    return run


ROUTES = [{}, dict(num_classes=7), dict(num_classes=0), dict(features_only=True)]
ROUTES += [dict(features_only=True, feature_cls='getter', out_indices=(1, 2)), dict(img_size=96), dict(in_chans=4)]
VICTIMS = {
    # one key of each kind: official name, ours
    'tinyvit': {
        'stem': ('patch_embed.seq.0.c.weight', 'patch_embed.conv1.conv.weight'),
        'statistic': ('layers.1.downsample.conv3.bn.running_var', 'stages.2.downsample.conv3.bn.running_var'),
        'first table': ('layers.1.blocks.0.attn.attention_biases', 'stages.1.blocks.0.attn.attention_biases'),
        'second table': ('layers.2.blocks.1.attn.attention_biases', 'stages.2.blocks.1.attn.attention_biases'),
        'last block': ('layers.3.blocks.0.mlp.fc1.weight', 'stages.3.blocks.0.mlp.fc1.weight'),
        'norm of the head': ('norm_head.weight', 'head.norm.weight'),
    },
    'mini_deit': {
        'stem': ('patch_embed.proj.weight', 'patch_embed.proj.weight'),
        'positions': ('pos_embed', 'pos_embed'),
        'relative keys': (
            'blocks.1.block.attn.rpe_k.instances.1.lookup_table_weight', 'blocks.1.attn.rpe_k.1.table',
        ),
        'head mixing': ('blocks.0.block.attn.conv_l.instances.1.weight', 'blocks.0.attn.proj_l.1.weight'),
        'last block': ('blocks.1.block.mlp.fc1.weight', 'blocks.1.mlp.fc1.weight'),
        'norm': ('norm.weight', 'norm.weight'),
    },
    'mini_swin': {
        'stem': ('patch_embed.proj.weight', 'patch_embed.proj.weight'),
        'first table': (
            'layers.1.blocks.0.attn.relative_position_bias_table',
            'stages.1.blocks.0.attn.relative_position_bias_table',
        ),
        'second table': (
            'layers.2.blocks.1.attn.relative_position_bias_table',
            'stages.2.blocks.1.attn.relative_position_bias_table',
        ),
        'head mixing': ('layers.2.blocks.1.proj_w.0.bias', 'stages.2.blocks.1.attn.proj_w.0.bias'),
        'local convolution': ('layers.0.blocks.0.local_conv_list.1.weight', 'stages.0.blocks.0.local_conv.1.weight'),
        'merging': ('layers.2.downsample.reduction.weight', 'stages.3.downsample.reduction.weight'),
        'norm': ('norm.weight', 'norm.weight'),
    },
    'tinymim': {
        'stem': ('patch_embed.proj.weight', 'patch_embed.proj.weight'),
        'positions': ('pos_embed', 'pos_embed'),
        'norm': ('fc_norm.weight', 'fc_norm.weight'),
    },
    'tinymim_student': {
        'last block': ('blocks.4.mlp.fc1.weight', 'blocks.4.mlp.fc1.weight'),
        'norm': ('norm.weight', 'norm.weight'),
    },
    'tinymim_star': {
        'token': ('dist_token', 'dist_token'),
        'expansion': ('conv1x1.1.weight', 'conv1x1.1.weight'),
    },
    'mae_lite_rpe': {
        'table': (
            'blocks.1.attn.relative_position_bias_table', 'blocks.1.attn.relative_position_bias_table',
        ),
        'bias': ('blocks.2.attn.q_bias', 'blocks.2.attn.q_bias'),
        'scale': ('blocks.3.gamma_2', 'blocks.3.gamma_2'),
    },
    'clip_vit': {
        'token': ('visual.class_embedding', 'cls_token'),
        'positions': ('visual.positional_embedding', 'pos_embed'),
        'last block': ('visual.transformer.resblocks.3.mlp.c_fc.weight', 'blocks.3.mlp.fc1.weight'),
        'projection': ('visual.proj', 'proj.weight'),
    },
}  # fmt: skip
DEFECTS = ['renamed', 'missing', 'extra', 'wrong shape', 'no dimensions']
WRONG_ROUTES = [ROUTES[0], ROUTES[1], ROUTES[3], ROUTES[4]]


def wrong_keys() -> Iterator:
    """Every victim with every defect, in layouts and by routes in turn: any two of the four meet.

    The full product is left to `make test-all`.
    """
    for family, victims in VICTIMS.items():
        layouts = LAYOUTS[family]
        for (i, (kind, names)), (j, defect) in product(enumerate(victims.items()), enumerate(DEFECTS)):
            for (k, route), layout in product(enumerate(WRONG_ROUTES), layouts):
                in_turn = k == (i + j) % len(WRONG_ROUTES) and layout == layouts[(i + j // 2) % len(layouts)]
                marks = [] if in_turn else [pytest.mark.full]
                yield pytest.param(
                    family, layout, names, route, defect, id=f'{family}-{kind}-{layout}-{route}-{defect}', marks=marks
                )


@pytest.mark.parametrize('route', ROUTES, ids=str)
@in_every_layout
def test_a_whole_checkpoint_loads(route, checkpoint, create):
    model = create(checkpoint, **route)
    given = {value.numpy().tobytes() for value in checkpoint.values()}
    mlp = [value for key, value in model.state_dict().items() if '.mlp.fc' in key]
    assert len(mlp) >= 8
    assert all(value.numpy().tobytes() in given for value in mlp)


@pytest.mark.parametrize(('family', 'layout', 'names', 'route', 'defect'), list(wrong_keys()))
def test_a_wrong_key_is_reported_by_its_name_in_the_file(defect, family, names, route, checkpoint, layout, create):
    key = names[0] if layout == 'official' else names[1]
    value = checkpoint[key]
    words = [key]
    if defect == 'renamed':
        checkpoint[key + '_x'] = checkpoint.pop(key)
        words = [key + '_x', ' unknown', '1 missing']
    elif defect == 'missing':
        del checkpoint[key]
        words += ['1 missing']
    elif defect == 'extra':
        checkpoint[key + '_x'] = value
        words = [key + '_x', '1 unknown']
    elif defect == 'wrong shape':
        checkpoint[key] = torch.cat([value, value[..., :1]], dim=-1)
        words += ['1 of a wrong shape']
    else:
        checkpoint[key] = torch.tensor(1.0)
        words += ['is ()']
    layout = 'ours' if key_map_of(family).same_names else layout
    refused(lambda: create(checkpoint, **route), f'{layout} layout', key_map_of(family).family, *words)


@pytest.mark.parametrize(
    ('family', 'table', 'entries'),
    [('tinyvit', 'attention_biases', 36), ('mini_swin', 'relative_position_bias_table', 121)],
)
@pytest.mark.parametrize('layout', ['official', 'ours'])
def test_a_table_of_another_square_in_one_block_is_reported(family, table, entries, checkpoint, layout, create):
    """36 entries would make a fine grid of 6 x 6, but not in one block of a stage of 14 x 14."""
    key = ('layers' if layout == 'official' else 'stages') + f'.2.blocks.1.attn.{table}'
    shape = (2, entries) if family == 'tinyvit' else (entries, 2)
    checkpoint[key] = checkpoint[key][: shape[0], : shape[1]].clone()
    refused(lambda: create(checkpoint), key)


@pytest.mark.parametrize('part', ['weight', 'bias'])
@pytest.mark.parametrize('defect', ['renamed', 'missing', 'wrong shape', 'extra'])
@in_every_layout
def test_a_wrong_classifier_is_reported(defect, part, family, checkpoint, layout, create):
    key = f'head.{part}' if layout == 'official' else f'{key_map_of(family).head}.{part}'
    if defect == 'renamed':
        checkpoint[key + '_x'] = checkpoint.pop(key)
    elif defect == 'missing':
        del checkpoint[key]
    elif defect == 'extra':
        checkpoint[key + '_x'] = checkpoint[key]
    else:
        checkpoint[key] = torch.cat([checkpoint[key]] * 2)
    refused(lambda: create(checkpoint), key)


def test_every_single_key_matters(family, any_small, create):
    official = key_map_of(family).to_official(any_small().state_dict())
    weights = [key for key in official if key.split('.')[-1] not in (*BUFFERS, 'num_batches_tracked')]
    assert len(weights) > 50
    for key in weights:
        rest = {k: v for k, v in official.items() if k != key}
        refused(lambda rest=rest: create(rest), key)


USES = [{}, dict(num_classes=7), dict(features_only=True)]


def strangers() -> Iterator:
    """Models of timm and families of ours, none of which has the other's layout. Other uses meet ResNet alone.

    A plain ViT of timm has the layout of one of ours: `test_plain_vit_loading.py` says what can be told then.
    """
    for other, use, family in product(
        ['deit_tiny_patch16_224', 'resnet18', 'swin_tiny_patch4_window7_224', 'tiny_vit_11m_224'], USES, SMALL_OF
    ):
        if not (other.startswith('deit') and key_map_of(family).same_names):
            marks = [] if use == {} or other == 'resnet18' else [pytest.mark.full]
            yield pytest.param(other, use, family, id=f'{other}-{use}-{family}', marks=marks)


@functools.cache
def weights_of_timms(name: str) -> dict[str, torch.Tensor]:
    return timm.create_model(name, num_classes=1000).state_dict()


@pytest.mark.parametrize(('other', 'use', 'family'), list(strangers()))
def test_the_weights_of_another_model_are_reported(other, use, family):
    overlay = dict(state_dict=weights_of_timms(other))
    message = refused(
        lambda: timm.create_model(SMALL_OF[family][0], pretrained=True, pretrained_cfg_overlay=overlay, **use),
        key_map_of(family).family,
    )
    assert 'layout' in message or 'These are' in message


def other_families() -> Iterator:
    """Every family's checkpoint and every model of another layout. Other uses meet one such model of each."""
    for family, layout in SOURCES:
        others = [other for other in SMALL_OF if key_map_of(other) is not key_map_of(family)]
        for other, use in product(others, USES):
            marks = [] if use == {} or other == others[0] else [pytest.mark.full]
            yield pytest.param(family, layout, other, use, id=f'{family}-{layout}-{other}-{use}', marks=marks)


@pytest.mark.parametrize(('family', 'layout', 'other', 'use'), list(other_families()))
def test_the_weights_of_another_family_are_named(other, use, family, checkpoint):
    name, arguments = SMALL_OF[other]
    overlay = dict(state_dict=checkpoint)
    refused(
        lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**arguments, **use}),
        f'These are {key_map_of(family).family} weights',
        key_map_of(other).family,
    )


@pytest.mark.parametrize('channels', [1, 4])
def test_the_stem_is_adapted_to_other_input_channels(channels, family, checkpoint, any_small, create):
    stem = key_map_of(family).first_conv
    model, source = create(checkpoint, in_chans=channels), any_small().get_submodule(stem).weight
    expected = adapt_input_conv(channels, source.detach().clone())
    torch.testing.assert_close(model.get_submodule(stem).weight.detach(), expected)
    assert model(torch.zeros(1, channels, 224, 224)).shape == (1, 11)


def test_own_weights_of_other_input_channels_load_unchanged(any_small, create):
    source = any_small(in_chans=5)
    assert_same(create(source.state_dict(), in_chans=5).state_dict(), source.state_dict())


def test_input_channels_of_neither_side_are_reported(family, any_small, create):
    weight = any_small(in_chans=5).get_submodule(key_map_of(family).first_conv).weight
    words = f'{key_map_of(family).first_conv}.weight', str(tuple(weight.shape))
    refused(lambda: create(any_small(in_chans=5).state_dict()), *words)


# --- the classifier


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith('tinyvit_zoo')]


def body(model: torch.nn.Module, family: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if not key_map_of(family).is_head(k)}


@in_every_layout
def test_the_checkpoints_own_number_of_classes_loads_its_classifier(checkpoint, any_small, create, log):
    assert_same(create(checkpoint, num_classes=11).state_dict(), any_small().state_dict())
    assert log() == []


@pytest.mark.parametrize('classes', [7, 1000, 12])
def test_another_number_of_classes_gets_a_fresh_classifier_and_says_so(
    classes, family, checkpoint, any_small, create, log
):
    model = create(checkpoint, num_classes=classes)
    for head in classifiers(model):
        assert head.weight.shape == (classes, model.num_features)
        assert head.bias.abs().sum() == 0
        assert head.weight.std() < 0.03
    assert_same(body(model, family), body(any_small(), family))
    assert len(log()) == 1
    assert '11 classes' in log()[0]
    assert str(classes) in log()[0]


@in_every_layout
def test_no_classes_need_no_classifier_and_no_message(family, checkpoint, any_small, create, log):
    model = create(checkpoint, num_classes=0)
    assert all(isinstance(head, torch.nn.Identity) for head in classifiers(model))
    assert_same(model.state_dict(), body(any_small(), family))
    assert log() == []


def test_a_file_that_does_not_fit_its_tag_is_not_guessed_about(family, checkpoint, create_as_released):
    classes = find_release(SMALL_OF[family][0]).num_classes or 'none'
    refused(lambda: create_as_released(checkpoint), '11 classes', f'has {classes}', 'num_classes=11')


@in_every_layout
def test_a_checkpoint_without_classifier_is_the_same_question(family, checkpoint, create, create_as_released, log):
    headless = {k: v for k, v in checkpoint.items() if k.rpartition('.')[0] not in ('head', 'head.fc', 'head_dist')}
    create(headless, num_classes=0)
    create(headless, features_only=True)
    assert log() == []
    assert create(headless, num_classes=5).num_classes == 5
    assert len(log()) == 1
    if find_release(SMALL_OF[family][0]).num_classes:  # an encoder was released without one
        refused(lambda: create_as_released(headless), 'no classes', 'num_classes=0')


@pytest.mark.parametrize('kwargs', [dict(num_classes=7), dict(num_classes=0), dict(features_only=True)])
@pytest.mark.parametrize('damage', ['bias', 'shape'])
def test_half_a_classifier_is_reported_also_where_it_is_not_used(kwargs, damage, family, any_small, create):
    state_dict, head = dict(any_small().state_dict()), key_map_of(family).head
    if damage == 'shape':
        state_dict[f'{head}.weight'] = torch.zeros(11, 63)
    else:
        del state_dict[f'{head}.bias']
    words = '(11, 63)' if damage == 'shape' else f'{head}.bias'
    refused(lambda: create(state_dict, **kwargs), 'classifier', words)


@pytest.mark.parametrize('classes', [1000, 10])
def test_a_22k_tag_with_another_number_of_classes_is_not_converted(classes, official_file, log):
    """1000 classes may be the user's own."""
    model = load('tinyvit_5m_224.dist_in22k', official_file('tiny_vit_5m_224_22khead'), num_classes=classes)
    assert model.head.fc.weight.shape == (classes, 320)
    assert model.head.fc.bias.abs().sum() == 0
    assert len(log()) == 1
    assert '21841' in log()[0]


def test_a_22k_file_under_a_1k_name_is_reported(official_file):
    path = official_file('tiny_vit_5m_224_22khead')
    refused(lambda: load('tinyvit_5m_224', path), '21841', '1000', 'convert --head in1k')


def test_features_only_takes_any_classifier(official_file, log):
    for name in ('tiny_vit_5m_224', 'tiny_vit_5m_224_22khead'):
        load('tinyvit_5m_224', official_file(name), features_only=True)
    assert log() == []


def test_a_fine_tuned_model_of_ours_loads_with_its_classifier(family, any_small, tmp_path, log):
    name, arguments = SMALL_OF[family]
    tuned = any_small(num_classes=10)
    torch.save({'epoch': 9, 'arch': name, 'state_dict': tuned.state_dict()}, tmp_path / 'best.pth.tar')
    loaded = load(name, tmp_path / 'best.pth.tar', **{**arguments, 'num_classes': 10})
    assert_same(loaded.state_dict(), tuned.state_dict())
    assert loaded.pretrained_cfg['num_classes'] == 10
    assert log() == []


# --- after loading


LOADED = [pytest.param(f, kwargs, id=f'{f}-{kwargs}') for f in SMALL_OF for kwargs in ({}, dict(num_classes=7))]
LOADED += [
    pytest.param(f, dict(features_only=True, feature_cls=c), id=f'{f}-{c}')
    for f in SMALL_OF
    for c in FEATURE_CLASSES[f]
]


@pytest.mark.parametrize(('family', 'kwargs'), LOADED)
def test_weights_do_not_stay_in_the_configuration(kwargs, checkpoint, create):
    modules = [*create(checkpoint, **kwargs).modules()]
    found = [getattr(module, name, None) or {} for module in modules for name in ('pretrained_cfg', 'default_cfg')]
    assert any(found)
    assert not any('state_dict' in cfg for cfg in found)


def test_weights_given_but_not_wanted_do_not_stay_either(family, checkpoint):
    overlay = dict(state_dict=checkpoint)
    name, arguments = SMALL_OF[family]
    model = timm.create_model(name, pretrained=False, pretrained_cfg_overlay=overlay, **arguments)
    assert 'state_dict' not in model.pretrained_cfg
    assert 'state_dict' not in model.default_cfg


@pytest.mark.parametrize(
    ('family', 'kwargs'), [p for p in LOADED if p.values[1].get('feature_cls') not in ('fx', 'hook')]
)
@torch.no_grad()
def test_a_loaded_model_copies_and_pickles(kwargs, checkpoint, create):
    model, x = create(checkpoint, **kwargs), torch.randn(1, 3, 224, 224)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.eval()(x), model(x), rtol=0, atol=0)
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert len(pickle.dumps(model)) < 1.3 * weights + 200_000  # the weights once


def test_a_loaded_model_exports_and_reloads(checkpoint, create, tmp_path):
    model = create(checkpoint)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert_same(again.state_dict(), model.state_dict())
    assert again.pretrained_cfg['source'] == 'local-dir'


def test_a_given_state_dict_is_left_alone(checkpoint, create):
    before = dict(checkpoint)
    for route in ROUTES:
        model = create(checkpoint, **route)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    assert list(checkpoint) == list(before)
    assert all(checkpoint[k] is before[k] for k in before)
    assert any(v.abs().sum() > 0 for k, v in checkpoint.items() if k.endswith('weight'))


def test_an_empty_state_dict_is_no_wish_for_other_weights(create):
    refused(lambda: create({}), 'nothing', 'not a state dict')


def test_a_file_beats_what_else_the_configuration_names(family, any_small, tmp_path):
    torch.save(any_small().state_dict(), tmp_path / 'mine.pth')
    name, arguments = SMALL_OF[family]
    overlay = dict(file=str(tmp_path / 'mine.pth'), hf_hub_id='nobody/nothing', url='http://127.0.0.1:9/none.pth')
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    assert_same(model.state_dict(), any_small().state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_take_the_dtype_of_the_model(dtype, checkpoint, create):
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in checkpoint.items()}
    assert {p.dtype for p in create(cast).parameters()} == {torch.float32}
    assert {p.dtype for p in create(checkpoint, dtype=dtype).parameters()} == {dtype}


# --- entries that are not weights


def test_stale_index_buffers_are_ignored(small, tmp_path):
    clean = small().state_dict()
    stale = {k.replace('attention_biases', 'attention_bias_idxs'): torch.zeros(49, 49).long() for k in clean}
    torch.save(clean | {k: v for k, v in stale.items() if k.endswith('idxs')}, tmp_path / 'old.pth')
    name, arguments = SMALL_OF['tinyvit']
    assert_same(load(name, tmp_path / 'old.pth', **arguments).state_dict(), clean)


@pytest.mark.parametrize(
    ('family', 'leaf'),
    [
        ('tinyvit', 'attention_bias_idxs'),
        ('mini_swin', 'relative_position_index'),
        ('mini_swin', 'attn_mask'),
        ('mini_deit', 'attn_mask'),
    ],
)
def test_only_buffers_that_belong_to_a_weight_are_left_out(leaf, any_small, create):
    state_dict = {**any_small().state_dict(), f'foo.{leaf}': torch.zeros(3)}
    refused(lambda: create(state_dict), f'foo.{leaf}')


@pytest.mark.parametrize(
    'odd',
    [
        lambda t: t.to_sparse(),
        lambda t: t.to('meta'),
        lambda t: t.to(torch.complex64),
        lambda t: t > 0,
        lambda t: t.int(),
        lambda t: t[:1, :0],
    ],
    ids=['sparse', 'meta', 'complex', 'bool', 'int', 'empty'],
)
@pytest.mark.parametrize(
    ('family', 'key'),
    [
        ('tinyvit', 'stages.1.blocks.0.attn.attention_biases'),
        ('mini_deit', 'pos_embed'),
        ('mini_deit', 'blocks.0.attn.rpe_k.0.table'),
        ('mini_swin', 'stages.1.blocks.0.attn.relative_position_bias_table'),
    ],
)
def test_tensors_that_are_no_weights_are_named(odd, key, any_small, create):
    state_dict = dict(any_small().state_dict())
    state_dict[key] = odd(state_dict[key])
    refused(lambda: create(state_dict), key)
