"""Dense backbones as timm's `features_only` models: any plain ViT, any size, every dtype, training, layer decay."""

import copy
import json
from itertools import product

import pytest
import timm
import torch
from conftest import rest_is_full, small_of
from golden_rule import GOLDEN, fill_by_rule
from timm.optim import param_groups_layer_decay

from tinyvit_zoo.dense import DenseBackbone, TinyMimTrunk, VitDetTrunk, mae_lite_vitdet_tiny, tinymim_star_tiny_seg
from tinyvit_zoo.layers.pyramid import SimpleFeaturePyramid, TinyMimNeck, TinyMimStarNeck


def tinymim_like(**kwargs) -> DenseBackbone:
    trunk = TinyMimTrunk((64, 96), embed_dim=32, num_heads=2, depth=12, **kwargs)
    return DenseBackbone(trunk, TinyMimNeck(32))


def tinymim_star_like() -> DenseBackbone:
    trunk = TinyMimTrunk((64, 96), embed_dim=32, num_heads=2, depth=4, distilled=True)
    return DenseBackbone(trunk, TinyMimStarNeck(32, 48), indices=(0, 1, 2, 3))


def vitdet_like(**kwargs) -> DenseBackbone:
    trunk = VitDetTrunk((64, 96), embed_dim=32, num_heads=2, depth=4, window_size=3, global_blocks=(1, 3), **kwargs)
    return DenseBackbone(trunk, SimpleFeaturePyramid(32, 24, top_pool=True))


def timm_like() -> DenseBackbone:
    vit = timm.create_model(
        'vit_tiny_patch16_224', img_size=(64, 96), embed_dim=32, num_heads=2, depth=4, dynamic_img_size=True
    )
    return DenseBackbone(vit, SimpleFeaturePyramid(32, 24))


def zoo_like() -> DenseBackbone:
    vit = timm.create_model(
        'tinymim_vit_tiny_patch16_224', img_size=(64, 96), embed_dim=32, num_heads=2, dynamic_img_size=True
    )
    return DenseBackbone(vit, TinyMimNeck(32))


def shared_like() -> DenseBackbone:
    return DenseBackbone(small_of('mini_deit', img_size=(64, 96), dynamic_img_size=True))


FORMS = (tinymim_like, tinymim_star_like, vitdet_like, timm_like, zoo_like, shared_like)


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request) -> DenseBackbone:
    return fill_by_rule(request.param())


def images(height: int = 64, width: int = 96, **kwargs) -> torch.Tensor:
    return torch.randn(2, 3, height, width, **kwargs)


