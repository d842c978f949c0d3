"""TinyViT as the image encoder of Segment Anything (SAM), as in MobileSAM and those that follow it.

Segment Anything: https://arxiv.org/abs/2304.02643, https://github.com/facebookresearch/segment-anything (Apache-2.0).
MobileSAM: https://arxiv.org/abs/2306.14289, https://github.com/ChaoningZhang/MobileSAM (Apache-2.0).

The trunk is TinyViT with a last map of stride 16 and windows of 7, 7, 14 and 7 at every image size; so the parameters
of one size are those of every other. SAM's neck follows: 1x1 and 3x3 convolution, each with a norm over channels.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers import LayerNorm2d
from torch import nn

from ..build import build_model
from ..checkpoints import (
    SAM_ENCODER_KEYS,
    SAM_TRUNK,
    TINYVIT_KEYS,
    CheckpointError,
    check_keys,
    is_whole_sam,
    read_checkpoint,
    refuse_other_sam,
    sam_encoder_part,
    stage_tables,
    unwrap,
    warn_nonfinite,
    with_counters,
    without_classifier,
)
from ..common.errors import ModelError
from ..layers import resize_grid
from ..models import TinyViT

__all__ = ['SAM_WINDOWS', 'SamImageEncoder', 'encoder_weights', 'load_sam_encoder', 'sam_encoder']

_logger = logging.getLogger(__name__)

SAM_WINDOWS = (7, 7, 14, 7)
"""Windows of each stage in the released encoder, whatever the image size; stage 0 has none in use."""

LEAST = 32


class SamImageEncoder(nn.Module):
    """TinyViT and SAM's neck: images in, one map of stride 16 out.

    Images are RGB, normalized with ImageNet's mean and standard deviation first and padded with zeros at the bottom
    and right afterwards, as SAM does. Any height and width of at least 32 is taken, whatever `img_size` is.

    State-dict names are those of the parts with the prefix `trunk.` or `neck.`; `SAM_ENCODER_KEYS.to_official` gives
    the released ones. `timm.models.reparameterize_model` makes the deploy form.

    Args:
        trunk: A TinyViT made with `output_stride=16`. It is changed in place: it loses its head.
        out_chans: Channels of the result; 256 is what SAM's mask decoder takes.
        neck: One that is there already, instead of a new one.

    Raises:
        ValueError: If the trunk is not a TinyViT with a last map of stride 16.
    """

    stride = 16

    def __init__(self, trunk: TinyViT, out_chans: int = 256, neck: nn.Sequential | None = None) -> None:
        super().__init__()
        if not isinstance(trunk, TinyViT) or trunk.feature_info[-1]['reduction'] != self.stride:
            raise ValueError('The trunk of a SAM encoder must be a TinyViT made with output_stride=16.')
        trunk.reset_classifier(0, '', reset_other=True)
        self.in_chans = trunk.in_chans
        self.trunk = trunk
        self.neck = _neck(trunk, out_chans) if neck is None else neck

    @property
    def img_size(self) -> tuple[int, int]:
        """(H, W) that it was made for; others are taken as well."""
        return self.trunk.img_size

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {SAM_TRUNK + name for name in self.trunk.no_weight_decay()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> embeddings (B, out_chans, ceil(H / 16), ceil(W / 16)).

        Raises:
            AssertionError: If a side is shorter than 32.
        """
        torch._assert(x.shape[-2] >= LEAST, 'Images must be at least 32 pixels high: enlarge or pad them.')
        torch._assert(x.shape[-1] >= LEAST, 'Images must be at least 32 pixels wide: enlarge or pad them.')
        return self.neck(self.trunk.forward_features(x))


def _neck(trunk: TinyViT, out_chans: int) -> nn.Sequential:
    weight = next(trunk.parameters())
    dd: dict[str, Any] = {'device': weight.device, 'dtype': weight.dtype}
    return nn.Sequential(
        nn.Conv2d(trunk.num_features, out_chans, 1, bias=False, **dd),
        LayerNorm2d(out_chans, eps=1e-6, **dd),
        nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False, **dd),
        LayerNorm2d(out_chans, eps=1e-6, **dd),
    )


