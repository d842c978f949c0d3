"""The speed tables of README and docs/speed.md, written from the rows of record in `benchmarks/results/`.

    python benchmarks/tables.py                  # writes both; `python benchmarks/record.py` measures

One CSV per processor, each written by `tinyvit_zoo.bench`. A file whose name ends in `_emulated` was measured with a
part of the instructions switched off; a real processor of that kind takes its place. What nobody could measure with the
code as it is stands in `results/earlier/`, with its source and the commit that it was measured before.
"""

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyvit_zoo.bench import Row, read_rows
from tinyvit_zoo.common.files import write_whole

__all__ = ['COMPARISONS', 'RESULTS', 'Comparison', 'columns', 'replaced', 'short_table', 'table']

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / 'results'
PAGES = {'README.md': 'short', 'docs/speed.md': 'long'}
BEGIN, END = '<!-- speed: written by benchmarks/tables.py -->', '<!-- speed: end -->'


@dataclass(frozen=True)
class Comparison:
    """A line of the tables: a model in a form over a model of timm.

    Attributes:
        label: What the line is called.
        model: Ours.
        form: One of `tinyvit_zoo.bench.FORMS`.
        first: Model that the ratio is to.
        first_form: Its form.
        train: A training step.
        cpu: Batches on a CPU.
        gpu: Batch on a GPU.
    """

    label: str
    model: str
    form: str
    first: str
    first_form: str = 'created'
    train: bool = False
    cpu: tuple[int, ...] = (8, 1)
    gpu: int = 256


T21, T5 = ('tinyvit_21m_224', 'tiny_vit_21m_224'), ('tinyvit_5m_224', 'tiny_vit_5m_224')
SWIN = ('mini_swin_tiny_patch4_window7_224', 'swin_tiny_patch4_window7_224')
DEIT = ('mini_deit_small_patch16_224', 'deit_small_patch16_224')


def _pair(label: str, pair: tuple[str, str]) -> tuple[Comparison, ...]:
    ours, theirs = pair
    return tuple(
        Comparison(f'{label}, {words}', ours, form, theirs)
        for form, words in {'created': 'as created', 'deploy': 'deploy form'}.items()
    )


COMPARISONS: tuple[Comparison, ...] = (
    *_pair('TinyViT-21M', T21),
    *_pair('TinyViT-5M', T5),
    *_pair('Mini-Swin-T over Swin-T', SWIN),
    *_pair('Mini-DeiT-S over DeiT-S', DEIT),
    Comparison('TinyViT-21M, training step', T21[0], 'created', T21[1], train=True, cpu=(4,), gpu=128),
    Comparison('Mini-Swin-T over Swin-T, training step', SWIN[0], 'created', SWIN[1], train=True, cpu=(), gpu=128),
    Comparison('Mini-DeiT-S over DeiT-S, training step', DEIT[0], 'created', DEIT[1], train=True, cpu=(), gpu=128),
)
"""What `record.py` measures on a CPU and `gpu.py` on a GPU, in the order of the tables."""


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        title: Its heading.
        rows: What was measured with the code of this repository.
        earlier: What was measured before, as read from `results/earlier/`.
    """

    title: str
    rows: tuple[Row, ...] = ()
    earlier: tuple[Mapping[str, str], ...] = ()


def columns(results: Path = RESULTS) -> list[Column]:
    """AVX2, AVX-512 and the H200: the newest file of each, without rows of which no table tells."""
    files = {path: tuple(filter(_is_compared, read_rows(path))) for path in sorted(results.glob('*.csv'))}
    files = {path: rows for path, rows in files.items() if rows}
    return [
        *(_cpu_column(title, isa, files) for title, isa in {'AVX2': 'AVX2', 'AVX-512': 'AVX512'}.items()),
        _gpu_column('H200', files, results / 'earlier' / 'nvidia_h200.csv'),
    ]


def _is_compared(row: Row) -> bool:
    """Whether a row belongs to a comparison, as one of its sides."""
    return any(
        row.first == f'{line.first} {line.first_form}'
        and (row.model, row.form) in ((line.model, line.form), (line.first, line.first_form))
        for line in COMPARISONS
    )


def _cpu_column(title: str, isa: str, files: Mapping[Path, tuple[Row, ...]]) -> Column:
    of_isa = {path: rows for path, rows in files.items() if rows[0].device == 'cpu' and rows[0].isa == isa}
    if not of_isa:
        return Column(f'{title}: not measured')
    path = max(of_isa, key=lambda path: (not _is_emulated(path), max(row.date for row in of_isa[path])))
    rows = of_isa[path]
    where = ', emulated on' if _is_emulated(path) else ','
    return Column(f'{title}{where} {rows[0].processor}, {_type(rows[0])}', rows)


def _is_emulated(path: Path) -> bool:
    return path.stem.endswith('_emulated')


def _gpu_column(name: str, files: Mapping[Path, tuple[Row, ...]], earlier: Path) -> Column:
    for rows in files.values():
        if name in rows[0].gpu:
            return Column(f'{rows[0].gpu}, {_type(rows[0])}', rows)
    if not earlier.exists():
        return Column(f'{name}: not measured')
    with earlier.open(newline='', encoding='utf-8') as file:
        lines = tuple(csv.DictReader(file))
    first = lines[0]
    return Column(f'{first["gpu"]}, {first["dtype"]}: not measured since {first["before"]}', earlier=lines)


def _type(row: Row) -> str:
    return row.amp or row.dtype


def _row(column: Column, line: Comparison, batch: int) -> Row | None:
    """The row of a comparison with a batch."""
    mode, first = 'training' if line.train else 'inference', f'{line.first} {line.first_form}'
    wanted = (line.model, line.form, mode, first, batch)
    same = [row for row in column.rows if (row.model, row.form, row.mode, row.first, row.batch) == wanted]
    return same[-1] if same else None


def _earlier(column: Column, line: Comparison) -> str:
    mode = 'training' if line.train else 'inference'
    for one in column.earlier:
        if (one['model'], one['form'], one['mode']) == (line.model, line.form, mode):
            return f'{float(one["images_per_second"]) / float(one["first_images_per_second"]):.2f}'
    return '-'


def _batches(column: Column, line: Comparison) -> tuple[int, ...]:
    on_gpu = column.earlier or (column.rows and column.rows[0].device == 'cuda')
    return (line.gpu,) if on_gpu else line.cpu


def _ratio(row: Row | None) -> str:
    if row is None:
        return '-'
    return row.state if row.ratio is None else f'{row.ratio:.2f}'


def short_table(all_columns: Sequence[Column]) -> str:
    """README's table: a ratio in each cell."""
    lines = [['times as fast as timm', *(column.title for column in all_columns)]]
    for line in COMPARISONS:
        lines.append([line.label, *(_short_cell(column, line) for column in all_columns)])
    return f'{table(lines)}\n\n{_notes(all_columns)}'


