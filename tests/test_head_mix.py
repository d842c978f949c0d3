"""Head mixing in one kernel on CUDA: the formula, when it is taken, and the kernel in Triton's interpreter."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tinyvit_zoo.layers import (
    HeadMix,
    PerRepeat,
    RelativeKeys,
    head_mix_cuda,
    inference,
    routes,
    window_cuda,
    window_partition,
    window_reverse,
)
from tinyvit_zoo.layers.head_mix_cuda import has_attention_kernel, mix_heads_gradients, mix_heads_plain

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='needs Triton, which comes with the CUDA builds of torch'
)


# --- the formula


class ByHand(torch.autograd.Function):
    """The plain forward pass with the kernel's backward pass."""

    @staticmethod
    def forward(ctx, logits, first, first_bias, second, second_bias, position, mask):
        ctx.save_for_backward(logits, first, first_bias, second, position, mask)
        return mix_heads_plain(logits, first, first_bias, second, second_bias, position, mask)

    @staticmethod
    def backward(ctx, grad):
        logits, first, first_bias, second, position, mask = ctx.saved_tensors
        grad_logits, sums = mix_heads_gradients(grad, logits, first, first_bias, second, position, mask)
        shared = None if position is None else grad_logits.sum(0)
        biases = [None if first_bias is None else sums[k, :, -1] for k in range(2)]
        return grad_logits, sums[0, :, :-1], biases[0], sums[1, :, :-1], biases[1], shared, None


