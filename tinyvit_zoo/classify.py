"""From images to class names: the model's own preprocessing and class names."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from torch import nn

from .common.errors import ImageError, ModelError
from .common.extras import needs_extra
from .common.files import write_whole
from .common.preprocessing import model_data_config
from .common.text import count_of, reason
from .data.image_file import load_image

__all__ = ['Classifier', 'ImageError', 'OnnxClassifier', 'Prediction', 'class_names', 'load_image', 'write_predictions']

# The label sets of released heads. Other class counts in timm's table are more likely a user's own classes.
LABEL_SETS = (1000, 21841)
PREPROCESSING = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
"""What the metadata of an exported file says of images, as arguments of timm's `create_transform`."""


@dataclass(frozen=True)
class Prediction:
    """A class, its name and its probability."""

    index: int
    label: str
    probability: float


def class_names(model: nn.Module) -> list[str]:
    """Name of every class of a model.

    These are its own label names (from the config.json of a folder or Hub page), with their descriptions if it has
    any; otherwise ImageNet's, by the number of classes; otherwise 'class i'.
    """
    cfg = getattr(model, 'pretrained_cfg', {})
    count: Any = model.num_classes
    names = cfg.get('label_names')
    if isinstance(names, dict):  # by index if indices have gaps; JSON turns them into strings
        names = [names.get(str(i), names.get(i, f'class {i}')) for i in range(count)]
    if names and len(names) == count:  # a model with a new head keeps the cfg of the old one
        descriptions = cfg.get('label_descriptions') or {}
        return [str(descriptions.get(name, name)) for name in names]
    subset = infer_imagenet_subset(model) if count in LABEL_SETS else None
    return list(ImageNetInfo(subset).label_descriptions()) if subset else [f'class {i}' for i in range(count)]


class Classifier:
    """A model with its preprocessing and class names.

    Args:
        model: In eval mode, with a classifier, for RGB images.

    Raises:
        ModelError: If the model has no classifier or does not take RGB.
    """

    def __init__(self, model: nn.Module) -> None:
        data_config = model_data_config(model)
        if not model.num_classes:
            raise ModelError('This model has no classifier (0 classes): it gives features only.')
        channels = getattr(model, 'in_chans', 3)
        if channels != 3:
            raise ModelError(f'This model takes {count_of(channels, "channel")}, but images are read as RGB.')
        self.model = model
        self.transform = create_transform(**data_config, is_training=False)
        self.names = class_names(model)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, topk: int = 5) -> list[Prediction]:
        """The `topk` most probable classes of an RGB image, best first (fewer if the model has fewer)."""
        parameter = next(self.model.parameters())
        batch = self.transform(image)[None].to(device=parameter.device, dtype=parameter.dtype)
        return _best(self.model(batch)[0], self.names, topk)


class OnnxClassifier:
    """An exported file with the preprocessing and class names of its metadata; used as a `Classifier` is.

    Args:
        path: '*.onnx' of `tinyvit_zoo.export`, whatever it computes in.

    Raises:
        ModelError: If onnxruntime cannot open the file, it has no classes, or its metadata says nothing of images or
            does not fit its inputs and outputs.
    """

    def __init__(self, path: str | Path) -> None:
        with needs_extra('export'):
            import onnxruntime
        if not Path(path).is_file():
            raise ModelError(f'{path} is not a file.')
        try:
            self._session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        except Exception as e:  # its errors have no common class
            raise ModelError(f'{path} cannot be opened as ONNX: {reason(e)}') from e
        found = self._session.get_modelmeta().custom_metadata_map
        try:
            self.names: list[str] = [str(name) for name in json.loads(found['labels'])]
            facts = json.loads(found['preprocessing'])
            preprocessing = {key: facts[key] for key in PREPROCESSING}
            channels, height, width = map(int, preprocessing['input_size'])
            self.transform = create_transform(**preprocessing, is_training=False)
            self.transform(Image.new('RGB', (8, 8)))  # a deviation of 0 is noticed here
        except (KeyError, ValueError, TypeError, AttributeError) as e:
            raise ModelError(
                f'{path} says nothing of its labels and preprocessing: classify takes files that tinyvit-zoo export '
                'has written.'
            ) from e
        if not self.names:
            raise ModelError(f'{path} has no classifier (0 classes): it gives features only.')
        if channels != 3:
            raise ModelError(f'{path} takes {count_of(channels, "channel")}, but images are read as RGB.')
        if not self._fits((1, channels, height, width)):
            raise ModelError(
                f"{path} has other inputs or outputs than its labels and preprocessing ask for: 'images' "
                f'(1, {channels}, {height}, {width}) in float32 to {len(self.names)} classes.'
            )

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the file has one input of this shape and one output with all classes; names stand for any number."""

        def like(given: Sequence[Any], wanted: Sequence[int]) -> bool:
            other = (isinstance(a, int) and a != b for a, b in zip(given, wanted, strict=False))
            return len(given) == len(wanted) and not any(other)

        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        return (
            [(x.name, x.type) for x in inputs] == [('images', 'tensor(float)')]
            and like(inputs[0].shape, shape)
            and like(outputs[0].shape, (1, len(self.names)))
        )

    def __call__(self, image: Image.Image, topk: int = 5) -> list[Prediction]:
        """The `topk` most probable classes of an RGB image, best first (fewer if the model has fewer)."""
        batch = self.transform(image)[None].float().numpy()
        return _best(torch.from_numpy(self._session.run(None, {'images': batch})[0])[0], self.names, topk)


def _best(logits: torch.Tensor, names: Sequence[str], topk: int) -> list[Prediction]:
    """Logits (classes) to the most probable classes, best first; of a single class its sigmoid, as it has no other."""
    probabilities = logits.float().sigmoid() if len(names) == 1 else logits.float().softmax(dim=0)
    values, indices = probabilities.topk(min(topk, len(names)))
    return [Prediction(i, names[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]


def write_predictions(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write what images were classified as; the file appears whole or not at all.

    Args:
        path: '*.json' for the results as they are, else CSV with one row per prediction: image, rank (from 1), index,
            label, probability, and error for an image that could not be read.
        results: One per image: 'image', and either 'predictions' (fields of `Prediction`, best first) or 'error'.

    Raises:
        EvaluationError: If the file cannot be written.
    """
    if path.suffix.lower() == '.json':
        text = json.dumps(results, indent=2, ensure_ascii=False) + '\n'
    else:
        out = io.StringIO(newline='')
        writer = csv.DictWriter(out, ['image', 'rank', 'index', 'label', 'probability', 'error'])
        writer.writeheader()
        for result in results:
            rows = [dict(rank=i, **p) for i, p in enumerate(result.get('predictions', ()), 1)]
            writer.writerows(dict(image=result['image'], **row) for row in rows or [dict(error=result['error'])])
        text = out.getvalue()
    write_whole(path, text.encode(errors='surrogateescape'))
