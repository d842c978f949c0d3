"""Checks of a store: is every record whole, is this the data, are these the views, would the teacher say it again?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.counter_rng import child_key, uniform
from ..common.errors import EvaluationError
from ..data.image_dataset import ImageDataset
from ..data.replay import ModelInput, ReplayedViews, ViewSpec, image_crc32
from .record import SoftLabels
from .save import check_finite, classes_hash, library_versions, view_batches
from .store import FINGERPRINTS, Epoch, Store
from .stored_views import is_converted, records_of, rows_of, stored_views
from .teacher import Teacher

__all__ = ['Agreement', 'check_data', 'check_records', 'check_teacher', 'check_views']

CHUNK = 4096


@dataclass(frozen=True)
class Agreement:
    """How a teacher's output of today compares with what is stored.

    Attributes:
        views: Number of views that were computed again.
        error: Mean absolute difference of the K probabilities, class by class of the stored ones.
        other_ids: Share of the K stored classes that are not among the K most probable ones now.
        largest: Largest difference of one probability.
    """

    views: int
    error: float
    other_ids: float
    largest: float


def check_data(store: Store, dataset: ImageDataset) -> None:
    """Refuse a data set that is not the store's. Raises: EvaluationError: With both values."""
    if is_converted(store.info):
        rows_of(store, dataset)
        return
    kept = store.place.folder / FINGERPRINTS if store.place.is_local else None
    store.info.check(
        store.place, images=len(dataset), classes=len(dataset.classes), classes_sha256=classes_hash(dataset),
        fingerprint=dataset.fingerprint(kept),
    )  # fmt: skip


def check_records(store: Store, epochs: Sequence[int]) -> int:
    """Read every record of some epochs; returns how many. Raises: EvaluationError: At the first damaged one."""
    for number in epochs:
        epoch = store.epoch(number)
        for start in range(0, store.info.images, CHUNK):
            epoch.read(np.arange(start, min(start + CHUNK, store.info.images)))
    return store.info.images * len(epochs)


def check_views(store: Store, dataset: ImageDataset, epochs: Sequence[int], share: float = 1.0) -> int:
    """Make the views again that carry a checksum of their image; returns how many. Converted ones carry none.

    Args:
        store: The store.
        dataset: Its data set.
        epochs: Numbers of epochs.
        share: Of those views; at least one of each epoch.

    Raises:
        EvaluationError: If an image is another one than when the store was saved; the message names it, and the
            libraries' versions then and now.
    """
    if is_converted(store.info):
        return 0
    spec, made = ViewSpec.from_settings(store.info.views), 0
    for number in epochs:
        epoch = store.epoch(number)
        views = ReplayedViews(dataset, spec, store.info.seed, number)
        marked = [p for p in range(store.info.images) if epoch.image_crc32(p) is not None]
        for i in _some(store.info.seed, number, len(marked), share) if marked else ():
            same_view(epoch, dataset, marked[i], image_crc32(views.view(marked[i])[1]))
            made += 1
    return made


def same_view(epoch: Epoch, dataset: ImageDataset, position: int, crc32: int) -> None:
    """Refuse a view whose image is not the one that the teacher saw.

    Raises:
        EvaluationError: With the image, and the versions of libraries then and now.
    """
    known = epoch.image_crc32(position)
    if known is not None and known != crc32:
        then, now = (_versions(found) for found in (epoch.info.libraries, library_versions()))
        advice = f'use the versions that the labels were saved with ({then}; here are {now})'
        if then == now:
            advice = f'the versions are those that the labels were saved with ({then}), so put the image back'
        raise EvaluationError(
            f'The view of {dataset.describe(position)} in epoch {epoch.number} is not the one that the teacher saw: '
            f'{advice}, or save the labels again.'
        )


def _versions(libraries: Mapping[str, str]) -> str:
    return ', '.join(f'{name} {version}' for name, version in sorted(libraries.items())) or 'unknown'


def check_teacher(
    store: Store,
    dataset: ImageDataset,
    teacher: Teacher,
    epochs: Sequence[int],
    share: float = 0.01,
    batch_size: int = 64,
    workers: int = 0,
) -> Agreement:
    """Let a teacher see a share of the views again, at least one of each epoch, and compare.

    Converted stores do not know the weights of their teacher: there the difference alone tells whether it is the one.

    Raises:
        EvaluationError: If it is not the teacher whose labels are stored, its output is not a number, an image cannot
            be read, or there is no epoch to ask for.
    """
    if not epochs:
        raise EvaluationError('A teacher is asked about the views of an epoch at least.')
    if not is_converted(store.info):
        store.info.check(store.place, teacher_sha256=teacher.sha256, precision=teacher.precision)
    made = stored_views(store, dataset, ModelInput(teacher.size, teacher.mean, teacher.std))
    views, error, other, largest = 0, 0.0, 0, 0.0
    with teacher.ready():
        for number in epochs:
            epoch, positions = store.epoch(number), _some(store.info.seed, number, store.info.images, share)
            places = [(number, position) for position in positions]
            for batch in view_batches(teacher, made, places, batch_size, workers):
                stored = epoch.read(records_of(made, batch.position.numpy()))
                probabilities = teacher.logits(batch.image).softmax(dim=1).cpu().numpy()
                check_finite(probabilities, batch.position, teacher, dataset)
                far, others = _compare(stored, probabilities)
                views, error, other = views + len(far), error + float(far.sum()), other + others
                largest = max(largest, float(far.max()))
    return Agreement(views, error / (views * store.info.k), other / (views * store.info.k), largest)


def _compare(stored: SoftLabels, probabilities: np.ndarray) -> tuple[np.ndarray, int]:
    """Differences (n, K) of the stored probabilities from (n, C), and how many stored classes are no longer among K."""
    ids = stored.ids.astype(np.int64)
    now = np.take_along_axis(probabilities, ids, 1)
    # A class is out if K others are more probable; equal ones may change places.
    kth = np.sort(probabilities, axis=1)[:, -ids.shape[1]][:, None]
    return np.abs(now - stored.probabilities), int((now < kth).sum())


def _some(seed: int, epoch: int, images: int, share: float) -> list[int]:
    """A share of so many places, the same ones each time; at least one."""
    if not 0 < share <= 1:
        raise EvaluationError(f'The share of views must be above 0 and at most 1, not {share:g}.')
    drawn = uniform(child_key(seed, epoch, images), images)
    return np.sort(drawn.argsort()[: max(1, round(share * images))]).tolist()