def _short_cell(column: Column, line: Comparison) -> str:
    if column.earlier:
        return _earlier(column, line)
    if not column.rows:
        return '-'
    return ' / '.join(_ratio(_row(column, line, batch)) for batch in _batches(column, line)) or '-'


def _notes(all_columns: Sequence[Column]) -> str:
    """How the columns were measured."""
    notes = ['On CPUs batches of 8 / 1 on one thread, training 4; on the GPU 256, training 128. One process, in turn.']
    notes += [f'{_kind(column.title)}: {_when(column.rows)}.' for column in all_columns if column.rows]
    if any('emulated' in column.title for column in all_columns):
        notes.append('Emulated: with newer instructions switched off; a processor without them may differ.')
    notes += [f'{_kind(column.title)}: {column.earlier[0]["source"]}' for column in all_columns if column.earlier]
    return _wrapped(' '.join(notes))


def _kind(title: str) -> str:
    return title.split(',')[0].split(':')[0]


def _when(rows: Sequence[Row]) -> str:
    newest = max(rows, key=lambda row: row.date)
    loads = [row.load for row in rows]
    span = f'{min(loads):g}' if min(loads) == max(loads) else f'{min(loads):g} to {max(loads):g}'
    commits = list(dict.fromkeys(row.commit for row in rows))
    return f'{newest.date}, commit {" and ".join(commits)}, torch {newest.torch}, {newest.clock}, load average {span}'


def long_table(all_columns: Sequence[Column]) -> str:
    """The table of docs/speed.md: rates and intervals, one table per column."""
    parts = []
    for column in all_columns:
        parts.append(f'**{column.title}**')
        if column.rows:
            parts += [table(_long_lines(column)), _wrapped(f'{_when(column.rows)}.')]
        elif column.earlier:
            lines = [['', 'batch', 'images/s', "timm's", 'ratio'], *map(_earlier_line, column.earlier)]
            parts += [table(lines), _wrapped(column.earlier[0]['source'])]
    return '\n\n'.join(parts)


def _long_lines(column: Column) -> list[list[str]]:
    lines = [['', 'batch', 'images/s', 'ratio', '90 % of the rounds', 'rounds']]
    for line in COMPARISONS:
        for batch in _batches(column, line):
            row = _row(column, line, batch)
            if row is None or row.ratio is None:
                lines.append([line.label, str(batch), '-', _ratio(row), '', ''])
                continue
            span = f'{row.ratio_low:.2f} to {row.ratio_high:.2f}'
            lines.append([line.label, str(batch), f'{row.images_per_second:.1f}', _ratio(row), span, str(row.rounds)])
    return lines


def _earlier_line(one: Mapping[str, str]) -> list[str]:
    words = {'created': 'as created', 'deploy': 'deploy form'}.get(one['form'], one['form'])
    label = f'`{one["model"]}`, {"training step" if one["mode"] == "training" else words}'
    ours, theirs = float(one['images_per_second']), float(one['first_images_per_second'])
    return [label, one['batch'], f'{ours:.0f}', f'{theirs:.0f}', f'{ours / theirs:.2f}']


def table(lines: Iterable[Sequence[str]]) -> str:
    """Cells as a Markdown table; the first line is the heading."""
    heading, *rest = lines
    ruler = ['---', *['---:'] * (len(heading) - 1)]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in (heading, ruler, *rest))


def _wrapped(text: str, width: int = 118) -> str:
    """A paragraph in lines of at most so many characters."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f' {word}'
        else:
            lines.append(word)
    return '\n'.join(lines)


def replaced(page: str, text: str) -> str:
    """A page with this text between the two marks.

    Raises:
        ValueError: If the page does not have each mark once, in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f'The page needs the lines {BEGIN} and {END} once each.')
    return f'{page[: page.index(BEGIN)]}{BEGIN}\n\n{text}\n\n{page[page.index(END) :]}'


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """What README and docs/speed.md should hold."""
    found = columns(results)
    texts = {'short': short_table(found), 'long': long_table(found)}
    return {
        ROOT / name: replaced((ROOT / name).read_text(encoding='utf-8'), texts[kind]) for name, kind in PAGES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for path, text in pages().items():
        write_whole(path, text.encode())


if __name__ == '__main__':
    main()
