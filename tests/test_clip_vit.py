"""The teacher of TinyViT: its names and shapes are those of the released file, its outputs those of the released code.

What holds for every family is tested over all of them, with the small model of `conftest.SMALL_OF`.
"""

import json

import pytest
import safetensors.torch
import timm
import torch
from clip_reference import logits
from conftest import assert_same, load, refused, small_of
from golden_case import EXACT, SINGLE, Case, assert_close
from golden_rule import golden, manifest, noise, official_state_dict, ramp
from timm.data import create_transform, resolve_model_data_config
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tinyvit_zoo.checkpoints import CLIP_VIT_KEYS, find_key_map, in1k_classes_in_22k
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.hub.pack import pack
from tinyvit_zoo.hub.verify import verify
from tinyvit_zoo.releases import find_release

NAME = 'clip_vit_large_patch14_224'
RELEASED = 'clip_vit_large_patch14_22k'
SMALL = dict(img_size=56, embed_dim=128, depth=3, num_heads=2, proj_dim=48, num_classes=11)
CASES = [Case('clip_vit_small', 'clip_vit_small', NAME, SMALL, atol=SINGLE)]


@pytest.fixture(scope='module')
def released() -> dict[str, torch.Tensor]:
    """The tensors of the released file, without values."""
    return {k: torch.empty(shape, dtype=dtype, device='meta') for k, (shape, dtype) in manifest(RELEASED).items()}


# --- names and shapes


def test_the_released_names_become_ours_with_our_shapes_and_come_back(released):
    ours, layout = CLIP_VIT_KEYS.to_ours(released)
    model = timm.create_model(NAME, device='meta')
    assert (layout, find_key_map(released), find_key_map(ours)) == ('official', CLIP_VIT_KEYS, CLIP_VIT_KEYS)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    back = CLIP_VIT_KEYS.to_official(ours)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in released.items()}


def test_values_survive_the_way_to_ours_and_back():
    official = official_state_dict('clip_vit_small')
    ours, _ = CLIP_VIT_KEYS.to_ours(official)
    assert torch.equal(ours['proj.weight'], official['visual.proj'].T)
    assert_same(CLIP_VIT_KEYS.to_official(ours), official)
    assert_same(CLIP_VIT_KEYS.to_official(CLIP_VIT_KEYS.to_official(ours)), official)


def test_the_tower_that_timm_has_for_clip_is_the_same_but_for_its_one_layer_head():
    ours = timm.create_model(NAME, device='meta')
    theirs = timm.create_model('vit_large_patch14_clip_quickgelu_224', device='meta', num_classes=768)
    mine = {k: v.shape for k, v in ours.state_dict().items() if not k.startswith(('head.', 'proj.'))}
    assert mine == {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith('head.')}
    assert ours.proj.weight.shape == theirs.head.weight.shape
    assert type(ours.blocks[0].mlp.act) is type(theirs.blocks[0].mlp.act)
    assert ours.blocks[0].norm1.eps == theirs.blocks[0].norm1.eps == ours.norm_pre.eps == ours.norm.eps


@pytest.mark.parametrize('spoil', ['visual.proj', 'visual.class_embedding', 'visual.positional_embedding'])
def test_a_tensor_of_another_number_of_axes_is_named(spoil):
    official = official_state_dict('clip_vit_small')
    official[spoil] = official[spoil].flatten()[:, None, None]
    overlay = dict(state_dict=official, num_classes=11)
    words = (spoil, 'of a wrong shape')
    refused(lambda: timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **SMALL), *words)


def test_weights_of_other_plain_vits_and_of_this_one_are_told_apart(official_file):
    small = small_of('tinymim').state_dict()
    overlay = dict(state_dict=small, num_classes=11)
    refused(lambda: timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay), 'plain ViT')
    other = 'tinymim_vit_tiny_patch16_224'
    refused(lambda: load(other, official_file('clip_vit_small'), num_classes=11), 'These are CLIP ViT weights')


def test_all_of_clip_without_a_classifier_says_what_is_unknown_and_missing():
    clip = official_state_dict('clip_vit_small')
    clip = {k: v for k, v in clip.items() if not k.startswith('head.')} | {'logit_scale': torch.ones(())}
    arguments = dict(SMALL, num_classes=0)
    overlay = dict(state_dict=clip)
    action = lambda: timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)  # noqa: E731
    refused(action, 'unknown: logit_scale')
    del clip['logit_scale']
    assert action().num_features == 48


# --- outputs


@pytest.mark.parametrize('case', CASES, ids=str)
@torch.no_grad()
def test_outputs_are_those_of_the_released_code(case, official_file):
    expected, model = golden(case.reference), case.build(official_file).double()
    assert_close(model(noise(56, 56).double()), expected['logits'], case.atol)
    assert_close(model(ramp(56, 56).double()), expected['logits_ramp'], case.atol)
    features = model.forward_features(noise(56, 56).double())
    assert_close(model.forward_head(features, pre_logits=True), expected['pooled'], case.atol)


@pytest.mark.parametrize(('heads', 'size'), [(2, 56), (4, 56), (2, (28, 70))], ids=str)
@torch.no_grad()
def test_logits_are_those_of_the_description_in_double_precision(heads, size):
    torch.manual_seed(1)
    model = timm.create_model(NAME, **{**SMALL, 'num_heads': heads, 'img_size': size}).double().eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    images = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size), dtype=torch.float64)
    expected = logits(CLIP_VIT_KEYS.to_official(model.state_dict()), images, heads)
    assert expected.std() > 0.1
    assert_close(model(images), expected.numpy(), EXACT)


