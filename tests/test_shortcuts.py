"""Whatever is put in the place of a layer, around it or on it is called, once, with the whole batch; see
`layers/inference.py`.

Each test compares a model in plain inference, where shortcuts are taken, with the same under autograd, where there are
none.
"""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from conftest import images_for, small_of
from timm.models import reparameterize_model
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tinyvit_zoo.layers import DeployConv2d, DeployLinear, conv_norm, deploy, inference, routes

SIZE = (64, 32)
BATCH = 3
SHORTCUTS = {'aten::gelu_', 'mkldnn::_convolution_pointwise', 'mkldnn::_linear_pointwise'}


@pytest.fixture(autouse=True)
def _every_activation_is_large(monkeypatch):
    monkeypatch.setattr(conv_norm, 'LARGE', 1)


@pytest.fixture(autouse=True)
def _sub_batches_of_one_image(monkeypatch):
    monkeypatch.setattr(inference, 'SUB_BATCH_TOKENS', 8)


@pytest.fixture(autouse=True)
def _routes_of_avx_512(monkeypatch):
    """The most special kernels, whatever the processor."""
    monkeypatch.setattr(routes, 'ISA', 'AVX512')


def small(family: str) -> nn.Module:
    """A small model of a family, with as few blocks as have every kind of layer."""
    fewer = dict(mini_swin=dict(depths=(2, 2), num_heads=(1, 2)), tinyvit=dict(depths=(1, 1, 1, 1)))
    return small_of(family, img_size=SIZE, **fewer.get(family, {'depth': 2}))


@pytest.fixture(params=['plain', 'deploy'])
def model(request, family) -> nn.Module:
    """A small model of every family in turn, as created and in deploy form."""
    return small(family) if request.param == 'plain' else reparameterize_model(small(family))


# One of each way to compute: batch norms and bias tables, head mixing in parts, timm's blocks.
of_each_way = pytest.mark.parametrize('family', ['tinyvit', 'mini_deit', 'tinymim'])