def assert_levels(model: DenseBackbone, levels: list[torch.Tensor], height: int, width: int) -> None:
    assert [tuple(level.shape) for level in levels] == [
        (2, chans, -(-height // stride), -(-width // stride))  # the fifth map rounds up
        for chans, stride in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]


def test_maps_have_the_channels_and_strides_of_feature_info(form):
    assert form.feature_info.reduction()[:4] == [4, 8, 16, 32]
    assert_levels(form, form(images()), 64, 96)
    modules = dict(form.named_modules())
    assert all(name in modules for name in form.feature_info.module_name())


def test_images_of_other_sizes(form):
    assert_levels(form, form(images(128, 64)), 128, 64)


def test_the_map_is_that_of_forward_intermediates():
    """Pruning and stopping early do not change the maps."""
    vit = fill_by_rule(timm.create_model('vit_tiny_patch16_224', img_size=64, embed_dim=32, num_heads=2, depth=6))
    x = images(64, 64)
    expected = vit.forward_intermediates(x, indices=[1, 2, 3, 4], norm=True, intermediates_only=True)
    neck = fill_by_rule(TinyMimNeck(32))
    model = DenseBackbone(vit, neck, indices=[1, 2, 3, 4], norm=True).eval()
    torch.testing.assert_close(model(x), neck(expected))
    assert len(vit.blocks) == 5
    assert isinstance(vit.head, torch.nn.Identity)


@pytest.mark.parametrize('make', [tinymim_like, vitdet_like])
def test_blocks_after_the_last_map_are_neither_run_nor_kept(make):
    trunk = fill_by_rule(make().net)
    x = images()
    expected = trunk.forward_intermediates(x, indices=[1], intermediates_only=True)
    calls = []
    trunk.blocks[2].register_forward_hook(lambda *_: calls.append(None))
    early = trunk.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early, expected, rtol=0, atol=0)
    assert calls == []
    model = DenseBackbone(trunk, SimpleFeaturePyramid(32, 24), indices=(1,))
    assert len(model.net.blocks) == 2
    torch.testing.assert_close(model(x), model.pyramid(expected), rtol=0, atol=0)


def test_an_encoder_with_an_untrained_end_gives_the_map_before_it():
    student = timm.create_model('tinymim_vit_tiny_student_patch16_224', embed_dim=24, depth=4)
    model = DenseBackbone(student)
    assert model.indices == [2]
    assert len(model.net.blocks) == 3


def test_default_blocks_are_the_released_ones():
    assert tinymim_like().indices == [3, 5, 7, 11]
    assert vitdet_like().indices == [3]
    deep = DenseBackbone(TinyMimTrunk(32, embed_dim=8, num_heads=1, depth=24), TinyMimNeck(8))
    assert deep.indices == [7, 11, 15, 23]


def test_another_number_of_maps_than_the_pyramid_takes_is_refused():
    with pytest.raises(ValueError, match=r'TinyMimNeck takes 4 maps, got indices \[1, 2\]'):
        DenseBackbone(tinymim_like().net, TinyMimNeck(32), indices=(1, 2))
    with pytest.raises(ValueError, match=r'TinyMimNeck takes 4 maps, got indices \[0, 1, 1, 3\]'):
        DenseBackbone(TinyMimTrunk(32, embed_dim=8, num_heads=1, depth=4), TinyMimNeck(8))


def test_patches_without_whole_strides_are_refused():
    with pytest.raises(ValueError, match=r'multiple of 4 .* 3\.5'):
        DenseBackbone(timm.create_model('vit_tiny_patch16_224', img_size=56, patch_size=14, depth=1))


@pytest.mark.parametrize('make', [tinymim_like, vitdet_like])
def test_sizes_that_are_no_multiple_of_the_patch_are_refused(make):
    with pytest.raises(AssertionError, match='multiples of 16: pad them'):
        make()(images(64, 90))


def test_every_parameter_learns(form):
    form.train()
    sum((level * torch.randn_like(level)).sum() for level in form(images())).backward()
    still = [name for name, p in form.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize('make', [tinymim_like, tinymim_star_like, vitdet_like])
def test_checkpointing_keeps_outputs_and_gradients(make):
    plain = fill_by_rule(make())
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = images()
    for model, runs in ((plain, 1), (saving, 2)):
        calls = []
        model.net.blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        sum(level.square().mean() for level in model(x)).backward()
        assert len(calls) == runs
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.bfloat16, 0.3), (torch.float64, 1e-4)])
def test_other_dtypes(form, dtype, atol):
    x = images()
    expected = form(x)
    assert len(expected) > 1
    for level, reference in zip(form.to(dtype)(x.to(dtype)), expected, strict=True):
        assert level.dtype == dtype
        torch.testing.assert_close(level.float(), reference, rtol=0, atol=atol)


@pytest.mark.parametrize('make', [tinymim_star_like, vitdet_like])
def test_automatic_mixed_precision(make):
    model = fill_by_rule(make())
    x = images()
    with torch.autocast('cpu', torch.bfloat16):
        mixed = model(x)
    assert len(mixed) > 1
    for level, reference in zip(mixed, model(x), strict=True):
        torch.testing.assert_close(level.float(), reference, rtol=0, atol=0.3)


def test_drop_path_grows_from_zero_and_drops_whole_images():
    model = tinymim_like(drop_path_rate=0.3)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in model.net.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.3, 12))
    assert isinstance(vitdet_like().net.blocks[-1].drop_path, torch.nn.Identity)


def test_state_dicts_are_loaded_again(form):
    other = copy.deepcopy(form)
    for p in other.parameters():
        p.data.normal_()
    other.load_state_dict(form.state_dict())
    x = images()
    torch.testing.assert_close(other(x), form(x), rtol=0, atol=0)


def test_initial_values():
    """Residual branches of block l start smaller by sqrt(2 (l + 1)); tables and the distillation token at zero."""
    net = TinyMimTrunk(32, embed_dim=96, num_heads=2, depth=8, distilled=True)
    torch.testing.assert_close(net.blocks[7].mlp.fc2.weight.std(), torch.tensor(0.02 / 4), rtol=0.05, atol=0)
    torch.testing.assert_close(net.blocks[7].mlp.fc1.weight.std(), torch.tensor(0.02), rtol=0.05, atol=0)
    assert not net.dist_token.any()
    assert not net.blocks[0].attn.relative_position_bias_table.any()
    assert net.blocks[3].gamma_1.eq(1).all()
    assert not vitdet_like().net.blocks[0].attn.rel_pos_h.any()


@pytest.mark.parametrize('make', [tinymim_like, vitdet_like])
def test_device_and_dtype_reach_every_parameter(make):
    model = make(device='meta', dtype=torch.bfloat16).net
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}


def test_a_default_pyramid_is_on_the_device_of_the_vit():
    model = DenseBackbone(timm.create_model('vit_tiny_patch16_224', depth=1, device='meta', dtype=torch.bfloat16))
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}


def decay_of(model: torch.nn.Module, layer_decay: float) -> dict[str, tuple[float, float]]:
    """Learning-rate scale and weight decay of every parameter, as timm groups them."""
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
    )
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g['lr_scale'], g['weight_decay']) for g in groups for p in g['params']}


