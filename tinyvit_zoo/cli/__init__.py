"""The command line. It parses, calls and prints; what it calls lives elsewhere and can be called from Python too."""

import sys

__all__ = ['main']


def main() -> None:
    """Entry point of `tinyvit-zoo` and of `python -m tinyvit_zoo.cli`."""
    try:
        from .app import run_app
    except ModuleNotFoundError as e:
        if (e.name or '').partition('.')[0] not in ('typer', 'rich'):
            raise
        sys.exit("The command line needs two more packages: pip install 'tinyvit-zoo[cli]'")
    run_app()
