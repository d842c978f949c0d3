"""Labelled images by name: how data sets are found, read, split, cropped and augmented."""

from .datasets import SPLITS, load_dataset
from .image_dataset import ImageDataset
from .image_file import load_image

__all__ = ['SPLITS', 'ImageDataset', 'load_dataset', 'load_image']