def sam_encoder(
    name: str = 'tinyvit_5m_224',
    img_size: int | tuple[int, int] = 1024,
    weights: str | Path | Mapping | None = None,
    window_sizes: int | Sequence | None = None,
    out_chans: int = 256,
    drop_path_rate: float = 0.0,
    part: str | None = None,
    device=None,
    dtype=None,
) -> SamImageEncoder:
    """SAM's image encoder on a TinyViT, in evaluation mode.

    Args:
        name: Architecture of the trunk: a TinyViT of this package. The released encoder is a `tinyvit_5m_224`.
        img_size: H, or (H, W), to record; images of every other size are taken, too, and no weight depends on it.
        weights: See `load_sam_encoder`; None for random ones.
        window_sizes: Windows instead of 7, 7, 14, 7; see `TinyViT`. Bias tables of `weights` are resized to them.
        out_chans: Channels of the result.
        drop_path_rate: Stochastic depth in training; none as released.
        part: Which of several models in the file, see `checkpoints.read_checkpoint`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ModelError: If there is no TinyViT of that name, or the arguments do not fit.
        CheckpointError: If the weights cannot be found, read or matched.
    """
    if not name.startswith('tinyvit_'):
        raise ModelError(f'{name} is not a TinyViT of this package, which the SAM encoder needs: name tinyvit_5m_224.')
    trunk = build_model(
        name,
        img_size=img_size,
        window_sizes=SAM_WINDOWS if window_sizes is None else window_sizes,
        output_stride=16,
        num_classes=0,
        drop_path_rate=drop_path_rate,
        device=device,
        dtype=dtype,
    )
    encoder = SamImageEncoder(cast(TinyViT, trunk), out_chans).eval()
    if weights is not None:
        load_sam_encoder(encoder, weights, part)
    return encoder


def load_sam_encoder(encoder: SamImageEncoder, source: str | Path | Mapping, part: str | None = None) -> None:
    """Fill an encoder in place.

    Taken are: a whole SAM with a TinyViT encoder (`mobile_sam.pt`; a folder of `hub.sam`), of which the encoder is
    used; the encoder alone under the released names or ours; and any TinyViT, released or yours, which starts an
    encoder: the neck then keeps its initial values, and a warning says so. Norm and classifier of TinyViT, which
    SAM's files still have, are left out. Every other name must fit. Tables of other windows are resized (bicubic).

    Args:
        encoder: To fill.
        source: A file or folder, a loaded checkpoint, or `architecture.tag` of a TinyViT of the zoo.
        part: Which of several models in the checkpoint, see `checkpoints.read_checkpoint`.

    Raises:
        CheckpointError: If the checkpoint cannot be found or read, or a name in it is unknown, missing or of another
            shape. The encoder is then unchanged.
    """
    state_dict, origin = _read(source, part)
    warn_nonfinite(state_dict, origin)
    try:
        weights = encoder_weights(state_dict, encoder)
    except CheckpointError as e:
        raise CheckpointError(f'{origin}: {e}') from e
    if not any(k.startswith('neck.') for k in weights):
        _logger.warning('%s is a TinyViT without the neck of SAM: the neck keeps its random initial values.', origin)
    encoder.load_state_dict(weights, strict=False)


def encoder_weights(state_dict: Mapping[str, torch.Tensor], encoder: SamImageEncoder) -> dict[str, torch.Tensor]:
    """The weights of an encoder in a checkpoint under our names, all accounted for; of a plain TinyViT no neck.

    Args:
        state_dict: Already unwrapped, of a whole SAM with the prefixes of its parts.
        encoder: That will load them.

    Raises:
        CheckpointError: See `load_sam_encoder`.
    """
    found = sam_encoder_part(state_dict)
    refuse_other_sam(found)
    neck = {k: v for k, v in found.items() if k.startswith('neck.')}
    trunk = {k: v for k, v in found.items() if k not in neck}
    ours = {k.removeprefix(SAM_TRUNK): v for k, v in trunk.items() if k.startswith(SAM_TRUNK)}
    foreign = {k: v for k, v in trunk.items() if ours and not k.startswith(SAM_TRUNK)}
    trunk, layout = TINYVIT_KEYS.to_ours(without_classifier(ours or trunk))
    for key, source, target in stage_tables(trunk, encoder.trunk, layout, None, 'attention_biases', 1):
        trunk[key] = resize_grid(trunk[key].reshape(-1, *source), target, encoder.trunk.bias_interpolation).flatten(1)
    expected = encoder.state_dict()
    named = {SAM_TRUNK + k if SAM_TRUNK + k in expected else k: v for k, v in trunk.items()}
    weights = {**named, **neck, **foreign}
    if not neck and not is_whole_sam(state_dict) and not ours:
        expected = {k: v for k, v in expected.items() if not k.startswith('neck.')}
    weights = with_counters(weights, expected)
    check_keys(weights, expected, SAM_ENCODER_KEYS, layout, source_chans=encoder.in_chans)
    return weights


def _read(source: str | Path | Mapping, part: str | None) -> tuple[dict[str, torch.Tensor], str]:
    """State dict, and its name in messages."""
    if isinstance(source, Mapping):
        return unwrap(source, 'the state dict given', whole=True, part=part), 'the state dict given'
    if timm.is_model(str(source).partition('.')[0]) and not Path(source).exists():
        return build_model(str(source), pretrained=True).state_dict(), str(source)
    return read_checkpoint(source, whole=True, part=part), str(source)
