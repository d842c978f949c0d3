"""Check within seconds whether pretrained weights are available."""

import threading
import urllib.error
import urllib.request

from tinyvit_zoo.checkpoints import imported_path
from tinyvit_zoo.common.text import reason
from tinyvit_zoo.releases import find_release

__all__ = ['weights_at_hand']

LIMIT_S = 7.0


def weights_at_hand(name: str, limit_s: float = LIMIT_S) -> str | None:
    """None if the weights of a release are on this disk or the Hub provides them; otherwise the reason in a few words.

    It takes at most `limit_s` seconds, whatever the network does.
    """
    from huggingface_hub import constants

    release = find_release(name)
    if release is None or release.hf_hub_id is None:
        return f'no weights of {name} are released'
    if imported_path(release.name).is_dir() or _in_cache(release.hf_hub_id):
        return None
    if constants.HF_HUB_OFFLINE:
        return 'HF_HUB_OFFLINE is set and they are not on this disk'
    return _probe(f'{constants.ENDPOINT}/{release.hf_hub_id}/resolve/main/model.safetensors', limit_s)


def _in_cache(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, 'model.safetensors'), str)


def _probe(url: str, limit_s: float) -> str | None:
    """Request the first byte, in a thread: a socket's time limit does not cover the name lookup."""
    answer: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(url, headers={'Range': 'bytes=0-0', 'User-Agent': 'tinyvit-zoo'})
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as response:
                response.read(1)
            answer.append(None)
        except Exception as e:  # any error means that the Hub is unavailable
            answer.append(f'the Hub cannot be reached ({_reason(e)})')

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    return answer[0] if answer else f'the Hub did not answer within {limit_s:g} s'


def _reason(error: Exception) -> str:
    inner = getattr(error, 'reason', None) if isinstance(error, urllib.error.URLError) else None
    return reason(inner or error)
