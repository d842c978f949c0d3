"""The contract of timm and PyTorch, for every family: a line in `conftest.SMALL_OF` tests a new one."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import timm
import torch
from conftest import (
    ARCHITECTURES,
    FEATURE_CLASSES,
    SMALL_OF,
    classifiers,
    few_blocks,
    images_for,
    rest_is_full,
    size_of,
    used_parameters,
)
from timm.models import get_notrace_functions, get_notrace_modules, reparameterize_model
from torch import nn

from tinyvit_zoo.layers import DeployLinear

SIZE = (96, 64)


@pytest.fixture
def model(any_small) -> nn.Module:
    """A small model for images of 96 x 64."""
    return any_small(img_size=SIZE)


@pytest.fixture(params=['plain', 'deploy'])
def deployable(request, model) -> nn.Module:
    """The model as created, and in deploy form."""
    return model if request.param == 'plain' else reparameterize_model(model)


# --- weights and gradients


def test_backward_works_twice_in_evaluation_mode(model):
    x = images_for(model).requires_grad_()
    first = torch.autograd.grad(model(x).sum(), x)[0]
    second = torch.autograd.grad(model(x).sum(), x)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.abs().sum() > 0


@pytest.mark.parametrize('training', [False, True])
def test_the_gradient_reaches_every_parameter_after_inference(training, model):
    with torch.no_grad():
        model(images_for(model))
    model.train(training)(images_for(model)).square().sum().backward()
    used = used_parameters(model)
    assert len(used) > 20
    for key, parameter in used.items():
        assert parameter.grad is not None, key
        # A number added to all logits of a head before softmax changes nothing.
        if '.proj_l.' not in key or not key.endswith('.bias'):
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


WARM = [torch.no_grad, torch.enable_grad, torch.inference_mode]
IN_TURN = [(change, WARM[i % len(WARM)]) for i, change in enumerate(CHANGES)]


@pytest.mark.parametrize(('change', 'warm'), rest_is_full(product(CHANGES, WARM), IN_TURN), ids=lambda f: f.__name__)
def test_new_weights_take_effect_at_once_in_evaluation_mode(change, warm, model, any_small):
    x = images_for(model)
    with warm():
        before = model(x).detach().clone()
    changed = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    expected = any_small(img_size=SIZE)
    expected.load_state_dict(changed)
    change(model, changed)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)
        assert not torch.allclose(model(x), before)


@torch.no_grad()
def test_not_even_one_tensor_is_remembered(model):
    model = model.double()
    x = images_for(model, dtype=torch.float64)
    before = model(x)
    used = used_parameters(model).keys() | dict(model.named_buffers()).keys()
    tried = 0
    for key, tensor in model.state_dict().items():
        if key not in used:
            continue
        # A bias is added to all logits of a head before softmax; the counter is for training.
        if ('.proj_l.' in key and key.endswith('.bias')) or not tensor.is_floating_point():
            continue
        kept = tensor.clone()
        tensor.mul_(3)
        assert (model(x) - before).abs().max() > 1e-7, key
        tensor.copy_(kept)
        tried += 1
    assert tried > 50


def test_copies_can_be_made_after_a_forward_with_gradients(model):
    x = images_for(model)
    expected = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected, rtol=0, atol=0)


def test_saving_does_not_grow_after_a_forward(model):
    x = images_for(model)
    before = len(pickle.dumps(model))
    model(x)
    with torch.no_grad():
        model(x)
    assert len(pickle.dumps(model)) == before
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


# --- deploy form

FOLD_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.mark.parametrize('dtype', FOLD_TOLERANCE, ids=str)
@torch.no_grad()
def test_deploy_form_keeps_the_function_in_every_dtype(dtype, model):
    model = model.to(dtype)
    x = images_for(model, dtype=dtype)
    expected, keys = model(x), list(model.state_dict())
    folded = reparameterize_model(model)
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert list(model.state_dict()) == keys  # a copy was folded
    assert folded(x).dtype == dtype
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=FOLD_TOLERANCE[dtype] * expected.abs().max().item())


def test_deploy_form_keeps_the_device(family):
    folded = reparameterize_model(timm.create_model(SMALL_OF[family][0], device='meta'))
    assert {t.device.type for t in folded.parameters()} == {'meta'}


def test_deploy_form_has_the_fused_layers_in_every_block(family, model):
    """Except in a model with BEiT's blocks, which are timm's own and have no deploy form."""
    blocks = [m for m in reparameterize_model(model).modules() if hasattr(m, 'attn') and hasattr(m, 'mlp')]
    assert blocks
    for block in blocks:
        fused = sum(isinstance(m, DeployLinear) for m in block.modules())
        assert fused == 0 if family == 'mae_lite_rpe' else fused >= 4


# --- forms of features


@pytest.mark.parametrize('indices', [None, 1, 2, [0], [1, 3], [-1], [-2, -1]], ids=str)
@pytest.mark.parametrize('stop_early', [True, False])
@torch.no_grad()
def test_intermediates_are_those_asked_for(indices, stop_early, model):
    x = images_for(model)
    final, every = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
    expected = (
        every if indices is None else every[-indices:] if isinstance(indices, int) else [every[i] for i in indices]
    )
    alone = model.forward_intermediates(x, indices=indices, stop_early=stop_early, intermediates_only=True)
    for a, b in zip(alone, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_another_output_format_is_refused(model):
    with pytest.raises((ValueError, AssertionError), match='NCHW'):
        model.forward_intermediates(images_for(model), output_fmt='NHWCX')


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_feature_info_matches_the_features(name):
    model = timm.create_model(name, device='meta')
    x = torch.empty(1, 3, *size_of(model), device='meta')
    _, maps = model.forward_intermediates(x)
    assert len(maps) == len(model.feature_info)
    for info, features in zip(model.feature_info, maps, strict=True):
        assert features.shape[1] == info['num_chs']
        assert features.shape[-1] * info['reduction'] == size_of(model)[1]
        model.get_submodule(info['module'])


@pytest.mark.parametrize(('family', 'feature_cls'), [(f, c) for f, classes in FEATURE_CLASSES.items() for c in classes])
@torch.no_grad()
def test_features_only_gives_the_intermediates(family, feature_cls, model):
    x = images_for(model)
    _, maps = model.forward_intermediates(x)
    name, args = SMALL_OF[family]
    features = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay=dict(state_dict=model.state_dict()),
        features_only=True,
        out_indices=(1, 3),
        feature_cls=feature_cls,
        img_size=SIZE,
        **args,
    ).eval()
    assert features.feature_info.channels() == [m.shape[1] for m in maps[1::2]]
    assert features.feature_info.reduction() == [SIZE[0] // m.shape[2] for m in maps[1::2]]
    found = features(x)
    found = list(found.values()) if isinstance(found, dict) else found
    for a, b in zip(found, maps[1::2], strict=True):
        # timm's list and hook classes return features in the layout of the module.
        a = a if a.shape == b.shape else a.permute(0, 3, 1, 2)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- head


@torch.no_grad()
def test_the_head_can_be_removed_and_replaced(model):
    x = images_for(model)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(x))
    if len(classifiers(model)) == 1:  # each of two reads its own features
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0, '')
    assert model(x).shape == features.shape
    model.reset_classifier(3, 'avg')
    assert model(x).shape == (2, 3)
    assert {head.weight.shape for head in classifiers(model)} == {(3, model.num_features)}


# --- placement, precision, modes


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_a_model_can_be_made_without_memory(name):
    model = timm.create_model(name, device='meta')
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {'meta'}


def test_a_model_made_without_memory_can_be_initialized_later(family):
    name = SMALL_OF[family][0]
    arguments = few_blocks(name)
    fresh = timm.create_model(name, **arguments)
    expected = fresh.state_dict(keep_vars=True)
    model = timm.create_model(name, device='meta', **arguments).to_empty(device='cpu')
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(77)
    model.init_weights()
    assert model.state_dict().keys() == expected.keys()
    for key, value in model.state_dict().items():
        if value.numel() < 1000:
            assert value.float().mean().item() == pytest.approx(expected[key].float().mean().item(), abs=0.2), key
        else:
            assert value.std().item() == pytest.approx(expected[key].std().item(), rel=0.2), key
            assert value.mean().item() == pytest.approx(expected[key].mean().item(), abs=0.02), key
    for (key, a), (_, b) in zip(model.named_buffers(), fresh.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)


WITHOUT_BUFFERS = ('tinymim', 'clip_vit')


@pytest.mark.parametrize('family', [family for family in SMALL_OF if not family.startswith(WITHOUT_BUFFERS)])
@torch.no_grad()
def test_buffers_that_no_file_holds_are_restored(family, any_small):
    expected = any_small(img_size=SIZE)
    name, args = SMALL_OF[family]
    model = timm.create_model(name, device='meta', img_size=SIZE, **args).to_empty(device='cpu').eval()
    assert list(model.buffers())
    for tensor in model.buffers():
        tensor.fill_(0)
    model.load_state_dict(expected.state_dict())
    x = images_for(model)
    assert not torch.allclose(model(x), expected(x))
    for module in model.modules():
        if hasattr(module, 'init_non_persistent_buffers'):
            module.init_non_persistent_buffers()
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)


def leave_meta(model: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """As transformers does it: weights are assigned, all other buffers get memory that nobody has filled."""
    model.load_state_dict(state_dict, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.zeros_like(buffer, device='cpu'))


@pytest.mark.parametrize('family', [family for family in SMALL_OF if not family.startswith(WITHOUT_BUFFERS)])
@torch.no_grad()
def test_a_model_that_has_left_the_meta_device_fills_its_buffers_by_eval(family, any_small):
    """DETR of transformers takes a model out of the wrapper that would have it done."""
    expected = any_small(img_size=SIZE)
    name, args = SMALL_OF[family]
    with torch.device('meta'):
        model = timm.create_model(name, img_size=SIZE, **args).eval()
    assert any(parameter.is_meta for parameter in model.parameters())
    leave_meta(model, expected.state_dict())
    x = images_for(model)
    torch.testing.assert_close(model.eval()(x), expected(x), rtol=0, atol=0)
    for _, buffer in model.named_buffers():
        buffer.fill_(0)  # once: what a caller writes later is left alone
    assert not any(buffer.any() for buffer in model.eval().buffers())


def test_buffers_that_follow_from_the_size_are_in_no_state_dict(model):
    words = ('offset', 'idx', 'index', 'mask')
    assert [key for key in model.state_dict() if any(word in key for word in words)] == []


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_a_dtype_at_creation_reaches_everything(dtype, family):
    name, args = SMALL_OF[family]
    model = timm.create_model(name, dtype=dtype, img_size=SIZE, **args).eval()
    assert {t.dtype for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()} == {dtype}
    assert model(images_for(model, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
@torch.no_grad()
def test_half_precision_stays_close(dtype, atol, model):
    x = images_for(model)
    expected = model(x)
    torch.testing.assert_close(model.to(dtype)(x.to(dtype)).float(), expected, rtol=0, atol=atol * expected.abs().max())


@pytest.mark.parametrize('grad', [True, False])
def test_autocast_stays_close(grad, deployable):
    x = images_for(deployable)
    expected = deployable(x).detach()
    with torch.set_grad_enabled(grad), torch.autocast('cpu', torch.bfloat16):
        y = deployable(x)
    torch.testing.assert_close(y.detach().float(), expected, rtol=0, atol=0.1 * expected.abs().max().item())


@torch.no_grad()
def test_memory_format_of_the_input_does_not_matter(deployable):
    x = images_for(deployable)
    expected = deployable(x)
    torch.testing.assert_close(deployable(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(deployable(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    torch.testing.assert_close(deployable.to(memory_format=torch.channels_last)(x), expected)


def test_a_batch_may_be_empty(model):
    x, shape = images_for(model, 0), (0, model.num_classes)
    assert model(x).shape == shape
    with torch.no_grad():
        assert model(x).shape == shape


@torch.no_grad()
def test_images_of_a_batch_are_independent(model):
    x = images_for(model, batch=4)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), model(x), rtol=1e-4, atol=1e-5)


def test_several_threads_can_share_a_model(deployable):
    batches = [images_for(deployable, batch=1 + i % 3) for i in range(8)]

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return deployable(x)

    expected = [run(x) for x in batches]
    assert len(expected) == 8
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(run, batches), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_several_threads_can_train_a_model(model):
    """Each thread's gradients are its own, although they run the same layers at once."""
    batches = [images_for(model) for _ in range(4)]
    parameters = list(used_parameters(model).values())

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(model(x).square().sum(), parameters)

    expected = [run(x) for x in batches]
    assert len(expected) == 4
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(run, batches), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_train_and_eval_can_be_chained(model):
    modules = list(model.modules())
    assert len(modules) > 50
    for module in modules:
        assert module.train() is module
        assert module.eval() is module


