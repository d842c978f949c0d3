"""Where weights come from: what the caller gave > imported by hand > the Hub > the release's address.

timm reads files itself, before any filter sees them, and never falls back from the Hub to an address; so the state
dict is fetched here and handed to timm.
"""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timm.models import PretrainedCfg

from ..common.errors import CheckpointError, WeightsNotFoundError
from ..releases import Release, find_release
from .manifest import MANIFEST, check_download, check_listed, file_sha256, read_manifest
from .read import Clues, clues_of, read_checkpoint, read_with_clues, unwrap

__all__ = ['Weights', 'find_weights', 'imported_path']

_logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


@dataclass(frozen=True)
class Weights:
    """A state dict in its file's own layout, and where it came from.

    Attributes:
        clues: What a file of the caller's tells of its model; None where the source itself vouches for the weights.
    """

    state_dict: dict[str, torch.Tensor]
    origin: str
    clues: Clues | None = None


def imported_path(name: str) -> Path:
    """Folder where `tinyvit-zoo import` keeps the weights of a tag, and `pretrained=True` finds them.

    `TINYVIT_ZOO_HOME` moves it; the default is `~/.cache/tinyvit_zoo`.
    """
    home = os.environ.get('TINYVIT_ZOO_HOME')
    root = Path(home) if home else Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'tinyvit_zoo'
    return root / 'weights' / name


def find_weights(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Weights:
    """The weights a pretrained cfg asks for.

    Order: `state_dict`, then `file` (a file or folder) of the cfg; weights imported by hand; the Hub, its cache
    included; the release's url. `local-dir:` and `hf-hub:` names use only what they name. Where a release has neither
    page nor address, the error says which file a person has to fetch, and from where.

    Args:
        cfg: Resolved pretrained cfg, overlay included.
        cache_dir: Overrides the Hub's and torch.hub's cache folders.

    Raises:
        CheckpointError: If the file that was found cannot be used.
        WeightsNotFoundError: If no source has them; the message lists each one tried and why it failed.
    """
    if cfg.state_dict is not None:
        where = 'the state dict given'
        return Weights(unwrap(cfg.state_dict, where), where, clues_of(cfg.state_dict))
    if cfg.file:
        state_dict, clues = read_with_clues(cfg.file)
        return Weights(state_dict, str(cfg.file), clues)
    name = f'{cfg.architecture}.{cfg.tag}' if cfg.tag else str(cfg.architecture)
    release = find_release(name)
    if release and (cfg.hf_hub_id or None, cfg.url or None) != (release.hf_hub_id, release.url):
        release = None  # the overlay points elsewhere
    if release and imported_path(name).is_dir():
        return Weights(read_checkpoint(imported_path(name)), str(imported_path(name)))

    sources = []
    if cfg.hf_hub_id:
        sources.append((f'the Hub page {cfg.hf_hub_id}', partial(_from_hub, cfg, cache_dir)))
    if cfg.url and cfg.source != 'hf-hub':
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
    """A source that cannot be had now; the next one may."""


def _from_hub(cfg: PretrainedCfg, cache_dir: str | Path | None) -> dict[str, torch.Tensor]:
    """State dict of a Hub page, or of its copy in the Hub's cache; it is what the Hub and the page say that it is."""
    path = _hub_file(cfg, cache_dir)
    check_download(path)
    _check_manifest(cfg, path, cache_dir)
    return read_checkpoint(path)


def _check_manifest(cfg: PretrainedCfg, path: Path, cache_dir: str | Path | None) -> None:
    """Compare a file with the manifest of its page, if that has one that can be had now."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repo = cfg.hf_hub_id.partition('@')[0]
    filename = cfg.hf_hub_filename or path.name
    folder = path.parents[filename.count('/')]
    commit = folder.name
    place = dict(revision=commit, cache_dir=cache_dir)
    cached = try_to_load_from_cache(repo, MANIFEST, **place)
    if cached is None and _hub_silence(repo, MANIFEST, commit):
        return
    if cached is not None and not isinstance(cached, str):
        return  # known to have none
    try:
        manifest = cached or hf_hub_download(repo, MANIFEST, **place)
    except Exception as e:  # none there, or the Hub has just fallen silent
        _logger.info('No %s of %s: %s', MANIFEST, repo, e)
        return
    listed = read_manifest(Path(manifest), downloaded=True)
    if filename in listed:
        check_listed(folder, {filename: listed[filename]}, downloaded=True)


def _hub_file(cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = cfg.hf_hub_id.partition('@')
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
    place = dict(revision=revision or None, cache_dir=cache_dir)
    silent = None
    if not isinstance(try_to_load_from_cache(repo, files[0], **place), str):
        silent = _hub_silence(repo, files[0], revision or None)
    for filename in files:
        try:
            return Path(hf_hub_download(repo, filename, **place, local_files_only=silent is not None))
        except EntryNotFoundError as e:  # not on the page, or not in the cache where the Hub is silent
            if isinstance(e, LocalEntryNotFoundError) and not silent:
                silent = e  # it answered once and fell silent
        except Exception as e:  # gone, gated, no permission, full disk; httpx errors derive from Exception only
            raise _UnreachableError(_reason(e)) from e
    if silent:
        raise _UnreachableError(f'not in the cache and not reachable ({_reason(silent)})') from silent
    raise _UnreachableError(f'the page has none of {", ".join(files)}')


def _hub_silence(repo: str, filename: str, revision: str | None) -> Exception | None:
    """Why the Hub does not answer, None if it does, whatever it says. `hf_hub_download` would try for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision))
    except HfHubHTTPError:
        return None
    except Exception as e:
        return e
    return None


def _reason(error: BaseException) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _from_url(url: str, release: Release | None, cache_dir: str | Path | None) -> dict[str, torch.Tensor]:
    """State dict of the file at an address, kept in torch.hub's checkpoint folder.

    A cut download goes on where it stopped; a file that is not what it should be is not kept. Processes that want
    the same file wait for the first one.
    """
    from filelock import FileLock

    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / 'checkpoints'
    if release is None:  # file names like model.pth come from many places
        folder /= hashlib.sha256(url.encode()).hexdigest()[:8]
    path = folder / (Path(urllib.parse.urlparse(url).path).name or 'weights')
    part = path.with_name(path.name + '.part')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + '.lock')):
            if not path.exists():
                _download(url, part)
                part.replace(path)
    except OSError as e:  # full disk, no permission, a file where the folder should be
        raise CheckpointError(f'Cannot save {url} as {path} ({_reason(e)}).') from e
    try:
        if release and release.sha256 and file_sha256(path) != release.sha256:
            raise CheckpointError(f'{path} does not have the released sha256 {release.sha256}.')
        return read_checkpoint(path)
    except CheckpointError as e:
        path.unlink(missing_ok=True)
        raise CheckpointError(f'{e} It came from {url} and was removed; the next call downloads it again.') from e


def _download(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at an address; disk errors are the caller's."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {'User-Agent': 'tinyvit-zoo'} | ({'Range': f'bytes={have}-'} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError) as e:
        if isinstance(e, urllib.error.HTTPError) and e.code == 416:  # nothing left to fetch, or another file by now
            part.unlink(missing_ok=True)
        raise _UnreachableError(_reason(e)) from e
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
            f'cut off after {part.stat().st_size} of {total} bytes; calling again goes on from there'
        )


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as e:
        raise _UnreachableError(f'cut off ({_reason(e)}); calling again goes on from there') from e
