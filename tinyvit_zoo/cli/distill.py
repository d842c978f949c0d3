"""`distill`: store a teacher's soft labels once, and train any student from them."""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, only_with, print_json, printer, quiet_logs, refuse_among_images
from .evaluator_options import backbone_of, load_backbone, loader, processes, training_images
from .options import (
    DataOptions,
    ModelOptions,
    RunOptions,
    Size,
    Subset,
    TrainingDataOptions,
    find_device,
    pair_of,
    read_size,
)
from .training_options import ReserveOptions, TrainingOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data.image_dataset import ImageDataset
    from ..data.replay import ViewSpec
    from ..soft_labels import Store, Teacher

StoreForm = StrEnum('StoreForm', ['exact', 'compact'])
TeacherPrecision = StrEnum('TeacherPrecision', ['float32', 'bfloat16'])
Reuse = StrEnum('Reuse', ['cycle'])

ViewSize = Annotated[
    Size | None,
    typer.Option(
        '--view-size',
        parser=read_size,
        help="Size of the views, if not the teacher's; students may differ.",
        metavar='SIZE',
    ),
]
StorePlace = Annotated[str, typer.Argument(help='Folder, or an address that fsspec opens.', metavar='STORE')]
Epochs = Annotated[str | None, typer.Option(help='Such as 3, or 0:10 for 0 to 9. Default: all.', metavar='EPOCHS')]


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help="Store a teacher's soft labels once, and train any student from them.")
    for function in (save, check, train, convert, info):
        group.command(function.__name__)(command(function))
    app.add_typer(group, name='distill', rich_help_panel=panel)


def save(
    *,
    teacher: Annotated[
        str, typer.Argument(help='Any model of timm, or a classifier of transformers.', metavar='TEACHER')
    ],
    weights: Annotated[
        Path | None, typer.Option(help='Checkpoint instead of the pretrained weights.', metavar='FILE')
    ] = None,
    data_options: TrainingDataOptions,
    store: Annotated[
        str, typer.Option(help='Folder of the soft labels; continued if it holds the same ones.', metavar='DIR')
    ],
    epochs: Annotated[str, typer.Option(help='Such as 3, or 0:10 for 0 to 9.', metavar='EPOCHS')],
    k: Annotated[int, typer.Option('--top-k', '-k', min=1, help='Probabilities kept.')] = 100,
    form: Annotated[StoreForm, typer.Option(help='exact: 4 bytes each; compact: a little over 2.')] = StoreForm.exact,
    precision: Annotated[TeacherPrecision, typer.Option(help='Of the teacher.')] = TeacherPrecision.float32,
    view_size: ViewSize = None,
    batch_size: Annotated[int, typer.Option(min=1, help='Images of a forward pass.', metavar='N')] = 64,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Print images, bytes and time; write nothing.')] = False,
    run: RunOptions,
) -> None:
    """Save a teacher's probabilities for every view of some epochs. The same command again continues where it stopped.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli distill save ... Machines may take different
    epochs.
    """
    from ..common.files import check_writable
    from ..common.text import count_of
    from ..soft_labels import estimate
    from ..soft_labels import save as save_labels
    from ..soft_labels.place import Place

    quiet_logs()
    refuse_among_images('--store', store, data_options.data, data_options.root)
    if not dry_run:
        check_writable(Place(store).folder, is_folder=True, grows=True)
    numbers = _numbers(epochs)
    with processes() as first:
        dataset = training_images(data_options, run.seed)
        found = _teacher(teacher, weights, str(precision), run)
        spec = _view_spec(pair_of(view_size) or found.size)
        common: dict[str, Any] = dict(k=k, form=str(form), batch_size=batch_size, workers=run.workers)
        if dry_run:
            if first:
                cost = estimate(found, dataset, spec, numbers, **common)
                printer()(
                    f'{count_of(len(dataset), "image")} x {count_of(len(numbers), "epoch")} = '
                    f'{count_of(cost.views, "view")}; {cost.bytes:,} bytes; about {cost.seconds:,.0f} s for one '
                    'process on this machine.'
                )
            return
        saved = save_labels(found, dataset, spec, store, numbers, seed=run.seed, **common)
        if first:
            printer()(f'Written to {store}: {saved.epochs_in_words()} of {count_of(len(dataset), "view")} each.')


