"""The demo: the package at work on real images that come with scikit-learn and scikit-image."""

from tinyvit_zoo.common.extras import needs_extra

with needs_extra('eval'):
    from .run import run_demo

__all__ = ['run_demo']
