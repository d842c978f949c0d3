"""What `analyze hard-samples` leaves: the list of kept images, a table of the others, and their share by class."""

import errno
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.paths import read_json
from tinyvit_zoo.common.text import count_of, reason
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.subsets import write_kept

from ..analysis.hard_samples import HardSamples
from ..results import RESULTS, record, write
from . import plots

__all__ = ['check_list', 'hard_words', 'write_hard']

EVALUATOR = 'analyze hard-samples'


def check_list(path: Path) -> None:
    """See that a list and its results can be written, before a teacher works for hours. Makes missing folders.

    Raises:
        EvaluationError: If they cannot, or the folder has the results of another evaluator.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as e:
        raise EvaluationError(f'{path} cannot be written ({reason(e)}): choose another file.') from e
    results = path.parent / RESULTS
    if path == results or (results.exists() and _evaluator(results) != EVALUATOR):
        raise EvaluationError(f'{results} would be replaced: choose a file in another folder, such as hard/kept.json.')


def _evaluator(results: Path) -> str | None:
    """Whose results they are; None if that cannot be read."""
    try:
        return read_json(results).get('evaluator')
    except (OSError, ValueError, AttributeError):
        return None


def hard_words(found: HardSamples, dataset: ImageDataset) -> str:
    """How many images are hard, and by what."""
    count, n = int(found.hard.sum()), len(found.positions)
    views = 'one view of each' if found.views == 1 else f'most of {found.views} views of each'
    drawn = '' if n == len(dataset) else f', drawn from {len(dataset):,}'
    return (
        f'Label outside the top {found.top}: {count:,} of {count_of(n, "image")} ({count / n:.1%}) of {dataset.name} '
        f'({dataset.split}){drawn}, by {views}.'
    )


def write_hard(
    path: Path,
    found: HardSamples,
    dataset: ImageDataset,
    teacher: Mapping[str, Any],
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Write the list for `--subset`, and beside it results.json, a table of the hard images and a figure, both under
    the name of the list.

    Args:
        path: JSON file. Last, so that a list is there only with its results.
        found: What is hard.
        dataset: All images. Of those that the teacher has not seen none is kept.
        teacher: Who says so, in plain values.
        seed: Of the data set's splits, and of the draw of the images.
        say: Prints a line.

    Raises:
        EvaluationError: If something cannot be written.
    """
    hard = found.positions[found.hard]
    kept = np.zeros(len(dataset), bool)
    kept[found.positions[~found.hard]] = True
    names, labels = readable(dataset.classes), dataset.labels[found.positions]
    rows = [
        dict(
            position=i, image=dataset.describe(i), label=int(dataset.labels[i]), name=names[dataset.labels[i]],
            outside=int(outside), views=found.views, guess=names[guess],
        )
        for i, outside, guess in zip(
            hard.tolist(), found.outside[found.hard], found.guesses[found.hard], strict=True
        )
    ]  # fmt: skip
    inside = [100 * float(1 - found.hard[labels == label].mean()) for label in np.unique(labels)]
    figure = plots.per_class_bars(
        np.array(inside), [names[label] for label in np.unique(labels)],
        title=f'Images whose label is in the top {found.top} ({dataset.name}, {dataset.split})',
        label='kept, % of the class',
    )  # fmt: skip
    about = record(
        EVALUATOR, model=None, dataset=dataset, seed=seed, top=found.top, views=found.views, teacher=dict(teacher),
        images=len(found.positions), hard=len(hard), share_hard=len(hard) / len(found.positions),
        kept=int(kept.sum()), list=path.name,
    )  # fmt: skip
    write(path.parent, about, tables={path.stem: rows}, figures={path.stem: figure}, say=say)
    write_kept(path, dataset, np.flatnonzero(~kept), about=about)
    say(f'To train without them: --subset {shlex.quote(str(path))}')
