"""Shared by the tests of analyses: small models with their images."""

from pathlib import Path

from conftest import small_of
from torch import nn

from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.downstream.analysis.analysed_model import AnalysedModel

GOLDEN = Path(__file__).parent / 'golden'


def analysed(model: str | nn.Module, **arguments) -> AnalysedModel:
    """A small model of a family, or any model of timm, with the images that it takes."""
    if isinstance(model, str):
        return AnalysedModel.of_timm(small_of(model, **arguments), model)
    return AnalysedModel.of_timm(model, type(model).__name__)


def digits(images: int) -> ImageDataset:
    """The first digits, 32 pixels a side."""
    return load_dataset('digits', 'test').subset(range(images))
