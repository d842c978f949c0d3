"""Linear probe: a whole grid of classifiers on a frozen backbone for one pass of the images per epoch.

The protocol is MoCo v3's (main_lincls.py; also TinyViT's, table 5): weights from N(0, .01), SGD with momentum .9, batch
1024, 90 epochs, learning rate base * batch / 256 with a cosine to 0 by epoch and no warm-up, backbone in eval mode,
random resized crops and flips. MoCo v3 reports the best epoch on the test images; here a held-out part of the training
images chooses the head. Grids over layers are DINOv2's (eval/linear.py).

Shape legend: `N` images, `D` width of a layer, `H` heads, `K` classes, `E` epochs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from tinyvit_zoo.common.counter_rng import child_key, permutations
from tinyvit_zoo.common.determinism import exact_cudnn
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import settings_of, tensors_hash
from tinyvit_zoo.common.per_class import mean_per_class
from tinyvit_zoo.common.processes import Processes
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.split import check_labels

from .classifiers.choice import Choice, edges
from .classifiers.linear_heads import LinearHeads, Setting, grid
from .classifiers.probe_checkpoint import Checkpoint
from .features.extraction import untouched
from .features.views import Backbone, probe_transforms

__all__ = ['BATCH_SIZE', 'EPOCHS', 'HeadResult', 'ProbeResult', 'cached', 'live']

EPOCHS = 90
BATCH_SIZE = 1024

# Batches of an epoch: by layer the features of this process's part, their targets, and the size of the whole batch.
Batches = Callable[[int], Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, int]]]


@dataclass(frozen=True)
class HeadResult:
    """A head on the held-out images.

    Attributes:
        setting: Its learning rate (for a batch of 256), weight decay and layer.
        last: Accuracy in % after the last epoch; NaN if the head diverged.
        best: Highest accuracy in % after any epoch; the head of that epoch is not kept.
        best_epoch: The first epoch with that accuracy, from 1; 0 if there is none.
        loss: Mean cross-entropy after the last epoch; NaN if the head diverged.
        diverged: Its values are no longer finite, so it cannot be chosen.
    """

    setting: Setting
    last: float
    best: float
    best_epoch: int
    loss: float
    diverged: bool


@dataclass(frozen=True)
class ProbeResult:
    """A linear probe.

    Attributes:
        heads: All heads of the grid.
        chosen: Index of the chosen head: the most accurate one on the held-out images after the last epoch; among equal
            ones that with the lowest loss.
        choice: Whether others were as good, or a setting of the chosen one is the smallest or largest.
        test: Accuracy in % of the chosen head on the test images, after the last epoch.
        mean_per_class: The same with every class counting the same.
        predictions: (number of test images,) int64, of the chosen head.
        weight: (K, D) float32 of the chosen head.
        bias: (K,) float32.
        history: (E, H) float64, accuracy in % on the held-out images.
        batch_size: The one used, at most the number of images.
        passes: Images passed through the backbone in this run, over all processes.
    """

    heads: tuple[HeadResult, ...]
    chosen: int
    choice: Choice
    test: float
    mean_per_class: float
    predictions: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    history: np.ndarray
    batch_size: int
    passes: int


def live(
    model: nn.Module,
    train: ImageDataset,
    held_out: ImageDataset,
    test: ImageDataset,
    *,
    lrs: Sequence[float],
    weight_decays: Sequence[float] = (0.0,),
    layers: Sequence[str] = ('pooled',),
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    scale: tuple[float, float] = (0.08, 1.0),
    dtype: torch.dtype = torch.float32,
    chunk: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    workers: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Train the grid with the backbone in the loop: each epoch passes new crops of every image once for all heads.

    A crop depends on (seed, image, epoch) alone. Processes of `torchrun` or `accelerate launch` share each batch.

    Args:
        model: Any timm model. It is moved to `device` and otherwise left unchanged, which its hash proves.
        train: Images to train on. Transforms of data sets are not used.
        held_out: Images that choose the head. They and the test images pass the backbone once.
        test: Images to test the chosen head on.
        lrs: Learning rates for a batch of 256 images.
        weight_decays: Of weights and biases.
        layers: See `features.layers.feature_function`.
        epochs: `E`.
        batch_size: Images of a step, over all processes.
        scale: Area of a crop as a share of the image; MoCo v3 uses (.05, 1) on transfer sets.
        dtype: float32, or bfloat16 by autocast; heads are float32.
        chunk: Images of a forward pass.
        seed: Of initial weights, order and crops.
        device: None for the model's.
        workers: Processes that read images.
        checkpoint: File written after every epoch, from which the run is resumed.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        EvaluationError: If settings or images cannot be used, the checkpoint is of another run, or all heads diverge.
    """
    settings, classes = grid(lrs, weight_decays, layers), len(train.classes)
    _check_run(epochs, batch_size, [train, held_out, test])
    batch_size, layers = min(batch_size, len(train)), list(dict.fromkeys(layers))
    processes = Processes()
    device = processes.own_device(device, model)
    with untouched(model.to(device)) as weights, exact_cudnn():
        cropped, plain = probe_transforms(model, scale)
        backbone = Backbone(model, layers, dtype, device, chunk, workers, processes)
        held = backbone.features(held_out, plain), torch.from_numpy(held_out.labels).to(device)
        heads = LinearHeads(settings, {k: v.shape[1] for k, v in held[0].items()}, classes, seed, device)
        labels = torch.from_numpy(train.labels).to(device)

        def batches(epoch: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, int]]:
            order = _order(seed, epoch, len(train))
            parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            mine = [np.array_split(part, processes.number)[processes.rank] for part in parts]
            features = backbone.views(train, cropped, seed, [[(epoch, i) for i in part.tolist()] for part in mine])
            for part, own, x in zip(parts, mine, features, strict=True):
                yield x, labels[torch.from_numpy(own).to(device)], len(part)

        run = dict(
            weights=weights, model=settings_of(model), train=train.fingerprint(), held_out=held_out.fingerprint(),
            transform=repr(cropped), settings=[str(s) for s in settings], epochs=epochs, batch_size=batch_size,
            dtype=str(dtype), seed=seed,
        )  # fmt: skip
        saved = Checkpoint(checkpoint, run) if checkpoint else None
        history = _train(heads, batches, held, epochs, batch_size, saved, len(train), progress and processes.rank == 0)
        outcomes, chosen = _choose(heads, history)
        last = Backbone(model, [settings[chosen].layer], dtype, device, chunk, workers, processes)
        tested = next(iter(last.features(test, plain).values()))
        passes = processes.gather({processes.rank: backbone.passes + last.passes})
    return _result(heads, outcomes, chosen, tested, test.labels, history, batch_size, sum(passes.values()))