def operators(model: nn.Module, x: torch.Tensor) -> Counter:
    """How often each operator runs in inference."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        model(x)
    return Counter({event.key: event.count for event in profiler.key_averages()})


def same_without_autograd(model: nn.Module, x: torch.Tensor) -> None:
    expected = model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# --- what is put on a layer


def on_the_instance(module: nn.Module, note: Callable) -> None:
    old = module.forward

    def forward(x, *args, **kwargs):
        note(x)
        return old(x, *args, **kwargs)

    module.forward = forward


def as_accelerate(module: nn.Module, note: Callable) -> None:
    """A partial of a function of the module, with the attributes of the old `forward`."""
    old = module.forward

    def forward(module, x, *args, **kwargs):
        note(x)
        return old(x, *args, **kwargs)

    module.forward = functools.update_wrapper(functools.partial(forward, module), old)


def as_a_subclass(module: nn.Module, note: Callable) -> None:
    kind = type(module)

    def forward(self, x, *args, **kwargs):
        note(x)
        return kind.forward(self, x, *args, **kwargs)

    module.__class__ = type(f'Noting{kind.__name__}', (kind,), {'forward': forward})


def below_the_call(module: nn.Module, note: Callable) -> None:
    old = module._call_impl

    def call(x, *args, **kwargs):
        note(x)
        return old(x, *args, **kwargs)

    module._call_impl = call


def compiled(module: nn.Module, note: Callable) -> None:
    """What `module.compile()` leaves behind."""
    old = module._call_impl

    def call(x, *args, **kwargs):
        note(x)
        return old(x, *args, **kwargs)

    module._compiled_call_impl = call


def pre_hook(module: nn.Module, note: Callable) -> None:
    module.register_forward_pre_hook(lambda _, args, kwargs: note(args[0]), with_kwargs=True)


def hook(module: nn.Module, note: Callable) -> None:
    module.register_forward_hook(lambda _, args, kwargs, out: note(args[0]), with_kwargs=True, always_call=True)


OTHER_WAYS = [as_accelerate, as_a_subclass, below_the_call, compiled, pre_hook, hook]


def of_kind(model: nn.Module) -> dict[type, list[str]]:
    """Names of the modules of each class, but the model and containers."""
    kinds: dict[type, list[str]] = {}
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList | nn.Sequential):
            kinds.setdefault(type(module), []).append(name)
    return kinds


@pytest.mark.filterwarnings('ignore:.*call_impl.*')
def test_layers_of_each_kind_are_called_as_under_autograd(model):
    """All layers of one class are changed, the others are not, so each shortcut meets each of its parts changed.

    Each class with a `forward` on the instance, and with another of the ways in turn.
    """
    x, tried = images_for(model, BATCH), 0
    for i, (kind, names) in enumerate(of_kind(model).items()):
        for way in (on_the_instance, OTHER_WAYS[i % len(OTHER_WAYS)]):
            changed, calls = copy.deepcopy(model), []
            for name in names:
                way(changed.get_submodule(name), lambda x, name=name: calls.append((name, x.shape[0])))  # noqa: B023
            expected = changed(x).detach()
            whole, calls[:] = list(calls), []
            with torch.no_grad():
                torch.testing.assert_close(changed(x), expected, rtol=1e-3, atol=1e-4)
            assert calls == whole, (kind.__name__, way.__name__)
            tried += bool(whole)
    assert tried > 8


def has_deploy_layers(model: nn.Module) -> bool:
    return bool(deploy.ONEDNN_DTYPES) and any(type(m) is DeployLinear for m in model.modules())


@torch.no_grad()
def test_shortcuts_are_taken_where_nobody_looks(family, model):
    """Else the other tests here would compare nothing."""
    x = images_for(model, BATCH)
    seen, of_one_image = operators(model, x), operators(model, x[:1])
    taken = {
        'kernel': seen['mkldnn::_linear_pointwise'] > 3,
        'in place': seen['aten::gelu_'] > 0,
        'in parts': seen['aten::softmax'] > of_one_image['aten::softmax'],
    }
    ours = family in ('tinyvit', 'mini_deit', 'mini_swin')
    assert taken == {
        'kernel': has_deploy_layers(model),
        'in place': ours and (family == 'tinyvit' or not has_deploy_layers(model)),
        'in parts': family in ('mini_deit', 'mini_swin'),
    }


def test_a_forward_that_was_put_back_is_no_replacement():
    """accelerate leaves the bound method on the instance when it removes its hooks."""
    layer = nn.Linear(3, 3)
    layer.forward = layer.forward
    assert inference.is_untouched(layer, nn.Linear)
    layer.forward = nn.Linear(3, 3).forward  # of another layer
    assert not inference.is_untouched(layer, nn.Linear)


@pytest.mark.parametrize('kind', [nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.GELU], ids=lambda kind: kind.__name__)
def test_a_forward_put_on_the_class_is_called(kind, monkeypatch):
    model = reparameterize_model(small('tinyvit')) if kind is nn.GELU else small('tinyvit')
    x, calls, old = images_for(model, BATCH), [], kind.forward
    monkeypatch.setattr(kind, 'forward', lambda self, x: (calls.append(x.shape[0]), old(self, x))[1])
    model(x)
    whole, calls[:] = list(calls), []
    with torch.no_grad():
        model(x)
    assert calls == whole != []


@pytest.mark.parametrize('name', ['linear', 'conv2d', 'batch_norm', 'gelu'])
def test_a_function_put_in_place_of_torchs_is_called(name, monkeypatch):
    """As profilers do that count operations."""
    model = small('tinyvit')
    models = [model] if name == 'batch_norm' else [model, reparameterize_model(model)]
    x, calls, old = images_for(model, BATCH), [], getattr(F, name)
    monkeypatch.setattr(F, name, lambda *args, **kwargs: (calls.append(name), old(*args, **kwargs))[1])
    for model in models:
        calls.clear()
        model(x)
        whole, calls[:] = list(calls), []
        with torch.no_grad():
            model(x)
        assert calls == whole != []


class _Counted(TorchFunctionMode):
    """Counts calls of functions of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls[getattr(function, '__name__', '')] += 1
        return function(*args, **(kwargs or {}))


