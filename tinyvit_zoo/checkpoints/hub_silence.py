"""Whether the Hub answers. Its client tries for 30 seconds a file before it gives up or looks into its cache."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['cache_if_silent', 'hub_silence']


def hub_silence(repo: str, filename: str, revision: str | None = None) -> Exception | None:
    """Why the Hub does not answer; None if it does, whatever the answer."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision))
    except HfHubHTTPError:
        return None
    except OfflineModeIsEnabled:
        return OfflineModeIsEnabled('HF_HUB_OFFLINE is set')
    except Exception as e:
        return e
    return None


@contextmanager
def cache_if_silent(page: str, filename: str) -> Iterator[Exception | None]:
    """While the block runs, the Hub's client looks into its cache alone if the Hub does not answer.

    Args:
        page: 'OWNER/NAME', or 'OWNER/NAME@REVISION'.
        filename: A file that the page may have.

    Yields:
        Why the Hub does not answer; None if it does.
    """
    from huggingface_hub import constants

    repo, _, revision = page.partition('@')
    silence = hub_silence(repo, filename, revision or None)
    usual = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = usual or silence is not None
    try:
        yield silence
    finally:
        constants.HF_HUB_OFFLINE = usual