def check(
    *,
    store: StorePlace,
    data_options: TrainingDataOptions,
    epochs: Epochs = None,
    against: Annotated[str | None, typer.Option(help='The teacher, to run it again.', metavar='TEACHER')] = None,
    weights: Annotated[Path | None, typer.Option(help='Checkpoint of that teacher.', metavar='FILE')] = None,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help='Share of the views to recompute.')] = 0.01,
    tolerance: Annotated[float, typer.Option(min=0.0, help='Largest allowed difference of a probability.')] = 0.005,
    run: RunOptions,
) -> None:
    """Check every record of a store, its data set and its views; with --against, the teacher's probabilities, too."""
    from ..common.errors import EvaluationError
    from ..common.text import count_of
    from ..soft_labels import Store, check_data, check_records, check_teacher, check_views
    from ..soft_labels.store import in_words
    from ..soft_labels.stored_views import is_converted

    only_with(against, '--against TEACHER', 'weights', 'tolerance', 'device', 'workers')
    quiet_logs()
    say, wanted = printer(), _numbers(epochs) if epochs else None
    opened = Store.open(store)
    numbers = wanted or opened.whole_epochs()
    dataset = training_images(data_options, run.seed)
    check_data(opened, dataset)
    say(f'Records: all {check_records(opened, numbers):,} of {in_words(numbers)} are whole.')
    views = check_views(opened, dataset, numbers, share)
    say(f'Views: {views:,} made again, as the teacher saw them.' if views else 'Views: none carries a checksum.')
    if against:
        precision = 'float32' if is_converted(opened.info) else opened.info.precision
        found = _teacher(against, weights, precision, run)
        agreement = check_teacher(opened, dataset, found, numbers, share, workers=run.workers)
        say(
            f'Teacher: {count_of(agreement.views, "view")}; mean difference of a probability {agreement.error:.2g}, '
            f'largest {agreement.largest:.2g}; {agreement.other_ids:.2%} other classes.'
        )
        if agreement.largest > tolerance:
            raise EvaluationError(
                f'{against} says something else than what is stored: {agreement.largest:.2g} is above {tolerance:g}.'
            )


@dataclass(frozen=True, kw_only=True)
class LiveTeacherOptions:
    """A live teacher in place of a store."""

    teacher: Annotated[
        str | None,
        typer.Option('--teacher', help='Live teacher instead of --store; as TEACHER of save.', metavar='NAME'),
    ] = None
    teacher_weights: Annotated[
        Path | None, typer.Option('--teacher-weights', help='Checkpoint of that teacher.', metavar='FILE')
    ] = None
    top_k: Annotated[
        int | None, typer.Option('--top-k', '-k', min=1, help='Probabilities kept of that teacher. Default: 100.')
    ] = None
    teacher_precision: Annotated[
        TeacherPrecision | None, typer.Option('--teacher-precision', help='Of that teacher. Default: float32.')
    ] = None
    view_size: ViewSize = None

    def check(self, store: str | None, reuse: Reuse | None) -> None:
        """Usage error unless there is one source of soft labels, with its own options only."""
        if (store is None) == (self.teacher is None):
            raise typer.BadParameter('Give either --store STORE or --teacher NAME: one of them says the soft labels.')
        if self.teacher is not None and reuse is not None:
            raise typer.BadParameter('--reuse takes the epochs of a --store in turn: leave it out with --teacher.')
        given = [name for name, value in vars(self).items() if value is not None]
        if store is not None and given:
            names = ', '.join(f'--{name.replace("_", "-")}' for name in given)
            raise typer.BadParameter(f'{names}: only with --teacher, for a --store was saved with its own.')


