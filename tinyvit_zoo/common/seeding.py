"""Seeds for the generators that augmentations draw from: Python's `random`, NumPy's global one and torch's on the CPU.

How seeds are derived is part of what a run, a cache or a checkpoint means: none of the derivations here may change.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ['Seeds', 'generator_states', 'same_states', 'seed_generators', 'seeded']


class Seeds(NamedTuple):
    """One seed for each generator.

    Attributes:
        python: Of `random`, any int.
        numpy: Of NumPy's global generator, below 2^32.
        torch: Of torch's generator, 0 to 2^63 - 1.
    """

    python: int
    numpy: int
    torch: int

    @classmethod
    def same(cls, seed: int) -> 'Seeds':
        """One number, below 2^32, for all three."""
        return cls(seed, seed, seed)

    @classmethod
    def hashed(cls, *what: object) -> 'Seeds':
        """From the hash of the `repr` of whatever the numbers are drawn for."""
        seed = int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], 'little')
        return cls(seed, seed % 2**32, seed >> 1)

    @classmethod
    def spawned(cls, *key: int) -> 'Seeds':
        """From numbers of at least 0, such as (seed, process, iteration); different keys give independent streams."""
        first, second, low, high = np.random.SeedSequence(key).generate_state(4).tolist()
        return cls(first, second, low | (high & 0x7FFFFFFF) << 32)


def seed_generators(seeds: Seeds, device: bool = False) -> None:
    """Seed the three generators, and those of accelerators where `device` is set."""
    random.seed(seeds.python)
    np.random.seed(seeds.numpy)
    if device:
        torch.manual_seed(seeds.torch)
    else:
        torch.default_generator.manual_seed(seeds.torch)


@contextmanager
def seeded(seeds: Seeds) -> Iterator[None]:
    """A block that draws from these seeds; the generators are as before when it ends, accelerators' untouched."""
    before = generator_states()
    seed_generators(seeds)
    try:
        yield
    finally:
        torch_state, numpy_state, python_state = before
        torch.default_generator.set_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def generator_states() -> tuple[torch.Tensor, Any, tuple[Any, ...]]:
    """States of the generators of torch (uint8), NumPy and Python."""
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def same_states(one: tuple[torch.Tensor, Any, tuple], two: tuple[torch.Tensor, Any, tuple]) -> bool:
    """Whether two results of `generator_states` are equal: nothing was drawn between them."""
    numpy_equal = all(np.array_equal(a, b) for a, b in zip(one[1], two[1], strict=True))
    return torch.equal(one[0], two[0]) and numpy_equal and one[2] == two[2]
