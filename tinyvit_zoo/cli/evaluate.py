"""`evaluate`: the accuracy of a classifier on images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from . import evaluator_options as options
from .console import explained, parse_size, quiet_logs
from .extras import needs_eval_extra

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
    any_counts: bool = options.ANY_COUNTS,
) -> None:
    """Measure a classifier: top-1, top-5, ReaL, each class; on ImageNet-C the mean corruption error.

    ImageNet's relatives are scored among their own classes, which are found by name. Several processes:
    torchrun --nproc-per-node=2 -m tinyvit_zoo.cli evaluate ...
    """
    import torch

    size = parse_size(img_size)
    quiet_logs()
    with needs_eval_extra('evaluate'):
        from ..downstream import imagenet
        from ..downstream.reports import imagenet as reports
    found = options.find_device(device)
    settings: dict[str, Any] = dict(
        overrides={} if crop_pct is None else dict(crop_pct=crop_pct),
        batch_size=batch_size or imagenet.BATCH_SIZE,
        dtype=torch.bfloat16 if dtype == options.DType.bf16 else torch.float32,
        device=found,
        workers=workers,
    )
    with options.processes() as first:
        options.make_output(output)
        say = options.printer() if first else (lambda text: None)
        dataset = None  # found before weights are fetched
        if data != IMAGENET_C:
            load = options.loader('evaluate', data, root, seed, skip_unreadable, any_counts)
            dataset = load(split) if split else load(*options.TO_TEST_ON, 'all')
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
            scores = imagenet.evaluate(model, dataset, **settings)
            reports.print_scores(scores, dataset, head, say)
            if output is not None:
                reports.write_scores(output, scores, dataset, head, say)


def _corruptions(
    head: dict[str, Any],
    settings: dict[str, Any],
    root: Path,
    clean_root: Path | None,
    output: Path | None,
    say: Callable[[str], None],
) -> None:
    """ImageNet-C; what is finished is kept beside the results."""
    from ..downstream import imagenet, imagenet_c
    from ..downstream.reports import imagenet as reports

    model = head['model']
    clean, clean_error = None, None
    if clean_root is not None:
        clean = options.loader('evaluate', 'imagenet-1k', clean_root, 0)('validation')
        clean_error = 100 - imagenet.evaluate(model, clean, **settings).top1
    keep = output and output / 'finished.json'
    result = imagenet_c.evaluate_corruptions(model, root, keep=keep, clean_error=clean_error, **settings)
    reports.print_corruptions(result, head, say)
    if output is not None:
        reports.write_corruptions(output, result, {**head, 'root': root}, clean, say)