def train(
    *,
    model_options: ModelOptions,
    reserve: ReserveOptions,
    data_options: TrainingDataOptions,
    store: Annotated[
        str | None, typer.Option(help='Folder of the soft labels, or an address that fsspec opens.')
    ] = None,
    live: LiveTeacherOptions,
    recipe: Annotated[str, typer.Option(help='Name of a recipe.', metavar='NAME')] = 'tinyvit_22k_distill',
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for state, results and model.', metavar='DIR')],
    training: TrainingOptions,
    reuse: Annotated[Reuse | None, typer.Option(help='Cycle through the stored epochs if there are too few.')] = None,
    hard_weight: Annotated[float, typer.Option(min=0.0, max=1.0, help='Share of the true labels in the loss.')] = 0.0,
    run: RunOptions,
) -> None:
    """Train a student from stored soft labels or a live teacher.

    The same command again resumes where the last one stopped.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli distill train ...
    """
    from ..downstream.reports.distill import write_distilled
    from ..hub.folder import check_folder
    from ..soft_labels import Store
    from ..training.distillation import distil_from_store, distil_live
    from ..training.recipes import DISTILLATION, find_recipe

    live.check(store, reuse)
    reserve.check(model_options.random)
    quiet_logs()
    check_folder(output / 'model')
    chosen = training.changed(find_recipe(recipe, DISTILLATION))
    with processes() as first:
        opened = None if store is None else Store.open(store)
        dataset = training_images(data_options, run.seed)
        rate = chosen.drop_path_of(model_options.name)
        arguments: dict[str, Any] = dict(drop_path_rate=rate) if rate else {}
        classes = len(dataset.classes) if opened is None else opened.info.classes
        student = backbone_of(model_options, run.seed, num_classes=classes, **arguments)
        say = printer() if first else (lambda text: None)
        fresh = replace(model_options, random=True, weights=None, part=None)
        reserved = reserve.apply(student, lambda: backbone_of(fresh, run.seed, num_classes=classes, **arguments), say)
        common: dict[str, Any] = dict(hard_weight=hard_weight, **training.settings(run, say))
        if opened is not None:
            result = distil_from_store(student, dataset, opened, chosen, output, reuse=reuse is not None, **common)
        else:
            assert live.teacher is not None
            teacher = _teacher(live.teacher, live.teacher_weights, str(live.teacher_precision or 'float32'), run)
            spec = _view_spec(pair_of(live.view_size) or teacher.size)
            result = distil_live(student, dataset, teacher, spec, chosen, output, k=live.top_k or 100, **common)
        if first:
            write_distilled(
                output, result, student, dataset, name=model_options.name, weights=model_options.origin(run.seed),
                seed=run.seed, layer_reserve=reserved, say=say,
            )  # fmt: skip


