"""`analyze hard-samples` and `analyze class-relations`: what predictions say of images and of classes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .analysis_options import AnalysisOptions, analysed, images_of
from .console import not_with, only_with, printer, quiet_logs
from .evaluator_options import TO_TEST_ON, load_backbone, loader, own_folder, processes
from .options import DataOptions, ModelOptions, RunOptions, find_device


def hard_samples(
    *,
    data_options: DataOptions,
    store: Annotated[
        str | None, typer.Option('--store', help="Of a teacher's soft labels: a folder, or an address.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option('--teacher', help='Instead of --store: any name that timm takes.', metavar='NAME')
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option('--teacher-weights', '--weights', help='Checkpoint of that teacher.', metavar='FILE')
    ] = None,
    top: Annotated[int, typer.Option('--top', min=1, help='Classes that the label must be among.')] = 5,
    images: Annotated[
        int | None,
        typer.Option(
            '--images',
            min=1,
            help='Number of training images to look at, drawn with --seed; the list has no others. Default: all.',
            metavar='N',
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option('--batch-size', min=1, help='Images of a forward pass.', metavar='N')] = 64,
    output: Annotated[
        Path, typer.Option('--output', '-o', help='List of the other images, for --subset.', metavar='FILE')
    ],
    run: RunOptions,
) -> None:
    """Training images whose label is outside a teacher's top 5; the file lists all others for --subset.

    A store holds augmented views: an image is hard when most stored epochs say so.

    Several processes with --teacher: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli analyze hard-samples ...
    """
    from ..downstream.analysis.hard_samples import draw_positions, hard_in_store, hard_of_teacher
    from ..downstream.reports.hard_samples import check_list, hard_words, write_hard
    from ..soft_labels import Store

    if (store is None) == (teacher is None):
        raise typer.BadParameter('Give either --store STORE or --teacher NAME: one of them decides what is hard.')
    only_with(teacher, '--teacher NAME', 'teacher_weights', 'batch_size', 'device', 'workers')
    if output.suffix.lower() != '.json':
        raise typer.BadParameter(f'--output takes a file such as kept.json, not {output}.')
    quiet_logs()
    check_list(output)
    with processes() as first:
        dataset = loader(data_options, run.seed)('train')
        positions = draw_positions(dataset, images, run.seed)
        if store is not None:
            opened = Store.open(store)
            found = hard_in_store(opened, dataset, top, positions=positions)
            info = opened.info
            facts: dict[str, Any] = dict(
                name=info.teacher, sha256=info.teacher_sha256, store=store, identity=info.identity,
                epochs=opened.whole_epochs(),
            )  # fmt: skip
        else:
            assert teacher is not None
            from ..common.hashes import state_hash

            model = load_backbone(teacher, teacher_weights, True, None, run.seed)
            facts = dict(name=teacher, sha256=state_hash(model), weights=str(teacher_weights or 'pretrained'))
            found = hard_of_teacher(
                model, dataset, top, positions=positions, batch_size=batch_size, device=find_device(run.device),
                workers=run.workers,
            )  # fmt: skip
        if first:
            say = printer()
            say(hard_words(found, dataset))
            write_hard(output, found, dataset, facts, run.seed, say)


def class_relations(
    *,
    model_options: ModelOptions,
    data_options: DataOptions,
    per_class: Annotated[
        int | None,
        typer.Option('--per-class', min=1, help='Images of each class (8 in the paper), instead of --images.'),
    ] = None,
    order: Annotated[
        Path | None,
        typer.Option(
            '--order',
            help="Order of classes: order.csv of a run, or a tree with lines 'PARENT CHILD'. Default: clustering.",
            metavar='FILE',
        ),
    ] = None,
    options: AnalysisOptions,
    run: RunOptions,
) -> None:
    """Pearson correlations of a classifier's outputs over images: which classes it considers related."""
    from ..data.subsets import some_of_each_class
    from ..downstream.analysis.class_relations import BATCH_SIZE, measure
    from ..downstream.reports.class_relations import relation_words, write_relations

    not_with(per_class, '--per-class', 'images')
    quiet_logs()
    device, seed, say = find_device(run.device), run.seed, printer()
    with own_folder(options.output, True):
        if per_class is None:
            dataset = images_of(options, data_options, seed)
        else:
            load = loader(data_options, seed)
            dataset = load(options.split) if options.split else load(*TO_TEST_ON, 'all')
            dataset = dataset.subset(some_of_each_class(dataset.labels, per_class, seed))
        model = analysed(
            model_options.name, model_options.weights, model_options.random, model_options.img_size, seed,
            model_options.part,
        )  # fmt: skip
        found = measure(
            model, dataset, order, batch_size=options.batch_size or BATCH_SIZE, device=device, workers=run.workers
        )
        for line in relation_words(found):
            say(line)
        if options.output is not None:
            write_relations(options.output, found, model, dataset, model_options.origin(seed), seed, say)
