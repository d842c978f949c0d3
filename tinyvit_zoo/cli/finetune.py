"""`finetune`: train a model on images by a recipe of the papers."""

import textwrap
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from . import evaluator_options as options
from .console import explained, parse_size, quiet_logs
from .extras import needs_eval_extra

Precision = StrEnum('Precision', ['no', 'bf16', 'fp16'])


def register(app: typer.Typer) -> None:
    app.command('finetune')(finetune)


def _list_recipes(wanted: bool) -> None:
    if not wanted:
        return
    with needs_eval_extra('finetune'):
        from ..training.recipes import RECIPES
    for recipe in RECIPES.values():
        rates = recipe.rates()
        print(
            f'{recipe.name}\n    {recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.optimizer}, learning '
            f'rate {rates.lr:g}, layer decay {recipe.layer_decay or "none"}, weight decay {recipe.weight_decay:g}'
        )
        for line in (f'From: {recipe.source}.', recipe.notes):
            print(textwrap.fill(line, 116, initial_indent='    ', subsequent_indent='    '), end='\n' if line else '')
    raise typer.Exit


@explained
def finetune(
    name: str = options.MODEL,
    data: str = options.DATA,
    recipe: str = typer.Option(..., help='Name of a recipe, see --recipes.', metavar='NAME'),
    output: Path = typer.Option(..., '--output', '-o', help='Folder for state, results and model.', metavar='DIR'),
    root: Path = options.ROOT,
    weights: Path = options.WEIGHTS,
    pretrained: bool = options.PRETRAINED,
    img_size: str = options.IMG_SIZE,
    epochs: int = typer.Option(None, min=1, help="Instead of the recipe's; the warm-up keeps its share."),
    batch_size: int = typer.Option(
        None, min=1, help="Images in an update, instead of the recipe's; its learning rate grows with it."
    ),
    micro_batch: int = typer.Option(None, min=1, help='Images that a process takes at once.', metavar='N'),
    lr: float = typer.Option(None, min=0.0, help='Learning rate of an update, whatever the batch.'),
    layer_decay: float = typer.Option(None, min=0.0, max=1.0, help="Instead of the recipe's."),
    drop_path: float = typer.Option(None, min=0.0, max=0.99, help="Instead of the recipe's."),
    ema_decay: float = typer.Option(None, min=0.0, max=0.999999, help='The result is a moving average of the weights.'),
    held_out: float = typer.Option(
        0.1, min=0.0, max=0.9, help='Share of train to choose the epoch with; 0 takes the last epoch.'
    ),
    precision: Precision = typer.Option(None, help='Default: bf16 on CUDA, else no.'),
    seed: int = options.SEED,
    device: str = options.DEVICE,
    workers: int = options.WORKERS,
    skip_unreadable: bool = options.SKIP_UNREADABLE,
    any_counts: bool = options.ANY_COUNTS,
    recipes: bool = typer.Option(
        False, '--recipes', callback=_list_recipes, is_eager=True, help='List the recipes with their sources.'
    ),
) -> None:
    """Train a model on images. The same command again goes on where the last one stopped.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli finetune ...
    """
    size = parse_size(img_size)
    quiet_logs()
    with needs_eval_extra('finetune'):
        from ..downstream import finetune as training
        from ..downstream.reports import finetune as reports
    changes = dict(epochs=epochs, batch_size=batch_size, layer_decay=layer_decay, ema_decay=ema_decay)
    changes |= dict(drop_path=None if drop_path is None else {'': drop_path})
    from ..training.recipes import find_recipe

    chosen = find_recipe(recipe)
    chosen = chosen.changed(**{key: value for key, value in changes.items() if value is not None})
    if lr is not None:
        chosen = chosen.changed(lr=lr * chosen.lr_batch / chosen.batch_size)
    with options.processes() as first:
        train, validation, test = _datasets(options.loader('finetune', data, root, seed, skip_unreadable, any_counts))
        size = size or (chosen.img_size and (chosen.img_size,) * 2)
        rate = chosen.drop_path_of(_architecture(name))
        model = _load_model(rate, name, weights, pretrained, size, seed, num_classes=len(train.classes))
        say = options.printer()
        result = training.finetune(
            model, train, chosen, output, validation=validation, test=test, held_out=held_out, micro_batch=micro_batch,
            precision=precision and str(precision), device=device and options.find_device(device), workers=workers,
            seed=seed, say=say,
        )  # fmt: skip
        if first:
            say(_words(reports.summary(result)))
            origin = options.origin_of(weights, pretrained, seed)
            reports.write_finetuned(output, result, model, train, test, name=name, weights=origin, seed=seed, say=say)


def _architecture(name: str) -> str:
    """What timm calls the model, which the name of a folder or a page does not say."""
    from ..build import build_model

    return build_model(name, device='meta').pretrained_cfg['architecture'] if ':' in name else name


def _load_model(drop_path: float, *args: Any, **kwargs: Any) -> Any:
    """See `evaluator_options.load_backbone`. A rate of 0 is handed on, too: many models come with another one."""
    from ..common.errors import ModelError

    try:
        return options.load_backbone(*args, **kwargs, drop_path_rate=drop_path)
    except ModelError as e:
        if "unexpected keyword argument 'drop_path_rate'" not in str(e):
            raise
        if drop_path:
            raise ModelError(f'{args[0]} has no drop path, the recipe has {drop_path:g}: add --drop-path 0.') from e
    return options.load_backbone(*args, **kwargs)


def _datasets(load: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """Train, validation and test. Where validation images are the only others, as ImageNet's, they are tested on, and
    then must not choose the epoch.
    """
    from ..common.errors import MissingSplitError

    train, there = load('train'), {}
    for split in options.TO_TEST_ON:
        with suppress(MissingSplitError):
            there[split] = load(split)
    validation, test = there.get('validation'), there.get('test')
    if validation is None or test is None or validation.fingerprint() == test.fingerprint():
        return train, None, test or validation
    return train, validation, test


def _words(numbers: dict[str, Any]) -> str:
    """The summary in a line."""
    words = f'Epoch {numbers["best_epoch"]} of {numbers["epochs"]}'
    if numbers['validation_images']:
        words += f', chosen with {numbers["validation_images"]} images ({numbers["validation_accuracy"]:.2f} %)'
    if 'test_accuracy' in numbers:
        low, high = numbers['test_ci95']
        words += (
            f': test accuracy {numbers["test_accuracy"]:.2f} % (95 % interval {low:.2f} to {high:.2f}, '
            f'{numbers["test_images"]} images)'
        )
    return words
