"""Publish a folder that `pack` wrote: verified first, uploaded in one commit, and never over unknown files."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import CheckpointError
from ..checkpoints.manifest import MANIFEST, file_sha256, read_manifest
from ..common.paths import user_path
from ..common.text import first_few
from .folder import CARD
from .own_card import NAMELESS
from .remote import HubError, RemotePage, check_repo, find_page, hub_errors
from .verify import verify

__all__ = ['Push', 'push']

# Files that the Hub itself puts into a new page.
HUB_FILES = ('.gitattributes',)


@dataclass(frozen=True)
class Push:
    """Changes that a push made, or would make.

    Attributes:
        url: Address of the page.
        commit: The page's commit afterwards; None in a dry run for a page that does not exist yet.
        created: Whether the page is new.
        uploaded: Files that were new or different.
        deleted: Files of an earlier push that the folder no longer has.
    """

    url: str
    commit: str | None
    created: bool
    uploaded: list[str]
    deleted: list[str]


def push(folder: str | Path, repo: str, private: bool = False, dry_run: bool = False, force: bool = False) -> Push:
    """Upload a page. It changes in one commit or not at all; pushing the same folder again makes no commit.

    Calling it again resumes an interrupted push: large files that the Hub already has are not sent twice.

    Args:
        folder: Folder that `pack` wrote.
        repo: 'OWNER/NAME'.
        private: Make a new page private; otherwise the owner's default decides, which is public unless changed.
        dry_run: Compare with the page and return the plan without changing anything.
        force: Overwrite files that no earlier push wrote.

    Returns:
        The changes.

    Raises:
        ModelError: If no page can have the name.
        CheckpointError: If the folder does not pass `verify`, or the page holds unknown files.
        HubError: If the Hub cannot be reached or refuses.
    """
    check_repo(repo)
    folder = user_path(folder).resolve()
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f'{folder} has no {MANIFEST}: `tinyvit-zoo pack` makes the folder of a page.')
    verify(folder)
    local = {**read_manifest(folder / MANIFEST), MANIFEST: file_sha256(folder / MANIFEST)}
    if CARD in local and NAMELESS in (folder / CARD).read_text():
        command = shlex.join(['tinyvit-zoo', 'pack', str(folder), '-o', str(folder), '--repo', repo])
        raise CheckpointError(
            f'{folder / CARD} has {NAMELESS} instead of the name of the page: `{command}` puts it there.'
        )

    from huggingface_hub import HfApi, constants

    action = f'Pushing to {repo}'
    with hub_errors(action):
        if constants.is_offline_mode():
            raise HubError(f'{action}: HF_HUB_OFFLINE is set, and nothing can be uploaded without the Hub.')
        page = find_page(repo)
        plan = _plan(folder, local, repo, page, private, force)
        if dry_run:
            return plan
        if page is None:
            # None: the owner's default decides whether the page is private.
            HfApi().create_repo(repo, private=private or None, exist_ok=True)
            page = find_page(repo)
            if page is None:
                raise HubError(f'{action}: the page was created, but the token may not see it.')
            # Somebody else may have created it first, public or with other files.
            plan = replace(_plan(folder, local, repo, page, private, force), created=True)
        if not (plan.uploaded or plan.deleted):
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
    rest = page.files.keys() - same - set(HUB_FILES)
    pushed_before = _unchanged_since_push(repo, page, rest) if rest else set()
    unknown = sorted(rest - pushed_before)
    if unknown and not force:
        raise CheckpointError(
            f'{url} holds files that no push of tinyvit-zoo wrote ({first_few(unknown)}). Nothing was changed; --force '
            'overwrites files of the same names.'
        )
    return Push(url, page.commit, False, sorted(local.keys() - same), sorted(pushed_before - local.keys()))


def _is_file(remote: Any, path: Path, sha256: str) -> bool:
    """Whether a file on the Hub is the local one."""
    if remote.lfs:
        return remote.lfs.sha256 == sha256
    return remote.blob_id == _git_id(path)


def _git_id(path: Path) -> str:
    """Id that git gives a file's content, by which the Hub identifies small files."""
    data = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(data) + data, usedforsecurity=False).hexdigest()


def _unchanged_since_push(repo: str, page: RemotePage, paths: set[str]) -> set[str]:
    """Those of the page's files that match its own manifest: written by an earlier push, and unchanged since."""
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

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path, folder / path) for path in plan.uploaded),
        *(CommitOperationDelete(path) for path in plan.deleted),
    ]
    try:
        done = HfApi().create_commit(
            repo,
            operations,
            commit_message='Upload with tinyvit-zoo',
            parent_commit=page.commit,  # the Hub refuses one of two pushes at once
        )
    except Exception:
        # The answer may have been lost, or somebody pushed the same: the page as it is now decides.
        now = _page_or_none(repo)
        if now is None or any(
            path not in now.files or not _is_file(now.files[path], folder / path, sha256)
            for path, sha256 in local.items()
        ):
            raise
        return Push(plan.url, now.commit, plan.created, [], [])
    return Push(plan.url, done.oid, plan.created, plan.uploaded, plan.deleted)


def _page_or_none(repo: str) -> RemotePage | None:
    try:
        return find_page(repo)
    except Exception:  # the user should read the first error
        return None
