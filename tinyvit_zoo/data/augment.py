"""timm's transforms, with a posterize that works under Pillow 13.

RandAugment and AutoAugment posterize to as few as 0 bits. Up to Pillow 12 the result was a black image; since Pillow 13
`ImageOps.posterize` raises a ValueError, which ends the whole batch. 'rand-m9-mstd0.5-inc1' asked for 0 bits in 94 of
60,000 images: a batch of 1024 survives with a probability of 1 in 5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import timm.data
from PIL import Image

__all__ = ['create_transform', 'mend_posterize', 'posterized']

T = TypeVar('T')

CONTAINERS = ('transforms', 'transform', 'ops', 'policy')
"""Attributes in which torchvision, timm and TinyViT's code keep the steps of a transform."""


def create_transform(*args: Any, **kwargs: Any) -> Any:
    """`timm.data.create_transform` with `mend_posterize`: the same random numbers and images with any Pillow.

    Args:
        *args: As in timm.
        **kwargs: As in timm.

    Returns:
        A Compose, or three of them for `separate=True`. It can be pickled for the workers of a DataLoader.
    """
    return mend_posterize(timm.data.create_transform(*args, **kwargs))


def mend_posterize(transform: T) -> T:
    """Make every posterize step of a transform return a black image for 0 bits.

    It finds them in timm's transforms, in those of TinyViT's and other code with timm's `AugmentOp` (a step with `name`
    and `aug_fn`), at any nesting. Only this transform changes; timm's own tables, and so other transforms of the
    process, stay as they are. A second call changes nothing.

    Args:
        transform: A step, a list or tuple of steps, or an object that holds them. Changed in place.

    Returns:
        The same object.
    """
    if isinstance(transform, list | tuple):
        for part in transform:
            mend_posterize(part)
        return transform
    step: Any = transform
    function = getattr(step, 'aug_fn', None)
    if function is not None and getattr(function, '__name__', None) == 'posterize':  # our partial has no name
        step.aug_fn = partial(posterized, function)
    for name in CONTAINERS:
        mend_posterize(getattr(transform, name, ()))
    return transform


def posterized(function: Callable[..., Image.Image], img: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """`function`, or the result of Pillow <= 12 for 0 bits and fewer: black in 'L' and 'RGB', else an OSError."""
    if bits_to_keep > 0:
        return function(img, bits_to_keep, **kwargs)
    if img.mode not in ('L', 'RGB'):
        raise OSError(f'not supported for mode {img.mode}')
    return img.point([0] * 256 * len(img.getbands()))
