"""Write a complete page of the Hub into a folder: weights, configuration, card, test tensors, and their checksums."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import split_model_name_tag
from torch import nn

from ..build import build_model, check_part
from ..checkpoints import CheckpointError, check_finite
from ..checkpoints.manifest import MANIFEST, file_sha256, read_manifest
from ..common.errors import ModelError
from ..common.folders import check_replaceable, swap_in
from ..common.paths import read_json, user_path
from ..common.text import first_few
from ..names import check_name
from ..releases import Release, find_release
from .bridge import CODE
from .card import EVAL_RESULTS, render_card, render_eval_results
from .convert import check_file_name, open_checkpoint, verified_model
from .expect import copy_tensors
from .folder import CARD, CONFIG, WEIGHTS, save_folder
from .own_card import NAMELESS, render_own_card
from .remote import check_repo
from .verify import verify

__all__ = ['OWN_TAG', 'is_page', 'pack', 'packed']

OWN_TAG = 'own'
"""Tag of weights that are not a release: license, labels and results of a release do not hold for them."""


def pack(
    name: str,
    folder: str | Path,
    weights: str | Path | None = None,
    random_seed: int | None = None,
    tag: str | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,
    img_size: tuple[int, int] | None = None,
    repo: str | None = None,
    for_timm: bool = False,
    tensors: str | Path | None = None,
    part: str | None = None,
    allow_nonfinite: bool = False,
) -> Path:
    """Write a page: the files of `save_folder`, README.md, test/rand_tensors.safetensors and manifest.json.

    The weights of a release get its card and its published results. The page appears whole or not at all. Another
    process computes the output among the test tensors from the files written, in double precision.

    Args:
        name: 'architecture.tag' for the weights of a release; 'architecture' for your own; or a folder that
            `save_folder` or `tinyvit-zoo compress` wrote. The README.md of such a folder is kept, with its published
            results; `repo` replaces 'OWNER/NAME' in it.
        folder: Destination. An existing page is replaced if it holds only packed files, or if it is the folder that is
            being packed.
        weights: Checkpoint in any known layout, where `name` is not a folder.
        random_seed: Seed of random weights instead, for tests; the card then says so and states no facts of a release.
        tag: Name of your own weights; default 'own'. The page then states no facts of a release.
        labels: Name of every class, in order, for weights of your own; default: those of the folder that is packed.
        license: License id for the card of your own weights, such as 'mit'.
        img_size: (H, W) that the weights are for, if not the architecture's.
        repo: The page, 'OWNER/NAME'; the card of your own weights names it.
        for_timm: See `save_folder`.
        tensors: File of test tensors from elsewhere, such as the authors' code, instead of those computed here:
            safetensors with 'input' (B, C, H, W) and the 'output' (B, classes) of these weights, in double precision.
            The page is written only if the model gives that output.
        part: Which of several models in the checkpoint, see `checkpoints.read_checkpoint`.
        allow_nonfinite: Also pack weights that hold NaN or infinity.

    Returns:
        The folder.

    Raises:
        ModelError: On an unknown name, or arguments that contradict each other.
        CheckpointError: If the weights cannot be read, do not fit the model, or hold NaN or infinity.
        FileExistsError: If the folder holds other files.
        OSError: If it cannot be written.
    """
    source = user_path(name) if (user_path(name) / CONFIG).is_file() else None
    _check_arguments(name, source, weights, random_seed, img_size, license, repo, part)
    folder = user_path(folder).resolve()
    replaceable = partial(_replaceable, folder, source is not None and source.resolve() == folder)
    check_replaceable(folder, replaceable)
    release = None if tag else _release_of(name, source, weights)
    if random_seed is None:
        _refuse_other_facts(source, release, labels, license, img_size)
    model = _make(name, source, weights, random_seed, release, img_size, part)
    check_finite(model.state_dict(), str(weights or name), allow_nonfinite)
    own_tag = tag if release or (source and not _names_release(cast(Any, model).pretrained_cfg)) else tag or OWN_TAG
    texts = _texts(source, model, release if random_seed is None else None, random_seed, license, repo, for_timm)
    with swap_in(folder, replaces=replaceable) as new:
        try:
            save_folder(model, new, *_labels(source, model, labels), tag=own_tag, for_timm=for_timm)
        except ValueError as e:
            raise ModelError(f'{name}: {e}') from e
        for path, text in texts.items():
            (new / path).parent.mkdir(exist_ok=True)
            (new / path).write_text(text)
        if tensors is None:
            _compute_tensors(new)
        else:
            copy_tensors(user_path(tensors), new)
        _write_manifest(new)
        if tensors is not None:
            _prove(new, tensors)
    return folder


@contextmanager
def packed(name: str, **kwargs) -> Iterator[Path]:
    """A page in a temporary folder, see `pack`."""
    with tempfile.TemporaryDirectory(prefix='tinyvit-zoo-page-') as root:
        yield pack(name, Path(root) / 'page', **kwargs)


def is_page(name: str) -> bool:
    """Whether a name is a folder that `pack` wrote."""
    return (user_path(name) / MANIFEST).is_file()


def _check_arguments(
    name: str,
    source: Path | None,
    weights: str | Path | None,
    random_seed: int | None,
    img_size: tuple[int, int] | None,
    license: str | None,
    repo: str | None,
    part: str | None,
) -> None:
    check_part(weights, part)
    if repo is not None:
        check_repo(repo)
    if license is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
        raise ModelError(f'{license!r} is not a license id of the Hub, such as mit, apache-2.0 or other.')
    if source is None:
        if '/' in name and ':' not in name:
            raise ModelError(f'{name} is not the folder of a model: it has no {CONFIG}.')
        if check_name(name) is not None:
            raise ModelError(f"'{name}' has a prefix of timm's: give the folder itself, without it.")
        if (weights is None) == (random_seed is None):
            raise ModelError(f'{name} needs either a file of weights (--weights) or random ones (--random).')
    elif weights is not None or img_size is not None:
        raise ModelError(
            f'{name} is a folder with weights and a size of its own: leave out --weights and --img-size, or name '
            'a model.'
        )


def _release_of(name: str, source: Path | None, weights: str | Path | None) -> Release | None:
    """The release that the name claims, None for weights of one's own."""
    if source is None:
        return find_release(name) if weights is None or split_model_name_tag(name)[1] else None
    try:
        config = read_json(source / CONFIG)
        release = find_release(f'{config["architecture"]}.{config["pretrained_cfg"]["tag"]}')
        input_size = config['pretrained_cfg']['input_size']
    except (ValueError, KeyError, TypeError):
        return None  # a timm model or a multiplexed one; building the model reports an invalid configuration
    if release is None or (config.get('num_classes'), input_size) != (
        release.num_classes,
        [3, release.img_size, release.img_size],
    ):
        return None  # trained from a release and saved without a tag of its own
    return release