def convert(
    *,
    folder: Annotated[Path, typer.Argument(help="Of the released code's dumps.", metavar='OFFICIAL_DIR')],
    store: Annotated[str, typer.Argument(help='Folder to write.', metavar='STORE')],
    num_classes: Annotated[int, typer.Option(min=1, help='Of the teacher.', metavar='N')] = 21841,
    teacher: Annotated[str, typer.Option(help='Name of the teacher, for the record.')] = 'clip_vit_large_patch14_22k',
) -> None:
    """Convert dumps of TinyViT's released code, augmentation seeds included, to a store.

    `distill train` reproduces their views from the seeds, for any student, with the images that the released code saw.
    """
    from tqdm import tqdm

    from ..common.text import count_of
    from ..soft_labels.legacy import convert as convert_dumps
    from ..soft_labels.stored_views import released_settings

    quiet_logs()
    with tqdm(desc='records', unit='record', disable=None) as bar:

        def progress(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        made = convert_dumps(folder, store, num_classes, released_settings(), teacher, progress)
    printer()(f'Written to {store}: {made.epochs_in_words()} of {count_of(made.info.images, "record")} each.')


def info(
    *,
    store: StorePlace,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
    view: Annotated[
        str | None, typer.Option(help='Show a view, such as 3:1207; needs --data.', metavar='EPOCH:POSITION')
    ] = None,
    data: Annotated[
        str | None, typer.Option('--data', '-d', help='Name of the data set, or its folder.', metavar='DATA')
    ] = None,
    root: Annotated[Path | None, typer.Option(help='Folder that the data set lies in.', metavar='DIR')] = None,
    subset: Subset = None,
    image: Annotated[Path | None, typer.Option(help='File for the image of that view.', metavar='FILE')] = None,
) -> None:
    """Print what a store holds, or how one view of an image was made."""
    from dataclasses import asdict

    from ..common.text import count_of
    from ..soft_labels import Store

    quiet_logs()
    only_with(view, '--view EPOCH:POSITION', 'data', 'root', 'subset', 'image')
    if image is not None:
        refuse_among_images('--image', image, data, root)
    opened = Store.open(store)
    if view is not None:
        _show_view(opened, view, data, root, subset, image, as_json)
        return
    facts: dict[str, Any] = dict(asdict(opened.info), epochs=opened.epochs(), bytes_a_record=opened.info.record.size)
    if as_json:
        print_json(facts)
        return
    say = printer()
    say(f'Teacher: {opened.info.teacher} ({opened.info.precision}); {count_of(opened.info.classes, "class")}.')
    say(f'Data: {opened.info.data}, {count_of(opened.info.images, "image")}.')
    say(f'Stored: {opened.epochs_in_words()}; {opened.info.form}, {count_of(opened.info.k, "probability")}, '
        f'{facts["bytes_a_record"]} bytes a record.')  # fmt: skip


def _show_view(
    store: 'Store',
    view: str,
    data: str | None,
    root: Path | None,
    subset: str | None,
    image: Path | None,
    as_json: bool,
) -> None:
    from ..data.subsets import take_subset
    from ..soft_labels import check_data
    from ..soft_labels.stored_views import describe_stored

    match = re.fullmatch(r'(\d+):(\d+)', view)
    if not match or data is None:
        raise typer.BadParameter('--view takes EPOCH:POSITION such as 3:1207, and needs --data.')
    epoch, position = int(match[1]), int(match[2])
    if position >= store.info.images:
        raise typer.BadParameter(f'--view: positions are from 0 to {store.info.images - 1}, not {position}.')
    store.check_epoch(epoch)
    dataset: ImageDataset = loader(DataOptions(data=data, root=root), 0)('train')
    dataset = dataset if subset is None else take_subset(dataset, subset, 0)
    check_data(store, dataset)
    found = describe_stored(store, dataset, epoch, position)
    if image is not None:
        _save_image(found.image, image)
    if as_json:
        print_json(dict(words=found.words, parameters=found.record))
    else:
        say = printer()
        for name, words in found.words.items():
            say(f'{name}: {words}')


def _save_image(image: 'Image', path: Path) -> None:
    """Write an image in the format of its ending. Raises: EvaluationError: If it cannot be written."""
    from ..common.errors import EvaluationError
    from ..common.files import new_file
    from ..common.text import reason

    try:
        with new_file(path) as new:
            image.save(new)
    except (OSError, ValueError) as e:
        raise EvaluationError(f'{path} cannot be written ({reason(e)}): name a file such as view.png.') from e


def _teacher(name: str, weights: Path | None, precision: str, run: RunOptions) -> 'Teacher':
    """A model of timm or transformers as teacher."""
    from ..common.errors import ModelError
    from ..soft_labels import Teacher
    from ..soft_labels.transformers_teacher import find_transformers_teacher

    settings: dict[str, Any] = dict(precision=precision, device=find_device(run.device))
    found = find_transformers_teacher(name, **settings)
    if found is None:
        return Teacher.of_timm(load_backbone(name, weights, True, None, run.seed), name, **settings)
    if weights is not None:
        raise ModelError(f'{name} is a model of transformers, which has its weights beside it: leave {weights} out.')
    return found


def _view_spec(size: tuple[int, int]) -> 'ViewSpec':
    """Views as in TinyViT's pretraining."""
    from ..data.replay import ViewSpec
    from ..training.recipes import DISTILLATION

    recipe = DISTILLATION['tinyvit_22k_distill']
    return ViewSpec.from_timm(
        size, scale=recipe.crop_area, hflip=recipe.flip, auto_augment=recipe.auto_augment, re_prob=recipe.random_erase,
        re_mode='pixel',
    )  # fmt: skip


def _numbers(text: str) -> list[int]:
    """'3' -> [3], '0:10' -> [0, ..., 9]. Usage error on anything else."""
    match = re.fullmatch(r'(\d{1,6})(?::(\d{1,6}))?', text)
    numbers = list(range(int(match[1]), int(match[2]) if match[2] else int(match[1]) + 1)) if match else []
    if not numbers:
        raise typer.BadParameter(
            f"takes a number below a million such as 3, or 0:10 for 0 to 9, not '{text}'.", param_hint='--epochs'
        )
    return numbers
