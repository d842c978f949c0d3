"""Stand-in for mmcv's compiled ops (`mmcv._ext`), built on torchvision: the ones that this package's detectors call.

NMS (and thus `batched_nms`), average-pooling RoIAlign, and the sigmoid focal loss, which mmdet's RetinaNet takes from
mmcv on a GPU only. Names and arguments are those with which mmcv's Python code calls its extension. Any other op can be
imported, and raises when called.

The file is independent of this package: `tinyvit-zoo detect install-ops` copies it to `mmcv/_ext.py`, where a compiled
`mmcv/_ext.*.so` in the same folder still takes precedence.

Half precision is computed in float32 and cast back: on an image of 1344 pixels, float16 rounds the corners of a box to
whole pixels, and sums of gradients lose more.

Shape legend: `N` boxes or predictions, `K` RoIs, `B` images, `C` channels or classes.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor

STAND_IN_OF = 'tinyvit-zoo'
"""Distinguishes this file from any other `mmcv/_ext.py`."""

AVERAGE = 1


def _precise(*tensors: Tensor) -> list[Tensor]:
    """All in float64 if one is, else in float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return [t.detach().to(torch.float64 if double else torch.float32) for t in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes kept, by descending score.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: A box is removed if it overlaps a better one by more than this.
        offset: 1 if a box's width is x2 - x1 + 1, as before mmdet 2.

    Returns:
        int64, at most (N,).
    """
    boxes, scores = _precise(boxes, scores)
    return torchvision.ops.nms(boxes + boxes.new_tensor([0, 0, offset, offset]), scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output`, (K, C, aligned_height, aligned_width), with the means of `input`, (B, C, H, W), over bins of RoIs.

    Args:
        input: Features.
        rois: (K, 5) as index of the image, x1, y1, x2, y2 in pixels of the image.
        output: Receives the result, in its own dtype.
        argmax_y: For max pooling only.
        argmax_x: For max pooling only.
        aligned_height: Bins of a RoI along its height.
        aligned_width: Bins of a RoI along its width.
        spatial_scale: Pixels of features per pixel of the image.
        sampling_ratio: Samples per bin and side; 0 for as many as a bin has pixels.
        pool_mode: 1, average.
        aligned: Pixel centers are at .5.

    Raises:
        NotImplementedError: On max pooling.
    """
    if pool_mode != AVERAGE:
        _missing("roi_align_forward' with pool_mode 'max")
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(*_precise(input, rois), size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `grad_input`, (B, C, H, W), given `grad_output`, (K, C, aligned_height, aligned_width).

    Other arguments and errors as in `roi_align_forward`.
    """
    if pool_mode != AVERAGE:
        _missing("roi_align_backward' with pool_mode 'max")
    size = (aligned_height, aligned_width)
    backward = torch.ops.torchvision._roi_align_backward
    grad_output, rois = _precise(grad_output, rois)
    grad_input.copy_(backward(grad_output, rois, spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned))


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `output`, (N, C), with the focal loss of every logit (Lin et al. 2017, eq. 5).

    Args:
        input: (N, C), logits.
        target: int64 (N,), the class; C for none.
        weight: (C,), factor of a row by its class, or empty.
        output: Receives the result, in its own dtype.
        gamma: Exponent.
        alpha: Weight of the positives.
    """
    (logits,) = _precise(input)
    output.copy_(_focal_loss(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `grad_input`, (N, C), with the derivative of each loss by its logit. Arguments as in the forward pass."""
    (logits,) = _precise(input)
    with torch.enable_grad():
        logits.requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(loss, logits)[0])


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = (target[:, None] == torch.arange(logits.shape[1], device=target.device)).to(logits)
    loss = torchvision.ops.sigmoid_focal_loss(logits, positive, alpha, gamma)
    if weight.numel():
        of_none = weight.new_ones(1)
        loss = loss * torch.cat([weight, of_none])[target, None].to(logits)
    return loss


def get_compiler_version() -> str:
    """For mmcv's `collect_env`."""
    return f'none (stand-in of {STAND_IN_OF}, torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """For mmcv's `collect_env`."""
    return f"torchvision's ({torch.version.cuda or 'none'})"


def _missing(op: str) -> NoReturn:
    raise NotImplementedError(
        f"'{op}' is one of mmcv's compiled ops that the stand-in of {STAND_IN_OF} does not have (it has NMS, "
        'average-pooling RoIAlign and the sigmoid focal loss): install a compiled mmcv (2.1.0 for mmdet 3.3.0) instead '
        "of mmcv-lite, or mmdet's fork onedl-mmdetection with a compiled onedl-mmcv."
    )


def __getattr__(name: str) -> Callable[..., Any]:
    # mmcv checks at import, by hasattr, every op that it knows; Python itself asks for names with underscores.
    if name.startswith('_'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute '{name}'")

    def op(*args: Any, **kwargs: Any) -> NoReturn:
        _missing(name)

    op.__name__ = name
    return op