def test_unknown_arguments_are_refused(family):
    with pytest.raises(TypeError, match='depth_multiplier'):
        timm.create_model(SMALL_OF[family][0], depth_multiplier=2)


RATES = ('drop_rate', 'pos_drop_rate', 'patch_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate')


@torch.no_grad()
def test_every_rate_that_is_accepted_acts(family, any_small):
    refused = set()
    for rate in RATES:
        try:
            model = any_small(img_size=SIZE, **{'drop_path_rate': 0.0, rate: 0.5}).train()
        except TypeError:
            refused.add(rate)
            continue
        x = images_for(model, batch=8)
        assert not torch.equal(model(x), model(x)), rate
    windows, of_beit = {'patch_drop_rate', 'pos_drop_rate'}, {'patch_drop_rate'}
    known = dict(tinyvit=windows | {'attn_drop_rate'}, mini_swin=windows, mini_deit=of_beit, mae_lite_rpe=of_beit)
    assert refused == known.get(family, set())


def test_checkpointing_changes_no_gradient(any_small):
    gradients, x = [], torch.randn(2, 3, *SIZE)
    for checkpointing in (False, True):
        model = any_small(img_size=SIZE, drop_path_rate=0.0).train()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        gradients.append({k: p.grad for k, p in used_parameters(model).items()})
    assert all(g is not None for g in gradients[0].values())
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5, msg=key)


