"""What a pickle would build: found by following its opcodes with symbols in place of objects. Nothing is built or run.

torch's restricted reader decides what may be built; here is what it leaves open: how much. It also knows only the
opcodes of protocol 2, so pickles of later protocols are written again in that one.
"""

import math
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .archive import MOST_GROWTH, RefusedError
from .protocol_2 import PROTOCOL, in_protocol_2

__all__ = ['Pickle', 'follow']

# Opcodes and objects of a file of this size, and further ones for so many bytes. Objects take up to 50 times the memory
# of their opcodes.
OPCODES, OPCODES_PER_BYTE = 200_000, 1 / 4
OBJECTS, OBJECTS_PER_BYTE = 20_000, 1 / 64
MOST_NESTED = 100

ITEM_BYTES = {
    'Double': 8,
    'Float': 4,
    'Half': 2,
    'BFloat16': 2,
    'Long': 8,
    'Int': 4,
    'Short': 2,
    'Char': 1,
    'Byte': 1,
    'Bool': 1,
    'ComplexDouble': 16,
    'ComplexFloat': 8,
    'Untyped': 1,
}
REBUILD = 'torch._utils._rebuild_'
STRIDED = ('tensor', 'tensor_v2', 'tensor_v3', 'qtensor')


class _Any:
    """Something that matters for nothing here."""


class _Mark: ...


class _Name(str):
    """Of a function or class."""


@dataclass(frozen=True)
class _Storage:
    """Numbers of tensors: the entry of a file, and how many there are, of how many bytes."""

    key: str
    count: int
    item: int


ANY, MARK = _Any(), _Mark()


@dataclass
class Pickle:
    """What was found in a pickle.

    Attributes:
        names: Functions and classes that it names, as 'module.name'.
        storages: Bytes of each storage by its key; None where the file shows no size.
        content: The object in it, as far as it is made of strings, numbers, lists and tuples.
        old: The pickle in protocol 2, if it is of a later one.
    """

    names: dict[str, None] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)
    content: Any = None
    old: bytes | None = None


def follow(file: BinaryIO, size: int) -> Pickle:
    """Follow the opcodes of a pickle up to its end; the file then stands behind it.

    Args:
        file: Open where the pickle begins.
        size: Of the whole file in bytes, to which all that it asks for is compared.

    Raises:
        RefusedError: If it asks for far more memory than the file has bytes, or has opcodes that no pickler writes.
        ValueError: If it is damaged; damaged bytes raise nearly anything else, too.
    """
    start, machine = file.tell(), _Machine(size)
    for opcode, argument, _ in pickletools.genops(file):
        machine.step(opcode.name, argument)
    found = machine.found
    if machine.protocol > PROTOCOL:
        stop = file.tell()
        file.seek(start)
        found.old = in_protocol_2(file.read(stop - start))
    return found


