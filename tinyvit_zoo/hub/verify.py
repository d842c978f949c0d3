"""Prove a page or a folder: every file is the one listed, and the model made from them gives the output it should."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..checkpoints import CheckpointError
from ..checkpoints.manifest import MANIFEST, check_download, check_listed, read_manifest
from ..common.errors import ModelError
from .expect import TENSORS, double_model, read_tensors
from .folder import CONFIG, WEIGHTS
from .remote import REPO, HubError, is_missing, said_plainly

__all__ = ['Proof', 'verify']

NEEDED = (CONFIG, WEIGHTS, TENSORS)

CODE_SUFFIXES = ('.bin', '.pth', '.pt', '.ckpt', '.pkl', '.pickle')
"""Files that can run code when they are opened; none is fetched."""

# Of the largest expected output, or of 1 if that is smaller. Pages that others made hold outputs in single precision.
TOLERANCE, TOLERANCE_OF_OTHERS = 1e-6, 1e-4


@dataclass(frozen=True)
class Proof:
    """What was proved of a page.

    Attributes:
        folder: Where its files lie: the folder given, or their place in the Hub's cache.
        commit: Of a page on the Hub, else None.
        listed: Files whose sha256 is that of the manifest; 0 without one.
        params: Parameters of the model.
        difference: Largest difference from the expected output, as a share of the largest of it (at least of 1).
        tolerance: What that may be.
    """

    folder: Path
    commit: str | None
    listed: int
    params: int
    difference: float
    tolerance: float


def verify(place: str | Path) -> Proof:
    """Prove a folder, or a page of the Hub after downloading it.

    In this order: the sha256 of every file of the manifest, where there is one, which must list the three files needed;
    config.json makes a model with exactly the tensors of model.safetensors; in double precision it gives the output of
    the test tensors.

    Args:
        place: Folder, or 'OWNER/NAME', optionally '@REVISION', of a page.

    Raises:
        CheckpointError: If anything is not as it should be. A file that a download damaged leaves the cache.
        ModelError: If config.json names no model, or arguments that do not fit.
        HubError: If the page cannot be had.
    """
    folder, commit = _fetch(str(place))
    listed = _listed(folder, downloaded=commit is not None)
    for file in NEEDED:
        if not (folder / file).is_file():
            raise CheckpointError(f'{place} has no {file}, without which nothing can be proved.')
    tolerance = TOLERANCE if listed else TOLERANCE_OF_OTHERS
    try:
        difference, params = _prove_output(folder)
    except (CheckpointError, ModelError):
        raise
    except Exception as e:  # what files of others make of a model, and feed to it, fails in any way
        reason = ' '.join(str(e).split())[:200] or type(e).__name__
        raise CheckpointError(f'{place}: no model of its {CONFIG} takes its test tensors ({reason}).') from e
    if not difference <= tolerance:  # also nan
        raise CheckpointError(
            f'The model of {place} does not give the output it should: the difference is {difference:.1e} of the '
            f'largest value, {tolerance:.0e} at most is allowed.'
        )
    return Proof(folder, commit, len(listed), params, difference, tolerance)


def _listed(folder: Path, downloaded: bool) -> dict[str, str]:
    """The manifest of a folder, whose files are as it says; empty without one."""
    if not (folder / MANIFEST).is_file():
        return {}
    listed = read_manifest(folder / MANIFEST, downloaded)
    unlisted = [file for file in NEEDED if file not in listed]
    if unlisted:
        raise CheckpointError(f'{folder / MANIFEST} does not list {unlisted[0]}: nothing would tell if it changed.')
    check_listed(folder, listed, downloaded)
    return listed


def _fetch(place: str) -> tuple[Path, str | None]:
    if Path(place).expanduser().is_dir():
        return Path(place).expanduser().resolve(), None
    if not re.fullmatch(REPO + r'(@[\w./-]+)?', place):
        raise CheckpointError(f'{place} is neither a folder nor the name of a page such as owner/name.')
    return download(*place.partition('@')[::2])


def download(repo: str, revision: str = '') -> tuple[Path, str]:
    """All files of a page that its manifest lists, or the three needed; of one commit, from the cache where possible.

    Returns:
        Their folder in the Hub's cache, and the commit.

    Raises:
        CheckpointError: If the manifest lists files that can run code, or a large file was damaged on the way.
        HubError: If a file cannot be had.
    """
    # One by one: a listing of the page is rate-limited far more strictly than its files are.
    config = Path(_one(repo, CONFIG, revision or None))
    folder, commit = config.parent, config.parent.name
    manifest = _manifest(repo, commit)
    names = list(read_manifest(manifest, downloaded=True)) if manifest else NEEDED
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

    with said_plainly(f'Downloading {file} of {repo}'):
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
            f'{folder / WEIGHTS} is not of the model of its {CONFIG}: {len({k for k, _ in differ})} tensors differ, '
            f'such as {min(differ)[0]}.'
        )
    return model


def _prove_output(folder: Path) -> tuple[float, int]:
    """How far the model of a folder is from the output expected, and its number of parameters."""
    model = _make(folder)
    return _output_difference(model, folder / TENSORS), sum(p.numel() for p in model.parameters())


@torch.inference_mode()
def _output_difference(model: nn.Module, tensors: Path) -> float:
    image, expected = (tensor.double() for tensor in read_tensors(tensors))
    output = model(image)
    if output.shape != expected.shape:
        raise CheckpointError(f'The model gives an output of {tuple(output.shape)}, not {tuple(expected.shape)}.')
    return ((output - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
