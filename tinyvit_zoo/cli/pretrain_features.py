"""`pretrain features`: a student learns the features of any teacher from images without labels."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import not_with, printer, quiet_logs
from .evaluator_options import load_backbone, processes, unlabelled_images
from .options import ImgSize, RunOptions, Size, UnlabelledDataOptions, pair_of, read_size
from .training_options import DryRun, ReserveOptions, TrainingOptions

FeatureLoss = StrEnum('FeatureLoss', ['smooth_l1', 'cosine'])


def features(
    *,
    student: Annotated[str, typer.Option(help='Any name that timm.create_model takes.', metavar='NAME')],
    student_weights: Annotated[
        Path | None, typer.Option(help='Checkpoint that the student starts from.', metavar='FILE')
    ] = None,
    student_pretrained: Annotated[
        bool, typer.Option('--student-pretrained', help='Start from the weights of its name, not from random ones.')
    ] = False,
    reserve: ReserveOptions,
    img_size: ImgSize = None,
    teacher: Annotated[
        str, typer.Option(help='A name of timm; or a folder or hf-hub:OWNER/NAME, of transformers too.', metavar='NAME')
    ],
    teacher_weights: Annotated[Path | None, typer.Option(help='Checkpoint of a timm teacher.', metavar='FILE')] = None,
    teacher_img_size: Annotated[
        Size | None, typer.Option(parser=read_size, help="Of the teacher's images, if not its own.", metavar='SIZE')
    ] = None,
    data_options: UnlabelledDataOptions,
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for state, results and model.', metavar='DIR')],
    loss: Annotated[
        FeatureLoss, typer.Option(help='smooth_l1 on whitened targets, or cosine.')
    ] = FeatureLoss.smooth_l1,
    dense_weight: Annotated[
        float, typer.Option(min=0.0, max=1.0, help='Share of dense features in the loss; the rest is of pooled ones.')
    ] = 0.5,
    dry_run: DryRun = False,
    training: TrainingOptions,
    run: RunOptions,
) -> None:
    """Train an encoder on the features of any teacher; no labels are needed. The same command again resumes.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli pretrain features ...
    """
    from ..downstream.reports.pretrain_features import write_feature_distilled
    from ..hub.folder import check_folder
    from ..training.feature_teacher import load_feature_teacher
    from ..training.features import plan_features
    from ..training.recipes.features import FEATURES

    pretrained = student_pretrained or student_weights is not None
    not_with(student_weights, '--student-weights', 'student_pretrained')
    reserve.check(not pretrained)
    quiet_logs()
    if not dry_run:
        check_folder(output / 'model')
    recipe = training.changed(FEATURES)
    with processes() as first:
        dataset = unlabelled_images(data_options, run.seed)
        taught_by = load_feature_teacher(teacher, teacher_weights, pair_of(teacher_img_size))
        rate = recipe.drop_path_of(student)
        arguments: dict[str, Any] = dict(drop_path_rate=rate) if rate else {}
        size = pair_of(img_size)
        net = load_backbone(student, student_weights, pretrained, size, run.seed, num_classes=0, **arguments)
        say = printer() if first else (lambda text: None)
        reserved = reserve.apply(
            net, lambda: load_backbone(student, None, False, size, run.seed, num_classes=0, **arguments), say
        )
        plan = plan_features(
            net, taught_by, dataset, recipe, loss=str(loss), dense_weight=dense_weight,  # type: ignore[arg-type]
            **training.settings(run, say),
        )  # fmt: skip
        if dry_run:
            say(plan.estimate().words)
            return
        result = plan.distil(output)
        if first:
            weights = str(student_weights or ('pretrained' if pretrained else f'random (seed {run.seed})'))
            write_feature_distilled(
                output, result, name=student, weights=weights, seed=run.seed, layer_reserve=reserved, say=say
            )
