"""Shared by the commands of `analyze`: their options, models and images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .evaluator_options import TO_TEST_ON, load_backbone, loader
from .options import DataOptions, OutputFolder, pair_of

if TYPE_CHECKING:
    from ..data.image_dataset import ImageDataset
    from ..downstream.analysis.analysed_model import AnalysedModel
    from .options import Size


@dataclass(frozen=True, kw_only=True)
class AnalysisDataOptions(DataOptions):
    """Images whose labels are not used, and how to load them."""

    data: Annotated[
        str,
        typer.Option(
            '--data', '-d', help='Name of a data set, or folder of images; labels are not used.', metavar='DATA'
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """Which images an analysis takes, and where it writes."""

    split: Annotated[
        str | None, typer.Option('--split', help='Default: test, else validation, else all.', metavar='SPLIT')
    ] = None
    images: Annotated[
        int,
        typer.Option(
            '--images', min=1, help='Number of images, drawn with --seed; all if there are fewer.', metavar='N'
        ),
    ] = 1024
    batch_size: Annotated[
        int | None, typer.Option('--batch-size', min=1, help='Images of a forward pass.', metavar='N')
    ] = None
    output: OutputFolder = None


def images_of(options: AnalysisOptions, data: DataOptions, seed: int) -> 'ImageDataset':
    """The images that the options ask for, in the order in which they were drawn; a folder of images has no labels."""
    from ..downstream.analysis.images import draw_images

    load = loader(data, seed, find=True)
    dataset = load(options.split) if options.split else load(*TO_TEST_ON, 'all')
    return draw_images(dataset, options.images, seed)


def analysed(
    name: str, weights: Path | None, random: bool, img_size: 'Size | None', seed: int, part: str | None = None
) -> 'AnalysedModel':
    """The model of that name: timm's, or a folder or page of transformers.

    Args:
        name: Any name that timm takes; a folder; 'hf-hub:OWNER/NAME'.
        weights: Checkpoint file, or None for those of the name.
        random: Random weights instead.
        img_size: If not the model's own.
        seed: Of random weights.
        part: Which of several models in the file.

    Raises:
        ModelError: On an unknown name, or arguments that do not fit.
        CheckpointError: If the weights cannot be found, read or matched.
        EvaluationError: If the model takes no RGB images.
    """
    from ..common.errors import ModelError
    from ..downstream.analysis.analysed_model import AnalysedModel
    from ..soft_labels.transformers_teacher import find_page
    from ..training.feature_teacher import load_feature_teacher

    if not random and find_page(name) is not None:
        if part is not None:
            raise ModelError('--part names a model in a file, but a model of transformers is a folder: leave it out.')
        return AnalysedModel.of_transformers(load_feature_teacher(name, weights, pair_of(img_size)))
    return AnalysedModel.of_timm(load_backbone(name, weights, not random, pair_of(img_size), seed, part), name)
