"""Special to TinyViT: one model for every size, folded BatchNorm, the fused attention kernel, its head.

Sizes, folding and the kernel are among the defects of timm's own TinyViT that ours must not have; the others
(gradients in evaluation mode, stale bias caches, copies and pickles that fail or grow) are in `test_contract.py`.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from conftest import ARCHITECTURES
from timm.models import get_notrace_functions, get_notrace_modules, reparameterize_model
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.models import TinyViT

SIZES = [(224, 224), (200, 232), (64, 96), (33, 47)]


def images(height: int = 96, width: int = 96, batch: int = 2, **kwargs) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, **kwargs)


def operators(run) -> set[str]:
    """Names of the operators that a call runs on the CPU."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return {event.key for event in profiler.key_averages()}


# --- beyond timm's own TinyViT


def test_the_size_can_be_chosen_and_changed(small):
    model = small(img_size=(64, 96))
    assert model.img_size == (64, 96)
    model.set_input_size(img_size=(96, 64), window_size=(2, 3, 4))
    assert (model.img_size, model.window_sizes[1:]) == ((96, 64), ((2, 2), (3, 3), (4, 4)))


@pytest.mark.parametrize('windows', [5, (2, 3), (4, 4, 8, 4), [[2, 3], 4, 2]], ids=str)
@torch.no_grad()
def test_windows_have_the_same_meaning_under_both_names(windows, small, tmp_path):
    model, same = small(img_size=96, window_size=windows), small(img_size=96, window_sizes=windows)
    assert model.window_sizes == same.window_sizes
    x = images()
    assert torch.equal(model(x), same(x))
    save_folder(model, tmp_path / 'page')
    again = timm.create_model(f'local-dir:{tmp_path / "page"}', pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    model.set_input_size(128)
    assert model.window_sizes == small(img_size=128).window_sizes
    assert 'window_size' not in model._model_args  # else a saved model would return with the old windows


def test_windows_under_both_names_at_once_are_refused(small):
    with pytest.raises(ValueError, match='one of them'):
        small(window_size=7, window_sizes=7)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_one_exported_program_accepts_every_size(form, small):
    model = small() if form == 'plain' else reparameterize_model(small())
    # At 32 the last map is one cell, and torch.export treats a size of 1 differently from all others.
    height, width = torch.export.Dim('height', min=33, max=1024), torch.export.Dim('width', min=33, max=1024)
    dynamic = dict(x={0: torch.export.Dim('batch', max=64), 2: height, 3: width})
    program = torch.export.export(model, (images(200, 232),), dynamic_shapes=dynamic).module()
    for size in [*SIZES, (448, 448), (224, 448), (256, 320), (800, 608)]:
        x = images(*size, batch=3)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


FOLD_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.mark.parametrize('dtype', FOLD_TOLERANCE, ids=str)
@torch.no_grad()
def test_folding_keeps_the_function_in_every_dtype(dtype, small):
    model, x = small().to(dtype), images(dtype=dtype)
    expected = model(x)
    folded = reparameterize_model(model)
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())  # a copy was folded
    assert folded(x).dtype == dtype
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=FOLD_TOLERANCE[dtype] * expected.abs().max().item())


def test_folding_halves_keeps_the_precision_of_the_statistics(small):
    """In float16 the statistics must not be folded in float16."""
    exact = reparameterize_model(small().half().double()).state_dict()
    halves = reparameterize_model(small().half()).state_dict()
    assert halves.keys() == exact.keys()
    for key, value in halves.items():
        torch.testing.assert_close(value.double(), exact[key].double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('form', ['plain', 'deploy'])
@pytest.mark.parametrize('size', [(224, 224), (200, 232)], ids=str)
def test_attention_runs_in_the_fused_kernel(form, size, small):
    model = small() if form == 'plain' else reparameterize_model(small())
    with torch.no_grad():
        names = operators(lambda: model(images(*size)))
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu' in names
    assert not [name for name in names if '_scaled_dot_product_attention_math' in name]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('grad', [True, False])
def test_no_mode_falls_back_to_the_decomposed_attention(grad, dtype, small):
    model = small().to(dtype)
    with torch.set_grad_enabled(grad):
        names = operators(lambda: model(images(dtype=dtype)))
    assert not [name for name in names if '_scaled_dot_product_attention_math' in name]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_both_ways_of_attention_agree(dtype, small):
    """With gradients the products are written out, without them the fused kernel runs."""
    model, x = small().to(dtype), images(dtype=dtype)
    with torch.no_grad():
        fused = model(x)
    torch.testing.assert_close(model(x).detach(), fused, rtol=1e-4, atol=1e-5)
    for attn in (m for m in model.modules() if hasattr(m, 'fused_attn')):
        attn.fused_attn = False
    with torch.no_grad():
        torch.testing.assert_close(model(x), fused, rtol=1e-4, atol=1e-5)


# --- head


@torch.no_grad()
def test_the_head_is_pool_norm_classifier(small):
    model, x = small(), images()
    features = model.forward_features(x)
    pooled = model.head.norm(features.mean((2, 3), keepdim=True)).flatten(1)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    torch.testing.assert_close(model.forward_head(features), model.head.fc(pooled))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, '')
    assert model(x).shape == features.shape
    model.reset_classifier(3, 'max')
    assert model(x).shape == (2, 3)
    assert model.get_classifier().weight.shape == (3, 64)


