"""The layers that analyses compare: by calls, as MAE-Lite's code takes them, or by name; what lies where in them."""

import numpy as np
import pytest
import timm
import torch
from analysed import analysed, digits
from conftest import refused
from timm.models._features import FeatureGetterNet

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.dense import DenseBackbone
from tinyvit_zoo.downstream.analysis import attention
from tinyvit_zoo.downstream.analysis.analysed_model import AnalysedModel
from tinyvit_zoo.downstream.analysis.attention_watch import AttentionWatch
from tinyvit_zoo.downstream.analysis.images import batches_of, draw_images
from tinyvit_zoo.downstream.analysis.layers import MAE_LITE, LayerOutputs, as_map, find_blocks, token_grid

BATCH = (2, 3, 32, 32)


def outputs_of(model: AnalysedModel, layers: list[str]) -> dict[str, torch.Tensor]:
    """Outputs by name, for two images of noise."""
    images = torch.randn(2, 3, *model.size)
    with torch.no_grad(), LayerOutputs(model, layers, lambda name, x, size, module: x.clone()) as outputs:
        return outputs(images)


@pytest.mark.parametrize(
    ('name', 'arguments', 'blocks'),
    [
        ('vit_tiny_patch16_224', dict(depth=2), ['blocks.0', 'blocks.1']),
        ('swin_tiny_patch4_window7_224', dict(depths=(1, 1, 1, 1)), [f'layers.{i}.blocks.0' for i in range(4)]),
        ('resnet10t', {}, [f'layer{i}.0' for i in range(1, 5)]),
        ('test_efficientnet', {}, ['blocks.0.0', 'blocks.1.0', 'blocks.2.0', 'blocks.3.0', 'blocks.4.0']),
    ],
)
def test_blocks_are_found_by_the_names_of_timms_lists(name, arguments, blocks):
    with torch.device('meta'):
        model = timm.create_model(name, **arguments)
    assert list(find_blocks(model)) == blocks


def test_a_block_that_runs_twice_is_two_layers():
    model = analysed('mini_deit', img_size=32)
    outputs = outputs_of(model, ['blocks'])
    assert list(outputs) == ['blocks.0', 'blocks.0 (2)', 'blocks.1', 'blocks.1 (2)']
    assert not torch.equal(outputs['blocks.0'], outputs['blocks.0 (2)'])


def test_a_block_that_two_places_share_is_two_layers():
    model = timm.create_model('vit_tiny_patch16_224', depth=2, embed_dim=48, num_heads=3, img_size=32, num_classes=3)
    model.blocks[1] = model.blocks[0]
    assert list(outputs_of(analysed(model.eval()), ['blocks'])) == ['blocks.0', 'blocks.0 (2)']


def test_layers_of_weight_multiplexing_are_those_of_its_model():
    model = timm.create_model('vit_tiny_patch16_224', depth=2, embed_dim=48, num_heads=3, img_size=32, num_classes=3)
    shared = multiplex(model, share_every=2).eval()
    assert list(outputs_of(analysed(shared), ['blocks'])) == ['blocks.0', 'blocks.1']


@pytest.mark.parametrize('pool', ['avg', 'token'])
def test_mae_lites_layers_are_first_norms_and_the_last_norm_of_every_patch(pool):
    net = timm.create_model(
        'vit_tiny_patch16_224', depth=2, embed_dim=48, num_heads=3, img_size=32, num_classes=3, global_pool=pool
    ).eval()
    torch.nn.init.normal_((net.fc_norm if pool == 'avg' else net.norm).weight)
    images = torch.randn(BATCH)
    with torch.no_grad(), LayerOutputs(analysed(net), [MAE_LITE], lambda name, x, size, module: x.clone()) as outputs:
        found = outputs(images)
        x = net._pos_embed(net.patch_embed(images))
        first = net.blocks[0].norm1(x)[:, 1:]
        tokens = net.blocks[1](net.blocks[0](x))[:, 1:]
        last = (net.fc_norm if pool == 'avg' else net.norm)(tokens)
    assert list(found) == ['blocks.0.norm1', 'blocks.1.norm1', 'fc_norm' if pool == 'avg' else 'norm']
    values = list(found.values())
    assert torch.equal(values[0], first)
    torch.testing.assert_close(values[2], last)


