"""Refuse images of another size than the model is laid out for, with the ways out."""

import torch
from timm.models import register_notrace_function

__all__ = ['check_image_size']


@register_notrace_function
def check_image_size(x: torch.Tensor, img_size: tuple[int, int]) -> None:
    """Raise unless images (B, C, H, W) have the size (H, W) `img_size`.

    Raises:
        ValueError: If they have not.
    """
    H, W = x.shape[-2], x.shape[-1]
    if H != img_size[0] or W != img_size[1]:
        raise ValueError(
            f'The images are {H} x {W}, the model is laid out for {img_size[0]} x {img_size[1]}. Resize them, or the '
            'model: create_model(..., img_size=(H, W)) or model.set_input_size((H, W)); or create it with '
            'dynamic_img_size=True, which takes every size.'
        )
