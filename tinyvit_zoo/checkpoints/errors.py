"""What can go wrong with a checkpoint, said once and clearly."""

__all__ = ['CheckpointError', 'WeightsNotFoundError']


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and what to do."""


class WeightsNotFoundError(CheckpointError, FileNotFoundError):
    """No source has the weights; the message lists what was tried."""

    def __str__(self) -> str:  # FileNotFoundError would print an errno pair
        return str(self.args[0])
