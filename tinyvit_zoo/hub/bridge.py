"""How a folder says to transformers, and to a timm without this package, which class loads it.

Pages name our own architectures, which timm knows only after `import tinyvit_zoo`. transformers can do that by itself
through a small file of code in the page (`auto_map`, `trust_remote_code=True`). A TinyViT at its released size can
instead be written under the name of timm's own implementation, which needs none of this and computes the same.
"""

import inspect
import shutil
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model
from torch import nn

__all__ = ['CODE', 'as_timms_own', 'auto_map', 'is_of_zoo', 'timms_name', 'write_code']

CODE = 'modeling_tinyvit_zoo.py'
"""The file of code that transformers runs, in a page and beside this file."""


def is_of_zoo(architecture: str) -> bool:
    """Whether timm knows an architecture only through this package."""
    return is_model(architecture) and timm.model_entrypoint(architecture).__module__.startswith('tinyvit_zoo.')


def timms_name(architecture: str) -> str:
    """What timm calls its own implementation of a TinyViT."""
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


def as_timms_own(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The config.json of a TinyViT, rewritten to name timm's class of the same function and state dict.

    Args:
        config: As written for our own class.
        model: The model that it describes.

    Raises:
        ValueError: If timm's class would be another model: it knows TinyViT alone, and each at its own size.
    """
    architecture = config['architecture']
    own = timms_name(architecture)
    if not architecture.startswith('tinyvit_') or not is_model(own):
        raise ValueError(f'timm has no model of its own for {architecture}: only TinyViT can be written for timm.')
    native = timm.create_model(architecture, device='meta')
    if (model.img_size, model.window_sizes) != (native.img_size, native.window_sizes):
        raise ValueError(
            f"timm's {own} has no other size than {native.img_size[0]}x{native.img_size[1]} with its windows: this "
            f'model, at {model.img_size[0]}x{model.img_size[1]}, can be written for tinyvit-zoo only.'
        )
    of_no_use = ('img_size', 'window_sizes', 'bias_interpolation')  # at this size, where no table is resized
    args = {k: v for k, v in config['model_args'].items() if k not in of_no_use}
    unknown = args.keys() - inspect.signature(type(timm.create_model(own, device='meta'))).parameters.keys()
    if unknown:
        raise ValueError(f"timm's {own} takes no {', '.join(sorted(unknown))}: write it for tinyvit-zoo.")
    return {**config, 'architecture': own, 'model_args': args}
