"""A pickle of a later protocol written in protocol 2, the only one whose opcodes torch's restricted reader knows."""

import pickle
import pickletools
import re
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ['PROTOCOL', 'in_protocol_2']

PROTOCOL = 2

TEXTS = ('SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8')
PUTS, GETS = ('MEMOIZE', 'BINPUT', 'LONG_BINPUT'), ('BINGET', 'LONG_BINGET')
# Bytes and huge numbers become None, sets lists: tensors need none of them.
INSTEAD = {
    **dict.fromkeys(('PROTO', 'FRAME'), b''),
    **dict.fromkeys(('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'LONG4', 'BINSTRING'), pickle.NONE),
    'EMPTY_SET': pickle.EMPTY_LIST,
    'ADDITEMS': pickle.APPENDS,
    'FROZENSET': pickle.TUPLE,
    'NEWOBJ_EX': pickle.NEWOBJ,
}

Stack = list[tuple[int, str | None] | None]
"""For every object where it begins in the new pickle, and the text that it is; None for a mark."""


def in_protocol_2(data: bytes) -> bytes:
    """The same pickle, as far as tensors and their names go.

    Raises:
        ValueError: If it is damaged; damaged bytes raise nearly anything else, too.
    """
    out, stack, memo = bytearray(pickle.PROTO + bytes([PROTOCOL])), Stack(), dict[int, str | None]()
    for opcode, argument, raw in _opcodes(data):
        name = opcode.name
        if name in PUTS:
            top = stack[-1]
            index = len(memo) if argument is None else argument
            memo[index] = top and top[1]
            if memo[index] is None:  # texts are not put: those of a function's name will not be there
                out += pickle.LONG_BINPUT + struct.pack('<I', index)
            continue
        text = memo[argument] if name in GETS else argument if name in TEXTS else None
        if name == 'NEWOBJ_EX' and (keywords := stack[-1]):
            del out[keywords[0] :]
        at, texts = _take(stack, opcode, len(out))
        if name == 'STACK_GLOBAL':
            del out[at:]
            out += _global(*texts)
        else:
            out += INSTEAD.get(name, raw) if text is None else _text(text)
        _push(stack, opcode, at, text)
    return bytes(out)


def _opcodes(data: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, bytes]]:
    """Each opcode with its argument and its bytes."""
    last: tuple[pickletools.OpcodeInfo, Any, int] | None = None
    for opcode, argument, position in pickletools.genops(data):
        if last is not None:
            yield last[0], last[1], data[last[2] : position]
        last = opcode, argument, position or 0
    if last is not None:
        yield last[0], last[1], data[last[2] : last[2] + 1]


def _take(stack: Stack, opcode: pickletools.OpcodeInfo, end: int) -> tuple[int, list[str | None]]:
    """Pop what an opcode takes: where that begins, and which texts it is."""
    before = [kind.name for kind in opcode.stack_before]
    count = before.index('mark') if 'mark' in before else len(before)
    taken: list[tuple[int, str | None]] = []
    if 'mark' in before:
        while (item := stack.pop()) is not None:
            taken.append(item)
    for _ in range(count):
        item = stack.pop()
        if item is None:
            raise ValueError('a mark in place of an object')
        taken.append(item)
    taken.reverse()
    return (taken[0][0] if taken else end), [text for _, text in taken]


def _push(stack: Stack, opcode: pickletools.OpcodeInfo, at: int, text: str | None) -> None:
    stack += [None if kind.name == 'mark' else (at, text) for kind in opcode.stack_after]


def _text(text: str) -> bytes:
    encoded = text.encode('utf-8', 'surrogatepass')
    return pickle.BINUNICODE + struct.pack('<I', len(encoded)) + encoded


def _global(module: str | None, name: str | None) -> bytes:
    if not all(text and re.fullmatch(r'[\w.]+', text) for text in (module, name)):
        raise ValueError('a name that is none')
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()
