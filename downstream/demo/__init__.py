"""The demo: what the package does, shown on real images that installed packages carry."""

from .run import run_demo

__all__ = ['run_demo']
