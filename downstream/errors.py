"""The error of everything under `downstream` that a user can cause."""

from tinyvit_zoo.build import ModelError

__all__ = ['EvaluationError', 'MissingSplitError']


class EvaluationError(ModelError):
    """Data, settings or a cache cannot be used; the message is one sentence that says what to do."""

    def __init__(self, message: str) -> None:
        # torch hands on what a worker raised with the worker's traceback before it.
        super().__init__(message.rpartition('EvaluationError: ')[2].strip())


class MissingSplitError(EvaluationError):
    """A data set does not have the split, or has its images without labels."""
