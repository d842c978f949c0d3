"""Distance and entropy of attention: the authors' numbers, every kind of model, windows, and what is refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from analysed import GOLDEN, analysed, digits
from conftest import SMALL_OF, refused, small_of
from golden_rule import fill_by_rule
from torch import nn
from torch.overrides import TorchFunctionMode

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.analysis.analysed_model import AnalysedModel
from tinyvit_zoo.downstream.analysis.attention import measure
from tinyvit_zoo.downstream.analysis.attention_maps import LayerAttention, grid_distances, reduce
from tinyvit_zoo.downstream.analysis.attention_watch import AttentionWatch
from tinyvit_zoo.layers import window_partition

THEIRS = {
    'vit': ('vit_tiny_patch16_224', dict(depth=2, embed_dim=48, num_heads=3)),
    'deit3': ('deit3_small_patch16_224', dict(depth=2, embed_dim=48, num_heads=3)),
    'beit': ('beit_base_patch16_224', dict(depth=2, embed_dim=48, num_heads=3)),
    'eva02': ('eva02_tiny_patch14_224', dict(depth=2, embed_dim=48, num_heads=3, img_size=56)),
    'swin': ('swin_tiny_patch4_window7_224', dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))),
    'swinv2': ('swinv2_tiny_window8_256', dict(embed_dim=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 4))),
    'tiny_vit': ('tiny_vit_5m_224', dict(embed_dims=(16, 32, 32, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 2, 1))),
}
"""Small models of timm's own."""


def theirs(kind: str, **arguments) -> nn.Module:
    """One of them, with weights far from their initial values, in eval mode."""
    name, small = THEIRS[kind]
    size = {} if kind == 'tiny_vit' else dict(img_size=64)
    return fill_by_rule(timm.create_model(name, num_classes=5, **{**size, **small, **arguments}))


def transformers_vit() -> AnalysedModel:
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return AnalysedModel(model, 'ViT', (32, 32), lambda image: torch.zeros(3, 32, 32))


def model_of(kind: str) -> AnalysedModel:
    if kind == 'transformers':
        return transformers_vit()
    return analysed(kind, img_size=64) if kind in SMALL_OF else analysed(theirs(kind))


KINDS = [*SMALL_OF, *THEIRS, 'transformers']


def fuse(model: AnalysedModel, fused: bool) -> int:
    """Switch fused attention on or off; how many layers have the switch."""
    if hasattr(model.model, 'set_attn_implementation'):
        model.model.set_attn_implementation('sdpa' if fused else 'eager')
        return 1
    switched = [module for module in model.model.modules() if hasattr(module, 'fused_attn')]
    for module in switched:
        module.fused_attn = fused
    return len(switched)


def watched(model: AnalysedModel, images: torch.Tensor, **settings) -> tuple[torch.Tensor, tuple[LayerAttention, ...]]:
    """Output of the model, and what was seen."""
    with torch.no_grad(), AttentionWatch(model, **settings) as watch:
        watch.check(images[:1])
        output = watch(images)
        return output if isinstance(output, torch.Tensor) else output.last_hidden_state, watch.layers()


