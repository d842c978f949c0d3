"""The kernel of head mixing (`layers/head_mix_cuda.py`) against plain torch in float64, both directions.

    python benchmarks/head_mix.py --device cuda --dtype bfloat16
    TRITON_INTERPRET=1 python benchmarks/head_mix.py --device cpu

prints the largest error of the result and of every gradient, each relative to the largest value of its tensor. Triton's
interpreter runs one program after another on a CPU, hence two query rows a case.
"""

import argparse
from collections.abc import Sequence

import torch

from tinyvit_zoo.layers import head_mix_cuda

__all__ = ['CASES', 'check_head_mix', 'make_inputs']

CASES = ((3, 49), (6, 197), (12, 144), (24, 49), (32, 49), (6, 577))
"""(heads, tokens) of the models, and the largest number of heads."""

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
    if not head_mix_cuda.load_operators():
        raise RuntimeError('Triton cannot be imported; it comes with the CUDA builds of torch.')
    errors = {}
    for heads, tokens in cases:
        for extras in (False, True):
            what = 'position, mask, biases' if extras else 'logits alone'
            inputs = make_inputs(heads, tokens, extras, device, dtype)
            for name, error in _errors(inputs).items():
                errors[f'{heads} x {tokens}, {what}, {name}'] = error
    return errors


def _errors(inputs: dict[str, torch.Tensor | None]) -> dict[str, float]:
    grad = torch.sin(torch.arange(inputs['logits'].numel(), device=inputs['logits'].device)).view_as(inputs['logits'])
    grad = grad.to(inputs['logits'].dtype)
    actual = _both_directions(torch.ops.tinyvit_zoo.mix_heads, inputs, grad)
    inputs = {name: None if t is None else t.double() for name, t in inputs.items()}
    expected = _both_directions(head_mix_cuda.mix_heads_plain, inputs, grad.double())
    size = {name: t.abs().max() for name, t in expected.items()}
    if 'first_bias' in size:  # a constant moves no softmax: its gradient is 0 and both values are rounding
        size['first_bias'] = size['first']
    return {name: float((actual[name].double() - t).abs().max() / size[name]) for name, t in expected.items()}


def _both_directions(function, inputs: dict[str, torch.Tensor | None], grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """The result, and the gradients of all that have one."""
    leaves = {
        name: t if t is None or name == 'mask' else t.detach().clone().requires_grad_() for name, t in inputs.items()
    }
    result = function(*leaves.values())
    result.backward(grad)
    gradients = {name: t.grad for name, t in leaves.items() if t is not None and t.requires_grad}
    return {'result': result.detach(), **gradients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    args = parser.parse_args()
    for name, error in check_head_mix(args.device, getattr(torch, args.dtype)).items():
        print(f'{error:.1e}  {name}')


if __name__ == '__main__':
    main()
