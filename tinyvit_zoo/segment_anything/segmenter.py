"""From an image and what marks an object on it to the object's mask, by a model or by its two ONNX files."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..common.errors import EvaluationError, ModelError
from ..common.text import first_few, reason
from ..data.sam_images import fitted_size, pixels_of
from ..export import onnx_session
from .decoder import INPUTS, OUTPUTS, STRIDE, PromptedDecoder, chosen_mask
from .export import ENCODER_INPUT, OWN_METADATA, SMALLEST
from .prompts import Prompt, prompt_arrays

__all__ = ['Segmented', 'Segmenter', 'overlay', 'png']

MASK_COLOUR, ON_COLOUR, OFF_COLOUR = (30, 144, 255), (0, 200, 0), (220, 0, 0)


@dataclass(frozen=True)
class Segmented:
    """The mask of an object.

    Attributes:
        mask: bool (height, width) of the image as it is displayed.
        iou: The model's own estimate of the IoU of mask and object.
    """

    mask: np.ndarray
    iou: float

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """(x0, y0, x1, y1) around the mask, the last two one beyond it; None where it is empty."""
        rows, columns = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class Segmenter:
    """A Segment Anything model that takes images of any size.

    Attributes:
        size: (H, W) of the images that it takes.
        rectangular: Whether the short side is not padded, but to 32 pixels where it has fewer.
        encode: Images (1, 3, H, W) to the map.
        decode: Inputs of `PromptedDecoder` to its outputs.
    """

    size: tuple[int, int]
    rectangular: bool
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    @classmethod
    def of_model(cls, model: Any) -> 'Segmenter':
        """A `TinyVitSamModel`, or another `SamModel` of transformers that normalizes images as SAM does; it is put into
        evaluation mode.

        The encoder computes in the model's dtype, the decoder in float32: places in half precision are pixels off.
        """
        side, decoder = model.config.prompt_encoder_config.image_size, PromptedDecoder(model).eval()
        weight = next(model.eval().parameters())
        if weight.dtype != torch.float32:
            decoder = copy.deepcopy(decoder).float()

        def decode(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            masks, quality, low = decoder(*(value.to(weight.device) for value in values))
            return masks.cpu(), quality.cpu(), low.cpu()

        return cls(
            (side, side), bool(getattr(model.config, 'rectangular', False)),
            lambda images: model.vision_encoder(images.to(weight.device, weight.dtype))[0].float(), decode,
        )  # fmt: skip

    @classmethod
    def of_onnx(cls, folder: str | Path) -> 'Segmenter':
        """The two files of `export_sam` in a folder, whatever their names.

        Raises:
            ModelError: If the folder does not hold one encoder and one decoder of one model, or a package is missing.
        """
        encoder, decoder = _two_files(Path(folder))
        own = encoder.facts

        def decode(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            named = {name: value.numpy() for name, value in zip(INPUTS, values, strict=True)}
            masks, quality, low = map(torch.from_numpy, decoder.session.run(list(OUTPUTS), named))
            return masks, quality, low

        return cls(
            tuple(own['img_size']), own['rectangular'] and own['dynamic'],
            lambda images: torch.from_numpy(encoder.session.run(None, {ENCODER_INPUT: images.numpy()})[0]), decode,
        )  # fmt: skip

    def size_for(self, image: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of what the encoder gets of an image (height, width)."""
        if not self.rectangular:
            return self.size
        height, width = fitted_size(*image, self.size)
        return max(height, SMALLEST), max(width, SMALLEST)

    @torch.no_grad()
    def __call__(self, image: Image.Image, prompt: Prompt) -> Segmented:
        """The mask of what is marked.

        Args:
            image: RGB, as `data.image_file.load_image` reads it.
            prompt: In its pixels.

        Raises:
            EvaluationError: If nothing inside the image is marked, or the model computes NaN or infinity.
        """
        shape = image.height, image.width
        prompt.check(*shape)
        size = self.size_for(shape)
        rows, columns = (-(-side // STRIDE) for side in size)
        points, labels = prompt_arrays(prompt, shape, size)
        masks, quality, _ = self.decode(
            self.encode(pixels_of(image, size)), points, labels, torch.zeros(1, 1, 4 * rows, 4 * columns),
            torch.zeros(1), torch.tensor(shape, dtype=torch.float32),
        )  # fmt: skip
        if not quality.isfinite().all():
            raise EvaluationError(
                'The model computes NaN or infinity: its weights are damaged, or too large for their half precision.'
            )
        best = int(chosen_mask(quality, points.shape[1])) if masks.shape[1] > 1 else 0
        return Segmented((masks[0, best] > 0).numpy(), quality[0, best].item())


@dataclass(frozen=True)
class _File:
    path: Path
    session: Any
    facts: dict[str, Any]


def _two_files(folder: Path) -> tuple[_File, _File]:
    """Encoder and decoder."""
    if not folder.is_dir():
        raise ModelError(f'No folder at {folder}: --onnx takes the folder of the two files of sam export.')
    found = [file for path in sorted(folder.glob('*.onnx')) if (file := _opened(path)) is not None]
    parts = {part: [file for file in found if file.facts['part'] == part] for part in ('encoder', 'decoder')}
    for part, files in parts.items():
        if not files:
            raise ModelError(f'{folder} holds no {part} of a Segment Anything model: write it with sam export.')
        if len(files) > 1:
            names = first_few([file.path.name for file in files])
            raise ModelError(f'{folder} holds several files of a {part} ({names}): leave one of them in it.')
    encoder, decoder = parts['encoder'][0], parts['decoder'][0]
    if any(encoder.facts[key] != decoder.facts[key] for key in ('weights', 'img_size', 'dynamic')):
        raise ModelError(
            f'{encoder.path.name} and {decoder.path.name} in {folder} are of different models or sizes: export both '
            'anew.'
        )
    return encoder, decoder


def _opened(path: Path) -> _File | None:
    """A file of ours, or None for any other ONNX file."""
    try:
        session = onnx_session(path)
        facts = json.loads(session.get_modelmeta().custom_metadata_map.get(OWN_METADATA, 'null'))
    except ImportError:
        raise
    except Exception as e:  # onnxruntime has many errors of its own
        raise ModelError(f'{path} cannot be read as an ONNX file ({reason(e)}): export it anew.') from e
    return None if facts is None else _File(path, session, facts)


def png(mask: np.ndarray) -> bytes:
    """A mask as a gray PNG: 255 on the object, 0 elsewhere."""
    return _encoded(Image.fromarray(mask.astype(np.uint8) * 255))


def overlay(image: Image.Image, mask: np.ndarray, prompt: Prompt) -> bytes:
    """The image with its mask in half-transparent blue, points and box drawn, as a PNG.

    Args:
        image: RGB.
        mask: bool (height, width).
        prompt: In pixels of the image.
    """
    pixels = np.array(image)
    pixels[mask] = (pixels[mask].astype(np.uint16) + MASK_COLOUR) // 2
    drawn = Image.fromarray(pixels)
    draw, radius = ImageDraw.Draw(drawn), max(2, max(image.size) // 200)
    for points, colour in ((prompt.points, ON_COLOUR), (prompt.others, OFF_COLOUR)):
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline='white')
    if prompt.box is not None:
        draw.rectangle(prompt.box, outline=ON_COLOUR, width=max(1, radius // 2))
    return _encoded(drawn)


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()
