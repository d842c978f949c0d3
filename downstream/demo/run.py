"""The demo: train a TinyViT on small real images, save it, reload it, classify image files, use its features, and let
it teach a smaller one through stored soft labels.

All measurements are on held-out images, and the number of epochs is fixed in advance: held-out images affect no choice.

Shape legend: `B` batch, `S` = 32 pixels per side, `K` = 12 classes.
"""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_model_data_config
from timm.optim import param_groups_weight_decay
from torch import nn
from tqdm import tqdm

from tinyvit_zoo.checkpoints import CheckpointError
from tinyvit_zoo.classify import Classifier
from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.per_class import at_zero, mean_per_class, per_class_words
from tinyvit_zoo.data.image_file import load_image
from tinyvit_zoo.hub import save_folder

from ..results import record, write
from .comparison import EPISODES, NAMES, Comparison, compare_with_random, comparison_images
from .digits import CLASSES, SIZE, DemoImages, load_images, load_photos
from .figures import Epoch, contact_sheet, training_curves
from .hub_probe import weights_at_hand
from .student import EPOCHS as STUDENT_EPOCHS
from .student import teach_student

__all__ = ['predict', 'run_demo', 'train']

EPOCHS = 14
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
MAX_SHIFT = 3  # pixels
QUICK_EPOCHS = 2  # of the student, where the demo is shortened

PRETRAINED = 'tinyvit_5m_224'


