"""Weight multiplexing of timm models: what is shared, what it starts from, and that timm and torch notice nothing."""

import copy
import io
import json
import pickle
import threading

import pytest
import timm
import torch
from conftest import assert_same
from safetensors.torch import load_file, save_file
from timm.layers import Attention
from timm.models import save_for_hf
from timm.models._manipulate import reinit_non_persistent_buffers
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.compress.start import natural_noise
from tinyvit_zoo.hub import save_folder

SMALL = {
    'vit': ('deit_small_patch16_224', dict(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)),
    'swin': (
        'swin_tiny_patch4_window7_224',
        dict(img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 2, 4)),
    ),
}
KINDS = list(SMALL)
each_kind = pytest.mark.parametrize('kind', KINDS)
each_transform = pytest.mark.parametrize('transform', [True, False])


def teacher(kind: str, **kwargs) -> nn.Module:
    """A small model far from its start values, in eval mode."""
    name, small = SMALL[kind]
    return stirred(timm.create_model(name, num_classes=11, **{**small, **kwargs})).eval()


def stirred(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """The model with noise on every parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def images(count: int = 2, size: int = 32, **kwargs) -> torch.Tensor:
    return torch.randn(count, 3, size, size, **kwargs)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def blocks(model: nn.Module) -> list[nn.Module]:
    stages = [model] if hasattr(model, 'blocks') else model.layers
    return [block for stage in stages for block in stage.blocks]


# --- what is shared


@each_kind
@each_transform
def test_pairs_hold_the_same_layers_and_norms_of_their_own(kind, transform):
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


def test_swin_shares_the_bias_table_and_neither_shift_nor_mask():
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
        'vit_small_patch16_18x2_224',  # two attentions and two MLPs beside each other
    ],
)
def test_many_vits_are_accepted(name):
    model = timm.create_model(name, device='meta')
    assert count(multiplex(model, init='first')) < count(model)


@each_kind
def test_the_model_given_stays_as_it_is(kind):
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
def test_the_transformations_start_as_none(kind, share_every):
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
    for ours, theirs in zip(blocks(student), blocks(model), strict=True):
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


def test_the_convolution_is_as_wide_as_the_window_or_as_asked():
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
def test_fresh_weights_come_with_transformations_that_do_nothing(kind, mode):
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


# --- what it starts from


@each_kind
def test_a_group_starts_from_its_first_block_or_the_mean(kind):
    model = teacher(kind)
    first, second = (block.mlp.fc1.weight for block in blocks(model)[:2])
    assert torch.equal(blocks(multiplex(model, init='first'))[0].mlp.fc1.weight, first)
    torch.testing.assert_close(blocks(multiplex(model, init='mean'))[0].mlp.fc1.weight, (first + second) / 2)
    student = multiplex(model, init='mean')
    for ours, theirs in zip(blocks(student), blocks(model), strict=True):
        assert_same(ours.norm1.state_dict(), theirs.norm1.state_dict())


def features_apart(student: nn.Module, model: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        goal = model.forward_features(x)
        return ((student.forward_features(x) - goal).norm() / goal.norm()).item()


def test_the_best_of_a_group_is_the_nearest_of_its_blocks_and_their_mean():
    """With one group, what the model makes of the group's output are the features themselves."""
    model, x = teacher('vit'), images(8)
    distances = [features_apart(multiplex(model, 'stage', init='mean'), model, x)]
    for block in model.blocks:
        student = multiplex(model, 'stage', transform=False, init='first')
        for name in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'):
            student.blocks[0].get_submodule(name).load_state_dict(block.get_submodule(name).state_dict())
        distances.append(features_apart(student, model, x))
    best = multiplex(model, 'stage', calibration=[x[:3], x[3:]], fit=False)
    assert features_apart(best, model, x) == pytest.approx(min(distances), rel=1e-5)


@each_kind
@each_transform
def test_fitting_brings_every_layer_nearer_and_leaves_the_weights(kind, transform):
    model, x = teacher(kind), images(8)
    chosen = multiplex(model, transform=transform, init='first')
    fitted = multiplex(model, transform=transform, init='first', calibration=[x])
    assert features_apart(fitted, model, x) < features_apart(chosen, model, x)
    for ours, theirs in zip(blocks(fitted), blocks(chosen), strict=True):
        assert_same(ours.mlp.state_dict(), theirs.mlp.state_dict())
    ours, theirs = blocks(fitted)[-1], blocks(chosen)[-1]
    assert not torch.equal(ours.norm2.weight, theirs.norm2.weight)
    if transform:
        assert not torch.equal(ours.attn.mix_logits.weight, theirs.attn.mix_logits.weight)
        assert not torch.equal(ours.attn.mix_probs.weight, theirs.attn.mix_probs.weight)
    if transform and kind == 'swin':
        assert ours.mlp_conv.conv.weight.any()


def test_fitting_keeps_frozen_parameters_marked_and_leaves_no_gradients():
    model = teacher('vit')
    model.blocks[0].requires_grad_(False)
    student = multiplex(model, calibration=[images()])
    assert all(p.grad is None for p in student.parameters())
    assert not student.blocks[0].norm1.weight.requires_grad
    assert student.blocks[2].norm1.weight.requires_grad


def test_nothing_is_fitted_where_nothing_is_shared():
    model = teacher('vit').double()
    x = images(dtype=torch.float64)
    torch.testing.assert_close(multiplex(model, 1, calibration=[x])(x), model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('kind', KINDS)
def test_without_pictures_it_starts_the_same_every_time(kind):
    model = teacher(kind)
    torch.manual_seed(1)
    first = multiplex(model).state_dict()
    torch.manual_seed(2)
    assert_same(multiplex(model).state_dict(), first)


def test_noise_has_the_spectrum_of_pictures():
    noise = natural_noise(teacher('vit', img_size=(64, 32)), count=16)
    assert noise.shape == (16, 3, 64, 32)
    assert abs(noise.mean()) < 1e-5
    assert abs(noise.std() - 1) < 1e-5
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    # Amplitude 1/f: twice the frequency, a quarter of the power.
    assert 2.5 < power[4:7, 0].mean() / power[8:14, 0].mean() < 6.5


def test_a_trained_model_stays_nearer_to_itself_on_pictures_it_has_not_seen():
    sklearn_datasets = pytest.importorskip('sklearn.datasets')
    digits = sklearn_datasets.load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    train, held = slice(0, 1400), slice(1400, None)
    small = dict(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=4, num_heads=4)
    model = timm.create_model('deit_small_patch16_224', **small)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    plain = multiplex(model, transform=False, init='first')
    ours = multiplex(model, calibration=[x[train][:64]])
    apart = {name: features_apart(m, model, x[held]) for name, m in (('plain', plain), ('ours', ours))}
    assert apart['ours'] < 0.9 * apart['plain']


# --- state dicts


@each_kind
@each_transform
def test_a_state_dict_holds_a_shared_tensor_once_under_its_first_name(kind, transform):
    student = multiplex(teacher(kind), transform=transform)
    state_dict = student.state_dict()
    assert list(state_dict) == [name for name, _ in student.named_parameters()]
    path = 'blocks' if kind == 'vit' else 'layers.0.blocks'
    assert f'{path}.0.attn.qkv.weight' in state_dict
    assert f'{path}.1.attn.qkv.weight' not in state_dict
    assert f'{path}.1.norm1.weight' in state_dict


@each_kind
@each_transform
@pytest.mark.parametrize('assign', [False, True])
def test_loading_is_strict_and_keeps_the_weights_shared(kind, transform, assign, tmp_path):
    student = stirred(multiplex(teacher(kind), transform=transform))
    save_file(student.state_dict(), tmp_path / 'file.safetensors')
    other = multiplex(teacher(kind), transform=transform)
    other.load_state_dict(load_file(tmp_path / 'file.safetensors'), assign=assign)
    assert_same(other.state_dict(), student.state_dict())
    assert count(other) == count(student)
    x = images()
    torch.testing.assert_close(other(x), student(x), rtol=0, atol=0)
    state_dict = student.state_dict()
    del state_dict[next(name for name in state_dict if name.endswith('0.attn.qkv.weight'))]
    with pytest.raises(RuntimeError, match='Missing'):
        other.load_state_dict(state_dict)


@each_kind
def test_weights_that_are_not_shared_are_not_loaded_in_silence(kind):
    model = teacher(kind)
    with pytest.raises(RuntimeError, match=r'not equal to .*qkv.*: the checkpoint is of a model that is not multiplex'):
        multiplex(model, transform=False).load_state_dict(model.state_dict(), strict=False)


@each_kind
def test_inside_another_module_the_names_are_the_same_behind_a_prefix(kind):
    student = stirred(multiplex(teacher(kind)))
    wrapper = nn.ModuleDict({'inner': student})
    assert list(wrapper.state_dict()) == [f'inner.{name}' for name in student.state_dict()]
    other = nn.ModuleDict({'inner': multiplex(teacher(kind))})
    other.load_state_dict(wrapper.state_dict())
    assert_same(other['inner'].state_dict(), student.state_dict())


@each_kind
@each_transform
@pytest.mark.parametrize('how', ['deepcopy', 'pickle', 'torch.save'])
def test_copies_share_among_themselves(kind, transform, how):
    student = stirred(multiplex(teacher(kind), transform=transform))
    if how == 'deepcopy':
        other = copy.deepcopy(student)
    elif how == 'pickle':
        other = pickle.loads(pickle.dumps(student))
    else:
        torch.save(student, file := io.BytesIO())
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert_same(other.state_dict(), student.state_dict())
    assert count(other) == count(student)
    with torch.no_grad():
        blocks(other)[0].mlp.fc1.weight.zero_()
        assert not blocks(other)[1].mlp.fc1.weight.any()
        assert blocks(student)[1].mlp.fc1.weight.any()
    other.load_state_dict(student.state_dict())  # the hooks are those of the copy
    assert blocks(other)[1].mlp.fc1.weight.any()


@each_kind
@each_transform
def test_moves_keep_the_weights_shared(kind, transform):
    student = stirred(multiplex(teacher(kind), transform=transform))
    names = list(student.state_dict())
    for moved in (copy.deepcopy(student).double(), copy.deepcopy(student).to('meta').to_empty(device='cpu')):
        assert list(moved.state_dict()) == names
        assert count(moved) == count(student)
    moved.load_state_dict(student.state_dict())
    reinit_non_persistent_buffers(moved)
    x = images()
    torch.testing.assert_close(moved(x), student(x), rtol=0, atol=0)


@pytest.mark.parametrize('exclude_buffers', [False, True])
@pytest.mark.parametrize('foreach', [False, True])
def test_timms_ema_moves_a_shared_weight_once(exclude_buffers, foreach):
    student = multiplex(teacher('swin'))
    ema = ModelEmaV3(student, decay=0.5, exclude_buffers=exclude_buffers, foreach=foreach)
    start = copy.deepcopy(ema.module.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    ema.update(student)
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, start[name] + 0.5, rtol=0, atol=1e-5)


def test_distributed_training_reduces_a_shared_weight_once(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        student = multiplex(teacher('swin')).train()
        alone = copy.deepcopy(student)
        wrapped = nn.parallel.DistributedDataParallel(student)
        x = images()
        torch.manual_seed(0)
        wrapped(x).sum().backward()
        torch.manual_seed(0)
        alone(x).sum().backward()
        for ours, theirs in zip(student.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        assert list(wrapped.state_dict()) == [f'module.{name}' for name in student.state_dict()]
    finally:
        torch.distributed.destroy_process_group()


def test_a_layer_that_someone_replaces_in_one_place_is_saved_by_itself():
    student = multiplex(teacher('vit'))
    student.blocks[1].mlp.fc1 = nn.Linear(48, 192)
    assert 'blocks.1.mlp.fc1.weight' in student.state_dict()
    assert 'blocks.1.mlp.fc2.weight' not in student.state_dict()
    other = multiplex(teacher('vit'))
    other.blocks[1].mlp.fc1 = nn.Linear(48, 192)
    other.load_state_dict(student.state_dict())
    assert_same(other.state_dict(), student.state_dict())


# --- timm and torch around it


@each_kind
def test_timms_ways_through_the_model_agree(kind):
    student, x = stirred(multiplex(teacher(kind))), images()
    features = student.forward_features(x)
    torch.testing.assert_close(student.forward_head(features), student(x))
    final, intermediates = student.forward_intermediates(x)
    torch.testing.assert_close(final, features)
    assert len(intermediates) == 4
    if kind == 'vit':
        last = student.get_intermediate_layers(x, n=1, norm=True)[0]
        torch.testing.assert_close(last, features[:, 1:])


@each_kind
def test_checkpointed_gradients_are_the_same(kind):
    student = stirred(multiplex(teacher(kind))).train()
    other = copy.deepcopy(student)
    other.set_grad_checkpointing()
    x = images()
    for model in (student, other):
        torch.manual_seed(0)
        model(x).sum().backward()
    for ours, theirs in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@each_kind
@each_transform
def test_it_moves_to_another_size_as_timms_does(kind, transform):
    model = teacher(kind).double()
    student = multiplex(model, 1, transform=transform, init='first')
    tied = multiplex(model, 2, transform=transform, init='first')
    before = list(tied.state_dict())
    x = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    for m in (model, student, tied):
        m.set_input_size((64, 48))
    torch.testing.assert_close(student(x), model(x), rtol=0, atol=1e-10)
    assert list(tied.state_dict()) == before
    assert tied(x).shape == (2, 11)


@each_kind
def test_the_classifier_can_be_changed(kind):
    student = multiplex(teacher(kind))
    student.reset_classifier(5)
    assert student(images()).shape == (2, 5)
    assert len(student.state_dict()) == len(list(student.parameters()))


def test_two_threads_do_not_disturb_each_other():
    student = stirred(multiplex(teacher('swin')))
    inputs = [images() for _ in range(2)]
    expected = [student(x) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(student(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@each_kind
def test_a_hook_on_a_shared_layer_runs_for_every_block(kind):
    student, calls = multiplex(teacher(kind)), []
    blocks(student)[0].attn.qkv.register_forward_hook(lambda *args: calls.append(args))
    student(images())
    assert len(calls) == 2


@each_kind
@each_transform
def test_functional_calls_leave_the_model_as_it_is(kind, transform):
    student, x = stirred(multiplex(teacher(kind), transform=transform)), images()
    parameters = dict(student.named_parameters())

    def total(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(student, values, (x,), tie_weights=False).sum()

    gradients = torch.func.grad(total)(parameters)
    assert all(p is parameters[name] for name, p in student.named_parameters())
    student(x).sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad)


@each_kind
def test_it_runs_in_mixed_precision(kind):
    student, x = stirred(multiplex(teacher(kind))), images()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = student(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), student(x), rtol=0.1, atol=0.1)


def test_any_image_size_stays_any_image_size():
    for kind in KINDS:
        model = teacher(kind, dynamic_img_size=True)
        x = torch.randn(1, 3, 48, 40)
        torch.testing.assert_close(multiplex(model, 1, init='first')(x), model(x))
        assert multiplex(model, calibration=[x])(x).shape == (1, 11)


@pytest.mark.slow
@each_kind
@each_transform
def test_it_compiles_as_one_graph(kind, transform):
    torch._dynamo.reset()
    student, x = stirred(multiplex(teacher(kind), transform=transform)), images()
    compiled = torch.compile(student, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), student(x))
    assert list(compiled.state_dict()) == [f'_orig_mod.{name}' for name in student.state_dict()]


@pytest.mark.slow
@each_kind
@each_transform
def test_it_exports(kind, transform):
    student, x = stirred(multiplex(teacher(kind), transform=transform)), images(5)
    batch = torch.export.Dim('batch', min=1, max=64)
    exported = torch.export.export(student, (images(2),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(x), student(x))


@pytest.mark.slow
@each_kind
@each_transform
def test_it_can_be_traced_by_fx_and_scripted(kind, transform):
    from timm.models._features_fx import create_feature_extractor

    student, x = stirred(multiplex(teacher(kind), transform=transform)), images()
    graph = create_feature_extractor(student, {'head': 'out'})
    torch.testing.assert_close(graph(x)['out'], student(x))
    assert count(graph) == count(student)
    torch.testing.assert_close(torch.jit.script(student)(x), student(x))


# --- made again by name


@each_kind
@each_transform
@pytest.mark.parametrize('share_every', [2, 'stage'])
def test_a_saved_folder_makes_the_model_again(kind, transform, share_every, tmp_path):
    student = stirred(multiplex(teacher(kind), share_every, transform=transform))
    folder = save_folder(student, tmp_path / 'folder')
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == 'multiplexed'
    assert config['model_args']['base'] == SMALL[kind][0]
    assert config['model_args']['share_every'] == share_every
    assert 'tag' not in config['pretrained_cfg']
    assert config['pretrained_cfg']['license'] == teacher(kind).pretrained_cfg['license']
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert type(again) is type(student)
    assert_same(again.state_dict(), student.state_dict())
    x = images()
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)
    size = (folder / 'model.safetensors').stat().st_size
    assert abs(size - 4 * count(student)) < 40_000  # the names of the tensors


@each_kind
def test_timms_own_export_makes_the_model_again(kind, tmp_path):
    student = stirred(multiplex(teacher(kind)))
    save_for_hf(student, tmp_path, safe_serialization='both')
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert_same(again.state_dict(), student.state_dict())
    (tmp_path / 'model.safetensors').unlink()
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert_same(again.state_dict(), student.state_dict())


@each_kind
def test_a_saved_model_takes_other_classes_channels_and_sizes(kind, tmp_path):
    folder = save_folder(stirred(multiplex(teacher(kind))), tmp_path / 'folder')
    name = f'local-dir:{folder}'
    same = timm.create_model(name, pretrained=True).eval()
    other = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1, img_size=64).eval()
    assert other(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    for key in ('attn.qkv.weight', 'mlp.fc1.bias'):
        assert torch.equal(blocks(other)[0].get_parameter(key), blocks(same)[0].get_parameter(key))
    headless = timm.create_model(name, pretrained=True, num_classes=0).eval()
    x = images()
    torch.testing.assert_close(headless(x), same.forward_head(same.forward_features(x), pre_logits=True))


@each_kind
def test_features_only_is_that_of_the_base(kind, tmp_path):
    base, small = SMALL[kind]
    student = stirred(multiplex(teacher(kind)))
    folder = save_folder(student, tmp_path / 'folder')
    features = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True).eval()
    theirs = timm.create_model(base, features_only=True, **small)
    x = images()
    assert [f.shape for f in features(x)] == [f.shape for f in theirs(x)]
    assert features.feature_info.channels() == theirs.feature_info.channels()
    expected = student.forward_intermediates(x, intermediates_only=True)[-1]
    last = features(x)[-1] if kind == 'vit' else features(x)[-1].permute(0, 3, 1, 2)
    torch.testing.assert_close(last, expected)
    assert sum(v.numel() for v in features.state_dict().values()) == count(features)
    some = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True, out_indices=[1])
    assert len(some(x)) == 1
    assert len(some.state_dict()) == len(list(some.parameters()))


@each_kind
def test_a_resized_model_is_saved_as_it_is(kind, tmp_path):
    student = stirred(multiplex(teacher(kind)))
    student.set_input_size((64, 48))
    folder = save_folder(student, tmp_path / 'folder')
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)


def test_a_model_without_classes_stays_without(tmp_path):
    student = multiplex(timm.create_model('vit_base_patch16_224.mae', **SMALL['vit'][1]))
    assert student.num_classes == 0
    folder = save_folder(student, tmp_path / 'folder')
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 0


def test_the_name_alone_makes_a_fresh_model_of_any_base():
    model = timm.create_model('multiplexed', device='meta')
    assert (count(model), model.num_classes) == (11_413_960, 1000)
    assert model.pretrained_cfg['first_conv'] == 'patch_embed.proj'
    assert model._model_args['base'] == 'deit_small_patch16_224'
    model = timm.create_model('multiplexed', base='vit_base_patch16_224.mae', share_every='stage', device='meta')
    assert (count(model), model.num_classes) == (7_869_312, 0)
    swin = timm.create_model('multiplexed', base='swin_tiny_patch4_window7_224', transform=False, device='meta')
    assert count(swin) == 15_317_557
    assert timm.create_model('multiplexed', num_classes=7, device='meta').num_classes == 7


def test_there_are_no_weights_by_the_name_alone():
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):
        timm.create_model('multiplexed', pretrained=True)
    with pytest.raises(ValueError, match='no weights called'):
        timm.create_model('multiplexed.in1k')
    with pytest.raises(ValueError, match="base='no_such_model' is no model"):
        timm.create_model('multiplexed', base='no_such_model')


def test_a_model_that_timm_did_not_make_is_multiplexed_but_has_no_name():
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)
    student = multiplex(model)
    assert student(images()).shape == (2, 1000)
    with pytest.raises(ValueError, match='not a whole timm model'):
        save_folder(student, 'nowhere')


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
        ('vit', dict(calibration=[]), 'no pictures'),
        ('vit', dict(mlp_transform=True), 'needs the grid of a hierarchical model'),
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


