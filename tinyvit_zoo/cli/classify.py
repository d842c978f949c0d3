"""`classify`: images in, class names out."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, console, print_error, print_json, quiet_logs
from .options import ImgSize, Json, Part, Size, Weights, pair_of

if TYPE_CHECKING:
    from ..classify import Classifier, OnnxClassifier


def register(app: typer.Typer, panel: str) -> None:
    app.command('classify', rich_help_panel=panel)(command(classify))


def _table_or_json(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in ('.csv', '.json'):
        raise typer.BadParameter(f'{path} will be a table or JSON: give it the suffix .csv or .json.')
    return path


def classify(
    *,
    images: Annotated[list[Path], typer.Argument(help='Image files, or folders of them.', metavar='IMAGE...')],
    model: Annotated[
        str | None, typer.Option('--model', '-m', help='Any name that timm.create_model takes.', metavar='NAME')
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option('--onnx', help='An exported file instead of a model, to compare the two.', metavar='FILE'),
    ] = None,
    weights: Weights = None,
    part: Part = None,
    topk: Annotated[int, typer.Option(min=1, help='Classes to print per image.')] = 5,
    img_size: ImgSize = None,
    as_json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            '--output', '-o', callback=_table_or_json, help='Write results to *.csv or *.json.', metavar='FILE'
        ),
    ] = None,
) -> None:
    """Classify images with the model's own preprocessing and class names."""
    from ..classify import write_predictions
    from ..common.files import check_writable

    if output is not None:
        check_writable(output)
    quiet_logs()
    paths = list(_files(images))
    classifier = _classifier(model, onnx, weights, part, img_size)
    results = list(_results(classifier, paths, topk, show=not as_json))
    if as_json:
        print_json(results)
    if output is not None:
        write_predictions(output, results)
    if any('error' in result for result in results):
        raise typer.Exit(1)


def _classifier(
    model: str | None, onnx: Path | None, weights: Path | None, part: str | None, img_size: Size | None
) -> 'Classifier | OnnxClassifier':
    from ..build import load_model
    from ..classify import Classifier, OnnxClassifier

    if (model is None) == (onnx is None):
        raise typer.BadParameter('Name either a model with --model or an exported file with --onnx.')
    if onnx is not None:
        if weights or part or img_size:
            raise typer.BadParameter('An exported file has its weights and size: leave out what changes them.')
        return OnnxClassifier(onnx)
    size = pair_of(img_size)
    file = str(weights) if weights else None
    return Classifier(load_model(str(model), file, part, **({'img_size': size} if size else {})))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files, and the images below the folders."""
    from ..data.folders import images_below

    for path in paths:
        if path.is_dir():
            yield from images_below(path)
        else:
            yield path


def _results(classifier: Any, paths: Iterable[Path], topk: int, show: bool) -> Iterator[dict[str, Any]]:
    """Answers image by image, printed as they come; a file that is not an image gets an error instead."""
    from ..classify import ImageError, load_image

    for path in paths:
        try:
            predictions = [vars(p) for p in classifier(load_image(path), topk)]
        except ImageError as e:  # the other images are still worth an answer
            print_error(str(e))
            yield dict(image=str(path), error=str(e))
            continue
        if show:
            _print(path, predictions)
        yield dict(image=str(path), predictions=predictions)


def _print(path: Path, predictions: list[dict[str, Any]]) -> None:
    from ..common.text import escaped  # labels are of whoever made the model

    out = console()
    out.print(escaped(str(path)), style='bold', markup=False, soft_wrap=True)
    for p in predictions:
        out.print(f'  {p["probability"]:7.2%}  {escaped(p["label"])}', markup=False, soft_wrap=True)
