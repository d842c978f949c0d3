"""The error of everything under `downstream` that a user can cause."""

from tinyvit_zoo.build import ModelError

__all__ = ['EvaluationError']


class EvaluationError(ModelError):
    """Data, settings or a cache cannot be used; the message is one sentence that says what to do."""
