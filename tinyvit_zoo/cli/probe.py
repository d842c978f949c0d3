"""`probe`: linear classifiers on a frozen backbone."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import evaluator_options as options
from .console import explained, parse_size, quiet_logs
from .extras import needs_eval_extra

if TYPE_CHECKING:
    import torch
    from torch import nn

Mode = StrEnum('Mode', ['live', 'cached', 'ridge', 'logistic'])

LRS = '0.001,0.002,0.005,0.01,0.02,0.05,0.1,0.2,0.5,1,3,10,30'
CHECKPOINT = 'probe.pt'


def register(app: typer.Typer) -> None:
    app.command('probe')(probe)


@explained
def probe(
    name: str = options.MODEL,
    data: str = options.DATA,
    mode: Mode = typer.Option(
        'live',
        help='live: new crops in every epoch, as MoCo v3. cached: the same on features that are computed once. ridge, '
        'logistic: one view, many penalties.',
    ),
    lrs: str = typer.Option(LRS, help='Learning rates for a batch of 256, between commas.', metavar='LIST'),
    weight_decays: str = typer.Option('0', help='Between commas.', metavar='LIST'),
    layers: str = typer.Option('pooled', help="'pooled', 'pre_logits', 'last:N'; several between commas."),
    epochs: int = typer.Option(90, min=1, help='Passes over the pictures.'),
    batch: int = typer.Option(1024, min=1, help='Pictures in a step.'),
    crop_scale: float = typer.Option(
        None, min=0.001, max=1.0, help='Smallest crop, as a share of the picture. Default: 0.08 on ImageNet, else 0.05.'
    ),
    views: int = typer.Option(
        1, min=1, help='In mode cached: views of each picture, augmented if there are several.', metavar='R'
    ),
    held_out: float = typer.Option(0.1, min=0.001, max=0.9, help='Share of train that chooses.'),
    split: str = typer.Option(None, help='To test on. Default: test, else validation.', metavar='SPLIT'),
    root: Path = options.ROOT,
    weights: Path = options.WEIGHTS,
    pretrained: bool = options.PRETRAINED,
    img_size: str = options.IMG_SIZE,
    output: Path = options.OUTPUT,
    cache: Path = options.CACHE,
    seed: int = options.SEED,
    device: str = options.DEVICE,
    workers: int = options.WORKERS,
    batch_size: int = options.BATCH_SIZE,
    dtype: options.DType = options.DTYPE,
    skip_unreadable: bool = options.SKIP_UNREADABLE,
    any_counts: bool = options.ANY_COUNTS,
) -> None:
    """Train linear classifiers on a frozen backbone, choose one on a held-out part of train, and test it once.

    A whole grid costs one pass of the pictures. With --output, the same command again goes on where the last one
    stopped. Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli probe ...
    """
    size = parse_size(img_size)
    quiet_logs()
    grid = dict(lrs=_numbers(lrs, '--lrs'), weight_decays=_numbers(weight_decays, '--weight-decays'))
    chosen_layers = [layer.strip() for layer in layers.split(',')]
    if mode in (Mode.ridge, Mode.logistic) and len(chosen_layers) > 1:
        raise typer.BadParameter(f'{mode} takes one layer at a time.')
    with needs_eval_extra('probe'):
        from ..downstream.reports import probe as reports
    with options.processes() as first:
        options.make_output(output)
        load = options.loader('probe', data, root, seed, skip_unreadable, any_counts)
        train, kept, test = _parts(load, split, seed, held_out)
        model = options.load_backbone(name, weights, pretrained, size, seed)
        scale = (crop_scale or (0.08 if data.startswith('imagenet') else 0.05), 1.0)
        common = dict(seed=seed, device=options.find_device(device))
        settings = dict(mode=str(mode), layers=chosen_layers, held_out=held_out, dtype=str(dtype))
        if mode in (Mode.live, Mode.cached):
            checkpoint = None if output is None else output / CHECKPOINT
            settings |= dict(**grid, epochs=epochs, crop_scale=scale)
            common |= dict(**grid, epochs=epochs, batch_size=batch, checkpoint=checkpoint)
        reading = dict(dtype=str(dtype), workers=workers, batch_size=batch_size)
        if mode == Mode.live:
            result = _live(model, (train, kept, test), chosen_layers, scale, common, reading)
        else:
            settings |= dict(views=views) if mode == Mode.cached else {}
            reading |= dict(cache=cache, seed=seed, device=common['device'])
            result = _cached(mode, model, (train, kept, test), chosen_layers, scale, views, common, reading)
        if not first:
            return
        say = options.printer()
        origin = options.origin_of(weights, pretrained, seed)
        title = f'{name} ({origin}) on {data}: {_TITLES[mode]}'
        say(title)
        say(_words(reports.summary(result, test), len(kept)))
        if output is not None:
            from ..downstream import results as report

            head = report.record(
                'linear-probe', model=model, dataset=dict(train=train, held_out=kept, test=test), seed=seed, name=name,
                weights=origin, **settings,
            )  # fmt: skip
            reports.write_probe(
                output, result, test, head, title=title, note=f'{_TITLES[mode]}, {layers}',
                entry=pretrained and weights is None and train.complete and test.complete, say=say,
            )  # fmt: skip


_TITLES = {
    Mode.live: 'linear probe (MoCo v3)',
    Mode.cached: 'linear probe on cached features',
    Mode.ridge: 'ridge probe',
    Mode.logistic: 'logistic probe',
}


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(',')]
    except ValueError as e:
        raise typer.BadParameter(f"{option} takes numbers between commas, such as 0.1,1, not '{text}'.") from e


def _parts(load: Callable[..., Any], split: str | None, seed: int, held_out: float) -> tuple[Any, Any, Any]:
    """Train without the held-out part, that part, and the images to test on."""
    if split in ('train', 'all'):
        raise typer.BadParameter(f'Heads learn from train: {split} would be no test. Give another --split.')
    train, test = load('train'), load(split) if split else load(*options.TO_TEST_ON)
    from ..data import split as module

    module.check_labels(train.labels, len(train.classes))
    rest, held = module.stratified_split(train.labels, held_out, seed)
    return train.subset(rest), train.subset(held), test


def _live(
    model: 'nn.Module', parts: tuple, layers: list[str], scale: tuple[float, float], common: dict, reading: dict
) -> Any:
    import torch

    from ..downstream import linear_probe

    chunk = {} if reading['batch_size'] is None else dict(chunk=reading['batch_size'])
    return linear_probe.live(
        model, *parts, layers=layers, scale=scale, workers=reading['workers'], **common, **chunk,
        dtype=torch.bfloat16 if reading['dtype'] == 'bf16' else torch.float32,
    )  # fmt: skip


def _cached(
    mode: Mode,
    model: 'nn.Module',
    parts: tuple,
    layers: list[str],
    scale: tuple[float, float],
    views: int,
    common: dict,
    reading: dict,
) -> Any:
    from ..downstream import linear_probe
    from ..downstream.classifiers import logistic, ridge
    from ..downstream.features.views import probe_transforms

    train, kept, test = parts
    cropped, plain = probe_transforms(model, scale)

    def features(part: Any, layer: str, views: int = 1) -> 'torch.Tensor':
        transform = plain if views == 1 else cropped
        return options.features_of(model, part, layers=layer, views=views, transform=transform, **reading).values

    if mode == Mode.cached:
        pairs = [
            x
            for part, v in ((train, views), (kept, 1), (test, 1))
            for x in ({layer: features(part, layer, v) for layer in layers}, part.labels)
        ]
        return linear_probe.cached(*pairs, num_classes=len(train.classes), **common)
    train_x, kept_x, test_x = (features(part, layers[0]).numpy() for part in parts)
    device = {} if mode == Mode.ridge else dict(device=common['device'])
    solver = ridge if mode == Mode.ridge else logistic
    return solver.probe(
        train_x, train.labels, kept_x, kept.labels, test_x, test.labels, num_classes=len(train.classes), **device
    )


def _words(numbers: dict[str, Any], kept: int) -> str:
    """The summary in a few lines."""
    chosen = numbers['chosen']
    low, high = numbers['test_ci95']
    test = (
        f'test accuracy {numbers["test_accuracy"]:.2f} % (95 % interval {low:.2f} to {high:.2f}, '
        f'{numbers["test_images"]} pictures)'
    )
    if isinstance(chosen, dict):
        name, value = next(iter(chosen.items()))
        return (
            f'{name} {value:.3g} of {numbers["fits"]}, chosen with {kept} held-out pictures '
            f'({numbers["held_out"]:.2f} %), then fitted on all: {test}'
        )
    diverged = f' ({numbers["diverged"]} diverged)' if numbers['diverged'] else ''
    return (
        f'Of {numbers["heads"]} heads{diverged}: learning rate {chosen.lr:g}, weight decay {chosen.weight_decay:g}, '
        f'{chosen.layer}, chosen with {kept} held-out pictures: {numbers["held_out_last"]:.2f} % after the last epoch, '
        f'{numbers["held_out_best"]:.2f} % after epoch {numbers["best_epoch"]}. Last epoch: {test}'
    )
