"""What timm and PyTorch expect of a model, and the nine defects of timm's own TinyViT that ours must not have."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from conftest import ARCHITECTURES, SMALL
from golden_rule import fill_by_rule
from timm.models import get_notrace_functions, get_notrace_modules, reparameterize_model
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tinyvit_zoo.models import TinyViT

SIZES = [(224, 224), (200, 232), (64, 96), (33, 47)]


def images(height: int = 96, width: int = 96, batch: int = 2, **kwargs) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, **kwargs)


def tables(model: nn.Module) -> dict[str, nn.Parameter]:
    return {k: p for k, p in model.named_parameters() if k.endswith('attention_biases')}


def operators(run) -> set[str]:
    """Names of the operators that a call runs on the CPU."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return {event.key for event in profiler.key_averages()}


# --- the nine defects


def test_1_backward_works_twice_in_evaluation_mode(small):
    model, x = small(), images().requires_grad_()
    first = torch.autograd.grad(model(x).sum(), x)[0]
    second = torch.autograd.grad(model(x).sum(), x)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.abs().sum() > 0


@pytest.mark.parametrize('training', [False, True])
def test_2_the_gradient_reaches_every_bias_table_after_inference(training):
    model = fill_by_rule(timm.create_model('tinyvit_5m_224'))
    with torch.no_grad():
        model(images())
    model.train(training)(images()).square().sum().backward()
    assert len(tables(model)) == 10
    for key, parameter in tables(model).items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def change_by_loading(model: nn.Module, changed: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(changed)


def change_data(model: nn.Module, changed: dict[str, torch.Tensor]) -> None:
    for key, tensor in model.state_dict().items():
        tensor.data.copy_(changed[key])


def change_in_place(model: nn.Module, changed: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key in changed:
                tensor.copy_(changed[key])


def change_by_assignment(model: nn.Module, changed: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(changed, assign=True)


def change_by_averaging(model: nn.Module, changed: dict[str, torch.Tensor]) -> None:
    """As weight averaging does, by `lerp_`."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(changed[key], 1.0)


CHANGES = [change_by_loading, change_data, change_in_place, change_by_assignment, change_by_averaging]


@pytest.mark.parametrize('change', CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize('warm', [torch.no_grad, torch.enable_grad, torch.inference_mode], ids=lambda f: f.__name__)
def test_3_new_weights_take_effect_at_once_in_evaluation_mode(change, warm, small):
    model, x = small(), images()
    with warm():
        before = model(x).detach().clone()
    changed = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    expected = small()
    expected.load_state_dict(changed)
    change(model, changed)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)
        assert not torch.allclose(model(x), before)


@pytest.mark.parametrize('kind', ['attention_biases', 'running_mean', 'running_var'])
def test_3_not_even_one_kind_of_tensor_is_remembered(kind, small):
    model, x = small(), images()
    with torch.no_grad():
        before = model(x)
        for key, tensor in model.state_dict().items():
            if key.endswith(kind):
                tensor.mul_(3)
        assert (model(x) - before).abs().max() > 1e-4


def test_4_copies_can_be_made_after_a_forward_with_gradients(small):
    model, x = small(), images()
    expected = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected, rtol=0, atol=0)


def test_5_saving_does_not_grow_after_a_forward(small):
    model = small()
    before = len(pickle.dumps(model))
    model(images())
    with torch.no_grad():
        model(images(128, 64))
    assert len(pickle.dumps(model)) == before
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = images()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_6_the_size_can_be_chosen_and_changed(small):
    model = small(img_size=(64, 96))
    assert model.img_size == (64, 96)
    model.set_input_size(img_size=(96, 64), window_size=(2, 3, 4))
    assert (model.img_size, model.window_sizes[1:]) == ((96, 64), ((2, 2), (3, 3), (4, 4)))


@pytest.mark.slow
@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_7_one_exported_program_takes_every_size(form, small):
    model = small() if form == 'plain' else reparameterize_model(small())
    # At 32 the last map is one cell, and torch.export keeps sizes of 1 apart from all others.
    height, width = torch.export.Dim('height', min=33, max=1024), torch.export.Dim('width', min=33, max=1024)
    dynamic = dict(x={0: torch.export.Dim('batch', max=64), 2: height, 3: width})
    program = torch.export.export(model, (images(200, 232),), dynamic_shapes=dynamic).module()
    for size in [*SIZES, (448, 448), (224, 448), (256, 320), (800, 608)]:
        x = images(*size, batch=3)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


FOLD_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.mark.parametrize('dtype', FOLD_TOLERANCE, ids=str)
@torch.no_grad()
def test_8_folding_keeps_the_function_in_every_dtype(dtype, small):
    model, x = small().to(dtype), images(dtype=dtype)
    expected = model(x)
    folded = reparameterize_model(model)
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())  # a copy was folded
    assert folded(x).dtype == dtype
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=FOLD_TOLERANCE[dtype] * expected.abs().max().item())


def test_8_folding_keeps_the_device():
    folded = reparameterize_model(timm.create_model('tinyvit_5m_224', device='meta'))
    assert {t.device.type for t in folded.parameters()} == {'meta'}


def test_8_folding_halves_keeps_the_precision_of_the_statistics(small):
    """In float16 the statistics must not be folded in float16."""
    exact = reparameterize_model(small().half().double()).state_dict()
    for key, value in reparameterize_model(small().half()).state_dict().items():
        torch.testing.assert_close(value.double(), exact[key].double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('form', ['plain', 'deploy'])
@pytest.mark.parametrize('size', [(224, 224), (200, 232)], ids=str)
def test_9_attention_runs_in_the_fused_kernel(form, size, small):
    model = small() if form == 'plain' else reparameterize_model(small())
    with torch.no_grad():
        names = operators(lambda: model(images(*size)))
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu' in names
    assert not [name for name in names if '_scaled_dot_product_attention_math' in name]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('grad', [True, False])
def test_9_no_mode_falls_back_to_the_decomposed_attention(grad, dtype, small):
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


# --- forms of features


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'fx', 'getter'])
@torch.no_grad()
def test_features_only_gives_what_the_stages_give(feature_cls, small):
    model, x = small(), images(200, 232)
    _, stages = model.forward_intermediates(x)
    features = timm.create_model(
        'tinyvit_5m_224',
        pretrained=True,
        pretrained_cfg_overlay=dict(state_dict=model.state_dict()),
        features_only=True,
        out_indices=(1, 3),
        feature_cls=feature_cls,
        **SMALL,
    ).eval()
    assert features.feature_info.channels() == [32, 64]
    assert features.feature_info.reduction() == [8, 32]
    found = features(x)
    found = list(found.values()) if isinstance(found, dict) else found
    for a, b in zip(found, stages[1::2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('indices', [None, 1, 2, [0], [1, 3], [-1], [-2, -1]], ids=str)
@pytest.mark.parametrize('stop_early', [True, False])
@torch.no_grad()
def test_intermediates_are_the_stages_that_were_asked_for(indices, stop_early, small):
    model, x = small(), images()
    final, every = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
    expected = (
        every if indices is None else every[-indices:] if isinstance(indices, int) else [every[i] for i in indices]
    )
    alone = model.forward_intermediates(x, indices=indices, stop_early=stop_early, intermediates_only=True)
    for a, b in zip(alone, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_another_output_format_is_refused(small):
    with pytest.raises(ValueError, match='NCHW'):
        small().forward_intermediates(images(), output_fmt='NLC')


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_feature_info_tells_the_truth(name):
    model = timm.create_model(name, device='meta')
    x = torch.empty(1, 3, *model.img_size, device='meta')
    _, stages = model.forward_intermediates(x)
    assert len(stages) == len(model.feature_info) == 4
    for info, stage in zip(model.feature_info, stages, strict=True):
        assert stage.shape[1] == info['num_chs']
        assert stage.shape[-1] * info['reduction'] == model.img_size[1]
        model.get_submodule(info['module'])


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


# --- placement, precision, modes


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_a_model_can_be_made_without_memory(name):
    model = timm.create_model(name, device='meta')
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {'meta'}


def test_a_model_made_without_memory_can_be_started_later():
    expected = timm.create_model('tinyvit_5m_224').state_dict(keep_vars=True)
    model = timm.create_model('tinyvit_5m_224', device='meta').to_empty(device='cpu')
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(77)
    model.init_weights()
    for key, value in model.state_dict().items():
        if value.numel() < 1000:
            assert value.float().mean().item() == pytest.approx(expected[key].float().mean().item(), abs=0.2), key
        else:
            assert value.std().item() == pytest.approx(expected[key].std().item(), rel=0.2), key
            assert value.mean().item() == pytest.approx(expected[key].mean().item(), abs=0.02), key
    for (key, a), (_, b) in zip(
        model.named_buffers(), timm.create_model('tinyvit_5m_224').named_buffers(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)


@torch.no_grad()
def test_buffers_that_no_file_holds_are_restored(small):
    expected, x = small(), images()
    model = timm.create_model('tinyvit_5m_224', device='meta', **SMALL).to_empty(device='cpu').eval()
    for tensor in model.buffers():
        tensor.fill_(0)
    model.load_state_dict(expected.state_dict())
    assert not torch.allclose(model(x), expected(x))
    for module in model.modules():
        if hasattr(module, 'init_non_persistent_buffers'):
            module.init_non_persistent_buffers()
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)


def test_offsets_are_in_no_state_dict(small):
    persistent = {k for k in small().state_dict() if 'offset' in k or 'idx' in k or 'index' in k}
    assert persistent == set()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_a_dtype_at_creation_reaches_everything(dtype):
    model = timm.create_model('tinyvit_5m_224', dtype=dtype, **SMALL).eval()
    assert {t.dtype for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()} == {dtype}
    assert model(images(dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
@torch.no_grad()
def test_half_precision_stays_close(dtype, atol, small):
    model, x = small(), images()
    expected = model(x)
    model(x)
    torch.testing.assert_close(model.to(dtype)(x.to(dtype)).float(), expected, rtol=0, atol=atol * expected.abs().max())


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('form', ['plain', 'deploy'])
def test_autocast_stays_close(form, grad, small):
    model, x = small(), images()
    expected = model(x).detach()
    model = reparameterize_model(model) if form == 'deploy' else model
    with torch.set_grad_enabled(grad), torch.autocast('cpu', torch.bfloat16):
        y = model(x)
    torch.testing.assert_close(y.detach().float(), expected, rtol=0, atol=0.1 * expected.abs().max().item())


@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_memory_format_of_the_input_does_not_matter(form, small):
    model, x = small(), images(97, 65)
    model = reparameterize_model(model) if form == 'deploy' else model
    expected = model(x)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(model(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x), expected)


@torch.no_grad()
def test_images_of_a_batch_do_not_meet(small):
    model, x = small(), images(batch=4)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('form', ['plain', 'deploy'])
def test_several_threads_can_share_a_model(form, small):
    model = small() if form == 'plain' else reparameterize_model(small())
    batches = [images(*size) for size in SIZES * 2]

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    expected = [run(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(run, batches), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_train_and_eval_can_be_chained(small):
    model = small()
    for module in model.modules():
        assert module.train() is module
        assert module.eval() is module


# --- training


def test_checkpointing_changes_no_gradient(small):
    x = images()
    gradients = []
    for checkpointing in (False, True):
        model = small(drop_path_rate=0.0).train()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize('name', ARCHITECTURES)
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


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('tinyvit_5m_224', 5_392_764),
        ('tinyvit_11m_224', 10_996_972),
        ('tinyvit_21m_224', 21_198_568),
        ('tinyvit_21m_384', 21_230_488),
        ('tinyvit_21m_512', 21_268_120),
        ('tinyvit_5m_224.dist_in22k', 12_082_725),
    ],
)
def test_the_number_of_parameters_is_the_released_one(name, parameters):
    assert sum(p.numel() for p in timm.create_model(name, device='meta').parameters()) == parameters


def test_start_values_are_the_released_ones():
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
            zero = '.conv3.' in key and '.blocks.' in key  # the last of an MBConv starts as nothing
            assert module.weight.unique().tolist() == [0.0 if zero else 1.0], key
            assert (module.eps, module.momentum) == (1e-5, 0.1), key
    assert all(p.abs().max() == 0 for p in tables(model).values())
    assert sum('conv3' in k for k, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)) == 2 + 3


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='depth_multiplier'):
        timm.create_model('tinyvit_5m_224', depth_multiplier=2)
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


@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_it_can_be_exported_at_one_size(form, small):
    model, x = small() if form == 'plain' else reparameterize_model(small()), images(200, 232)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_it_runs_in_onnxruntime(form, small, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model, x = small() if form == 'plain' else reparameterize_model(small()), images(200, 232)
    torch.onnx.export(model, (x,), tmp_path / 'model.onnx', dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-3, atol=1e-4)


def compiled(model: nn.Module, **kwargs) -> nn.Module:
    """The model as one graph, without what earlier tests compiled."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_it_is_one_graph_for_inference_at_every_size(form, small):
    """Traced as torch.compile does, without generating code: that is the next test's matter."""
    model = small() if form == 'plain' else reparameterize_model(small())
    fast = compiled(model, backend='eager', dynamic=False)
    for size in SIZES:
        x = images(*size)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['plain', 'deploy'])
@torch.no_grad()
def test_it_compiles(form, small):
    model, x = small(), images()
    model = model if form == 'plain' else reparameterize_model(model)
    torch.testing.assert_close(compiled(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_is_one_graph_for_training(small):
    x = images()

    def gradients(model: nn.Module, forward) -> dict[str, torch.Tensor]:
        forward(x).square().sum().backward()
        return {k: p.grad for k, p in model.named_parameters()}

    eager, model = small().train(), small().train()
    found = gradients(model, compiled(model, backend='aot_eager'))
    for key, gradient in gradients(eager, eager).items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=1e-3 * scale + 1e-5, msg=key)


def test_it_works_under_vmap_and_autocast(small):
    model = small().eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        mapped = torch.func.vmap(lambda image: model(image[None])[0])(images)
        torch.testing.assert_close(mapped, expected)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert model(images).dtype == timm.models.reparameterize_model(model)(images).dtype == torch.bfloat16
