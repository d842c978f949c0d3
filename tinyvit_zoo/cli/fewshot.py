"""`fewshot`: few-shot accuracy of the features of a backbone."""

from enum import StrEnum
from typing import Annotated

import typer

from .console import command, printer, quiet_logs
from .evaluator_options import backbone_of, episodes_of, features_of, loader, own_folder, processes
from .options import (
    Cache,
    Counts,
    DataOptions,
    ForwardOptions,
    Layers,
    ModelOptions,
    OutputFolder,
    Queries,
    RunOptions,
    Ways,
    find_device,
    read_counts,
)

Solver = StrEnum('Solver', ['cdfsl', 'ridge', 'prototype', 'logreg'])


def register(app: typer.Typer, panel: str) -> None:
    app.command('fewshot', rich_help_panel=panel)(command(fewshot))


def fewshot(
    *,
    model_options: ModelOptions,
    data_options: DataOptions,
    shots: Annotated[
        Counts | None,
        typer.Option(
            parser=read_counts,
            help='Images of each class to learn from, comma-separated. Default: those of 5,20,50 that the data allows.',
            metavar='LIST',
        ),
    ] = None,
    ways: Ways = None,
    queries: Queries = None,
    episodes: Annotated[int, typer.Option(min=1, help='Number of episodes.')] = 600,
    solver: Annotated[
        Solver, typer.Option(help="cdfsl is the benchmark's own; the others are for comparison.")
    ] = Solver.cdfsl,
    squash: Annotated[
        bool, typer.Option('--squash/--crop', help="The benchmark's preprocessing, or the model's own.")
    ] = True,
    split: Annotated[str, typer.Option(help='train, validation, test or all.', metavar='SPLIT')] = 'all',
    layers: Layers = 'pooled',
    output: OutputFolder = None,
    cache: Cache = None,
    forward: ForwardOptions,
    run: RunOptions,
) -> None:
    """Few-shot accuracy by the protocol of the CD-FSL benchmark, with a frozen backbone.

    Each image passes through the backbone once, whatever the number of shots and episodes. TinyViT's Table 5 reports
    this benchmark; the paper does not say whether its backbone was frozen.
    """
    from ..data.transforms import cdfsl_transform
    from ..downstream import few_shot
    from ..downstream.reports.few_shot import print_few_shot, write_few_shot

    quiet_logs()
    device, seed = find_device(run.device), run.seed
    with processes() as first, own_folder(output, first):
        dataset = loader(data_options, seed)(split)
        ways, counts, queries = episodes_of(dataset, ways, shots, queries)
        drawn = {  # before anything is computed
            k: few_shot.sample_episodes(dataset.labels, ways, k, queries, episodes, seed, dataset.classes)
            for k in counts
        }
        model = backbone_of(model_options, seed)
        features = features_of(
            model, dataset, forward, layers=layers, transform=cdfsl_transform(model) if squash else None, cache=cache,
            device=device, workers=run.workers, seed=seed,
        )  # fmt: skip
        if not first:
            return
        results = {
            k: few_shot.run(features.values, dataset.labels, drawn[k], str(solver), device=device, progress=True)
            for k in counts
        }
        head = dict(
            model=model, dataset=dataset, seed=seed, name=model_options.name, weights=model_options.origin(seed),
            ways=ways, queries=queries, episodes=episodes, solver=str(solver), layers=layers, dtype=str(forward.dtype),
            preprocessing="squashed, CD-FSL's" if squash else "the model's own", features_key=features.key,
        )  # fmt: skip
        print_few_shot(results, head, printer())
        if output is not None:
            write_few_shot(output, results, head, printer())
