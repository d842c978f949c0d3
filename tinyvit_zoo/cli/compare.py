"""`compare`: two models on the same episodes and images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import command, console, not_with, printer, quiet_logs
from .evaluator_options import TO_TEST_ON, episodes_of, features_of, load_backbone, loader, own_folder, processes
from .options import (
    Cache,
    Counts,
    DataOptions,
    ForwardOptions,
    ImgSize,
    Layers,
    OutputFolder,
    Queries,
    RunOptions,
    Ways,
    find_device,
    origin_of,
    pair_of,
    read_counts,
)

if TYPE_CHECKING:
    from ..data.image_dataset import ImageDataset
    from ..downstream.compare import ModelFeatures, Row


def register(app: typer.Typer, panel: str) -> None:
    app.command('compare', rich_help_panel=panel)(command(compare))


def compare(
    *,
    a: Annotated[str, typer.Argument(help='Any name that timm.create_model takes.', metavar='A')],
    b: Annotated[str, typer.Argument(help='Another, or the same with other weights.', metavar='B')],
    weights_a: Annotated[Path | None, typer.Option(help='Checkpoint for A.', metavar='FILE')] = None,
    weights_b: Annotated[Path | None, typer.Option(help='Checkpoint for B.', metavar='FILE')] = None,
    random_a: Annotated[bool, typer.Option('--random-a', help='Random weights for A.')] = False,
    random_b: Annotated[bool, typer.Option('--random-b', help='Random weights for B.')] = False,
    img_size: ImgSize = None,
    data_options: DataOptions,
    ways: Ways = None,
    shots: Annotated[
        Counts | None,
        typer.Option(
            parser=read_counts,
            help='Images of each class to learn from, separated by commas. Default: 5, or as many as there are.',
            metavar='LIST',
        ),
    ] = None,
    queries: Queries = None,
    episodes: Annotated[int, typer.Option(min=2, help='Episodes of test images.')] = 600,
    k: Annotated[
        int | None,
        typer.Option('-k', min=1, help='Neighbors that vote in kNN. Default: 20, or all images of a smaller bank.'),
    ] = None,
    layers: Layers = 'pooled',
    output: OutputFolder = None,
    cache: Cache = None,
    forward: ForwardOptions,
    run: RunOptions,
) -> None:
    """Compare two models: few-shot on the same episodes, kNN and a linear probe on the same images, differences paired.

    Every image passes through each backbone once, with the model's own preprocessing. Episodes are drawn from the test
    images.
    """
    from ..downstream.compare import ModelFeatures
    from ..downstream.compare import compare as compare_models
    from ..downstream.reports.compare import write_comparison
    from ..downstream.results import record

    quiet_logs()
    device, seed = find_device(run.device), run.seed
    with processes() as first, own_folder(output, first):
        datasets = _datasets(loader(data_options, seed))
        ways, counts, queries = episodes_of(datasets['test'], ways, shots, queries, (5,))
        k = _check(datasets, ways, counts, queries, k)
        models, records = [], []
        for name, weights, random in ((a, weights_a, random_a), (b, weights_b, random_b)):
            model = load_backbone(name, weights, not random, pair_of(img_size), seed)
            features = {
                part: features_of(
                    model, images, forward, layers=layers, cache=cache, device=device, workers=run.workers
                )
                for part, images in datasets.items()
            }
            title = f'{name} ({origin_of(weights, random, seed)})'
            models.append(ModelFeatures(title, features.get('train'), features['test']))
            records.append(record('', model=model, dataset=None, seed=None, name=title))
        if not first:
            return
        rows = compare_models(*models, ways=ways, shots=counts, queries=queries, episodes=episodes, k=k, seed=seed)
        _print(data_options.data, datasets, models, rows)
        if output is not None:
            write_comparison(
                output, datasets, models, rows, seed=seed, shots=counts, ways=ways, episodes=episodes, say=printer(),
                a=records[0]['model'], b=records[1]['model'], layers=layers, dtype=str(forward.dtype), queries=queries,
                k=k,
            )  # fmt: skip


def _check(datasets: dict[str, 'ImageDataset'], ways: int, shots: Sequence[int], queries: int, k: int | None) -> int:
    """The number of neighbors. Errors for what the images are too few for, before anything is computed."""
    from ..downstream.compare import K
    from ..downstream.few_shot import sample_episodes
    from ..downstream.knn import check_ks

    test, bank = datasets['test'], len(datasets.get('train', ()))
    sample_episodes(test.labels, ways, max(shots), queries, episodes=1, names=test.classes)
    if not bank:
        not_with(True, 'data without images to learn from, where there are no neighbors to find', 'k')
        return K
    check_ks([k or min(K, bank)], bank)
    return k or min(K, bank)


def _datasets(load: Callable[..., 'ImageDataset']) -> dict[str, 'ImageDataset']:
    """Images to test on and, where there are others, to learn from."""
    from ..common.errors import MissingSplitError

    try:
        test = load(*TO_TEST_ON)
    except MissingSplitError:
        return dict(test=load('all'))  # which has those of train, too
    try:
        return dict(train=load('train'), test=test)
    except MissingSplitError:
        return dict(test=test)


def _print(
    data: str, datasets: dict[str, 'ImageDataset'], models: Sequence['ModelFeatures'], rows: Sequence['Row']
) -> None:
    from rich.table import Table

    from ..common.text import count_of

    say = printer()
    parts = ' and '.join(f'{len(images):,} {part}' for part, images in datasets.items())
    say(f'A: {models[0].name}\nB: {models[1].name}')
    say(f'{data}: {parts} images of {len(datasets["test"].classes)} classes')
    table = Table(box=None, pad_edge=False)
    table.add_column('task')
    for heading in ('A, %', 'B, %', 'A - B', '95 % interval', 'paired over', 'p'):
        table.add_column(heading, justify='right')
    for row in rows:
        table.add_row(
            row.task,
            f'{row.a:.2f}',
            f'{row.b:.2f}',
            f'{row.difference:+.2f}',
            f'{row.low:+.2f} to {row.high:+.2f}',
            count_of(row.n, 'image') if row.p is not None else count_of(row.n, 'episode'),
            '' if row.p is None else f'{row.p:.2g}',
        )
    console().print(table)
    for row in rows:
        if row.remarks:
            say(f'{row.task}: {"; ".join(row.remarks)}.')
    say('Episodes have as many images of each class: their mean per class is the accuracy.')
    say("Episodes: mean ± 1.96 standard errors; images: Agresti & Min 2005, p by McNemar's exact test.")
