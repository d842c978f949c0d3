"""`bench`: how fast models are here, beside each other."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, not_with, print_json, printer, quiet_logs
from .options import Counts, Json, Size, Words, pair_of, read_counts, read_size, read_words

if TYPE_CHECKING:
    from ..bench import Row

BenchDevice = StrEnum('BenchDevice', ['cpu', 'cuda'])
Amp = StrEnum('Amp', ['bfloat16', 'float16'])
BenchType = StrEnum('BenchType', ['float32', 'bfloat16', 'float16'])


def register(app: typer.Typer, panel: str) -> None:
    app.command('bench', rich_help_panel=panel)(command(bench))


def bench(
    *,
    models: Annotated[
        list[str], typer.Argument(help='Names of timm models; ratios are relative to the first.', metavar='MODELS')
    ],
    batch_size: Annotated[
        Counts, typer.Option('--batch-size', '-b', parser=read_counts, help='Images of a call.', metavar='N,N')
    ] = Counts((1,)),
    form: Annotated[
        Words,
        typer.Option(
            parser=read_words,
            help='Some of created,deploy,compiled,graph,deploy+compiled,deploy+graph.',
            metavar='FORM,FORM',
        ),
    ] = Words(('created',)),
    train: Annotated[bool, typer.Option('--train', help='A step of training instead of inference.')] = False,
    device: Annotated[BenchDevice, typer.Option(help='Where they run.')] = BenchDevice.cpu,
    threads: Annotated[int, typer.Option(min=1, help='Of the CPU.', metavar='N')] = 1,
    rounds: Annotated[int, typer.Option(min=1, help='Calls of each model in each form.', metavar='N')] = 11,
    img_size: Annotated[
        Size | None,
        typer.Option(parser=read_size, help="Side, or HEIGHTxWIDTH, if not the model's own.", metavar='SIZE'),
    ] = None,
    channels_last: Annotated[
        bool, typer.Option('--channels-last', help='Memory format of all forms; deploy always has it.')
    ] = False,
    amp: Annotated[Amp | None, typer.Option(help='Type of autocast.')] = None,
    dtype: Annotated[BenchType, typer.Option(help='Of weights and images.')] = BenchType.float32,
    routes: Annotated[
        bool, typer.Option('--routes', help='Print which kernel each layer takes, created and deploy; time nothing.')
    ] = False,
    csv: Annotated[
        Path | None,
        typer.Option(help='Append rows to this file; rows already there are not measured again.', metavar='FILE'),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the speed of models in one process, interleaved. Weights are random, which does not change the time."""
    from ..bench import Settings, routes_of
    from ..bench import bench as run
    from ..common.files import check_writable

    not_with(routes, '--routes', 'form', 'rounds', 'csv')
    if csv is not None:
        check_writable(csv)
    quiet_logs()
    settings = Settings(
        device=str(device), threads=threads, rounds=rounds, channels_last=channels_last, amp=amp and str(amp),
        dtype=str(dtype), img_size=pair_of(img_size), train=train,
    )  # fmt: skip
    if routes:
        choices = routes_of(models, batch_size, settings)
        (print_json if as_json else _print_routes)(choices)
        return
    rows = run(models, batch_size, form, settings, csv)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    _print(rows)
    if csv:
        printer()(f'Written to {csv}.')


def _print(rows: list['Row']) -> None:
    from ..common.text import count_of

    say, one = printer(), rows[0]
    where = one.gpu or f'{one.processor}, {one.isa}, {count_of(one.threads, "thread")}'
    say(
        f'{where}; torch {one.torch}, timm {one.timm}; {one.clock}, {count_of(one.rounds, "round")}, load average '
        f'{one.load:g}'
    )
    autocast = f', autocast {one.amp}' if one.amp else ''
    say(f'{one.mode}, {one.dtype}{autocast}; ratios to {one.first}, with the range of 90 % of the rounds')
    width = max(len(f'{row.model} {row.form}') for row in rows)
    say(f'{"":{width}}  batch  images/s  median ms   95 % ms  peak MB  page faults  ratio')
    for row in rows:
        name = f'{row.model} {row.form}'
        say(f'{name:{width}}  {row.batch:5}  {_figures(row)}')


def _print_routes(choices: list[dict[str, Any]]) -> None:
    from ..layers.routes import ISA, SETTING

    say, part = printer(), None
    say(f'{ISA}, TINYVIT_ZOO_ROUTES={SETTING}; every layer that is not listed is plain')
    for line in choices:
        if (line['model'], line['form'], line['batch']) != part:
            part = line['model'], line['form'], line['batch']
            say(f'{line["model"]} {line["form"]}, batch {line["batch"]}:')
        shape = f'{line["rows"]} x {line["in_features"]} -> {line["out_features"]}'
        say(f'  {line["calls"]:3} x {line["kind"]:10} {shape:22} {"GELU" if line["gelu"] else "":4}  {line["route"]}')


def _figures(row: 'Row') -> str:
    if row.state != 'ok':
        return 'out of memory'
    memory = '-' if row.memory_mb is None else f'{row.memory_mb:.0f}'
    faults = '-' if row.page_faults is None else f'{row.page_faults:.0f}'
    ratio = '' if row.ratio is None else f'{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})'
    return f'{row.images_per_second:8.1f}  {row.median_ms:9.2f}  {row.p95_ms:8.2f}  {memory:>7}  {faults:>11}  {ratio}'