def run_demo(
    output: str | Path = 'demo_output',
    epochs: int = EPOCHS,
    seed: int = 0,
    limit: int | None = None,
    photographs: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, save, reload, classify, compare the features with those of random weights, teach a student, and write the
    results.

    Args:
        output: Folder for the saved model, figures, some held-out images and results.json.
        epochs: Passes over the training images.
        seed: Of the split, the initial weights, the order and the augmentation.
        limit: Approximate number of digits, and of textures and episodes, for a quick look.
        photographs: Also compare the features on crops of photographs, a kind of image the model was not trained on.
        say: Prints a line.

    Returns:
        The content of results.json.

    Raises:
        RuntimeError: If the reloaded model gives different outputs.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    training, held_out = load_images(seed, limit)
    say(
        f'Real images from scikit-learn: {len(training)} to train on, {len(held_out)} held out '
        f'({int(held_out.is_digit.sum())} digits, {int((~held_out.is_digit).sum())} crops of the halves of two photos '
        'that are not used for training).'
    )
    model, history = _trained(training, held_out, epochs, seed, say)
    seconds = time.perf_counter() - start
    say(f'Training took {seconds:.0f} s.')
    reloaded, difference = save_and_reload(model, output / 'model', held_out, say)
    probabilities = predict(reloaded, held_out)
    contact_sheet(held_out, probabilities, output / 'contact_sheet.png', seed)
    training_curves(history, output / 'training.png')
    _classify_some(reloaded, held_out, output, say)
    classify_photos(say)
    pools = comparison_images(seed, limit, photographs)
    say('Accuracy with its features and with those of random weights, and the difference with its 95 % interval,')
    say('on digits that it has not seen' + (', and on photographs that it has not seen:' if photographs else ':'))
    with one_thread():
        comparison, figures = compare_with_random(
            output / 'model', reloaded, pools, seed, EPISODES if limit is None else limit, say
        )
    with torch.random.fork_rng(devices=[]), one_thread():
        taught = teach_student(
            reloaded, training, held_out, output / 'soft_labels', predict, seed,
            STUDENT_EPOCHS if limit is None else QUICK_EPOCHS, say,
        )  # fmt: skip
    results = record(
        'demo',
        model=reloaded,
        dataset={name: pool.images for name, pool in pools.items()},
        seed=seed,
        name=f'local-dir:{output / "model"}',
        epochs=epochs,
        training_images=len(training),
        held_out_images=len(held_out),
        **accuracies(probabilities, held_out),
        max_difference_after_reload=difference,
        training_seconds=round(seconds, 1),
        seconds=round(time.perf_counter() - start, 1),
        history=history,
        compared_with_random=comparison,
        student=taught.record,
    )
    rows = [
        {'data': name, **row, 'remarks': '; '.join(row['remarks'])} for name, rows in comparison.items() for row in rows
    ]
    write(
        output,
        results,
        tables=dict(compared_with_random=rows),
        figures=figures | dict(soft_labels=taught.figure),
        say=say,
    )
    say(summary(comparison))
    say(taught.words)
    return results


def _trained(
    training: DemoImages, held_out: DemoImages, epochs: int, seed: int, say: Callable[[str], None]
) -> tuple[nn.Module, list[Epoch]]:
    """The model after its last epoch, and what was measured after each."""
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = timm.create_model('tinyvit_5m_224', img_size=SIZE, num_classes=len(CLASSES))
        history = train(model, training, held_out, epochs, say)
        measured = accuracies(predict(model, held_out), held_out)
    digits, crops = (_in_words(measured, kind) for kind in ('digits', 'crops'))
    say(f'Held-out accuracy after epoch {epochs}: digits {digits}; photo crops {crops}.')
    return model, history


def _classify_some(model: nn.Module, held_out: DemoImages, output: Path, say: Callable[[str], None]) -> None:
    """Save some held-out images, and print what `tinyvit-zoo classify` prints for half of them."""
    files = save_some(held_out, output / 'held_out')
    say(f'In {output}: model/ (Hub-ready), contact_sheet.png, training.png, held_out/ ({len(files)} images).')
    images, trained = shlex.quote(f'{output}/held_out/'), shlex.quote(f'local-dir:{output}/model')
    say(f'tinyvit-zoo classify {images}*.png --model {trained} gives:')
    classify_files(model, files[::2], say)


def summary(comparison: Comparison) -> str:
    """One sentence on the first row of the digits: few-shot with the fewest images per class."""
    row = comparison['digits'][0]
    return (
        f'{row["task"]} on unseen digits: {row["a"]:.1f} % with the features of {NAMES[0]}, '
        f'{row["b"]:.1f} % with those of {NAMES[1]}.'
    )


def save_and_reload(
    model: nn.Module, folder: Path, images: DemoImages, say: Callable[[str], None] = print
) -> tuple[nn.Module, float]:
    """Save a model and create it again from the folder.

    Returns:
        The new model, and the largest difference of the logits.

    Raises:
        RuntimeError: If the outputs differ.
    """
    # The images already have the model's size: nothing to crop.
    save_folder(model, folder, label_names=CLASSES, tag='sklearn_digits_and_photos', data_config=dict(crop_pct=1.0))
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    difference = max_difference(model, reloaded, images)
    if difference >= 1e-6:
        raise RuntimeError(f'The model reloaded from {folder} gives other outputs (max difference {difference:g}).')
    say(
        f'timm.create_model({f"local-dir:{folder}"!r}, pretrained=True) gives the same outputs '
        f'(max difference {difference:g}).'
    )
    return reloaded, difference


def train(
    model: nn.Module, training: DemoImages, held_out: DemoImages, epochs: int, say: Callable[[str], None] = print
) -> list[Epoch]:
    """Train with AdamW and a one-cycle learning rate; leaves the model in eval mode.

    Args:
        model: (B, 3, S, S) -> (B, K), with timm's `no_weight_decay`.
        training: Training images, each shifted slightly at random every time.
        held_out: Images to measure the accuracy on after every epoch.
        epochs: Passes over `training`.
        say: Prints a line per epoch if there is no terminal for a progress bar.

    Returns:
        One record per epoch.
    """
    images = to_tensor(model, training)
    steps = len(images) // BATCH
    no_weight_decay: Any = model.no_weight_decay
    groups = param_groups_weight_decay(model, WEIGHT_DECAY, no_weight_decay())
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps, pct_start=0.2)
    history = []
    with tqdm(total=epochs * steps, desc='training', unit='step', disable=None) as bar:
        for epoch in range(epochs):
            model.train()
            total = 0.0
            for batch in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
                loss = F.cross_entropy(model(shift(images[batch])), training.targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update()
            measured = accuracies(predict(model, held_out), held_out)
            history.append(Epoch(total / steps, measured['digits_accuracy'], measured['crops_accuracy']))
            line = f'loss {history[-1].loss:.3f}, held-out digits {history[-1].digits:.1%}'
            bar.set_postfix_str(line)
            if bar.disable:
                say(f'  epoch {epoch + 1}/{epochs}: {line}')
    model.eval()
    return history


def to_tensor(model: nn.Module, images: DemoImages) -> torch.Tensor:
    """Images (N, 3, S, S) after the model's own preprocessing."""
    transform = create_transform(**dict(resolve_model_data_config(model), crop_pct=1.0), is_training=False)
    return torch.stack([transform(image) for image in images.images])


def shift(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S), each moved by up to MAX_SHIFT pixels in each direction; edges are repeated."""
    B, _, H, W = images.shape
    padded = F.pad(images, [MAX_SHIFT] * 4, mode='replicate')
    rows = torch.randint(2 * MAX_SHIFT + 1, (B, 1)) + torch.arange(H)
    cols = torch.randint(2 * MAX_SHIFT + 1, (B, 1)) + torch.arange(W)
    batch = torch.arange(B)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def predict(model: nn.Module, images: DemoImages) -> torch.Tensor:
    """Probabilities (N, K)."""
    model.eval()
    return torch.cat([model(batch).softmax(dim=1) for batch in to_tensor(model, images).split(256)])


@torch.inference_mode()
def max_difference(model: nn.Module, other: nn.Module, images: DemoImages) -> float:
    """Largest absolute difference of the logits of two models over all images."""
    batches = to_tensor(model, images).split(256)
    return max((model(batch) - other(batch)).abs().max().item() for batch in batches)


def accuracies(probabilities: torch.Tensor, images: DemoImages) -> dict[str, Any]:
    """Accuracy (0..1) on the digits and on the crops, with every class counting the same, and the names of classes of
    which nothing is right.
    """
    predicted = probabilities.argmax(dim=1)
    found: dict[str, Any] = {}
    for name, part in dict(digits=images.is_digit, crops=~images.is_digit).items():
        targets, answers = images.targets[part], predicted[part]
        found[f'{name}_accuracy'] = (answers == targets).float().mean().item()
        found[f'{name}_mean_per_class'] = mean_per_class(targets.numpy(), answers.numpy()) / 100
        found[f'{name}_classes_at_zero'] = at_zero(targets.numpy(), answers.numpy(), CLASSES)
    return found


def _in_words(measured: Mapping[str, Any], name: str) -> str:
    per_class = per_class_words(100 * measured[f'{name}_mean_per_class'], measured[f'{name}_classes_at_zero'])
    return f'{measured[f"{name}_accuracy"]:.1%}, {per_class}'


def save_some(images: DemoImages, folder: Path) -> list[Path]:
    """Save two images of each class as PNG; their paths, class by class."""
    folder.mkdir(exist_ok=True)
    files = []
    for index, name in enumerate(CLASSES):
        for number, i in enumerate((images.targets == index).nonzero()[:2, 0].tolist()):
            files.append(folder / f'{name}_{number}.png')
            images.images[i].save(files[-1])
    return files


def classify_files(model: nn.Module, files: Sequence[Path], say: Callable[[str], None]) -> None:
    """Print the most probable class of each image file, as `tinyvit-zoo classify` does, in one line."""
    classifier = Classifier(model)
    best = [classifier(load_image(file), topk=1)[0] for file in files]
    say('  ' + ', '.join(f'{file.name} {p.label} {p.probability:.0%}' for file, p in zip(files, best, strict=True)))


def classify_photos(say: Callable[[str], None]) -> None:
    """Classify the two whole photos among ImageNet's 1000 classes, or say why pretrained weights are unavailable."""
    missing = weights_at_hand(PRETRAINED)
    if missing:
        say(f'Skipped the photos with pretrained {PRETRAINED}: {missing}.')
        return
    try:
        classifier = Classifier(timm.create_model(PRETRAINED, pretrained=True).eval())
    except CheckpointError as e:
        say(f'Skipped the photos with pretrained {PRETRAINED}: {e}')
        return
    for name, photo in load_photos().items():
        best = ', '.join(f'{p.label.split(",")[0]} {p.probability:.1%}' for p in classifier(photo))
        say(f'{PRETRAINED} on {name}.jpg: {best}')
