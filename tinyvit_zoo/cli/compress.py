"""`compress`: a timm ViT or Swin in, a folder with about half of its weights out."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from .console import explained, quiet_logs

Init = StrEnum('Init', ['first', 'mean', 'best'])

PICTURES = 64
BATCH = 16
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')


def register(app: typer.Typer) -> None:
    app.command('compress')(compress)


@explained
def compress(
    name: str = typer.Argument(help='A ViT (DeiT, MAE, CLIP, DINO, ...) or Swin: any name of timm.', metavar='NAME'),
    output: Path = typer.Option(..., '--output', '-o', help='Folder for timm and the Hub.', metavar='DIR'),
    share_every: str = typer.Option('2', help="Blocks that share their weights, or 'stage'.", metavar='N|stage'),
    init: Init = typer.Option('best', help='Weights of a group: its first block, the mean, or the best of them.'),
    transform: bool = typer.Option(True, help='Give every layer head mixing (Swin: and a convolution) of its own.'),
    pretrained: bool = typer.Option(True, help='Start from the pretrained weights, or compress the structure alone.'),
    checkpoint: Path = typer.Option(None, help='Start from this file instead.', metavar='FILE'),
    num_classes: int = typer.Option(None, min=0, help='Another number of classes: fresh classifier; 0: none.'),
    images: Path = typer.Option(
        None, help=f'Pictures (up to {PICTURES}) to choose and fit the weights on.', metavar='FOLDER'
    ),
) -> None:
    """Compress a ViT or Swin by weight multiplexing: adjacent blocks share their weights (MiniViT).

    The result is where training, best by distillation from the original, starts from.
    """
    if share_every != 'stage' and not (share_every.isascii() and share_every.isdigit()):
        raise typer.BadParameter(f"'{share_every}' is neither a number of blocks nor 'stage'.")
    if checkpoint and not pretrained:
        raise typer.BadParameter('--checkpoint gives weights, --no-pretrained wants none: leave one of them out.')
    from ..common.errors import ModelError
    from ..compress import multiplex
    from ..hub import save_folder

    quiet_logs()
    model = _load(name, checkpoint, pretrained, num_classes)
    calibration = _read_pictures(images, model) if images else None
    every = share_every if share_every == 'stage' else int(share_every)
    try:
        student = multiplex(model, every, transform, init=str(init), calibration=calibration)
        folder = save_folder(student, output)
    except ValueError as e:
        raise ModelError(f'{name}: {e}') from e
    before, after = _count(model), _count(student)
    print(f'Before: {before:,} parameters, {_megabytes(_bytes(model))}')
    print(f'After:  {after:,} parameters, {_megabytes((folder / "model.safetensors").stat().st_size)}')
    print(f'{before / after:.2f} times fewer. Written to {folder}')
    print(f"In Python: import timm, tinyvit_zoo; timm.create_model('local-dir:{folder}', pretrained=True)")


def _load(name: str, checkpoint: Path | None, pretrained: bool, num_classes: int | None) -> Any:
    from ..build import build_model, check_name
    from ..checkpoints import CheckpointError, read_checkpoint
    from ..common.errors import ModelError
    from ..releases import find_family

    kwargs = {} if num_classes is None else dict(num_classes=num_classes)
    check_name(name)
    if checkpoint is not None:
        state_dict = read_checkpoint(checkpoint)
        # Of the zoo's own models the file itself tells more than its tensors do, such as the heads of a plain ViT.
        ours = find_family(name) is not None
        overlay = dict(file=str(checkpoint)) if ours else dict(state_dict=state_dict, source='')
        classes = _head_classes(name, state_dict)
        if classes is not None:  # else timm would take the file for one of the tag's classes
            overlay['num_classes'] = classes
            kwargs.setdefault('num_classes', classes)
        return build_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # a line for each of its tries
    try:
        return build_model(name, pretrained=pretrained, **kwargs)
    except (ModelError, CheckpointError) as e:
        if not pretrained:
            raise
        hint = 'With the weights in a file, use --checkpoint FILE; for the structure alone, --no-pretrained.'
        raise ModelError(f'{str(e).rstrip(".")}. {hint}') from e


def _head_classes(name: str, state_dict: dict[str, Any]) -> int | None:
    """Classes of a checkpoint by the classifier that timm's cfg of the model names."""
    from ..build import build_model

    heads = build_model(name, device='meta').pretrained_cfg.get('classifier') or ()
    for head in [heads] if isinstance(heads, str) else heads:
        if f'{head}.weight' in state_dict:
            return state_dict[f'{head}.weight'].shape[0]
    return None


def _read_pictures(folder: Path, model: Any) -> list[Any]:
    """Pictures of a folder, of its sub-folders too, as batches for the model; evenly spread if there are many."""
    import torch
    from timm.data import create_transform, resolve_model_data_config

    from ..classify import ImageError, load_image
    from ..common.errors import ModelError

    if not folder.is_dir():
        raise ModelError(f'No folder at {folder}.')
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ModelError(f'{folder} holds no pictures ({", ".join(SUFFIXES)}).')
    files = [files[i * len(files) // PICTURES] for i in range(PICTURES)] if len(files) > PICTURES else files
    prepare = create_transform(**resolve_model_data_config(model), is_training=False)
    try:
        pictures = [prepare(load_image(file)) for file in files]
    except ImageError as e:
        raise ModelError(str(e)) from e
    return list(torch.stack(pictures).split(BATCH))


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB'