def test_the_last_norm_of_transformers_beit_is_that_of_its_pooler():
    transformers = pytest.importorskip('transformers')
    config = transformers.BeitConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    model = AnalysedModel(transformers.BeitModel(config).eval(), 'BEiT', (32, 32), print)
    found = outputs_of(model, [MAE_LITE])
    assert list(found) == ['layers.0.layernorm_before', 'layers.1.layernorm_before', 'pooler.layernorm']
    assert found['pooler.layernorm'].shape == (2, 16, 16)
    assert found['pooler.layernorm'].mean(dim=-1).abs().max() < 1e-5


def test_layers_are_chosen_by_pattern():
    model = analysed('mini_deit', img_size=32)
    assert list(outputs_of(model, ['blocks.?.mlp', 'patch_embed'])) == [
        'patch_embed', 'blocks.0.mlp', 'blocks.0.mlp (2)', 'blocks.1.mlp', 'blocks.1.mlp (2)',
    ]  # fmt: skip


def test_layers_that_are_not_there_are_refused():
    model = analysed('tinyvit', img_size=32)
    refused(lambda: outputs_of(model, ['stages.9.*']), 'stages.9.*', '--layers', kind=EvaluationError)
    refused(lambda: outputs_of(model, [MAE_LITE]), 'norm1', kind=EvaluationError)
    with torch.device('meta'):
        strange, normed = timm.create_model('regnetx_002'), timm.create_model('nest_tiny')
    refused(lambda: LayerOutputs(analysed(strange), ['blocks'], print), 'no blocks', kind=EvaluationError)
    refused(lambda: LayerOutputs(analysed(normed), [MAE_LITE], print), 'no layer mae-lite', kind=EvaluationError)


def test_of_several_outputs_the_one_of_the_images_is_taken():
    """TNT's blocks give the pixels of every patch before its patches."""
    model = timm.create_model('tnt_s_patch16_224', depth=2, img_size=32, num_classes=3).eval()
    assert [x.shape for x in outputs_of(analysed(model), ['blocks']).values()] == [(2, 5, 384)] * 2
    refused(lambda: outputs_of(analysed(model), ['blocks.0.norm_in']), 'no tensor of images', kind=EvaluationError)


def test_a_layer_that_never_runs_is_refused():
    model = analysed('tinymim_student', img_size=32)  # its fifth block was never trained, and is left out
    assert list(outputs_of(model, ['blocks'])) == [f'blocks.{i}' for i in range(4)]
    refused(lambda: outputs_of(model, ['blocks.4']), 'blocks.4', kind=EvaluationError)


def test_hooks_are_gone_after_an_error():
    model = analysed('tinymim', img_size=32)

    def fail(name: str, x: torch.Tensor, size: tuple[int, int], module: torch.nn.Module) -> None:
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError, match=r'blocks\.0'), LayerOutputs(model, ['blocks'], fail) as outputs:
        outputs(torch.zeros(BATCH))
    assert not any(module._forward_hooks for module in model.model.modules())


def test_tokens_become_maps_without_the_prefix():
    model = analysed('clip_vit', img_size=(32, 64))
    x = torch.arange(9.0).expand(1, 9).unsqueeze(2)
    found = as_map('x', x, model, (32, 64), model.model)
    assert found[0, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert token_grid(model, 9, (32, 64)) == (2, 4, 1)
    refused(lambda: token_grid(model, 11, (32, 64)), '11 tokens', kind=EvaluationError)
    with torch.device('meta'):
        later = timm.create_model('xcit_nano_12_p16_224', img_size=64)  # adds its class token after these blocks
    assert token_grid(analysed(later), 16, (64, 64)) == (4, 4, 0)


@pytest.mark.parametrize('wrap', ['features_only', 'dense'])
def test_a_backbone_of_a_detector_has_the_layers_of_the_vit_inside(wrap):
    """Five prefix tokens and four patches would make a grid, too."""
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, embed_dim=48, num_heads=3, reg_tokens=4)
    wrapped = FeatureGetterNet(net, out_indices=[11]) if wrap == 'features_only' else DenseBackbone(net)
    model = AnalysedModel(wrapped.eval(), wrap, (32, 32), analysed(net).transform)
    assert token_grid(model, 9, (32, 32)) == (2, 2, 5)
    attended = attention.measure(model, digits(2), progress=False).layers
    assert {(layer.grid, layer.pixel_step) for layer in attended} == {((2, 2), (16, 16))}
    assert len(attended) == 12
    first = next(iter(outputs_of(model, [MAE_LITE]).values()))
    assert first.shape == (2, 4, 48)


