"""`analyze hard-samples` and `analyze class-relations`: what predictions say of images and of classes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import printer, quiet_logs
from .evaluator_options import load_backbone, loader, processes
from .options import DataOptions, RunOptions, find_device


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
        Path | None, typer.Option('--teacher-weights', help='Checkpoint of that teacher.', metavar='FILE')
    ] = None,
    top: Annotated[int, typer.Option('--top', min=1, help='Classes that the label must be among.')] = 5,
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
    from ..downstream.analysis.hard_samples import hard_in_store, hard_of_teacher
    from ..downstream.reports.hard_samples import hard_words, write_hard
    from ..soft_labels import Store

    if (store is None) == (teacher is None):
        raise typer.BadParameter('Give either --store STORE or --teacher NAME: one of them says what is hard.')
    if teacher is None and teacher_weights is not None:
        raise typer.BadParameter('--teacher-weights: only with --teacher NAME, which says whose they are.')
    if output.suffix.lower() != '.json':
        raise typer.BadParameter(f'--output takes a file such as kept.json, not {output}.')
    quiet_logs()
    with processes() as first:
        dataset = loader(data_options, run.seed)('train')
        if store is not None:
            opened = Store.open(store)
            found = hard_in_store(opened, dataset, top)
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
                model, dataset, top, batch_size=batch_size, device=find_device(run.device), workers=run.workers
            )
        if first:
            say = printer()
            say(hard_words(found, dataset))
            write_hard(output, found, dataset, facts, run.seed, say)
