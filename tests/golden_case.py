"""A reference output of the released code, and the way to the same numbers with a model of ours."""

from dataclasses import dataclass, field

import numpy as np
import torch
from conftest import load

EXACT = 1e-8
RESIZED = 1e-7  # tables were resized in single precision
SINGLE = 5e-6  # the reference is single precision


@dataclass(frozen=True)
class Case:
    """A reference file, and how to arrive at the same model."""

    reference: str
    file: str
    model: str
    kwargs: dict = field(default_factory=dict)
    then: tuple[int, ...] = ()
    atol: float = EXACT

    def __str__(self) -> str:
        way = '-'.join([*(f'{k}={v}' for k, v in self.kwargs.items()), *(f'set{size}' for size in self.then)])
        return f'{self.reference}:{self.model}' + (f':{way}' if way else '')

    def build(self, official_file) -> torch.nn.Module:
        model = load(self.model, official_file(self.file), **self.kwargs)
        for size in self.then:
            model.set_input_size(size)
        return model


def assert_close(actual: torch.Tensor, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=atol)


def assert_tap(tokens: torch.Tensor, expected: dict[str, np.ndarray], name: str) -> None:
    """Tokens (B, N, C) inside a model have the statistics and samples that the reference keeps of them."""
    assert_close(tokens.double().mean(), expected[f'{name}.mean'], SINGLE)
    assert_close(tokens.double().std(correction=0), expected[f'{name}.std'], SINGLE)
    assert_close(tokens[0, 0, :16], expected[f'{name}.first16'], 2e-5)
    assert_close(tokens[-1, -1, -16:], expected[f'{name}.last16'], 2e-5)
    np.testing.assert_allclose(tokens[0, :16].norm(dim=-1).detach(), expected[f'{name}.token_l2_img0'], rtol=1e-5)
