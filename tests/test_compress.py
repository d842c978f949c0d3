"""Weight multiplexing of timm models: sharing, transformations, and refusals."""

import copy

import pytest
import timm
import torch
from conftest import assert_same
from multiplexed import blocks, count, each_kind, each_transform, images, stirred, teacher
from timm.layers import Attention
from timm.models.vision_transformer import ParallelScalingBlock
from timm.optim import create_optimizer_v2
from torch import nn

from tinyvit_zoo.compress import multiplex

# --- sharing


@each_kind
@each_transform
def test_pairs_hold_the_same_layers_and_their_own_norms(kind, transform):
    student = multiplex(teacher(kind), transform=transform)
    assert type(student) is type(teacher(kind))
    for first, second in zip(blocks(student)[::2], blocks(student)[1::2], strict=True):
        for name in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'):
            assert first.get_submodule(name) is second.get_submodule(name)
        for name in ('norm1', 'norm2'):
            assert first.get_submodule(name) is not second.get_submodule(name)
        if transform:
            assert first.attn.mix_logits is not second.attn.mix_logits
            assert first.attn.mix_probs is not second.attn.mix_probs
    assert blocks(student)[1].attn.qkv is not blocks(student)[2].attn.qkv


def test_swin_shares_the_bias_table_but_neither_shift_nor_mask():
    first, second = multiplex(teacher('swin')).layers[0].blocks
    assert first.attn.rel_pos_bias is second.attn.rel_pos_bias
    assert (first.shift_size, second.shift_size) == ((0, 0), (2, 2))
    assert first.attn_mask is None
    assert second.attn_mask is not None


def test_groups_never_cross_stages():
    student = multiplex(teacher('swin'), 'stage')
    tables = [[block.attn.rel_pos_bias for block in layer.blocks] for layer in student.layers]
    assert [len(set(stage)) for stage in tables] == [1, 1, 1, 1]
    assert len({table for stage in tables for table in stage}) == 4


def test_all_of_a_plain_vit_is_one_stage():
    student = multiplex(teacher('vit'), 'stage')
    assert len({block.attn.qkv for block in student.blocks}) == 1
    assert len({block.norm1 for block in student.blocks}) == 4


@each_kind
@pytest.mark.parametrize('transform', [True, False])
def test_a_shared_weight_counts_once(kind, transform):
    model = teacher(kind)
    student = multiplex(model, transform=transform)
    linear = ('qkv', 'proj', 'fc1', 'fc2', 'relative_position_bias_table')
    shared = sum(p.numel() for b in blocks(model) for n, p in b.named_parameters() if any(key in n for key in linear))
    own = sum(p.numel() for n, p in student.named_parameters() if 'mix_' in n or 'mlp_conv' in n)
    assert bool(own) == transform
    assert count(student) == count(model) - shared // 2 + own


@pytest.mark.parametrize(
    ('name', 'share_every', 'before', 'after'),
    [
        ('deit_small_patch16_224', 2, 22_050_664, 11_413_960),
        ('deit_small_patch16_224', 'stage', 22_050_664, 2_549_320),
        ('vit_base_patch16_224.mae', 2, 85_798_656, 43_293_312),
        ('vit_base_patch16_224.mae', 'stage', 85_798_656, 7_869_312),
        ('swin_tiny_patch4_window7_224', 2, 28_288_354, 15_542_569),
        ('swin_tiny_patch4_window7_224', 'stage', 28_288_354, 11_992_657),
    ],
)
def test_parameters_before_and_after(name, share_every, before, after):
    model = timm.create_model(name, device='meta')
    student = multiplex(model, share_every, init='first')
    assert (count(model), count(student)) == (before, after)
    assert sum(v.numel() for v in student.state_dict().values()) == after


