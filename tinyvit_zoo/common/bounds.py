"""Sizes in the configuration of a model from elsewhere, before anything is made of them."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ModelError
from .text import shown

__all__ = ['check_sizes']

MOST_BLOCKS, MOST_RATIO, MOST = 1000, 100.0, 65_536
MOST_OF = {'classes': 1_000_000, 'window': 128, 'size': 8192}
BLOCKS = ('depth', 'layers', 'blocks', 'repeats')
WIDTHS = ('dim', 'width', 'chs', 'channels', 'features')
FLOAT_BYTES, USUAL_BLOCKS = 4, 12


def check_sizes(config: Any, where: str) -> None:
    """Compare the numbers in a model's configuration with what any model has, and with the memory of this machine.

    Args:
        config: Arguments of a model by name, or a config.json with such; nothing in it is trusted to be well formed.
        where: Its name, for the message.

    Raises:
        ModelError: If a number is far beyond any model, or the model would not fit into the memory.
    """
    numbers = [(key, number) for key, number in _numbers(config) if not isinstance(number, bool)]
    blocks: dict[str, float] = {}
    for key, number in numbers:
        most = _most(key)
        if any(word in key for word in BLOCKS):
            number = blocks[key] = blocks.get(key, 0) + number
        if not -most <= number <= most:  # also a NaN
            raise ModelError(
                f'{where} asks for a model with {shown(key)} of {_short(number)}, at most {most:,} is built here: '
                'is the configuration damaged?'
            )
    widths = [number for key, number in numbers if any(word in key for word in WIDTHS)]
    weights = 12 * max(blocks.values(), default=USUAL_BLOCKS) * max(widths, default=0) ** 2
    memory = _memory()
    if memory and weights * FLOAT_BYTES > memory:
        raise ModelError(f'{where} asks for a model of about {weights:.0e} weights, more than this machine can hold.')


def _most(key: str) -> float:
    if 'ratio' in key:
        return MOST_RATIO
    if any(word in key for word in BLOCKS):
        return MOST_BLOCKS
    return next((most for word, most in MOST_OF.items() if word in key), MOST)


def _short(number: float) -> str:
    if isinstance(number, float):
        return f'{number:g}'
    return f'{number:,}' if abs(number) < 10**15 else 'a number of many digits'


def _numbers(config: Any) -> Iterator[tuple[str, float]]:
    """Every number with the nearest name above it; without recursion, however deep the configuration is nested."""
    waiting: list[tuple[str, Any]] = [('', config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(key, inner) for inner in value]
        elif isinstance(value, int | float):
            yield key, value


def _memory() -> int:
    """Bytes of memory of this machine; 0 if it is not known."""
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, OSError, ValueError):
        return 0
