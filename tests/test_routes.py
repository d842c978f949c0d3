"""Which kernel a layer takes on which processor, and TinyViT's front a few images at a time: structure, never time."""

import importlib.util
import itertools
import json
import random
import sys

import pytest
import timm
import torch
from conftest import images_for, refused
from test_deploy_layers import needs_kernels
from test_tinyvit_contract import operators
from timm.models import reparameterize_model
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.layers import DeployConv2d, DeployLinear, routes
from tinyvit_zoo.layers.conv_norm import conv_act, linear_act
from tinyvit_zoo.layers.routes import KINDS, route
from tinyvit_zoo.models import tinyvit

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DEPLOY = ('linear', 'conv1x1', 'depthwise', 'conv')


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def routes_on(device: str, dtype: torch.dtype, isa: str, threads: int = 1, rows: int = 49) -> dict[str, str]:
    """The route of each kind; the same with GELU and without."""
    found = {
        kind: {route(kind, device, dtype, isa, threads, rows, 96, 384, gelu) for gelu in (True, False)}
        for kind in KINDS
    }
    assert all(len(taken) == 1 for taken in found.values())
    return {kind: taken.pop() for kind, taken in found.items()}


WIDE = 56 * 56  # rows of a map from which the kernel with GELU inside is the faster one on AVX2, too


@pytest.mark.parametrize('rows', [1, 49, WIDE - 1, WIDE, 25088])
@pytest.mark.parametrize('threads', [1, 2])
def test_the_table_has_the_processors_that_were_measured(threads, rows):
    folded = {'folded1x1': 'linear' if threads == 1 else 'plain'}
    onednn = dict.fromkeys(DEPLOY, 'onednn')
    assert routes_on('cpu', F32, 'AVX512', threads, rows) == onednn | folded
    assert routes_on('cpu', BF16, 'AVX512', threads, rows) == onednn | {'folded1x1': 'plain'}
    narrow = {'linear': 'linear', 'conv1x1': 'onednn' if rows >= WIDE else 'linear'}
    assert routes_on('cpu', F32, 'AVX2', threads, rows) == onednn | narrow | folded
    cuda = {'linear': 'linear', 'conv1x1': 'linear', 'depthwise': 'triton', 'conv': 'triton', 'folded1x1': 'plain'}
    for dtype in (F32, BF16, F16):
        assert routes_on('cuda', dtype, 'AVX2', threads, rows) == cuda


def test_everything_else_is_plain():
    others = [('cpu', dtype, isa) for isa in ('DEFAULT', 'NO AVX', 'SVE256', 'VSX') for dtype in (F32, BF16)]
    others += [('cpu', BF16, 'AVX2'), ('cpu', F16, 'AVX2'), ('cpu', F16, 'AVX512'), ('cpu', F64, 'AVX512')]
    others += [(device, F32, 'AVX512') for device in ('mps', 'rocm', 'xpu', 'meta')] + [('cuda', F64, 'AVX512')]
    for device, dtype, isa in others:
        assert set(routes_on(device, dtype, isa).values()) == {'plain'}, (device, dtype, isa)
    assert route('linear', 'cpu', F32, 'AVX512', 1, 0, 96, 384, False) == 'plain'


# --- the operators of one forward pass


def seen_in(model: nn.Module, x: torch.Tensor) -> set[str]:
    with torch.inference_mode():
        return operators(lambda: model(x))


@needs_kernels
@pytest.mark.parametrize('isa', ['AVX2', 'AVX512'])
def test_a_forward_pass_runs_the_kernels_of_its_processor(isa, small, monkeypatch):
    monkeypatch.setattr(routes, 'ISA', isa)
    model = small()
    x = images_for(model)
    created, deploy = seen_in(model, x), seen_in(reparameterize_model(model), x)
    for seen in (created, deploy):
        assert not [name for name in seen if '_slow_conv2d_forward' in name]
        assert not [name for name in seen if '_scaled_dot_product_attention_math' in name]
    assert not {'mkldnn::_linear_pointwise', 'mkldnn::_convolution_pointwise'} & created
    assert 'mkldnn::_convolution_pointwise' in deploy
    assert ('mkldnn::_linear_pointwise' in deploy) is (isa == 'AVX512')
    assert 'aten::conv2d' not in deploy


def test_with_several_threads_torch_convolves_by_itself(small):
    model = small()
    torch.set_num_threads(2)
    with routes.recorded() as choices:
        seen_in(model, images_for(model))
    assert {taken for _, taken in choices} == {'plain'}
    assert {choice.kind for choice, _ in choices} == {'folded1x1'}


LAYERS = {
    'linear': (lambda: DeployLinear(16, 24), (2, 5, 16)),
    'conv1x1': (lambda: DeployConv2d(8, 12, 1), (2, 8, 9, 7)),
    'depthwise': (lambda: DeployConv2d(8, 8, 3, padding=1, groups=8), (2, 8, 9, 7)),
    'conv': (lambda: DeployConv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 7)),
}


