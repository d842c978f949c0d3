"""Prompt encoder, mask decoder and the resize of masks as one module, as the released ONNX file of SAM has them.

Names and meaning of inputs and outputs are those of the released `SamOnnxModel`, which labeling tools expect.

Shape legend: `N` points, `M` masks, `h w` map of the encoder.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ['INPUTS', 'OUTPUTS', 'PromptedDecoder', 'chosen_mask']

INPUTS = ('image_embeddings', 'point_coords', 'point_labels', 'mask_input', 'has_mask_input', 'orig_im_size')
OUTPUTS = ('masks', 'iou_predictions', 'low_res_masks')
STRIDE = 16
"""Pixels of a place of the encoder's map; one of the masks that come out has a quarter of it."""

FEW_POINTS, FORCED = 2.5, 1000.0
"""From 3 points on, the first mask is taken, which is trained for several points; below, the best of the others."""


class PromptedDecoder(nn.Module):
    """From the encoder's map and the marks on an image to masks of the image's size.

    The positional map is made for a square of the longest side of the model's images and cut to its map.

    Args:
        model: A `SamModel` of transformers; its prompt encoder and mask decoder are shared, not copied.
        all_masks: Return all M = 4 masks: the one for several points, and three for one. Otherwise one is chosen, as
            `return_single_mask` of the released code does it.
    """

    def __init__(self, model: Any, all_masks: bool = False) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder
        self.all_masks = all_masks

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks as logits, of which those above 0 are the object.

        Args:
            image_embeddings: (1, 256, h, w), of the encoder.
            point_coords: (1, N, 2), x and y in pixels of the resized image.
            point_labels: (1, N): 1 on the object, 0 on another, 2 and 3 the upper left and lower right corner of a box,
                -1 padding, which goes with points where there is no box.
            mask_input: (1, 1, 4h, 4w), logits of an earlier mask.
            has_mask_input: (1,), 1 if `mask_input` counts, 0 if not.
            orig_im_size: (2,), height and width of the image.

        Returns:
            `masks` (1, M, height, width); `iou_predictions` (1, M), their estimated IoU with the object;
            `low_res_masks` (1, M, 4h, 4w), of which one may be the next `mask_input`.
        """
        height, width = image_embeddings.shape[-2:]
        longest = torch.sym_max(height, width) * STRIDE  # sizes may be symbols, of a file for any of them
        sparse = self._points(point_coords, point_labels, longest)
        dense = self._earlier_mask(mask_input, has_mask_input)
        places = self._positions(height, width, longest)
        low, quality = self._decode(image_embeddings + dense, places, sparse)
        if not self.all_masks:
            best = chosen_mask(quality, point_coords.shape[1])
            low, quality = low.index_select(1, best), quality.index_select(1, best)
        return self._resized(low, orig_im_size), quality, low

    def _points(self, coords: torch.Tensor, labels: torch.Tensor, longest: Any) -> torch.Tensor:
        """(1, N, 256)."""
        encoder, label = self.prompt_encoder, labels[..., None]
        found = self._sines((coords + 0.5) / longest)  # the middle of the pixel
        found = torch.where(label == -1, encoder.not_a_point_embed.weight, found)
        for i, of_label in enumerate(encoder.point_embed):
            found = torch.where(label == i, found + of_label.weight, found)
        return found

    def _sines(self, places: torch.Tensor) -> torch.Tensor:
        """Of (..., 2) numbers from 0 to 1: (..., 256)."""
        angles = 2 * math.pi * ((2 * places - 1) @ self.prompt_encoder.shared_embedding.positional_embedding)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def _positions(self, height: int, width: int, longest: Any) -> torch.Tensor:
        """(1, 256, h, w)."""
        table = self.prompt_encoder.shared_embedding.positional_embedding
        y, x = (
            (torch.arange(n, device=table.device, dtype=table.dtype) + 0.5) * STRIDE / longest for n in (height, width)
        )
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self._sines(grid).permute(2, 0, 1)[None]

    def _earlier_mask(self, mask: torch.Tensor, is_given: torch.Tensor) -> torch.Tensor:
        """(1, 256, h, w), or (1, 256, 1, 1) added up with it."""
        none = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return is_given * self.prompt_encoder.mask_embed(mask) + (1 - is_given) * none

    def _decode(
        self, image: torch.Tensor, places: torch.Tensor, sparse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All masks (1, 4, 4h, 4w) and their estimated IoU (1, 4): `SamMaskDecoder` leaves some of them out."""
        decoder = self.mask_decoder
        count = decoder.num_mask_tokens
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        tokens, keys = decoder.transformer(
            point_embeddings=torch.cat([own, sparse], dim=1)[None],
            image_embeddings=image,
            image_positional_embeddings=places,
            attention_similarity=None,
        )
        image = keys.transpose(2, 3).reshape(image.shape)
        image = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
        image = decoder.activation(decoder.upscale_conv2(image))
        weights = torch.stack(
            [mlp(tokens[:, 0, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        masks = (weights @ image.flatten(2)).reshape(1, count, *image.shape[-2:])
        return masks, decoder.iou_prediction_head(tokens[:, 0, 0])

    def _resized(self, low: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Masks (1, M, height, width): to the size of the model's images, cut to where the image is, to its size.

        Args:
            low: (1, M, 4h, 4w).
            image: (2,), height and width.
        """
        large = F.interpolate(low, scale_factor=4.0, mode='bilinear', align_corners=False)
        size = image.double()
        for dim, fitted in zip((2, 3), _fitted(size, large.shape[2], large.shape[3]), strict=True):
            large = _sampled(large, dim, fitted, size[dim - 2])
        return large


def chosen_mask(quality: torch.Tensor, points: int) -> torch.Tensor:
    """Which of all masks to take, as the released code chooses: int64 (1,).

    Args:
        quality: (1, 4), estimated IoU.
        points: How many, padding and corners of a box included.
    """
    first = torch.zeros_like(quality)
    first[:, 0] = FORCED
    return (quality + (points - FEW_POINTS) * first).argmax(dim=1)


def _fitted(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`data.sam_images.fitted_size` on tensors, in double precision, in which it rounds alike: (2,) of float64."""
    own = torch.stack([torch.ones_like(image[0]) * height, torch.ones_like(image[0]) * width])
    usual, smaller = (
        (image * scale + 0.5).floor().clamp(min=1) for scale in (own.max() / image.max(), (own / image).min())
    )
    return torch.where((usual <= own).all(), usual, smaller)


def _sampled(x: torch.Tensor, dim: int, used: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Bilinear resize of the first `used` rows or columns to `wanted` ones, as `F.interpolate` does it.

    They are picked by index, as both numbers are known only when an exported file runs.
    """
    count = wanted.long().item()
    torch._check(count >= 1)
    places = (torch.arange(count, device=x.device, dtype=used.dtype) + 0.5) * (used / wanted) - 0.5
    places = places.clamp(min=0)
    first = places.long()
    second = torch.minimum(first + 1, used.long() - 1)
    share = (places - first).to(x.dtype).reshape(-1, *[1] * (3 - dim))
    return x.index_select(dim, first) * (1 - share) + x.index_select(dim, second) * share
