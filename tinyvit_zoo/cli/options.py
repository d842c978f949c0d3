"""Options that several commands have, each spelled in one place. A bundle is a dataclass, see `console.command`."""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    import torch

MAX_SIDE = 8192


class Size(NamedTuple):
    """Size of an image in pixels; prints as it is written."""

    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.height}x{self.width}'


class Numbers(tuple[float, ...]):
    """Numbers between commas; prints as they are written."""

    def __str__(self) -> str:
        return ','.join(f'{number:g}' for number in self)


class Counts(tuple[int, ...]):
    """Different positive whole numbers between commas, in the order given; prints as they are written."""

    def __str__(self) -> str:
        return ','.join(map(str, self))


class Words(tuple[str, ...]):
    """Words between commas; prints as they are written."""

    def __str__(self) -> str:
        return ','.join(self)


def read_size(text: str) -> Size:
    """'384' -> (384, 384), '256x320' -> (256, 320). Usage error on anything else."""
    sides = str(text).lower().split('x')
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise typer.BadParameter(f"'{text}' is not a size: give a side such as 384, or HEIGHTxWIDTH such as 256x320.")
    size = Size(int(sides[0]), int(sides[-1]))
    if max(size) > MAX_SIDE:
        raise typer.BadParameter(f"'{text}' is beyond {MAX_SIDE} pixels a side.")
    return size


def read_numbers(text: str) -> Numbers:
    """'0.1,1' -> (0.1, 1.0). Usage error on anything else."""
    try:
        return Numbers(float(part) for part in str(text).split(','))
    except ValueError as e:
        raise typer.BadParameter(f"takes numbers separated by commas, such as 0.1,1, not '{text}'.") from e


def read_counts(text: str) -> Counts:
    """'5,20,5' -> (5, 20). Usage error on anything else."""
    parts = [part.strip() for part in str(text).split(',')]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"takes whole numbers separated by commas, such as 5,20, not '{text}'.")
    return Counts(dict.fromkeys(int(part) for part in parts))


def read_words(text: str) -> Words:
    """'a, b' -> ('a', 'b')."""
    return Words(part.strip() for part in str(text).split(',') if part.strip())


DType = StrEnum('DType', ['fp32', 'bf16'])

