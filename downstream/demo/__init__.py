"""The demo: the package at work on real images that come with scikit-learn and scikit-image."""

from .run import run_demo

__all__ = ['run_demo']