@torch.no_grad()
def test_one_linear_layer_of_timms_tower_can_stand_for_projection_and_classifier(official_file):
    """They have nothing between them, so timm's own CLIP ViT computes the same logits."""
    model = CASES[0].build(official_file).double()
    arguments = {k: v for k, v in SMALL.items() if k != 'proj_dim'}
    timms = timm.create_model('vit_large_patch14_clip_quickgelu_224', **arguments).double().eval()
    state = {k: v for k, v in model.state_dict().items() if k != 'proj.weight'}
    state['head.weight'] = model.head.weight @ model.proj.weight
    timms.load_state_dict(state)
    x = noise(56, 56).double()
    assert_close(timms(x), model(x).numpy(), EXACT)


# --- use


@pytest.mark.parametrize('wrap', [dict, lambda state: {'model': state}, lambda state: {'state_dict': state}])
def test_the_file_loads_by_the_name_of_the_release(wrap, tmp_path):
    official = official_state_dict('clip_vit_small')
    torch.save(wrap(official), tmp_path / 'file.pth')
    model = load(f'{NAME}.openai_ft_in22k', tmp_path / 'file.pth', **SMALL)
    assert_same(CLIP_VIT_KEYS.to_official(model.state_dict()), official)


def test_the_classifier_can_be_left_out_replaced_or_turned_into_one_of_1000(cli, tmp_path):
    official = official_state_dict('clip_vit_small')
    official['head.weight'] = torch.randn(21841, 48)
    official['head.bias'] = torch.randn(21841)
    source = tmp_path / f'{RELEASED}.pth'
    torch.save({'model': official}, source)
    small = {k: v for k, v in SMALL.items() if k != 'num_classes'}
    assert load(NAME, source, **small).num_classes == 21841
    assert load(NAME, source, num_classes=0, **small).num_features == 48
    assert load(NAME, source, num_classes=3, **small).get_classifier().weight.shape == (3, 48)
    assert cli('convert', source, tmp_path / 'in1k.safetensors', '--head', 'in1k')[0] == 0
    converted = safetensors.torch.load_file(tmp_path / 'in1k.safetensors')
    model = load(NAME, tmp_path / 'in1k.safetensors', num_classes=1000, **small)
    rows = torch.tensor(in1k_classes_in_22k())
    assert torch.equal(model.head.weight[rows >= 0], official['head.weight'][rows[rows >= 0]])
    assert torch.equal(converted['head.bias'][850], official['head.bias'][rows[rows >= 0]].mean())


def test_convert_knows_the_file_and_gives_it_back(cli, tmp_path):
    official = official_state_dict('clip_vit_small')
    source, ours, back = (tmp_path / name for name in (f'{RELEASED}.pth', 'ours.safetensors', 'back.pth'))
    torch.save({'model': official}, source)
    code, out, _ = cli('convert', source, ours)
    assert (code, 'CLIP ViT in official layout' in out) == (0, True)
    assert cli('convert', ours, back)[0] == 0
    assert_same(torch.load(back, weights_only=True)['model'], official)


def test_a_page_of_it_verifies(tmp_path):
    page = pack(str(save_folder(small_of('clip_vit', img_size=64), tmp_path / 'model')), tmp_path / 'page')
    assert verify(page).difference < 1e-6


def test_images_are_prepared_as_in_the_released_code():
    model = timm.create_model(NAME, device='meta')
    config = resolve_model_data_config(model)
    assert (config['mean'], config['std']) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    transform = create_transform(**config)
    assert [str(step.size) for step in transform.transforms[:2]] == ['256', '(224, 224)']
    assert config['interpolation'] == 'bicubic'


def test_info_says_where_the_accuracy_is_published_and_through_which_outputs(cli):
    code, out, _ = cli('info', NAME, '--json')
    facts = json.loads(out)
    result = facts['protocols'][0]['results'][0]
    assert (code, result['top1'], result['top5'], result['by']) == (0, 85.894, 97.566, 'authors')
    assert result['source_url'].endswith('SAVE_TEACHER_LOGITS.md')
    assert any('999 classes' in note for note in facts['release']['notes'])
    assert facts['model']['params'] == sum(torch.Size(shape).numel() for shape, _ in manifest(RELEASED).values())
    assert (set(facts['model']['heads']), facts['model']['prefix_tokens']) == ({16}, ['cls'])
    assert find_release(NAME).file == f'{RELEASED}.pth'


def test_layers_of_layer_decay_are_the_stem_the_blocks_and_the_end():
    model = timm.create_model(NAME, device='meta', **SMALL)
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert groups['head.weight'] == max(groups.values()) == SMALL['depth'] + 1
    stem = {key for key, layer in groups.items() if layer == 0}
    assert stem == {'cls_token', 'pos_embed', 'patch_embed.proj.weight', 'norm_pre.weight', 'norm_pre.bias'}
    assert groups['proj.weight'] == groups['norm.weight'] == groups['blocks.2.norm1.weight'] == SMALL['depth']


def test_pruning_takes_the_projection_away_with_the_classifier():
    model = small_of('clip_vit', img_size=64)
    x = torch.randn(2, 3, 64, 64)
    model.prune_intermediate_layers(1)
    assert model(x).shape == model.forward_features(x).shape
    assert model.num_features == model.embed_dim
    assert {'proj.weight', 'head.weight'}.isdisjoint(model.state_dict())
