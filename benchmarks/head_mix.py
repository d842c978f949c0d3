"""The kernels of head mixing (`layers/head_mix_cuda.py`) against plain torch in float64, both directions.

    python benchmarks/head_mix.py --device cuda --dtype bfloat16
    TRITON_INTERPRET=1 python benchmarks/head_mix.py --device cpu

prints the largest error of the result and of every gradient, each relative to the largest value of its tensor. Triton's
interpreter runs one program after another on a CPU, hence two query rows a case.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial

import torch

from tinyvit_zoo.layers import head_mix_cuda, irpe_index

__all__ = ['ATTENTION_CASES', 'CASES', 'check_attention', 'check_head_mix', 'make_inputs']

CASES = ((3, 49), (6, 197), (12, 144), (24, 49), (32, 49), (6, 577))
"""(heads, tokens) of the models, and the largest number of heads."""

ATTENTION_CASES = ((6, (5, 14), 64, True), (3, (7, 7), 32, False))
"""Heads, grid, width of a head, and whether with relative keys: of more than one tile of tokens, and of one."""

QUERIES = 2
WINDOWS = 2


def make_inputs(
    heads: int,
    tokens: int,
    extras: bool,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
    queries: int = QUERIES,
) -> dict[str, torch.Tensor | None]:
    """Arguments of `mix_heads_plain`; with `extras`, position part, mask and biases among them."""
    generator = torch.Generator().manual_seed(heads * tokens + extras)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    inputs: dict[str, torch.Tensor | None] = dict(
        logits=random(WINDOWS, heads, queries, tokens),
        first=torch.eye(heads) + 0.3 * random(heads, heads),
        first_bias=random(heads) if extras else None,
        second=torch.eye(heads) + 0.3 * random(heads, heads),
        second_bias=random(heads) if extras else None,
        position=random(heads, queries, tokens) if extras else None,
        mask=torch.where(random(WINDOWS, queries, tokens) > 0.8, -100.0, 0.0) if extras else None,
    )
    return {name: None if t is None else t.to(device, dtype) for name, t in inputs.items()}


def check_head_mix(
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    cases: Sequence[tuple[int, int]] = CASES,
) -> dict[str, float]:
    """Errors of the kernel.

    Args:
        device: A CUDA device, or 'cpu' in a process that was started with TRITON_INTERPRET=1.
        dtype: float32, bfloat16 or float16, of all tensors.
        cases: (heads, tokens) of each.

    Returns:
        'heads x tokens, with what, which tensor' -> largest error, relative to the largest value of the tensor in
        float64. float32: up to 1e-6 in the interpreter, where a GPU multiplies in three TF32 products; bfloat16 and
        float16 round the results themselves (4e-3 and 5e-4; the interpreter cuts bfloat16 off, 8e-3).

    Raises:
        RuntimeError: If there is no Triton.
    """
    _need_triton()
    errors = {}
    for heads, tokens in cases:
        for extras in (False, True):
            what = 'position, mask, biases' if extras else 'logits alone'
            inputs = make_inputs(heads, tokens, extras, device, dtype)
            errors_of_case = _errors(torch.ops.tinyvit_zoo.mix_heads, head_mix_cuda.mix_heads_plain, inputs)
            for name, error in errors_of_case.items():
                errors[f'{heads} x {tokens}, {what}, {name}'] = error
    return errors


def check_attention(
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    cases: Sequence[tuple[int, tuple[int, int], int, bool]] = ATTENTION_CASES,
) -> dict[str, float]:
    """Errors of the whole attention, as `check_head_mix`. (The interpreter cannot multiply bfloat16 tiles.)

    Args:
        device: See `check_head_mix`.
        dtype: See there.
        cases: Heads, grid of the tokens, width of a head, and whether with relative keys as Mini-DeiT or with position
            part, mask and biases as Mini-Swin.

    Returns:
        See there.

    Raises:
        RuntimeError: If there is no Triton.
    """
    _need_triton()
    errors = {}
    for heads, grid, width, relative in cases:
        inputs = _attention_inputs(heads, grid, width, relative, device, dtype)
        plain = partial(head_mix_cuda.mixed_attention_plain, scale=width**-0.5)

        def kernels(*tensors: torch.Tensor, scale: float = width**-0.5) -> torch.Tensor:
            return torch.ops.tinyvit_zoo.mixed_attention(*tensors, scale)[0]

        for name, error in _errors(kernels, plain, inputs).items():
            errors[f'attention, {heads} heads of {width}, {grid[0]}x{grid[1]} tokens, {name}'] = error
    return errors


def _attention_inputs(
    heads: int, grid: tuple[int, int], width: int, relative: bool, device: torch.device | str, dtype: torch.dtype
) -> dict[str, torch.Tensor | None]:
    tokens = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(tokens)
    inputs = make_inputs(heads, tokens, not relative, device, dtype, queries=tokens)
    del inputs['logits']
    qkv = torch.randn(WINDOWS, tokens, 3, heads, width, generator=generator).to(device, dtype)
    lookups = 0.3 * torch.randn(WINDOWS, tokens, heads, 49, generator=generator).to(device, dtype) if relative else None
    index = irpe_index(grid, qkv.device) if relative else None
    return dict(qkv=qkv, lookups=lookups, index=index, **inputs)


def _need_triton() -> None:
    if not head_mix_cuda.load_operators():
        raise RuntimeError('Triton cannot be imported; it comes with the CUDA builds of torch.')


def _errors(kernels: Callable, plain: Callable, inputs: dict[str, torch.Tensor | None]) -> dict[str, float]:
    """Of the result and every gradient: the largest difference over the largest value."""
    actual = _both_directions(kernels, inputs)
    expected = _both_directions(plain, {name: _double(t) for name, t in inputs.items()})
    size = {name: t.abs().max() for name, t in expected.items()}
    for bias in ('first_bias', 'second_bias'):
        # A constant moves no softmax: the gradient of the first is 0, and both values are rounding.
        if bias in size:
            size[bias] = torch.maximum(size[bias], size[bias.removesuffix('_bias')])
    return {name: float((actual[name].double() - t).abs().max() / size[name]) for name, t in expected.items()}


def _double(t: torch.Tensor | None) -> torch.Tensor | None:
    return t.double() if t is not None and t.is_floating_point() else t


def _both_directions(function: Callable, inputs: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """The result, and the gradients of all that have one."""
    leaves = {
        name: t if t is None or name in ('mask', 'index') else t.detach().clone().requires_grad_()
        for name, t in inputs.items()
    }
    result = function(*leaves.values())
    # The same gradient in every precision: eighths.
    grad = (torch.arange(result.numel(), device=result.device) * 5 % 17 - 8).view_as(result) / 8
    result.backward(grad.to(result.dtype))
    gradients = {name: t.grad for name, t in leaves.items() if t is not None and t.requires_grad}
    return {'result': result.detach(), **gradients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    args = parser.parse_args()
    if args.device == 'cpu' and not os.environ.get('TRITON_INTERPRET'):
        parser.error('without a GPU the kernels run in the interpreter only: set TRITON_INTERPRET=1.')
    dtype = getattr(torch, args.dtype)
    for name, error in {**check_head_mix(args.device, dtype), **check_attention(args.device, dtype)}.items():
        print(f'{error:.1e}  {name}')


if __name__ == '__main__':
    main()
