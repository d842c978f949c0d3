"""Features of logical layers by hooks: which layers, which tensors, and that no hook stays behind."""

import threading

import numpy as np
import pytest
import timm
import torch
from conftest import load
from golden_case import SINGLE, assert_tap
from golden_rule import golden, noise
from timm.models.davit import DaVit
from timm.models.eva import Eva
from timm.models.gcvit import GlobalContextVit
from timm.models.swin_transformer import SwinTransformer, window_partition
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint

from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.distill import MINI_SWIN, FeatureTap, match_layers, stage_depths
from tinyvit_zoo.models.mini_deit import MiniDeit
from tinyvit_zoo.models.mini_swin import MiniSwin


def vit(**kwargs) -> VisionTransformer:
    """Four layers of width 32 on 16 patches and a class token."""
    sizes = dict(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5)
    return VisionTransformer(**{**sizes, **kwargs}).eval()


def swin(**kwargs) -> SwinTransformer:
    """Two stages of two layers: 16x16 cells of width 16 in 16 windows, then 8x8 of width 32 in 4."""
    sizes = dict(img_size=64, patch_size=4, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), num_classes=5)
    return SwinTransformer(**{**sizes, **kwargs}).eval()


def mini_deit(**kwargs) -> MiniDeit:
    """As `vit`, without class token: two stored blocks, each two layers."""
    sizes = dict(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5)
    return MiniDeit(**{**sizes, **kwargs}).eval()


def mini_swin(**kwargs) -> MiniSwin:
    """As `swin`: a stored block for each stage."""
    sizes = dict(img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), num_classes=5)
    return MiniSwin(**{**sizes, **kwargs}).eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# features taken


def test_a_vit_gives_its_projections_and_block_outputs():
    model, x = vit(), images()
    with FeatureTap(model) as tap:
        logits, features = tap(x)
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for block, qkv, hidden in zip(model.blocks, features.qkv, features.hidden, strict=True):
        expected = block.attn.qkv(block.norm1(tokens)).view(2, 17, 3, 32)
        for i, part in enumerate((qkv.q, qkv.k, qkv.v)):
            torch.testing.assert_close(part, expected[:, :, i], rtol=0, atol=0)
        tokens = block(tokens)
        torch.testing.assert_close(hidden, tokens, rtol=0, atol=0)
    assert features.layers == (0, 1, 2, 3)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=0)


def test_a_swin_gives_windows_and_whole_maps_before_downsampling():
    model, x = swin(), images(64)
    with FeatureTap(model) as tap:
        _, features = tap(x)
    assert [tuple(qkv.q.shape) for qkv in features.qkv] == [(32, 16, 16)] * 2 + [(8, 16, 32)] * 2
    assert [tuple(hidden.shape) for hidden in features.hidden] == [(2, 256, 16)] * 2 + [(2, 64, 32)] * 2
    first, second = model.layers[0].blocks
    maps = model.patch_embed(x)
    windows = window_partition(first.norm1(maps), (4, 4)).view(32, 16, 16)
    torch.testing.assert_close(features.qkv[0].v, first.attn.qkv(windows)[..., 32:], rtol=0, atol=0)
    torch.testing.assert_close(features.hidden[1], second(first(maps)).flatten(1, 2), rtol=0, atol=0)


def test_projections_that_are_not_fused_are_taken_too():
    sizes = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    model, inputs = Eva(**sizes, qkv_fused=False, use_abs_pos_emb=True).eval(), []
    block = model.blocks[1]
    block.norm1.register_forward_hook(lambda module, args, out: inputs.append(out))
    with FeatureTap(model, [1]) as tap:
        _, features = tap(images())
    projections = block.attn.q_proj, block.attn.k_proj, block.attn.v_proj
    for part, projection in zip(features.qkv[0], projections, strict=True):
        torch.testing.assert_close(part, projection(inputs[0]), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['deit3', 'clip', 'mae', 'dinov2', 'siglip'])