ModelName = Annotated[str, typer.Argument(help='Any name that timm.create_model takes.', metavar='NAME')]
Weights = Annotated[
    Path | None,
    typer.Option('--weights', help='Checkpoint instead of the pretrained weights.', metavar='FILE'),
]
Part = Annotated[
    str | None,
    typer.Option('--part', help='Which model to take if the file holds several, such as teacher.', metavar='NAME'),
]
AllowNonfinite = Annotated[bool, typer.Option('--allow-nonfinite', help='Accept weights that hold NaN or infinity.')]
Random = Annotated[
    bool, typer.Option('--random', help='Random weights, drawn with --seed, instead of pretrained ones.')
]
ImgSize = Annotated[
    Size | None,
    typer.Option('--img-size', parser=read_size, help="Side, or HEIGHTxWIDTH, if not the model's own.", metavar='SIZE'),
]
OutputFolder = Annotated[
    Path | None, typer.Option('--output', '-o', help='Folder for results, tables and figures.', metavar='DIR')
]
Seed = Annotated[int, typer.Option('--seed', min=0, help='Of everything drawn at random, random weights included.')]
Device = Annotated[str | None, typer.Option('--device', help='Default: cuda where there is one.', metavar='DEVICE')]
Cache = Annotated[
    Path | None, typer.Option('--cache', help='Folder that keeps features for the next run.', metavar='DIR')
]
Layers = Annotated[str, typer.Option('--layers', help="'pooled', 'pre_logits', or 'last:N' blocks.", metavar='WHICH')]
Ways = Annotated[
    int | None, typer.Option('--ways', min=2, help='Classes in an episode. Default: 5, or all if there are fewer.')
]
Queries = Annotated[
    int | None,
    typer.Option('--queries', min=1, help='Images of each class to classify. Default: 15, or as many as there are.'),
]
Subset = Annotated[
    str | None,
    typer.Option(
        '--subset',
        help='Train on part of the images: 1% of each class, long-tailed, or a file of names.',
        metavar='1%|10%|long-tailed|FILE',
    ),
]
Json = Annotated[bool, typer.Option('--json', help='Print JSON.')]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model and where its weights come from."""

    name: ModelName
    weights: Weights = None
    part: Part = None
    random: Random = False
    img_size: ImgSize = None

    def origin(self, seed: int) -> str:
        """Where the weights come from, as results say it."""
        return origin_of(self.weights, self.random, seed, self.part)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A data set and where it is."""

    data: Annotated[
        str,
        typer.Option('--data', '-d', help='Name of a data set, or folder of class folders.', metavar='DATA'),
    ]
    root: Annotated[
        Path | None,
        typer.Option('--root', help='Folder that the data set lies in, where it has no default.', metavar='DIR'),
    ] = None
    skip_unreadable: Annotated[
        bool,
        typer.Option('--skip-unreadable', help='Leave out images that cannot be read; the results list them.'),
    ] = False
    any_counts: Annotated[
        bool,
        typer.Option('--any-counts', help="Accept numbers of images other than the protocol's; the results say so."),
    ] = False

    def __post_init__(self) -> None:
        """Usage error on a root that nothing reads."""
        if self.root is None or self.data == 'folder':
            return
        from ..data.registry import find_entry

        entry = find_entry(self.data)
        if entry is not None and not entry.layout:
            raise typer.BadParameter(f'--root: {self.data} comes with a library, not in a folder: leave it out.')
        if entry is None and os.path.isdir(self.data):
            raise typer.BadParameter(f'--root is for data sets by name, and {self.data} is a folder: leave it out.')


@dataclass(frozen=True, kw_only=True)
class TrainingDataOptions(DataOptions):
    """Images that are trained on, and which of them."""

    subset: Subset = None


@dataclass(frozen=True, kw_only=True)
class UnlabelledDataOptions(TrainingDataOptions):
    """Images that are trained on without labels, and how to load them."""

    data: Annotated[
        str,
        typer.Option(
            '--data', '-d', help='Folder of images, or name of a data set; labels are not used.', metavar='DATA'
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is made."""

    seed: Seed = 0
    device: Device = None
    workers: Annotated[int, typer.Option('--workers', min=0, help='Processes that read and transform images.')] = 0


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How an evaluator runs its forward passes."""

    batch_size: Annotated[
        int | None, typer.Option('--batch-size', min=1, help='Images of a forward pass.', metavar='N')
    ] = None
    dtype: Annotated[DType, typer.Option('--dtype', help='Type that the backbone computes in.')] = DType.fp32


def pair_of(size: Size | None) -> tuple[int, int] | None:
    """(height, width) as a plain tuple, which models write into their configurations."""
    return None if size is None else (size.height, size.width)


def origin_of(weights: Path | None, random: bool, seed: int, part: str | None = None) -> str:
    """Where weights come from, as results say it."""
    if random:
        return f'random (seed {seed})'
    if weights is None:
        return 'pretrained'
    return f'{weights} ({part})' if part else str(weights)


def find_device(name: str | None) -> 'torch.device':
    """The device of that name, or the best one there is. Usage error if torch does not know it or has none."""
    import torch

    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise typer.BadParameter(f"'{name}' is not a device here: {str(e).splitlines()[0]}") from e
    return torch.device(name)


def make_output(folder: Path | None) -> None:
    """Make the folder for results, if one is asked for: before there is anything to lose.

    Raises:
        EvaluationError: If it cannot be made or written to.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = '' if os.access(folder, os.W_OK) else 'it is read-only'
    except OSError as e:
        from ..common.text import reason

        problem = reason(e)
    if problem:
        from ..common.errors import EvaluationError

        raise EvaluationError(f'The results cannot be written to {folder} ({problem}): choose another --output.')
