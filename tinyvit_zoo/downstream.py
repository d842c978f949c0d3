"""Evaluators: what the models are good for, measured on data.

In a checkout they are the folder `downstream` at its top; a wheel holds the package itself instead of this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / 'downstream')]