class _Machine:
    """The stack and the memo of a pickle, with symbols."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.found = Pickle()
        self.protocol = 0
        self.opcodes_left = OPCODES + int(size * OPCODES_PER_BYTE)
        self.objects_left = OBJECTS + int(size * OBJECTS_PER_BYTE)

    def step(self, opcode: str, argument: Any) -> None:
        self.opcodes_left -= 1
        if opcode in OBJECT_MAKERS:
            self.objects_left -= 1
        if min(self.opcodes_left, self.objects_left) < 0:
            raise RefusedError('it asks for far more objects than belong to its tensors')
        if opcode in CONSTANTS:
            self.stack.append(argument if opcode in TEXTS or isinstance(argument, int) else ANY)
        elif opcode in MEMO_PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif opcode in MEMO_GETS:
            self.stack.append(self.memo[argument])
        else:
            action = ACTIONS.get(opcode)
            if action is None:
                raise RefusedError(f'it has an opcode that no checkpoint has ({opcode})')
            action(self, argument)

    def protocol_is(self, argument: int) -> None:
        self.protocol = argument

    def nothing(self, _: Any) -> None: ...

    def mark(self, _: Any) -> None:
        self.stack.append(MARK)

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise ValueError('no mark')
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def new_list(self, _: Any) -> None:
        self.stack.append([])

    def new(self, _: Any) -> None:
        self.stack.append(ANY)

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(item)

    def extend(self, _: Any) -> None:
        items = self.since_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def drop_1(self, _: Any) -> None:
        self.stack.pop()

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(state, tuple) and state and isinstance(state[0], _Storage):  # a tensor of torch before 0.4
            self.check_tensor(state)

    def drop_2(self, _: Any) -> None:
        del self.stack[-2:]

    def drop_to_mark(self, _: Any) -> None:
        self.since_mark()

    def tuple_of(self, items: list[Any]) -> None:
        # Python hashes tuples by a recursion that no limit protects, where they are keys.
        if any(isinstance(item, _Tuple) and item.depth >= MOST_NESTED for item in items):
            raise RefusedError(f'it nests objects in more than {MOST_NESTED} levels')
        self.stack.append(_Tuple(items))

    def tuple_to_mark(self, _: Any) -> None:
        self.tuple_of(self.since_mark())

    def tuple_last(self, count: int) -> None:
        items = self.stack[-count:]
        del self.stack[-count:]
        self.tuple_of(items)

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(' ')
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.found.names[f'{module}.{name}'] = None
        self.stack.append(_Name(f'{module}.{name}'))

    def name_on_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError('a name that is not text')
        self.name(f'{module} {name}')

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.check_call(function, arguments)
        self.stack.append(ANY)

    def call_with_keywords(self, _: Any) -> None:
        self.stack.pop()
        self.call(None)

    def storage(self, _: Any) -> None:
        """('storage', type, key, device, count), in files of old versions with the part of it that is meant."""
        pid = self.stack.pop()
        if not (isinstance(pid, tuple) and len(pid) > 4 and pid[0] == 'storage' and isinstance(pid[4], int)):
            self.stack.append(ANY)  # torch's reader takes nothing else
            return
        _, kind, key, _, count = pid[:5]
        item = ITEM_BYTES.get(str(kind).rpartition('.')[2].removesuffix('Storage'), 1)
        size = self.found.storages.setdefault(str(key), count * item)
        if not 0 <= size <= MOST_GROWTH * self.size:
            raise RefusedError(f'a tensor of it needs {size:,} bytes')
        if len(pid) > 5 and isinstance(pid[5], tuple):
            count = min(count, pid[5][2])
        self.stack.append(_Storage(str(key), count, item))

    def check_call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            return
        if function == 'torch._tensor._rebuild_from_type_v2':
            self.check_call(*arguments[:3:2])
            if not (isinstance(arguments[0], _Name) and arguments[0].startswith(REBUILD)):
                raise RefusedError(f'it calls {arguments[0]} for a tensor')
        elif function.startswith(REBUILD) and function.removeprefix(REBUILD) in STRIDED:
            self.check_tensor(arguments)
        elif _may_allocate(function) and any(isinstance(argument, int | list | tuple) for argument in arguments):
            raise RefusedError(f'it makes a {function} of any size, without numbers')
        elif function == '_codecs.encode' and arguments[1:] not in (('latin1',), ()):
            raise RefusedError('it encodes text')  # some codecs take hours

    def check_tensor(self, arguments: tuple) -> None:
        """(storage, offset, size, stride, ...)."""
        storage, _, shape = arguments[:3]
        if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and all(type(n) is int for n in shape)):
            raise ValueError('a tensor without a storage or a shape')
        count = math.prod(shape)
        if count > MOST_GROWTH * max(1, storage.count):
            raise RefusedError(f'a tensor of {count:,} numbers has only {storage.count:,} in the file')

    def stop(self, _: Any) -> None:
        self.found.content = self.stack.pop()


class _Tuple(tuple):
    """A tuple that knows how deeply it is nested."""

    depth: int

    def __new__(cls, items: list[Any]) -> '_Tuple':
        new = super().__new__(cls, items)
        new.depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        return new


def _may_allocate(name: str) -> bool:
    return name == 'builtins.bytearray' or (name.startswith('torch.') and name.endswith(('Tensor', 'Storage')))


TEXTS = ('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'SHORT_BINSTRING', 'BINSTRING')
CONSTANTS = {
    *TEXTS,
    *('NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
}
MEMO_PUTS, MEMO_GETS = {'BINPUT', 'LONG_BINPUT', 'MEMOIZE'}, {'BINGET', 'LONG_BINGET'}
MAKERS = {'MARK', 'EMPTY_LIST', 'EMPTY_DICT', 'EMPTY_SET', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'FROZENSET', 'REDUCE'}
OBJECT_MAKERS = MAKERS | {'NEWOBJ', 'NEWOBJ_EX', 'BINPERSID', *MEMO_PUTS}

ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    'PROTO': _Machine.protocol_is,
    'FRAME': _Machine.nothing,
    'STOP': _Machine.stop,
    'MARK': _Machine.mark,
    'EMPTY_LIST': _Machine.new_list,
    'EMPTY_TUPLE': lambda machine, _: machine.tuple_of([]),
    **dict.fromkeys(('EMPTY_DICT', 'EMPTY_SET'), _Machine.new),
    'APPEND': _Machine.append,
    'APPENDS': _Machine.extend,
    'SETITEM': _Machine.drop_2,
    **dict.fromkeys(('SETITEMS', 'ADDITEMS'), _Machine.drop_to_mark),
    **dict.fromkeys(('TUPLE', 'FROZENSET'), _Machine.tuple_to_mark),
    'TUPLE1': lambda machine, _: machine.tuple_last(1),
    'TUPLE2': lambda machine, _: machine.tuple_last(2),
    'TUPLE3': lambda machine, _: machine.tuple_last(3),
    'GLOBAL': _Machine.name,
    'STACK_GLOBAL': _Machine.name_on_stack,
    **dict.fromkeys(('REDUCE', 'NEWOBJ'), _Machine.call),
    'NEWOBJ_EX': _Machine.call_with_keywords,
    'BUILD': _Machine.build,
    'BINPERSID': _Machine.storage,
}
