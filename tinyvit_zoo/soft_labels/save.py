"""The teacher's pass: its soft labels of every view of some epochs, written to a store."""

import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..common.errors import EvaluationError
from ..common.hashes import json_hash
from ..common.processes import Processes
from ..data.image_dataset import ImageDataset
from ..data.replay import Place, ReplayedView, ReplayedViews, ViewSpec
from .place import Place as StorePlace
from .record import FormName, SoftLabels
from .store import FINGERPRINTS, MOST_EPOCHS, Store, StoreInfo, shard_size_for
from .teacher import Teacher

__all__ = [
    'Estimate',
    'check_finite',
    'check_output',
    'classes_hash',
    'estimate',
    'library_versions',
    'save',
    'store_info',
    'view_batches',
]

LIBRARIES = ('numpy', 'pillow', 'timm', 'torch', 'torchvision')
TRIED = 2  # batches


class Estimate(NamedTuple):
    """What saving would take.

    Attributes:
        views: Images times epochs.
        bytes: Of the records.
        seconds: On this machine by this one process, from two batches.
    """

    views: int
    bytes: int
    seconds: float


def save(
    teacher: Teacher,
    dataset: ImageDataset,
    spec: ViewSpec,
    store: str | Path,
    epochs: Sequence[int],
    *,
    seed: int = 0,
    k: int = 100,
    form: FormName = 'exact',
    batch_size: int = 64,
    workers: int = 0,
    shard_size: int | None = None,
    progress: bool = True,
) -> Store:
    """Save the soft labels of every view of a data set for some epochs.

    A view depends on the seed, its epoch and position alone, and batches follow the positions of a shard: the store has
    the same bytes for any number of processes, workers and interruptions on one kind of machine. Processes started by
    `torchrun` or `accelerate launch` take whole shards. A killed run loses at most the shards in work and is resumed by
    the same call.

    Args:
        teacher: A classifier with the classes of the data set.
        dataset: N images.
        spec: Settings of the views.
        store: Folder; new, or of the same labels.
        epochs: Their numbers, from 0.
        seed: Of the run.
        k: Probabilities kept; as many as there are classes where those are fewer.
        form: See `record.Form`.
        batch_size: Images of a batch.
        workers: Processes that read images; 0 to read in this one.
        shard_size: Positions of a shard; None for 65,536, or 4096 for small data sets.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The store.

    Raises:
        EvaluationError: If teacher and data do not fit, an image cannot be read, a probability is not finite, the
            folder holds other labels, or there is no room.
    """
    if not len(dataset) or not epochs or batch_size < 1:
        raise EvaluationError('Soft labels need an image, an epoch and a batch size of at least 1.')
    if not 0 <= min(epochs) <= max(epochs) < MOST_EPOCHS:
        raise EvaluationError(f'Epochs are from 0 to {MOST_EPOCHS - 1}, not {min(epochs)} to {max(epochs)}.')
    processes = Processes()
    with teacher.ready():
        kept = StorePlace(store).folder / FINGERPRINTS
        info = store_info(teacher, dataset, spec, seed=seed, k=k, form=form, shard_size=shard_size, kept=kept)
        check_output(teacher, dataset, spec)
        opened = processes.from_first(lambda: Store.create(store, info))
        todo = processes.from_first(lambda: [(e, s) for e in epochs for s in opened.missing_shards(e)])
        mine = todo[processes.rank :: processes.number]
        views = sum(len(info.positions(shard)) for _, shard in mine)
        with _bar(views, progress and processes.rank == 0) as bar:
            for epoch, shard in mine:
                labels, images = _shard_labels(teacher, dataset, spec, info, (epoch, shard), batch_size, workers, bar)
                opened.write_shard(epoch, shard, labels, images)
    processes.wait()
    if processes.rank == 0:
        for epoch in epochs:
            opened.finish(epoch)
    processes.wait()
    return opened


def estimate(
    teacher: Teacher,
    dataset: ImageDataset,
    spec: ViewSpec,
    epochs: Sequence[int],
    *,
    k: int = 100,
    form: FormName = 'exact',
    batch_size: int = 64,
    workers: int = 0,
) -> Estimate:
    """What `save` would take; writes nothing.

    Raises:
        EvaluationError: See `save`.
    """
    with teacher.ready():
        info = store_info(teacher, dataset, spec, k=k, form=form)
        check_output(teacher, dataset, spec)
        places = [(0, i) for i in range(min((1 + TRIED) * batch_size, len(dataset)))]
        seconds, seen, start = 0.0, 0, time.perf_counter()
        views_of = _views(teacher, dataset, spec, 0)
        for number, batch in enumerate(view_batches(teacher, views_of, places, batch_size, workers)):
            teacher.labels(batch.image, info.k)
            if number or len(places) <= batch_size:  # the first batch pays for starting
                seconds, seen = seconds + time.perf_counter() - start, seen + len(batch.label)
            start = time.perf_counter()
    views = len(dataset) * len(epochs)
    return Estimate(views, views * info.record.size, views * seconds / seen)


