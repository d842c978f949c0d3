"""Errors that a user can cause. Every message is one sentence that says what to do."""

from .text import escaped

__all__ = [
    'CheckpointError',
    'EvaluationError',
    'ImageError',
    'MissingSplitError',
    'ModelError',
    'WeightsNotFoundError',
]


class ModelError(ValueError):
    """A model name, folder or argument cannot be used; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))  # with names out of files and pages, which may hold anything


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))


class WeightsNotFoundError(CheckpointError, FileNotFoundError):
    """No source has the weights; the message lists what was tried."""

    def __str__(self) -> str:  # FileNotFoundError would print an errno pair
        return str(self.args[0])


class EvaluationError(ModelError):
    """Data, settings or a cache cannot be used; the message is one sentence that says what to do."""

    def __init__(self, message: str) -> None:
        # torch puts the traceback of the worker before the message that the worker raised.
        super().__init__(message.rpartition('EvaluationError: ')[2].strip())


class MissingSplitError(EvaluationError):
    """A data set does not have the split, or has its images without labels."""


class ImageError(EvaluationError):
    """An image file cannot be read; the message names it and says why."""
