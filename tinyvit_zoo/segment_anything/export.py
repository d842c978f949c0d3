"""A Segment Anything model as two ONNX files: the encoder, which is run once an image, and what answers to prompts."""

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import reparameterize_model
from torch import nn
from torch.export import Dim

from ..common.errors import ModelError
from ..common.files import new_files
from ..common.hashes import state_hash
from ..common.paths import user_path
from ..data.sam_images import MEAN, STD
from ..export import METADATA, check_output, onnx_session, producer, save_onnx, sizes_left_open
from .decoder import INPUTS, OUTPUTS, STRIDE, PromptedDecoder

__all__ = ['ExportedSam', 'check_files', 'export_sam']

ENCODER_INPUT, ENCODER_OUTPUT = 'images', 'image_embeddings'
OWN_METADATA = 'segment_anything'
"""Key of the metadata that both files have beside those of any export: JSON, see `export_sam`."""

TOLERANCE = 1e-4
"""Largest allowed difference from PyTorch, relative to the largest value."""

SMALLEST = 32


@dataclass(frozen=True)
class ExportedSam:
    """Files that were written and verified.

    Attributes:
        encoder: The file of the encoder, or None.
        decoder: The file of the prompt encoder and mask decoder, or None.
        img_size: (H, W) of the images, of which other sizes are taken too if `dynamic`.
        dynamic: Whether they are.
        differences: Largest difference from PyTorch of each file, relative to the largest value, by 'encoder' and
            'decoder'.
    """

    encoder: Path | None
    decoder: Path | None
    img_size: tuple[int, int]
    dynamic: bool
    differences: Mapping[str, float]


