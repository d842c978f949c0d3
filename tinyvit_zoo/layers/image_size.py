"""Refuse sizes that a model cannot be laid out for, and images of another size than it is, with the ways out."""

import torch
from timm.layers import to_2tuple

__all__ = ['check_image_size', 'check_patch_grid']


def check_patch_grid(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> None:
    """Raise unless whole patches fill an image.

    Raises:
        ValueError: If they do not.
    """
    size, patch = tuple(to_2tuple(img_size)), tuple(to_2tuple(patch_size))
    if len(size) != 2 or any(p < 1 or s < p or s % p for s, p in zip(size, patch, strict=True)):
        raise ValueError(f'img_size must be an int or (H, W), a multiple of the patch {patch}; got {img_size}.')


def check_image_size(x: torch.Tensor, img_size: tuple[int, int]) -> None:
    """Raise unless images (B, C, H, W) have the size (H, W) `img_size`.

    Raises:
        AssertionError: If they have not, as in timm's models. (FX can trace `torch._assert`.)
    """
    ways_out = (
        f'The images do not have the size {img_size[0]} x {img_size[1]} that the model is laid out for. Resize them, '
        'or the model: create_model(..., img_size=(H, W)) or model.set_input_size((H, W)); or create it with '
        'dynamic_img_size=True, which takes every size.'
    )
    torch._assert(x.shape[-2] == img_size[0], ways_out)
    torch._assert(x.shape[-1] == img_size[1], ways_out)
