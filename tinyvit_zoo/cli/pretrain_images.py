"""`pretrain tinymim|mae|d_mae|mocov3`: pre-training of plain ViTs on images as in the papers."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .console import only_with, printer, quiet_logs
from .evaluator_options import processes, unlabelled_images
from .options import Counts, ImgSize, RunOptions, UnlabelledDataOptions, Words, pair_of, read_counts, read_words
from .training_options import DryRun, NoReserveOptions, TrainingOptions

if TYPE_CHECKING:
    from torch import nn

    from ..data.image_dataset import ImageDataset
    from ..pretrain import RelationEncoder
    from ..training.chain import Stage
    from ..training.pretraining import Pretraining
    from ..training.recipes import Recipe

Student = StrEnum('Student', ['tiny', 'small', 'base'])
Size = StrEnum('Size', ['tiny', 'small'])
Target = StrEnum(
    'Target', ['relation', 'qkv', 'output', 'ffn', 'ffn_residual', 'attention', 'attention_residual', 'cls']
)

TeacherWeights = Annotated[
    Path | None, typer.Option('--teacher-weights', help='File of a pre-trained encoder.', metavar='FILE')
]
MaskRatio = Annotated[
    float, typer.Option('--mask-ratio', min=0.0, max=0.99, help='Share of the patches that is hidden.')
]


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(NoReserveOptions):
    """Where a pre-training goes, by what recipe, and the images that its encoder takes."""

    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for state, results and model.', metavar='DIR')]
    small: Annotated[
        bool, typer.Option('--small', help="A recipe for some thousand images instead of the paper's for ImageNet.")
    ] = False
    img_size: ImgSize = None
    patch_size: Annotated[int | None, typer.Option('--patch-size', min=1, help='Side of a patch, if not 16.')] = None
    dry_run: DryRun = False


def tinymim(
    *,
    student: Annotated[Student | None, typer.Option(help='Size of the student.')] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help='small, base or large with --teacher-weights; or a timm name, or a folder.', metavar='NAME'),
    ] = None,
    teacher_weights: TeacherWeights = None,
    chain: Annotated[
        Words | None,
        typer.Option(
            parser=read_words,
            help='Such as large,base,small,tiny: each teaches the next; instead of --student.',
            metavar='SIZES',
        ),
    ] = None,
    target: Annotated[Target, typer.Option(help='What to learn from the teacher.')] = Target.relation,
    relations: Annotated[
        Words, typer.Option(parser=read_words, help='Of the target relation, such as qq,kk,vv.', metavar='PAIRS')
    ] = 'qk,vv',  # type: ignore[assignment]  # typer parses the default, too
    no_softmax: Annotated[bool, typer.Option('--no-softmax', help='Compare relations before the softmax.')] = False,
    block: Annotated[
        int | None,
        typer.Option(min=1, help='Target block of the teacher, from 1. Default: 18 of large, else the last.'),
    ] = None,
    mask_ratio: MaskRatio = 0.0,
    reconstruct: Annotated[
        bool, typer.Option('--reconstruct', help="Also use MAE's loss; needs --mask-ratio.")
    ] = False,
    teacher_drop_path: Annotated[
        float, typer.Option('--teacher-drop-path', min=0.0, max=0.99, help='Of its last block, while it teaches.')
    ] = 0.0,
    keep_heads: Annotated[
        bool, typer.Option('--keep-heads', help='Fine-tune tiny with its 6 heads, not with 3 as released.')
    ] = False,
    data_options: UnlabelledDataOptions,
    options: PretrainingOptions,
    training: TrainingOptions,
    run: RunOptions,
) -> None:
    """TinyMIM: a student learns the token relations of a pre-trained teacher. The same command again resumes.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli pretrain tinymim ...
    """
    from ..training.chain import find_stages

    only_with(target is Target.relation, '--target relation', 'relations', 'no_softmax')
    only_with('tiny' in (student, *(chain or ())), 'a tiny student', 'keep_heads')
    objective: dict[str, Any] = dict(
        target=str(target), relations=relations, softmax=not no_softmax, mask_ratio=mask_ratio, reconstruct=reconstruct
    )
    given = _Given(data_options, options, training, run)
    stages = find_stages(student and str(student), teacher, teacher_weights, chain, options.output)
    for stage in () if options.dry_run else stages:  # the later ones, too, before the first is trained
        _check_folders(stage.output)
    with processes():
        for stage in stages[:1] if options.dry_run else stages:
            teaching = dict(block=block if stage.first else None, drop_path=teacher_drop_path)
            _stage(stage, objective, teaching, keep_heads, given)


def _stage(
    stage: 'Stage', objective: dict[str, Any], teaching: dict[str, Any], keep_heads: bool, given: '_Given'
) -> None:
    """One pre-training by TinyMIM."""
    from ..training.pretraining import tinymim as plan
    from ..training.pretraining_forms import load_teacher, tinymim_form

    recipe = given.recipe('tinymim')

    def form() -> 'nn.Module':
        teacher = load_teacher(stage.teacher, stage.weights, pair_of(given.options.img_size), **teaching)
        rate = recipe.drop_path_of(stage.student)
        return tinymim_form(stage.student, teacher, **objective, drop_path=rate, **given.shape_beside(teacher))

    said: dict[str, Any] = dict(
        objective, relations=list(objective['relations']), block=teaching['block'], teacher=stage.teacher,
        teacher_drop_path=teaching['drop_path'], teacher_weights=stage.weights and str(stage.weights),
    )  # fmt: skip
    _pretrain('tinymim', stage.student, form, plan, given, said, stage.output, keep_heads)


def mae(
    *,
    size: Annotated[Size, typer.Option(help='Of the encoder.')] = Size.tiny,
    mask_ratio: MaskRatio = 0.75,
    data_options: UnlabelledDataOptions,
    options: PretrainingOptions,
    training: TrainingOptions,
    run: RunOptions,
) -> None:
    """MAE as in MAE-Lite: an encoder learns to reconstruct hidden patches. The same command again resumes.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli pretrain mae ...
    """
    from functools import partial

    from ..training.pretraining import mae as plan
    from ..training.pretraining_forms import mae_form

    given = _Given(data_options, options, training, run)
    _pretrain(
        'mae', str(size), lambda: mae_form(str(size), **given.shape), partial(plan, mask_ratio=mask_ratio), given,
        dict(mask_ratio=mask_ratio),
    )  # fmt: skip


def d_mae(
    *,
    size: Annotated[Size, typer.Option(help='Of the encoder.')] = Size.tiny,
    teacher: Annotated[
        str, typer.Option(help='small, base or large with --teacher-weights; or a timm name, or a folder.')
    ] = 'base',
    teacher_weights: TeacherWeights = None,
    attention_blocks: Annotated[
        Counts, typer.Option(parser=read_counts, help='Whose attention is learned, from 1.', metavar='BLOCKS')
    ] = '12',  # type: ignore[assignment]  # typer parses the default, too
    hidden_layers: Annotated[
        Words,
        typer.Option(
            parser=read_words, help='Whose tokens are learned, from 0; the depth is the final norm.', metavar='LAYERS'
        ),
    ] = '',  # type: ignore[assignment]
    mask_ratio: MaskRatio = 0.75,
    data_options: UnlabelledDataOptions,
    options: PretrainingOptions,
    training: TrainingOptions,
    run: RunOptions,
) -> None:
    """D-MAE: MAE beside a large MAE encoder, whose attention it learns. The same command again resumes.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli pretrain d_mae ...
    """
    from functools import partial

    from ..training.pretraining import d_mae as plan
    from ..training.pretraining_forms import d_mae_form, load_teacher

    layers, given = _layers(hidden_layers), _Given(data_options, options, training, run)

    def form() -> 'nn.Module':
        taught_by = load_teacher(teacher, teacher_weights, pair_of(options.img_size), block=1)
        return d_mae_form(str(size), taught_by.vit, attention_blocks, layers, **given.shape_beside(taught_by))

    said: dict[str, Any] = dict(
        mask_ratio=mask_ratio, attention_blocks=list(attention_blocks), hidden_layers=list(layers), teacher=teacher,
        teacher_weights=teacher_weights and str(teacher_weights),
    )  # fmt: skip
    _pretrain('d_mae', str(size), form, partial(plan, mask_ratio=mask_ratio), given, said)


def mocov3(
    *, data_options: UnlabelledDataOptions, options: PretrainingOptions, training: TrainingOptions, run: RunOptions
) -> None:
    """MoCo v3 as in MAE-Lite: two views of an image get similar features; tiny only. The same command again resumes.

    Several processes, on CUDA only: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli pretrain mocov3 ...
    """
    from ..training.pretraining import mocov3 as plan
    from ..training.pretraining_forms import mocov3_form

    given = _Given(data_options, options, training, run)
    _pretrain('mocov3', 'tiny', lambda: mocov3_form(**given.shape), plan, given, {})


class _Given(NamedTuple):
    """The options that all of these commands have."""

    data_options: UnlabelledDataOptions
    options: PretrainingOptions
    training: TrainingOptions
    run: RunOptions

    @property
    def shape(self) -> dict[str, Any]:
        """Image and patch size, None for those of the form."""
        return dict(img_size=pair_of(self.options.img_size), patch_size=self.options.patch_size)

    def shape_beside(self, teacher: 'RelationEncoder') -> dict[str, Any]:
        """Image and patch size of a student: what the options say, or else its teacher's."""
        embed: Any = teacher.vit.patch_embed
        own = {key: value for key, value in self.shape.items() if value is not None}
        return {**dict(img_size=tuple(embed.img_size), patch_size=tuple(embed.patch_size)), **own}

    def recipe(self, method: str) -> 'Recipe':
        from ..training.recipes import PRETRAINING

        return self.training.changed(PRETRAINING[f'{method}_small' if self.options.small else method])

    @property
    def data(self) -> list[str]:
        """What the command line calls the images."""
        root = self.data_options.root
        return [self.data_options.data, *(() if root is None else ('--root', str(root)))]

    def dataset(self) -> 'ImageDataset':
        return unlabelled_images(self.data_options, self.run.seed)


