"""The demo: train a small-input TinyViT on real pictures, save it, make it again from the folder, classify, and compare
what it learned with random weights.

Everything is measured on pictures that were not trained on, and the number of epochs is fixed beforehand: the held-out
pictures decide nothing.

Shape legend: `B` pictures of a batch, `S` = 32 pixels a side, `K` = 12 classes.
"""

import time
from collections.abc import Callable
from pathlib import Path

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
from tinyvit_zoo.hub import save_folder

from ..results import record, write
from .comparison import EPISODES, compare_with_random, pictures_to_compare_on
from .digits import CLASSES, SIZE, Pictures, load_photos, load_pictures
from .figures import Epoch, contact_sheet, training_curves
from .hub_probe import weights_at_hand

__all__ = ['predict', 'run_demo', 'train']

EPOCHS = 14
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
MAX_SHIFT = 3  # pixels

PRETRAINED = 'tinyvit_5m_224'


def run_demo(
    output: str | Path = 'demo_output',
    epochs: int = EPOCHS,
    seed: int = 0,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Train, save, make again, classify, compare with random weights, and write what came of it.

    Args:
        output: Folder for the saved model, the figures, some held-out pictures and results.json.
        epochs: Passes over the training pictures.
        seed: Of the split, the start weights, the order and the augmentation.
        limit: Use only so many digits, and about as many textures and episodes; for a quick look.
        say: Prints a line.

    Returns:
        What results.json holds.

    Raises:
        RuntimeError: If the model made again from its folder gives other outputs.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    training, held_out = load_pictures(seed, limit)
    say(
        f'Real pictures from scikit-learn: {len(training)} to train on, {len(held_out)} held out '
        f'({int(held_out.is_digit.sum())} digits; {int((~held_out.is_digit).sum())} crops from those halves of two '
        'photos that training never sees).'
    )
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = timm.create_model('tinyvit_5m_224', img_size=SIZE, num_classes=len(CLASSES))
        history = train(model, training, held_out, epochs, say)
    seconds = time.perf_counter() - start
    say(
        f'Held-out accuracy after epoch {epochs}: digits {history[-1].digits:.1%}, photo crops '
        f'{history[-1].crops:.1%} ({seconds:.0f} s).'
    )

    again, difference = save_and_reload(model, output / 'model', held_out, say)
    probabilities = predict(again, held_out)
    contact_sheet(held_out, probabilities, output / 'contact_sheet.png', seed)
    training_curves(history, output / 'training.png')
    some = save_some(held_out, output / 'held_out')
    say(f'In {output}: model/ (Hub-ready), contact_sheet.png, training.png, held_out/ ({some} pictures).')
    say(f'Try: tinyvit-zoo classify {output}/held_out/*.png --model local-dir:{output}/model --topk 2')
    classify_photos(say)
    pools = pictures_to_compare_on(seed, limit)
    say(
        'Its features beside those of random weights (trained | random | difference and its 95 % interval). It was '
        'trained on other digits than these, and on nothing of the 19 photographs that the textures are of.'
    )
    with one_thread():
        comparison, figures = compare_with_random(
            output / 'model', again, pools, seed, EPISODES if limit is None else limit, say
        )
    results = record(
        'demo',
        model=again,
        dataset={name: pool.pictures for name, pool in pools.items()},
        seed=seed,
        name=f'local-dir:{output / "model"}',
        epochs=epochs,
        training_pictures=len(training),
        held_out_pictures=len(held_out),
        **accuracies(probabilities, held_out),
        max_difference_after_reload=difference,
        training_seconds=round(seconds, 1),
        seconds=round(time.perf_counter() - start, 1),
        history=history,
        compared_with_random=comparison,
    )
    rows = [dict(data=name, **row) for name, rows in comparison.items() for row in rows]
    write(output, results, tables=dict(compared_with_random=rows), figures=figures, say=say)
    return results


def save_and_reload(
    model: nn.Module, folder: Path, pictures: Pictures, say: Callable[[str], None] = print
) -> tuple[nn.Module, float]:
    """Save a model, make it again from the folder, and give it with the largest difference of the logits.

    Raises:
        RuntimeError: If the outputs differ.
    """
    # The pictures already have the model's size: nothing to crop.
    save_folder(model, folder, label_names=CLASSES, tag='sklearn_digits_and_photos', data_config=dict(crop_pct=1.0))
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    difference = max_difference(model, again, pictures)
    if difference >= 1e-6:
        raise RuntimeError(f'The model made again from {folder} gives other outputs (max difference {difference:g}).')
    say(
        f"timm.create_model('local-dir:{folder}', pretrained=True) gives the same outputs "
        f'(max difference {difference:g}).'
    )
    return again, difference


def train(
    model: nn.Module, training: Pictures, held_out: Pictures, epochs: int, say: Callable[[str], None] = print
) -> list[Epoch]:
    """Train with AdamW and a one-cycle learning rate; leaves the model in eval mode.

    Args:
        model: Takes (B, 3, S, S), gives (B, K).
        training: Pictures to learn from, shifted a little at random each time.
        held_out: Pictures to measure on after every epoch.
        epochs: Passes over `training`.
        say: Prints a line per epoch where there is no terminal for a progress bar.

    Returns:
        One record an epoch.
    """
    images = to_tensor(model, training)
    steps = len(images) // BATCH
    groups = param_groups_weight_decay(model, WEIGHT_DECAY, model.no_weight_decay())
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


def to_tensor(model: nn.Module, pictures: Pictures) -> torch.Tensor:
    """Pictures (N, 3, S, S), through the model's own preprocessing."""
    transform = create_transform(**dict(resolve_model_data_config(model), crop_pct=1.0), is_training=False)
    return torch.stack([transform(image) for image in pictures.images])


def shift(images: torch.Tensor) -> torch.Tensor:
    """Each picture (B, 3, S, S) moved by up to MAX_SHIFT pixels each way; edges are repeated."""
    B, _, H, W = images.shape
    padded = F.pad(images, [MAX_SHIFT] * 4, mode='replicate')
    rows = torch.randint(2 * MAX_SHIFT + 1, (B, 1)) + torch.arange(H)
    cols = torch.randint(2 * MAX_SHIFT + 1, (B, 1)) + torch.arange(W)
    batch = torch.arange(B)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def predict(model: nn.Module, pictures: Pictures) -> torch.Tensor:
    """Probabilities (N, K)."""
    model.eval()
    return torch.cat([model(batch).softmax(dim=1) for batch in to_tensor(model, pictures).split(256)])


@torch.inference_mode()
def max_difference(model: nn.Module, again: nn.Module, pictures: Pictures) -> float:
    """Largest absolute difference of the logits of two models over all pictures."""
    batches = to_tensor(model, pictures).split(256)
    return max((model(batch) - again(batch)).abs().max().item() for batch in batches)


def accuracies(probabilities: torch.Tensor, pictures: Pictures) -> dict[str, float]:
    """Share of right answers (0..1) among the digits and, apart from them, among the crops."""
    right = probabilities.argmax(dim=1) == pictures.targets
    return dict(
        digits_accuracy=right[pictures.is_digit].float().mean().item(),
        crops_accuracy=right[~pictures.is_digit].float().mean().item(),
    )


def save_some(pictures: Pictures, folder: Path) -> int:
    """Two held-out pictures of each class as PNG, to try the command line on. Returns how many."""
    folder.mkdir(exist_ok=True)
    saved = 0
    for index, name in enumerate(CLASSES):
        for number, i in enumerate((pictures.targets == index).nonzero()[:2, 0].tolist()):
            pictures.images[i].save(folder / f'{name}_{number}.png')
            saved += 1
    return saved


def classify_photos(say: Callable[[str], None]) -> None:
    """The two whole photos under ImageNet's 1000 classes, if the pretrained weights can be had; else one line."""
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
        answers = ', '.join(f'{p.label.split(",")[0]} {p.probability:.1%}' for p in classifier(photo))
        say(f'{PRETRAINED} on {name}.jpg: {answers}')
