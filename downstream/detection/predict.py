"""Predictions of a trained detector or segmenter for a user's images: drawn on them, and as JSON."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from tinyvit_zoo.common.errors import EvaluationError, ImageError
from tinyvit_zoo.common.files import write_together
from tinyvit_zoo.common.paths import read_json
from tinyvit_zoo.data.folders import EXTENSIONS
from tinyvit_zoo.data.image_file import load_image

from .config_parts import classes_of, datasets_of, kind_of
from .custom_data import colors
from .detector_checkpoint import load_detector

__all__ = ['Found', 'Predictor', 'Segments', 'draw', 'find_images', 'in_words', 'write_predictions']

FILL = 0.45  # opacity of masks
NARROW = 50  # from this ratio of sides on, what fails in OpenCV or the model fails for the shape


@dataclass(frozen=True)
class Found:
    """Objects in one image, by descending score.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        scores: (N,) from 0 to 1.
        labels: (N,) indices of classes.
        masks: bool (N, H, W), None for a detector without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Segments:
    """Class of every pixel of one image.

    Attributes:
        labels: int (H, W) indices of classes.
    """

    labels: np.ndarray


class Predictor:
    """The detector or segmenter of a config with the weights of a checkpoint.

    Args:
        config: Of mmdet or mmseg.
        checkpoint: Of the same model.
        device: To compute on.
        threshold: Objects with a lower score are left out.

    Attributes:
        classes: Names of the model's outputs.

    Raises:
        CheckpointError: If the checkpoint does not fit.
        EvaluationError: If the config has no test data, whose pipeline prepares an image.
    """

    def __init__(
        self, config: Config, checkpoint: str | Path, device: torch.device | str = 'cpu', threshold: float = 0.3
    ) -> None:
        self.threshold = threshold
        self.scope = config.get('default_scope') or 'mmdet'
        init_default_scope(self.scope)
        dataset = next(datasets_of(config.get('test_dataloader')), None)
        if dataset is None:
            raise EvaluationError(
                'The config has no test_dataloader, whose pipeline prepares the images: give a config for testing.'
            )
        self.classes = classes_of(dataset)
        self.prepare = Compose(_for_arrays(dataset['pipeline']))
        model = dict(config.model, train_cfg=None) if 'train_cfg' in config.model else config.model
        self.model: Any = revert_sync_batchnorm(MODELS.build(model)).to(device).eval()  # mmengine's interface
        load_detector(self.model, checkpoint, self.classes)

    def __call__(self, image: Image.Image) -> Found | Segments:
        """Predictions for an RGB image, in its own pixels.

        Raises:
            ImageError: If the image cannot be resized as the config says.
        """
        array = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # mmdet reads images as BGR
        with DefaultScope.overwrite_default_scope(self.scope), torch.inference_mode():
            try:
                data = self.prepare(dict(img=array, img_id=0, img_path='', ori_shape=array.shape[:2]))
                result = self.model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
            except (cv2.error, RuntimeError) as e:
                if max(image.size) < NARROW * min(image.size):
                    raise
                size = f'{image.width}x{image.height}'
                raise ImageError(f'An image of {size} pixels is too narrow to be resized as the config says.') from e
        if 'pred_sem_seg' in result:
            return Segments(result.pred_sem_seg.data[0].cpu().numpy())
        return _found(result.pred_instances, self.threshold)


