"""The facts of every released weight, once. Pretrained cfgs, tables, cards and `tinyvit-zoo list` are views of them.

Nothing here needs torch, timm or another package, so that the command line can list the releases without them.
"""

from .families import FAMILIES, all_releases, find_family, find_release
from .profile import Profile
from .record import Golden, License, Paper, Protocol, Release, Result, Speed, Transfer, same_file
from .table import MEASURED_BY_OTHERS, list_releases, markdown_table

__all__ = [
    'FAMILIES',
    'MEASURED_BY_OTHERS',
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
    'find_family',
    'find_release',
    'list_releases',
    'markdown_table',
    'same_file',
]
