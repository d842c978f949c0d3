"""`knn`: accuracy of a vote of the nearest training images."""

from typing import Annotated

import typer

from .console import command, printer, quiet_logs
from .evaluator_options import TO_TEST_ON, backbone_of, features_of, loader, not_train, own_folder, processes
from .options import (
    Cache,
    Counts,
    DataOptions,
    ForwardOptions,
    Layers,
    ModelOptions,
    OutputFolder,
    RunOptions,
    find_device,
    read_counts,
)


def register(app: typer.Typer, panel: str) -> None:
    app.command('knn', rich_help_panel=panel)(command(knn))


def knn(
    *,
    model_options: ModelOptions,
    data_options: DataOptions,
    k: Annotated[
        Counts | None,
        typer.Option(
            '-k',
            parser=read_counts,
            help='Numbers of neighbors, separated by commas. Default: those of 10,20,100,200 that the data allows.',
            metavar='LIST',
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=1e-6, help='Of the votes.')] = 0.07,
    split: Annotated[
        str | None,
        typer.Option(
            callback=not_train,
            help='Split to classify; the bank is train. Default: test, else validation.',
            metavar='SPLIT',
        ),
    ] = None,
    layers: Layers = 'pooled',
    output: OutputFolder = None,
    cache: Cache = None,
    forward: ForwardOptions,
    run: RunOptions,
) -> None:
    """Accuracy of a vote among the nearest training images, by DINO's protocol."""
    from ..common.text import count_of
    from ..downstream.knn import KS, check_ks, fitting_ks
    from ..downstream.knn import run as classify
    from ..downstream.reports.knn import print_knn, write_knn

    quiet_logs()
    device, seed = find_device(run.device), run.seed
    with processes() as first, own_folder(output, first):
        load = loader(data_options, seed)
        bank, queries = load('train'), load(split) if split else load(*TO_TEST_ON)
        ks = k or fitting_ks(len(bank))
        check_ks(ks, len(bank))
        model = backbone_of(model_options, seed)
        known, asked = (
            features_of(model, part, forward, layers=layers, cache=cache, device=device, workers=run.workers, seed=seed)
            for part in (bank, queries)
        )
        if not first:
            return
        result = classify(
            known.values, bank.labels, asked.values, queries.labels, ks, temperature=temperature, device=device,
            progress=True,
        )  # fmt: skip
        head = dict(
            model=model, dataset=dict(bank=bank, queries=queries), seed=seed, name=model_options.name,
            temperature=temperature, weights=model_options.origin(seed), layers=layers, dtype=str(forward.dtype),
            features_keys=[known.key, asked.key],
        )  # fmt: skip
        if not k and ks != KS:
            printer()(
                f'k = {", ".join(map(str, ks))}: the bank has {count_of(len(bank), "image")}, too few for the others '
                f'of {", ".join(map(str, KS))}.'
            )
        print_knn(result, queries, head, printer())
        if output is not None:
            write_knn(output, result, queries, head, printer())
