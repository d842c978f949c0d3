"""timm's transforms, with a posterize that Pillow 13 does not stop.

RandAugment and AutoAugment posterize to as few as 0 bits. Up to Pillow 12 that was a black picture; since Pillow 13
`ImageOps.posterize` refuses it (ValueError), and with it the whole batch. 'rand-m9-mstd0.5-inc1' asked for it at 94 of
60,000 pictures: a batch of 1024 gets through with a probability of 1 in 5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import timm.data
from PIL import Image

__all__ = ['create_transform', 'mend_posterize']

T = TypeVar('T')

CONTAINERS = ('transforms', 'transform', 'ops', 'policy')
"""Attributes by which torchvision, timm and the code of TinyViT hold the steps of a transform."""


def create_transform(*args: Any, **kwargs: Any) -> Any:
    """`timm.data.create_transform`, mended: the same random numbers, and the same pictures with any Pillow.

    Args:
        *args: As in timm.
        **kwargs: As in timm.

    Returns:
        What timm gives: a Compose, or three of them for `separate=True`. It pickles, for workers of a DataLoader.
    """
    return mend_posterize(timm.data.create_transform(*args, **kwargs))


def mend_posterize(transform: T) -> T:
    """Let every posterize within a transform give a black picture for 0 bits.

    Works on timm's transforms, on those of TinyViT's and other code that has timm's `AugmentOp` (a step with `name` and
    `aug_fn`), and on any nesting of them. Only this transform changes: timm's own tables, and so the transforms of
    everybody else in the process, stay as they are. A second time changes nothing.

    Args:
        transform: A step, a list or tuple of steps, or something that holds them. Changed in place.

    Returns:
        The same object.
    """
    if isinstance(transform, list | tuple):
        for step in transform:
            mend_posterize(step)
        return transform
    function = getattr(transform, 'aug_fn', None)
    if getattr(function, '__name__', None) == 'posterize':  # a partial of ours has no name
        transform.aug_fn = partial(_posterize, function)
    for name in CONTAINERS:
        mend_posterize(getattr(transform, name, ()))
    return transform


def _posterize(function: Callable[..., Image.Image], img: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """What `function` gives, or for 0 bits and less what Pillow <= 12 gave: black in 'L' and 'RGB', else OSError."""
    if bits_to_keep > 0:
        return function(img, bits_to_keep, **kwargs)
    if img.mode not in ('L', 'RGB'):
        raise OSError(f'not supported for mode {img.mode}')
    return img.point([0] * 256 * len(img.getbands()))
