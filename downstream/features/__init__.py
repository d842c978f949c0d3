"""Features of a data set: each image passes the backbone once, with the same bytes however the work is shared."""

from .extraction import Features, extract

__all__ = ['Features', 'extract']
