"""Speeds measured by this project: the rows of `benchmarks/results/` as a page shows them."""

from pathlib import Path
from typing import Any

from ..bench_rows import read_rows
from ..common.paths import packaged_folder

__all__ = ['figures', 'results_folder']


def results_folder() -> Path:
    """`benchmarks/results/`, see `packaged_folder`.

    Raises:
        FileNotFoundError: If there is none.
    """
    return packaged_folder('benchmarks/results')


def figures(results: Path) -> list[dict[str, Any]]:
    """Every measured row: milliseconds and images/s with machine, threads, dtype and date.

    Those in `results/earlier/` have no date and are not among them.
    """
    return [
        dict(
            model=row.model, form=row.form, mode=row.mode, batch=row.batch, ms=row.median_ms,
            images_per_second=row.images_per_second, machine=row.gpu or f'{row.processor}, {row.isa}',
            emulated=path.stem.endswith('_emulated'), threads=row.threads, dtype=row.amp or row.dtype, date=row.date,
            commit=row.commit, img_size=row.img_size, file=path.name,
        )
        for path in sorted(results.glob('*.csv'))
        for row in read_rows(path)
        if row.state == 'ok'
    ]  # fmt: skip
