"""From images to what a Segment Anything model takes, and from what it returns to masks of the images' size."""

from typing import Any

import torch
import torch.nn.functional as F

from ...common.extras import needs_extra
from .config import TinyVitSamConfig

with needs_extra('transformers'):
    from transformers import SamImageProcessor, SamProcessor

__all__ = ['sam_masks', 'sam_processor']


def sam_processor(config: TinyVitSamConfig) -> SamProcessor:
    """The processor of a model: resizes to its image size, normalizes, then pads unless the model is `rectangular`."""
    side = config.vision_config.image_size
    square = {'height': side, 'width': side}
    return SamProcessor(
        SamImageProcessor(
            size={'longest_edge': side},
            pad_size=square,
            do_pad=not config.rectangular,
            mask_size={'longest_edge': side // 4},
            mask_pad_size={key: value // 4 for key, value in square.items()},
        )
    )


def sam_masks(
    pred_masks: torch.Tensor, original_sizes: Any, reshaped_input_sizes: Any, binarize: bool = True
) -> list[torch.Tensor]:
    """Masks at the size of their images; as `SamProcessor.post_process_masks`, also for a `rectangular` model.

    Args:
        pred_masks: Logits (B, prompts, n, h, w), at a quarter of the images' resolution.
        original_sizes: (H, W) of each image, from the processor.
        reshaped_input_sizes: (H, W) that the processor resized each to.
        binarize: Whether the result is bool, True inside; else logits.

    Returns:
        (prompts, n, H, W) of each image.
    """
    inside = [4 * side for side in pred_masks.shape[-2:]]
    masks = []
    for logits, original, resized in zip(pred_masks, original_sizes, reshaped_input_sizes, strict=True):
        whole = F.interpolate(logits, inside, mode='bilinear', align_corners=False)
        cropped = whole[..., : int(resized[0]), : int(resized[1])]
        mask = F.interpolate(cropped, [int(side) for side in original], mode='bilinear', align_corners=False)
        masks.append(mask > 0 if binarize else mask)
    return masks