@pytest.mark.parametrize(
    'name',
    [
        'deit3_small_patch16_224',  # layer scale
        'deit_tiny_distilled_patch16_224',
        'vit_small_patch14_reg4_dinov2',
        'vit_base_patch16_clip_224',
        'aimv2_large_patch14_224',  # RMSNorm, SwiGLU, no biases
        'beit3_base_patch16_224',  # norms inside attention and MLP
        'vit_small_r26_s32_224',  # a convolutional stem
        'vit_small_patch16_18x2_224',  # two attentions and two MLPs in parallel
    ],
)
def test_many_vits_are_accepted(name):
    model = timm.create_model(name, device='meta')
    assert count(multiplex(model, init='first')) < count(model)


@each_kind
def test_the_original_model_is_not_changed(kind):
    model = teacher(kind).train()
    blocks(model)[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before, cfg = copy.deepcopy(model.state_dict()), dict(model.pretrained_cfg)
    student = multiplex(model, calibration=[images()])
    assert_same(model.state_dict(), before)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.pretrained_cfg == cfg
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    theirs = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in theirs for p in student.parameters())


@each_kind
def test_every_use_of_a_shared_weight_gives_a_gradient(kind):
    student = stirred(multiplex(teacher(kind)).double())
    apart = multiplex(teacher(kind), share_every=1, init='first').double()
    values = dict(student.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            parameter.copy_(values[name])
    x = images(dtype=torch.float64)
    student(x).square().sum().backward()
    apart(x).square().sum().backward()
    expected = {}
    for name, parameter in apart.named_parameters():
        shared = values[name]
        expected[shared] = expected.get(shared, 0) + parameter.grad
    assert expected.keys() == set(student.parameters())
    for parameter in student.parameters():
        torch.testing.assert_close(parameter.grad, expected[parameter], rtol=1e-9, atol=1e-12)


def test_an_optimizer_keeps_state_of_a_shared_weight_once():
    student = multiplex(teacher('vit')).train()
    optimizer = create_optimizer_v2(student, opt='adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    student(images()).sum().backward()
    optimizer.step()
    assert sum(state['exp_avg'].numel() for state in optimizer.state.values()) == count(student)


# --- the transformations


@each_kind
@pytest.mark.parametrize('share_every', [1, 2])
def test_the_transformations_are_initialized_to_identity(kind, share_every):
    model, x = teacher(kind).double(), images(dtype=torch.float64)
    plain = multiplex(model, share_every, transform=False, init='first')
    transformed = multiplex(model, share_every, init='first')
    torch.testing.assert_close(transformed(x), plain(x), rtol=0, atol=1e-10)
    if share_every == 1:
        torch.testing.assert_close(transformed(x), model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(qk_norm=True, init_values=0.1, reg_tokens=2),
        dict(scale_attn_norm=True, scale_mlp_norm=True),
        dict(qkv_bias=False, class_token=False, global_pool='avg'),
        dict(attn_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5),
    ],
    ids=['qk norm', 'norms inside', 'no class token', 'dropout'],
)
def test_attention_keeps_its_other_parts(kwargs):
    model, x = teacher('vit', **kwargs).double(), images(dtype=torch.float64)
    torch.testing.assert_close(multiplex(model, 1)(x), model(x), rtol=0, atol=1e-10)


def test_gated_attention_keeps_its_gate():
    model = teacher('vit')
    for block in model.blocks:
        block.attn = Attention(48, 3, qkv_bias=True, gated=True)
    x = images()
    torch.testing.assert_close(multiplex(model, 1, init='first')(x), model(x))
    student = multiplex(model, 2, init='first')
    assert student.blocks[0].attn.gate is student.blocks[1].attn.gate


def test_masks_reach_the_attention():
    model, x = teacher('vit').double(), images(dtype=torch.float64)
    student = multiplex(model, 1, init='first')
    keep = torch.rand(17, 17) > 0.3
    keep.fill_diagonal_(True)
    for kwargs in (dict(attn_mask=keep), dict(attn_mask=torch.randn(17, 17).double()), dict(is_causal=True)):
        torch.testing.assert_close(student(x, **kwargs), model(x, **kwargs), rtol=0, atol=1e-10)


def test_a_masked_pair_stays_masked_whatever_the_mixing():
    student = stirred(multiplex(teacher('vit')))
    x = torch.randn(1, 17, 48)
    other = torch.cat([x[:, :9], torch.randn(1, 8, 48)], dim=1)
    attn = student.blocks[0].attn
    torch.testing.assert_close(attn(x, is_causal=True)[:, :9], attn(other, is_causal=True)[:, :9])


def test_heads_are_mixed_as_in_the_paper():
    """Eq. 6 and 7, and for Swin the order of the released code: bias, mixing, mask, softmax, mixing."""
    block = stirred(multiplex(teacher('swin')), 0.5).double().layers[0].blocks[1]
    block.attn = stirred(multiplex(teacher('swin', num_heads=(2, 2, 2, 4))), 0.5).double().layers[0].blocks[1].attn
    attn, mask = block.attn, block.attn_mask.double()
    x = torch.randn(3 * len(mask), 16, 16, dtype=torch.float64)
    q, k, v = attn.qkv(x).view(len(x), 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
    logits = torch.einsum('bhnd,bhmd->bhnm', q, k) / 8**0.5 + attn.rel_pos_bias()
    mixed = torch.einsum('gh,bhnm->bgnm', attn.mix_logits.weight, logits)
    probs = (mixed + mask.repeat(3, 1, 1)[:, None]).softmax(-1)
    probs = torch.einsum('gh,bhnm->bgnm', attn.mix_probs.weight, probs)
    expected = attn.proj(torch.einsum('bhnm,bhmd->bnhd', probs, v).flatten(2))
    torch.testing.assert_close(attn(x, mask=mask), expected)


def test_the_bias_table_is_read_as_in_timm():
    model = teacher('swin', window_size=((4, 2), (4, 4), (2, 4), (2, 2)), num_heads=(2, 2, 2, 4))
    student = multiplex(model, 1, init='first')
    pairs = list(zip(blocks(student), blocks(model), strict=True))
    assert pairs
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.attn.rel_pos_bias(), theirs.attn._get_rel_pos_bias()[0], rtol=0, atol=0)


def test_the_mlp_reads_the_grid_through_a_convolution():
    """Eq. 8 with C = I + a depthwise convolution."""
    block = stirred(multiplex(teacher('swin'))).layers[0].blocks[0]
    assert block.mlp_conv.conv.kernel_size == (5, 5)
    assert block.mlp_conv.conv.groups == 16
    x = torch.randn(2, 16, 16, 16)
    middle = x + block._attn(block.norm1(x))
    y = block.norm2(middle)
    y = y + block.mlp_conv.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), middle + block.mlp(y))


