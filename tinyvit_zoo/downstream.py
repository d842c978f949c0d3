"""The folder `downstream` at the top of a checkout, as `tinyvit_zoo.downstream`. A wheel holds the package itself."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / 'downstream')]