def test_kinds_of_vit(name):
    kwargs = {
        'deit3': dict(no_embed_class=True, init_values=1e-6),
        'clip': dict(pre_norm=True),
        'mae': dict(global_pool='avg', fc_norm=True),
        'dinov2': dict(reg_tokens=4, init_values=1e-5, qk_norm=True),
        'siglip': dict(class_token=False, global_pool='map'),
    }[name]
    model = vit(**kwargs)
    with FeatureTap(model, drop_prefix_tokens=True) as tap:
        _, features = tap(images())
    assert {tuple(hidden.shape) for hidden in features.hidden} == {(2, 16, 32)}
    assert {tuple(part.shape) for qkv in features.qkv for part in qkv} == {(2, 16, 32)}


def test_layers_are_returned_ascending_and_once_in_whatever_order_they_are_requested():
    model, x = vit(), images()
    with FeatureTap(model) as tap:
        _, everything = tap(x)
    with FeatureTap(model, [3, 1, 1]) as tap:
        _, features = tap(x)
    assert features.layers == (1, 3)
    torch.testing.assert_close(features.hidden, [everything.hidden[1], everything.hidden[3]], rtol=0, atol=0)
    torch.testing.assert_close(features.qkv, [everything.qkv[1], everything.qkv[3]], rtol=0, atol=0)


def test_only_the_requested_features_are_taken():
    with FeatureTap(vit(), qkv=False) as tap:
        _, features = tap(images())
    assert (len(features.qkv), len(features.hidden)) == (0, 4)
    with FeatureTap(vit(), hidden=False) as tap:
        _, features = tap(images())
    assert (len(features.qkv), len(features.hidden)) == (4, 0)


def test_prefix_tokens_are_kept_by_default():
    model, x = vit(reg_tokens=2), images()
    with FeatureTap(model, [0]) as kept, FeatureTap(model, [0], drop_prefix_tokens=True) as dropped:
        (_, whole), (_, patches) = kept(x), dropped(x)
    assert whole.hidden[0].shape == (2, 19, 32)
    torch.testing.assert_close(patches.hidden[0], whole.hidden[0][:, 3:], rtol=0, atol=0)
    torch.testing.assert_close(patches.qkv[0].k, whole.qkv[0].k[:, 3:], rtol=0, atol=0)


# shared weights: one layer per call


