"""A chain of pre-trainings: what each stage results in teaches the next one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..common.errors import EvaluationError

__all__ = ['Stage', 'find_stages']

STUDENTS = ('base', 'small', 'tiny')


@dataclass(frozen=True)
class Stage:
    """One pre-training of a chain.

    Attributes:
        student: Size.
        teacher: Size or name, see `load_teacher`.
        weights: Of the teacher.
        output: Folder.
        first: Whether its teacher is one that was given.
    """

    student: str
    teacher: str
    weights: Path | None
    output: Path
    first: bool


def find_stages(
    student: str | None, teacher: str | None, weights: Path | None, chain: Sequence[str] | None, output: Path
) -> list[Stage]:
    """The stages of a chain such as large, base, small, tiny, in folders of their own; or the one of a single student.

    Where a teacher is given beside a chain, it is the one that the first name of the chain stands for.

    Raises:
        EvaluationError: If the options do not fit each other.
    """
    if chain is None:
        if student is None or teacher is None:
            raise EvaluationError('TinyMIM needs a student and its teacher: give --student and --teacher, or --chain.')
        return [Stage(student, teacher, weights, output, True)]
    students = list(chain[1:])
    if student is not None:
        raise EvaluationError('The students of a chain are its sizes: leave --student out.')
    if not students or not set(students) <= set(STUDENTS) or len(set(chain)) < len(chain):
        raise EvaluationError(
            f'A chain is a teacher and students of {", ".join(STUDENTS)}, such as large,base,small,tiny, not '
            f'{",".join(chain)}.'
        )
    stages = [Stage(students[0], teacher or chain[0], weights, output / students[0], True)]
    for before, size in pairwise(students):
        file = output / before / 'model' / 'model.safetensors'
        stages.append(Stage(size, before, file, output / size, False))
    if any(stage.teacher == 'tiny' for stage in stages):
        raise EvaluationError('A tiny student is the last of a chain: it teaches nobody.')
    return stages
