"""Checkpoints into the dense-prediction forms: loaded, resized, left at initial values, left out, and refused."""

import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import assert_same, refused
from dense_reference import released_dense
from golden_rule import fill_by_rule
from safetensors.torch import save_file

from tinyvit_zoo.checkpoints import CheckpointError, imported_path
from tinyvit_zoo.dense import (
    DenseBackbone,
    load_dense,
    mae_lite_vitdet_tiny,
    official_state_dict,
    tinymim_base_seg,
    tinymim_star_tiny_seg,
)
from tinyvit_zoo.layers.beit_table import resize_beit_table


def weights_of(name: str, **kwargs) -> dict[str, torch.Tensor]:
    """State dict of a registered model, filled by the rule."""
    return fill_by_rule(timm.create_model(name, **kwargs)).state_dict()


def vitdet() -> DenseBackbone:
    return mae_lite_vitdet_tiny(224)


def start_of(model: DenseBackbone) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def bicubic(pos_embed: torch.Tensor, prefix_tokens: int, grid: tuple[int, int]) -> torch.Tensor:
    """Released resize of a position embedding of 14 x 14 patches."""
    patches = pos_embed[:, prefix_tokens:].transpose(1, 2).unflatten(2, (14, 14))
    patches = F.interpolate(patches, grid, mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    return torch.cat([pos_embed[:, :prefix_tokens], patches], 1)


def test_vitdet_loads_the_encoder_of_a_whole_pretraining_file(caplog):
    encoder = weights_of('mae_lite_vit_tiny_encoder_patch16_224')
    file = {f'module.model.{k}': v for k, v in encoder.items()}
    file['module.model.mask_token'] = torch.zeros(1, 1, 96)
    file['module.model.decoder_embed.weight'] = torch.zeros(96, 192)
    file['module.tch_model.blocks.0.norm1.weight'] = torch.zeros(768)
    file['module.attn_adapter.adapter11.weight'] = torch.zeros(12, 12, 1, 1)
    model = vitdet()
    start = start_of(model)
    with caplog.at_level(logging.INFO, logger='tinyvit_zoo.dense'):
        load_dense(model, {'model': file})

    blocks = {f'net.{k}': v for k, v in encoder.items() if k.startswith(('blocks.', 'patch_embed.', 'pos_embed'))}
    fresh = {k: v for k, v in start.items() if k.startswith('pyramid.') or 'rel_pos' in k}
    assert len(blocks) + len(fresh) == len(start)
    assert_same(model.state_dict(), blocks | fresh)
    (line,) = (r.getMessage() for r in caplog.records if r.name == 'tinyvit_zoo.dense.loading')
    assert 'loaded 147 tensors' in line
    assert 'at their initial values: blocks.*.attn.rel_pos_h (12), blocks.*.attn.rel_pos_w (12), pyramid (32)' in line
    assert 'left out: cls_token (1), norm (2), mask_token (1), decoder_embed (1)' in line


def test_vitdet_loads_a_fine_tuned_classifier_from_a_file(tmp_path):
    classifier = weights_of('mae_lite_vit_tiny_patch16_224', num_classes=7)
    torch.save({'model': {f'module.model.{k}': v for k, v in classifier.items()}}, tmp_path / 'ft.pth.tar')
    model = vitdet()
    load_dense(model, tmp_path / 'ft.pth.tar')
    assert_same({'it': model.net.blocks[11].mlp.fc2.weight}, {'it': classifier['blocks.11.mlp.fc2.weight']})
    assert_same({'it': model.net.pos_embed}, {'it': classifier['pos_embed']})


def test_tinymim_star_loads_its_classifier_including_the_widening_layer():
    classifier = weights_of('tinymim_vit_tiny_star_patch16_224')
    model = tinymim_star_tiny_seg((160, 256))
    start = start_of(model)
    load_dense(model, classifier)
    loaded = model.state_dict()
    assert_same({'it': loaded['net.pos_embed']}, {'it': bicubic(classifier['pos_embed'], 2, (10, 16))})
    for name in ('conv1x1.0.weight', 'conv1x1.1.weight', 'conv1x1.1.bias'):
        assert_same({name: loaded[f'pyramid.{name}']}, {name: classifier[name]})
    for name in ('cls_token', 'dist_token', 'blocks.5.attn.qkv.weight', 'blocks.11.mlp.fc2.bias'):
        assert_same({name: loaded[f'net.{name}']}, {name: classifier[name]})
    kept = [k for k in start if 'fpn' in k or 'gamma_' in k or k.endswith('table')]
    assert_same({k: loaded[k] for k in kept}, {k: start[k] for k in kept})


def test_a_name_of_the_zoo_gives_its_weights():
    name = 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k'
    encoder = weights_of(name.partition('.')[0])
    folder = imported_path(name)
    folder.mkdir(parents=True)
    save_file(encoder, folder / 'model.safetensors')
    try:
        model = vitdet()
        load_dense(model, name)
    finally:
        (folder / 'model.safetensors').unlink()
        folder.rmdir()
    assert_same({'it': model.net.blocks[3].attn.qkv.weight}, {'it': encoder['blocks.3.attn.qkv.weight']})


def test_weights_of_a_model_with_other_heads_only_initialize_a_training():
    students = weights_of('tinymim_vit_tiny_student_patch16_224')
    file = {'model': students, 'args': {'model': 'tinymim_vit_tiny_patch16'}}
    model = vitdet()
    start = start_of(model)
    refused(lambda: load_dense(model, file), '6 heads, 12 in the last block', 'as_init=True')
    assert_same(model.state_dict(), start)
    load_dense(model, file, as_init=True)
    assert_same({'it': model.net.blocks[0].attn.qkv.weight}, {'it': students['blocks.0.attn.qkv.weight']})


def test_dense_checkpoints_are_resized(caplog):
    """Released segmentor at 224 -> a rectangular form: positions bicubic, tables by splines, the rest unchanged."""
    released = released_dense('tinymimstar_tiny_seg224')
    segmentor = {f'backbone.{k}': v for k, v in released.items()} | {'decode_head.conv_seg.weight': torch.zeros(1)}
    model = tinymim_star_tiny_seg((160, 256))
    with caplog.at_level(logging.INFO, logger='tinyvit_zoo.dense'):
        load_dense(model, {'state_dict': segmentor})
    assert 'Using the backbone alone; left out 1 other tensors.' in caplog.messages
    assert any('at their initial values: nothing; left out: nothing' in message for message in caplog.messages)
    loaded = model.state_dict()
    table = 'blocks.7.attn.relative_position_bias_table'
    expected = resize_beit_table(released[table], (14, 14), (10, 16), prefix_tokens=2)
    assert_same({table: loaded[f'net.{table}']}, {table: expected})
    assert_same({'it': loaded['net.pos_embed']}, {'it': bicubic(released['pos_embed'], 2, (10, 16))})
    assert_same({'it': loaded['pyramid.fpn4.0.weight']}, {'it': released['fpn4.0.weight']})

    again = tinymim_star_tiny_seg((160, 256))
    load_dense(again, official_state_dict(model))
    assert_same(again.state_dict(), loaded)


def test_detectors_are_resized():
    released = released_dense('maelite_vitdet_tiny_224')
    model = mae_lite_vitdet_tiny((320, 160))
    load_dense(model, released)
    for block, axis, length in ((2, 'h', 39), (2, 'w', 19), (0, 'h', 27)):
        name = f'net.blocks.{block}.attn.rel_pos_{axis}'
        expected = F.interpolate(released[name].T[None], length, mode='linear', align_corners=False)[0].T
        assert_same({name: model.state_dict()[name]}, {name: expected})


def test_our_own_names_load_as_well(tmp_path):
    model = fill_by_rule(mae_lite_vitdet_tiny((160, 64)))
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    again = mae_lite_vitdet_tiny((160, 64))
    load_dense(again, tmp_path)
    assert_same(again.state_dict(), model.state_dict())


def without(state_dict: dict, *keys: str) -> dict:
    return {k: v for k, v in state_dict.items() if k not in keys}


def encoder() -> dict[str, torch.Tensor]:
    return weights_of('mae_lite_vit_tiny_encoder_patch16_224')


@pytest.mark.parametrize(
    ('make', 'checkpoint', 'words'),
    [
        (vitdet, lambda: encoder() | {'surprise': torch.ones(2)}, ('1 unknown', 'surprise')),
        (vitdet, lambda: without(encoder(), 'blocks.3.norm1.bias'), ('1 missing', 'net.blocks.3.norm1.bias')),
        (vitdet, lambda: without(encoder(), 'pos_embed'), ('missing', 'net.pos_embed')),
        (vitdet, lambda: weights_of('mae_lite_vit_small_patch16_224'), ('of a wrong shape', '(384,), not (192,)')),
        (vitdet, lambda: weights_of('mae_lite_vit_tiny_rpe_patch16_224'), ('unknown', 'q_bias')),
        (vitdet, lambda: weights_of('tinymim_vit_tiny_star_patch16_224'), ('conv1x1', 'dist_token')),
        (
            vitdet,
            lambda: without(released_dense('maelite_vitdet_tiny_224'), 'simfp_4.0.weight'),
            ('pyramid.simfp_4.0',),
        ),
        (vitdet, lambda: weights_of('mini_deit_tiny_patch16_224'), ('Mini-DeiT',)),
        (lambda: tinymim_star_tiny_seg(224), encoder, ('net.dist_token', 'net.pos_embed')),
    ],
    ids=['unknown', 'missing', 'positions', 'width', 'rpe', 'two tokens', 'half a pyramid', 'family', 'one token'],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(make, checkpoint, words):
    model = make()
    start = start_of(model)
    refused(lambda: load_dense(model, checkpoint()), *words)
    assert_same(model.state_dict(), start)


def test_a_table_of_another_order_is_refused():
    released = released_dense('tinymimstar_tiny_seg224')
    name = 'blocks.0.attn.relative_position_index'
    released[name] = released[name].T
    refused(lambda: load_dense(tinymim_star_tiny_seg(224), released), name, 'another order')


def test_a_table_of_an_unknown_grid_has_a_wrong_shape():
    """The grid is neither the model's nor square; the message does not blame the order of its stored index."""
    rectangular = official_state_dict(tinymim_star_tiny_seg((64, 96)))
    refused(lambda: load_dense(tinymim_star_tiny_seg(32), rectangular), '13 of a wrong shape', 'net.pos_embed')


def test_the_message_for_another_width_does_not_blame_heads():
    file = {'model': weights_of('tinymim_vit_small_patch16_224'), 'args': {'model': 'vit_small_patch16'}}
    with pytest.raises(CheckpointError) as error:
        load_dense(vitdet(), file)
    assert 'of a wrong shape' in str(error.value)
    assert 'heads' not in str(error.value)


def test_other_vits_are_loaded_before_they_get_a_pyramid():
    model = DenseBackbone(timm.create_model('vit_tiny_patch16_224', depth=2))
    with pytest.raises(TypeError, match='VisionTransformer before it gets a pyramid'):
        load_dense(model, encoder())


def test_official_names_need_the_official_pyramid():
    model = DenseBackbone(tinymim_base_seg(32).net, indices=(11,))
    refused(lambda: official_state_dict(model), 'pyramid.simfp_2.0.weight', 'another pyramid')
