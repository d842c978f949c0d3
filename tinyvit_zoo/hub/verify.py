"""Verify a page or a folder: every file has its listed checksum, and the model gives the expected output."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..checkpoints import CheckpointError
from ..checkpoints.manifest import MANIFEST, check_download, check_listed, read_manifest
from ..common.errors import ModelError
from ..common.folders import read_settled
from ..common.paths import user_path
from ..common.text import reason, shown
from .expect import TENSORS, double_model, read_tensors
from .folder import CONFIG, WEIGHTS
from .remote import HubError, hub_errors, is_missing, is_repo

__all__ = ['Proof', 'verify']

NEEDED = (CONFIG, WEIGHTS, TENSORS)

CODE_SUFFIXES = ('.bin', '.pth', '.pt', '.ckpt', '.pkl', '.pickle')
"""Files that can run code when they are opened; none is downloaded."""

# Share of the largest expected output, or of 1 if that is smaller. Pages by others hold outputs in single precision.
TOLERANCE, TOLERANCE_OF_OTHERS = 1e-6, 1e-4


@dataclass(frozen=True)
class Proof:
    """Result of a verification that passed.

    Attributes:
        folder: Where its files are: the folder given, or their place in the Hub's cache.
        commit: Commit of a page on the Hub, None for a folder.
        listed: Number of files whose sha256 matches the manifest; 0 without one.
        params: Number of parameters of the model.
        difference: Largest difference from the expected output, relative to its largest value where that is above 1.
        tolerance: Largest difference allowed.
    """

    folder: Path
    commit: str | None
    listed: int
    params: int
    difference: float
    tolerance: float


def verify(place: str | Path) -> Proof:
    """Verify a folder, or a page of the Hub after downloading it.

    In this order: every file has its sha256 of the manifest, where there is one, which must list the three files
    needed; config.json makes a model with exactly the tensors of model.safetensors; in double precision, the model
    gives the output of the test tensors.

    Args:
        place: Folder, or 'OWNER/NAME', optionally '@REVISION', of a page.

    Raises:
        CheckpointError: If a check fails. A file that was damaged in a download is removed from the cache.
        ModelError: If config.json names no model, or arguments that do not fit.
        HubError: If the page cannot be downloaded.
    """
    place = str(place) or '.'
    folder, commit = _fetch(place)
    return read_settled(folder, lambda: _verified(place, folder, commit))


def _verified(place: str, folder: Path, commit: str | None) -> Proof:
    listed = _listed(folder, downloaded=commit is not None)
    for file in NEEDED:
        if not (folder / file).is_file():
            raise CheckpointError(f'{place} has no {file}, without which nothing can be verified.')
    tolerance = TOLERANCE if listed else TOLERANCE_OF_OTHERS
    try:
        difference, params = _prove_output(folder)
    except (CheckpointError, ModelError):
        raise
    except Exception as e:  # models and inputs from files of others fail in any way
        raise CheckpointError(f'{place}: no model of its {CONFIG} takes its test tensors ({reason(e)}).') from e
    if not difference <= tolerance:  # also nan
        raise CheckpointError(
            f'The model of {place} does not give the expected output: the difference is {difference:.1e} of the '
            f'largest value, at most {tolerance:.0e} is allowed.'
        )
    return Proof(folder, commit, len(listed), params, difference, tolerance)


def _listed(folder: Path, downloaded: bool) -> dict[str, str]:
    """The manifest of a folder after checking its files; empty without one."""
    if not (folder / MANIFEST).is_file():
        return {}
    listed = read_manifest(folder / MANIFEST, downloaded)
    unlisted = [file for file in NEEDED if file not in listed]
    if unlisted:
        raise CheckpointError(f'{folder / MANIFEST} does not list {unlisted[0]}: a change in it would go unnoticed.')
    check_listed(folder, listed, downloaded)
    return listed


def _fetch(place: str) -> tuple[Path, str | None]:
    if user_path(place, CheckpointError).is_dir():
        return user_path(place).resolve(), None
    repo, at, revision = place.partition('@')
    if not is_repo(repo) or (at and not re.fullmatch(r'[\w./-]+', revision)):
        raise CheckpointError(f'{shown(place)} is neither a folder nor the name of a page such as owner/name.')
    return download(repo, revision)


def download(repo: str, revision: str = '') -> tuple[Path, str]:
    """All files of a page that its manifest lists, or the three needed; of one commit, from the cache where possible.

    Returns:
        Their folder in the Hub's cache, and the commit.

    Raises:
        CheckpointError: If the manifest lists files that can run code, or a large file was damaged on the way.
        HubError: If a file cannot be downloaded.
    """
    # One by one: the Hub limits listings of a page far more strictly than its files.
    config = Path(_one(repo, CONFIG, revision or None))
    folder, commit = config.parent, config.parent.name
    manifest = _manifest(repo, commit)
    names = list(read_manifest(manifest, downloaded=True)) if manifest else list(NEEDED)
    risky = [name for name in names if name.endswith(CODE_SUFFIXES)]
    if risky:
        raise CheckpointError(f'{repo} lists {risky[0]}, a file that can run code: it was not downloaded.')
    for name in names:
        check_download(Path(_one(repo, name, commit)))
    return folder, commit


def _manifest(repo: str, commit: str) -> Path | None:
    """The manifest of a page at a commit, None if it has none."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, MANIFEST, revision=commit)
    if cached is not None:  # a path, or the knowledge that there is no such file
        return Path(cached) if isinstance(cached, str) else None
    try:
        return Path(_one(repo, MANIFEST, commit))
    except HubError as e:
        if is_missing(e):
            return None
        raise


def _one(repo: str, file: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    with hub_errors(f'Downloading {file} of {repo}'):
        return hf_hub_download(repo, file, revision=revision)


def _make(folder: Path) -> nn.Module:
    model = double_model(folder)
    try:
        with safe_open(folder / WEIGHTS, 'pt') as file:
            stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as e:
        raise CheckpointError(f'{folder / WEIGHTS} is damaged ({e}).') from e
    made = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    differ = stored.items() ^ made.items()
    if differ:
        raise CheckpointError(
            f'{folder / WEIGHTS} does not fit the model of its {CONFIG}: {len({k for k, _ in differ})} tensors differ, '
            f'such as {shown(min(differ)[0])}.'
        )
    return model


def _prove_output(folder: Path) -> tuple[float, int]:
    """Difference of the model of a folder from the expected output, and its number of parameters."""
    model = _make(folder)
    return _output_difference(model, folder / TENSORS), sum(p.numel() for p in model.parameters())


@torch.inference_mode()
def _output_difference(model: nn.Module, tensors: Path) -> float:
    image, expected = (tensor.double() for tensor in read_tensors(tensors))
    output = model(image)
    if output.shape != expected.shape:
        raise CheckpointError(f'The model gives an output of {tuple(output.shape)}, not {tuple(expected.shape)}.')
    # Weights that hold NaN may be packed, too, if asked for: their output is NaN where it is expected.
    equal = (output == expected) | (output.isnan() & expected.isnan())
    difference = (output - expected).abs().masked_fill(equal, 0)
    return (difference.max() / expected.abs().nan_to_num(0, 0).max().clamp(min=1)).item()
