"""Features of images: each image passes the backbone exactly once per view, and features are cached on request.

Shape legend: `N` images, `D` features of an image, `B` batch.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import timm
import torch
from torch import nn
from tqdm import tqdm

import tinyvit_zoo
from tinyvit_zoo.common.determinism import exact_cudnn, in_order
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import described, json_hash, settings_of, state_hash
from tinyvit_zoo.common.processes import Processes
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.transforms import augmentation, eval_transform, own_dtype

from .batches import ImageBatches, check_finite, draws
from .cache import Cache
from .layers import feature_function
from .shards import Shard, cut

__all__ = ['Features', 'extract', 'untouched']

CPU_BATCH_SIZE = 32
LARGEST_BATCH_SIZE = 1024
IMAGES_PER_SHARD = 256  # approximately: a shard is a number of whole batches
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Features:
    """Features of a data set.

    Attributes:
        values: (N, D), or (views, N, D) for several views; float32 on the CPU, whatever dtype they were computed in.
        labels: (N,) int64, indices into `classes`.
        classes: Names.
        key: sha256 of everything the values depend on.
        folder: Of the cache, or None.
    """

    values: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    key: str
    folder: Path | None = None

    @property
    def D(self) -> int:  # noqa: N802  the field's name
        return self.values.shape[-1]

    def __len__(self) -> int:
        return len(self.labels)


def extract(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    views: int = 1,
    layers: str = 'pooled',
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    cache: str | Path | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
    transform: Callable | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Features:
    """Pass every image through the backbone, once per view.

    Batches follow the position in the data set, so the values do not depend on workers, on the number of processes, or
    on interruptions. Processes started by `torchrun` or `accelerate launch` share whole shards of about 256 images.

    Args:
        model: Any timm model. It is moved to `device` and otherwise left unchanged, which its hash proves.
        dataset: With or without a transform.
        views: 1 for one view by evaluation, or the number of augmented views.
        layers: 'pooled', 'pre_logits' or 'last:N'; see `layers.feature_function`.
        dtype: float32, or bfloat16 by autocast, which also halves the cache.
        batch_size: None for 32 on the CPU and, on CUDA, the largest power of two up to 1024 that takes at most half of
            the memory, found with blank images.
        cache: Folder for features. A killed run is resumed from its last whole shard.
        device: None for the model's.
        workers: Processes that read images.
        transform: Replaces that of the data set. None for the data set's or, if it has none, the model's own (views=1)
            or `transforms.augmentation` (more views). A transform that draws random numbers (from torch, NumPy's global
            generator or `random`) for the first image gets its own seed for each (seed, position, view).
        seed: Of random transforms.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        EvaluationError: If settings do not fit, an image cannot be read, its features are not finite, or the cache
            cannot be written.
    """
    if dtype not in DTYPES or views < 1 or not len(dataset) or (batch_size is not None and batch_size < 1):
        raise EvaluationError('Features need an image, a view and a batch size of at least 1, and float32 or bfloat16.')
    processes = Processes()
    device = processes.own_device(device, model)
    transform = transform or dataset.transform or (augmentation(model) if views > 1 else eval_transform(model))
    drawn = seed if draws(transform, dataset.image(0)) else None
    if cache is not None:
        _check_repr(transform)
    with untouched(model.to(device)) as weights, exact_cudnn():
        forward = _forward(model, layers, dtype, device)
        parts = _key_parts(model, weights, dataset, transform, layers, dtype, device, drawn)
        single = ImageBatches(dataset, transform, drawn, batch_size=1, workers=0)
        parts['batch_size'] = batch_size or processes.from_first(
            lambda: _find_batch_size(forward, single, device, cache, parts)
        )
        store = None if cache is None else Cache(cache, parts)
        batches = ImageBatches(dataset, transform, drawn, parts['batch_size'], workers)
        shards = cut(len(dataset), _shard_size(parts['batch_size']), views)
        # One process decides for all: between two looks at the cache, another run may write a shard.
        missing = processes.from_first(lambda: [s for s in shards if store is None or store.read(s) is None])
        mine = missing[processes.rank :: processes.number]
        made = _make(forward, batches, mine, store, device, progress and processes.rank == 0)
    values = _collect(shards, made, store, processes).float().reshape(views, len(dataset), -1)
    return Features(
        values=values[0] if views == 1 else values,
        labels=torch.from_numpy(dataset.labels.copy()),
        classes=dataset.classes,
        key=json_hash({**parts, 'views': views}),
        folder=None if store is None else store.folder,
    )


@contextmanager
def untouched(model: nn.Module) -> Iterator[str]:
    """A block with the model in eval mode, unchanged at the end: same modes, same hash. Yields the hash.

    Raises:
        EvaluationError: If weights or statistics of the model differ when the block ends without an error.
    """
    modes = {module: module.training for module in model.modules()}
    before = state_hash(model)
    model.eval()
    try:
        yield before
        if state_hash(model) != before:
            raise EvaluationError(
                f'{type(model).__name__} changed its own weights or statistics while it was evaluated: its forward '
                'must not write to parameters or buffers in eval mode.'
            )
    finally:
        for module, training in modes.items():
            module.training = training


def _shard_size(batch_size: int) -> int:
    """Images of a shard: whole batches."""
    return max(1, IMAGES_PER_SHARD // batch_size) * batch_size


def _key_parts(
    model: nn.Module,
    weights: str,
    dataset: ImageDataset,
    transform: Callable,
    layers: str,
    dtype: torch.dtype,
    device: torch.device,
    seed: int | None,
) -> dict[str, Any]:
    """Everything that the values depend on, except the batch size."""
    versions = {package.__name__: package.__version__ for package in (torch, timm, tinyvit_zoo, PIL)}
    return dict(
        weights=weights,
        model=settings_of(model),
        transform=described(transform),
        seed=seed,
        data=dataset.fingerprint(),
        layers=layers,
        dtype=str(dtype),
        device=device.type,
        versions=versions,
    )


def _check_repr(transform: Callable) -> None:
    """Refuse a transform whose text would be the same for other settings, or differ between runs."""
    text = described(transform)
    if ' at 0x' in text or 'Lambda()' in text:
        raise EvaluationError(
            'Features cannot be cached, as the repr of the transform does not show its settings: define one, or use '
            "torchvision's or timm's classes instead of functions."
        )


def _forward(
    model: nn.Module, layers: str, dtype: torch.dtype, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from images (B, C, H, W) to features (B, D) of `dtype`."""
    features = feature_function(model, layers)
    own = own_dtype(model)

    @torch.inference_mode()
    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return features(images.to(device, own)).to(dtype)

    return forward