def test_the_convolution_has_the_size_of_the_window_or_the_size_given():
    def sides(model: nn.Module) -> list[int]:
        return [layer.blocks[0].mlp_conv.conv.kernel_size[0] for layer in model.layers]

    swin = timm.create_model('swin_tiny_patch4_window7_224', device='meta')
    assert sides(multiplex(swin, init='first')) == [7, 7, 7, 7]
    assert sides(multiplex(teacher('swin'), mlp_conv_kernel=3)) == [3, 3, 3, 3]
    assert sides(multiplex(teacher('swin'), mlp_conv_kernel=[1, 3, 5, 7])) == [1, 3, 5, 7]
    assert not hasattr(blocks(multiplex(teacher('swin'), mlp_transform=False))[0], 'mlp_conv')


def test_without_transformations_the_attention_is_timms():
    assert type(multiplex(teacher('vit'), transform=False).blocks[0].attn) is Attention
    student = multiplex(teacher('swin'), transform=False, mlp_transform=True)
    assert blocks(student)[0].attn is blocks(student)[1].attn
    assert hasattr(blocks(student)[0], 'mlp_conv')


@each_kind
@pytest.mark.parametrize('mode', ['', 'jax', 'reset'])
def test_fresh_weights_have_transformations_that_do_nothing(kind, mode):
    student = multiplex(teacher(kind)).to('meta').to_empty(device='cpu')
    with torch.no_grad():
        for tensor in [*student.parameters(), *(b for b in student.buffers() if b.is_floating_point())]:
            tensor.fill_(float('nan'))
    student.init_weights(mode)
    attn = blocks(student)[-1].attn
    torch.testing.assert_close(attn.mix_logits.weight, torch.eye(attn.num_heads))
    torch.testing.assert_close(attn.mix_probs.weight, torch.eye(attn.num_heads))
    if kind == 'swin':
        assert not any(p.any() for p in blocks(student)[-1].mlp_conv.parameters())
    assert student(images()).isfinite().all()


