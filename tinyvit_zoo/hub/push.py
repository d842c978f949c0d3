"""Publish a folder that `pack` wrote: proved first, uploaded in one commit, and only over what is known."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import CheckpointError
from ..checkpoints.manifest import MANIFEST, file_sha256, read_manifest
from .folder import CARD
from .own_card import NAMELESS
from .remote import HubError, RemotePage, check_repo, look_at, said_plainly
from .verify import verify

__all__ = ['Push', 'push']

# What the Hub itself puts into a new page.
OF_THE_HUB = ('.gitattributes',)


@dataclass(frozen=True)
class Push:
    """What a push did, or would do.

    Attributes:
        url: Address of the page.
        commit: The page's commit afterwards; None if it was only planned for a page that is not there yet.
        created: Whether the page is new.
        uploaded: Files that were other ones before, or not there.
        deleted: Files of an earlier push that this page no longer has.
    """

    url: str
    commit: str | None
    created: bool
    uploaded: list[str]
    deleted: list[str]


def push(folder: str | Path, repo: str, private: bool = False, dry_run: bool = False, force: bool = False) -> Push:
    """Upload a page. It changes in one commit or not at all, and the same again makes no commit.

    A push that was cut off is taken up by calling it again: what the Hub has of the large files is not sent twice.

    Args:
        folder: As `pack` wrote it.
        repo: 'OWNER/NAME'.
        private: Make a new page private; else the owner's default decides, which is public unless it was changed.
        dry_run: Say what would be done, after looking at the page.
        force: Overwrite files that neither this page nor an earlier push of its kind has.

    Returns:
        What was done.

    Raises:
        ModelError: On a name that no page can have.
        CheckpointError: If the folder does not pass `verify`, or the page holds what is not known.
        HubError: If the Hub cannot be reached or refuses.
    """
    check_repo(repo)
    folder = Path(folder).expanduser().resolve()
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f'{folder} has no {MANIFEST}: `tinyvit-zoo pack` makes the folder of a page.')
    verify(folder)
    local = {**read_manifest(folder / MANIFEST), MANIFEST: file_sha256(folder / MANIFEST)}
    if CARD in local and NAMELESS in (folder / CARD).read_text():
        raise CheckpointError(
            f'{folder / CARD} says {NAMELESS}, which nobody could paste: `tinyvit-zoo pack {folder} -o {folder} --repo '
            f'{repo}` names the page in it.'
        )

    from huggingface_hub import HfApi, constants

    doing = f'Pushing to {repo}'
    with said_plainly(doing):
        if constants.is_offline_mode():
            raise HubError(f'{doing}: HF_HUB_OFFLINE is set, and nothing can be uploaded without the Hub.')
        page = look_at(repo)
        plan = _plan(folder, local, repo, page, private, force)
        if page is None and not dry_run:
            # Without a word on it, the owner's default decides whether the page is private.
            HfApi().create_repo(repo, private=private or None, exist_ok=True)
            page = look_at(repo)
            if page is None:
                raise HubError(f'{doing}: the page was made, and the token may not see it.')
            # Somebody else may have made it first, public or with other files.
            plan = replace(_plan(folder, local, repo, page, private, force), created=True)
        if dry_run or not (plan.uploaded or plan.deleted):
            return plan
        return _commit(folder, local, repo, page, plan)


def _plan(
    folder: Path, local: Mapping[str, str], repo: str, page: RemotePage | None, private: bool, force: bool
) -> Push:
    from huggingface_hub import constants

    url = f'{constants.ENDPOINT}/{repo}'
    if page and private and not page.private:
        raise CheckpointError(f'{repo} is public already. Leave --private out, or change the page on the Hub.')
    if page is None:
        return Push(url, None, True, sorted(local), [])
    same = {path for path in local if path in page.files and _is_file(page.files[path], folder / path, local[path])}
    rest = page.files.keys() - same - set(OF_THE_HUB)
    pushed_before = _unchanged_since_push(repo, page, rest) if rest else set()
    unknown = sorted(rest - pushed_before)
    if unknown and not force:
        raise CheckpointError(
            f'{url} holds what no push from here put there ({", ".join(unknown[:3])}'
            f'{", ..." if len(unknown) > 3 else ""}). Nothing was changed; --force overwrites files of the same names.'
        )
    return Push(url, page.commit, False, sorted(local.keys() - same), sorted(pushed_before - local.keys()))


def _is_file(remote: Any, path: Path, sha256: str) -> bool:
    """Whether a file on the Hub is the local one."""
    if remote.lfs:
        return remote.lfs.sha256 == sha256
    return remote.blob_id == _git_id(path)


def _git_id(path: Path) -> str:
    """Name that git gives a file's content, by which the Hub tells small files apart."""
    data = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(data) + data, usedforsecurity=False).hexdigest()


def _unchanged_since_push(repo: str, page: RemotePage, paths: set[str]) -> set[str]:
    """Those of the page's files that are as its own manifest lists them: an earlier push, which nobody touched."""
    from huggingface_hub import hf_hub_download

    if MANIFEST not in page.files:
        return set()
    try:
        listed = read_manifest(Path(hf_hub_download(repo, MANIFEST, revision=page.commit)))
    except CheckpointError:
        return set()
    unchanged = {MANIFEST}
    for path in paths & listed.keys():
        remote = page.files[path]
        if remote.lfs:
            sha256 = remote.lfs.sha256
        else:
            sha256 = file_sha256(Path(hf_hub_download(repo, path, revision=page.commit)))
        if sha256 == listed[path]:
            unchanged.add(path)
    return unchanged & paths


def _commit(folder: Path, local: Mapping[str, str], repo: str, page: RemotePage, plan: Push) -> Push:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    operations = [CommitOperationAdd(path, folder / path) for path in plan.uploaded]
    operations += [CommitOperationDelete(path) for path in plan.deleted]
    try:
        done = HfApi().create_commit(
            repo,
            operations,
            commit_message='Upload with tinyvit-zoo',
            parent_commit=page.commit,  # of two pushes at once, one is refused
        )
    except Exception:
        # The answer may have been lost, or somebody pushed the same: what counts is what the page is now.
        now = _look_again(repo)
        if now is None or any(
            path not in now.files or not _is_file(now.files[path], folder / path, sha256)
            for path, sha256 in local.items()
        ):
            raise
        return Push(plan.url, now.commit, plan.created, [], [])
    return Push(plan.url, done.oid, plan.created, plan.uploaded, plan.deleted)


def _look_again(repo: str) -> RemotePage | None:
    try:
        return look_at(repo)
    except Exception:  # whatever went wrong first is what the user should read
        return None