class _Embeddings(nn.Module):
    """An encoder of transformers without its output class."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)[0]


def _plain_encoder(encoder: Any) -> nn.Module:
    """From images to one tensor; of a `TinyVitSamModel` for images of any size."""
    return encoder.encoder() if hasattr(encoder, 'encoder') else _Embeddings(encoder)


@torch.no_grad()
def export_sam(
    model: Any,
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    *,
    img_size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    all_masks: bool = False,
) -> ExportedSam:
    """Write the two ONNX files, folded and verified against PyTorch. Both appear once both are whole.

    The encoder takes 'images' float32 (1, 3, H, W), as `data.sam_images.pixels_of` makes them, and returns
    'image_embeddings' (1, 256, H/16, W/16). The decoder has the inputs and outputs of `PromptedDecoder`, by name.

    Metadata of both: those of any export of this package ('labels' is an empty list, 'preprocessing' has size, mean and
    standard deviation), and 'segment_anything', JSON with 'part' ('encoder' or 'decoder'), 'img_size' [H, W],
    'dynamic', 'rectangular', and 'weights', which is the same in files of one model.

    Args:
        model: A `TinyVitSamModel`, or another `SamModel` of transformers whose encoder takes such images; not changed.
        encoder: '*.onnx', or None to leave it out.
        decoder: Likewise.
        img_size: (H, W), multiples of 16; None for the model's own.
        dynamic_size: Take images of other sizes as well: any of 32x32 at least.
        all_masks: Let the decoder return 4 masks instead of one that is chosen, see `PromptedDecoder`.

    Raises:
        ModelError: If a name or size does not fit, a package is missing, or a file does not compute what the model
            does; nothing is written then.
        OSError: If a file cannot be written.
    """
    found = zip(('encoder', 'decoder'), check_files(encoder, decoder), strict=True)
    paths = {part: path for part, path in found if path is not None}
    size = img_size or (model.config.prompt_encoder_config.image_size,) * 2
    if min(size) < SMALLEST or any(side % STRIDE for side in size):
        raise ModelError(
            f'Sides of images must be multiples of {STRIDE}, of {SMALLEST} at least, not {size[0]}x{size[1]}.'
        )
    traced = _Traced(copy.deepcopy(model).float().cpu().eval(), size, dynamic_size, all_masks)
    differences = {}
    with new_files(*paths.values()) as files:  # renamed only when all of them are whole
        for part, new in zip(paths, files, strict=True):
            differences[part] = traced.write(part, new)
            if not differences[part] <= TOLERANCE:
                raise ModelError(
                    f'The exported {part} differs from PyTorch by {differences[part]:.1e} of the largest value, '
                    f'more than {TOLERANCE:.0e}: nothing was written.'
                )
    return ExportedSam(paths.get('encoder'), paths.get('decoder'), size, dynamic_size, differences)


def check_files(encoder: str | Path | None, decoder: str | Path | None) -> tuple[Path | None, Path | None]:
    """The two files to write.

    Raises:
        ModelError: If there is none, both are the same, one has another suffix than '.onnx' or cannot be
            written, or a package is missing.
    """
    first, second = (None if path is None else user_path(path) for path in (encoder, decoder))
    if first is None and second is None:
        raise ModelError('Nothing to export: name a file for the encoder (--encoder), the decoder (--decoder) or both.')
    if first is not None and second is not None and first.resolve() == second.resolve():
        raise ModelError(f'{first} cannot be encoder and decoder: give each a file of its own.')
    for path in (first, second):
        if path is not None:
            check_output(path, 'onnx')
    return first, second


@dataclass(frozen=True)
class _Traced:
    """What is written of a model in float32, on the CPU and in evaluation mode."""

    model: Any
    size: tuple[int, int]
    dynamic: bool
    all_masks: bool

    def write(self, part: str, path: Path) -> float:
        """Write a part to a file; its largest difference from PyTorch."""
        return self._encoder(path) if part == 'encoder' else self._decoder(path)

    def _encoder(self, path: Path) -> float:
        module = _plain_encoder(self.model.vision_encoder).eval()
        open_sides: Any = {i: Dim(n, min=SMALLEST) for i, n in ((2, 'height'), (3, 'width'))}
        names = {2: 'height', 3: 'width'} if self.dynamic else {}
        images = [torch.randn(1, 3, *size, generator=_generator()) for size in self._sizes()]
        with sizes_left_open() if self.dynamic else nullcontext():
            program = torch.export.export(
                reparameterize_model(module), (images[0],), dynamic_shapes=(open_sides if self.dynamic else None,)
            )
        save_onnx(program, path, [ENCODER_INPUT], [ENCODER_OUTPUT], [names], self._metadata('encoder'))
        return _largest_difference(path, module, [ENCODER_INPUT], [[x] for x in images])

    def _decoder(self, path: Path) -> float:
        module = PromptedDecoder(self.model, self.all_masks)
        points = {1: 'num_points'}
        sides: tuple[Any, ...] = ({}, points, {}, {}, {}, {})  # each name once
        shapes: tuple[Any, ...] = (None, *[{1: Dim('num_points')}] * 2, None, None, None)
        if self.dynamic:
            rows, columns = Dim('rows', min=2), Dim('columns', min=2)
            shapes = ({2: rows, 3: columns}, *shapes[1:3], {2: 4 * rows, 3: 4 * columns}, None, None)
            sides = ({2: 'rows', 3: 'columns'}, points, {}, {2: 'mask_rows', 3: 'mask_columns'}, {}, {})
        inputs = [_prompted(size, points) for size in self._sizes() for points in (3, 1)]
        program = torch.export.export(module, inputs[0], dynamic_shapes=shapes)
        save_onnx(program, path, INPUTS, OUTPUTS, sides, self._metadata('decoder'))
        return _largest_difference(path, module, INPUTS, inputs)

    def _sizes(self) -> list[tuple[int, int]]:
        """Of the images to compare the results of; the first is that of the trace."""
        height, width = self.size
        # torch.export must not take the sides for equal.
        return [(height, width + 2 * STRIDE), self.size] if self.dynamic else [self.size]

    def _metadata(self, part: str) -> dict[str, str]:
        config = self.model.config
        preprocessing = dict(
            input_size=[3, *self.size], interpolation='bilinear', mean=list(MEAN), std=list(STD), crop_pct=1.0,
            crop_mode='corner',
        )  # fmt: skip
        own = dict(
            part=part, img_size=list(self.size), dynamic=self.dynamic,
            rectangular=bool(getattr(config, 'rectangular', False)), weights=state_hash(self.model),
        )  # fmt: skip
        values = producer(), config.model_type, 'unknown', '[]', json.dumps(preprocessing)
        return dict(zip(METADATA, values, strict=True)) | {OWN_METADATA: json.dumps(own)}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _prompted(size: tuple[int, int], points: int) -> tuple[torch.Tensor, ...]:
    """Inputs of the decoder for images of a size."""
    height, width = (side // STRIDE for side in size)
    random = _generator()
    places = torch.rand(1, points, 2, generator=random) * torch.tensor([size[1], size[0]])
    return (
        torch.randn(1, 256, height, width, generator=random),
        places,
        torch.tensor([[1.0, 0.0, -1.0][:points]]),
        torch.randn(1, 1, 4 * height, 4 * width, generator=random),
        torch.tensor([float(points == 1)]),
        torch.tensor([float(size[0] // 3), size[1] // 2 + 7.0]),
    )


def _largest_difference(
    path: Path, module: nn.Module, names: Sequence[str], inputs: Sequence[Sequence[torch.Tensor]]
) -> float:
    """Of a file and the module that it was made of, over all outputs.

    Relative to the largest value of each; of the estimated IoU, a number or four, relative to 1, which it is out of.
    """
    session, found = onnx_session(path), []
    for tensors in inputs:
        outputs = module(*tensors)
        results = session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})
        for result, output in zip(results, [outputs] if isinstance(outputs, torch.Tensor) else outputs, strict=True):
            scale = output.abs().max() if output.ndim == 4 else 1.0
            found.append(float((torch.from_numpy(result) - output).abs().max() / scale))
    return max(found)