@of_each_way
def test_modes_see_every_operation(model):
    x, flops, calls = images_for(model, BATCH), [], []
    for grad in (True, False):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            model(x)
        flops.append(counter.get_flop_counts()['Global'])
        with torch.set_grad_enabled(grad), _Counted() as counted:
            model(x)
        calls.append([counted.calls[name] for name in ('linear', 'conv2d', 'gelu', 'batch_norm', 'softmax')])
    assert sum(flops[0].values()) == sum(flops[1].values()) > 0
    assert calls[0][:4] == calls[1][:4]
    assert calls[0][0] > 4


def both_ways(record: Callable[[], list[str]]) -> tuple[list[str], list[str]]:
    """What is recorded with autograd and without."""
    with torch.no_grad():
        return record(), torch.enable_grad()(record)()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_trace_does_not_depend_on_autograd(model):
    """As documentation has it (OpenVINO's too), with autograd on; torch then runs it again without, and compares."""
    x = images_for(model, BATCH)

    def record() -> list[str]:
        trace = torch.jit.trace(model, x, check_trace=torch.is_grad_enabled())
        torch.testing.assert_close(trace(x), model(x), rtol=1e-4, atol=1e-5)
        return [node.kind() for node in trace.inlined_graph.nodes()]

    without, with_grad = both_ways(record)
    assert without == with_grad
    assert len(without) > 50


@pytest.mark.parametrize(
    ('layer', 'shape'), [(lambda: DeployLinear(4, 3), (2, 4)), (lambda: DeployConv2d(4, 3, 1), (2, 4, 5, 5))]
)
def test_a_trace_of_a_deploy_layer_is_that_of_the_plain_one(layer, shape):
    layer = layer()
    plain = copy.deepcopy(layer)
    plain.__class__ = type(layer).__bases__[0]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            kinds = [
                [node.kind() for node in torch.jit.trace(each, torch.randn(shape)).inlined_graph.nodes()]
                for each in (layer, plain)
            ]
        assert kinds[0] == kinds[1]


@pytest.mark.slow
@of_each_way
def test_an_exported_graph_does_not_depend_on_autograd(model):
    x = images_for(model, BATCH)
    without, with_grad = both_ways(lambda: [str(node.target) for node in torch.export.export(model, (x,)).graph.nodes])
    assert without == with_grad
    assert len(without) > 50


@of_each_way
@torch.no_grad()
def test_a_recorded_graph_has_no_shortcut(model):
    x = images_for(model, BATCH)
    graph = make_fx(model)(x)
    names = {str(node.target) for node in graph.graph.nodes}
    assert not any('mkldnn' in name or 'gelu_' in name for name in names)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


@of_each_way
@torch.no_grad()
def test_a_default_device_is_no_observer(model):
    x = images_for(model, BATCH)
    expected = operators(model, x)
    with torch.device('cpu'):
        seen = operators(model, x)
    assert {name: seen[name] for name in SHORTCUTS} == {name: expected[name] for name in SHORTCUTS}


@torch.no_grad()
def test_an_ensemble_can_be_mapped_over_its_weights(family):
    models = [small(family) for _ in range(2)]
    for parameter in models[1].parameters():
        parameter.mul_(1.1)
    for formed in (models, [reparameterize_model(model) for model in models]):
        x = images_for(formed[0], BATCH)
        call = functools.partial(torch.func.functional_call, formed[0], args=(x,))
        results = torch.func.vmap(call)(torch.func.stack_module_state(formed))
        expected = torch.stack([model(x) for model in formed])
        torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('family', ['mini_deit', 'mini_swin'])
