"""Training runs: recipes, the parts that a recipe decides, tasks, the loop, and its state on disk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features import distil_features

__all__ = ['distil_features']


def __getattr__(name: str) -> Any:
    """`distil_features` is imported when it is asked for: the recipes alone need no accelerate."""
    if name != 'distil_features':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .features import distil_features

    return distil_features
