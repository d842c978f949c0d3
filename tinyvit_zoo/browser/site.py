"""The folder of the zoo browser: the static files of `space/`, `zoo.json`, and what trying images needs."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ModelError
from ..common.files import check_writable
from ..common.folders import swap_in
from ..common.paths import packaged_folder, user_path
from .runtime import copy_runtime, packed_by_npm
from .zoo import zoo_facts

__all__ = ['DATA', 'Site', 'build_site', 'space_folder']

DATA = 'zoo.json'
RUNTIME, TRIAL = 'runtime', 'trial'
MODEL = 'model.onnx'
IMAGES = 24
"""Largest number of images to choose from on the page."""


@dataclass(frozen=True)
class Site:
    """What was written.

    Attributes:
        folder: The site.
        models: Number of models that it shows, timm's among them.
        runtime: Version of onnxruntime-web; None if images cannot be tried.
        trial: Whether it comes with a model to try.
    """

    folder: Path
    models: int
    runtime: str | None
    trial: bool


def space_folder() -> Path:
    """`space/`, see `packaged_folder`.

    Raises:
        FileNotFoundError: If it is missing.
    """
    return packaged_folder('space')


def build_site(
    output: str | Path, runtime: str | Path | None = None, npm: bool = False, demo_model: str | Path | None = None
) -> Site:
    """Write the browser into a folder, whole or not at all. An earlier one there is replaced, nothing else is.

    Args:
        output: The folder.
        runtime: Unpacked npm package onnxruntime-web.
        npm: Fetch that package by `npm pack` instead.
        demo_model: File that `export` wrote, or the output folder of `demo`, whose model is exported here and whose
            images are offered on the page.

    Raises:
        ModelError: If arguments exclude each other, or a file is not what it should be.
        FileExistsError: If the folder holds something else.
        OSError: If it cannot be written.
    """
    if npm and runtime is not None:
        raise ModelError('--npm and --runtime exclude each other: leave one of them out.')
    if demo_model is not None and not (npm or runtime):
        raise ModelError('A model to try needs onnxruntime-web: add --npm, or --runtime with the unpacked package.')
    output = user_path(output)
    check_writable(output, is_folder=True)
    with swap_in(output, lambda: _own_files(output)) as new:
        facts = zoo_facts()
        _copy_static(new)
        version = None
        if npm or runtime is not None:
            with packed_by_npm() if npm else nullcontext(runtime or '') as package:
                version = copy_runtime(package, new / RUNTIME)
        model, images = _copy_trial(user_path(demo_model), new / TRIAL) if demo_model is not None else (None, [])
        facts['trial'] = dict(runtime=version, model=model, images=images)
        text = json.dumps(facts, ensure_ascii=False, separators=(',', ':'))
        (new / DATA).write_text(text, encoding='utf-8')
    return Site(output, len(facts['models']), version, model is not None)


def _copy_static(folder: Path) -> None:
    for path in space_folder().iterdir():
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)


def _own_files(folder: Path) -> list[str]:
    """Names in a folder that belong to an earlier site; none if it is not a site."""
    try:
        data: Any = json.loads((folder / DATA).read_text(encoding='utf-8'))
        if not {'format', 'models', 'trial'} <= data.keys():
            return []
    except (OSError, ValueError, AttributeError):
        return []
    return [DATA, RUNTIME, TRIAL, *(path.name for path in space_folder().iterdir())]


def _copy_trial(given: Path, folder: Path) -> tuple[str, list[str]]:
    """The model, and images beside it; their addresses in the site."""
    folder.mkdir()
    images: list[Path] = []
    if given.is_dir():
        _export(given, folder / MODEL)
        images = sorted((given / 'held_out').glob('*.png'))[:IMAGES]
    elif given.suffix == '.onnx' and given.is_file():
        shutil.copyfile(given, folder / MODEL)
        if not _is_classifier(folder / MODEL):
            raise ModelError(
                f'{given} is no file of `export`, whose labels and preprocessing the page needs: export it.'
            )
    else:
        raise ModelError(f'{given} is neither an .onnx file nor a folder: give what `export` or `demo` wrote.')
    for image in images:
        shutil.copyfile(image, folder / image.name)
    return f'{TRIAL}/{MODEL}', [f'{TRIAL}/{image.name}' for image in images]


def _is_classifier(file: Path) -> bool:
    """Whether an ONNX file has the metadata that `export` writes, whose names stand in it as they are."""
    content = file.read_bytes()
    return b'preprocessing' in content and b'segment_anything' not in content


def _export(demo: Path, file: Path) -> None:
    from ..export import export_model, model_to_export

    if not (demo / 'model' / 'config.json').is_file():
        raise ModelError(f'{demo} is not the output of `tinyvit-zoo demo`: it has no model/config.json.')
    export_model(model_to_export(f'local-dir:{demo / "model"}'), file)
