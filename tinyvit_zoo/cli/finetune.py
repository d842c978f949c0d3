"""`finetune`: train a model on images by a recipe."""

import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, not_with, printer, quiet_logs
from .evaluator_options import TO_TEST_ON, architecture_of, backbone_of, loader, processes, training_images
from .options import ModelOptions, RunOptions, Size, TrainingDataOptions
from .training_options import (
    GradientNormsOption,
    ReserveOptions,
    TeacherOptions,
    TrainingOptions,
    draw_gradients,
    gradient_observer,
)

if TYPE_CHECKING:
    from torch import nn

    from ..data.image_dataset import ImageDataset
    from ..downstream.starts import Start
    from ..training.recipes import Recipe
    from ..training.tasks.classification import Teaching

Distillation = StrEnum('Distillation', ['soft', 'hard'])


@dataclass(frozen=True, kw_only=True)
class TeachingOptions(TeacherOptions):
    """A teacher's part in the loss, as in DeiT."""

    distillation: Annotated[
        Distillation | None,
        typer.Option(
            '--distillation',
            help='Kind of distillation. Default: hard for a model with a distillation token, else soft.',
        ),
    ] = None
    distillation_alpha: Annotated[
        float | None,
        typer.Option('--distillation-alpha', min=0.0, max=1.0, help='Share of the teacher in the loss. Default: 0.5.'),
    ] = None
    distillation_tau: Annotated[
        float | None, typer.Option('--distillation-tau', min=1e-3, help='Temperature of soft. Default: 1.')
    ] = None

    def teaching(self, student: 'nn.Module', seed: int) -> 'Teaching | None':
        """The teacher and the form of its part in the loss; None if none is asked for."""
        form: dict[str, Any] = dict(
            kind=self.distillation and str(self.distillation), alpha=self.distillation_alpha, tau=self.distillation_tau
        )
        given = {key: value for key, value in form.items() if value is not None}
        if given and self.teacher is None:
            raise typer.BadParameter('--distillation and its options say what --teacher NAME does: give that, too.')
        teacher = self.load(student, seed)
        if teacher is None:
            return None
        from ..training.tasks.classification import Teaching

        teaching = Teaching(teacher, **given)
        not_with(teaching.kind_for(student) == 'hard', 'hard predictions of a teacher', 'distillation_tau')
        return teaching

    def facts(self, teaching: 'Teaching | None', student: 'nn.Module') -> dict[str, Any] | None:
        """The same for results.json."""
        if teaching is None:
            return None
        from ..common.hashes import state_hash

        return dict(
            name=self.teacher, weights=self.origin, sha256=state_hash(teaching.teacher),
            distillation=teaching.kind_for(student), alpha=teaching.alpha, tau=teaching.tau,
        )  # fmt: skip


def register(app: typer.Typer, panel: str) -> None:
    app.command('finetune', rich_help_panel=panel)(command(finetune))


def _list_recipes(wanted: bool) -> None:
    if not wanted:
        return
    from ..training.recipes import RECIPES

    for recipe in RECIPES.values():
        rates = recipe.rates()
        print(
            f'{recipe.name}\n    {recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.optimizer}, learning '
            f'rate {rates.lr:g}, layer decay {recipe.layer_decay or "none"}, weight decay {recipe.weight_decay:g}'
        )
        for line in (f'From: {recipe.source}.', _protocol(recipe), recipe.notes):
            print(textwrap.fill(line, 116, initial_indent='    ', subsequent_indent='    '), end='\n' if line else '')
    raise typer.Exit


def _protocol(recipe: 'Recipe') -> str:
    """Where a recipe starts, which images it trains on, and how it evaluates."""
    from ..training.recipes import STARTS

    starts = ' or '.join(STARTS[kind] for kind in recipe.starts) or 'any weights'
    starts += f' for {recipe.starts_at} pixels' if recipe.starts_at else ''
    images = 'trains on all of train, none held out, and takes the last epoch'
    if recipe.held_out:
        images = f'holds {recipe.held_out:.0%} of train out to choose the epoch with'
    evaluation = "the model's own preprocessing"
    if recipe.evaluation:
        evaluation = '{interpolation}, crop {crop_pct:g} ({crop_mode})'.format(**recipe.evaluation)
    teacher = f'has a teacher ({recipe.teacher}); ' if recipe.teacher else ''
    return f'Starts from {starts}; {teacher}{images}; evaluates with {evaluation}.'


