"""What the tests of mmdet's and mmseg's configs share: the packaged configs, read once, and models made of them."""

import ast
import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mmengine.config.config
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import tinyvit_zoo.downstream.detection
import tinyvit_zoo.downstream.segmentation

DETECTION = Path(tinyvit_zoo.downstream.detection.__file__).parent / 'configs'
SEGMENTATION = Path(tinyvit_zoo.downstream.segmentation.__file__).parent / 'configs'


def packaged(folder: Path) -> list[str]:
    """Names of the configs that users name, those of `ci/` among them."""
    files = [f.relative_to(folder) for f in folder.rglob('*.py')]
    return sorted(f.with_suffix('').as_posix() for f in files if '_base_' not in f.parts)


# mmengine reads the index of all of mmdet's models again for every base that a config takes from it.
mmengine.config.config._get_external_cfg_base_path = cache(mmengine.config.config._get_external_cfg_base_path)


@cache
def _read(file: Path) -> Config:
    return Config.fromfile(file)


def read(folder: Path, name: str) -> Config:
    """A copy of a config, with its scope as the default one."""
    config = copy.deepcopy(_read(folder / f'{name}.py'))
    init_default_scope(config.default_scope)
    return config


def build(config: Config, device: str = 'cpu') -> nn.Module:
    """The config's model, without the weights that it would start from; on 'meta' it takes no memory."""
    with torch.device(device):
        return MODELS.build(config.model)


def text(folder: Path, name: str) -> tuple[str, list[str]]:
    """Docstring of a config, and its lines without docstring, comments and empty lines."""
    source = (folder / f'{name}.py').read_text()
    body = source.split('"""', 2)[2]
    lines = [line for line in body.splitlines() if line.strip() and not line.strip().startswith('#')]
    return ast.get_docstring(ast.parse(source)) or '', lines


def parts(config: Any) -> Iterator[dict]:
    """Every dict with a `type` inside a config, the outer ones first."""
    if isinstance(config, dict):
        if 'type' in config:
            yield config
        for value in config.values():
            yield from parts(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from parts(value)
