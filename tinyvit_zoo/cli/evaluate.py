"""`evaluate`: the accuracy of a classifier on images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from . import evaluator_options as options
from .console import console, explained, parse_size, quiet_logs
from .downstream import import_downstream, needs_eval_extra

IMAGENET_C = 'imagenet-c'


def register(app: typer.Typer) -> None:
    app.command('evaluate')(evaluate)


@explained
def evaluate(
    name: str = options.MODEL,
    data: str = options.DATA,
    split: str = typer.Option(None, help='Default: test, else validation, else all.', metavar='SPLIT'),
    root: Path = options.ROOT,
    weights: Path = options.WEIGHTS,
    pretrained: bool = options.PRETRAINED,
    img_size: str = options.IMG_SIZE,
    crop_pct: float = typer.Option(None, min=0.1, max=1.0, help="Share that is cropped, if not the model's own."),
    clean_root: Path = typer.Option(
        None, help='ImageNet-1k beside imagenet-c, for the relative mCE.', metavar='DIR', exists=True, file_okay=False
    ),
    output: Path = options.OUTPUT,
    seed: int = options.SEED,
    device: str = options.DEVICE,
    workers: int = options.WORKERS,
    batch_size: int = options.BATCH_SIZE,
    dtype: options.DType = options.DTYPE,
    skip_unreadable: bool = options.SKIP_UNREADABLE,
) -> None:
    """Measure a classifier: top-1, top-5, ReaL, each class; on ImageNet-C the mean corruption error.

    ImageNet's relatives are scored among their own classes, which are found by name. Several processes:
    torchrun --nproc-per-node=2 -m tinyvit_zoo.cli evaluate ...
    """
    import torch

    size = parse_size(img_size)
    quiet_logs()
    with needs_eval_extra('evaluate'):
        imagenet = import_downstream('imagenet')
        import_downstream('plots')  # what is missing is told before the work, not after it
    found = options.find_device(device)
    settings: dict[str, Any] = dict(
        overrides={} if crop_pct is None else dict(crop_pct=crop_pct),
        batch_size=batch_size or imagenet.BATCH_SIZE,
        dtype=torch.bfloat16 if dtype == options.DType.bf16 else torch.float32,
        device=found,
        workers=workers,
    )
    with options.processes() as first:
        say = printer() if first else (lambda text: None)
        dataset = None  # found before weights are fetched
        if data != IMAGENET_C:
            dataset = options.load_data(data, split or testing_split(data), root, seed, skip_unreadable, 'evaluate')
        elif root is None:
            raise typer.BadParameter('imagenet-c needs --root, the folder of CORRUPTION/SEVERITY/CLASS.')
        model = options.load_backbone(name, weights, pretrained, size, seed)
        head = dict(
            model=model, seed=None if pretrained else seed, name=name, dtype=str(dtype),
            weights=options.origin_of(weights, pretrained, seed), batch_size=settings['batch_size'],
        )  # fmt: skip
        if dataset is None:
            _corruptions(head, settings, root, clean_root, output, say)
        else:
            _report(imagenet.evaluate(model, dataset, **settings), dataset, head, output, say)


def printer() -> Callable[[str], None]:
    """Prints a line as it is."""
    out = console()
    return lambda text: out.print(text, markup=False, soft_wrap=True)


def splits_of(data: str) -> tuple[str, ...]:
    """The splits of a registered data set or of a folder; of others all, as they are not known beforehand."""
    entry = import_downstream('registry').find_entry(data)
    if entry is not None:
        return tuple(entry.splits)
    if not Path(data).is_dir():
        return import_downstream('datasets').SPLITS
    names = import_downstream('folders').SPLIT_FOLDERS
    return (*(split for split in names if any((Path(data) / name).is_dir() for name in names[split])), 'all')


def testing_split(data: str) -> str:
    """The split to test on."""
    return next(split for split in ('test', 'validation', 'all') if split in splits_of(data))


def _report(scores: Any, dataset: Any, head: dict, output: Path | None, say: Callable[[str], None]) -> None:
    """Print the numbers; write them, the classes, the mistakes and their figures."""
    report, plots = import_downstream('report'), import_downstream('plots')
    numbers = scores.summary()
    title = f'{head["name"]} ({head["weights"]}) on {dataset.name} ({dataset.split})'
    low, high = numbers['top1_ci95']
    top5 = '' if numbers['top5'] is None else f', top-5 {numbers["top5"]:.2f} %'
    say(f'{title}: {numbers["images"]:,} images')
    say(f'top-1 {numbers["top1"]:.2f} % (95 % interval {low:.2f} to {high:.2f}){top5}')
    if 'real_top1' in numbers:
        say(
            f'ReaL top-1 {numbers["real_top1"]:.2f} %, top-5 {numbers["real_top5"]:.2f} % of the '
            f'{numbers["real_images"]:,} images that have labels'
        )
    say(f'Classes: {scores.compared}.')
    say(f'Preprocessing: {_words(scores.preprocessing)}.')
    if output is None:
        return
    names = import_downstream('class_map').readable(scores.classes)
    images = scores.confusion.sum(axis=1)
    classes = [
        dict(label=i, id=id, name=name, images=int(images[i]), top1=_rounded(scores.per_class[i]))
        for i, (id, name) in enumerate(zip(scores.classes, names, strict=True))
    ]
    rows, columns = scores.confusion.nonzero()
    pairs = [
        dict(true=scores.classes[r], answer=scores.classes[c], images=int(scores.confusion[r, c]))
        for r, c in zip(rows, columns, strict=True)
    ]
    note = f'top-1 accuracy, %; {_words(scores.preprocessing)}'
    entry = report.eval_results_entry(dataset.name, numbers['top1'], notes=note)
    report.write(
        output,
        report.record('evaluate', dataset=dataset, **head, **numbers),
        tables=dict(per_class=classes, confusion=pairs),
        figures=dict(
            per_class=plots.per_class_bars(scores.per_class, names, title=title),
            confusion=plots.confusion(scores.confusion, names, title=title),
        ),
        eval_results={dataset.name: entry if head['weights'] == 'pretrained' else None},
        say=say,
    )


def _corruptions(
    head: dict,
    settings: dict,
    root: Path,
    clean_root: Path | None,
    output: Path | None,
    say: Callable[[str], None],
) -> None:
    """ImageNet-C; what is finished is kept beside the results."""
    import numpy as np

    imagenet_c, plots = import_downstream('imagenet_c'), import_downstream('plots')
    report = import_downstream('report')
    clean_error, clean = None, None
    if clean_root is not None:
        clean = options.load_data('imagenet-1k', 'validation', clean_root, 0)
        clean_error = 100 - import_downstream('imagenet').evaluate(head['model'], clean, **settings).top1
    result = imagenet_c.evaluate_corruptions(
        head['model'], root, keep=output and output / 'finished.json', clean_error=clean_error, **settings
    )
    title = f'{head["name"]} ({head["weights"]}) on ImageNet-C'
    relative = '' if result.relative_mce is None else f', relative mCE {result.relative_mce:.2f}'
    mean = np.mean(list(result.errors.values()))
    say(f'{title}: mCE {result.mce:.2f}{relative} (AlexNet: 100); mean top-1 error {mean:.2f} %')
    for name, ce in result.ce.items():
        say(f'  {name:18s} CE {ce:6.2f}   top-1 error {np.mean(result.errors[name]):6.2f} %')
    say(f'Classes: {result.compared}.')
    say(f'Preprocessing: {_words(result.preprocessing)}.')
    if output is None:
        return
    rows = [
        dict(
            corruption=name,
            ce=_rounded(result.ce[name]),
            **{f'error_{s}': _rounded(e) for s, e in enumerate(errors_, 1)},
        )
        for name, errors_ in result.errors.items()
    ]
    figure = plots.heat_map(
        np.array(list(result.errors.values())), list(result.errors), imagenet_c.SEVERITIES, title=title,
        row_label='corruption', column_label='severity', unit='top-1 error, %',
    )  # fmt: skip
    report.write(
        output,
        report.record('evaluate', dataset=clean, **head, root=root, **result.summary()),
        tables=dict(corruptions=rows),
        figures=dict(corruptions=figure),
        say=say,
    )


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _words(config: dict[str, Any]) -> str:
    _, height, width = config['input_size']
    side = f'{height}' if height == width else f'{height}x{width}'
    return f'{side} px, crop {config["crop_pct"]:g} ({config["crop_mode"]}), {config["interpolation"]}'
