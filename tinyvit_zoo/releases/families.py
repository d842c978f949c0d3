"""All releases by family, and finding one by its name."""

from .clip_vit import CLIP_VIT
from .mae_lite import MAE_LITE
from .minivit import MINI_DEIT, MINI_SWIN
from .record import Release
from .tinymim import TINYMIM
from .tinyvit import TINYVIT

__all__ = [
    'FAMILIES',
    'FAMILY_TITLES',
    'TEACHERS',
    'all_releases',
    'family_of',
    'find_family',
    'find_release',
    'get_release',
]

FAMILIES: dict[str, tuple[Release, ...]] = {
    'tinyvit': TINYVIT,
    'mini_deit': MINI_DEIT,
    'mini_swin': MINI_SWIN,
    'tinymim': TINYMIM,
    'mae_lite': MAE_LITE,
    'clip_vit': CLIP_VIT,
}


FAMILY_TITLES = {
    'tinyvit': 'TinyViT',
    'mini_deit': 'Mini-DeiT',
    'mini_swin': 'Mini-Swin',
    'tinymim': 'TinyMIM',
    'mae_lite': 'MAE-Lite',
    'clip_vit': 'CLIP ViT',
}
"""The families as the papers write them."""

TEACHERS = frozenset(('clip_vit',))
"""Families that were released for others to learn from; they are not small models."""


def all_releases() -> tuple[Release, ...]:
    """Every release, family by family."""
    return tuple(release for releases in FAMILIES.values() for release in releases)


def find_release(name: str) -> Release | None:
    """The release called 'architecture.tag', or the default of 'architecture'; None if there is none."""
    architecture, _, tag = name.partition('.')
    return next((r for r in all_releases() if r.architecture == architecture and tag in ('', r.tag)), None)


def get_release(name: str) -> Release:
    """As `find_release`.

    Raises:
        KeyError: If there is none.
    """
    release = find_release(name)
    if release is None:
        raise KeyError(f'There is no release called {name}.')
    return release


def family_of(release: Release) -> str:
    """The family of a release, a key of `FAMILIES`."""
    return next(family for family, releases in FAMILIES.items() if release in releases)


def find_family(name: str) -> str | None:
    """The family of 'architecture' or 'architecture.tag', a key of `FAMILIES`; None if it is of none."""
    architecture = name.partition('.')[0]
    return next((f for f, releases in FAMILIES.items() if any(r.architecture == architecture for r in releases)), None)
