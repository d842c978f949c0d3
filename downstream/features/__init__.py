"""Features of a data set: a backbone over its images, once for each, with the same bytes whoever computes them."""

from .extraction import Features, extract

__all__ = ['Features', 'extract']