def test_a_block_that_runs_twice_gives_two_layers():
    model, x = mini_deit(), images()
    with FeatureTap(model) as tap:
        _, features = tap(x)
    assert len(model.blocks) == 2
    assert len(features.hidden) == len(features.qkv) == 4
    tokens, index = model._embed(x)
    for layer in range(4):
        block, repeat = model.blocks[layer // 2], layer % 2
        expected = block.attn.qkv(block.norm1(tokens, repeat))
        torch.testing.assert_close(features.qkv[layer].q, expected[..., :32], rtol=0, atol=0)
        tokens = block(tokens, repeat, index)
        torch.testing.assert_close(features.hidden[layer], tokens, rtol=0, atol=0)


def test_mini_swin_gives_what_the_released_code_distils(official_file):
    expected = golden('mini_swin_tiny')
    model = load('mini_swin_tiny_patch4_window7_224', official_file('mini_swin_tiny'))
    with FeatureTap(model, grad=False) as tap:
        _, features = tap(noise(224, 224))
    assert features.layers == tuple(range(12))
    for layer, (qkv, hidden) in enumerate(zip(features.qkv, features.hidden, strict=True)):
        assert_tap(hidden, expected, f'hidden{layer}')
        assert all(part.shape == tuple(expected[f'qkv{layer}.shape']) for part in qkv)
        statistics = [[part.mean().item(), part.std(correction=0).item()] for part in qkv]
        np.testing.assert_allclose(statistics, expected[f'qkv{layer}.mean_std'], rtol=0, atol=SINGLE)


@pytest.mark.parametrize(('build', 'size'), [(mini_deit, 32), (mini_swin, 64)])
def test_a_batch_that_plain_inference_would_split_is_taken_whole(build, size):
    model, x = build(), torch.randn(60, 3, size, size)
    with FeatureTap(model) as tap, FeatureTap(model, grad=False) as frozen:
        (logits, features), (expected, taken) = tap(x), frozen(x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(features.hidden, taken.hidden)
    assert len(taken.qkv) == 4
    assert {len(hidden) for hidden in taken.hidden} == {60}


@pytest.mark.parametrize('transform', [False, True])
@pytest.mark.parametrize(('build', 'size'), [(vit, 32), (swin, 64)])
def test_blocks_that_share_weights_give_one_layer_each(build, size, transform):
    model = multiplex(build(), 2, transform, init='first')
    x = images(size)
    blocks = [m for m in model.modules() if hasattr(m, 'attn') and hasattr(m, 'mlp')]
    assert blocks[0].attn.qkv is blocks[1].attn.qkv
    with FeatureTap(model) as tap:
        _, features = tap(x)
    outputs = []
    handles = [b.register_forward_hook(lambda m, a, out: outputs.append(out.flatten(1, -2))) for b in blocks]
    model(x)
    assert len(handles) == len(features.qkv) == 4
    torch.testing.assert_close(features.hidden, outputs, rtol=0, atol=0)
    # Same projection, other input: the norms are not shared.
    assert not torch.equal(features.qkv[0].q, features.qkv[1].q)


# gradients


def test_the_whole_recipe_trains_a_student_with_a_wider_teacher_with_other_heads():
    teacher, student, x = vit(embed_dim=48, num_heads=3), mini_deit().train(), images()
    with (
        FeatureTap(student, (1, 3)) as student_tap,
        FeatureTap(teacher, (1, 3), grad=False, drop_prefix_tokens=True) as teacher_tap,
    ):
        logits, ours = student_tap(x)
        teacher_logits, theirs = teacher_tap(x)
    losses = MINI_SWIN(
        logits,
        teacher_logits,
        student_qkv=ours.qkv,
        teacher_qkv=theirs.qkv,
        student_hidden=ours.hidden,
        teacher_hidden=theirs.hidden,
    )
    losses['total'].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(part.requires_grad for qkv in theirs.qkv for part in qkv)


def test_gradients_are_the_same_with_gradient_checkpointing():
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        with FeatureTap(model, [1, 3]) as tap:
            logits, features = tap(x)
            loss = logits.sum() + sum(h.square().sum() for h in features.hidden)
            (loss + sum(part.square().sum() for qkv in features.qkv for part in qkv)).backward()
            assert features.layers == (1, 3)
        return [p.grad.clone() for p in model.parameters()]

    model, x = vit().train(), images()
    torch.testing.assert_close(gradients(True), gradients(False))


@pytest.fixture
def reentrant():
    before = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(True)
    yield
    timm.layers.set_reentrant_ckpt(before)


@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad')
@pytest.mark.parametrize(('build', 'size'), [(vit, 32), (swin, 64)])
def test_reentrant_checkpointing_which_would_lose_the_gradients_is_refused(reentrant, build, size):
    model = build().train()
    model.set_grad_checkpointing(True)
    with FeatureTap(model, [1]) as tap, pytest.raises(RuntimeError, match=r're-entrant.*set_reentrant_ckpt\(False\)'):
        tap(images(size))
    with FeatureTap(model, [1], grad=False) as tap:
        assert not tap(images(size))[1].hidden[0].requires_grad


class CheckpointedWhole(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.model, x, use_reentrant=True)


def test_reentrant_checkpointing_of_the_whole_model_is_refused():
    model = CheckpointedWhole(vit())
    # The last layer is frozen, but gets gradients for those before.
    model.model.blocks[3].requires_grad_(False)
    with FeatureTap(model, [3]) as tap, pytest.raises(RuntimeError, match='Layer 3 trains'):
        tap(images().requires_grad_())


@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad')
def test_reentrant_checkpointing_of_frozen_layers_is_harmless(reentrant):
    model = vit().train()
    model.set_grad_checkpointing(True)
    model.requires_grad_(False)
    with FeatureTap(model) as tap:
        assert not any(hidden.requires_grad for hidden in tap(images())[1].hidden)
    model.blocks[2].requires_grad_(True)
    model.head.requires_grad_(True)
    with FeatureTap(model, [0, 1]) as tap:
        logits, features = tap(images())
    assert logits.requires_grad
    assert not any(hidden.requires_grad for hidden in features.hidden)
    with FeatureTap(model, [3]) as tap, pytest.raises(RuntimeError, match='Layer 3 trains'):
        tap(images())


def test_a_model_that_is_frozen_in_its_first_layers_gives_features_without_gradient():
    model = vit()
    model.patch_embed.requires_grad_(False)
    model.blocks[:2].requires_grad_(False)
    model.cls_token.requires_grad_(False)
    model.pos_embed.requires_grad_(False)
    with FeatureTap(model) as tap:
        _, features = tap(images())
    assert [hidden.requires_grad for hidden in features.hidden] == [False, False, True, True]


# hooks


def test_hooks_are_gone_afterwards_even_after_an_error():
    model = vit()
    with FeatureTap(model) as tap:
        assert num_hooks(model) > 0
        tap(images())
    assert num_hooks(model) == 0
    with pytest.raises(AssertionError, match='Input height'), FeatureTap(model) as tap:
        tap(images(40))
    assert num_hooks(model) == 0


def test_a_shared_projection_gets_one_hook():
    model = multiplex(vit(), 4, init='first')
    with FeatureTap(model):
        assert len(model.blocks[0].attn.qkv._forward_hooks) == 1


def test_a_tap_records_only_its_own_calls():
    model, x = vit(), images()
    with FeatureTap(model) as tap:
        model(x)
        _, features = tap(x)
        assert len(features.hidden) == 4
        _, features = tap(x)
        assert len(features.hidden) == 4


def test_a_failed_call_does_not_affect_the_next():
    model = vit()
    with FeatureTap(model) as tap:
        with pytest.raises(AssertionError):
            tap(images(40))
        _, features = tap(images())
    assert features.layers == (0, 1, 2, 3)


def test_threads_do_not_mix_their_features():
    model = vit()
    inputs = [images() for _ in range(4)]
    results: dict[int, list[torch.Tensor]] = {}
    with FeatureTap(model, grad=False) as tap:
        expected = [tap(x)[1].hidden for x in inputs]
        start = threading.Barrier(len(inputs))

        def work(i: int) -> None:
            start.wait()
            for _ in range(5):
                results[i] = tap(inputs[i])[1].hidden

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        [t.start() for t in threads]
        [t.join() for t in threads]
    torch.testing.assert_close([results[i] for i in range(len(inputs))], expected)


# mistakes


def test_a_closed_or_twice_opened_tap_says_so():
    tap = FeatureTap(vit())
    with pytest.raises(RuntimeError, match='Open the tap first'):
        tap(images())
    with tap, pytest.raises(RuntimeError, match='already open'):
        tap.__enter__()


@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto'])
def test_a_convnet_is_refused_with_advice(name):
    with pytest.raises(ValueError, match=r'no transformer blocks .* distil predictions only'):
        FeatureTap(timm.create_model(name))


@pytest.mark.parametrize('name', ['tinyvit_5m_224', 'levit_128s'])
def test_attention_with_another_order_of_projections_is_refused(name):
    with pytest.raises(ValueError, match='Attention'):
        FeatureTap(timm.create_model(name))


def test_a_projection_that_no_hook_can_see_is_named():
    model = timm.create_model('beit_base_patch16_224', depth=1, embed_dim=32, num_heads=2, img_size=32)
    with FeatureTap(model) as tap, pytest.raises(RuntimeError, match='without calling its projection'):
        tap(images())
    with FeatureTap(model, qkv=False) as tap:
        assert tap(images())[1].hidden[0].shape == (2, 5, 32)


@pytest.mark.slow
@pytest.mark.parametrize('layers', [None, [1]])
def test_a_compiled_model_that_was_already_called_is_refused(layers):
    model = vit()
    compiled = torch.compile(model, backend='eager')
    compiled(images())
    with FeatureTap(compiled, layers) as tap, pytest.raises(RuntimeError, match='Tap the model before compiling it'):
        tap(images())
    with FeatureTap(model, layers) as tap:
        assert tap(images())[1].layers


def test_a_projection_other_than_three_of_one_width_is_refused():
    model = GlobalContextVit(img_size=64, window_size=2, embed_dim=16, depths=(1, 2), num_heads=(1, 2)).eval()
    # The second block of a stage takes its queries from elsewhere: its projection gives keys and values only.
    with FeatureTap(model) as tap, pytest.raises(ValueError, match=r'Layer 2: .* projects to width 64'):
        tap(images(64))
    with FeatureTap(model, qkv=False) as tap:
        assert len(tap(images(64))[1].hidden) == 3


def test_maps_with_channels_first_are_refused():
    model = DaVit(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2), window_size=4).eval()
    with FeatureTap(model) as tap, pytest.raises(ValueError, match=r'\(2, 16, 8, 8\) with channels first'):
        tap(images())
    with FeatureTap(model, hidden=False) as tap:
        assert tap(images())[1].qkv[0].q.shape == (8, 16, 16)


def test_a_nonexistent_layer_is_refused():
    with FeatureTap(vit(), [1, 4]) as tap, pytest.raises(ValueError, match='Layer 4 was requested, but the model'):
        tap(images())
    with pytest.raises(ValueError, match='counted from 0'):
        FeatureTap(vit(), [-1])
    with pytest.raises(ValueError, match='at least one'):
        FeatureTap(vit(), [])
    with pytest.raises(TypeError, match='integer'):
        FeatureTap(vit(), (1.5,))


class OverwritingAttention(nn.Module):
    """Scales its queries in place."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor, **kwargs) -> torch.Tensor:
        q, _, v = self.qkv(x).chunk(3, dim=-1)
        q *= 0.5
        return v


def test_features_that_the_model_overwrites_are_not_returned():
    model = vit()
    model.blocks[1].attn = OverwritingAttention()
    with FeatureTap(model, grad=False) as tap, pytest.raises(RuntimeError, match='in place'):
        tap(images())


# choice of layers


def test_stage_depths_count_logical_layers():
    assert stage_depths(vit(), images()) == (4,)
    assert stage_depths(swin(), images(64)) == (2, 2)
    assert stage_depths(mini_deit(), images()) == (4,)
    assert stage_depths(mini_swin(), images(64)) == (2, 2)


@pytest.mark.parametrize(
    ('student', 'teacher', 'expected'),
    [
        # As released: Mini-Swin-T, -S and -B with a teacher of 24 layers.
        ((2, 2, 6, 2), (2, 2, 18, 2), ((1, 3, 5, 7, 9, 11), (1, 3, 9, 15, 21, 23))),
        ((2, 2, 18, 2), (2, 2, 18, 2), ((1, 3, 9, 15, 21, 23), (1, 3, 9, 15, 21, 23))),
        # By the same rule.
        ((12,), (12,), ((1, 3, 5, 7, 9, 11), (1, 3, 5, 7, 9, 11))),
        ((12,), (24,), ((1, 3, 5, 7, 9, 11), (3, 7, 11, 15, 19, 23))),
        ((4,), (4,), ((1, 3), (1, 3))),
        ((7,), (7,), ((1, 3, 6), (1, 3, 6))),
        ((1,), (3,), ((0,), (2,))),
    ],
)
def test_layers_are_matched_as_released_and_by_the_same_rule_for_other_depths(student, teacher, expected):
    assert match_layers(student, teacher) == expected


def test_models_of_other_stages_are_not_matched():
    with pytest.raises(ValueError, match='do not match'):
        match_layers((12,), (2, 2, 6, 2))
    with pytest.raises(ValueError, match='at least one layer'):
        match_layers((0, 2), (2, 2))
