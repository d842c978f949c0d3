"""`sam distill`: a TinyViT learns the maps of a SAM's image encoder; `sam embed`: those maps, stored once."""

from pathlib import Path
from typing import Annotated

import typer

from .console import not_with, printer, quiet_transformers, refuse_among_images
from .evaluator_options import processes, unlabelled_images
from .options import RunOptions, Size, UnlabelledDataOptions, find_device, pair_of, read_size
from .training_options import DryRun, TrainingOptions

TEACHER = 'A SAM: a folder or hf-hub:OWNER/NAME of transformers, mobile_sam.pt, or a samvit_... of timm.'


def distill(
    *,
    student: Annotated[str, typer.Option(help='A TinyViT of this package.', metavar='NAME')] = 'tinyvit_5m_224',
    student_weights: Annotated[
        Path | None,
        typer.Option(help='Checkpoint that the student starts from: a TinyViT, or a SAM with one.', metavar='FILE|DIR'),
    ] = None,
    student_pretrained: Annotated[
        bool, typer.Option('--student-pretrained', help='Start from the weights of its name, not from random ones.')
    ] = False,
    img_size: Annotated[
        Size | None,
        typer.Option(parser=read_size, help="Of the student's images, if not the teacher's.", metavar='SIZE'),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help=TEACHER, metavar='NAME')] = None,
    store: Annotated[
        Path | None, typer.Option(help='Folder of sam embed, instead of the encoder of --teacher.', metavar='DIR')
    ] = None,
    data_options: UnlabelledDataOptions,
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for state, results and model.', metavar='DIR')],
    dry_run: DryRun = False,
    training: TrainingOptions,
    run: RunOptions,
) -> None:
    """Train a TinyViT to give the maps of a SAM's image encoder, as MobileSAM was made; no labels are needed.

    With --teacher the result is a whole model for `sam segment`: prompt encoder and mask decoder are the teacher's. A
    --store alone gives the encoder. The same command again resumes.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli sam distill ...
    """
    if teacher is None and store is None:
        raise typer.BadParameter('Give --teacher NAME, or --store DIR of sam embed, or both.')
    not_with(student_weights, '--student-weights', 'student_pretrained')
    quiet_transformers()
    import torch

    from ..dense.sam import sam_encoder
    from ..downstream.reports.sam import MODEL, write_sam_distilled
    from ..hub.sam import check_sam_folder
    from ..segment_anything.teacher import find_maps, sam_around
    from ..training.recipes.features import SAM_FEATURES
    from ..training.sam import plan_sam

    if not dry_run:
        check_sam_folder(output / MODEL)
    recipe = training.changed(SAM_FEATURES)
    with processes() as first:
        dataset = unlabelled_images(data_options, run.seed)
        maps = find_maps(teacher, store)
        source = student_weights or (student if student_pretrained else None)
        torch.manual_seed(run.seed)  # of what the weights lack, such as the neck
        net = sam_encoder(
            student, pair_of(img_size) or maps.img_size, source, drop_path_rate=recipe.drop_path_of(student)
        )
        say = printer() if first else (lambda text: None)
        plan = plan_sam(net, maps.source, dataset, recipe, **training.settings(run, say))
        model = None if maps.whole is None else sam_around(net, student.partition('.')[0], maps.whole)
        if dry_run:
            say(plan.estimate().words)
            return
        result = plan.distil(output)
        if first:
            weights = str(source or f'random (seed {run.seed})')
            write_sam_distilled(output, result, model, name=student, weights=weights, seed=run.seed, say=say)


def embed(
    *,
    teacher: Annotated[str, typer.Argument(help=TEACHER, metavar='TEACHER')],
    data_options: UnlabelledDataOptions,
    store: Annotated[Path, typer.Option(help='Folder of the maps.', metavar='DIR')],
    run: RunOptions,
) -> None:
    """Store the maps that a SAM's image encoder gives of images, 2.1 MB each: `sam distill --store` learns from them.

    The same command again goes on where the last one stopped. Several processes share the images:
    torchrun --nproc-per-node=2 -m tinyvit_zoo.cli sam embed ...
    """
    refuse_among_images('--store', store, data_options.data, data_options.root)
    quiet_transformers()
    from ..common.files import check_writable
    from ..common.text import count_of
    from ..segment_anything.teacher import load_sam_teacher
    from ..training.sam_embeddings import save_embeddings

    check_writable(store, is_folder=True, grows=True)
    with processes() as first:
        dataset = unlabelled_images(data_options, run.seed)
        found = load_sam_teacher(teacher).encoder
        say = printer() if first else (lambda text: None)
        save_embeddings(found, dataset, store, device=find_device(run.device), workers=run.workers, say=say)
        say(f'Written to {store}: the maps of {count_of(len(dataset), "image")} by {found.name}.')