def test_layer_decay_of_tinymim_is_the_released_one():
    reference = json.loads((GOLDEN / 'tinymim_seg_layer_decay.json').read_text())
    model = tinymim_star_tiny_seg(224, device='meta')
    expected = {}
    for name, pair in reference['lr_scale_and_wd'].items():
        name = name.removeprefix('backbone.')
        if not name.startswith('decode_head'):
            part = 'pyramid' if name.startswith(('fpn', 'conv1x1')) else 'net'
            expected[f'{part}.{name}'] = pytest.approx(tuple(pair))
    assert decay_of(model, reference['layer_decay']) == expected


def test_layer_decay_of_vitdet_counts_blocks_and_leaves_positions_undecayed():
    decay = decay_of(mae_lite_vitdet_tiny(224, device='meta'), 0.5)
    assert decay['net.pos_embed'] == (0.5**13, 0.0)
    assert decay['net.patch_embed.proj.weight'] == (0.5**13, 0.05)
    assert decay['net.blocks.3.attn.rel_pos_h'] == (0.5**9, 0.05)
    assert decay['net.blocks.11.norm1.weight'] == (0.5, 0.0)
    assert decay['pyramid.simfp_2.0.weight'] == (1.0, 0.05)


def test_layer_decay_of_any_vit_ends_with_the_pyramid():
    decay = decay_of(timm_like(), 0.5)
    assert decay['net.pos_embed'] == (0.5**5, 0.0)
    assert decay['net.blocks.3.attn.qkv.weight'] == (0.5, 0.05)
    assert decay['pyramid.simfp_4.0.weight'] == (1.0, 0.05)


def test_intermediate_outputs_as_tokens():
    net = fill_by_rule(TinyMimTrunk((32, 48), embed_dim=8, num_heads=2, depth=3))
    x = images(32, 48)
    last, maps = net.forward_intermediates(x)
    tokens = net.forward_intermediates(x, indices=2, output_fmt='NLC', intermediates_only=True)
    torch.testing.assert_close(tokens, [m.flatten(2).transpose(1, 2) for m in maps[1:]], rtol=0, atol=0)
    torch.testing.assert_close(tokens[-1], last[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(net(x), maps[-1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="'NCHW' or 'NLC', got 'NHWC'"):
        net.forward_intermediates(x, output_fmt='NHWC')


@pytest.mark.parametrize('trunk', [TinyMimTrunk, VitDetTrunk])
def test_a_trunk_refuses_image_sizes_that_whole_patches_do_not_fill(trunk):
    with pytest.raises(ValueError, match='a multiple of the patch'):
        trunk((64, 90), embed_dim=32, num_heads=2, depth=1)


FORMS = [tinymim_star_like, vitdet_like]
# The graph itself takes seconds, code generated from it a minute.
COMPILED = rest_is_full(
    product(FORMS, ['aot_eager', 'inductor']), [*product(FORMS, ['aot_eager']), (vitdet_like, 'inductor')]
)
TRAINED = rest_is_full(product(FORMS, ['aot_eager', 'inductor']), list(product(FORMS, ['aot_eager'])))


@pytest.mark.slow
@pytest.mark.parametrize(('make', 'backend'), COMPILED)
def test_compiled_in_one_graph(make, backend):
    """Also at another size than the laid-out one, where tables and positions are resized in the forward pass."""
    torch._dynamo.reset()
    model = fill_by_rule(make())
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    for size in ((64, 96), (96, 64)):
        x = images(*size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('make', 'backend'), TRAINED)
def test_compiled_training(make, backend):
    torch._dynamo.reset()
    model, eager = fill_by_rule(make()).train(), fill_by_rule(make()).train()
    compiled, x = torch.compile(model, fullgraph=True, dynamic=False, backend=backend), images()
    for forward in (compiled, eager):
        sum(level.square().mean() for level in forward(x)).backward()
    expected = {key: p.grad for key, p in eager.named_parameters()}
    assert len(expected) > 20
    for key, parameter in model.named_parameters():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[key], rtol=0, atol=1e-3 * scale + 1e-5, msg=key)


@pytest.mark.slow
@torch.no_grad()
def test_vitdet_is_exported_with_dynamic_sizes_including_its_own():
    trunk = VitDetTrunk((96, 128), embed_dim=16, num_heads=2, depth=2, window_size=3, global_blocks=(1,))
    model = fill_by_rule(DenseBackbone(trunk, SimpleFeaturePyramid(16, 8))).eval()
    sides = {axis: 16 * torch.export.Dim(name, min=4, max=32) for axis, name in ((2, 'h'), (3, 'w'))}
    program = torch.export.export(model, (images(160, 192),), dynamic_shapes=(sides,)).module()
    for size in ((160, 192), (96, 128), (96, 192), (64, 96)):
        x = images(*size)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=1e-4)
