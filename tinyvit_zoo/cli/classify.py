"""`classify`: pictures in, class names out."""

from pathlib import Path
from typing import Any

import typer

from .console import complain, console, explained, parse_size, print_json, quiet_logs


def register(app: typer.Typer) -> None:
    app.command('classify')(classify)


@explained
def classify(
    images: list[Path] = typer.Argument(help='Picture files.', metavar='IMAGE...'),
    model: str = typer.Option(..., '--model', '-m', help='Any name that timm.create_model takes.', metavar='NAME'),
    weights: Path = typer.Option(None, help='Checkpoint instead of the pretrained weights.', metavar='FILE'),
    topk: int = typer.Option(5, min=1, help='Classes to print per picture.'),
    img_size: str = typer.Option(None, '--img-size', help='Side, or HEIGHTxWIDTH.', metavar='SIZE'),
    as_json: bool = typer.Option(False, '--json', help='Print JSON.'),
) -> None:
    """Classify pictures with the model's own preprocessing and class names."""
    size = parse_size(img_size)
    from ..build import load_model
    from ..classify import Classifier, ImageError, load_image

    quiet_logs()
    kwargs = {'img_size': size} if size else {}
    classifier = Classifier(load_model(model, str(weights) if weights else None, **kwargs))
    results = []
    for path in images:
        try:
            predictions = classifier(load_image(path), topk)
        except ImageError as e:  # the other pictures are still worth an answer
            complain(str(e))
            results.append(dict(image=str(path), error=str(e)))
            continue
        results.append(dict(image=str(path), predictions=[vars(p) for p in predictions]))
        if not as_json:
            _print(results[-1])
    if as_json:
        print_json(results)
    if any('error' in result for result in results):
        raise typer.Exit(1)


def _print(result: dict[str, Any]) -> None:
    out = console()
    out.print(result['image'], style='bold', markup=False, soft_wrap=True)
    for p in result['predictions']:
        out.print(f'  {p["probability"]:7.2%}  {p["label"]}', markup=False, soft_wrap=True)