@torch.no_grad()
def test_a_table_alone_can_be_mapped_over(family):
    model = small(family)
    x = images_for(model, BATCH)
    key = next(key for key in model.state_dict() if 'table' in key)
    tables = torch.stack([model.state_dict()[key] * k for k in (1, 2)])
    results = torch.func.vmap(lambda table: torch.func.functional_call(model, {key: table}, (x,)))(tables)
    torch.testing.assert_close(results[0], model(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(results[0], results[1])


@pytest.mark.parametrize('family', ['mini_deit', 'mini_swin'])  # torch has no such rule for its fused attention
@torch.no_grad()
def test_forward_mode_differentiation_goes_through(model):
    """`torch.no_grad` does not switch it off."""
    model, x = model.double(), images_for(model, BATCH).double()
    direction = torch.randn_like(x)
    expected = (model(x + 1e-6 * direction) - model(x - 1e-6 * direction)) / 2e-6
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent
        torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-6)


# --- what is put in a layer


class _Scaled(torch.Tensor):
    """A weight that stands for twice its numbers."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            args = [2 * a.as_subclass(torch.Tensor) if isinstance(a, _Scaled) else a for a in args]
            return function(*args, **(kwargs or {}))


def test_a_weight_of_another_class_takes_part_itself(model):
    x = images_for(model, BATCH)
    for kind in (nn.Linear, nn.Conv2d, nn.BatchNorm2d):
        changed = copy.deepcopy(model)
        for layer in [m for m in changed.modules() if isinstance(m, kind)]:
            layer._parameters['weight'] = layer.weight.detach().as_subclass(_Scaled)
        same_without_autograd(changed, x)


@pytest.mark.parametrize('change', ['training', 'statistics of the batch'])
def test_images_that_depend_on_each_other_stay_together(change):
    """A norm in training mode inside a model in evaluation, or one without running statistics, mixes the images."""
    model = small('mini_swin')
    for block in model.stages[0].blocks:
        for norm in block.local_conv:
            norms = nn.BatchNorm2d(norm.out_channels, track_running_stats=change == 'training')
            norm.register_module('mixed', norms.train(change == 'training'))
            norm.forward = functools.partial(lambda layer, x: layer.mixed(nn.Conv2d.forward(layer, x)), norm)
    x = images_for(model, 5)
    same_without_autograd(model, x)


def test_offloaded_weights_are_not_read(family):
    """Without accelerate: on the meta device until the layer's own `forward` fetches them."""
    model = small(family)
    x = images_for(model, BATCH)
    expected = model(x).detach()
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm)]:
        tensors = dict(layer.state_dict())
        layer.forward = functools.partial(_fetched, layer, type(layer).forward, tensors)
        layer.to('meta')
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def _fetched(layer: nn.Module, forward: Callable, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(_Bound(layer, forward), {f'layer.{k}': v for k, v in tensors.items()}, (x,))


class _Bound(nn.Module):
    """A layer with a forward of its class, whatever is on the instance."""

    def __init__(self, layer: nn.Module, forward: Callable) -> None:
        super().__init__()
        self.layer, self.function = layer, forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer, x)


# --- visualisation


@contextmanager
def gradcam(layer: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The two hooks of Grad-CAM's usual implementation: one keeps the output, and one on it keeps its gradient."""
    kept: dict[str, torch.Tensor] = {}

    def keep_gradient(_, args, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: kept.update(gradient=grad.detach().clone()))

    handles = [
        layer.register_forward_hook(lambda _, args, output: kept.update(activation=output.detach())),
        layer.register_forward_hook(keep_gradient),
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def test_class_activation_maps_are_those_of_the_layer(family):
    model = small(family)
    x = images_for(model, BATCH)
    tried = 0
    for kind, names in of_kind(model).items():
        layer = model.get_submodule(names[-1])
        with gradcam(layer) as kept:
            model(x)[:, 0].sum().backward()
            if 'gradient' not in kept:  # not part of the forward pass, or without gradient
                continue
            expected = dict(kept)
            with torch.no_grad():
                model(x)
        torch.testing.assert_close(kept['activation'], expected['activation'], rtol=1e-3, atol=1e-4, msg=kind.__name__)
        assert expected['gradient'].shape == expected['activation'].shape
        tried += 1
    assert tried > 3
