"""`embed`: features of images in a file."""

from pathlib import Path
from typing import Annotated

import typer

from .console import command, printer, quiet_logs
from .evaluator_options import backbone_of, dtype_of, processes
from .options import Cache, DataOptions, ForwardOptions, Layers, ModelOptions, RunOptions, find_device, make_output


def register(app: typer.Typer, panel: str) -> None:
    app.command('embed', rich_help_panel=panel)(command(embed))


def _npz(path: Path) -> Path:
    if path.suffix != '.npz':
        raise typer.BadParameter(f'{path} will be a NumPy archive: give it the suffix .npz.')
    return path


def embed(
    *,
    model_options: ModelOptions,
    data_options: DataOptions,
    split: Annotated[str, typer.Option(help='train, validation, test or all.', metavar='SPLIT')] = 'all',
    layers: Layers = 'pooled',
    output: Annotated[
        Path, typer.Option('--output', '-o', callback=_npz, help='NumPy archive to write.', metavar='FILE.npz')
    ],
    cache: Cache = None,
    forward: ForwardOptions,
    run: RunOptions,
) -> None:
    """Write the features of images, their paths and, where there are any, their labels and classes.

    DATA may be a folder of images as well: every image below it, without labels.
    """
    from ..common.files import check_writable
    from ..common.text import count_of
    from ..downstream.embed import embed as write
    from ..downstream.embed import find_images

    quiet_logs()
    with processes() as first:
        make_output(output.parent)
        check_writable(output)
        images = find_images(
            data_options.data, split, data_options.root, seed=run.seed, skip_unreadable=data_options.skip_unreadable,
            check_counts=not data_options.any_counts,
        )  # fmt: skip
        features = write(
            backbone_of(model_options, run.seed), images, output, layers=layers, dtype=dtype_of(forward),
            batch_size=forward.batch_size, cache=cache, device=find_device(run.device), workers=run.workers,
        )  # fmt: skip
        if first:
            labels = f', {count_of(len(images.classes), "class")}' if images.classes else ', no labels'
            say = printer()
            say(f'Written to {output}: {features.D} features of {count_of(len(images), "image")}{labels}')
            for path in images.skipped:
                say(f'Left out, as it cannot be read: {path}')
