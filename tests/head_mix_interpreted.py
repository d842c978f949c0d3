"""Everything that runs the kernel of head mixing in Triton's interpreter: one process, one JSON object on stdout.

`test_head_mix.py` starts it with TRITON_INTERPRET=1, which Triton reads when a kernel is defined.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
import triton.language as tl
from conftest import SMALL_OF, imported_benchmark
from torch import nn
from triton.runtime import interpreter

from tinyvit_zoo.layers import HeadMix, head_mix_cuda, irpe_index, window_cuda

RESULTS: dict[str, object] = {'imported_at_once': 'tinyvit_zoo.layers.head_mix_triton' in sys.modules}

with imported_benchmark('head_mix') as benchmark:
    make_inputs, check_head_mix, check_attention = (
        benchmark.make_inputs, benchmark.check_head_mix, benchmark.check_attention,
    )  # fmt: skip

FEW, MANY, TWO_TILES = (3, 49), (12, 49), (12, 300)


def record(run: Callable[[], object]) -> None:
    RESULTS[run.__name__] = run()


def kernel(inputs: dict) -> torch.Tensor:
    return torch.ops.tinyvit_zoo.mix_heads(*inputs.values())


def gradients(inputs: dict, function: Callable = kernel) -> list[torch.Tensor]:
    leaves = {k: v if v is None or k == 'mask' else v.clone().requires_grad_() for k, v in inputs.items()}
    result = function(leaves)
    wanted = [v for v in leaves.values() if v is not None and v.requires_grad]
    return [result, *torch.autograd.grad(result.sin().sum(), wanted)]


def _yes(x: torch.Tensor) -> bool:  # no mock: torch.compile reads them
    return True


def _hopper(device: int) -> tuple[int, int]:
    return 9, 0


@contextmanager
def kernels_on_cpu() -> Iterator[mock.Mock]:
    """The models take the CPU for a GPU; the mock counts the kernels that start."""
    assert head_mix_cuda.load_operators()
    operators = sys.modules['tinyvit_zoo.layers.head_mix_triton']
    with (
        mock.patch.object(head_mix_cuda, 'is_plain_cuda', _yes),
        mock.patch.object(window_cuda, 'is_plain_cuda', _yes),
        mock.patch.object(torch.cuda, 'get_device_capability', _hopper),
        mock.patch.object(operators, 'wrap_triton', side_effect=operators.wrap_triton) as started,
    ):
        yield started


def small_model(family: str) -> tuple[nn.Module, torch.Tensor]:
    name, kwargs = SMALL_OF[family]
    sizes = (
        dict(img_size=64, window_size=4, depths=(2, 2), num_heads=(1, 2))
        if family == 'mini_swin'
        else dict(img_size=64)
    )
    torch.manual_seed(0)
    model = timm.create_model(name, **{**kwargs, **sizes})
    for module in model.modules():
        if isinstance(module, HeadMix):
            module.init_identity()
            with torch.no_grad():
                module.weight += 0.2 * torch.randn_like(module.weight)
    return model, torch.randn(2, 3, 64, 64)


@record
def errors() -> dict[str, float]:
    return check_head_mix('cpu')


@record
def errors_bfloat16() -> dict[str, float]:
    return check_head_mix('cpu', torch.bfloat16, [FEW, MANY])


@record
def errors_float16() -> dict[str, float]:
    return check_head_mix('cpu', torch.float16, [FEW, MANY])


@record
def errors_attention() -> dict[str, float]:
    return check_attention('cpu', cases=[(3, (5, 14), 16, True), (3, (7, 7), 32, False)])


@record
def errors_attention_float16() -> dict[str, float]:
    return check_attention('cpu', torch.float16, [(3, (3, 3), 8, True)])


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Triton's interpreter multiplies the bits of bfloat16 numbers as integers; here as the numbers that they are."""
    create_dot = interpreter.InterpreterBuilder.create_dot

    def numbers(t: Any) -> Any:
        if t.dtype.scalar != tl.bfloat16:
            return t
        return interpreter.TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, numbers(a), numbers(b), *rest)

    with mock.patch.object(interpreter.InterpreterBuilder, 'create_dot', dot):
        yield


@record
def errors_attention_bfloat16() -> dict[str, float]:
    with bfloat16_products():
        return check_attention('cpu', torch.bfloat16, [(3, (3, 3), 8, True), (12, (3, 3), 8, False)])


@record
def large_float16() -> list[bool]:
    """Mixed logits beyond float16's 65504 are not infinities."""
    finite = []
    for case in (FEW, MANY):
        inputs = make_inputs(*case, False, dtype=torch.float16)
        inputs['logits'] *= 1e4
        inputs['first'] *= 10
        finite.append(all(bool(t.isfinite().all()) for t in (kernel(inputs), *gradients(inputs))))
    return finite


@record
def strides() -> list[bool]:
    """Inputs that are not contiguous tensors give the same bits."""
    same = []
    for case in (FEW, MANY):
        inputs = make_inputs(*case, True)
        turned = {k: None if t is None else t.mT.contiguous().mT if t.ndim > 1 else t for k, t in inputs.items()}
        expanded = inputs | dict(position=inputs['position'][:, :1].expand_as(inputs['position']))
        pairs = [(inputs, turned), (expanded, {k: v.contiguous() for k, v in expanded.items()})]
        both = [zip(gradients(one), gradients(other), strict=True) for one, other in pairs]
        same += [torch.equal(x, y) for tensors in both for x, y in tensors]
    return same