def _names_release(cfg: Mapping[str, Any]) -> bool:
    tag = cfg.get('tag')
    return bool(tag) and find_release(f'{cfg["architecture"]}.{tag}') is not None


def _refuse_other_facts(
    source: Path | None,
    release: Release | None,
    labels: Sequence[str] | None,
    license: str | None,
    img_size: tuple[int, int] | None,
) -> None:
    """Raise ModelError on facts that would be ignored or contradict those of a release."""
    size = None if release is None or img_size == (release.img_size, release.img_size) else img_size
    if release and (labels is not None or license or size):
        raise ModelError(
            f'{release.name} is a release, whose labels, license and size are known. Name weights of your own '
            f'(--tag mine){"" if source else f", or give the architecture alone ({release.architecture})"}.'
        )
    if license and source and (source / CARD).is_file():
        raise ModelError(f'{source / CARD} is kept as it is: write the license there instead of giving one.')


def _make(
    name: str,
    source: Path | None,
    weights: str | Path | None,
    random_seed: int | None,
    release: Release | None,
    img_size: tuple[int, int] | None,
    part: str | None,
) -> nn.Module:
    size = dict(img_size=img_size) if img_size else {}
    known = f'local-dir:{source}' if source else name
    if random_seed is not None:
        return _random_model(known, random_seed, **size)
    if source or weights is None:
        return build_model(known, pretrained=True)
    checkpoint = open_checkpoint(weights, part)
    if release is None:
        return verified_model(checkpoint, name, checkpoint.classes, img_size)
    model = verified_model(checkpoint, release.name, img_size=img_size)
    check_file_name(checkpoint.path, release)
    if release.sha256 and checkpoint.path.name == release.file and file_sha256(checkpoint.path) != release.sha256:
        raise CheckpointError(f'{checkpoint.path} does not have the released sha256 {release.sha256}.')
    return model


