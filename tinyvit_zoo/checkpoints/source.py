"""Where weights come from: given by the caller > imported by the user > the Hub > the release's address.

timm reads files itself, before any filter sees them, and never falls back from the Hub to an address; so the state
dict is fetched here and passed to timm.
"""

import hashlib
import http.client
import logging
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timm.models import PretrainedCfg

from ..common.errors import CheckpointError, WeightsNotFoundError
from ..common.files import home, resumed_file
from ..common.text import reason
from ..releases import Release, find_release
from .hub_silence import hub_silence
from .manifest import MANIFEST, check_download, check_listed, file_sha256, read_manifest
from .read import Clues, clues_of, open_checkpoint_file, read_checkpoint, read_with_clues, unwrap

__all__ = ['Weights', 'find_weights', 'imported_path']

_logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # without a byte, as the client of the Hub has it
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


@dataclass(frozen=True)
class Weights:
    """A state dict in its file's own layout, and its origin.

    Attributes:
        state_dict: Tensors by name.
        origin: File, page or address, for messages.
        clues: Clues about the model in a file given by the caller; None where the source vouches for the weights.
    """

    state_dict: dict[str, torch.Tensor]
    origin: str
    clues: Clues | None = None


def imported_path(name: str) -> Path:
    """Folder where `tinyvit-zoo import` keeps the weights of a tag, and `pretrained=True` finds them.

    `TINYVIT_ZOO_HOME` moves it; the default is below `~/.cache/tinyvit_zoo`.
    """
    return home() / 'weights' / name


def find_weights(cfg: PretrainedCfg, cache_dir: str | Path | None = None, part: str | None = None) -> Weights:
    """The weights that a pretrained cfg asks for.

    Order: `state_dict`, then `file` (a file or folder) of the cfg; weights imported by the user; the Hub, its cache
    included; the release's url. `local-dir:` and `hf-hub:` names use only what they name. If a release has neither
    page nor address, the error says which file to fetch with a browser, and from where.

    Args:
        cfg: Resolved pretrained cfg, overlay included.
        cache_dir: Overrides the Hub's and torch.hub's cache folders.
        part: Of a file or state dict given by the caller, see `read_checkpoint`.

    Raises:
        CheckpointError: If the file that was found cannot be used.
        WeightsNotFoundError: If no source has them; the message lists each one and why it failed.
    """
    if cfg.state_dict is not None:
        where = 'the state dict given'
        return Weights(unwrap(cfg.state_dict, where, part=part), where, clues_of(cfg.state_dict))
    if cfg.file:
        state_dict, clues = read_with_clues(cfg.file, part)
        return Weights(state_dict, str(cfg.file), clues)
    name = f'{cfg.architecture}.{cfg.tag}' if cfg.tag else str(cfg.architecture)
    release = find_release(name)
    if release and (cfg.hf_hub_id or None, cfg.url or None) != (release.hf_hub_id, release.url):
        release = None  # the overlay points elsewhere
    if release and imported_path(name).is_dir():
        return Weights(read_checkpoint(imported_path(name)), str(imported_path(name)))

    sources: list[tuple[str, Callable[[], dict[str, torch.Tensor]]]] = []
    if cfg.hf_hub_id:
        sources.append((f'the Hub page {cfg.hf_hub_id}', partial(_from_hub, cfg, cfg.hf_hub_id, cache_dir)))
    if isinstance(cfg.url, str) and cfg.url and cfg.source != 'hf-hub':
        sources.append((cfg.url, partial(_from_url, cfg.url, release, cache_dir)))
    tried = []
    for place, fetch in sources:
        try:
            return Weights(fetch(), place)
        except _UnreachableError as e:
            tried.append(f'{place}: {e}')
            _logger.info('No weights from %s: %s', place, e)
    if not sources and release and release.manual_download:
        raise WeightsNotFoundError(
            f'No weights for {name}: no program can download them. With a browser, fetch '
            f'{release.manual_download}, then run '
            f'`tinyvit-zoo import FILE --name {name}` once; pretrained=True finds them from then on.'
        )
    if not sources:
        raise WeightsNotFoundError(f'No weights were released for {name}: use pretrained=False or give a file.')
    raise WeightsNotFoundError(
        f'No weights for {name}. Tried: {"; ".join(tried)}. With the file from elsewhere, use '
        f"pretrained_cfg_overlay=dict(file='FILE') once, or `tinyvit-zoo import FILE --name {name}` for good."
    )


class _UnreachableError(Exception):
    """A source is not available now; the next one may be."""


def _from_hub(cfg: PretrainedCfg, page: str, cache_dir: str | Path | None) -> dict[str, torch.Tensor]:
    """State dict of a Hub page, or of its copy in the cache, verified by the checksums of Hub and page."""
    path = _hub_file(cfg, page, cache_dir)
    check_download(path)
    _check_manifest(cfg, page, path, cache_dir)
    return read_checkpoint(path)


