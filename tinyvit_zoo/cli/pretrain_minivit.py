"""`pretrain minivit`: a student with shared weights learns from a teacher, or from its stored predictions."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import only_with, printer, quiet_logs
from .evaluator_options import backbone_of, processes, training_images
from .options import ImgSize, ModelOptions, RunOptions, TrainingDataOptions
from .training_options import (
    DryRun,
    GradientNormsOption,
    ReserveOptions,
    TeacherOptions,
    TrainingOptions,
    draw_gradients,
    gradient_observer,
)

if TYPE_CHECKING:
    from ..distill import WeightDistillation

WeightRecipe = StrEnum('WeightRecipe', ['mini_swin', 'mini_deit'])
Losses = StrEnum('Losses', ['mini_swin', 'mini_deit', 'paper'])
Reuse = StrEnum('Reuse', ['cycle'])


def minivit(
    *,
    student: Annotated[
        str,
        typer.Option(help='A Mini model, from random weights; or the folder of one, from its weights.', metavar='NAME'),
    ],
    student_weights: Annotated[
        Path | None, typer.Option(help='Checkpoint that the student starts from.', metavar='FILE')
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help='Adjacent layers that share their weights. Default: as released.', metavar='N'),
    ] = None,
    reserve: ReserveOptions,
    img_size: ImgSize = None,
    teacher: TeacherOptions,
    store: Annotated[
        str | None, typer.Option(help="Folder of a teacher's stored predictions, instead of --teacher.")
    ] = None,
    reuse: Annotated[Reuse | None, typer.Option(help='Cycle through the stored epochs if there are too few.')] = None,
    data_options: TrainingDataOptions,
    recipe: Annotated[
        WeightRecipe | None, typer.Option(help='Default: mini_swin for a Swin, mini_deit for any other student.')
    ] = None,
    losses: Annotated[
        Losses | None,
        typer.Option(help='mini_deit: of predictions only. Default: as the recipe; mini_deit with --store.'),
    ] = None,
    hard_weight: Annotated[float, typer.Option(min=0.0, max=1.0, help='Share of the true labels in the loss.')] = 0.0,
    relation_weight: Annotated[
        float | None, typer.Option(min=0.0, help='Of the relations of q, k and v. Default: as --losses.', metavar='W')
    ] = None,
    hidden_weight: Annotated[
        float | None, typer.Option(min=0.0, help='Of the hidden states. Default: as --losses.', metavar='W')
    ] = None,
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for state, results and model.', metavar='DIR')],
    dry_run: DryRun = False,
    training: TrainingOptions,
    gradient_norms: GradientNormsOption = False,
    run: RunOptions,
) -> None:
    """Train a student with shared weights by weight distillation (MiniViT). The same command again resumes.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli pretrain minivit ...
    """
    from ..downstream.reports.minivit import write_minivit
    from ..hub.folder import check_folder
    from ..soft_labels import Store
    from ..training.recipes import WEIGHT_DISTILLATION
    from ..training.weight_distillation import plan_predictions, plan_weights

    _check_source(teacher, store, reuse)
    quiet_logs()
    if not dry_run:
        check_folder(output / 'model')
    architecture, swin, starts = _about(student, student_weights)
    if repeats and (starts or not architecture.startswith('mini_')):
        raise typer.BadParameter(
            '--repeats is for a Mini-DeiT or Mini-Swin from random weights: any other has the sharing that '
            '`compress --share-every` gave it.'
        )
    reserve.check(not starts)
    chosen = training.changed(WEIGHT_DISTILLATION[str(recipe or ('mini_swin' if swin else 'mini_deit'))])
    objective = _objective(
        str(losses or ('mini_deit' if store else chosen.name)), hard_weight, relation_weight, hidden_weight
    )
    with processes() as first:
        opened = None if store is None else Store.open(store)
        dataset = training_images(data_options, run.seed)
        options = ModelOptions(name=student, weights=student_weights, random=not starts, img_size=img_size)
        classes = len(dataset.classes) if opened is None else opened.info.classes
        given: dict[str, Any] = dict(num_classes=classes, drop_path_rate=chosen.drop_path_of(architecture))
        if repeats:
            given['repeats'] = repeats
        model = backbone_of(options, run.seed, **given)
        say = printer() if first else (lambda text: None)
        say(f'Student: {student}, from {"its weights" if starts else "random weights, as published"}.')
        fresh = replace(options, weights=None, random=True)
        reserved = reserve.apply(model, lambda: backbone_of(fresh, run.seed, **given), say)
        settings: dict[str, Any] = dict(training.settings(run, say, gradient_observer(gradient_norms)))
        if opened is not None:
            say('The views are the stored ones: images are neither mixed nor repeated within an epoch.')
            plan: Any = plan_predictions(model, dataset, opened, objective, chosen, reuse=reuse is not None, **settings)
        else:
            taught_by = teacher.load(model, run.seed)
            assert taught_by is not None
            plan = plan_weights(model, dataset, taught_by, objective, chosen, **settings)
        if dry_run:
            say(plan.estimate().words)
            return
        result = plan.distil(output)
        if first:
            draw_gradients(gradient_norms, output, f'{student} on {dataset.name}', say)
            write_minivit(
                output, result, model, dataset, objective, name=student, weights=options.origin(run.seed),
                teacher=teacher.teacher, teacher_weights=teacher.origin, seed=run.seed, layer_reserve=reserved,
                say=say,
            )  # fmt: skip


def _check_source(teacher: TeacherOptions, store: str | None, reuse: Reuse | None) -> None:
    """Usage error unless there is one teacher, at work or in a store."""
    if (store is None) == (teacher.teacher is None):
        raise typer.BadParameter(
            'Give either --teacher NAME or --store STORE: one of them decides what the student learns.'
        )
    if store is None and reuse is not None:
        raise typer.BadParameter('--reuse takes the epochs of a --store in turn: leave it out with --teacher.')
    only_with(teacher.teacher, '--teacher NAME', 'teacher_weights')


def _about(student: str, weights: Path | None) -> tuple[str, bool, bool]:
    """The architecture (of a multiplexed model that of its base), whether it is a Swin, and whether it starts from
    weights: those of a file, a tag, a folder or a page.
    """
    from timm.models import split_model_name_tag

    from ..build import build_model
    from ..names import check_name

    model: Any = build_model(student, device='meta')
    architecture = model.pretrained_cfg['architecture']
    if architecture == 'multiplexed':
        architecture = model._model_args['base']
    given = weights is not None or check_name(student) is not None or bool(split_model_name_tag(student)[1])
    return architecture, 'swin' in type(model).__name__.lower(), given


def _objective(
    losses: str, hard_weight: float, relation_weight: float | None, hidden_weight: float | None
) -> 'WeightDistillation':
    from ..training.weight_distillation import OBJECTIVES, with_hard_weight

    weights = dict(relation_weight=relation_weight, hidden_weight=hidden_weight)
    given: dict[str, Any] = {name: value for name, value in weights.items() if value is not None}
    return replace(with_hard_weight(OBJECTIVES[losses], hard_weight), **given)
