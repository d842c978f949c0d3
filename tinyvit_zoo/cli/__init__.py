"""The command line. It parses, calls and prints; what it calls lives elsewhere and can be called from Python too.

Importing it imports typer, rich and the standard library only: the files of the commands import what they need inside
the commands.
"""

import sys

__all__ = ['main']


def main() -> None:
    """Parse the command line and run the command: `tinyvit-zoo` and `python -m tinyvit_zoo.cli`."""
    try:
        from .app import run_app
    except ModuleNotFoundError as e:
        if (e.name or '').partition('.')[0] not in ('typer', 'rich'):
            raise
        sys.exit("The command line needs two more packages: pip install 'tinyvit-zoo[cli]'")
    run_app()
