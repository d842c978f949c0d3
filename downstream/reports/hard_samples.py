"""What `analyze hard-samples` leaves: the list of kept images, a table of the others, and their share by class."""

import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.subsets import write_kept

from ..analysis.hard_samples import HardSamples
from ..results import record, write_csv
from . import plots

__all__ = ['check_list', 'hard_words', 'write_hard']


def check_list(path: Path) -> None:
    """See that a list can be written, before a teacher works for hours. Makes missing folders.

    Raises:
        EvaluationError: If it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as e:
        raise EvaluationError(f'{path} cannot be written ({e.strerror or e}): choose another file.') from e


def hard_words(found: HardSamples, dataset: ImageDataset) -> str:
    """How many images are hard, and by what."""
    count, n = int(found.hard.sum()), len(dataset)
    views = 'one view of each' if found.views == 1 else f'most of {found.views} views of each'
    return (
        f'{count:,} of {n:,} images ({count / n:.1%}) of {dataset.name} ({dataset.split}) have their label outside the '
        f'top {found.top}, by {views}.'
    )


def write_hard(
    path: Path,
    found: HardSamples,
    dataset: ImageDataset,
    teacher: Mapping[str, Any],
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Write the list for `--subset`, a table of the hard images under the same name with .csv, and a figure with .png.

    Args:
        path: JSON file.
        found: What is hard.
        dataset: All images.
        teacher: Who says so, in plain values.
        seed: Of the data set's splits.
        say: Prints a line.

    Raises:
        EvaluationError: If something cannot be written.
    """
    hard = np.flatnonzero(found.hard)
    names = readable(dataset.classes)
    rows = [
        dict(
            position=i, image=dataset.describe(i), label=int(dataset.labels[i]), name=names[dataset.labels[i]],
            outside=int(found.outside[i]), views=found.views, guess=names[found.guesses[i]],
        )
        for i in hard.tolist()
    ]  # fmt: skip
    inside = [100 * float(1 - found.hard[dataset.labels == label].mean()) for label in np.unique(dataset.labels)]
    figure = plots.per_class_bars(
        np.array(inside), [names[label] for label in np.unique(dataset.labels)],
        title=f'Images whose label is in the top {found.top} ({dataset.name}, {dataset.split})',
        label='kept, % of the class',
    )  # fmt: skip
    files: dict[Path, Callable[[Path], Any]] = {
        path.with_suffix('.csv'): partial(write_csv, rows),
        path.with_suffix('.png'): partial(figure.savefig, dpi=figure.dpi),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, fill in files.items():
            with new_file(file) as new:
                fill(new)
    except OSError as e:
        raise EvaluationError(
            f'{path} cannot be written ({e.strerror or e}): make room, or choose another file.'
        ) from e
    about = record('hard-samples', model=None, dataset=dataset, seed=seed, top=found.top, views=found.views,
                   teacher=dict(teacher), hard=len(hard))  # fmt: skip
    write_kept(path, dataset, hard, about=about)
    say(f'Written: {path}, {", ".join(file.name for file in files)}')
    say(f'To train without them: --subset {path}')
