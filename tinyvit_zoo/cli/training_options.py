"""Options that the commands that train have in common: changes of the recipe, and how it is run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .evaluator_options import load_backbone
from .options import RunOptions, find_device, origin_of

if TYPE_CHECKING:
    from torch import nn

    from ..training.loop import Observer, RunSettings
    from ..training.recipes import Recipe

__all__ = [
    'DryRun',
    'GradientNormsOption',
    'Precision',
    'ReserveOptions',
    'TeacherOptions',
    'TrainingOptions',
    'draw_gradients',
    'gradient_observer',
]

DryRun = Annotated[
    bool, typer.Option('--dry-run', help='Take two steps, print steps, hours and memory, and write nothing.')
]
Precision = StrEnum('Precision', ['no', 'bf16', 'fp16'])

GradientNormsOption = Annotated[
    bool,
    typer.Option(
        '--gradient-norms', help="Write the norm of each layer's gradient at each update, and plot them at the end."
    ),
]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What of a recipe is changed, and how it is run."""

    epochs: Annotated[
        int | None, typer.Option('--epochs', min=1, help="Instead of the recipe's; the warm-up keeps its share.")
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            '--batch-size',
            min=1,
            help="Images of an update, instead of the recipe's; its learning rate grows with it.",
            metavar='N',
        ),
    ] = None
    micro_batch: Annotated[
        int | None,
        typer.Option('--micro-batch', min=1, help='Images of a forward pass of a process.', metavar='N'),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option('--lr', min=0.0, max=1e6, help='Learning rate of an update, whatever the batch size.'),
    ] = None
    drop_path: Annotated[
        float | None, typer.Option('--drop-path', min=0.0, max=0.99, help="Instead of the recipe's.")
    ] = None
    precision: Annotated[Precision | None, typer.Option('--precision', help='Default: bf16 on CUDA, else no.')] = None
    save_minutes: Annotated[
        float,
        typer.Option(
            '--save-minutes', min=0.0, help='Minutes between two states within an epoch; 0: after each update.'
        ),
    ] = 10.0
    compile: Annotated[bool, typer.Option('--compile', help='Compile the model with torch.compile.')] = False

    def changed(self, recipe: 'Recipe', **changes: Any) -> 'Recipe':
        """The recipe with what these options change, and with further changes that are not None."""
        own = dict(
            epochs=self.epochs,
            batch_size=self.batch_size,
            drop_path=None if self.drop_path is None else {'': self.drop_path},
        )
        recipe = recipe.changed(**{key: value for key, value in {**own, **changes}.items() if value is not None})
        return recipe if self.lr is None else recipe.changed(lr=self.lr * recipe.lr_batch / recipe.batch_size)

    def settings(
        self, run: RunOptions, say: Callable[[str], None], observer: 'Observer | None' = None
    ) -> 'RunSettings':
        """How the training is run."""
        return dict(
            micro_batch=self.micro_batch,
            precision=self.precision and str(self.precision),
            device=find_device(run.device) if run.device else None,
            workers=run.workers,
            seed=run.seed,
            save_minutes=self.save_minutes,
            compile=self.compile,
            say=say,
            observer=observer,
        )


class BlockRange(NamedTuple):
    """Blocks from 1, both ends included; prints as it is written."""

    first: int
    last: int

    def __str__(self) -> str:
        return f'{self.first}-{self.last}'


def read_blocks(text: str) -> BlockRange:
    """'9-11' -> (9, 11), '9' -> (9, 9). Usage error on anything else."""
    match = re.fullmatch(r'(\d{1,4})(?:-(\d{1,4}))?', str(text).strip())
    blocks = match and BlockRange(int(match[1]), int(match[2] or match[1]))
    if not blocks or not 1 <= blocks.first <= blocks.last:
        raise typer.BadParameter(f"takes blocks from 1 such as 9-11, or a single one, not '{text}'.")
    return blocks


@dataclass(frozen=True, kw_only=True)
class ReserveOptions:
    """Which blocks of the weights that a training starts from stay."""

    keep_blocks: Annotated[
        int | None,
        typer.Option(
            '--keep-blocks',
            min=0,
            help='Keep the first N blocks of the weights, and what is before them; the rest begins anew.',
            metavar='N',
        ),
    ] = None
    reset_blocks: Annotated[
        BlockRange | None,
        typer.Option(
            '--reset-blocks',
            parser=read_blocks,
            help='Reset these blocks to random weights; they count from 1, such as 9-11.',
            metavar='BLOCKS',
        ),
    ] = None

    def check(self, random: bool) -> None:
        """Usage error where the weights are random, or both options are given."""
        if self.keep_blocks is not None and self.reset_blocks is not None:
            raise typer.BadParameter('--keep-blocks and --reset-blocks exclude each other: leave one of them out.')
        if random and vars(self) != vars(ReserveOptions()):
            raise typer.BadParameter(
                '--keep-blocks and --reset-blocks are about weights, and this training starts from random ones: give '
                'weights, or leave them out.'
            )

    def apply(
        self, model: 'nn.Module', make_fresh: Callable[[], 'nn.Module'], say: Callable[[str], None]
    ) -> dict[str, Any] | None:
        """Begin the blocks anew that do not stay, and say so.

        Args:
            model: With its weights; changed in place.
            make_fresh: The same model with random weights.
            say: Prints a line.

        Returns:
            What was done, for results.json; None if nothing is asked for.

        Raises:
            EvaluationError: See `training.layer_reserve.reserve_layers`.
        """
        if self.keep_blocks is None and self.reset_blocks is None:
            return None
        from ..training.layer_reserve import LayerReserve, reserve_layers

        reserve = LayerReserve(self.keep_blocks, self.reset_blocks and (self.reset_blocks[0], self.reset_blocks[1]))
        depth = reserve_layers(model, make_fresh(), reserve)
        say(f'Layer reserve: {reserve.words(depth)}.')
        return reserve.facts(depth)


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """A teacher that sees what the student sees."""

    teacher: Annotated[
        str | None, typer.Option('--teacher', help='Any name that timm.create_model takes.', metavar='NAME')
    ] = None
    teacher_weights: Annotated[
        Path | None,
        typer.Option('--teacher-weights', help='Checkpoint instead of its pretrained weights.', metavar='FILE'),
    ] = None

    def load(self, student: 'nn.Module', seed: int) -> 'nn.Module | None':
        """The teacher for images of the student's size, in eval mode; None if none is asked for."""
        if self.teacher is None:
            if self.teacher_weights is not None:
                raise typer.BadParameter('--teacher-weights needs --teacher NAME, the model that they belong to.')
            return None
        from ..build import build_model
        from ..data.transforms import data_config

        own, size = (
            tuple(data_config(model)['input_size'][-2:])
            for model in (build_model(self.teacher, device='meta'), student)
        )
        return load_backbone(self.teacher, self.teacher_weights, True, None if size == own else size, seed)

    @property
    def origin(self) -> str:
        """Where its weights come from, as results say it."""
        return origin_of(self.teacher_weights, False, 0)


def gradient_observer(wanted: bool) -> 'Observer | None':
    """What writes the norms of gradients while a training runs, if that is asked for."""
    if not wanted:
        return None
    from ..downstream.analysis.gradients import GradientNorms

    return GradientNorms()


def draw_gradients(wanted: bool, output: Path, title: str, say: Callable[[str], None]) -> None:
    """Draw the norms that a training wrote, if that is asked for."""
    if wanted:
        from ..downstream.reports.gradients import write_gradients

        write_gradients(output, title, say)
