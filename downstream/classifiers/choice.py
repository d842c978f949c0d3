"""How sure the choice of a value from a grid is."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ['Choice', 'edges']


@dataclass(frozen=True)
class Choice:
    """What a value that was chosen from a grid does not say itself.

    Attributes:
        edges: Settings whose chosen value is the smallest or the largest that was tried, in words.
        tied: How many values, the chosen one included, were equally good on the images that chose.
        rule: Which of those is taken.
    """

    edges: tuple[str, ...]
    tied: int
    rule: str

    def words(self) -> str:
        """A line, empty where there is nothing to say."""
        parts = [f'{edge}, so the best may lie beyond the grid' for edge in self.edges]
        if self.tied > 1:
            parts.insert(0, f'{self.tied} are equally good on the held-out images, of which {self.rule} is taken')
        return '; '.join(parts)


def edges(name: str, value: float, tried: Sequence[float]) -> tuple[str, ...]:
    """In words whether a chosen value is the smallest or the largest of those tried. A smallest value of 0 has nothing
    below it, and of a single value nothing was chosen.
    """
    values = sorted(set(tried))
    if len(values) < 2 or (value == values[0] == 0) or value not in (values[0], values[-1]):
        return ()
    return (f'{name} {value:.3g} is the {"smallest" if value == values[0] else "largest"} of {len(values)}',)
