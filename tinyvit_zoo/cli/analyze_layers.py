"""`analyze cka`, `analyze attention` and `analyze fourier`: representations, attention and frequencies of layers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .analysis_options import AnalysisDataOptions, AnalysisOptions, analysed, images_of
from .console import only_with, printer, quiet_logs
from .evaluator_options import own_folder
from .options import ImgSize, ModelOptions, RunOptions, Words, find_device, origin_of, read_words

OutputLayers = Annotated[
    Words,
    typer.Option(
        parser=read_words,
        help="'blocks', 'mae-lite' (each norm1 and the last norm, no class token), or names such as 'blocks.*.mlp'.",
        metavar='GLOB,GLOB',
    ),
]


def cka(
    *,
    a: Annotated[str, typer.Argument(help='Any name that timm takes, or a model of transformers.', metavar='A')],
    b: Annotated[
        str | None, typer.Argument(help='Another; without one, the layers of A with each other.', metavar='B')
    ] = None,
    weights_a: Annotated[
        Path | None, typer.Option('--weights-a', '--weights', help='Checkpoint for A.', metavar='FILE')
    ] = None,
    weights_b: Annotated[Path | None, typer.Option(help='Checkpoint for B.', metavar='FILE')] = None,
    random_a: Annotated[bool, typer.Option('--random-a', '--random', help='Random weights for A.')] = False,
    random_b: Annotated[bool, typer.Option('--random-b', help='Random weights for B.')] = False,
    img_size: ImgSize = None,
    data_options: AnalysisDataOptions,
    layers: OutputLayers = Words(('blocks',)),
    options: AnalysisOptions,
    run: RunOptions,
) -> None:
    """Similarity of the layers of two models, or of one: minibatch CKA, with intervals over the batches."""
    from ..downstream.analysis.cka import BATCH_SIZE, compare
    from ..downstream.reports.analysis import print_cka, write_cka

    only_with(b, 'a second model B', 'weights_b', 'random_b')
    quiet_logs()
    device, seed, say = find_device(run.device), run.seed, printer()
    with own_folder(options.output, True):
        dataset = images_of(options, data_options, seed)
        first = analysed(a, weights_a, random_a, img_size, seed)
        second = None if b is None else analysed(b, weights_b, random_b, img_size, seed)
        result = compare(
            first, second, dataset, layers, batch_size=options.batch_size or min(BATCH_SIZE, len(dataset)),
            device=device, workers=run.workers,
        )  # fmt: skip
        head: dict[str, Any] = dict(
            dataset=dataset, seed=seed, layers=layers, weights=origin_of(weights_a, random_a, seed),
        )  # fmt: skip
        if second is not None:
            head['weights_b'] = origin_of(weights_b, random_b, seed)
        print_cka(result, first, second, head, say)
        if options.output is not None:
            write_cka(options.output, result, first, second, head, say)


def attention(
    *,
    model_options: ModelOptions,
    data_options: AnalysisDataOptions,
    pixel_step: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            help='Pixels between neighboring tokens. Default: the stride of the stage; MAE-Lite took 14 instead of 16.',
            metavar='PIXELS',
        ),
    ] = None,
    options: AnalysisOptions,
    run: RunOptions,
) -> None:
    """Mean distance in pixels and entropy of each head's attention."""
    from ..downstream.analysis.attention import BATCH_SIZE, measure
    from ..downstream.reports.analysis import print_attention, write_attention

    quiet_logs()
    device, seed, say = find_device(run.device), run.seed, printer()
    with own_folder(options.output, True):
        dataset = images_of(options, data_options, seed)
        model = _one(model_options, seed)
        result = measure(
            model, dataset, pixel_step, batch_size=options.batch_size or BATCH_SIZE, device=device, workers=run.workers
        )
        head = dict(dataset=dataset, seed=seed, weights=model_options.origin(seed), pixel_step=pixel_step)
        print_attention(result, model, head, say)
        if options.output is not None:
            write_attention(options.output, result, model, head, say)


def fourier(
    *,
    model_options: ModelOptions,
    data_options: AnalysisDataOptions,
    layers: OutputLayers = Words(('blocks',)),
    options: AnalysisOptions,
    run: RunOptions,
) -> None:
    """Log amplitude of each layer's frequencies relative to frequency 0: how much of the high ones a layer keeps."""
    from ..downstream.analysis.fourier import BATCH_SIZE, measure
    from ..downstream.reports.analysis import print_fourier, write_fourier

    quiet_logs()
    device, seed, say = find_device(run.device), run.seed, printer()
    with own_folder(options.output, True):
        dataset = images_of(options, data_options, seed)
        model = _one(model_options, seed)
        result = measure(
            model, dataset, layers, batch_size=options.batch_size or BATCH_SIZE, device=device, workers=run.workers
        )
        head = dict(dataset=dataset, seed=seed, weights=model_options.origin(seed), layers=layers)
        print_fourier(result, model, head, say)
        if options.output is not None:
            write_fourier(options.output, result, model, head, say)


def _one(options: ModelOptions, seed: int) -> Any:
    """The model that the options name."""
    return analysed(options.name, options.weights, options.random, options.img_size, seed, options.part)