def bare(model: AnalysedModel, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(images)
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


def images_for(model: AnalysedModel, images: int = 3) -> torch.Tensor:
    return torch.randn(images, 3, *model.size)


def clean(model: nn.Module) -> bool:
    """Whether neither hooks nor modes are left."""
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not hooks and torch._C._len_torch_function_stack() == 0


def test_distance_and_entropy_are_those_of_the_authors_code():
    with np.load(GOLDEN / 'maelite_attn_analysis_unit.npz') as golden:
        found = []
        for batch in range(2):
            logits = torch.from_numpy(np.random.RandomState(7 + batch).standard_normal((2, 3, 197, 197)))
            logits = (logits.float() * 2)[..., 1:, 1:]  # without the class token
            values = reduce(logits, grid_distances((14, 14), (14, 14)).float())
            found.append([x.double().mean(dim=(0, 2)) for x in values])
        distance, entropy = (torch.stack(values).mean(dim=0) for values in zip(*found, strict=True))
        np.testing.assert_allclose(distance, golden['distance'], rtol=0, atol=1e-5)
        np.testing.assert_allclose(entropy, golden['entropy'], rtol=0, atol=1e-6)


def test_every_query_has_the_authors_values():
    with np.load(GOLDEN / 'maelite_attn_analysis_unit.npz') as golden:
        distances = grid_distances((3, 3), (14, 14))
        np.testing.assert_allclose(distances, golden['small_dist_matrix'], rtol=0, atol=1e-12)
        distance, entropy = reduce(torch.from_numpy(golden['small_logits']), distances.float())
        np.testing.assert_allclose(distance, golden['small_distance_map'], rtol=0, atol=1e-5)
        np.testing.assert_allclose(entropy, golden['small_entropy_map'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_fused_and_plain_attention_give_the_same_and_outputs_are_those_without_being_watched(kind):
    model = model_of(kind)
    images, found = images_for(model), []
    switches = fuse(model, True)
    assert switches or kind in ('mini_deit', 'mini_swin', 'swinv2')  # which have no fused attention
    for fused in (True, False):
        fuse(model, fused)
        expected = bare(model, images)
        output, layers = watched(model, images)
        assert torch.equal(output, expected)
        assert torch.equal(bare(model, images), expected)
        found.append(layers)
    assert clean(model.model)
    assert len(found[0]) > 1
    for a, b in zip(*found, strict=True):
        assert (a.layer, a.grid, a.queries) == (b.layer, b.grid, b.queries)
        np.testing.assert_allclose(a.distance, b.distance, rtol=0, atol=1e-5)
        np.testing.assert_allclose(a.entropy, b.entropy, rtol=0, atol=1e-5)
        assert 0 < a.distance.min() <= a.distance.max() < math.hypot(*model.size)


class Maps(TorchFunctionMode):
    """Keeps the whole map of every softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[np.ndarray] = []

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.softmax, torch.softmax, F.softmax) and found.ndim > 3:
            self.maps.append(found.flatten(0, -4).double().numpy())
        return found


def by_hand(p: np.ndarray, prefix: int, width: int, step: float, real: np.ndarray | None = None) -> tuple:
    """Distance and entropy of the heads of maps (B, heads, N, N), query by query; `real` (B, N) count."""
    p = p[..., prefix:, prefix:]
    p = p / p.sum(axis=-1, keepdims=True)
    distance, entropy, count = np.zeros(p.shape[1]), np.zeros(p.shape[1]), 0
    for image in range(len(p)):
        for q in range(p.shape[2]):
            if real is not None and not real[image, q]:
                continue
            row = p[image, :, q]
            far = [math.hypot(q // width - k // width, q % width - k % width) for k in range(row.shape[1])]
            distance += row @ np.array(far) * step
            entropy -= (row * np.log(row + 1e-6)).sum(axis=1)
            count += 1
    return distance / count, entropy / count


@pytest.mark.parametrize(('kind', 'step', 'prefix'), [('clip_vit', 16, 1), ('mini_deit', 16, 0), ('tinymim', 16, 1)])
def test_numbers_are_those_of_the_models_own_maps(kind, step, prefix):
    """Of Mini-DeiT the softmax of the mixed logits, before the second mixing."""
    model = analysed(kind, img_size=64)
    prefix = model.model.num_prefix_tokens
    fuse(model, False)
    images = images_for(model, 2)
    with torch.no_grad(), Maps() as kept:
        model(images)
    _, layers = watched(model, images)
    assert len(layers) == len(kept.maps) == 4
    for layer, p in zip(layers, kept.maps, strict=True):
        distance, entropy = by_hand(p, prefix, 4, step)
        np.testing.assert_allclose(layer.distance, distance, rtol=1e-5)
        np.testing.assert_allclose(layer.entropy, entropy, rtol=1e-5)
        np.testing.assert_allclose(layer.relative_entropy, layer.entropy / math.log(16), rtol=1e-12)


@pytest.mark.parametrize('kind', ['tinyvit', 'tiny_vit', 'swin', 'mini_swin'])
def test_queries_of_padded_cells_do_not_count(kind):
    """At 72 pixels maps of 18, 9, 5 and 3 cells a side are padded to whole windows; shifted windows are rolled."""
    size = dict(img_size=72, window_size=4) if kind != 'tiny_vit' else {}
    net = small_of(kind, **size) if kind in SMALL_OF else theirs(kind, **size)
    model = AnalysedModel(net, kind, (72, 72), lambda image: torch.zeros(3, 72, 72))
    fuse(model, False)
    images = images_for(model, 2)
    with torch.no_grad(), Maps() as kept:
        model(images)
    _, layers = watched(model, images)
    assert len(layers) == len(kept.maps)
    padded = 0
    for layer, p in zip(layers, kept.maps, strict=True):
        (step, _), (h, w) = layer.pixel_step, layer.grid
        side = -(-72 // int(step))
        assert layer.queries == 2 * side * side
        whole = torch.zeros(2, -(-side // h) * h, -(-side // w) * w, 1)
        whole[:, :side, :side] = 1
        real = window_partition(whole, (h, w))[..., 0].numpy()
        padded += real.size - layer.queries
        distance, entropy = by_hand(p, 0, w, step, real)
        np.testing.assert_allclose(layer.distance, distance, rtol=1e-5)
        np.testing.assert_allclose(layer.entropy, entropy, rtol=1e-5)
    assert padded
    assert {layer.pixel_step[0] for layer in layers} <= {4, 8, 16, 32}  # image over map gives 14.4 for 16


def test_pairs_that_shifted_windows_mask_weigh_nothing():
    """With nothing but the mask, attention is uniform over the cells of a window that belong together."""
    net = theirs('swin', img_size=64, window_size=4)
    for block in net.layers[0].blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.zeros_(block.attn.relative_position_bias_table)
    _, layers = watched(analysed(net.double()), images_for(analysed(net), 1).double(), epsilon=0)
    plain, shifted = layers[:2]
    np.testing.assert_allclose(plain.relative_entropy, 1, rtol=1e-12)
    # 4 by 4 windows: nine are whole, three times two are halved once, one is quartered.
    np.testing.assert_allclose(shifted.relative_entropy, (9 * 1 + 6 * 0.75 + 0.5) / 16, rtol=1e-9)


@pytest.mark.parametrize('kind', ['clip_vit', 'tinyvit', 'mini_swin'])
def test_uniform_attention_has_the_mean_distance_and_log_n(kind):
    net = small_of(kind, img_size=64).double()
    for name, p in net.named_parameters():
        if any(part in name for part in ('attn.qkv', 'attention_biases', 'bias_table')):
            nn.init.zeros_(p)
    if kind == 'mini_swin':
        for stage in net.stages:
            stage.attn_mask = None
    model = analysed(net)
    _, layers = watched(model, images_for(model, 2).double(), epsilon=0)
    assert layers
    for layer in layers:
        N = math.prod(layer.grid)
        assert layer.distance.dtype == np.float64
        np.testing.assert_allclose(layer.distance, grid_distances(layer.grid, layer.pixel_step).mean(), rtol=1e-12)
        np.testing.assert_allclose(layer.distance, layer.uniform_distance, rtol=1e-12)
        np.testing.assert_allclose(layer.entropy, math.log(N), rtol=1e-12)


def test_maps_that_do_not_fit_the_cache_are_reduced_in_parts(monkeypatch):
    model = analysed('clip_vit', img_size=64)
    images = images_for(model)
    _, whole = watched(model, images)
    monkeypatch.setattr('tinyvit_zoo.downstream.analysis.attention_maps.IN_CACHE', 16 * 3 * 5)  # five rows at a time
    _, parts = watched(model, images)
    assert len(whole) == 4
    for a, b in zip(whole, parts, strict=True):
        assert a.queries == b.queries == 48
        np.testing.assert_allclose(a.distance, b.distance, rtol=1e-6)
        np.testing.assert_allclose(a.entropy, b.entropy, rtol=1e-6)


def test_batches_weigh_by_their_images_and_steps_scale_distances():
    model, dataset = analysed('tinymim', img_size=32), digits(5)
    whole = measure(model, dataset, batch_size=5, progress=False)
    parts = measure(model, dataset, 14, batch_size=2, progress=False)
    assert whole.images == parts.images == 5
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert (a.queries, a.pixel_step, b.pixel_step) == (20, (16, 16), (14, 14))
        np.testing.assert_allclose(a.distance * 14 / 16, b.distance, rtol=1e-5)
        np.testing.assert_allclose(a.entropy, b.entropy, rtol=1e-5)


def test_gradients_neither_are_lost_nor_hold_what_was_reduced():
    model = analysed('tinymim', img_size=32)
    with AttentionWatch(model) as watch:
        watch(images_for(model)).sum().backward()
        layers = watch.layers()
    assert all(p.grad is not None for p in model.model.blocks.parameters())
    assert len(layers) == 4


@pytest.mark.parametrize('where', ['attn.proj', 'mlp'])
def test_hooks_and_mode_are_gone_after_an_error(where):
    """Within the attention of a block, where the mode is on, and outside."""
    model = analysed('clip_vit', img_size=64)

    def fail(module: nn.Module, args: tuple) -> None:
        raise ZeroDivisionError

    handle = model.model.blocks[1].get_submodule(where).register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError), AttentionWatch(model) as watch:
        watch(images_for(model))
    handle.remove()
    assert clean(model.model)
    assert bare(model, images_for(model)).isfinite().all()


@pytest.mark.parametrize('fused', [True, False])
def test_a_window_of_one_cell_is_no_layer(fused):
    model = analysed('tinyvit', img_size=32)
    fuse(model, fused)
    result = measure(model, digits(2), progress=False)
    assert result.left_out == ('stages.1.blocks.0', 'stages.3.blocks.0')
    assert [(layer.layer, layer.grid) for layer in result.layers] == [
        ('stages.2.blocks.0', (2, 2)),
        ('stages.2.blocks.1', (2, 2)),
    ]


def test_class_attention_is_no_layer():
    net = timm.create_model('cait_xxs24_224', depth=2, embed_dim=48, num_heads=3, img_size=64).eval()
    model = analysed(net)
    _, layers = watched(model, images_for(model))
    assert [layer.layer for layer in layers] == ['blocks.0', 'blocks.1']


class ChannelsAsManyAsTokens(nn.Module):
    """Attention between channels whose map has the size of one between tokens."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.blocks, self.patch_embed, self.num_prefix_tokens = net.blocks, net.patch_embed, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, 4, 4)
        return x


def unknown(name: str) -> AnalysedModel:
    """Models whose attention is laid out in other ways."""
    if name == 'channels':  # 16 patches, and 16 channels a head
        net = timm.create_model('xcit_nano_12_p16_224', depth=1, embed_dim=48, num_heads=3, img_size=64)
        patches = timm.create_model('vit_tiny_patch16_224', depth=1, embed_dim=48, num_heads=3, img_size=64)
        patches.blocks = net.blocks
        return AnalysedModel(
            ChannelsAsManyAsTokens(patches).eval(), name, (64, 64), lambda image: torch.zeros(3, 64, 64)
        )
    arguments = dict(
        test_maxvit=dict(img_size=64), xcit_nano_12_p16_224=dict(depth=1, img_size=64),
        pvt_v2_b0=dict(depths=(1, 1, 1, 1)), convit_tiny=dict(depth=2, img_size=64), test_coatnet=dict(img_size=64),
        hiera_tiny_224=dict(stages=(1, 1, 1, 1), img_size=224),
    )  # fmt: skip
    net = timm.create_model(name, **arguments[name]).eval()
    return AnalysedModel(net, name, (224, 224) if name == 'hiera_tiny_224' else (64, 64), lambda image: image)


@pytest.mark.parametrize(
    'name',
    ['test_maxvit', 'xcit_nano_12_p16_224', 'channels', 'pvt_v2_b0', 'convit_tiny', 'test_coatnet', 'hiera_tiny_224'],
)
def test_unknown_layouts_are_refused(name):
    model = unknown(name)
    refused(lambda: watched(model, images_for(model, 1)), model.name, 'not known here', kind=EvaluationError)
    assert clean(model.model)


def test_models_without_attention_are_refused():
    for name in ('test_convnext', 'test_resnet'):
        model = AnalysedModel(timm.create_model(name).eval(), name, (64, 64), lambda image: image)
        refused(lambda m=model: watched(m, images_for(m, 1)), 'no attention', kind=EvaluationError)


def test_a_stride_that_a_model_does_not_say_is_asked_for():
    model = analysed('clip_vit', img_size=64)
    model.model.patch_embed.patch_size, model.model.feature_info = None, []
    refused(lambda: watched(model, images_for(model)), '--pixel-step', kind=EvaluationError)
    _, layers = watched(model, images_for(model), pixel_step=3)
    assert layers[0].pixel_step == (3, 3)


@pytest.mark.parametrize('fused', [True, False])
def test_attention_that_is_not_finite_is_named(fused):
    model = analysed('clip_vit', img_size=64)
    fuse(model, fused)
    with torch.no_grad():
        model.model.blocks[2].attn.qkv.weight[0] = torch.nan
    refused(
        lambda: measure(model, digits(2), progress=False), 'blocks.2 is not finite', 'weights', kind=EvaluationError
    )
    assert clean(model.model)


@pytest.mark.parametrize('step', [0.0, -1.0, math.inf, math.nan])
def test_a_step_that_is_no_number_of_pixels_is_refused(step):
    refused(lambda: AttentionWatch(analysed('clip_vit', img_size=64), step), 'not a step', kind=EvaluationError)


def test_masks_of_fused_attention_are_heeded():
    """Booleans and causal attention, which no model of timm has for images."""
    net = timm.create_model('vit_tiny_patch16_224', depth=1, embed_dim=48, num_heads=3, img_size=64, class_token=False,
                            global_pool='avg').double().eval()  # fmt: skip
    nn.init.zeros_(net.blocks[0].attn.qkv.weight)
    model = analysed(net)
    mask = torch.eye(16, dtype=torch.bool)
    found = []
    for settings in (dict(attn_mask=mask), dict(is_causal=True)):
        net.blocks[0].attn.forward = lambda x, attn_mask=None, is_causal=False, s=settings: _attend(net, x, s)
        _, layers = watched(model, images_for(model, 1).double(), epsilon=0)
        found.append(layers[0])
    np.testing.assert_allclose(found[0].distance, 0, atol=1e-12)
    np.testing.assert_allclose(found[1].entropy, np.mean(np.log(np.arange(1, 17))), rtol=1e-12)


def _attend(net: nn.Module, x: torch.Tensor, settings: dict) -> torch.Tensor:
    q = x.unflatten(2, (3, 16)).transpose(1, 2)
    return F.scaled_dot_product_attention(0 * q, q, q, **settings).transpose(1, 2).flatten(2)
