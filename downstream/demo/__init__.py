"""The demo: what the package does, shown on real images that installed packages carry."""

from tinyvit_zoo.common.extras import needs_extra

with needs_extra('eval'):
    from .run import run_demo

__all__ = ['run_demo']
