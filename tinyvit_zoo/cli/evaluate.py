"""`evaluate`: the accuracy of a classifier on images."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import command, not_with, only_with, printer, quiet_logs, refuse_among_images
from .evaluator_options import TO_TEST_ON, architecture_of, backbone_of, dtype_of, loader, own_folder, processes
from .options import DataOptions, ForwardOptions, ModelOptions, OutputFolder, RunOptions, find_device

IMAGENET_C = 'imagenet-c'

Protocol = StrEnum('Protocol', ['paper', 'timm'])


def register(app: typer.Typer, panel: str) -> None:
    app.command('evaluate', rich_help_panel=panel)(command(evaluate))


def evaluate(
    *,
    model_options: ModelOptions,
    data_options: DataOptions,
    split: Annotated[
        str | None, typer.Option(help='Default: test, else validation, else all.', metavar='SPLIT')
    ] = None,
    crop_pct: Annotated[
        float | None, typer.Option(min=0.1, max=1.0, help="Share of the image to crop, if not the model's own.")
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="Crop and interpolation of a release: its authors', or timm's; `info` prints both."),
    ] = None,
    clean_root: Annotated[
        Path | None,
        typer.Option(
            help='ImageNet-1k, for the relative mCE on imagenet-c.', metavar='DIR', exists=True, file_okay=False
        ),
    ] = None,
    output: OutputFolder = None,
    forward: ForwardOptions,
    run: RunOptions,
) -> None:
    """Measure a classifier: top-1, top-5, ReaL, each class; on ImageNet-C the mean corruption error.

    Variants of ImageNet are scored among their own classes, which are found by name. Several processes:
    torchrun --nproc-per-node=2 -m tinyvit_zoo.cli evaluate ...
    """
    from ..downstream import imagenet
    from ..downstream.reports.imagenet import print_scores, write_scores

    corruptions = data_options.root if data_options.data == IMAGENET_C else None
    if data_options.data == IMAGENET_C and corruptions is None:
        raise typer.BadParameter('imagenet-c needs --root, the folder of CORRUPTION/SEVERITY/CLASS.')
    only_with(corruptions, f'-d {IMAGENET_C}', 'clean_root')
    not_with(corruptions, f'-d {IMAGENET_C}', 'split', 'skip_unreadable', 'any_counts')
    if output is not None:
        refuse_among_images('--output', output, 'imagenet-1k', clean_root)
    quiet_logs()
    settings: dict[str, Any] = dict(
        overrides=_overrides(model_options, protocol, crop_pct, corruptions is not None),
        batch_size=forward.batch_size or imagenet.BATCH_SIZE,
        dtype=dtype_of(forward),
        device=find_device(run.device),
        workers=run.workers,
    )
    with processes() as first, own_folder(output, first):
        say = printer() if first else (lambda text: None)
        head: dict[str, Any] = dict(
            seed=run.seed if model_options.random else None, name=model_options.name, dtype=str(forward.dtype),
            weights=model_options.origin(run.seed), batch_size=settings['batch_size'],
            protocol=None if protocol is None else str(protocol),
        )  # fmt: skip
        if corruptions is not None:
            head['model'] = backbone_of(model_options, run.seed)
            _corruptions(head, settings, corruptions, clean_root, output, say)
            return
        load = loader(data_options, run.seed)
        dataset = load(split) if split else load(*TO_TEST_ON, 'all')  # before weights are fetched
        head['model'] = backbone_of(model_options, run.seed)
        scores = imagenet.evaluate(head['model'], dataset, **settings)
        print_scores(scores, dataset, head, say)
        if output is not None:
            write_scores(output, scores, dataset, head, say)


def _overrides(
    options: ModelOptions, protocol: Protocol | None, crop_pct: float | None, stored_as_crops: bool
) -> dict[str, Any]:
    """What differs from the model's own preprocessing. Usage error on options that contradict each other."""
    from ..downstream.imagenet import protocol_overrides

    if protocol is None:
        return {} if crop_pct is None else dict(crop_pct=crop_pct)
    if crop_pct is not None:
        raise typer.BadParameter('--protocol and --crop-pct both set the crop: leave one of them out.')
    if stored_as_crops:
        raise typer.BadParameter('The images of imagenet-c are stored as crops: leave --protocol out.')
    if options.img_size is not None:
        raise typer.BadParameter('--protocol is of the size that a release is for: leave --img-size out.')
    return protocol_overrides(architecture_of(options.name), str(protocol))


def _corruptions(
    head: dict[str, Any],
    settings: dict[str, Any],
    root: Path,
    clean_root: Path | None,
    output: Path | None,
    say: Callable[[str], None],
) -> None:
    """ImageNet-C; what is finished is kept among the results."""
    from ..data.datasets import load_dataset
    from ..downstream.imagenet import evaluate as measure
    from ..downstream.imagenet_c import evaluate_corruptions
    from ..downstream.reports.imagenet import print_corruptions, write_corruptions

    model = head['model']
    clean, clean_error = None, None
    if clean_root is not None:
        clean = load_dataset('imagenet-1k', 'validation', clean_root)
        clean_error = 100 - measure(model, clean, **settings).top1
    keep = output and output / 'finished.json'
    result = evaluate_corruptions(model, root, keep=keep, clean_error=clean_error, **settings)
    print_corruptions(result, head, say)
    if output is not None:
        write_corruptions(output, result, {**head, 'root': root}, clean, say)