# --- refusals


def test_a_convnet_is_refused():
    with pytest.raises(ValueError, match=r'ResNet cannot be multiplexed.*VisionTransformer.*SwinTransformer'):
        multiplex(timm.create_model('resnet18', device='meta'))
    with pytest.raises(ValueError, match='ResNet cannot be multiplexed'):
        timm.create_model('multiplexed', base='resnet18', device='meta')


def test_blocks_that_do_not_match_are_refused():
    model = teacher('vit')
    model.blocks[3].mlp.fc1 = nn.Linear(48, 96)
    model.blocks[3].mlp.fc2 = nn.Linear(96, 48)
    with pytest.raises(ValueError, match=r'blocks\.2 and blocks\.3 cannot share.*\(192,.*\(96,.*choose another'):
        multiplex(model)
    model = teacher('vit')
    model.blocks[1] = ParallelScalingBlock(48, 3)
    with pytest.raises(ValueError, match=r'blocks\.0 and blocks\.1 cannot share'):
        multiplex(model, transform=False)
    model = teacher('vit')
    model.blocks[1].attn = Attention(48, 6, qkv_bias=True)
    with pytest.raises(ValueError, match='num_heads of attn is 3 in one and 6'):
        multiplex(model)


@pytest.mark.parametrize('share_every', [0, -1, 3, 8, 2.0, '2', 'all', True, None])
def test_groups_that_do_not_fit_are_refused(share_every):
    with pytest.raises(ValueError, match=r"does not divide the 4 blocks.*use one of 1, 2, 4, or 'stage'"):
        multiplex(teacher('vit'), share_every)


def test_the_divisors_of_all_stages_are_listed():
    with pytest.raises(ValueError, match=r"2 \+ 2 \+ 4 \+ 2 blocks.*use one of 1, 2, or 'stage'"):
        multiplex(teacher('swin'), 4)


def test_sharing_twice_is_refused():
    student = multiplex(teacher('vit'))
    with pytest.raises(ValueError, match='already'):
        multiplex(student)


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'reason'),
    [
        ('vit', dict(init='last'), 'init must be one of first, mean, best'),
        ('vit', dict(calibration=[]), 'no images'),
        ('vit', dict(mlp_transform=True, mlp_conv_kernel=4), 'must be an odd number; got 4'),
        ('swin', dict(mlp_conv_kernel=4), 'odd number, or one for each of the 4 stages'),
        ('swin', dict(mlp_conv_kernel=[3, 3]), 'odd number, or one for each of the 4 stages'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kind, kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        multiplex(teacher(kind), **kwargs)


def test_attention_of_another_kind_is_shared_but_not_mixed():
    model = timm.create_model('vit_dpwee_patch16_reg1_gap_256', device='meta')
    with pytest.raises(ValueError, match='transform=False'):
        multiplex(model, init='first')
    assert count(multiplex(model, transform=False, init='first')) == 7_893_992


def test_a_multiplexed_model_is_not_multiplexed_again():
    student = multiplex(timm.create_model('swin_tiny_patch4_window7_224', device='meta'), 1, False, init='first')
    with pytest.raises(ValueError, match='already multiplexed'):
        multiplex(student, 2)


@pytest.mark.parametrize('kernel', [3.0, True, 4, (3, 3)])
def test_an_invalid_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match='mlp_conv_kernel'):
        multiplex(timm.create_model('swin_tiny_patch4_window7_224', device='meta'), 2, mlp_conv_kernel=kernel)


def test_a_kernel_without_an_mlp_transformation_is_refused():
    with pytest.raises(ValueError, match='mlp_conv_kernel'):
        multiplex(timm.create_model('deit_tiny_patch16_224', device='meta'), 2, mlp_conv_kernel=3)
