"""Where weights come from: what the caller gave > imported by hand > the Hub > the release's address.

timm reads files itself, before any filter sees them, and never falls back from the Hub to an address; so the state
dict is fetched here and handed to timm.
"""

import hashlib
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models import PretrainedCfg

from ..releases import find_release
from .errors import CheckpointError, WeightsNotFoundError
from .read import read_checkpoint, unwrap

__all__ = ['Weights', 'find_weights', 'imported_path']

_logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


@dataclass(frozen=True)
class Weights:
    """A state dict in its file's own layout, and where it came from."""

    state_dict: dict[str, torch.Tensor]
    origin: str


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
    included; the release's url. `local-dir:` and `hf-hub:` names use only what they name.

    Args:
        cfg: Resolved pretrained cfg, overlay included.
        cache_dir: Overrides the Hub's and torch.hub's cache folders.

    Raises:
        CheckpointError: If the file that was found cannot be used.
        WeightsNotFoundError: If no source has them; the message lists each one tried and why it failed.
    """
    if cfg.state_dict:
        return Weights(unwrap(cfg.state_dict, 'the state dict given'), 'the state dict given')
    if cfg.file:
        return Weights(read_checkpoint(cfg.file), str(cfg.file))
    name = f'{cfg.architecture}.{cfg.tag}' if cfg.tag else str(cfg.architecture)
    release = find_release(name)
    stock = release is not None and (cfg.hf_hub_id, cfg.url) == (release.hf_hub_id, release.url)
    if stock and imported_path(name).is_dir():
        return Weights(read_checkpoint(imported_path(name)), str(imported_path(name)))

    sha256 = release.sha256 if stock else None
    tried = []
    for place, fetch in (
        (f'the Hub page {cfg.hf_hub_id}', cfg.hf_hub_id and (lambda: _from_hub(cfg, cache_dir))),
        (str(cfg.url), cfg.url and cfg.source != 'hf-hub' and (lambda: _from_url(cfg.url, sha256, cache_dir))),
    ):
        if not fetch:
            continue
        try:
            return Weights(read_checkpoint(fetch()), place)
        except _Unreachable as e:
            tried.append(f'{place}: {e}')
            _logger.info('No weights from %s: %s', place, e)
    if not tried:
        raise WeightsNotFoundError(f'No weights were released for {name}: use pretrained=False or give a file.')
    raise WeightsNotFoundError(
        f'No weights for {name}. Tried: {"; ".join(tried)}. With the file from elsewhere, use '
        f"pretrained_cfg_overlay=dict(file='FILE') once, or `tinyvit-zoo import FILE --name {name}` for good."
    )


class _Unreachable(Exception):
    """A source that cannot be had now; the next one may."""


def _from_hub(cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = cfg.hf_hub_id.partition('@')
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
    for i, filename in enumerate(files):
        try:
            return Path(hf_hub_download(repo, filename, revision=revision or None, cache_dir=cache_dir))
        except LocalEntryNotFoundError as e:  # offline or unreachable, and not in the cache
            if i == len(files) - 1:
                raise _Unreachable(f'not in the cache and not reachable ({_reason(e)})') from e
            if not _in_cache(repo, files[i + 1 :], revision, cache_dir):
                raise _Unreachable(f'not in the cache and not reachable ({_reason(e)})') from e
        except EntryNotFoundError as e:
            if i == len(files) - 1:
                raise _Unreachable(f'the page has none of {", ".join(files)}') from e
        except OSError as e:  # also HfHubHTTPError: gone, gated, no permission; full disk keeps its own message
            raise _Unreachable(_reason(e)) from e
        except Exception as e:  # httpx's connection errors derive from Exception only
            raise _Unreachable(f'{type(e).__name__}: {_reason(e)}') from e
    raise AssertionError('unreachable')


def _in_cache(repo: str, files: tuple[str, ...], revision: str, cache_dir: str | Path | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(
        isinstance(try_to_load_from_cache(repo, f, cache_dir=cache_dir, revision=revision or None), str) for f in files
    )


def _reason(error: BaseException) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _from_url(url: str, sha256: str | None, cache_dir: str | Path | None) -> Path:
    """Download to torch.hub's checkpoint folder, once. A cut download goes on where it stopped."""
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / 'checkpoints'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(urllib.parse.urlparse(url).path).name
    if not path.exists():
        part = path.with_name(path.name + '.part')
        _download(url, part)
        part.replace(path)
    if sha256 and _sha256(path) != sha256:
        path.unlink()
        raise CheckpointError(f'{path} did not have the released sha256 {sha256} and was removed. Try again.')
    return path


def _download(url: str, part: Path) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'User-Agent': 'tinyvit-zoo', 'Range': f'bytes={have}-'})
    if not have:
        request.remove_header('Range')
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            resumed = response.status == 206
            total = int(response.headers.get('Content-Length') or 0) + (have if resumed else 0)
            with (
                part.open('ab' if resumed else 'wb') as f,
                tqdm(
                    total=total or None, initial=have if resumed else 0, unit='B', unit_scale=True, desc=part.stem
                ) as bar,
            ):
                while block := response.read(1 << 20):
                    f.write(block)
                    bar.update(len(block))
            if total and part.stat().st_size != total:
                raise _Unreachable(
                    f'cut off after {part.stat().st_size} of {total} bytes; calling again goes on from there'
                )
    except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
        if isinstance(e, urllib.error.HTTPError) and e.code == 416:  # nothing left to fetch, or another file by now
            part.unlink(missing_ok=True)
        raise _Unreachable(_reason(e)) from e


def _sha256(path: Path) -> str:
    with path.open('rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()
