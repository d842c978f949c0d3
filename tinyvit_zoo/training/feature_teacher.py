"""A teacher of features: any vision model of timm or transformers, by the weights that it comes with."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..build import asking_once, load_model
from ..common.errors import EvaluationError, ModelError
from ..common.extras import needs_extra
from ..common.hashes import state_hash
from ..common.text import first_few, reason
from ..data.replay import ModelInput
from ..data.transforms import data_config
from ..names import resolve_name
from ..soft_labels.transformers_teacher import Page, find_page, image_size, normalization, quiet_transformers
from .feature_readers import FeatureReader, Features, timm_reader, transformers_reader, vision_part

__all__ = ['FeatureTeacher', 'load_feature_teacher', 'load_transformers_model', 'load_vision_model', 'teacher_of']


@dataclass(frozen=True)
class FeatureTeacher:
    """A frozen model whose features a student learns.

    Attributes:
        model: In evaluation mode, its parameters without gradient.
        name: For people.
        input: How it takes images.
        read: Of its features.
    """

    model: nn.Module
    name: str
    input: ModelInput
    read: FeatureReader

    @classmethod
    def of_timm(cls, model: nn.Module, name: str, size: tuple[int, int] | None = None) -> 'FeatureTeacher':
        """A timm model, which says itself how it takes images; it is frozen.

        Args:
            model: Any that has pooled and dense features.
            name: For people.
            size: (H, W) of its images; None for the model's own.

        Raises:
            EvaluationError: If it does not take RGB images or such a size, or lacks features; see `timm_reader`.
        """
        config = data_config(model)
        size = size or tuple(config['input_size'][-2:])
        read = timm_reader(model, name, size)
        return cls(_frozen(model), name, ModelInput(size, config['mean'], config['std']), read)

    @classmethod
    def of_transformers(
        cls,
        model: nn.Module,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
    ) -> 'FeatureTeacher':
        """A model of transformers, or its part that takes images; that part is frozen.

        Args:
            model: ViT, DeiT, BEiT, DINOv2, CLIP, SigLIP, SAM or another with `last_hidden_state`.
            name: For people.
            mean: Of the normalized images, as its image processor has it.
            std: Likewise.
            size: (H, W) of its images; None for that of its configuration.

        Raises:
            EvaluationError: If it lacks features, or takes no such images; see `transformers_reader`.
        """
        model = vision_part(model)
        size = size or _configured_size(model, name)
        read = transformers_reader(model, name, size)
        return cls(_frozen(model), name, ModelInput(size, tuple(mean), tuple(std)), read)

    @property
    def sha256(self) -> str:
        """`state_hash` of its weights."""
        return state_hash(self.model)

    @torch.no_grad()
    def features(self, images: torch.Tensor, dtype: torch.dtype | None = None) -> Features:
        """Features of images (B, 3, H, W) on its device, without gradient.

        Args:
            images: As `input` says.
            dtype: That of autocast; None for none.
        """
        device = images.device.type
        with torch.autocast(device, dtype) if dtype else nullcontext():
            return self.read(self.model, images)


def load_feature_teacher(
    name: str, weights: str | Path | None = None, img_size: tuple[int, int] | None = None
) -> FeatureTeacher:
    """A teacher by its name.

    Args:
        name: Any name that timm takes; or a folder or 'hf-hub:OWNER/NAME' with a model of transformers.
        weights: Checkpoint file of a timm model, instead of the weights of its name.
        img_size: (H, W) of its images; None for its own.

    Raises:
        ModelError: On an unknown name, or arguments that do not fit.
        CheckpointError: If the weights cannot be found, read or matched.
        EvaluationError: If it lacks features, or takes no such images.
        MissingExtraError: If it needs transformers, which is not installed.
    """
    page = find_page(name)
    if page is None:
        return FeatureTeacher.of_timm(_timm_model(name, weights, img_size), name, img_size)
    if weights is not None:
        raise ModelError(f'{name} is a model of transformers, which has its weights beside it: leave {weights} out.')
    with asking_once(resolve_name(name), {}):
        return _load_transformers(page, img_size)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _timm_model(name: str, weights: str | Path | None, img_size: tuple[int, int] | None) -> nn.Module:
    """The model, built for that size where it depends on one."""
    if img_size is None:
        return load_model(name, weights)
    try:
        return load_model(name, weights, img_size=img_size)
    except ModelError as e:
        if "unexpected keyword argument 'img_size'" not in str(e):
            raise
    return load_model(name, weights)


def load_vision_model(page: Page) -> tuple[nn.Module, dict[str, Any]]:
    """The part that takes images of `load_transformers_model`, and its preprocessing. Errors are the same."""
    model, processor = load_transformers_model(page)
    return vision_part(model), processor


def load_transformers_model(page: Page) -> tuple[nn.Module, dict[str, Any]]:
    """A model of transformers, whole, in float32 and evaluation mode; and its preprocessing.

    Raises:
        ModelError: If it cannot be loaded, or lacks weights.
        MissingExtraError: If transformers is not installed.
    """
    with needs_extra('transformers'):
        from transformers import AutoImageProcessor, AutoModel
    name, place, _ = page
    try:
        with quiet_transformers():
            model, report = AutoModel.from_pretrained(place, output_loading_info=True, **page.options)
            processor = AutoImageProcessor.from_pretrained(place, **page.options).to_dict()
    except Exception as e:  # files and pages of others fail in any way
        raise ModelError(f'{name} cannot be loaded as a model of transformers: {reason(e, longest=300)}') from e
    missing = sorted(key for key in report['missing_keys'] if 'pooler.dense.' not in key)  # which is not read
    missing += [key for key, *_ in report['mismatched_keys']]
    if missing:
        raise ModelError(f'{name} has no weights for {first_few(missing)}: take a page or folder that has all of them.')
    return model.float().eval(), processor


def _load_transformers(page: Page, size: tuple[int, int] | None) -> FeatureTeacher:
    return teacher_of(page, *load_vision_model(page), size)


def teacher_of(
    page: Page, model: nn.Module, processor: dict[str, Any], size: tuple[int, int] | None = None
) -> FeatureTeacher:
    """A loaded model of transformers as teacher.

    Args:
        page: Where it lies.
        model: Of `load_vision_model` or `load_transformers_model`.
        processor: Its preprocessing.
        size: (H, W) of its images; None for its own.

    Raises:
        ModelError: If the preprocessing cannot be followed.
        EvaluationError: If it lacks features, or takes no such images.
    """
    vision: Any = vision_part(model)
    size = size or image_size(page.name, processor, vision.config)
    return FeatureTeacher.of_transformers(vision, page.name, *normalization(page.name, processor), size)


def _configured_size(model: Any, name: str) -> tuple[int, int]:
    size = getattr(model.config, 'image_size', None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise EvaluationError(f'{name} does not say the size of its images: give it (--teacher-img-size).')
