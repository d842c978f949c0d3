"""Words for messages."""

from collections.abc import Iterable
from itertools import islice

__all__ = ['first_few', 'join_numbers', 'reason']


def first_few(names: Iterable[object], most: int = 3) -> str:
    """'a, b, c' of a few names, 'a, b, c, ...' of more than `most`; sets are sorted, all else keeps its order."""
    ordered = sorted(names, key=str) if isinstance(names, set | frozenset) else names
    shown = [str(name) for name in islice(ordered, most + 1)]
    return ', '.join([*shown[:most], '...'] if len(shown) > most else shown)


def join_numbers(values: Iterable[float]) -> str:
    """'0.485, 0.456, 0.406', without trailing zeros."""
    return ', '.join(f'{value:g}' for value in values)


def reason(error: object, longest: int = 200) -> str:
    """The message of an error in one line of at most `longest` characters, or its class if it has no message."""
    return ' '.join(str(error).split())[:longest] or type(error).__name__
