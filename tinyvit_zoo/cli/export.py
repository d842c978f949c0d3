"""`export`: a model as an ONNX or pt2 file."""

from enum import StrEnum
from pathlib import Path

import typer

from .console import MAX_SIDE, explained, quiet_logs

Format = StrEnum('Format', ['onnx', 'pt2'])
DType = StrEnum('DType', ['fp32', 'fp16'])


def register(app: typer.Typer) -> None:
    app.command('export')(export)


@explained
def export(
    name: str = typer.Argument(help='Any name that timm.create_model takes.', metavar='NAME'),
    output: Path = typer.Option(..., '--output', '-o', help='File, ending in .onnx or .pt2.', metavar='FILE'),
    format: Format = typer.Option(None, help='Default: by the ending of the file.'),
    weights: Path = typer.Option(None, help='Checkpoint instead of the pretrained weights.', metavar='FILE'),
    random: bool = typer.Option(False, '--random', help='Random weights, to try the file out.'),
    size: tuple[int, int] = typer.Option(None, min=1, max=MAX_SIDE, help='Image height and width.', metavar='H W'),
    dynamic_batch: bool = typer.Option(False, '--dynamic-batch', help='Take any number of images.'),
    dynamic_size: bool = typer.Option(
        False, '--dynamic-size', help='Take images of any size (TinyViT), or any whole patches (plain ViT, Mini-DeiT).'
    ),
    dtype: DType = typer.Option('fp32', help='What it computes in; images and result are float32.'),
) -> None:
    """Export a model, folded for inference, and hold the file against PyTorch on two inputs."""
    from ..export import check_output, export_model, model_to_export

    quiet_logs()
    check_output(output, format and str(format))  # before weights are fetched
    model = model_to_export(name, weights, random, size, dynamic_size)
    done = export_model(model, output, format and str(format), dynamic_batch, dynamic_size, str(dtype))
    runner = 'onnxruntime' if done.format == 'onnx' else 'torch.export.load'
    megabytes = done.path.stat().st_size / 1e6
    print(f'Written to {done.path}: {megabytes:.1f} MB, folded, labels and preprocessing in its metadata.')
    print(f'images ({", ".join(str(side) for side in done.input_shape)}) -> {done.output}, both float32.')
    print(f'In {runner} it differs from PyTorch by at most {done.difference:.1e}, allowed {done.tolerance:.0e}.')
    print(f'It runs with:\n\n{done.snippet}')
