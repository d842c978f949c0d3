"""The commands put together, and how a run ends: result on stdout, one sentence on stderr, exit code."""

import sys

import typer

from . import (
    analyze,
    bench,
    browser,
    cards,
    catalogue,
    classify,
    compare,
    compress,
    contract,
    demo,
    detect,
    distill,
    embed,
    evaluate,
    export,
    fewshot,
    finetune,
    hub,
    knn,
    pretrain,
    probe,
    reproduce,
    run,
    sam,
    weights,
)
from .console import print_error

app = typer.Typer(name='tinyvit-zoo', help='Small vision transformers for timm.', pretty_exceptions_enable=False)
PANELS = {
    'Models': (catalogue, classify, weights, compress, export, bench, demo),
    'Pages of the Hub': (hub, cards, browser),
    'Evaluators': (evaluate, fewshot, knn, probe, compare, embed, analyze, reproduce),
    'Training': (finetune, distill, pretrain, contract, run),
    'Detection and segmentation': (detect, sam),
}
"""Modules of commands by the panel of `--help` that they are in, in its order."""

for panel, modules in PANELS.items():
    for module in modules:
        module.register(app, panel)


def _version(wanted: bool) -> None:
    if wanted:
        from ..version import __version__

        print(f'tinyvit-zoo {__version__}')
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, '--version', callback=_version, is_eager=True, help='Print the version.'),
) -> None:
    """Small vision transformers for timm."""
    if context.invoked_subcommand is None:
        print(context.get_help(), end='')  # rich prints it itself


def run_app() -> None:
    """Parse the command line, run the command, and exit with its code."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='replace')  # a terminal that lacks a letter is no reason to stop
    try:
        result = app(prog_name='tinyvit-zoo', standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except Exception as e:
        # Usage errors: typer has moved their class between its own package and click's, their shape has stayed.
        if not (hasattr(e, 'format_message') and hasattr(e, 'exit_code')):
            raise
        print_error(e.format_message())
        sys.exit(e.exit_code)
    # `run` hands its script back, so that the script's own errors, exit codes and interrupts are nobody else's.
    sys.exit(result() if callable(result) else result)
