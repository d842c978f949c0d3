"""`list` and `info`: the released weights and the facts about a model."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .console import command, console, not_with, print_json
from .options import ImgSize, Json, pair_of


def register(app: typer.Typer, panel: str) -> None:
    app.command('list', rich_help_panel=panel)(command(list_models, models=False))
    app.command('info', rich_help_panel=panel)(command(info))


def list_models(
    *,
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'tinyvit_21m*'.", show_default=False)] = '*',
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option('--markdown', help='Print the table of the documentation.')] = False,
) -> None:
    """List families and released weights with their numbers."""
    from ..releases import MEASURED_BY_OTHERS, list_releases, markdown_table

    not_with(as_json, '--json', 'markdown')
    rows = list_releases(pattern)
    if as_json:
        return print_json(rows)
    if not rows:
        raise typer.BadParameter(f"Nothing is called '{pattern}'.")
    if markdown:
        return print(markdown_table(rows))
    out = console()
    for family in dict.fromkeys(row['family'] for row in rows):
        out.print(_table(family, [row for row in rows if row['family'] == family]))
    out.print(f'top-1: ImageNet-1k, %, default preprocessing. {MEASURED_BY_OTHERS}', style='dim')
    return None


def _table(family: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=family, title_justify='left', box=None, pad_edge=False)
    for heading in ('name', 'params (M)', 'GMACs', 'image', 'top-1', 'license', 'Hub id'):
        right = heading in ('params (M)', 'GMACs', 'image')
        table.add_column(heading, justify='right' if right else 'left', overflow='fold', no_wrap=heading != 'Hub id')
    for row in rows:
        table.add_row(
            row['name'],
            f'{row["params"] / 1e6:.2f}',
            f'{row["gmacs"]:.3f}',
            str(row['img_size']),
            f'{row["top1"]} ({row["top1_by"]})' if row['top1'] else '-',
            row['license'].upper(),
            row['hf_hub_id'] or '-',
        )
    return table


def info(
    *,
    name: Annotated[
        str,
        typer.Argument(help='ARCHITECTURE, ARCHITECTURE.TAG, local-dir:FOLDER or hf-hub:OWNER/NAME.', metavar='NAME'),
    ],
    img_size: ImgSize = None,
    as_json: Json = False,
) -> None:
    """Show what is known about a model: origin, license, accuracies with their sources, size, preprocessing."""
    from ..info import describe

    facts = describe(name, pair_of(img_size))
    if as_json:
        return print_json(facts)
    out = console()
    out.print(f'[bold]{escape(facts["name"])}[/bold]')
    if facts['release']:
        _print_release(out, facts['release'])
    _print_model(out, facts)
    if facts['protocols']:
        _print_protocols(out, facts)
    return None


def _grid(out: Console, title: str, lines: dict[str, Any]) -> None:
    out.print(f'\n[bold]{title}[/bold]')
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style='dim')
    table.add_column(overflow='fold')
    for label, value in lines.items():
        if value not in (None, '', [], {}):
            table.add_row(f'  {label}', escape(str(value)))
    out.print(table)


def _print_release(out: Console, release: dict[str, Any]) -> None:
    license = release['license']
    stated = f'{license["spdx"].upper()}, stated at {license["source"]}'
    if not license['given']:
        stated = f'none given at {license["source"]}'
    if license['hub_field']:
        stated += f" (the Hub copy's own field says '{license['hub_field']}')"
    speed = release['speed']
    others = (f'{t["task"]}, {t["dataset"]}: {t["value"]} ({t["metric"]})' for t in release['transfers'])
    lines = {
        'training': release['training'],
        'trained from': release['parent'],
        'classes': f'{release["num_classes"]} ({release["labels"]})' if release['num_classes'] else 'none, an encoder',
        'license': stated,
        'paper': f'{release["paper"]["title"]}, {release["paper"]["url"]}',
        'origin': release['origin_url'],
        'file': release['url'] or f'with a browser: {release["manual_download"]}',
        'sha256': release['sha256'] or 'not published',
        'Hub id': release['hf_hub_id'] or 'no page',
        'imported': release['imported'] or 'no (`tinyvit-zoo import` keeps a file here for good)',
        'throughput': speed and f'{speed["images_per_second"]} images/s, {speed["setting"]} ({speed["source"]})',
        'other tasks': '; '.join(others),
        'notes': '; '.join(release['notes']),
    }
    _grid(out, 'Release', lines)


def _print_model(out: Console, facts: dict[str, Any]) -> None:
    from ..info import token_lines

    model = facts['model']
    windows = {stage: f'{w[0]}x{w[1]}' for stage, w in enumerate(model['windows'] or []) if w}
    labels = model['label_names']
    lines = {
        'architecture': facts['architecture'],
        'weights': None if facts['release'] else f'tag {model["tag"] or "-"}, license {model["license"] or "-"}',
        'image size': 'x'.join(str(s) for s in model['img_size']),
        'parameters': f'{model["params"]:,} ({model["params"] / 1e6:.2f} M)',
        'MACs': f'{model["gmacs"]:.3f} G',
        'size in float32': f'{model["bytes"] / 1e6:.1f} MB',
        'classes': model['num_classes'],
        'labels': labels and _first(list(labels)),
        **token_lines(model),
        'windows': windows and f'{", ".join(windows.values())} (stages {min(windows)}-{max(windows)})',
    }
    _grid(out, 'Model', lines)
    _grid(out, "Preprocessing (timm's resolve_model_data_config)", facts['preprocessing'])


def _first(labels: list[Any], most: int = 12) -> str:
    return ', '.join(str(label) for label in labels[:most]) + (', ...' if len(labels) > most else '')


def _print_protocols(out: Console, facts: dict[str, Any]) -> None:
    out.print('\n[bold]Evaluation protocols on record[/bold]')
    for protocol in facts['protocols']:
        default = ', the default' if protocol['default'] else ''
        out.print(
            f'  [bold]{protocol["name"]}[/bold]{default}: {protocol["img_size"]} px, crop {protocol["crop_pct"]:g} '
            f'({protocol["crop_mode"]}), {protocol["interpolation"]}; {protocol["source"]}'
        )
        table = Table(box=None, pad_edge=False)
        for heading in ('    data', 'top-1', 'top-5', 'source'):
            table.add_column(heading, justify='right' if heading.startswith('top') else 'left', overflow='fold')
        for result in protocol['results']:
            top5 = str(result['top5']) if result['top5'] is not None else '-'
            table.add_row(f'    {result["dataset"]}', str(result['top1']), top5, result['source'])
        out.print(table if protocol['results'] else '    no published accuracy')
    out.print(facts['measured'], style='dim')
