"""`fewshot` and `knn`: what the features of a backbone are good for without training it."""

from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from . import evaluator_options as options
from .console import explained, parse_size, quiet_logs
from .extras import needs_eval_extra

Solver = StrEnum('Solver', ['cdfsl', 'ridge', 'prototype', 'logreg'])


def register(app: typer.Typer) -> None:
    app.command('fewshot')(fewshot)
    app.command('knn')(knn)


@explained
def fewshot(
    name: str = options.MODEL,
    data: str = options.DATA,
    shots: str = typer.Option('5,20,50', help='Pictures per class to learn from, between commas.', metavar='LIST'),
    ways: int = typer.Option(5, min=2, help='Classes of an episode.'),
    queries: int = typer.Option(15, min=1, help='Pictures per class to answer.'),
    episodes: int = typer.Option(600, min=1, help='How many.'),
    solver: Solver = typer.Option('cdfsl', help="cdfsl is the benchmark's own; the others are for comparison."),
    squash: bool = typer.Option(True, '--squash/--crop', help="The benchmark's preprocessing, or the model's own."),
    split: str = typer.Option('all', help='train, validation, test or all.', metavar='SPLIT'),
    root: Path = options.ROOT,
    weights: Path = options.WEIGHTS,
    pretrained: bool = options.PRETRAINED,
    img_size: str = options.IMG_SIZE,
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
    """Few-shot accuracy by the protocol of the CD-FSL benchmark (TinyViT's Table 5).

    Each picture passes the backbone once, whatever the number of shots and episodes.
    """
    size, counts = parse_size(img_size), _integers(shots, '--shots')
    quiet_logs()
    with needs_eval_extra('fewshot'):
        from ..downstream import few_shot
    found = options.find_device(device)
    with options.processes() as first:
        options.make_output(output)
        dataset = options.loader('fewshot', data, root, seed, skip_unreadable, any_counts)(split)
        drawn = {  # before anything is computed
            k: few_shot.sample_episodes(dataset.labels, ways, k, queries, episodes, seed, dataset.classes)
            for k in counts
        }
        model = options.load_backbone(name, weights, pretrained, size, seed)
        from ..data.transforms import cdfsl_transform

        transform = cdfsl_transform(model) if squash else None
        features = options.features_of(
            model, dataset, dtype=dtype, layers=layers, transform=transform, batch_size=batch_size, cache=cache,
            device=found, workers=workers, seed=seed,
        )  # fmt: skip
        if not first:
            return
        results = {
            k: few_shot.run(features.values, dataset.labels, drawn[k], str(solver), device=found, progress=True)
            for k in counts
        }
        head = dict(
            model=model, dataset=dataset, seed=seed, name=name, weights=options.origin_of(weights, pretrained, seed),
            ways=ways, queries=queries, episodes=episodes, solver=str(solver), layers=layers, dtype=str(dtype),
            preprocessing="squashed, CD-FSL's" if squash else "the model's own", features_key=features.key,
        )  # fmt: skip
        _report_few_shot(results, head, output)


def _report_few_shot(results: dict[int, Any], head: dict[str, Any], output: Path | None) -> None:
    say, data, ways, origin = options.printer(), head['dataset'].name, head['ways'], head['weights']
    title = f'{head["name"]} ({origin}) on {data}: {ways}-way few-shot, {head["solver"]}'
    say(f'{title}, {head["episodes"]} episodes')
    for k, result in results.items():
        say(f'  {k:3d} shots: {result.mean:.2f} ± {result.ci95:.2f} %')
    if output is None:
        return
    from ..downstream import results as report
    from ..downstream.reports import plots

    rows = [
        dict(shots=k, accuracy=r.mean, ci95=r.ci95, solver=r.solver, episodes=len(r.accuracy), sha256=r.episodes_sha256)
        for k, r in results.items()
    ]
    each = [
        dict(episode=i, **{f'accuracy_{k}_shot': result.accuracy[i] for k, result in results.items()})
        for i in range(head['episodes'])
    ]
    series = {f'{head["name"]} ({origin})': {k: (r.mean, r.ci95) for k, r in results.items()}}
    note = f'{ways}-way few-shot, {head["solver"]}, mean of {head["episodes"]} episodes'
    entries = {
        f'{data}-{k}-shot': report.eval_results_entry(data, r.mean, notes=f'{note}, {k} shots')
        for k, r in results.items()
    }
    report.write(
        output,
        report.record('few-shot', **head, results=rows),
        tables=dict(accuracy=rows, episodes=each),
        figures=dict(accuracy=plots.accuracy_over_shots(series, title=title, chance=100 / ways)),
        eval_results=entries if origin == 'pretrained' and head['dataset'].complete else {},
        say=say,
    )


@explained
def knn(
    name: str = options.MODEL,
    data: str = options.DATA,
    k: str = typer.Option('10,20,100,200', '-k', help='Numbers of neighbours, between commas.', metavar='LIST'),
    temperature: float = typer.Option(0.07, min=1e-6, help='Of the votes.'),
    split: str = typer.Option(None, help='To answer; train is the bank. Default: test, else validation.'),
    root: Path = options.ROOT,
    weights: Path = options.WEIGHTS,
    pretrained: bool = options.PRETRAINED,
    img_size: str = options.IMG_SIZE,
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
    """Accuracy of a vote of the nearest training pictures, by the protocol of DINO."""
    size, ks = parse_size(img_size), _integers(k, '-k')
    quiet_logs()
    with needs_eval_extra('knn'):
        from ..downstream import knn as module
    found = options.find_device(device)
    with options.processes() as first:
        options.make_output(output)
        if split in ('train', 'all'):
            raise typer.BadParameter(f'The bank is train: {split} would be answered by itself. Give another --split.')
        load = options.loader('knn', data, root, seed, skip_unreadable, any_counts)
        bank, queries = load('train'), load(split) if split else load(*options.TO_TEST_ON)
        module.check_ks(ks, len(bank))
        model = options.load_backbone(name, weights, pretrained, size, seed)
        known, asked = (
            options.features_of(
                model, part, dtype=dtype, layers=layers, batch_size=batch_size, cache=cache, device=found,
                workers=workers, seed=seed,
            )
            for part in (bank, queries)
        )  # fmt: skip
        if not first:
            return
        result = module.run(
            known.values, bank.labels, asked.values, queries.labels, ks, temperature=temperature, device=found,
            progress=True,
        )  # fmt: skip
        head = dict(
            model=model, dataset=dict(bank=bank, queries=queries), seed=seed, name=name, temperature=temperature,
            weights=options.origin_of(weights, pretrained, seed), layers=layers, dtype=str(dtype),
            features_keys=[known.key, asked.key],
        )  # fmt: skip
        _report_knn(result, queries, head, output)


def _report_knn(result: Any, queries: Any, head: dict[str, Any], output: Path | None) -> None:
    say, data, origin = options.printer(), queries.name, head['weights']
    title = f'{head["name"]} ({origin}) on {data}: kNN'
    say(f'{title}, {len(queries)} queries of {queries.split}')
    from ..downstream.statistics import wilson

    rows = [
        dict(k=k, accuracy=accuracy, **dict(zip(('low', 'high'), wilson(accuracy, len(queries)), strict=True)))
        for k, accuracy in result.accuracy.items()
    ]
    for row in rows:
        say(f'  k = {row["k"]:3d}: {row["accuracy"]:.2f} % (95 % interval {row["low"]:.2f} to {row["high"]:.2f})')
    if output is None:
        return
    from ..downstream import results as report
    from ..downstream.reports import plots

    # Of the first k that was asked for: choosing the best one would be choosing by the answers.
    k, predicted = next(iter(result.predictions.items()))
    from ..downstream import statistics as answers

    counts = answers.confusion_matrix(queries.labels, predicted, len(queries.classes))
    images, per_class = counts.sum(axis=1), answers.accuracies(counts)
    from ..data.class_map import readable

    names = readable(queries.classes)
    note = f'kNN, k = {k}, temperature {head["temperature"]:g}'
    is_for_card = origin == 'pretrained' and all(part.complete for part in head['dataset'].values())
    entry = report.eval_results_entry(data, result.accuracy[k], notes=note) if is_for_card else None
    report.write(
        output,
        report.record('knn', **head, results=rows),
        tables=dict(
            accuracy=rows,
            per_class=[
                dict(label=c, name=name, images=int(images[c]), accuracy=float(per_class[c]))
                for c, name in enumerate(names)
            ],
        ),
        figures=dict(
            per_class=plots.per_class_bars(per_class, names, title=f'{title}, k = {k}'),
            confusion=plots.confusion(counts, names, title=f'{title}, k = {k}'),
        ),
        eval_results={f'{data}-knn': entry},
        say=say,
    )


def _integers(text: str, option: str) -> list[int]:
    """Different positive numbers, in the order given. Usage error on anything else."""
    numbers = [part.strip() for part in text.split(',')]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in numbers):
        raise typer.BadParameter(f"{option} takes whole numbers between commas, such as 5,20, not '{text}'.")
    return list(dict.fromkeys(int(part) for part in numbers))
