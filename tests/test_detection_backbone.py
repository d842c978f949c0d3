"""`ZooBackbone`: the maps are timm's, whatever the size; every parameter is trained."""

import copy
import pickle

import pytest
import timm
import torch
from conftest import ARCHITECTURES, GRAPHS, LARGE, assert_same, few_blocks, images_for, rest_is_full
from golden_rule import fill_by_rule
from torch import nn
from zoo_backbones import DYNAMIC, KINDS, SWIN, args_of, backbone_of, images, mmdet_swin

from tinyvit_zoo.downstream.detection import ZooBackbone
from tinyvit_zoo.downstream.detection.backbone_weights import mmdet_swin_to_timm


def train_step(backbone: nn.Module, x: torch.Tensor) -> None:
    torch.manual_seed(1)
    sum((y * torch.randn_like(y)).sum() for y in backbone(x)).backward()


# --- maps


@pytest.mark.parametrize('name', rest_is_full([name for name in ARCHITECTURES if name not in LARGE], GRAPHS))
def test_maps_are_those_of_timm(name):
    """Of every released architecture at its own size; Mini-Swin's before the norms that detectors put on them."""
    assert_maps_are_those_of_timm(name)


@pytest.mark.parametrize('name', [name for name in ARCHITECTURES if name not in GRAPHS])
def test_maps_of_every_width_are_those_of_timm(name):
    assert_maps_are_those_of_timm(name, **few_blocks(name))


