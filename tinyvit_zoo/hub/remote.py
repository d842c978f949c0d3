"""Access to the Hub: its pages, and its many errors as one sentence each."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from ..checkpoints import CheckpointError
from ..common.errors import ModelError
from ..common.text import reason, shown

__all__ = ['HubError', 'RemotePage', 'check_repo', 'find_page', 'hub_errors', 'is_missing', 'is_repo']

# The Hub's own rules: no '-' or '.' at an end, at most 96 characters each, and what `is_repo` adds.
NAME = r'(?![-.])[\w.-]{1,96}(?<![-.])'
REPO = re.compile(f'{NAME}/{NAME}', re.ASCII)

# Sentences by status; what was under way stands before them.
STATUSES = {
    # Without a login, the Hub answers the same for a private page and for one that does not exist.
    401: 'the Hub does not know who asks, or has no such page (401). Check the name; log in with `hf auth login`, or '
    'set HF_TOKEN.',
    403: 'the Hub does not allow it (403): the token needs the right to do that.',
    404: 'there is no such page or file (404), or it is private and the token may not see it.',
    412: 'somebody changed the page meanwhile (412). Check it and try again.',
    429: 'the Hub asks to slow down (429). Nothing is lost: try again in a few minutes.',
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_repo(repo: str) -> bool:
    """Whether the Hub can have a page of that name."""
    return bool(REPO.fullmatch(repo)) and '--' not in repo and '..' not in repo and not repo.endswith('.git')


def check_repo(repo: str) -> None:
    """Raise ModelError for what cannot be the name of a page."""
    if repo.count('/') != 1:
        raise ModelError(f"'{shown(repo)}' is not the name of a page: write owner/name.")
    if not is_repo(repo):
        raise ModelError(
            f"'{shown(repo)}' cannot be the name of a page, owner/name: both have 1 to 96 letters, digits, '_', '-' "
            "and '.', neither '-' nor '.' at an end or twice in a row, and no '.git' at the end."
        )


class HubError(OSError):
    """The Hub could not do what it was asked; the message says why."""


@contextmanager
def hub_errors(action: str) -> Iterator[None]:
    """Turn every error of the Hub's client into HubError; they come from several libraries without a common base.

    Args:
        action: What is under way, such as 'Pushing to owner/name'.
    """
    try:
        yield
    except (CheckpointError, ModelError, HubError):
        raise
    except Exception as e:
        raise HubError(f'{action}: {_sentence(e)}') from e


def is_missing(error: BaseException) -> bool:
    """Whether the Hub said that the page has no such file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return any(isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError) for e in _chain(error))


def status_of(error: BaseException) -> int | None:
    """HTTP status that an error comes from."""
    statuses = (getattr(getattr(e, 'response', None), 'status_code', None) for e in _chain(error))
    return next((status for status in statuses if status), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    causes = list(_chain(error))
    if any(getattr(e, 'errno', None) in FULL for e in causes):
        return 'the disk is full. No partial file was kept: make room and try again.'
    status = status_of(error)
    if status in STATUSES:
        return STATUSES[status]
    if status and status >= 500:
        return f'the Hub has an error of its own ({status}). Nothing is lost: try again later.'
    if constants.is_offline_mode() or any(isinstance(e, OfflineModeIsEnabled) for e in causes):
        return 'it is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub.'
    names = {kind.__name__ for e in causes for kind in type(e).__mro__}
    if names & {'TransportError', 'LocalEntryNotFoundError'}:
        cause = reason(causes[-1], 120)
        return f'{constants.ENDPOINT} does not answer, or broke off ({cause}). Nothing is lost: try again.'
    return reason(error, 300)


@dataclass(frozen=True)
class RemotePage:
    """A page as it is on the Hub.

    Attributes:
        commit: Its newest commit.
        private: Whether only its owner sees it.
        files: By path; `lfs.sha256` of large files, `blob_id` (git) of the others.
    """

    commit: str
    private: bool
    files: dict[str, Any]


def find_page(repo: str) -> RemotePage | None:
    """The page as it is now, None if there is none that the token may see.

    Raises:
        Exception: Any error of the Hub's client.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        info = api.model_info(repo)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError as e:
        if status_of(e) != 404:  # 401 stands for many things, and none of them is a page to be made
            raise
        return None
    entries = api.list_repo_tree(repo, recursive=True, revision=info.sha)
    commit = cast(str, info.sha)  # None only where a caller asks for other fields alone
    return RemotePage(commit, bool(info.private), {e.path: e for e in entries if isinstance(e, RepoFile)})
