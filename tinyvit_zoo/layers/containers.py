"""`nn.ModuleList` and `nn.Sequential` whose element type is known to type checkers; at run time, torch's own classes.

torch declares every element as a plain `nn.Module`, so that a checker knows none of its attributes. TorchScript, in
turn, rejects annotations of submodules on the class. Typed constructors satisfy both.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import nn

__all__ = ['TypedModuleList', 'TypedSequential']

if TYPE_CHECKING:
    M_co = TypeVar('M_co', bound=nn.Module, covariant=True)

    class TypedModuleList(nn.ModuleList, Generic[M_co]):
        def __init__(self, modules: Iterable[M_co]) -> None: ...

        def __iter__(self) -> Iterator[M_co]: ...

        @overload
        def __getitem__(self, idx: slice) -> 'TypedModuleList[M_co]': ...

        @overload
        def __getitem__(self, idx: int) -> M_co: ...

        def __getitem__(self, idx: int | slice) -> nn.Module: ...

    class TypedSequential(nn.Sequential, Generic[M_co]):
        def __init__(self, *modules: M_co) -> None: ...

        def __iter__(self) -> Iterator[M_co]: ...

        @overload
        def __getitem__(self, idx: slice) -> 'TypedSequential[M_co]': ...

        @overload
        def __getitem__(self, idx: int) -> M_co: ...

        def __getitem__(self, idx: int | slice) -> nn.Module: ...

else:
    TypedModuleList, TypedSequential = nn.ModuleList, nn.Sequential