def test_weights_that_are_not_there_are_not_compared():
    with pytest.raises(ValueError, match="init='first'"):
        multiplex(timm.create_model('deit_tiny_patch16_224', device='meta'))


def test_half_precision_is_chosen_but_not_fitted():
    model = teacher('vit').bfloat16()
    assert multiplex(model)(images(dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r'model\.float\(\)'):
        multiplex(model, calibration=[images()])


# --- at full size


@pytest.mark.slow
@pytest.mark.parametrize('name', ['deit_small_patch16_224', 'vit_base_patch16_224.mae', 'swin_tiny_patch4_window7_224'])
def test_full_size_models_start_as_themselves_and_are_made_again(name, tmp_path):
    model = timm.create_model(name, dtype=torch.float64).eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    torch.testing.assert_close(multiplex(model, 1)(x), model(x), rtol=0, atol=1e-10)
    student = multiplex(model.float(), calibration=[x.float()], fit=False)
    folder = save_folder(student, tmp_path / 'folder')
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    torch.testing.assert_close(again(x.float()), student(x.float()), rtol=0, atol=0)


def test_a_multiplexed_model_is_not_multiplexed_again():
    student = multiplex(timm.create_model('swin_tiny_patch4_window7_224', device='meta'), 1, False, init='first')
    with pytest.raises(ValueError, match='multiplexed already'):
        multiplex(student, 2)


def test_nothing_random_is_drawn():
    model = timm.create_model('swin_tiny_patch4_window7_224', embed_dim=8, num_heads=(1, 1, 2, 2), depths=(2, 2, 2, 2))
    before = torch.get_rng_state()
    multiplex(model, 2, init='first')
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    'calibration',
    [
        [],
        [torch.zeros(0, 3, 224, 224)],
        [torch.full((1, 3, 224, 224), torch.nan)],
        [torch.zeros(3, 224, 224)],
        [(torch.zeros(1, 3, 224, 224), torch.zeros(1))],
    ],
    ids=['none', 'empty', 'nan', 'one picture', 'with labels'],
)
def test_what_cannot_calibrate_is_refused(calibration):
    model = timm.create_model('deit_tiny_patch16_224', embed_dim=24, num_heads=1, depth=2)
    with pytest.raises(ValueError, match='calibration'):
        multiplex(model, 2, calibration=calibration)


@pytest.mark.parametrize('kernel', [3.0, True, 4, (3, 3)])
def test_a_kernel_that_cannot_be_is_refused(kernel):
    with pytest.raises(ValueError, match='mlp_conv_kernel'):
        multiplex(timm.create_model('swin_tiny_patch4_window7_224', device='meta'), 2, mlp_conv_kernel=kernel)


def test_a_kernel_for_nothing_is_refused():
    with pytest.raises(ValueError, match='mlp_conv_kernel'):
        multiplex(timm.create_model('deit_tiny_patch16_224', device='meta'), 2, mlp_conv_kernel=3)
