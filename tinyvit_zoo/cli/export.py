"""`export`: a model as an ONNX or pt2 file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .console import command, quiet_logs
from .int8_options import Int8Options, print_quantized
from .options import ImgSize, ModelName, Part, Random, Seed, Weights, pair_of

Format = StrEnum('Format', ['onnx', 'pt2'])
DType = StrEnum('DType', ['fp32', 'fp16'])


def register(app: typer.Typer, panel: str) -> None:
    app.command('export', rich_help_panel=panel)(command(export))


def export(
    *,
    name: ModelName,
    output: Annotated[Path, typer.Option('--output', '-o', help='File, ending in .onnx or .pt2.', metavar='FILE')],
    format: Annotated[Format | None, typer.Option(help='Default: by the ending of the file.')] = None,
    weights: Weights = None,
    part: Part = None,
    random: Random = False,
    seed: Seed = 0,
    img_size: ImgSize = None,
    dynamic_batch: Annotated[bool, typer.Option('--dynamic-batch', help='Accept any number of images.')] = False,
    dynamic_size: Annotated[
        bool,
        typer.Option(
            '--dynamic-size',
            help='Accept images of any size (TinyViT), or any whole number of patches (plain ViT, Mini-DeiT).',
        ),
    ] = False,
    dtype: Annotated[DType, typer.Option(help='Type to compute in; images and results are float32.')] = DType.fp32,
    int8: Int8Options,
) -> None:
    """Export a model, folded for inference, and compare the file with PyTorch on two inputs.

    With --int8 the file computes in 8 bits, and its loss is measured on images that --calibrate does not use.
    """
    import torch

    from ..export import check_output, export_model, model_to_export

    quiet_logs()
    int8.check(str(dtype), format and str(format))
    check_output(output, 'onnx' if int8.int8 else format and str(format))  # before weights are fetched
    torch.manual_seed(seed)
    model = model_to_export(name, weights, random, pair_of(img_size), dynamic_size, part)
    if int8.int8:
        from ..int8 import quantize_model

        done8 = quantize_model(
            model,
            output,
            **int8.arguments(),
            dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size,
            seed=seed,
        )
        return print_quantized(done8, 'same class')
    done = export_model(model, output, format and str(format), dynamic_batch, dynamic_size, str(dtype))
    runner = 'onnxruntime' if done.format == 'onnx' else 'torch.export.load'
    megabytes = done.path.stat().st_size / 1e6
    print(f'Written to {done.path}: {megabytes:.1f} MB, folded, labels and preprocessing in its metadata.')
    print(f'images ({", ".join(str(side) for side in done.input_shape)}) -> {done.output}, both float32.')
    print(f'In {runner} it differs from PyTorch by at most {done.difference:.1e}, allowed {done.tolerance:.0e}.')
    print(f'It runs with:\n\n{done.snippet}')
    return None