def _check_manifest(cfg: PretrainedCfg, page: str, path: Path, cache_dir: str | Path | None) -> None:
    """Compare a file with the manifest of its page, if there is one and it is available now."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repo = page.partition('@')[0]
    filename = cfg.hf_hub_filename or path.name
    folder = path.parents[filename.count('/')]
    commit = folder.name
    cached = try_to_load_from_cache(repo, MANIFEST, revision=commit, cache_dir=cache_dir)
    if cached is None and hub_silence(repo, MANIFEST, commit):
        return
    if cached is not None and not isinstance(cached, str):
        return  # known to have none
    try:
        manifest = cached or hf_hub_download(repo, MANIFEST, revision=commit, cache_dir=cache_dir)
    except Exception as e:  # none there, or the Hub has just stopped answering
        _logger.info('No %s of %s: %s', MANIFEST, repo, e)
        return
    listed = read_manifest(Path(manifest), downloaded=True)
    if filename in listed:
        check_listed(folder, {filename: listed[filename]}, downloaded=True)


def _hub_file(cfg: PretrainedCfg, page: str, cache_dir: str | Path | None) -> Path:
    """A checkpoint of a Hub page in the Hub's cache, downloaded if it is not there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, name = page.partition('@')
    revision = name or None
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
    silent = None
    if not isinstance(try_to_load_from_cache(repo, files[0], revision=revision, cache_dir=cache_dir), str):
        silent = hub_silence(repo, files[0], revision)
    for filename in files:
        try:
            path = hf_hub_download(
                repo, filename, revision=revision, cache_dir=cache_dir, local_files_only=silent is not None
            )
            return Path(path)
        except EntryNotFoundError as e:  # not on the page, or not in the cache where the Hub is silent
            if isinstance(e, LocalEntryNotFoundError) and not silent:
                silent = e  # it answered once and then stopped
        except Exception as e:  # gone, gated, no permission, full disk; httpx errors derive from Exception only
            raise _UnreachableError(reason(e)) from e
    if silent:
        raise _UnreachableError(f'not in the cache and not reachable ({reason(silent)})') from silent
    raise _UnreachableError(f'the page has none of {", ".join(files)}')


def _from_url(url: str, release: Release | None, cache_dir: str | Path | None) -> dict[str, torch.Tensor]:
    """State dict of the file at an address, kept in torch.hub's checkpoint folder.

    The next call resumes a download that was cut off; a file that is not such a checkpoint is not kept. Processes that
    need the same file wait for the first one.
    """
    from filelock import FileLock

    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / 'checkpoints'
    if release is None:  # file names like model.pth come from many places
        folder /= hashlib.sha256(url.encode()).hexdigest()[:8]
    path = folder / (Path(urllib.parse.urlparse(url).path).name or 'weights')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + '.lock')):
            if not path.exists():
                with resumed_file(path) as part:
                    _download(url, part)
    except OSError as e:  # full disk, no permission, a file where the folder should be
        raise CheckpointError(f'Cannot save {url} as {path} ({reason(e)}).') from e
    try:
        if release and release.sha256 and file_sha256(path) != release.sha256:
            raise CheckpointError(f'{path} does not have the released sha256 {release.sha256}.')
        _, checkpoint = open_checkpoint_file(path)
    except CheckpointError as e:
        path.unlink(missing_ok=True)
        raise CheckpointError(f'{e} It came from {url} and was removed; the next call downloads it again.') from e
    return unwrap(checkpoint, str(path))


def _download(url: str, part: Path) -> None:
    """Append the missing bytes of the file at an address to `part`; errors of the disk are the caller's to report."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {'User-Agent': 'tinyvit-zoo'} | ({'Range': f'bytes={have}-'} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError) as e:
        if isinstance(e, urllib.error.HTTPError) and e.code == 416:  # nothing left to fetch, or another file meanwhile
            part.unlink(missing_ok=True)
        raise _UnreachableError(reason(e)) from e
    resumed = response.status == 206
    have = have if resumed else 0
    total = have + int(response.headers.get('Content-Length') or 0)
    with (
        response,
        part.open('ab' if resumed else 'wb') as f,
        tqdm(total=total or None, initial=have, unit='B', unit_scale=True, desc=part.stem) as bar,
    ):
        while block := _read(response):
            f.write(block)
            bar.update(len(block))
    if total and part.stat().st_size != total:
        raise _UnreachableError(
            f'cut off after {part.stat().st_size} of {total} bytes; the next call resumes the download'
        )


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as e:
        raise _UnreachableError(f'cut off ({reason(e)}); the next call resumes the download') from e
