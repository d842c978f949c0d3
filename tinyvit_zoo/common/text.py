"""Words for messages."""

import errno
import os
import re
from collections.abc import Iterable
from itertools import islice
from numbers import Number
from pathlib import PurePath

__all__ = ['as_sentence', 'count_of', 'escaped', 'first_few', 'join_numbers', 'reason', 'shown']


def count_of(number: float, noun: str) -> str:
    """'1 epoch', '2,000 images', '0 classes', '1.5 queries': a number with its noun, given as one of them."""
    if number != 1:
        noun = re.sub('(?<![aeo])y$', 'ie', noun) + ('es' if noun.endswith(('s', 'tch')) else 's')
    return f'{number:,g} {noun}' if isinstance(number, float) else f'{number:,} {noun}'


def escaped(text: str) -> str:
    """Text in one line without anything that acts on a terminal: control and invisible characters as escapes."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


def shown(name: object, longest: int = 160) -> str:
    """A name from a file of somebody else: escaped, and without its middle if it is long.

    Anything but a string, a number and a path is shown by its type: its own words may be endless.
    """
    text = str(name) if isinstance(name, str | Number | PurePath) else f'<{type(name).__name__}>'
    if len(text) > longest:
        text = f'{text[: longest // 2]}...{text[-longest // 4 :]}'
    return escaped(text)


def first_few(names: Iterable[object], most: int = 3) -> str:
    """'a, b, c' of a few names, 'a, b, c, ...' of more than `most`; sets are sorted, all else keeps its order."""
    ordered = sorted(names, key=str) if isinstance(names, set | frozenset) else names
    few = [shown(name) for name in islice(ordered, most + 1)]
    return ', '.join([*few[:most], '...'] if len(few) > most else few)


def join_numbers(values: Iterable[float]) -> str:
    """'0.485, 0.456, 0.406', without trailing zeros."""
    return ', '.join(f'{value:g}' for value in values)


def as_sentence(error: Exception) -> str:
    """The message of an error as a sentence: the system's own are a number, its text, and the file."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | bytes | os.PathLike):
        return f'{os.fsdecode(error.filename)} cannot be read or written ({error.strerror}).'
    return str(error)


def reason(error: object, longest: int = 200) -> str:
    """The message of an error in one line of at most `longest` characters, or its class if it has no message.

    Of an error of the system its words alone: where it happened is in the sentence around it.
    """
    message = isinstance(error, OSError) and error.strerror
    if message == os.strerror(errno.EEXIST):  # a folder was to be made
        return 'it is a file'
    return escaped(' '.join(str(message or error).split())[:longest]) or type(error).__name__
