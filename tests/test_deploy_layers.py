"""The deploy form's layers: a kernel that fuses bias and GELU where there is one, the plain layers everywhere else."""

import pytest
import torch
from test_tinyvit_contract import operators
from torch import nn

from tinyvit_zoo.layers import ConvNorm, DeployConv2d, DeployLinear, routes
from tinyvit_zoo.layers.conv_norm import conv_act, linear_act

KERNELS = {'mkldnn::_convolution_pointwise', 'mkldnn::_linear_pointwise'}
needs_kernels = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, '_linear_pointwise') or not torch.backends.mkldnn.is_available(),
    reason='this build of torch has no fused CPU kernels',
)


@pytest.fixture(autouse=True)
def _every_layer_in_the_fused_kernel(monkeypatch):
    """As on a processor with AVX-512; the kernels themselves need less."""
    monkeypatch.setattr(routes, 'ISA', 'AVX512')


LAYERS = {
    'linear': (lambda **dd: DeployLinear(16, 24, **dd), (2, 5, 16)),
    'linear of a batch': (lambda **dd: DeployLinear(16, 24, **dd), (7, 16)),
    '1x1': (lambda **dd: DeployConv2d(8, 12, 1, **dd), (2, 8, 9, 7)),
    '3x3 stride 2': (lambda **dd: DeployConv2d(3, 8, 3, stride=2, padding=1, **dd), (2, 3, 17, 16)),
    'depthwise': (lambda **dd: DeployConv2d(8, 8, 3, padding=1, groups=8, **dd), (2, 8, 9, 7)),
}


def fused(run) -> bool:
    return bool(operators(run) & KERNELS)


def applied(layer: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The layer and its activation as the models call them."""
    return (linear_act if isinstance(layer, nn.Linear) else conv_act)(layer, act, x)


@needs_kernels
@pytest.mark.parametrize('gelu', [True, False])
@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('name', LAYERS)
@torch.no_grad()
def test_the_fused_kernel_equals_the_plain_layers(name, memory, gelu, monkeypatch):
    make, shape = LAYERS[name]
    layer, act, x = make(), nn.GELU() if gelu else nn.Identity(), torch.randn(shape)
    if x.ndim == 4:
        x = x.contiguous(memory_format=memory)
    with monkeypatch.context() as patch:
        patch.setattr(routes, 'SETTING', 'plain')
        assert not fused(lambda: applied(layer, act, x))
        plain = applied(layer, act, x)
    seen = operators(lambda: applied(layer, act, x))
    assert seen & KERNELS
    assert 'aten::gelu' not in seen  # inside the kernel
    torch.testing.assert_close(applied(layer, act, x), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', LAYERS)
def test_the_kernel_without_a_gradient_is_not_taken_where_one_is_needed(name):
    make, shape = LAYERS[name]
    layer, act, x = make(), nn.GELU(), torch.randn(shape, requires_grad=True)
    assert not fused(lambda: applied(layer, act, x))
    applied(layer, act, x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert layer.weight.grad.abs().sum() > 0
    assert layer.bias.grad.abs().sum() > 0


@pytest.mark.parametrize('name', LAYERS)
@torch.no_grad()
def test_the_kernel_is_not_taken_where_it_has_no_rule(name):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    expected = layer(x)

    def under_autocast() -> None:
        with torch.autocast('cpu', torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16

    assert not fused(under_autocast)
    double = make(dtype=torch.float64)
    double.load_state_dict(layer.state_dict())
    assert not fused(lambda: double(x.double()))
    torch.testing.assert_close(double(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    half = make(dtype=torch.float16)
    assert not fused(lambda: half(x.half()))
    assert half(x.half()).dtype == torch.float16
    assert layer(x[:0]).shape[1:] == expected.shape[1:]


@pytest.mark.parametrize('name', LAYERS)
@torch.no_grad()
def test_mixed_dtypes_are_refused_as_by_the_plain_layer(name):
    make, shape = LAYERS[name]
    with pytest.raises(RuntimeError, match='type'):
        make()(torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize('bias', [True, False])
def test_a_linear_layer_shares_its_parameters(bias):
    linear = nn.Linear(4, 6, bias=bias).eval()
    layer = DeployLinear.from_linear(linear)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not layer.training
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(x), linear(x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), linear(x))


def conv_norm(**kwargs) -> ConvNorm:
    layer = ConvNorm(8, 8, 3, groups=8, **kwargs).eval()
    for tensor in (layer.bn.running_mean, layer.bn.bias):
        tensor.data.normal_()
    for tensor in (layer.bn.running_var, layer.bn.weight):
        tensor.data.uniform_(0.5, 2)
    return layer


@needs_kernels
@pytest.mark.parametrize(('act', 'joins'), [(nn.GELU(), True), (nn.GELU('tanh'), False), (nn.ReLU(), False)], ids=str)
@torch.no_grad()
def test_only_the_exact_gelu_joins_the_kernel(act, joins):
    for layer in (conv_norm().fuse(), DeployLinear(7, 7)):
        x = torch.randn(2, 8, 9, 7)
        seen = operators(lambda: applied(layer, act, x))  # noqa: B023  called at once
        assert seen & KERNELS
        assert ({'aten::gelu', 'aten::gelu_', 'aten::relu'} & seen == set()) is joins
        torch.testing.assert_close(applied(layer, act, x), act(layer(x)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_folding_keeps_mode_dtype_and_geometry():
    layer = ConvNorm(4, 6, 3, stride=2, dtype=torch.float64).train()
    folded = layer.fuse()
    assert folded.training
    assert (folded.stride, folded.padding, folded.groups) == ((2, 2), (1, 1), 1)
    assert folded.weight.dtype == folded.bias.dtype == torch.float64
    assert not conv_norm().fuse().training


@pytest.mark.parametrize('grad', [True, False])
def test_a_norm_that_trains_keeps_its_statistics(grad):
    layer, x = conv_norm().train(), torch.randn(4, 8, 5, 5)
    before = layer.bn.running_mean.clone()
    with torch.set_grad_enabled(grad):
        y = layer(x)
    assert not torch.equal(layer.bn.running_mean, before)
    torch.testing.assert_close(y.mean((0, 2, 3)), layer.bn.bias.detach(), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_evaluation_equals_convolution_then_norm():
    layer, x = conv_norm(), torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(layer(x), layer.bn(layer.conv(x)), rtol=1e-4, atol=1e-5)
    layer.bn = nn.Identity()  # any replacement of the norm is used
    torch.testing.assert_close(layer(x), layer.conv(x))


@torch.no_grad()
def test_hooks_on_the_norm_are_called():
    layer, seen = conv_norm(), []
    layer.bn.register_forward_hook(lambda *args: seen.append('bn'))
    layer.conv.register_forward_hook(lambda *args: seen.append('conv'))
    layer(torch.randn(1, 8, 5, 5))
    assert seen == ['conv', 'bn']
