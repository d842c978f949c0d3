"""Shards: the unit in which images are computed, shared among processes, and kept on disk."""

from dataclasses import dataclass

__all__ = ['Shard', 'cut']


@dataclass(frozen=True)
class Shard:
    """Images `start` to `stop` (excluded), by position in the data set, in one view."""

    view: int
    number: int
    start: int
    stop: int

    def batches(self, batch_size: int) -> list[range]:
        """Positions of each batch; the last may be smaller."""
        starts = range(self.start, self.stop, batch_size)
        return [range(start, min(start + batch_size, self.stop)) for start in starts]


def cut(images: int, size: int, views: int = 1) -> list[Shard]:
    """Shards of `size` images, view after view; the last of each view may be smaller."""
    return [
        Shard(view, number, start, min(start + size, images))
        for view in range(views)
        for number, start in enumerate(range(0, images, size))
    ]
