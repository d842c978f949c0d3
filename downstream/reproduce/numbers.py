"""The published numbers: 1029 rows of the four papers and of their authors' pages, none of them measured here."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ['PAPER_NUMBERS', 'Number', 'read_numbers']

PAPER_NUMBERS = Path(__file__).with_name('paper_numbers.csv')


@dataclass(frozen=True)
class Number:
    """One published number.

    Attributes:
        id: 'PAPER/ENTRY/ROW/METRIC', and '/DATASET' where it belongs to one. Stable: it is stored, not computed.
        paper: 'tinyvit', 'minivit', 'tinymim' or 'mae_lite'.
        model: As the paper calls it.
        dataset: '-' for a number that belongs to no data set.
        task: What was done, such as 'linear_probe'.
        metric: Such as 'top1', whose unit is percent; params_m are millions, macs_g 10^9 multiply-accumulates.
        value: As printed, with the paper's digits; empty where the text at hand has lost it.
        source: Table and row, or page.
        note: What else the source says of it, and where it contradicts another.
    """

    id: str
    paper: str
    model: str
    dataset: str
    task: str
    metric: str
    value: str
    source: str
    note: str

    @property
    def entry(self) -> str:
        """Name of its table: 'tinyvit/table5'."""
        return '/'.join(self.id.split('/')[:2])

    @property
    def row(self) -> str:
        """Name of its row in the table, the model's: 'tinyvit-21m-in-1k-scratch'."""
        return self.id.split('/')[2]

    @property
    def cell(self) -> str:
        """Metric, and data set if there is one: 'top1/cifar-10'."""
        return '/'.join(self.id.split('/')[3:])

    @property
    def pixels(self) -> int | None:
        """Side of the image, where the source gives it."""
        found = re.search(r'\b(\d+)px', self.note)
        return int(found[1]) if found else None

    @property
    def half_unit(self) -> float:
        """Half a unit of the last printed digit: 0.05 for 84.8. Two numbers closer than that round alike."""
        return 0.5 * 10.0 ** -len(self.value.partition('.')[2])


@cache
def read_numbers() -> tuple[Number, ...]:
    """All published numbers, in the order of their sources."""
    with PAPER_NUMBERS.open(newline='', encoding='utf-8') as file:
        return tuple(Number(**row) for row in csv.DictReader(file))