def assert_maps_are_those_of_timm(name: str, **kwargs) -> None:
    whole = fill_by_rule(timm.create_model(name, **kwargs))
    backbone = ZooBackbone(name, out_norm=False, **kwargs)
    backbone.net.load_state_dict({k: v for k, v in whole.state_dict().items() if k in backbone.net.state_dict()})
    x = images_for(whole, batch=1)
    with torch.no_grad():
        maps = backbone.eval()(x)
        expected = whole.forward_intermediates(x, indices=list(backbone.out_indices), intermediates_only=True)
    torch.testing.assert_close(list(maps), expected, rtol=0, atol=1e-6)
    info = whole.feature_info
    assert backbone.channels == tuple(info[i]['num_chs'] for i in backbone.out_indices)
    assert backbone.strides == ((4, 8, 16, 32) if len(maps) == 4 else (16,))
    assert [tuple(y.shape[1:]) for y in maps] == [
        (c, x.shape[2] // s, x.shape[3] // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize('size', [(64, 96), (61, 83), (33, 40), (1, 90), (75, 1), (5, 3)])
@pytest.mark.parametrize('kind', [*DYNAMIC, 'swin'])
def test_images_of_any_size(kind, size):
    """Down to one row of pixels: every map has a cell for each stride begun."""
    backbone = backbone_of(kind)
    with torch.no_grad():
        maps = backbone(images(*size, batch=1))
    assert [tuple(y.shape) for y in maps] == [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert all(y.isfinite().all() for y in maps)


@pytest.mark.parametrize('name', ['resnet10t', 'convnext_atto', 'efficientnet_b0', 'vit_tiny_patch16_224'])
def test_any_timm_model_with_features(name):
    backbone = ZooBackbone(name).train()
    maps = backbone(images(70, 51))
    assert [tuple(y.shape) for y in maps] == [
        (2, c, -(-70 // s), -(-51 // s)) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert backbone.strides == ((16,) if 'vit' in name else (4, 8, 16, 32))
    train_step(backbone, images(70, 51))
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


def test_a_model_with_fixed_tables_takes_smaller_images_and_refuses_larger_ones():
    backbone = backbone_of('mae_lite_rpe', img_size=(64, 96))
    x = images(50, 70)
    padded = nn.functional.pad(x, (0, 26, 0, 14))
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[0], backbone(padded)[0][:, :, :4, :5], rtol=0, atol=0)
    with pytest.raises(ValueError, match='up to 64 x 96, got 80 x 96: give img_size'):
        backbone(images(80, 96))


@pytest.mark.parametrize('name', ['mae_lite_vitdet_tiny', 'tinymim_star_tiny_seg', 'tinymim_tiny_seg'])
def test_dense_forms_take_any_size(name):
    backbone = ZooBackbone(name, img_size=64).eval()
    with torch.no_grad():
        maps = backbone(images(50, 33, batch=1))
    assert [tuple(y.shape[2:]) for y in maps] == [(-(-50 // s), -(-33 // s)) for s in backbone.strides]
    assert backbone.strides[:4] == (4, 8, 16, 32)


def test_swin_is_that_of_mmdet():
    """The papers' baseline: windows shift in every stage, and maps are normalized.

    At sizes that windows fill. Of others mmdet pads a map before it shifts, timm (and Mini-Swin) after it.
    """
    theirs = mmdet_swin()
    ours = ZooBackbone(SWIN[0], **SWIN[1]).eval()
    weights, norms = mmdet_swin_to_timm(theirs.state_dict())
    ours.load_state_dict({f'net.{k}': v for k, v in weights.items()} | norms)
    for size in ((224, 224), (448, 224)):
        x = images(*size, batch=1)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_windows_and_size_can_be_chosen():
    assert backbone_of('tinyvit').net.window_sizes[1:] == ((7, 7), (14, 14), (7, 7))
    assert backbone_of('tinyvit', img_size=512).net.window_sizes[1:] == ((16, 16), (32, 32), (16, 16))
    assert backbone_of('tinyvit', window_sizes=(5, 10, 5)).net.window_sizes[1:] == ((5, 5), (10, 10), (5, 5))
    assert backbone_of('mini_swin', window_sizes=8).net.window_sizes == ((8, 8),) * 4


def test_many_sizes_leave_no_buffers_behind():
    """Multi-scale training sees thousands of sizes: masks and tables are not kept."""

    def tensors(module: nn.Module) -> int:
        found = [v for m in module.modules() for v in vars(m).values() if isinstance(v, (dict, list, torch.Tensor))]
        return sum(len(v) if isinstance(v, (dict, list)) else 1 for v in found)

    for kind in (*DYNAMIC, 'swin'):
        backbone = backbone_of(kind)
        with torch.no_grad():
            backbone(images(64, 64, batch=1))
            before = tensors(backbone), len(pickle.dumps(backbone))
            for side in range(40, 90, 9):
                backbone(images(side, 64, batch=1))
        assert (tensors(backbone), len(pickle.dumps(backbone))) == before


@pytest.mark.parametrize('kind', [*KINDS, 'swin'])
def test_bfloat16_autocast(kind):
    backbone = backbone_of(kind, **({'img_size': 64} if kind == 'mae_lite_rpe' else {})).train()
    with torch.autocast('cpu', torch.bfloat16):
        maps = backbone(images(64, 64))
    assert all(y.isfinite().all() for y in maps)
    sum(y.float().square().mean() for y in maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_out_indices_choose_maps_and_are_checked():
    backbone = backbone_of('tinyvit', out_indices=(0, 2))
    assert [y.shape[1] for y in backbone(images())] == list(backbone.channels) == [16, 32]
    assert len(backbone.net.stages) == 3
    for indices in ((4,), (), (1, 0), (1, 1)):
        with pytest.raises(ValueError, match='has maps 0 to 3'):
            backbone_of('tinyvit', out_indices=indices)
    with pytest.raises(ValueError, match='all 5 maps of its pyramid'):
        ZooBackbone('mae_lite_vitdet_tiny', out_indices=(1, 2))
    with pytest.raises(ValueError, match='no_such_argument'):
        ZooBackbone('tinyvit_5m_224', no_such_argument=1)


def test_norms_of_maps_follow_the_recipe_of_the_family_or_the_caller():
    assert [n for n, _ in backbone_of('mini_swin', out_indices=(1, 3)).named_children()] == ['net', 'norm1', 'norm3']
    assert not backbone_of('tinyvit').out_norm
    normed = ZooBackbone(*args_of('tinyvit')[:1], **args_of('tinyvit')[1], out_norm=True).eval()
    with torch.no_grad():
        for y in normed(images()):
            torch.testing.assert_close(y.mean(1), torch.zeros_like(y.mean(1)), rtol=0, atol=1e-5)


# --- training


@pytest.mark.parametrize('indices', [None, (0, 1), (1,)])
@pytest.mark.parametrize('kind', [*KINDS, 'swin'])
def test_every_parameter_gets_a_gradient(kind, indices):
    """So DistributedDataParallel need not search for unused ones."""
    size = {'img_size': (64, 96)} if kind == 'mae_lite_rpe' else {}
    backbone = backbone_of(kind, out_indices=indices, **size).train()
    train_step(backbone, images())
    assert [k for k, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize('name', ['mae_lite_vitdet_tiny', 'tinymim_star_tiny_seg', 'tinymim_tiny_seg'])
def test_every_parameter_of_a_dense_form_gets_a_gradient(name):
    backbone = ZooBackbone(name, img_size=64).train()
    train_step(backbone, images(64, 64))
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('kind', [*KINDS, 'swin'])
def test_checkpointing_changes_only_memory(kind):
    """Same maps, gradients and running statistics, stochastic depth included; blocks run twice and store less."""
    size = {'img_size': (64, 96)} if kind == 'mae_lite_rpe' else {}
    results = []
    for with_cp in (False, True):
        backbone = backbone_of(kind, with_cp=with_cp, drop_path_rate=0.3, **size).train()
        blocks = [m for n, m in backbone.net.named_modules() if n.endswith('blocks.0')]
        calls, kept = [], {}
        for block in blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))

        def keep(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            maps = backbone(images())
        sum((i + 1) * y.square().mean() for i, y in enumerate(maps)).backward()
        results.append((maps, {k: p.grad for k, p in backbone.named_parameters()}, dict(backbone.named_buffers())))
        results[-1] += (len(calls), sum(kept.values()))
    (maps, grads, buffers, once, much), (maps_cp, grads_cp, buffers_cp, twice, little) = results
    torch.testing.assert_close(maps_cp, maps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads_cp, grads, rtol=1e-4, atol=1e-5)
    assert_same(buffers_cp, buffers)
    assert (twice, once > 0) == (2 * once, True)
    assert little < much / 2


@pytest.mark.parametrize('stages', [0, 1, 2])
@pytest.mark.parametrize('kind', ['tinyvit', 'mini_swin', 'swin', 'mini_deit', 'tinymim'])
def test_frozen_stages_do_not_change(kind, stages):
    depth = dict(depth=8) if kind == 'mini_deit' else {}  # four blocks that run twice
    backbone = backbone_of(kind, frozen_stages=stages, drop_path_rate=0.5, **depth)
    part = 'layers' if kind == 'swin' else 'stages' if kind in ('tinyvit', 'mini_swin') else 'blocks'
    frozen = ('net.patch_embed', 'net.pos_embed', 'net.cls_token', *(f'net.{part}.{i}.' for i in range(stages)))
    if backbone.out_norm:
        frozen += tuple(f'norm{i}.' for i in range(stages))
    for _ in range(2):  # also after .eval() and back
        backbone.train()
        for name, parameter in backbone.named_parameters():
            assert parameter.requires_grad != name.startswith(frozen), name
        for name, module in backbone.named_modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.Linear)):
                assert module.training != f'{name}.'.startswith(frozen), name
        backbone.eval()
        assert not any(module.training for module in backbone.modules())
    before = copy.deepcopy(backbone.state_dict())
    backbone.train()
    train_step(backbone, images())
    torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 1e-3).step()
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any(k.startswith(frozen) for k in changed)


def test_batch_norms_can_be_kept_in_eval_mode():
    backbone = backbone_of('tinyvit', norm_eval=True).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    train_step(backbone, images())
    assert_same(dict(backbone.named_buffers()), before)
    assert backbone.net.stages[1].training


@pytest.mark.parametrize('kind', ['tinyvit', 'mini_swin', 'swin', 'tinymim'])
def test_it_can_be_copied_pickled_and_saved(kind):
    backbone = backbone_of(kind, frozen_stages=1, with_cp=True)
    x = images()
    with torch.no_grad():
        expected = backbone(x)
        for again in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
        other = backbone_of(kind)
        nn.init.zeros_(next(other.parameters()))
        other.load_state_dict(backbone.state_dict())
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    prefixes = {k.partition('.')[0] for k in backbone.state_dict()}
    assert prefixes == ({'net', 'norm0', 'norm1', 'norm2', 'norm3'} if backbone.out_norm else {'net'})
