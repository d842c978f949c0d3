"""`contract`: from a large TinyViT to a small one, by the factors of the paper."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, printer, quiet_logs
from .evaluator_options import load_backbone, training_images
from .options import ImgSize, ModelName, RunOptions, TrainingDataOptions, pair_of
from .training_options import TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..training.contraction import Estimate

UNITS = {'': 1, 'k': 10**3, 'm': 10**6, 'g': 10**9}


class Parameters(int):
    """A number of parameters; prints with commas."""

    def __str__(self) -> str:
        return f'{int(self):,}'


class Multiple(float):
    """A multiple; prints as it is written."""

    def __str__(self) -> str:
        return f'{float(self):g}x'


def register(app: typer.Typer, panel: str) -> None:
    app.command('contract', rich_help_panel=panel)(command(contract))


def read_parameters(text: str) -> Parameters:
    """'11M' -> 11000000, '350k' -> 350000. Usage error on anything else."""
    match = re.fullmatch(r'(\d+(?:[.,]\d+)*)([kmg]?)', str(text).strip().lower())
    number = match and match[1].replace(',', '')
    if match is None or number is None or number.count('.') > 1 or not float(number):
        raise typer.BadParameter(f"takes a number of parameters such as 11M or 350k, not '{text}'.")
    return Parameters(round(float(number) * UNITS[match[2]]))


def read_multiple(text: str) -> Multiple:
    """'1.4x' -> 1.4. Usage error on anything else."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)x?', str(text).strip().lower())
    if match is None:
        raise typer.BadParameter(f"takes a multiple of the start model's throughput such as 1.4x, not '{text}'.")
    return Multiple(match[1])


def contract(
    *,
    name: ModelName,
    img_size: ImgSize = None,
    data_options: TrainingDataOptions,
    params: Annotated[
        Parameters,
        typer.Option(
            '--params',
            parser=read_parameters,
            help='Largest number of parameters of the result, such as 11M.',
            metavar='N',
        ),
    ],
    throughput: Annotated[
        Multiple | None,
        typer.Option(
            '--throughput',
            parser=read_multiple,
            help="Lowest throughput of the result, as a multiple of NAME's, such as 1.4x.",
            metavar='MULTIPLE',
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            '--steps',
            min=1,
            help='Number of steps. Default: so many that none cuts more than 30 % of parameters or time.',
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            '--held-out',
            min=0.001,
            max=0.9,
            help='Share of train that ranks candidates. Default: 20 %, or 1 % from 100,000 images on.',
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option('--recipe', help='Recipe of the short trainings.', metavar='NAME')
    ] = 'contraction',
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for state, results and model.', metavar='DIR')],
    training: TrainingOptions,
    dry_run: Annotated[
        bool, typer.Option('--dry-run', help='Say candidates, parameters and time; write nothing.')
    ] = False,
    run: RunOptions,
) -> None:
    """Search for a smaller TinyViT around NAME, in steps. The same command again continues where the last one stopped.

    Several processes share the candidates: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli contract ... Or give the same
    command, with the same folder, on each machine.
    """
    from ..downstream.reports.contract import write_contraction
    from ..hub.folder import check_folder
    from ..training.contraction import contract as search
    from ..training.contraction import estimate
    from ..training.recipes import RECIPES, find_recipe
    from ..training.recipes.contraction import CONTRACTION

    quiet_logs()
    if not dry_run:
        check_folder(output / 'model')
    chosen = training.changed(find_recipe(recipe, {CONTRACTION.name: CONTRACTION, **RECIPES}))
    first = int(os.environ.get('RANK', 0)) == 0
    say = printer() if first else (lambda text: None)
    dataset = training_images(data_options, run.seed)

    def make(**arguments: Any) -> 'nn.Module':
        given = dict(num_classes=len(dataset.classes), **arguments)
        rate = chosen.drop_path_of(name)
        return load_backbone(name, None, False, pair_of(img_size), run.seed, drop_path_rate=rate, **given)

    common: dict[str, Any] = dict(
        parameters=int(params),
        throughput=throughput if throughput is None else float(throughput),
        steps=steps,
        held_out=held_out,
        **{**training.settings(run, say), 'device': _own_device(run)},
    )
    if dry_run:
        if first:
            _say_estimate(estimate(make, name, dataset, chosen, **common))
        return
    result = search(make, name, dataset, chosen, output, **common)
    if first:
        write_contraction(output, result, dataset, name=name, seed=run.seed, say=say)


def _own_device(run: RunOptions) -> 'torch.device':
    """The device that is asked for, or one for each process that a launcher has started on this machine."""
    import torch

    from .options import find_device

    device = find_device(run.device)
    if device.type == 'cuda' and device.index is None:
        return torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count())
    return device


def _say_estimate(found: 'Estimate') -> None:
    say = printer()
    for i, limits in enumerate(found.limits, 1):
        speed = '' if limits.throughput is None else f', at least {limits.throughput:.2f}x'
        say(f'Step {i}: at most {limits.parameters:,} parameters{speed}.')
    say(f'Candidates of step 1: {len(found.first)}')
    for candidate in found.first:
        factors = candidate.factors
        windows = '-'.join(f'{h}x{w}' for h, w in factors.W)
        say(
            f'  {candidate.name:5} {candidate.parameters:12,}  D {"-".join(map(str, factors.D))}, '
            f'N {"-".join(map(str, factors.N))}, W {windows}, R {factors.R:g}, M {factors.M:g}, E {factors.E}'
        )
    say(
        f'About {found.seconds:,.0f} s at most for one process on this machine, if later steps have as many candidates '
        'and each took as long as the start model.'
    )
