"""Shared by the commands of evaluators and of `finetune`: models, images and features by the options given."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import printer
from .options import DataOptions, ForwardOptions, ModelOptions, TrainingDataOptions, UnlabelledDataOptions, pair_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..data.image_dataset import ImageDataset
    from ..downstream.features import Features

TO_TEST_ON = ('test', 'validation')  # the first that there is


def not_train(split: str | None) -> str | None:
    """Usage error on a split to test on that a classifier learns from."""
    if split in ('train', 'all'):
        raise typer.BadParameter(f'{split} is what the classifier learns from: take another split to test on.')
    return split


def load_backbone(
    name: str,
    weights: Path | None,
    pretrained: bool,
    img_size: tuple[int, int] | None,
    seed: int,
    part: str | None = None,
    **arguments: Any,
) -> 'nn.Module':
    """The model, in eval mode; a ConvNet takes images of `img_size` by its transform alone.

    Args:
        name: Any name that timm takes.
        weights: File, or None for those of the name.
        pretrained: False for random weights.
        img_size: (height, width), or None for the model's own.
        seed: Of random weights.
        part: Which of several models in the file, see `checkpoints.read_checkpoint`.
        **arguments: As in `timm.create_model`.

    Raises:
        ModelError: On an unknown name, arguments that do not fit, or both a file and random weights.
        CheckpointError: If the weights cannot be found, read or matched.
    """
    import torch

    from ..build import build_model, check_part, load_model
    from ..common.errors import ModelError

    def make(**size: Any) -> 'nn.Module':
        kwargs = {**arguments, **size}
        file = None if weights is None else str(weights)
        return load_model(name, file, part, **kwargs) if pretrained else build_model(name, **kwargs)

    if weights is not None and not pretrained:
        raise ModelError('--weights FILE and --random exclude each other: leave one of them out.')
    check_part(weights, part)
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
    cfg: Any = model.pretrained_cfg
    settings: Any = {**cfg, 'input_size': (cfg['input_size'][0], *img_size)}
    model.pretrained_cfg = settings
    return model


def backbone_of(options: ModelOptions, seed: int, **arguments: Any) -> 'nn.Module':
    """The model that the options name, see `load_backbone`."""
    return load_backbone(
        options.name, options.weights, not options.random, pair_of(options.img_size), seed, options.part, **arguments
    )


def architecture_of(name: str) -> str:
    """What timm calls a model: its name, or of a folder or page, whose name does not say it, that of what is inside.

    Raises:
        ModelError: If it is not a model.
    """
    from ..build import build_model
    from ..names import check_name

    if check_name(name) is None:
        return name
    cfg: Any = build_model(name, device='meta').pretrained_cfg
    return cfg['architecture']


def loader(options: DataOptions, seed: int, find: bool = False) -> Callable[..., 'ImageDataset']:
    """A function that loads a split as `ImageDataset`; of several splits the first that there is.

    It raises `MissingSplitError` if there is none, and `EvaluationError` if the data is not as it should be.

    Args:
        options: Data set and how to load it.
        seed: Of the splits of data without splits of its own.
        find: Take a folder of images, which have no labels, too: see `embed.find_images`.
    """

    def load(*splits: str) -> 'ImageDataset':
        from ..common.errors import MissingSplitError
        from ..data.datasets import load_dataset

        read: Callable[..., ImageDataset] = load_dataset
        if find:
            from ..downstream.embed import find_images

            read = find_images
        problems = []
        for split in splits:
            try:
                return read(
                    options.data, split, options.root, seed=seed, skip_unreadable=options.skip_unreadable,
                    check_counts=not options.any_counts,
                )  # fmt: skip
            except MissingSplitError as e:
                problems.append(e)
        raise problems[0]

    return load


def training_images(options: TrainingDataOptions, seed: int) -> 'ImageDataset':
    """The split train, or the subset of it that is asked for, see `data.subsets.take_subset`.

    Raises:
        EvaluationError: If the data is not as it should be, or there is no such subset.
    """
    return _selected(loader(options, seed)('train'), options, seed)


def unlabelled_images(options: UnlabelledDataOptions, seed: int) -> 'ImageDataset':
    """The images of `data.unlabelled.load_unlabelled`, or a subset. Raises: As `training_images`."""
    from ..data.unlabelled import load_unlabelled, with_classes

    dataset = load_unlabelled(
        options.data, options.root, seed=seed, skip_unreadable=options.skip_unreadable,
        check_counts=not options.any_counts,
    )  # fmt: skip
    if options.subset is not None:
        dataset = with_classes(dataset, options.data, options.root, seed)
    return _selected(dataset, options, seed)


def _selected(dataset: 'ImageDataset', options: TrainingDataOptions, seed: int) -> 'ImageDataset':
    from ..data.subsets import take_subset

    if options.subset is None:
        return dataset
    selected = take_subset(dataset, options.subset, seed)
    if selected.selection is not None and int(os.environ.get('RANK', 0)) == 0:
        printer()(f'Subset {selected.selection.words}.')
    return selected


def dtype_of(forward: ForwardOptions) -> 'torch.dtype':
    """What `--dtype` means to torch."""
    import torch

    return {'fp32': torch.float32, 'bf16': torch.bfloat16}[forward.dtype]


def features_of(model: 'nn.Module', dataset: 'ImageDataset', forward: ForwardOptions, **options: Any) -> 'Features':
    """Features of every image, each having passed the backbone once.

    Args:
        model: Any timm model.
        dataset: As a `loader` gives it.
        forward: Batch size and type.
        **options: As in `features.extract`.

    Raises:
        EvaluationError: See `features.extract`.
    """
    from ..downstream.features import extract

    return extract(model, dataset, dtype=dtype_of(forward), batch_size=forward.batch_size, **options)


def episodes_of(
    dataset: 'ImageDataset',
    ways: int | None,
    shots: tuple[int, ...] | None,
    queries: int | None,
    usual_shots: tuple[int, ...] | None = None,
) -> tuple[int, tuple[int, ...], int]:
    """Ways, shots and queries by the options given, see `few_shot.fitting_counts`; other defaults are said.

    Args:
        dataset: What the episodes are drawn from.
        ways: None for the default, as are all others.
        shots: Of `usual_shots`.
        queries: Of each class.
        usual_shots: None for those of the CD-FSL benchmark.
    """
    from ..common.text import count_of
    from ..downstream.few_shot import QUERIES, SHOTS, WAYS, fitting_counts

    usual_shots = usual_shots or SHOTS
    fitting = fitting_counts(dataset.labels, ways, shots, queries, usual_shots)
    usual = (ways or WAYS, shots or usual_shots, queries or QUERIES)
    if fitting != usual:
        own, theirs = (
            f'{w}-way, {",".join(map(str, s))} {"shot" if s == (1,) else "shots"}, {count_of(q, "query")}'
            for w, s, q in (fitting, usual)
        )
        printer()(f'{dataset.name} has too few classes or images for {theirs}: {own}.')
    return fitting


@contextmanager
def own_folder(output: Path | None, first: bool) -> Iterator[None]:
    """Make the folder for results, if one is asked for, and keep other runs out of it.

    Args:
        output: The folder.
        first: Whether this process is the one that writes.

    Raises:
        EvaluationError: If it cannot be written to, or another run is writing to it.
    """
    if output is None or not first:
        yield
        return
    from ..training.run_state import alone_in

    with alone_in(output):
        yield


@contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that `torchrun` or `accelerate launch` has started; whether this one is to print and write."""
    import torch
    import torch.distributed as dist

    from ..common.processes import LONGEST_WAIT

    if int(os.environ.get('WORLD_SIZE', 1)) == 1 or dist.is_initialized():
        yield not dist.is_initialized() or dist.get_rank() == 0
        return
    cards = torch.cuda.device_count()
    if cards:
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)) % cards)
    # A command's device is not known here: NCCL only begins with the first tensors on cards.
    dist.init_process_group('cpu:gloo,cuda:nccl' if cards else 'gloo', timeout=LONGEST_WAIT)
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
