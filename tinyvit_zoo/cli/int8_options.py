"""Options of commands that export int8, and what these print."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import only_with, printer
from .options import Words, read_words

if TYPE_CHECKING:
    from ..int8 import Quantized

__all__ = ['Int8Options', 'print_quantized']


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """Whether and how an exported file is quantized."""

    int8: Annotated[bool, typer.Option('--int8', help='Quantize to 8 bits; needs --calibrate.')] = False
    calibrate: Annotated[
        str | None,
        typer.Option('--calibrate', help='Folder of images to measure activations on.', metavar='FOLDER'),
    ] = None
    calibration_images: Annotated[
        int, typer.Option('--calibration-images', min=16, help='Images to calibrate on, at most.', metavar='N')
    ] = 128
    compare: Annotated[
        str | None,
        typer.Option(
            '--check',
            help='Folder of images to compare int8 with float32 on. Default: part of --calibrate, left out there.',
            metavar='FOLDER',
        ),
    ] = None
    keep: Annotated[
        Words | None,
        typer.Option(
            '--keep', parser=read_words, help='Layers left in float32, such as head,stages.0*.', metavar='PATTERN'
        ),
    ] = None
    min_agreement: Annotated[
        float | None,
        typer.Option(
            '--min-agreement', min=0.0, max=1.0, help='Leave blocks in float32, one by one, until this is reached.'
        ),
    ] = None
    reduce_range: Annotated[
        bool,
        typer.Option('--reduce-range', help='Quantize weights to 7 bits, for processors without int8 instructions.'),
    ] = False

    def check(self, dtype: str = 'fp32', format: str | None = None) -> None:
        """Usage error if these options do not fit together, or not with --dtype and --format."""
        changed = self.calibrate or self.compare or self.keep or self.min_agreement is not None or self.reduce_range
        if changed and not self.int8:
            raise typer.BadParameter('--calibrate and the options below it need --int8: add it, or leave them out.')
        only_with(self.int8, '--int8', 'calibration_images')
        if self.int8 and not self.calibrate:
            raise typer.BadParameter('int8 needs images to measure activations on: name a folder with --calibrate.')
        if self.int8 and dtype != 'fp32':
            raise typer.BadParameter('int8 is made from float32: leave out --dtype.')
        if self.int8 and format not in (None, 'onnx'):
            raise typer.BadParameter('int8 is written as ONNX only: leave out --format.')

    def arguments(self) -> dict[str, Any]:
        """For `int8.quantize_model`."""
        return dict(
            calibrate=self.calibrate,
            check=self.compare,
            images=self.calibration_images,
            keep=self.keep or (),
            min_agreement=self.min_agreement,
            reduce_range=self.reduce_range,
        )


def print_quantized(done: 'Quantized', agreement: str) -> None:
    """Say what was written and what it costs.

    Args:
        done: The file.
        agreement: What both agree on, in words, such as 'same class'.
    """
    from ..common.paired_timing import cpu_name
    from ..common.text import count_of
    from ..int8 import has_int8_instructions

    say, found = printer(), done.comparison
    before, after = done.megabytes
    say(f'Written to {done.path}: {after:.1f} MB, {after / before:.2f} of {before:.1f} MB in float32.')
    say(f'Calibrated on {done.calibrated} images, compared with float32 on {count_of(found.images, "other")}:')
    say(f'  {agreement} {found.agreement:.1%}')
    differences = f'at most {found.largest:.3g}, on average {found.mean:.3g}'
    say(f'  outputs differ by {differences}; the largest output is {found.scale:.3g}')
    if found.accuracy is not None:
        say(f'  accuracy {found.accuracy[1]:.1%}, in float32 {found.accuracy[0]:.1%}')
    ms32, ms8 = done.milliseconds
    say(f'An image takes {ms8:.1f} ms of CPU, in float32 {ms32:.1f}: one thread, medians, interleaved, {cpu_name()}.')
    if has_int8_instructions() is False:
        say('This processor has no int8 instructions (VNNI): expect no gain in time on it, only a smaller file.')
    say('Operators left in float: ' + ', '.join(f'{name} {count}' for name, count in done.in_float.items()) + '.')
    if len(done.steps) > 1:
        _print_steps(done, agreement)


def _print_steps(done: 'Quantized', agreement: str) -> None:
    from rich.table import Table

    from .console import console

    table = Table(box=None, pad_edge=False)
    table.add_column('left in float32 from here on')
    table.add_column(agreement, justify='right')
    table.add_column('MB', justify='right')
    for step in done.steps:
        table.add_row(step.group or '-', f'{step.agreement:.1%}', f'{step.megabytes:.1f}')
    console().print(table)