def finetune(
    *,
    model_options: ModelOptions,
    as_init: Annotated[
        bool,
        typer.Option(
            '--as-init', help='Start from an encoder: fresh classifier and last norms, any number of heads (plain ViT).'
        ),
    ] = False,
    keep_heads: Annotated[
        bool, typer.Option('--keep-heads', help='Of the encoder, where the model has others; with --as-init.')
    ] = False,
    reserve: ReserveOptions,
    data_options: TrainingDataOptions,
    recipe: Annotated[
        str,
        typer.Option(help='Name of a recipe, see --recipes; small is for up to some thousand images.', metavar='NAME'),
    ] = 'small',
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for state, results and model.', metavar='DIR')],
    training: TrainingOptions,
    teacher: TeachingOptions,
    layer_decay: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Instead of the recipe's.")] = None,
    ema_decay: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.999999, help='Decay of a moving average of the weights, which is the result.'),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of train to choose the epoch with, instead of the recipe's; 0 takes the last epoch.",
        ),
    ] = None,
    gradient_norms: GradientNormsOption = False,
    run: RunOptions,
    recipes: Annotated[
        bool,
        typer.Option('--recipes', callback=_list_recipes, is_eager=True, help='List the recipes with their sources.'),
    ] = False,
) -> None:
    """Train a model on images. The same command again resumes where the last one stopped.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli finetune ...
    """
    from ..downstream.finetune import finetune as train_model
    from ..downstream.reports.finetune import print_finetuned, summary, write_finetuned
    from ..hub.folder import check_folder
    from ..training.recipes import find_recipe

    reserve.check(model_options.random)
    quiet_logs()
    check_folder(output / 'model')
    chosen = training.changed(find_recipe(recipe), layer_decay=layer_decay, ema_decay=ema_decay)
    with processes() as first:
        train, validation, test = _datasets(data_options, run.seed)
        say = printer() if first else (lambda text: None)
        model, start, classifier = _model(model_options, as_init, keep_heads, chosen, train.classes, run.seed)
        file = _hash_of_file(model_options) if first else {}  # now, as it may be gone or another one at the end
        reserved = reserve.apply(model, lambda: _fresh(model_options, chosen, len(train.classes), run.seed), say)
        if reserved and reserved.get('keep_blocks', reserved['blocks']) < reserved['blocks']:
            classifier = 'fresh, as --keep-blocks has it'
        teaching = teacher.teaching(model, run.seed)
        if teaching is not None:
            part = f'{teaching.kind_for(model)}, alpha {teaching.alpha:g}, tau {teaching.tau:g}'
            say(f'Teacher: {teacher.teacher} ({teacher.origin}); {part}.')
        departures = _say_start(chosen, start, classifier, model, say, taught=teaching is not None)
        result = train_model(
            model, train, chosen, output, validation=validation, test=test, held_out=held_out, teaching=teaching,
            **training.settings(run, say, gradient_observer(gradient_norms)),
        )  # fmt: skip
        if first:
            draw_gradients(gradient_norms, output, f'{model_options.name} on {train.name}', say)
            print_finetuned(summary(result), say)
            write_finetuned(
                output, result, model, train, test, name=model_options.name,
                weights=model_options.origin(run.seed), seed=run.seed, say=say,
                start=dict(
                    weights=start.words, classifier=classifier or 'fresh', departures=departures,
                    **file, **({} if reserved is None else dict(layer_reserve=reserved)),
                ),
                teacher=teacher.facts(teaching, model),
            )  # fmt: skip