@pytest.mark.parametrize('extras', [False, True], ids=['logits', 'position, mask, biases'])
def test_the_formula_of_the_backward_pass_is_the_derivative(extras):
    random = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits, first, second = random(2, 3, 2, 7), random(3, 3), random(3, 3)
    biases, position, mask = [None, None], None, None
    if extras:
        biases, position, mask = [random(3), random(3)], random(3, 2, 7), random(2, 2, 7)
    inputs = [logits, first, biases[0], second, biases[1], position]
    inputs = [t if t is None else t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(ByHand.apply, (*inputs, mask))


def test_the_formula_is_what_the_modules_compute():
    torch.manual_seed(0)
    first, second = HeadMix(3, bias=True, dtype=torch.float64), HeadMix(3, bias=True, dtype=torch.float64)
    nn.init.normal_(first.bias)
    nn.init.normal_(second.bias)
    logits, position = torch.randn(4, 3, 5, 7, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    mask = torch.randn(2, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        masked = first(logits + position) + mask.repeat(2, 1, 1)[:, None]
        expected = second(masked.softmax(-1))
        actual = mix_heads_plain(logits, first.weight, first.bias, second.weight, second.bias, position, mask)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-15)


# --- when the kernel is taken


@pytest.fixture
def on_cuda(monkeypatch):
    """CPU tensors pass for CUDA's."""
    monkeypatch.setattr(inference, '_is_on_cuda', lambda x: True)
    monkeypatch.setattr(head_mix_cuda, '_has_triton', lambda device: True)


def mixes(heads: int = 3, dtype: torch.dtype = torch.float32) -> tuple[PerRepeat, PerRepeat]:
    first, second = (PerRepeat([HeadMix(heads, bias=True, dtype=dtype)]) for _ in range(2))
    return first, second


def takes_kernel(qkv, heads=3, dtype=torch.float32, drop=None, keys=None, mask=None, change=None) -> bool:
    first, second = mixes(heads, dtype)
    drop = nn.Dropout(0.0) if drop is None else drop
    if change is not None:
        change(first[0])
    return has_attention_kernel(qkv, first, second, 0, drop, keys, mask)


SMALL = torch.zeros(4, 5, 3, 3, 8)
"""Queries, keys and values of four images: five tokens, three heads of width 8."""


def test_no_kernel_is_taken_on_a_cpu():
    assert not takes_kernel(SMALL)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_takes_three_dtypes(on_cuda, dtype):
    keys = RelativeKeys(8, dtype=dtype)
    assert takes_kernel(SMALL.to(dtype), dtype=dtype, keys=keys, mask=torch.zeros(2, 5, 5))


@pytest.mark.parametrize(
    'arguments',
    [
        dict(qkv=SMALL.double(), dtype=torch.float64),
        dict(qkv=SMALL.bfloat16()),  # without autocast the modules refuse it
        dict(qkv=torch.zeros(1, 2, 3, 33, 2), heads=33),
        dict(qkv=torch.zeros(1, 1025, 3, 3, 1)),
        dict(qkv=torch.zeros(1, 2, 3, 3, 129)),
        dict(qkv=SMALL, heads=4),
        dict(qkv=SMALL, drop=nn.Dropout(0.1)),
        dict(qkv=SMALL, drop=nn.Identity()),
        dict(qkv=SMALL, keys=nn.Identity()),
        dict(qkv=SMALL, mask=torch.zeros(3, 5, 5)),
        dict(qkv=SMALL, mask=torch.zeros(2, 5, 6)),
        dict(qkv=SMALL, mask=torch.zeros(2, 5, 5, requires_grad=True)),
        dict(qkv=SMALL, change=lambda mix: mix.register_forward_hook(lambda *args: None)),
        dict(qkv=SMALL, change=lambda mix: nn.utils.parametrizations.weight_norm(mix)),
        dict(qkv=nn.Parameter(SMALL)),
    ],
    ids=[
        *('float64', 'another dtype', '33 heads', '1025 tokens', 'wide heads', 'other heads', 'dropout', 'no dropout'),
        *('other keys', 'other windows', 'other tokens', 'learned mask', 'hook', 'computed weight', 'subclass'),
    ],
)
def test_what_the_kernel_does_not_compute_takes_the_plain_code(on_cuda, arguments):
    assert not takes_kernel(**arguments)


def test_the_setting_plain_switches_the_kernels_off(on_cuda, monkeypatch):
    monkeypatch.setattr(routes, 'SETTING', 'plain')
    assert not takes_kernel(SMALL)
    assert not window_cuda.gathers_windows(torch.zeros(1, 8, 8, 1), (4, 4))


def test_dropout_matters_in_training_only(on_cuda):
    assert takes_kernel(SMALL, drop=nn.Dropout(0.1).eval())
    assert takes_kernel(SMALL, drop=nn.Dropout(0.0).train())


def test_under_autocast_the_queries_have_its_dtype(on_cuda):
    with torch.autocast('cpu', torch.bfloat16):
        assert takes_kernel(SMALL.bfloat16())
        assert not takes_kernel(SMALL)


def test_no_observer_misses_the_plain_code(on_cuda):
    """vmap, forward-mode differentiation, tracing and export see the operators of the modules."""
    first, second = mixes()
    taken = []

    def run(qkv):
        taken.append(has_attention_kernel(qkv, first, second, 0, nn.Dropout(0.0)))
        return qkv + 1

    run(SMALL)
    torch.vmap(run)(SMALL[None])
    torch.func.jvp(run, (SMALL,), (SMALL,))
    torch.jit.trace(run, SMALL, check_trace=False)
    assert taken == [True, False, False, False]

    class Exported(nn.Module):
        def forward(self, qkv):
            return run(qkv)

    torch.export.export(Exported(), (SMALL,))
    assert len(taken) > 4
    assert not any(taken[4:])


def test_without_triton_the_plain_code_runs(on_cuda, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(inference, '_is_on_cuda', lambda x: True)
    monkeypatch.setattr(head_mix_cuda, '_CAPABLE', {})
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    for name in ('head_mix_triton', 'mixed_attention_triton'):
        monkeypatch.delitem(sys.modules, f'tinyvit_zoo.layers.{name}', raising=False)
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert not takes_kernel(SMALL)


def test_gpus_that_triton_does_not_support_run_the_plain_code(monkeypatch):
    monkeypatch.setattr(head_mix_cuda, '_CAPABLE', {})
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    assert not head_mix_cuda._has_triton(0)


# --- shifted windows


@pytest.mark.parametrize('shift', [(3, 3), (0, 2), (1, 3)], ids=str)
def test_a_gather_is_roll_and_partition_to_the_bit(shift):
    x = torch.randn(2, 8, 12, 5, requires_grad=True)
    window, weight = (4, 6), torch.randn(2 * 4, 24, 5)
    rolled = window_partition(torch.roll(x, (-shift[0], -shift[1]), (1, 2)), window)
    there = window_cuda.gather_windows(x, window, shift)
    assert torch.equal(there, rolled)
    back = torch.roll(window_reverse(rolled, window, (2, 8, 12)), shift, (1, 2))
    returned = window_cuda.return_windows(there, window, shift, (2, 8, 12))
    assert torch.equal(returned, back)
    assert torch.equal(returned, x)
    for one, other in ((there, rolled), (returned, back)):
        grads = [torch.autograd.grad(y, x, weight.reshape(y.shape), retain_graph=True)[0] for y in (one, other)]
        assert torch.equal(*grads)


def test_windows_are_gathered_on_cuda_where_they_fit_the_map(monkeypatch):
    assert not window_cuda.gathers_windows(torch.zeros(1, 8, 8, 1), (4, 4))
    monkeypatch.setattr(inference, '_is_on_cuda', lambda x: True)
    assert window_cuda.gathers_windows(torch.zeros(1, 8, 8, 1), (4, 4))
    assert not window_cuda.gathers_windows(torch.zeros(1, 8, 9, 1), (4, 4))


def test_an_index_made_in_inference_serves_training():
    window_cuda._cells.cache_clear()
    with torch.inference_mode():
        window_cuda.gather_windows(torch.zeros(1, 4, 4, 1), (2, 2), (1, 1))
    x = torch.ones(1, 4, 4, 1, requires_grad=True)
    window_cuda.gather_windows(x, (2, 2), (1, 1)).sum().backward()
    assert torch.equal(x.grad, torch.ones(1, 4, 4, 1))


def test_an_index_made_while_a_graph_is_captured_is_not_kept(monkeypatch):
    """It has no values before the graph is replayed, and its memory ends with the graph."""
    window_cuda._cells.cache_clear()
    monkeypatch.setattr(window_cuda, 'is_capturing', lambda device: True)
    window_cuda.gather_windows(torch.zeros(1, 4, 4, 1), (2, 2), (1, 1))
    assert window_cuda._cells.cache_info().currsize == 0


# --- the kernels as machine code


COMMON = dict(POSITION=1, MASK=True, FIRST_BIAS=True)
FEW = dict(H=6, ROWS=1, COLS=256, SECOND_BIAS=True, **COMMON)
MANY = dict(H=12, TILE=16, COLS=256, ONE_TILE=False, SECOND_BIAS=True, PRECISION='tf32', **COMMON)
BACK = dict(H=6, GROUP=2, TILE=16, COLS=32, PRECISION='tf32', **COMMON)
TILES = dict(D=64, BLOCK=64, PRECISION='tf32x3')


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ('module', 'kernel', 'constants', 'warps'),
    [
        ('head_mix_triton', '_forward_few', FEW, 2),
        ('head_mix_triton', '_forward_many', MANY, 4),
        ('head_mix_triton', '_backward', BACK, 2),
        ('mixed_attention_triton', '_products', dict(SPREAD=True, **TILES), 4),
        ('mixed_attention_triton', '_sums', dict(TRANSPOSED=True, **TILES), 4),
    ],
    ids=['few heads', 'many heads', 'backward', 'products', 'sums'],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(module, kernel, constants, warps, monkeypatch, tmp_path):
    """For the oldest that is supported, in bfloat16; the shared memory is what every GPU has."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    triton = pytest.importorskip('triton', reason='needs Triton, which comes with the CUDA builds of torch')
    function = getattr(importlib.import_module(f'tinyvit_zoo.layers.{module}'), kernel)
    numbers = {'rows', 'N', 'M', 'H', 'K', 'd', 'windows', 'steps', 'tiles'}
    special = {'scale': 'fp32', 'index': '*i64', 'sums': '*fp32'}
    signature = {}
    for name in function.arg_names:
        is_number = name in numbers or name.endswith(('_offset', '_stride'))
        kind = 'constexpr' if name in constants else 'i32' if is_number else '*bf16'
        signature[name] = special.get(name, kind)
    compiled = triton.compile(
        triton.compiler.ASTSource(function, signature, constexprs=constants),
        target=triton.backends.compiler.GPUTarget('cuda', 80, 32),
        options=dict(num_warps=warps, num_stages=1),
    )
    assert compiled.asm['cubin']
    assert compiled.metadata.shared <= 48 * 1024


# --- the kernels in Triton's interpreter


@pytest.fixture(scope='module')
def interpreted() -> dict:
    """Results of `head_mix_interpreted.py`: one process, since Triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, '-W', 'ignore', HERE / 'head_mix_interpreted.py']
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_importing_the_package_defines_no_kernel(interpreted):
    assert interpreted['imported_at_once'] is False


TESTED = {
    '': 1e-6, '_bfloat16': 8e-3, '_float16': 1e-3,
    '_attention': 3e-6, '_attention_bfloat16': 1.5e-2, '_attention_float16': 1e-3,
}  # fmt: skip
"""What is compared with float64, and the largest error. (The interpreter cuts bfloat16 off instead of rounding.)"""


@needs_triton
@pytest.mark.parametrize(('what', 'bound'), TESTED.items())
def test_result_and_gradients_are_those_of_float64(interpreted, what, bound):
    errors = interpreted[f'errors{what}']
    assert len(errors) >= 5
    assert {name: error for name, error in errors.items() if not error <= bound} == {}


@needs_triton
@pytest.mark.parametrize('what', ['large_float16', 'strides', 'masked_by_infinity', 'same_bits'])
def test_the_kernel_is_sound(interpreted, what):
    """No overflow between the mixings; any strides; -inf in masks, NaN in its own row only; the same bits every run."""
    assert interpreted[what]
    assert all(interpreted[what])


@needs_triton
def test_a_position_part_may_belong_to_each_image(interpreted):
    assert len(interpreted['own_positions']) == 2 * 7
    assert max(interpreted['own_positions']) < 3e-6


@needs_triton
def test_a_batch_may_be_empty(interpreted):
    assert interpreted['empty_batch'] == [[0, 3, 2, 49], [0, 3, 2, 49], [3, 3], [3, 3]]


@needs_triton
def test_gradients_can_be_differentiated(interpreted):
    assert interpreted['second_derivative'] < 1e-5
    assert interpreted['second_derivative_of_attention'] < 1e-5


@needs_triton
def test_a_gradient_penalty_works_under_autocast(interpreted):
    assert max(interpreted['gradient_penalty_under_autocast']) < 0.03


@needs_triton
@pytest.mark.parametrize(('model', 'layers'), [('mini_deit', 4), ('mini_swin', 4), ('compiled', 4)])
def test_the_models_take_the_kernel_in_every_layer_and_give_the_same(interpreted, model, layers):
    assert interpreted[model]['calls'] == layers
    assert interpreted[model]['difference'] < 1e-5
