"""`compress`: a timm ViT or Swin in, a folder with about half of its weights out."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import command, quiet_logs
from .options import Part, Random, Seed, Weights

Init = StrEnum('Init', ['first', 'mean', 'best'])

IMAGES = 64
BATCH = 16


def register(app: typer.Typer, panel: str) -> None:
    app.command('compress', rich_help_panel=panel)(command(compress))


def _blocks_or_stage(text: str) -> str:
    if text != 'stage' and not (text.isascii() and text.isdigit()):
        raise typer.BadParameter(f"'{text}' is neither a number of blocks nor 'stage'.")
    return text


def compress(
    *,
    name: Annotated[
        str, typer.Argument(help='A ViT (DeiT, MAE, CLIP, DINO, ...) or Swin: any name of timm.', metavar='NAME')
    ],
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for timm and the Hub.', metavar='DIR')],
    share_every: Annotated[
        str,
        typer.Option(callback=_blocks_or_stage, help="Blocks that share their weights, or 'stage'.", metavar='N|stage'),
    ] = '2',
    init: Annotated[
        Init, typer.Option(help='Weights of a group: those of its first block, their mean, or whichever fits best.')
    ] = Init.best,
    transform: Annotated[
        bool, typer.Option(help='Give every layer its own head mixing and, in a Swin, its own convolution.')
    ] = True,
    mlp_transform: Annotated[
        bool | None,
        typer.Option(
            '--mlp-transform/--no-mlp-transform',
            help='The convolution before the MLP. Default: as --transform in a Swin, off in a ViT.',
        ),
    ] = None,
    mlp_conv_kernel: Annotated[
        int | None,
        typer.Option(min=1, help="Side of that convolution, odd. Default: the window's; 7 in a ViT.", metavar='N'),
    ] = None,
    share_norms: Annotated[
        bool, typer.Option('--share-norms', help='Also share norms and layer scales: one block runs several times.')
    ] = False,
    weights: Weights = None,
    part: Part = None,
    random: Random = False,
    seed: Seed = 0,
    num_classes: Annotated[
        int | None, typer.Option(min=0, help='Another number of classes: fresh classifier; 0: none.')
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help=f'Images (up to {IMAGES}) to choose and fit the weights on.', metavar='FOLDER'),
    ] = None,
) -> None:
    """Compress a ViT or Swin by weight multiplexing: adjacent blocks share their weights (MiniViT).

    Train the result afterwards, preferably by distillation from the original.
    """
    if weights and random:
        raise typer.BadParameter('--weights FILE and --random exclude each other: leave one of them out.')
    import torch

    from ..common.errors import ModelError
    from ..compress import multiplex
    from ..hub import save_folder
    from ..hub.folder import check_folder

    quiet_logs()
    check_folder(output)
    torch.manual_seed(seed)
    model = _load(name, weights, part, random, num_classes)
    calibration = _read_images(images, model) if images else None
    every = 'stage' if share_every == 'stage' else int(share_every)
    try:
        student = multiplex(
            model, every, transform, mlp_transform=mlp_transform, mlp_conv_kernel=mlp_conv_kernel,
            share_norms=share_norms, init=str(init), calibration=calibration,
        )  # fmt: skip
        folder = save_folder(student, output)
    except ValueError as e:
        raise ModelError(f'{name}: {e}') from e
    before, after = _count(model), _count(student)
    print(f'Before: {before:,} parameters, {_megabytes(_bytes(model))}')
    print(f'After:  {after:,} parameters, {_megabytes((folder / "model.safetensors").stat().st_size)}')
    print(f'{before / after:.2f} times fewer. Written to {folder}')
    print(f'In Python: import timm, tinyvit_zoo; timm.create_model({f"local-dir:{folder}"!r}, pretrained=True)')


def _load(name: str, weights: Path | None, part: str | None, random: bool, num_classes: int | None) -> Any:
    from ..build import build_model, check_part, load_model
    from ..common.errors import CheckpointError, ModelError

    check_part(weights, part)
    kwargs = {} if num_classes is None else dict(num_classes=num_classes)
    if weights is not None:
        return load_model(name, weights, part, **kwargs)
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # a line for each of its tries
    try:
        return build_model(name, pretrained=not random, **kwargs)
    except (ModelError, CheckpointError) as e:
        if random:
            raise
        hint = 'With the weights in a file, use --weights FILE; for the structure alone, --random.'
        raise ModelError(f'{str(e).rstrip(".")}. {hint}') from e


def _read_images(folder: Path, model: Any) -> list[Any]:
    """Images below a folder as batches for the model; evenly spread if there are many."""
    import torch
    from timm.data import create_transform, resolve_model_data_config

    from ..classify import ImageError, load_image
    from ..common.errors import ModelError
    from ..data.folders import images_below

    if not folder.is_dir():
        raise ModelError(f'No folder at {folder}.')
    files = images_below(folder)
    files = [files[i * len(files) // IMAGES] for i in range(IMAGES)] if len(files) > IMAGES else files
    prepare = create_transform(**resolve_model_data_config(model), is_training=False)
    try:
        images = [prepare(load_image(file)) for file in files]
    except ImageError as e:
        raise ModelError(str(e)) from e
    return list(torch.stack(images).split(BATCH))


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB'