def _labels(
    source: Path | None, model: nn.Module, labels: Sequence[str] | None
) -> tuple[Sequence[str] | None, Mapping[str, str] | None]:
    """Names of the classes and their descriptions: those given, or those of the folder, whatever its new tag."""
    cfg = cast(Any, model).pretrained_cfg
    names = cfg.get('label_names')
    if labels is not None or source is None or not isinstance(names, list) or len(names) != model.num_classes:
        return labels, None
    return names, cfg.get('label_descriptions')


def _random_model(name: str, seed: int, **kwargs) -> nn.Module:
    """A model with random weights, without the initial zeros of many layers, which would verify nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(name, **kwargs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _texts(
    source: Path | None,
    model: nn.Module,
    release: Release | None,
    random_seed: int | None,
    license: str | None,
    repo: str | None,
    for_timm: bool,
) -> dict[str, str]:
    """Card and published results by their path in the page; those of a release only with its weights."""
    if source and random_seed is None and (source / CARD).is_file():
        results = sorted(source.glob(f'{EVAL_RESULTS}/*.yaml'))
        card = (source / CARD).read_text().replace(NAMELESS, repo or NAMELESS)
        return {CARD: card, **{_path_in(source, path): path.read_text() for path in results}}
    if release is None:
        return {CARD: render_own_card(model, license, repo, random_seed, for_timm)}
    return {CARD: render_card(release.name), **render_eval_results(release.name)}


def _replaceable(folder: Path, again: bool) -> tuple[str, ...]:
    """Names in an existing folder that may be replaced: all of them, if only we wrote to it.

    Args:
        folder: The folder.
        again: Whether it is being packed again itself, which keeps edits in it.

    Raises:
        FileExistsError: If it holds other files, or files that were edited since.
    """
    if not folder.is_dir():
        return ()
    listed = {MANIFEST, WEIGHTS, CONFIG, CODE}
    if (folder / MANIFEST).is_file():
        sha256_of = read_manifest(folder / MANIFEST)
        listed |= sha256_of.keys()
        if not again:
            _refuse_changed(folder, sha256_of)
    others = sorted({_path_in(folder, p) for p in folder.rglob('*') if p.is_file()} - listed)
    if others:
        raise FileExistsError(
            f'{folder} holds files that were not packed ({first_few(others)}), which would be lost: choose a '
            'new folder.'
        )
    return tuple(p.name for p in folder.iterdir())


def _refuse_changed(folder: Path, sha256_of: Mapping[str, str]) -> None:
    for name, sha256 in sha256_of.items():
        path = folder / name
        if path.is_file() and file_sha256(path) != sha256:
            raise FileExistsError(
                f'{path} was changed since it was packed, and would be lost: choose a new folder, or move it away.'
            )


def _path_in(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _compute_tensors(folder: Path) -> None:
    """Compute the test tensors from the written files, in another process that knows nothing of the model here.

    Raises:
        CheckpointError: If it fails: the page would not rebuild the model.
    """
    done = subprocess.run(
        [sys.executable, '-m', 'tinyvit_zoo.hub.expect', str(folder)],
        cwd=Path(__file__).parents[2],  # so that the package is found where it is not installed
        env=os.environ | dict(HF_HUB_OFFLINE='1'),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        line = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
        raise CheckpointError(f'The packed page does not rebuild its model ({line}).')


def _prove(folder: Path, tensors: str | Path) -> None:
    try:
        verify(folder)
    except CheckpointError as e:
        raise CheckpointError(f'{tensors}: {str(e).replace(str(folder), "this page")}') from e


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    content = {'sha256': {_path_in(folder, path): file_sha256(path) for path in files}}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + '\n')
