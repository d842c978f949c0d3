"""`probe`: linear classifiers on a frozen backbone."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from .console import command, not_with, printer, quiet_logs
from .evaluator_options import TO_TEST_ON, backbone_of, dtype_of, loader, not_train, own_folder, processes
from .options import (
    Cache,
    DataOptions,
    ForwardOptions,
    ModelOptions,
    Numbers,
    OutputFolder,
    RunOptions,
    Words,
    find_device,
    read_numbers,
    read_words,
)

Mode = StrEnum('Mode', ['live', 'cached', 'ridge', 'logistic'])

LRS = Numbers((0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 3, 10, 30))
CHECKPOINT = 'probe.pt'


def register(app: typer.Typer, panel: str) -> None:
    app.command('probe', rich_help_panel=panel)(command(probe))


def probe(
    *,
    model_options: ModelOptions,
    data_options: DataOptions,
    mode: Annotated[
        Mode,
        typer.Option(
            help='live: new crops in every epoch, as MoCo v3. cached: the same on features that are computed once. '
            'ridge, logistic: one view, many penalties.',
        ),
    ] = Mode.live,
    lrs: Annotated[
        Numbers,
        typer.Option(
            parser=read_numbers, help='Learning rates for a batch of 256, separated by commas.', metavar='LIST'
        ),
    ] = LRS,
    weight_decays: Annotated[
        Numbers, typer.Option(parser=read_numbers, help='Between commas.', metavar='LIST')
    ] = Numbers((0.0,)),
    layers: Annotated[
        Words,
        typer.Option(parser=read_words, help="'pooled', 'pre_logits', 'last:N'; between commas.", metavar='LIST'),
    ] = Words(('pooled',)),
    epochs: Annotated[int, typer.Option(min=1, help='Passes over the images.')] = 90,
    step_batch: Annotated[
        int, typer.Option('--step-batch', min=1, help='Images of a training step.', metavar='N')
    ] = 1024,
    crop_scale: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1.0, help='Smallest crop, as a share of the image. Default: 0.08 on ImageNet, else 0.05.'
        ),
    ] = None,
    views: Annotated[
        int,
        typer.Option(min=1, help='In mode cached: views of each image, augmented if there are several.', metavar='R'),
    ] = 1,
    held_out: Annotated[float, typer.Option(min=0.001, max=0.9, help='Share of train that chooses.')] = 0.1,
    split: Annotated[
        str | None,
        typer.Option(callback=not_train, help='To test on. Default: test, else validation.', metavar='SPLIT'),
    ] = None,
    output: OutputFolder = None,
    cache: Cache = None,
    forward: ForwardOptions,
    run: RunOptions,
) -> None:
    """Train linear classifiers on a frozen backbone, choose one on a held-out part of train, and test it once.

    A whole grid takes one pass over the images. With --output, the same command again resumes where the last one
    stopped. Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli probe ...
    """
    if mode in (Mode.ridge, Mode.logistic) and len(layers) > 1:
        raise typer.BadParameter(f'{mode} takes one layer at a time.')
    _check_mode(mode)
    from ..downstream.probe import hold_out, smallest_crop
    from ..downstream.probe import run as run_probe
    from ..downstream.reports.probe import print_probe, write_probe

    quiet_logs()
    with processes() as first, own_folder(output, first):
        load = loader(data_options, run.seed)
        train, test = load('train'), load(split) if split else load(*TO_TEST_ON)
        parts = hold_out(train, test, held_out, run.seed)
        model = backbone_of(model_options, run.seed)
        training: dict[str, Any] = {}
        if mode in (Mode.live, Mode.cached):
            scale = (crop_scale or smallest_crop(data_options.data), 1.0)
            training = dict(lrs=lrs, weight_decays=weight_decays, epochs=epochs, scale=scale)
        if mode == Mode.cached:
            training |= dict(views=views)
        result = run_probe(
            str(mode), model, parts, **training, layers=layers, step_batch=step_batch, dtype=dtype_of(forward),
            batch_size=forward.batch_size, workers=run.workers, cache=cache, seed=run.seed,
            device=find_device(run.device), checkpoint=None if output is None else output / CHECKPOINT,
        )  # fmt: skip
        if first:
            head = dict(
                model=model, seed=run.seed, name=model_options.name, weights=model_options.origin(run.seed),
                mode=str(mode), layers=layers, held_out=held_out, dtype=str(forward.dtype),
                **{'crop_scale' if name == 'scale' else name: value for name, value in training.items()},
            )  # fmt: skip
            print_probe(result, parts, head, printer())
            if output is not None:
                write_probe(output, result, parts, head, printer())


def _check_mode(mode: Mode) -> None:
    """Usage error on options that a mode does not read."""
    not_with(mode is Mode.live, '--mode live', 'views', 'cache')
    of_training = ('lrs', 'weight_decays', 'epochs', 'step_batch', 'crop_scale', 'views')
    not_with(mode in (Mode.ridge, Mode.logistic), f'--mode {mode}', *of_training)
