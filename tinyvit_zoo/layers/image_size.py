"""Checks of image sizes: whole patches when a model is built or resized, the expected size in its forward pass."""

import torch
from timm.layers import to_2tuple

__all__ = ['check_image_size', 'check_patch_grid']


def check_patch_grid(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> None:
    """Check that an image divides into whole patches.

    Args:
        img_size: int or (H, W).
        patch_size: int or (h, w).

    Raises:
        ValueError: If it does not.
    """
    size, patch = tuple(to_2tuple(img_size)), tuple(to_2tuple(patch_size))
    if len(size) != 2 or any(p < 1 or s < p or s % p for s, p in zip(size, patch, strict=True)):
        raise ValueError(f'img_size must be an int or (H, W), a multiple of the patch {patch}; got {img_size}.')


def check_image_size(x: torch.Tensor, img_size: tuple[int, int]) -> None:
    """Check that images have the size that a model is built for; the message lists the ways to change either.

    Args:
        x: Images (B, C, H, W).
        img_size: Expected (H, W).

    Raises:
        AssertionError: If the size differs, as in timm's models. (FX can trace `torch._assert`.)
    """
    message = (
        f'The images do not have the size {img_size[0]} x {img_size[1]} that the model is laid out for. Resize them, '
        'resize the model with create_model(..., img_size=(H, W)) or model.set_input_size((H, W)), or create it with '
        'dynamic_img_size=True, which accepts every size.'
    )
    torch._assert(x.shape[-2] == img_size[0], message)
    torch._assert(x.shape[-1] == img_size[1], message)
