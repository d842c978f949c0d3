"""`compare`: two models on the same episodes and images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from . import evaluator_options as options
from .console import console, explained, parse_size, quiet_logs
from .extras import needs_eval_extra


def register(app: typer.Typer) -> None:
    app.command('compare')(compare)


@explained
def compare(
    a: str = typer.Argument(help='Any name that timm.create_model takes.', metavar='A'),
    b: str = typer.Argument(help='Another, or the same with other weights.', metavar='B'),
    data: str = options.DATA,
    root: Path = options.ROOT,
    weights_a: Path = typer.Option(None, help='Checkpoint for A.', metavar='FILE'),
    weights_b: Path = typer.Option(None, help='Checkpoint for B.', metavar='FILE'),
    pretrained_a: bool = typer.Option(True, '--pretrained-a/--random-a', help='Released weights, or random ones.'),
    pretrained_b: bool = typer.Option(True, '--pretrained-b/--random-b', help='Released weights, or random ones.'),
    img_size: str = options.IMG_SIZE,
    ways: int = typer.Option(5, min=2, help='Classes of an episode.'),
    shots: list[int] = typer.Option([5], min=1, help='Images of each to learn from; may be given several times.'),
    queries: int = typer.Option(15, min=1, help='Images of each to answer.'),
    episodes: int = typer.Option(600, min=2, help='Episodes of test images.'),
    k: int = typer.Option(20, '-k', min=1, help='Neighbours that vote in kNN.'),
    layers: str = options.LAYERS,
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
    """Compare two models: few-shot on the same episodes, kNN and a linear probe on the same images, differences paired.

    Every image passes each backbone once, in the model's own preprocessing. Episodes are drawn from the test images.
    """
    size = parse_size(img_size)
    quiet_logs()
    with needs_eval_extra('compare'):
        from ..downstream import compare as module
        from ..downstream import results as report
        from ..downstream.reports import plots  # noqa: F401  missing packages are reported before the work
    extract = dict(layers=layers, cache=cache, device=options.find_device(device), workers=workers)
    with options.processes() as first:
        options.make_output(output)
        data_of = _datasets(options.loader('compare', data, root, seed, skip_unreadable, any_counts))
        models, records = [], []
        for name, weights, pretrained in ((a, weights_a, pretrained_a), (b, weights_b, pretrained_b)):
            model = options.load_backbone(name, weights, pretrained, size, seed)
            features = {
                part: options.features_of(model, images, dtype=str(dtype), batch_size=batch_size, **extract)
                for part, images in data_of.items()
            }
            title = f'{name} ({options.origin_of(weights, pretrained, seed)})'
            models.append(module.ModelFeatures(title, features.get('train'), features['test']))
            records.append(report.record('', model=model, dataset=None, seed=None, name=title))
        if not first:
            return
        rows = module.compare(*models, ways=ways, shots=shots, queries=queries, episodes=episodes, k=k, seed=seed)
        _print(data, data_of, models, rows)
        if output is not None:
            more = dict(
                a=records[0]['model'], b=records[1]['model'], layers=layers, dtype=str(dtype), ways=ways, shots=shots,
                queries=queries, episodes=episodes, k=k, rows=rows,
            )  # fmt: skip
            _write(output, data_of, models, rows, seed, more)


def _datasets(load: Callable[..., Any]) -> dict[str, Any]:
    """Images to test on and, where they are others than these, to learn from."""
    from ..common.errors import MissingSplitError

    try:
        test = load(*options.TO_TEST_ON)
    except MissingSplitError:
        return dict(test=load('all'))  # which has those of train, too
    try:
        return dict(train=load('train'), test=test)
    except MissingSplitError:
        return dict(test=test)


def _print(data: str, data_of: dict[str, Any], models: Sequence[Any], rows: Sequence[Any]) -> None:
    from rich.table import Table

    say = options.printer()
    parts = ' and '.join(f'{len(images):,} {part}' for part, images in data_of.items())
    say(f'A: {models[0].name}\nB: {models[1].name}')
    say(f'{data}: {parts} images of {len(data_of["test"].classes)} classes')
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
            f'{row.n} images' if row.p is not None else f'{row.n} episodes',
            '' if row.p is None else f'{row.p:.2g}',
        )
    console().print(table)
    say("Episodes: mean ± 1.96 standard errors; images: Agresti & Min 2005, p by McNemar's exact test.")


def _write(
    output: Path,
    data_of: dict[str, Any],
    models: Sequence[Any],
    rows: Sequence[Any],
    seed: int,
    more: dict[str, Any],
) -> None:
    from ..downstream import results as report
    from ..downstream.reports import plots

    test = data_of['test']
    figures = {
        'differences': plots.differences(
            [row.task for row in rows], *([getattr(row, key) for row in rows] for key in ('difference', 'low', 'high')),
            title=f'{models[0].name} minus {models[1].name}, {test.name}',
        ),
        'shots': plots.accuracy_over_shots(
            {
                model.name: {
                    n: (getattr(row, side), getattr(row, f'{side}_ci95'))
                    for n, row in zip(more['shots'], rows, strict=False)
                }
                for side, model in zip('ab', models, strict=True)
            },
            title=f'{more["ways"]}-way few-shot on {test.name}, {more["episodes"]} episodes',
            chance=100 / more['ways'],
        ),
    }  # fmt: skip
    for side, model in zip('ab', models, strict=True):
        features = model.test
        figures[f'tsne_{side}'] = plots.tsne(
            features.values.numpy(), features.labels.numpy(), features.classes,
            title=f'{model.name}: {test.name} (t-SNE)', seed=seed,
        )  # fmt: skip
    results = report.record('compare', model=None, dataset=data_of, seed=seed, **more)
    report.write(
        output,
        results,
        tables=dict(compare=[report.plain(row) for row in rows]),
        figures=figures,
        say=options.printer(),
    )