# --- every size


@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_memory_format_of_the_input_does_not_matter(form, small):
    model, x = small(), images(97, 65)
    model = reparameterize_model(model) if form == 'deploy' else model
    expected = model(x)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(model(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x), expected)


@pytest.mark.parametrize('form', ['plain', 'deploy'])
def test_several_threads_can_share_a_model(form, small):
    model = small() if form == 'plain' else reparameterize_model(small())
    batches = [images(*size) for size in SIZES * 2]

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    expected = [run(x) for x in batches]
    assert len(expected) == 2 * len(SIZES)
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(run, batches), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# --- training


@pytest.mark.parametrize('name', [name for name in ARCHITECTURES if name.startswith('tinyvit')])
def test_drop_path_rises_linearly_over_all_blocks(name):
    model = timm.create_model(name, drop_path_rate=0.22, device='meta')
    rates = []
    for stage in model.stages:
        for block in stage.blocks:
            first = getattr(block, 'drop_path1', None) or block.drop_path
            second = getattr(block, 'drop_path2', first)
            assert getattr(first, 'drop_prob', 0.0) == getattr(second, 'drop_prob', 0.0)
            rates.append(getattr(first, 'drop_prob', 0.0))
    assert rates == pytest.approx([0.22 * i / 11 for i in range(12)])


@pytest.mark.parametrize(
    ('name', 'rate'),
    [
        ('tinyvit_5m_224', 0.0),
        ('tinyvit_11m_224', 0.1),
        ('tinyvit_21m_224', 0.2),
        ('tinyvit_21m_384', 0.1),
        ('tinyvit_21m_512', 0.1),
    ],
)
def test_default_drop_path_is_the_released_one(name, rate):
    last = timm.create_model(name, device='meta').stages[-1].blocks[-1].drop_path2
    assert getattr(last, 'drop_prob', 0.0) == pytest.approx(rate)


def test_initial_values_are_the_released_ones():
    model = timm.create_model('tinyvit_5m_224')
    for key, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), key
            assert module.weight.mean().abs() < 2e-3, key
            assert module.bias.abs().max() == 0, key
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5, key
            assert (module.weight.min(), module.weight.max(), module.bias.abs().max()) == (1, 1, 0), key
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5  # PyTorch's own: uniform
            assert module.weight.abs().max() <= bound, key
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), key
            assert module.bias is None, key
        elif isinstance(module, nn.BatchNorm2d):
            zero = '.conv3.' in key and '.blocks.' in key  # the last of an MBConv is initialized to zero
            assert module.weight.unique().tolist() == [0.0 if zero else 1.0], key
            assert (module.eps, module.momentum) == (1e-5, 0.1), key
    tables = [p for key, p in model.named_parameters() if key.endswith('attention_biases')]
    assert len(tables) == 10
    assert all(table.abs().max() == 0 for table in tables)
    assert sum('conv3' in k for k, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)) == 2 + 3


def test_widths_that_heads_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='divisible'):
        TinyViT(embed_dims=(64, 100, 160, 320), num_heads=(2, 3, 5, 10))


# --- graphs


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_it_can_be_scripted_and_traced(form, small):
    model = small(exportable=True) if form == 'plain' else reparameterize_model(small())
    x = images()
    scripted, traced = torch.jit.script(model), torch.jit.trace(model, x)
    for size in [(96, 96), (200, 232)]:
        x = images(*size)
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)
    x = images()
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_it_can_be_traced_by_fx(form, small):
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = small() if form == 'plain' else reparameterize_model(small())
    leaves = dict(leaf_modules=list(get_notrace_modules()), autowrap_functions=list(get_notrace_functions()))
    _, names = get_graph_node_names(model, tracer_kwargs=leaves)
    graph = create_feature_extractor(model, return_nodes={names[-1]: 'y'}, tracer_kwargs=leaves)
    for size in SIZES:
        x = images(*size)
        torch.testing.assert_close(graph(x)['y'], model(x), rtol=1e-4, atol=1e-5)


def compiled(model: nn.Module, **kwargs) -> nn.Module:
    """The model as one graph, without what earlier tests compiled."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_it_is_one_graph_for_inference_at_every_size(form, small):
    """Traced as torch.compile does, without generating code, which the next test does."""
    model = small() if form == 'plain' else reparameterize_model(small())
    fast = compiled(model, backend='eager', dynamic=False)
    for size in SIZES:
        x = images(*size)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