def _pretrain(
    kind: str,
    size: str,
    make: Callable[[], 'nn.Module'],
    plan: Callable[..., 'Pretraining'],
    given: _Given,
    details: dict[str, Any],
    output: Path | None = None,
    keep_heads: bool = False,
) -> None:
    """Make the form, train it, and write what results."""
    import torch

    from ..common.processes import Processes
    from ..downstream.reports.pretraining import write_pretrained
    from ..training.pretraining_forms import encoder_of

    quiet_logs()
    output = output or given.options.output
    if not given.options.dry_run:
        _check_folders(output)
    with processes() as first:
        say = printer() if first else (lambda text: None)
        dataset = given.dataset()
        torch.manual_seed(given.run.seed)
        form = make()
        planned = plan(form, dataset, given.recipe(kind), **given.training.settings(given.run, say))
        if given.options.dry_run:
            say(planned.estimate().words)
            return
        result = planned.train(output)
        if first:
            write_pretrained(
                output, kind, result, form, encoder_of(form, size, keep_heads), dataset,
                data=given.data, seed=given.run.seed, details=details, say=say,
            )  # fmt: skip
        Processes().wait()  # the next stage of a chain reads what was written


def _check_folders(output: Path) -> None:
    """See that the models can be written that a pre-training ends with."""
    from ..downstream.reports.pretraining import FINETUNE
    from ..hub.folder import check_folder

    for name in ('model', FINETUNE):
        check_folder(output / name)


def _layers(words: Words) -> tuple[int, ...]:
    if not all(word.isascii() and word.isdigit() for word in words):
        raise typer.BadParameter(f"--hidden-layers takes numbers from 0, such as 6,12, not '{words}'.")
    return tuple(map(int, words))