def _for_arrays(pipeline: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a test pipeline for an image that is in memory and has no annotations."""
    reading = ('LoadImageFromFile', 'ZooLoadImage', 'LoadAnnotations')
    return [step for step in pipeline if kind_of(step) not in reading]


def _found(instances: Any, threshold: float) -> Found:
    kept = instances[instances.scores >= threshold].cpu().numpy()
    order = np.argsort(-kept.scores, kind='stable')
    masks = kept.masks[order].astype(bool) if 'masks' in kept else None
    return Found(kept.bboxes[order], kept.scores[order], kept.labels[order], masks)


# ---- images


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files, those in folders included.

    Raises:
        EvaluationError: If a path does not exist, a folder has no images, or two have the same name.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.glob('[!.]*') if file.suffix.lower() in EXTENSIONS)
            if not inside:
                raise EvaluationError(f'{path} holds no images ({", ".join(sorted(EXTENSIONS))}).')
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise EvaluationError(f'There is no image {path}.')
    stems = [file.stem for file in files]
    twice = next((file for file in files if stems.count(file.stem) > 1), None)
    if twice:
        raise EvaluationError(
            f"Several images are called '{twice.stem}', and the output would hold only one: rename them."
        )
    return files


def write_predictions(
    predictor: Predictor,
    paths: Sequence[Path],
    output: Path,
    progress: bool = False,
    refused: Callable[[str], None] | None = None,
) -> Iterator[tuple[Path, Found | Segments]]:
    """Write NAME.png, the image with the predictions drawn on it, and NAME.json, for each image.

    Args:
        predictor: Of a detector or segmenter.
        paths: Image files.
        output: Folder, created if it is missing.
        progress: Show a bar.
        refused: Called with a sentence for each image that cannot be read or resized, which is then left out. By
            default the first one ends it.

    Yields:
        The file of the drawn image, and the predictions.

    Raises:
        ImageError: If an image cannot be read or resized, without `refused`.
        EvaluationError: If the folder cannot be written to, or a file that is no prediction would be replaced.
    """
    for path in paths:
        _check_replaced(path, output / f'{path.stem}.png')
    for path in tqdm(paths, unit='image', disable=None if progress and len(paths) > 1 else True):
        try:
            image, result = _predict(predictor, path)
        except ImageError as e:  # the other images are still worth an answer
            if refused is None:
                raise
            refused(str(e))
            continue
        record = dict(image=str(path), width=image.width, height=image.height, **_plain(result, predictor.classes))
        drawn = output / f'{path.stem}.png'
        data = io.BytesIO()
        draw(image, result, predictor.classes).save(data, format='PNG')
        # The JSON, by which the next run knows the drawing, comes first: a killed run leaves no drawing alone.
        write_together({drawn.with_suffix('.json'): json.dumps(record, indent=2).encode(), drawn: data.getvalue()})
        yield drawn, result


def _check_replaced(path: Path, drawn: Path) -> None:
    """Refuse to replace an image, or files of somebody else: many tools keep what was annotated in NAME.json."""
    if drawn.resolve() == path.resolve():
        raise EvaluationError(f'{path} would be replaced by the drawn image: choose another --output.')
    record = drawn.with_suffix('.json')
    there = [file for file in (record, drawn) if file.exists()]
    if there and not _is_record(record):
        raise EvaluationError(f'{there[0]} is of something else and would be replaced: choose another --output.')


def _is_record(path: Path) -> bool:
    """Whether a file is the JSON of predictions."""
    try:
        return {'image', 'width', 'height'} < read_json(path).keys()
    except (OSError, ValueError, AttributeError):
        return False


def _predict(predictor: Predictor, path: Path) -> tuple[Image.Image, Found | Segments]:
    image = load_image(path)
    try:
        return image, predictor(image)
    except ImageError as e:
        raise ImageError(f'{path}: {e}') from e


def _plain(result: Found | Segments, classes: Sequence[str]) -> dict[str, Any]:
    if isinstance(result, Segments):
        shares = np.bincount(result.labels.ravel(), minlength=len(classes)) / result.labels.size
        return dict(shares={classes[i]: round(float(share), 6) for i, share in enumerate(shares) if share})
    from pycocotools import mask as coco_mask

    objects = []
    for i, (box, score, label) in enumerate(zip(result.boxes, result.scores, result.labels, strict=True)):
        entry = dict(name=classes[label], label=int(label), score=round(float(score), 4))
        entry['box'] = [round(float(v), 1) for v in box]
        if result.masks is not None:
            code = coco_mask.encode(np.asfortranarray(result.masks[i].astype(np.uint8)))
            entry['mask'] = dict(size=code['size'], counts=code['counts'].decode())
        objects.append(entry)
    return dict(objects=objects)


# ---- drawing


def draw(image: Image.Image, result: Found | Segments, classes: Sequence[str]) -> Image.Image:
    """A copy of an image with the predictions drawn on it.

    Args:
        image: RGB.
        result: Of a `Predictor`.
        classes: Names of its outputs.
    """
    palette = colors(len(classes))
    if isinstance(result, Segments):
        return _draw_segments(image, result, classes, palette)
    array = np.asarray(image).astype(np.float32)
    if result.masks is not None:
        for mask, label in zip(result.masks[::-1], result.labels[::-1], strict=True):
            array[mask] = (1 - FILL) * array[mask] + FILL * np.array(palette[label], np.float32)
            array[_edge(mask)] = palette[label]
    drawn = Image.fromarray(array.round().astype(np.uint8))
    canvas, font, width = ImageDraw.Draw(drawn), _font(image.size), max(1, round(min(image.size) / 250))
    for box, label in zip(result.boxes[::-1], result.labels[::-1], strict=True):
        canvas.rectangle([tuple(box[:2]), tuple(box[2:])], outline=palette[label], width=width)
    for box, score, label in zip(result.boxes[::-1], result.scores[::-1], result.labels[::-1], strict=True):
        _write_label(canvas, f'{classes[label]} {score:.2f}', box, palette[label], font, image.size)
    return drawn


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask (H, W) that have a neighbor outside it."""
    inner = np.pad(mask, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return mask & ~inner


def _font(size: tuple[int, int]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=min(28, max(11, round(min(size) / 32))))


def _write_label(
    canvas: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Write above the box if there is room, else inside it; always within the image."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    w, h = right - left + 6, bottom - top + 6
    x = max(0, min(box[0], size[0] - w))
    y = box[1] - h if box[1] >= h else min(box[1], size[1] - h)
    canvas.rectangle([x, max(0, y), x + w, max(0, y) + h], fill=color)
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    canvas.text((x + 3 - left, max(0, y) + 3 - top), text, fill='black' if light else 'white', font=font)


def _draw_segments(
    image: Image.Image, result: Segments, classes: Sequence[str], palette: list[tuple[int, int, int]]
) -> Image.Image:
    """The image tinted with the colors of its classes, and below it a legend, the largest class first."""
    tint = np.array(palette, np.float32)[result.labels]
    array = (1 - FILL) * np.asarray(image).astype(np.float32) + FILL * tint
    shares = np.bincount(result.labels.ravel(), minlength=len(classes)) / result.labels.size
    shown = [i for i in np.argsort(-shares) if shares[i]][:12]
    font = ImageFont.load_default(size=14)
    entries = [(f'{classes[i]} {100 * shares[i]:.0f} %', palette[i]) for i in shown]
    width = max(image.width, max(round(font.getlength(text)) for text, _ in entries) + 30)
    places, x, y = [], 6, 6
    for text, _ in entries:
        w = round(font.getlength(text)) + 34
        if x + w > width and x > 6:
            x, y = 6, y + 20
        places.append((x, y))
        x += w
    drawn = Image.new('RGB', (width, image.height + y + 22), 'white')
    drawn.paste(Image.fromarray(array.round().astype(np.uint8)))
    canvas = ImageDraw.Draw(drawn)
    for (text, color), (x, y) in zip(entries, places, strict=True):
        top = image.height + y
        canvas.rectangle([x, top, x + 14, top + 12], fill=color)
        canvas.text((x + 20, top - 2), text, fill='black', font=font)
    return drawn


def in_words(result: Found | Segments, classes: Sequence[str]) -> str:
    """One line: '2 cat (0.98), 1 dog (0.51)', or the shares of a segmentation."""
    if isinstance(result, Segments):
        shares = np.bincount(result.labels.ravel(), minlength=len(classes)) / result.labels.size
        return ', '.join(f'{classes[i]} {100 * shares[i]:.1f} %' for i in np.argsort(-shares)[:6] if shares[i])
    parts = []
    for label in dict.fromkeys(result.labels.tolist()):
        scores = result.scores[result.labels == label]
        parts.append(f'{len(scores)} {classes[label]} ({scores.max():.2f})')
    return ', '.join(parts) or 'nothing found'
