"""What the evaluators' commands share: their options, and how model, pictures and features are loaded."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import console
from .extras import needs_eval_extra

if TYPE_CHECKING:
    import torch
    from torch import nn

DType = StrEnum('DType', ['fp32', 'bf16'])

TO_TEST_ON = ('test', 'validation')  # the first that there is

MODEL = typer.Argument(help='Any name that timm.create_model takes.', metavar='NAME')
DATA = typer.Option(..., '--data', '-d', help='Name of a data set, or folder of class folders.', metavar='DATA')
ROOT = typer.Option(None, '--root', help='Folder that the data set lies in, where it has no default.', metavar='DIR')
OUTPUT = typer.Option(None, '--output', '-o', help='Folder for results, tables and figures.', metavar='DIR')
WEIGHTS = typer.Option(None, '--weights', help='Checkpoint instead of the pretrained weights.', metavar='FILE')
PRETRAINED = typer.Option(True, '--pretrained/--random', help='Released weights, or random ones as a baseline.')
IMG_SIZE = typer.Option(None, '--img-size', help="Side, or HEIGHTxWIDTH, if not the model's own.", metavar='SIZE')
SEED = typer.Option(0, '--seed', min=0, help='Of everything drawn at random, random weights included.')
DEVICE = typer.Option(None, '--device', help='Default: cuda where there is one.', metavar='DEVICE')
WORKERS = typer.Option(0, '--workers', min=0, help='Processes that read and transform pictures.')
BATCH_SIZE = typer.Option(None, '--batch-size', min=1, help='Pictures in a forward pass.', metavar='N')
CACHE = typer.Option(None, '--cache', help='Folder that keeps features for the next run.', metavar='DIR')
LAYERS = typer.Option('pooled', '--layers', help="'pooled', 'pre_logits', or 'last:N' blocks.", metavar='WHICH')
DTYPE = typer.Option('fp32', '--dtype', help='What the backbone computes in.')
SKIP_UNREADABLE = typer.Option(
    False, '--skip-unreadable', help='Leave out pictures that cannot be read; results name them.'
)
ANY_COUNTS = typer.Option(
    False, '--any-counts', help="Take other numbers of pictures than the protocol's; results say so."
)


def load_backbone(
    name: str, weights: Path | None, pretrained: bool, img_size: tuple[int, int] | None, seed: int, **arguments: Any
) -> 'nn.Module':
    """The model, in eval mode; a ConvNet takes pictures of `img_size` by its transform alone.

    Args:
        name: Any name that timm takes.
        weights: File, or None for those of the name.
        pretrained: False for random weights.
        img_size: (height, width), or None for the model's own.
        seed: Of random weights.
        **arguments: As in `timm.create_model`.

    Raises:
        ModelError: On an unknown name, arguments that do not fit, or both a file and random weights.
        CheckpointError: If the weights cannot be found, read or matched.
    """
    import torch

    from ..build import build_model, load_model
    from ..common.errors import ModelError

    def make(**size: Any) -> 'nn.Module':
        kwargs = {**arguments, **size}
        return load_model(name, weights and str(weights), **kwargs) if pretrained else build_model(name, **kwargs)

    if weights is not None and not pretrained:
        raise ModelError('Weights of a file and random ones: leave one of them out.')
    torch.manual_seed(seed)
    if img_size is None:
        return make()
    try:
        return make(img_size=img_size)
    except ModelError as e:
        if "unexpected keyword argument 'img_size'" not in str(e):
            raise
    torch.manual_seed(seed)
    model = make()
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (model.pretrained_cfg['input_size'][0], *img_size)}
    return model


def printer() -> Callable[[str], None]:
    """Prints a line as it is."""
    out = console()
    return lambda text: out.print(text, markup=False, soft_wrap=True)


def origin_of(weights: Path | None, pretrained: bool, seed: int) -> str:
    """Where the weights come from, as results say it."""
    if not pretrained:
        return f'random (seed {seed})'
    return str(weights) if weights else 'pretrained'


def find_device(name: str | None) -> 'torch.device':
    """The device of that name, or the best one there is. Usage error if torch does not know it or has none."""
    import torch

    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise typer.BadParameter(f"'{name}' is no device here: {str(e).splitlines()[0]}") from e
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
        reason = '' if os.access(folder, os.W_OK) else 'it is read-only'
    except OSError as e:
        reason = e.strerror or str(e)
    if reason:
        problem = f'The results cannot be written to {folder} ({reason}): choose another --output.'
        from ..common.errors import EvaluationError

        raise EvaluationError(problem)


def loader(
    what: str, data: str, root: Path | None, seed: int, skip_unreadable: bool = False, any_counts: bool = False
) -> Callable[..., Any]:
    """A function that loads a split as `ImageDataset`; of several splits the first that there is.

    It raises `MissingSplitError` if there is none, and `EvaluationError` if the data is not as it should be.

    Args:
        what: The command that needs it, for a message.
        data: Name or folder.
        root: Where it lies.
        seed: Of the splits of data without splits of its own.
        skip_unreadable: Leave out what cannot be read.
        any_counts: Take other numbers of images or classes than the registered ones.
    """

    def load(*splits: str) -> Any:
        with needs_eval_extra(what):
            from ..common.errors import MissingSplitError
            from ..data.datasets import load_dataset

            problems = []
            for split in splits:
                try:
                    return load_dataset(
                        data, split, root, seed=seed, skip_unreadable=skip_unreadable, check_counts=not any_counts
                    )
                except MissingSplitError as e:
                    problems.append(e)
            raise problems[0]

    return load


def features_of(model: 'nn.Module', dataset: Any, *, dtype: str = 'fp32', **options: Any) -> Any:
    """Features of every picture, each having passed the backbone once.

    Args:
        model: Any timm model.
        dataset: As `load_data` gives it.
        dtype: 'fp32' or 'bf16'.
        **options: As in `tinyvit_zoo.downstream.features.extraction.extract`.

    Returns:
        `tinyvit_zoo.downstream.features.extraction.Features`.

    Raises:
        EvaluationError: See `tinyvit_zoo.downstream.features.extraction.extract`.
    """
    import torch

    from ..downstream.features.extraction import extract

    dtypes = {'fp32': torch.float32, 'bf16': torch.bfloat16}
    return extract(model, dataset, dtype=dtypes[dtype], **options)


@contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that `torchrun` or `accelerate launch` has started; whether this one is to print and write."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get('WORLD_SIZE', 1)) == 1 or dist.is_initialized():
        yield not dist.is_initialized() or dist.get_rank() == 0
        return
    cards = torch.cuda.device_count()
    if cards:
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)) % cards)
    # What a command works on is not known here: NCCL is only begun by the first tensors on cards.
    dist.init_process_group('cpu:gloo,cuda:nccl' if cards else 'gloo')
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