def test_maps_are_read_with_channels_first_and_last():
    """TinyViT has both: maps of convolutions first, of attention last."""
    model = analysed('tinyvit', img_size=(32, 64))
    shapes = {}

    def see(name: str, x: torch.Tensor, size: tuple[int, int], module: torch.nn.Module) -> None:
        shapes[name] = tuple(as_map(name, x, model, size, module).shape)

    with torch.no_grad(), LayerOutputs(model, ['blocks'], see) as outputs:
        outputs(torch.zeros(1, 3, 32, 64))
    assert shapes == {
        'stages.0.blocks.0': (1, 16, 8, 16),
        'stages.1.blocks.0': (1, 32, 4, 8),
        'stages.2.blocks.0': (1, 32, 2, 4),
        'stages.2.blocks.1': (1, 32, 2, 4),
        'stages.3.blocks.0': (1, 64, 1, 2),
    }


def test_as_many_channels_as_pixels_are_told_apart_by_the_width_of_the_layer():
    model, layer = analysed('tinyvit', img_size=32), torch.nn.LayerNorm(9)
    x = torch.arange(8 * 8 * 9.0).view(1, 8, 8, 9)
    assert as_map('x', x, model, (32, 32), layer).shape == (1, 9, 8, 8)
    assert as_map('x', x.permute(0, 3, 1, 2), model, (32, 32), layer).shape == (1, 9, 8, 8)


@pytest.mark.parametrize(
    ('name', 'shape', 'words'),
    [('hiera_tiny_224', (2, 3136, 96), 'not row by row'), ('nest_tiny', (2, 16, 196, 96), 'not a map')],
)
def test_tokens_that_lie_in_another_order_are_no_map(name, shape, words):
    """Hiera's follow its windows, NesT's lie block by block: read row by row they give frequencies, but wrong ones."""
    with torch.device('meta'):
        model, x = analysed(timm.create_model(name)), torch.zeros(shape)
    refused(lambda: as_map('a', x, model, (224, 224), model.model), words, kind=EvaluationError)


def test_images_are_drawn_by_the_seed_and_fewer_are_the_first_of_more():
    dataset = digits(40)
    many, few = (draw_images(dataset, images, seed=1) for images in (30, 7))
    assert len(many) == 30
    assert few.positions.tolist() == many.positions[:7].tolist()
    assert sorted(draw_images(dataset, 99, seed=1).positions) == sorted(dataset.positions)
    assert draw_images(dataset, 7, seed=2).positions.tolist() != few.positions.tolist()


def test_two_models_see_the_same_images_each_in_its_own_preprocessing():
    a, b = analysed('tinyvit', img_size=32), analysed('tinyvit', img_size=32)
    shift = AnalysedModel(b.model, 'shifted', b.size, lambda image: a.transform(image) + 1)
    batches = list(batches_of([a, b, shift], digits(5), 2, device='cpu', progress=False))
    assert [len(images[0]) for images in batches] == [2, 2, 1]
    for own, same, shifted in batches:
        assert torch.equal(own, same)
        np.testing.assert_allclose(own + 1, shifted, rtol=0, atol=1e-6)


def test_compiled_models_are_refused():
    model = timm.create_model('test_vit')
    refused(lambda: analysed(torch.compile(model)), 'compiled', kind=EvaluationError)
    before = analysed(model)
    model.blocks[0].compile()
    refused(lambda: analysed(model), 'compiled', kind=EvaluationError)
    refused(lambda: LayerOutputs(before, ['blocks'], print), 'compiled', kind=EvaluationError)
    refused(lambda: AttentionWatch(before), 'compiled', kind=EvaluationError)
