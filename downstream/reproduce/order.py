"""Whether small runs put rows in the order in which the paper has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tinyvit_zoo.common.text import count_of

from .jobs import Line

__all__ = ['Order', 'paper_order']


@dataclass(frozen=True)
class Order:
    """Pairs of rows with one task, metric and data set, by what digits say of the paper's order.

    Attributes:
        kept: In the paper's order, with intervals that do not overlap.
        turned: In the other order, with intervals that do not overlap.
        undecided: With intervals that overlap, two equal numbers among them.
        one_job: Of rows that one job stands for, as they differ by their published weights.
        tied: Equal in the paper.
    """

    kept: int = 0
    turned: int = 0
    undecided: int = 0
    one_job: int = 0
    tied: int = 0

    @property
    def words(self) -> str:
        """One sentence; empty without pairs."""
        pairs = self.kept + self.turned + self.undecided + self.one_job + self.tied
        if not pairs:
            return ''
        return (
            f"{count_of(pairs, 'pair')} of rows with the same metric and data set: {self.kept} in the paper's order "
            f'on digits, {self.turned} reversed, {self.undecided} undecided (95 % intervals overlap), {self.one_job} '
            f'of one job, and {self.tied} equal in the paper.'
        )


def paper_order(lines: Sequence[Line]) -> Order:
    """The order of the rows of a table that have a number on digits."""
    counts = dict.fromkeys(Order.__dataclass_fields__, 0)
    for one, other in combinations([line for line in lines if line.digits is not None], 2):
        if _kind(one) == _kind(other):
            counts[_outcome(one, other)] += 1
    return Order(**counts)


def _kind(line: Line) -> tuple[str, str, str]:
    return line.number.task, line.number.metric, line.number.dataset


def _outcome(one: Line, other: Line) -> str:
    published = float(one.number.value) - float(other.number.value)
    if not published:
        return 'tied'
    if one.job == other.job:
        return 'one_job'
    assert one.digits is not None
    assert other.digits is not None
    low, high = one.interval or (one.digits, one.digits)
    other_low, other_high = other.interval or (other.digits, other.digits)
    if low <= other_high and other_low <= high:
        return 'undecided'
    return 'kept' if (one.digits - other.digits) * published > 0 else 'turned'
