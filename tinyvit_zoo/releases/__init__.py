"""The facts of every released weight, once. Pretrained cfgs, tables, cards and `tinyvit-zoo list` are views of them.

Nothing here needs torch, timm or another package, so that the command line can list the releases without them.
"""

from .families import (
    FAMILIES,
    FAMILY_TITLES,
    TEACHERS,
    all_releases,
    family_of,
    find_family,
    find_release,
    get_release,
)
from .profile import Profile
from .record import Golden, License, Paper, Protocol, Release, Result, Speed, Transfer, same_file
from .table import MEASURED_BY_OTHERS, list_releases, markdown_table

__all__ = [
    'FAMILIES',
    'FAMILY_TITLES',
    'MEASURED_BY_OTHERS',
    'TEACHERS',
    'Golden',
    'License',
    'Paper',
    'Profile',
    'Protocol',
    'Release',
    'Result',
    'Speed',
    'Transfer',
    'all_releases',
    'family_of',
    'find_family',
    'find_release',
    'get_release',
    'list_releases',
    'markdown_table',
    'same_file',
]
