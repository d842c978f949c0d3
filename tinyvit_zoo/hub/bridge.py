"""Entries of config.json that let transformers, or a timm without this package, load a page.

Pages name our own architectures, which timm knows only after `import tinyvit_zoo`. transformers imports it through a
small file of code in the page (`auto_map`, `trust_remote_code=True`). A TinyViT at its released size can instead be
written under the name of timm's own implementation, which computes the same and needs neither the code nor the package.
"""

import inspect
import shutil
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import is_model
from torch import nn

__all__ = ['CODE', 'auto_map', 'is_zoo_architecture', 'timm_config', 'timm_name', 'write_code']

CODE = 'modeling_tinyvit_zoo.py'
"""The file of code that transformers runs, in a page and next to this file."""


def is_zoo_architecture(architecture: str) -> bool:
    """Whether timm knows an architecture only through this package."""
    return is_model(architecture) and timm.model_entrypoint(architecture).__module__.startswith('tinyvit_zoo.')


def timm_name(architecture: str) -> str:
    """Name of timm's own implementation of a TinyViT."""
    return architecture.replace('tinyvit_', 'tiny_vit_', 1)


def auto_map() -> dict[str, str]:
    """Entry of config.json: transformers' auto class -> the class in `CODE` that it loads with."""
    module = Path(CODE).stem
    return {
        'AutoModel': f'{module}.TimmWrapperModel',
        'AutoModelForImageClassification': f'{module}.TimmWrapperForImageClassification',
    }


def write_code(folder: Path) -> None:
    """Put the file that `auto_map` names into a folder."""
    shutil.copyfile(Path(__file__).with_name(CODE), folder / CODE)


def timm_config(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The config.json of a TinyViT, rewritten to name timm's class of the same function and state dict.

    Args:
        config: As written for our own class.
        model: The model that it describes.

    Raises:
        ValueError: If timm's class would be another model: timm has TinyViT alone, and each at its own size.
    """
    architecture = config['architecture']
    own = timm_name(architecture)
    if not architecture.startswith('tinyvit_') or not is_model(own):
        raise ValueError(f'timm has no {architecture} of its own: only TinyViT can be written for timm.')
    ours = cast(Any, model)
    native = cast(Any, timm.create_model(architecture, device='meta'))
    if (ours.img_size, ours.window_sizes) != (native.img_size, native.window_sizes):
        raise ValueError(
            f"timm's {own} takes only {native.img_size[0]}x{native.img_size[1]} with its windows: this model, at "
            f'{ours.img_size[0]}x{ours.img_size[1]}, can be written for tinyvit-zoo only.'
        )
    if ours.output_stride != native.output_stride:
        raise ValueError(f"timm's {own} has stride 32 only: this model can be written for tinyvit-zoo only.")
    # At this size, where no table is resized.
    unused = ('img_size', 'window_sizes', 'bias_interpolation', 'output_stride')
    args = {k: v for k, v in config['model_args'].items() if k not in unused}
    unknown = args.keys() - inspect.signature(type(timm.create_model(own, device='meta'))).parameters.keys()
    if unknown:
        raise ValueError(f"timm's {own} takes no {', '.join(sorted(unknown))}: write it for tinyvit-zoo.")
    return {**config, 'architecture': own, 'model_args': args}