def _model(
    options: ModelOptions, as_init: bool, keep_heads: bool, recipe: 'Recipe', classes: Sequence[str], seed: int
) -> tuple['nn.Module', 'Start', str]:
    """The model to train, what its weights are, and its classifier in words."""
    from ..downstream.starts import find_start, start_model

    if as_init and options.random:
        raise typer.BadParameter('--as-init takes the weights of an encoder, --random none: leave one of them out.')
    if keep_heads and not (as_init and options.weights):
        raise typer.BadParameter('--keep-heads: only with --as-init and --weights, the encoder that has them.')
    start = find_start(options.name, options.weights, options.random, as_init, options.part)
    if keep_heads and start.heads is None:
        raise typer.BadParameter(
            f'--keep-heads: nothing in {options.weights} shows its number of heads. Leave it out, or give the folder '
            'that a pre-training wrote.'
        )
    heads = start.heads if keep_heads else None

    def make(num_classes: int, random: bool = False) -> 'nn.Module':
        if random:
            return _fresh(options, recipe, num_classes, seed)
        return _make(options, as_init, heads, recipe, num_classes, seed)

    model, classifier = start_model(make, start, classes, recipe)
    return model, start, classifier


def _hash_of_file(options: ModelOptions) -> dict[str, str]:
    """For results.json: the sha256 of the tensors of --weights, a file, a folder, or that of another run."""
    from ..checkpoints import read_checkpoint
    from ..common.hashes import tensors_hash
    from ..names import model_folder

    if options.weights is None:
        return {}
    place = model_folder(options.weights) or options.weights
    return dict(tensors_sha256=tensors_hash(read_checkpoint(place, part=options.part)))


def _fresh(options: ModelOptions, recipe: 'Recipe', classes: int, seed: int) -> 'nn.Module':
    """The same model with random weights."""
    return _make(replace(options, random=True, weights=None, part=None), False, None, recipe, classes, seed)


def _say_start(
    recipe: 'Recipe', start: 'Start', classifier: str, model: 'nn.Module', say: Callable[[str], None], taught: bool
) -> list[str]:
    """Say before the first epoch what it starts from; the departures from the recipe's source."""
    from ..checkpoints import heads_of
    from ..downstream.starts import departures

    if classifier:
        say(f'Classifier: {classifier}.')
    if start.heads is not None and heads_of(model)[0] != start.heads:
        say(
            f'Heads: {heads_of(model)[0]}, where the encoder was pre-trained with {start.heads}: the same weights '
            f'compute something else. --keep-heads keeps {start.heads}.'
        )
    found = departures(recipe, start, model, taught)
    if found:
        say(f'Recipe {recipe.name}: {"; ".join(found)}.')
    return found


def _make(
    options: ModelOptions, as_init: bool, heads: int | None, recipe: 'Recipe', classes: int, seed: int
) -> 'nn.Module':
    """A model with the drop path and the image size of the recipe, that many heads, and a classifier of that many
    classes.

    A drop path of 0 is handed on, too: many models come with another one.
    """
    from ..common.errors import ModelError

    if options.img_size is None and recipe.img_size:
        options = replace(options, img_size=Size(recipe.img_size, recipe.img_size))
    rate = recipe.drop_path_of(architecture_of(options.name))
    arguments: dict[str, Any] = dict(num_classes=classes, **(dict(as_init=True) if as_init else {}))
    arguments |= dict(num_heads=heads) if heads else {}
    try:
        return backbone_of(options, seed, **arguments, drop_path_rate=rate)
    except ModelError as e:
        if as_init and "unexpected keyword argument 'as_init'" in str(e):
            raise ModelError(
                f'{options.name} is not a model of this package: it takes its weights and a fresh classifier '
                'without --as-init.'
            ) from e
        if "unexpected keyword argument 'drop_path_rate'" not in str(e):
            raise
        if rate:
            raise ModelError(f'{options.name} has no drop path, the recipe has {rate:g}: add --drop-path 0.') from e
    return backbone_of(options, seed, **arguments)


def _datasets(
    options: TrainingDataOptions, seed: int
) -> tuple['ImageDataset', 'ImageDataset | None', 'ImageDataset | None']:
    """Train, validation and test. Where validation images are the only others, as ImageNet's, they are tested on, and
    then must not choose the epoch.
    """
    from ..common.errors import MissingSplitError

    load = loader(options, seed)
    train, there = training_images(options, seed), {}
    for split in TO_TEST_ON:
        with suppress(MissingSplitError):
            there[split] = load(split)
    validation, test = there.get('validation'), there.get('test')
    if validation is None or test is None or validation.fingerprint() == test.fingerprint():
        return train, None, test or validation
    return train, validation, test