# --- graphs


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@torch.no_grad()
def test_it_can_be_scripted_and_traced(any_small):
    for model in (any_small(img_size=SIZE, exportable=True), reparameterize_model(any_small(img_size=SIZE))):
        x = images_for(model)
        for graph in (torch.jit.script(model), torch.jit.trace(model, x)):
            torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_trace_with_gradients_enabled_gives_the_same_on_other_images(any_small):
    """In evaluation mode, as tools for other formats record a model (docs/use/coreml.md)."""
    model = any_small(img_size=SIZE)
    traced = torch.jit.trace(model, images_for(model), check_trace=False)
    x = images_for(model)
    assert traced(x).requires_grad
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_it_can_be_traced_by_fx(deployable):
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    leaves = dict(leaf_modules=list(get_notrace_modules()), autowrap_functions=list(get_notrace_functions()))
    _, names = get_graph_node_names(deployable, tracer_kwargs=leaves)
    graph = create_feature_extractor(deployable, return_nodes={names[-1]: 'y'}, tracer_kwargs=leaves)
    for batch in (1, 3):
        x = images_for(deployable, batch)
        torch.testing.assert_close(graph(x)['y'], deployable(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_torchvision_names_every_layer(model):
    """Without timm's list of leaves, as torchvision's documentation calls it."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    kinds = (nn.Conv2d, nn.LayerNorm, nn.Linear, nn.GELU)
    used = {key.rpartition('.')[0] for key in used_parameters(model)}
    layers = [
        name for name, m in model.named_modules() if type(m) in kinds and (name in used or not list(m.parameters()))
    ]
    names = [name for name in get_graph_node_names(model)[1] if name in layers]
    assert len(names) > 10
    calls, handles = [], []
    for name in layers:
        handles.append(model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name)))
    model(images_for(model))
    for handle in handles:
        handle.remove()
    assert set(names) == set(calls)
    graph = create_feature_extractor(model, {names[3]: 'early', names[-1]: 'late'})
    seen = []
    with model.get_submodule(names[3]).register_forward_hook(lambda _, args, out: seen.append(out)):
        for batch in (1, 3):
            x = images_for(model, batch)
            model(x)
            torch.testing.assert_close(graph(x)['early'], seen[0], rtol=1e-4, atol=1e-5)
            seen.clear()


# Plain models are exported and run in `test_export.py`.
of_deploy_form = pytest.mark.parametrize('deployable', rest_is_full(['plain', 'deploy'], ['deploy']), indirect=True)


@pytest.mark.slow
@of_deploy_form
@torch.no_grad()
def test_it_can_be_exported_with_an_open_batch(deployable):
    x = images_for(deployable)
    program = torch.export.export(deployable, (x,), dynamic_shapes=dict(x={0: torch.export.Dim('batch', max=64)}))
    for batch in (1, 5):
        x = images_for(deployable, batch)
        torch.testing.assert_close(program.module()(x), deployable(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@of_deploy_form
@torch.no_grad()
def test_it_runs_in_onnxruntime(deployable, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    x = images_for(deployable)
    torch.onnx.export(deployable, (x,), tmp_path / 'model.onnx', dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), deployable(x), rtol=1e-3, atol=1e-4)


def compiled(model: nn.Module, **kwargs) -> nn.Module:
    """The model as one graph, without what earlier tests compiled."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, **kwargs)


# Models with layers of our own; of folded ones TinyViT, where batch norms go. `test_it_is_one_graph_for_training` is of
# all; here a compiler of C++ takes a quarter of a minute for each.
COMPILED = [(family, 'plain') for family in ('tinyvit', 'mini_deit', 'mini_swin', 'mae_lite_rpe')]
COMPILED += [('tinyvit', 'deploy')]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('family', 'deployable'), rest_is_full(product(SMALL_OF, ['plain', 'deploy']), COMPILED), indirect=['deployable']
)
@torch.no_grad()
def test_it_compiles(deployable):
    x = images_for(deployable)
    torch.testing.assert_close(compiled(deployable)(x), deployable(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_is_one_graph_for_training(any_small):
    x = torch.randn(2, 3, *SIZE)

    def gradients(model: nn.Module, forward) -> dict[str, torch.Tensor]:
        forward(x).square().sum().backward()
        return {k: p.grad for k, p in used_parameters(model).items()}

    eager, model = any_small(img_size=SIZE).train(), any_small(img_size=SIZE).train()
    found = gradients(model, compiled(model, backend='aot_eager'))
    expected = gradients(eager, eager)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=1e-3 * scale + 1e-5, msg=key)


@torch.no_grad()
def test_it_works_under_vmap_and_autocast(model):
    x = images_for(model, batch=3)
    mapped = torch.func.vmap(lambda image: model(image[None])[0])(x)
    torch.testing.assert_close(mapped, model(x), rtol=1e-4, atol=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert model(x).dtype == reparameterize_model(model)(x).dtype == torch.bfloat16