@record
def empty_batch() -> list[list[int]]:
    inputs = make_inputs(*FEW, False)
    inputs['logits'] = inputs['logits'][:0]
    return [list(t.shape) for t in gradients(inputs)]


@record
def own_positions() -> list[float]:
    """A position part of each image, and one that is the same for all but has their axis."""
    errors = []
    for images in (1, 2):
        inputs = make_inputs(*FEW, True)
        inputs['position'] = torch.randn(images, *inputs['position'].shape)
        plain = gradients(inputs, lambda leaves: head_mix_cuda.mix_heads_plain(**leaves))
        pairs = zip(gradients(inputs), plain, strict=True)
        errors += [float((x - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in pairs]
    return errors


@record
def masked_by_infinity() -> list[bool]:
    """Some keys masked by -inf: as in plain torch. All keys of a row: NaN in this row, and in no other."""
    sound = []
    for case in (FEW, MANY, TWO_TILES):
        inputs = make_inputs(*case, True)
        inputs['mask'] = torch.zeros_like(inputs['mask'])
        inputs['mask'][0, 1, : case[1] - 1] = float('-inf')
        plain = head_mix_cuda.mix_heads_plain(**inputs)
        sound.append(torch.allclose(kernel(inputs), plain, atol=1e-5))
        inputs['mask'][0, 1] = float('-inf')
        result = kernel(inputs)
        sound += [bool(result[0, :, 1].isnan().all()), torch.allclose(result[0, :, 0], plain[0, :, 0], atol=1e-5)]
        sound.append(torch.allclose(result[1], plain[1], atol=1e-5))
    return sound


@record
def same_bits() -> list[bool]:
    """The partial sums of several programs are added in the same order in every run."""
    inputs = make_inputs(*FEW, True, queries=41)
    return [torch.equal(x, y) for x, y in zip(gradients(inputs), gradients(inputs), strict=True)]


@record
def second_derivative() -> float:
    """With create_graph the gradients can be differentiated once more."""

    def penalty(function: Callable) -> torch.Tensor:
        inputs = make_inputs(*FEW, True)
        inputs['logits'].requires_grad_()
        (first,) = torch.autograd.grad(function(inputs).sin().sum(), inputs['logits'], create_graph=True)
        return torch.autograd.grad(first.square().sum(), inputs['logits'])[0]

    expected = penalty(lambda inputs: head_mix_cuda.mix_heads_plain(**inputs))
    return float((penalty(kernel) - expected).abs().max() / expected.abs().max())


def both_ways(family: str, training: bool) -> dict[str, float]:
    """The largest differences of output and gradients between the plain code and the kernel, and its calls."""
    model, images = small_model(family)
    model.train(training)
    values, calls = [], 0
    for on in (False, True):
        model.zero_grad()
        if on:
            with kernels_on_cpu() as started:
                output = model(images)
                calls = started.call_count
        else:
            output = model(images)
        output.square().sum().backward()
        values.append([output.detach(), *(p.grad.clone() for p in model.parameters())])
    difference = max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-3)) for x, y in zip(*values, strict=True))
    return {'difference': difference, 'calls': calls}


@record
def second_derivative_of_attention() -> float:
    random = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    qkv, lookups = random(1, 4, 3, 3, 8), random(1, 4, 3, 49)
    rest = (lookups, irpe_index((2, 2)), random(3, 3), None, random(3, 3), None, None, None, 0.3)
    both = []
    for function in (lambda *x: torch.ops.tinyvit_zoo.mixed_attention(*x)[0], head_mix_cuda.mixed_attention_plain):
        leaf = qkv.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf, *rest).sin().sum(), leaf, create_graph=True)
        both.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    return float((both[0] - both[1]).abs().max() / both[1].abs().max())


@record
def gradient_penalty_under_autocast() -> list[float]:
    """The loss, which holds gradients of the images, and its gradient, relative to those of the plain code."""
    both = []
    for kernels in (nullcontext(), kernels_on_cpu()):
        model, images = small_model('mini_swin')
        images.requires_grad_()
        with kernels, bfloat16_products():
            with torch.autocast('cpu', torch.bfloat16):
                output = model(images)
            (grad,) = torch.autograd.grad(output.float().square().sum(), images, create_graph=True)
            grad.square().sum().backward()
        both.append([grad.detach(), images.grad])
    return [float((x - y).norm() / x.norm()) for x, y in zip(*both, strict=True)]


@record
def mini_deit() -> dict[str, float]:
    return both_ways('mini_deit', training=True)


@record
def mini_swin() -> dict[str, float]:
    return both_ways('mini_swin', training=False)


@record
def compiled() -> dict[str, float]:
    """One graph with the kernel in it."""
    model, images = small_model('mini_deit')
    model.eval()
    expected = model(images)
    with kernels_on_cpu() as started:
        actual = torch.compile(model, backend='eager', fullgraph=True)(images)
        return {'difference': float((actual - expected).abs().max()), 'calls': started.call_count}


print(json.dumps(RESULTS))
