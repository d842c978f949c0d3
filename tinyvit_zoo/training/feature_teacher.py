"""A teacher of features: any vision model of timm or transformers, by the weights that it comes with."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..build import load_model
from ..common.errors import EvaluationError, ModelError
from ..common.extras import needs_extra
from ..common.hashes import state_hash
from ..common.paths import read_json
from ..common.text import reason
from ..data.replay import ModelInput
from ..data.transforms import data_config
from .feature_readers import FeatureReader, Features, timm_reader, transformers_reader, vision_part

__all__ = ['TRANSFORMERS', 'FeatureTeacher', 'load_feature_teacher']

TRANSFORMERS = 'transformers:'
"""What the name of a model of transformers begins with: a page of the Hub or a folder follows."""


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
        name: Any name that timm takes; 'transformers:OWNER/NAME' or 'transformers:FOLDER', or the folder alone.
        weights: Checkpoint file of a timm model, instead of the weights of its name.
        img_size: (H, W) of its images; None for its own.

    Raises:
        ModelError: On an unknown name, or arguments that do not fit.
        CheckpointError: If the weights cannot be found, read or matched.
        EvaluationError: If it lacks features, or takes no such images.
        MissingExtraError: If it needs transformers, which is not installed.
    """
    place = _transformers_place(name)
    if place is None:
        return FeatureTeacher.of_timm(_timm_model(name, weights, img_size), name, img_size)
    if weights is not None:
        raise EvaluationError(
            f'{name} comes with its own weights: leave out the file, or give the name of a timm model.'
        )
    return _load_transformers(place, name, img_size)


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


def _transformers_place(name: str) -> str | None:
    """The page or folder of a transformers model; None if the name is timm's."""
    if name.startswith(TRANSFORMERS):
        return name.removeprefix(TRANSFORMERS)
    if name and os.path.isfile(Path(name) / 'config.json'):
        try:
            config = read_json(Path(name) / 'config.json')
        except ValueError:  # for timm's loader to report
            return None
        if isinstance(config, dict) and 'model_type' in config and 'architecture' not in config:
            return name
    return None


def _load_transformers(place: str, name: str, size: tuple[int, int] | None) -> FeatureTeacher:
    with needs_extra('transformers'):
        from transformers import AutoModel
        from transformers.image_processing_base import ImageProcessingMixin
    try:
        model, found = AutoModel.from_pretrained(place, output_loading_info=True)
        processor, _ = ImageProcessingMixin.get_image_processor_dict(place)
    except Exception as e:  # the Hub client and the files of others fail in any way
        raise EvaluationError(f'{name} cannot be read as a model of transformers ({reason(e)}): check the name.') from e
    missing = sorted(key for key in found['missing_keys'] if 'pooler.dense.' not in key)  # which is not read
    if missing:
        raise EvaluationError(f'{name} lacks weights, such as {missing[0]}: take a page that has all of them.')
    if processor.get('do_normalize', True):
        if not {'image_mean', 'image_std'} <= processor.keys():
            raise EvaluationError(f'{name} lacks image_mean and image_std in preprocessor_config.json: add that file.')
        mean, std = processor['image_mean'], processor['image_std']
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return FeatureTeacher.of_transformers(model, name, mean, std, size)


def _configured_size(model: Any, name: str) -> tuple[int, int]:
    size = getattr(model.config, 'image_size', None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise EvaluationError(f'{name} does not say the size of its images: give it (--teacher-img-size).')
