"""Refuse images of another size than the model is laid out for, with the ways out."""

import torch

__all__ = ['check_image_size']


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