def _make(
    forward: Callable[[torch.Tensor], torch.Tensor],
    batches: ImageBatches,
    shards: list[Shard],
    store: Cache | None,
    device: torch.device,
    progress: bool,
) -> dict[Shard, torch.Tensor]:
    """Compute shards, (images, D) each; they go to the store if there is one, and are returned otherwise."""
    made = {}
    total = sum(shard.stop - shard.start for shard in shards)
    with (
        tqdm(total=total, desc='features', unit='image', disable=None if progress else True) as bar,
        closing(in_order(forward, batches.load(shards), device)) as results,
    ):
        for shard in shards:
            values = []
            for positions in shard.batches(batches.batch_size):
                values.append(next(results))
                check_finite(values[-1], batches.dataset, positions)
                bar.update(len(positions))
            if store is None:
                made[shard] = torch.cat(values)
            else:
                store.write(shard, torch.cat(values))
    return made


def _collect(
    shards: list[Shard], made: dict[Shard, torch.Tensor], store: Cache | None, processes: Processes
) -> torch.Tensor:
    """Values of all shards in order, on every process."""
    if store is None:
        made = processes.gather(made)
        return torch.cat([made[shard] for shard in shards])
    processes.wait()
    values = []
    for shard in shards:
        found = store.read(shard)
        if found is None:
            raise EvaluationError(
                f'{store.path(shard)} is missing or damaged: keep the cache on a disk that every process sees, and run '
                'again.'
            )
        values.append(found)
    return torch.cat(values)


def _find_batch_size(
    forward: Callable[[torch.Tensor], torch.Tensor],
    single: ImageBatches,
    device: torch.device,
    cache: str | Path | None,
    parts: dict[str, Any],
) -> int:
    """The batch size of an earlier run with this cache, or else the largest that fits; `single` loads one image."""
    if device.type != 'cuda':
        return CPU_BATCH_SIZE
    if cache is not None:
        for path in sorted(Path(cache).glob('*/key.json')):
            earlier = json.loads(path.read_text())
            if {**parts, 'batch_size': earlier.get('batch_size')} == earlier:
                return earlier['batch_size']
    size, shape = 1, next(single.load([Shard(0, 0, 0, 1)])).shape[1:]
    while size < LARGEST_BATCH_SIZE and _fits(forward, (2 * size, *shape), device):
        size *= 2
    torch.cuda.empty_cache()
    return size


def _fits(forward: Callable, shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether a batch of this shape takes at most half of the memory."""
    torch.cuda.reset_peak_memory_stats(device)
    try:
        forward(torch.zeros(shape))
    except torch.cuda.OutOfMemoryError:
        return False
    return torch.cuda.max_memory_allocated(device) <= torch.cuda.get_device_properties(device).total_memory / 2