def applied(layer: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (linear_act if isinstance(layer, nn.Linear) else conv_act)(layer, act, x)


@needs_kernels
@pytest.mark.parametrize('isa', ['AVX2', 'AVX512', 'SVE256'])
@pytest.mark.parametrize('kind', LAYERS)
@torch.no_grad()
def test_every_route_of_a_layer_gives_the_same(kind, isa, monkeypatch):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    monkeypatch.setattr(routes, 'ISA', isa)
    for act in (nn.GELU(), nn.Identity()):
        with routes.recorded() as choices:
            result = applied(layer, act, x)
        assert [(c.kind, taken) for c, taken in choices] == [(kind, route(kind, 'cpu', F32, isa, 1, 1, 1, 1, False))]
        expected = act(type(layer).__bases__[0].forward(layer, x))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        assert result.stride() == expected.stride()
    assert torch.equal(x, before)


@torch.no_grad()
def test_a_map_in_another_memory_format_is_not_copied_for_a_product(monkeypatch):
    monkeypatch.setattr(routes, 'ISA', 'AVX2')
    layer, x = DeployConv2d(8, 12, 1), torch.randn(2, 8, 9, 7)
    assert layer.route_of(x, False) == 'plain'
    assert layer.route_of(x.contiguous(memory_format=torch.channels_last), False) == 'linear'


def test_a_layer_that_learns_has_no_route(monkeypatch):
    monkeypatch.setattr(routes, 'ISA', 'AVX2')
    assert DeployLinear(4, 3).route_of(torch.randn(2, 4), True) is None


# --- the environment variable


@pytest.mark.parametrize('value', ['table', 'measure', 'plain', 'fast', None])
def test_the_environment_variable_is_read(value, monkeypatch):
    if value is None:
        monkeypatch.delenv('TINYVIT_ZOO_ROUTES', raising=False)
    else:
        monkeypatch.setenv('TINYVIT_ZOO_ROUTES', value)
    spec = importlib.util.spec_from_file_location('tinyvit_zoo.layers.routes_again', routes.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)  # where dataclasses look their module up
    spec.loader.exec_module(again)
    assert (value or 'table') == again.SETTING
    if value == 'fast':
        refused(again.check_setting, "TINYVIT_ZOO_ROUTES must be table, measure or plain, not 'fast'", kind=ModelError)
    else:
        again.check_setting()


@torch.no_grad()
def test_an_unknown_setting_is_one_error(cli, monkeypatch):
    monkeypatch.setattr(routes, 'SETTING', 'fast')
    refused(lambda: DeployLinear(4, 3)(torch.randn(2, 4)), 'must be table, measure or plain', kind=ModelError)
    refused(lambda: timm.create_model('tinyvit_5m_224'), 'must be table, measure or plain', kind=ModelError)
    code, _, err = cli('bench', 'test_vit')
    assert code
    assert 'must be table, measure or plain' in err


def test_plain_switches_every_kernel_off(small, monkeypatch):
    model = small()
    x = images_for(model)
    expected = model(x).detach()
    monkeypatch.setattr(routes, 'SETTING', 'plain')
    for each in (model, reparameterize_model(model)):
        assert not [name for name in seen_in(each, x) if name.startswith('mkldnn::')]
        with torch.no_grad():
            torch.testing.assert_close(each(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.fixture
def measuring(monkeypatch):
    """The setting `measure` in a process that has measured nothing; a list of the candidates that are run."""
    monkeypatch.setattr(routes, 'SETTING', 'measure')
    monkeypatch.setattr(routes, '_measured', {})
    monkeypatch.setattr(routes, '_seconds', {'spent': 0.0, 'longest call': 0.0})
    return []


def chosen(kind: str, run, rows: int = 10) -> str:
    return routes.choose(kind, torch.empty(rows, 4), rows, 4, 3, False, run)


def test_measure_times_the_candidates_of_a_shape_once_and_keeps_the_fastest(measuring, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(routes.time, 'perf_counter', lambda: clock[0])

    def run(taken: str) -> None:
        measuring.append(taken)
        clock[0] += {'linear': 0.003, 'onednn': 0.002, 'plain': 0.001}[taken]

    assert [chosen('conv1x1', run) for _ in range(3)] == ['plain'] * 3
    assert {taken: measuring.count(taken) for taken in measuring} == dict.fromkeys(('linear', 'onednn', 'plain'), 4)
    measuring.clear()
    assert chosen('linear', run) == 'onednn'
    assert chosen('linear', run, rows=11) == 'onednn'  # another shape
    assert 'plain' not in measuring  # the same as `linear`


def test_measure_stops_after_a_second_and_goes_by_the_table(measuring, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(routes.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(routes, 'ISA', 'AVX2')

    def run(taken: str) -> None:
        measuring.append(taken)
        clock[0] += 0.3 if taken == 'linear' else 0.2

    assert chosen('linear', run) == 'linear'
    assert clock[0] <= 1
    count = len(measuring)
    assert {chosen('linear', run, rows) for rows in range(20, 40)} == {'linear'}
    assert clock[0] <= 1
    assert len(measuring) <= count + 1


def test_measured_routes_give_the_same(small, measuring, monkeypatch):
    times = itertools.count()
    draw = random.Random(0)  # any of the candidates is the fastest one
    monkeypatch.setattr(routes.time, 'perf_counter', lambda: 1e-3 * (next(times) + draw.random()))
    model = small()
    x = images_for(model)
    expected = model(x).detach()
    for each in (model, reparameterize_model(model)):
        with torch.no_grad():
            torch.testing.assert_close(each(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert {choice.kind for choice in routes._measured} == set(KINDS)
    assert len(set(routes._measured.values())) > 1


# --- the front of TinyViT, a few images at a time


@pytest.fixture
def front(small, monkeypatch):
    """A small model, and the images of each call of the first layer of its stem, stage 0 and merges."""
    model, calls = small(depths=(1, 1, 1, 1)), {}
    names = {id(module): name for name, module in model.named_modules()}

    def noting(conv: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.setdefault(names.get(id(conv)), []).append(x.shape[0])
        return conv_act(conv, act, x)

    monkeypatch.setattr(tinyvit, 'conv_act', noting)  # a hook would be noticed, and the batch kept whole
    return model, calls


FRONT = ('patch_embed.conv1', 'stages.0.blocks.0.conv1', 'stages.1.downsample.conv1')
LATER = ('stages.2.downsample.conv1', 'stages.3.downsample.conv1')


def test_with_one_thread_the_front_runs_two_images_at_a_time(front):
    model, calls = front
    with torch.inference_mode():
        model(images_for(model, 8))
    assert {name: calls[name] for name in FRONT} == {name: [2, 2, 2, 2] for name in FRONT}
    assert {name: calls[name] for name in LATER} == {name: [8] for name in LATER}


@pytest.mark.parametrize('batch', [1, 2, 3, 8])
def test_parts_of_a_batch_give_the_same_as_the_whole(batch, small, monkeypatch):
    model = small()
    x = images_for(model, batch)
    for each in (model, reparameterize_model(model)):
        with torch.inference_mode():
            in_parts, features = each(x), each.forward_features(x)
            monkeypatch.setattr(tinyvit, 'FRONT_IMAGES', batch)
            whole, whole_features = each(x), each.forward_features(x)
            monkeypatch.undo()
        torch.testing.assert_close(in_parts, whole, rtol=0, atol=1e-6 * whole.abs().max().item())
        torch.testing.assert_close(features, whole_features, rtol=0, atol=1e-6 * whole_features.abs().max().item())
        assert features.stride() == whole_features.stride()


def trained(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model.train()(x)


def recorded_by_fx(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        make_fx(model)(x)


def exported(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.export.export(model, (x,))


def hooked(model: nn.Module, x: torch.Tensor) -> None:
    for part in (model.patch_embed.conv2, model.stages[0].blocks[0].conv2, model.stages[1].downsample.conv2):
        part.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model(x)


def on_two_threads(model: nn.Module, x: torch.Tensor) -> None:
    torch.set_num_threads(2)
    with torch.no_grad():
        model(x)


@pytest.mark.parametrize('way', [nn.Module.__call__, trained, recorded_by_fx, exported, hooked, on_two_threads])
def test_the_batch_stays_whole_where_parts_would_be_noticed(way, front):
    """With autograd, in training mode, in a graph, with hooks inside; and with several threads on a large map."""
    model, calls = front
    way(model, images_for(model, 4))
    assert calls[FRONT[0]]
    assert {name: set(calls[name]) for name in FRONT} == {name: {4} for name in FRONT}


def test_hooks_on_one_part_leave_the_others_in_parts(front):
    model, calls = front
    model.stages[0].blocks[0].conv3.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model(images_for(model, 4))
    assert [calls[name] for name in FRONT] == [[2, 2], [4], [2, 2]]


@pytest.mark.parametrize('name', ['stages.0', 'stages.0.blocks.0', 'stages.1.downsample'])
def test_a_hook_on_a_part_sees_the_batch_whole_and_leaves_its_inside_in_parts(front, name):
    model, calls = front
    seen = []
    model.get_submodule(name).register_forward_hook(lambda module, args, out: seen.append((len(args[0]), len(out))))
    with torch.no_grad():
        model(images_for(model, 4))
    assert seen == [(4, 4)]
    assert [calls[name] for name in FRONT] == [[2, 2]] * 3


# --- the command


def test_the_command_prints_the_choices(cli, monkeypatch):
    monkeypatch.setattr(routes, 'ISA', 'AVX512')
    words = ('bench', 'tinyvit_5m_224', '-b', '3', '--img-size', '64', '--routes')
    code, out, _ = cli(*words, '--json')
    assert code == 0
    lines = json.loads(out)
    assert {line['form'] for line in lines} == {'created', 'deploy'}
    assert {line['kind'] for line in lines if line['form'] == 'deploy'} == set(DEPLOY)
    code, out, _ = cli(*words)
    assert code == 0
    assert 'AVX512, TINYVIT_ZOO_ROUTES=table' in out
    assert len([line for line in out.splitlines() if line.endswith(tuple(routes.ROUTES))]) >= len(lines)