def cached(
    train: Mapping[str, torch.Tensor],
    train_labels: np.ndarray,
    held_out: Mapping[str, torch.Tensor],
    held_out_labels: np.ndarray,
    test: Mapping[str, torch.Tensor],
    test_labels: np.ndarray,
    *,
    num_classes: int,
    lrs: Sequence[float],
    weight_decays: Sequence[float] = (0.0,),
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str = 'cpu',
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> ProbeResult:
    """The same grid on given features. With one view or a few of each image this is not MoCo v3's protocol.

    Args:
        train: By layer, (N, D), or (R, N, D) for R views of each image; epoch e uses view e modulo R. With the crops of
            `views.probe_transforms` and as many views as epochs it equals `live`.
        train_labels: (N,) int64.
        held_out: By layer, (number of held-out images, D).
        held_out_labels: int64.
        test: By layer, (number of test images, D).
        test_labels: int64.
        num_classes: `K`.
        lrs, weight_decays, epochs, batch_size, seed, checkpoint, progress: As in `live`.
        device: Of the training.

    Raises:
        EvaluationError: As in `live`, or if features are not finite or do not fit each other.
    """
    settings = grid(lrs, weight_decays, train)
    _check_counts(epochs, batch_size)
    train = {layer: x.to(device) if x.ndim == 3 else x[None].to(device) for layer, x in train.items()}
    parts = ((train, train_labels), (held_out, held_out_labels), (test, test_labels))
    for i, (features, labels) in enumerate(parts):
        check_labels(labels, num_classes, testing=i > 0)
        for layer, x in train.items():
            _check_cached(features, layer, x.shape[-1], len(labels))
    targets = torch.from_numpy(train_labels).to(device)
    batch_size = min(batch_size, len(targets))
    heads = LinearHeads(settings, {layer: x.shape[-1] for layer, x in train.items()}, num_classes, seed, device)
    processes = Processes()

    def batches(epoch: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, int]]:
        order = torch.from_numpy(_order(seed, epoch, len(targets))).to(device)
        for part in order.split(batch_size):
            mine = part.tensor_split(processes.number)[processes.rank]
            yield {layer: x[epoch % len(x), mine] for layer, x in train.items()}, targets[mine], len(part)

    held = {layer: held_out[layer].to(device) for layer in train}, torch.from_numpy(held_out_labels).to(device)
    run = dict(
        features=tensors_hash(train), held_out=tensors_hash({layer: held[0][layer] for layer in train}),
        labels=[train_labels.tolist(), held_out_labels.tolist()], num_classes=num_classes,
        settings=[str(s) for s in settings], epochs=epochs, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    saved = Checkpoint(checkpoint, run) if checkpoint else None
    history = _train(heads, batches, held, epochs, batch_size, saved, len(targets), progress and processes.rank == 0)
    outcomes, chosen = _choose(heads, history)
    return _result(heads, outcomes, chosen, test[settings[chosen].layer], test_labels, history, batch_size, 0)


def _check_counts(epochs: int, batch_size: int) -> None:
    if epochs < 1 or batch_size < 1:
        raise EvaluationError('A probe needs at least one epoch and at least one image per batch.')


def _check_run(epochs: int, batch_size: int, parts: Sequence[ImageDataset]) -> None:
    _check_counts(epochs, batch_size)
    for part in parts:
        if part.classes != parts[0].classes:
            raise EvaluationError(
                f'{part.name} ({part.split}) with {len(part.classes)} classes and {parts[0].name} ({parts[0].split}) '
                f'with {len(parts[0].classes)} differ in their classes: train and test on the same classes.'
            )
        check_labels(part.labels, len(part.classes), testing=part is not parts[0])


def _check_cached(features: Mapping[str, torch.Tensor], layer: str, width: int, images: int) -> None:
    x = features.get(layer)
    if x is None or x.shape[-1] != width or x.shape[-2] != images:
        found = 'none' if x is None else tuple(x.shape)
        raise EvaluationError(f'Features of {layer} must have the shape ({images}, {width}), not {found}.')
    if not x.isfinite().all():
        raise EvaluationError(f'Features of {layer} are not finite: use float32, and check the weights of the model.')


def _order(seed: int, epoch: int, images: int) -> np.ndarray:
    return permutations(child_key(seed, epoch), images)


def _train(
    heads: LinearHeads,
    batches: Batches,
    held_out: tuple[dict[str, torch.Tensor], torch.Tensor],
    epochs: int,
    batch_size: int,
    checkpoint: Checkpoint | None,
    images: int,
    progress: bool,
) -> torch.Tensor:
    """Train, from the checkpoint if there is one; (E, 2, H) float64, accuracy and loss after every epoch."""
    history = checkpoint.load(heads) if checkpoint else []
    with tqdm(total=epochs * images, desc='probe', unit='image', disable=None if progress else True) as bar:
        bar.update(len(history) * images)
        for epoch in range(len(history), epochs):
            factor = batch_size / 256 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            for features, targets, size in batches(epoch):
                heads.step(features, targets, size, factor)
                bar.update(size)
            history.append(torch.stack(heads.score(*held_out)))
            if history[-1].isnan().all():
                raise EvaluationError(
                    f'All heads have diverged after epoch {epoch + 1} of {epochs}: try smaller learning rates than '
                    f'{min(s.lr for s in heads.settings):g}.'
                )
            bar.set_postfix_str(f'held out {_highest(history[-1][0]):.2f} %')
            if checkpoint:
                checkpoint.save(heads, history)
    return torch.stack(history)


def _highest(accuracy: torch.Tensor) -> float:
    return accuracy.nan_to_num(-1).max().item()


def _choose(heads: LinearHeads, history: torch.Tensor) -> tuple[tuple[HeadResult, ...], int]:
    """The results of all heads, and the index of the chosen one."""
    outcomes = []
    for i, setting in enumerate(heads.settings):
        accuracy, loss = history[:, :, i].unbind(dim=1)
        known = accuracy.nan_to_num(-1)
        best = int(known.argmax())
        outcomes.append(
            HeadResult(
                setting=setting,
                last=accuracy[-1].item(),
                best=accuracy[best].item(),
                best_epoch=best + 1 if known[best] >= 0 else 0,
                loss=loss[-1].item(),
                diverged=bool(accuracy[-1].isnan()),
            )
        )
    finite = [i for i, outcome in enumerate(outcomes) if not outcome.diverged]
    return tuple(outcomes), max(finite, key=lambda i: (outcomes[i].last, -outcomes[i].loss))


def _describe_choice(outcomes: Sequence[HeadResult], chosen: int) -> Choice:
    setting = outcomes[chosen].setting
    tried = [outcome.setting for outcome in outcomes]
    return Choice(
        edges=(
            *edges('the learning rate', setting.lr, [s.lr for s in tried]),
            *edges('the weight decay', setting.weight_decay, [s.weight_decay for s in tried]),
        ),
        tied=sum(outcome.last == outcomes[chosen].last for outcome in outcomes),
        rule='that of the lowest loss',
    )


def _result(
    heads: LinearHeads,
    outcomes: tuple[HeadResult, ...],
    chosen: int,
    features: torch.Tensor,
    labels: np.ndarray,
    history: torch.Tensor,
    batch_size: int,
    passes: int,
) -> ProbeResult:
    weight, bias = heads.head(chosen)
    predictions = torch.addmm(bias, features.float().cpu(), weight.T).argmax(dim=1).numpy()
    return ProbeResult(
        heads=outcomes,
        chosen=chosen,
        choice=_describe_choice(outcomes, chosen),
        test=100 * float((predictions == labels).mean()),
        mean_per_class=mean_per_class(labels, predictions),
        predictions=predictions,
        weight=weight.numpy(),
        bias=bias.numpy(),
        history=history[:, 0].numpy(),
        batch_size=batch_size,
        passes=passes,
    )