def store_info(
    teacher: Teacher,
    dataset: ImageDataset,
    spec: ViewSpec,
    *,
    seed: int = 0,
    k: int = 100,
    form: FormName = 'exact',
    shard_size: int | None = None,
    kept: Path | None = None,
) -> StoreInfo:
    """What a store of these labels is made from; `kept` is a file for the fingerprint of the data set."""
    return StoreInfo(
        form=form, k=min(k, len(dataset.classes)), classes=len(dataset.classes), classes_sha256=classes_hash(dataset),
        teacher=teacher.name, teacher_sha256=teacher.sha256, precision=teacher.precision, views=spec.settings(),
        seed=seed, data=f'{dataset.name}, {dataset.split}', fingerprint=dataset.fingerprint(kept), images=len(dataset),
        shard_size=shard_size or shard_size_for(len(dataset)), libraries=library_versions(),
    )  # fmt: skip


def classes_hash(dataset: ImageDataset) -> str:
    """Hash of the names of a data set's classes in their order."""
    return json_hash({'classes': list(dataset.classes)})


def library_versions() -> dict[str, str]:
    """Versions of what makes views and computes labels, by name of the package."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # such as a fork under another name
            continue
    return found


def check_output(teacher: Teacher, dataset: ImageDataset, spec: ViewSpec) -> None:
    """Refuse a teacher that cannot teach, by what it says of the first image.

    Args:
        teacher: Inside its `ready`.
        dataset: With an image.
        spec: Settings of the views.

    Raises:
        EvaluationError: If it has other classes than the data, or its probabilities are not finite.
    """
    logits = teacher.logits(_views(teacher, dataset, spec, 0)[0].image[None])
    if logits.shape[1] != len(dataset.classes):
        raise EvaluationError(
            f'{teacher.name} has {logits.shape[1]} classes, {dataset.name} has {len(dataset.classes)}: they must be '
            'the same, so take a teacher of these classes.'
        )
    check_finite(logits.cpu().numpy(), [0], teacher, dataset)


def check_finite(
    output: np.ndarray, positions: Sequence[int] | torch.Tensor, teacher: Teacher, dataset: ImageDataset
) -> None:
    """Refuse logits or probabilities (n, C) of images at these positions that are not numbers."""
    wrong = np.flatnonzero(~np.isfinite(output).all(axis=1))
    if len(wrong):
        where = dataset.describe(int(positions[wrong[0]]))
        raise EvaluationError(f'{teacher.name} gives no finite probabilities for {where}: check its weights.')


def _shard_labels(
    teacher: Teacher,
    dataset: ImageDataset,
    spec: ViewSpec,
    info: StoreInfo,
    place: tuple[int, int],
    batch_size: int,
    workers: int,
    bar,
) -> tuple[SoftLabels, dict[int, int]]:
    """Labels of a shard, and the CRC32 of the images that carry one."""
    epoch, shard = place
    places = [(epoch, position) for position in info.positions(shard)]
    parts: list[SoftLabels] = []
    images: dict[int, int] = {}
    of_data = _views(teacher, dataset, spec, info.seed)
    for views in view_batches(teacher, of_data, places, batch_size, workers):
        labels = teacher.labels(views.image, info.k)
        check_finite(labels.probabilities, views.position, teacher, dataset)
        parts.append(labels)
        marked = zip(views.position.tolist(), views.crc32.tolist(), strict=True)
        images |= {position: crc for position, crc in marked if crc >= 0}
        bar.update(len(views.label))
    return SoftLabels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))), images


def _views(teacher: Teacher, dataset: ImageDataset, spec: ViewSpec, seed: int) -> ReplayedViews:
    return ReplayedViews(dataset, spec, seed, size=teacher.size, mean=teacher.mean, std=teacher.std)


def view_batches(
    teacher: Teacher, views: Dataset, places: Sequence[tuple[int, int]], batch_size: int, workers: int
) -> Iterator[ReplayedView]:
    """Batches of views as the teacher takes them, in the order of their places.

    Raises:
        EvaluationError: If an image cannot be read.
    """
    order = [[Place(*p) for p in places[i : i + batch_size]] for i in range(0, len(places), batch_size)]
    yield from DataLoader(
        views,
        batch_sampler=order,
        num_workers=workers,
        pin_memory=torch.device(teacher.device).type == 'cuda',
        generator=torch.Generator().manual_seed(0),  # leaves the global generator alone
    )


def _bar(views: int, shown: bool):
    from tqdm import tqdm

    return tqdm(total=views, desc='soft labels', unit='view', disable=None if shown else True)
