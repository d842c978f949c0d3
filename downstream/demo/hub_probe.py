"""Whether pretrained weights can be had now, found out within seconds."""

import threading
import urllib.error
import urllib.request

from tinyvit_zoo.checkpoints import imported_path
from tinyvit_zoo.releases import Release, find_release

__all__ = ['weights_at_hand']

LIMIT_S = 7.0


def weights_at_hand(name: str, limit_s: float = LIMIT_S) -> str | None:
    """None if the weights of a release are on this disk or the Hub gives them out; else why not, in a few words.

    Takes at most `limit_s` seconds, whatever the network does.
    """
    from huggingface_hub import constants

    release = find_release(name)
    if imported_path(release.name).is_dir() or _in_cache(release):
        return None
    if constants.HF_HUB_OFFLINE:
        return 'HF_HUB_OFFLINE is set and they are not on this disk'
    return _probe(f'{constants.ENDPOINT}/{release.hf_hub_id}/resolve/main/model.safetensors', limit_s)


def _in_cache(release: Release) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(release.hf_hub_id, 'model.safetensors'), str)


def _probe(url: str, limit_s: float) -> str | None:
    """Ask for the first byte. The time limit of a socket does not cover the look-up of a name, so a thread does it."""
    answer = []

    def ask() -> None:
        request = urllib.request.Request(url, headers={'Range': 'bytes=0-0', 'User-Agent': 'tinyvit-zoo'})
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as response:
                response.read(1)
            answer.append(None)
        except Exception as e:  # whatever it is, the Hub is of no use now
            answer.append(f'the Hub cannot be reached ({_reason(e)})')

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    return answer[0] if answer else f'the Hub did not answer within {limit_s:g} s'


def _reason(error: Exception) -> str:
    reason = getattr(error, 'reason', None) if isinstance(error, urllib.error.URLError) else None
    return ' '.join(str(reason or error).split()) or type(error).__name__
