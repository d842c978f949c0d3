"""LoRA beside head only and full fine-tuning, in miniature and with intervals.

A small TinyViT learns scikit-learn's handwritten digits 0 to 4 with all their labels. It then learns 5 to 9 from a few
images of each: by a new classifier alone, by LoRA (peft) on the linear layers of its blocks with a new classifier, or
as a whole; all in equally many steps, on the same batches. Accuracy is on test digits 5 to 9. The learning rate of each
method is the best of RATES on seeds that are not reported. In a first run there were two such seeds and rates from 3e-4
to 1e-2; they chose 1e-2 for all three, at which full fine-tuning failed on two of the five reported seeds. Nothing else
was tried.

BatchNorm is in evaluation mode, but in full fine-tuning: an adapter's file holds no statistics.

    python benchmarks/lora.py                # 5 seeds
    python benchmarks/lora.py --seeds 8      # adds the missing ones to the 5
"""

import argparse
import io
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import timm
import torch
import torch.nn.functional as F
from seeds import interval, results_of, write_json
from torch import nn

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.common.counter_rng import child_key, permutations
from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.paired_timing import timed
from tinyvit_zoo.data import load_dataset

SIDE, CLASSES = 32, 5
HEAD, LORA, FULL = 'head only', 'LoRA', 'full'
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
UNREPORTED = range(1000, 1005)
PAIRS = ((LORA, HEAD), (LORA, FULL), (FULL, HEAD))
TARGETS = ['qkv', 'proj', 'fc1', 'fc2']


@dataclass(frozen=True)
class Settings:
    """Everything that the result of a seed depends on."""

    source_steps: int = 300
    target_steps: int = 100
    shots: int = 10
    batch: int = 32
    rank: int = 8

    @property
    def steps(self) -> int:
        return self.source_steps + 3 * self.target_steps


def digits(split: str, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 32, 32) of five digits, and their labels counted from 0."""
    data = load_dataset('digits', split)
    chosen = [i for i, label in enumerate(data.labels) if first <= label < first + CLASSES]
    images = torch.stack([torch.from_numpy(np.array(data.image(i))) for i in chosen])
    return (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5, torch.from_numpy(data.labels[chosen]) - first


def few(labels: torch.Tensor, shots: int, seed: int) -> torch.Tensor:
    """Indices of some images of each class."""
    places = []
    for label in range(CLASSES):
        of_class = (labels == label).nonzero().flatten()
        order = permutations(child_key(seed, 0, label), len(of_class))
        places.append(of_class[torch.from_numpy(order[:shots])])
    return torch.cat(places)


def batches(count: int, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices of every step: permutations one after the other."""
    epochs = -(-steps * batch // count)
    orders = np.concatenate([permutations(child_key(seed, 1, epoch), count) for epoch in range(epochs)])
    yield from torch.from_numpy(orders[: steps * batch]).view(steps, batch)


def train(
    model: nn.Module,
    parameters: list[nn.Parameter],
    data: tuple[torch.Tensor, torch.Tensor],
    steps: int,
    rate: float,
    seed: int,
    batch: int,
    step_done: Callable[[], object],
) -> None:
    """Cross entropy, AdamW, one cycle of the learning rate."""
    images, labels = data
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for chosen in batches(len(images), batch, steps, seed):
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
        step_done()


def source_model(seed: int, settings: Settings, step_done: Callable[[], object]) -> nn.Module:
    """A TinyViT that knows digits 0 to 4."""
    torch.manual_seed(seed)
    model = timm.create_model(
        'tinyvit_5m_224', img_size=SIDE, embed_dims=(32, 64, 96, 128), num_heads=(1, 2, 3, 4), depths=(1, 1, 2, 1),
        num_classes=CLASSES,
    ).train()  # fmt: skip
    data, parameters = digits('train', 0), list(model.parameters())
    train(model, parameters, data, settings.source_steps, 2e-3, seed, settings.batch, step_done)
    return model.eval()


def adapted(source: nn.Module, method: str, seed: int, rank: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy with a new classifier, and what of it is trained."""
    torch.manual_seed(seed)
    model = deepcopy(source)
    model.reset_classifier(CLASSES)
    if method == LORA:
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, modules_to_save=['head.fc'])
        model = peft.get_peft_model(model, config).eval()
        return model, [p for p in model.parameters() if p.requires_grad]
    if method == HEAD:
        model.requires_grad_(False)
        model.head.fc.requires_grad_(True)
        return model, list(model.head.fc.parameters())
    return model.train(), list(model.parameters())


@torch.inference_mode()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Per cent."""
    return 100 * (model.eval()(images).argmax(1) == labels).double().mean().item()


def kilobytes(model: nn.Module, method: str) -> float:
    """What has to be kept of a tuned model beside the one it began from."""
    states = {
        LORA: lambda: peft.get_peft_model_state_dict(model),
        HEAD: lambda: model.head.fc.state_dict(),
        FULL: model.state_dict,
    }
    file = io.BytesIO()
    torch.save({key: tensor.clone() for key, tensor in states[method]().items()}, file)
    return file.tell() / 1000


def tune(
    source: nn.Module, method: str, rate: float, seed: int, settings: Settings, step_done: Callable[[], object]
) -> dict[str, float]:
    """Accuracy and cost of one method."""
    images, labels = digits('train', CLASSES)
    chosen = few(labels, settings.shots, seed)
    model, parameters = adapted(source, method, seed, settings.rank)
    data = images[chosen], labels[chosen]
    seconds, _ = timed(
        lambda: train(model, parameters, data, settings.target_steps, rate, seed, settings.batch, step_done)
    )
    return dict(
        accuracy=accuracy(model, *digits('test', CLASSES)),
        parameters=sum(p.numel() for p in parameters),
        kilobytes=round(kilobytes(model, method), 1),
        ms_a_step=round(1000 * seconds / settings.target_steps, 1),
    )


def best_rates(settings: Settings) -> dict[str, float]:
    """By method, on seeds that are not reported."""
    found: dict[tuple[str, float], list[float]] = {}
    for seed in UNREPORTED:
        source = source_model(seed, settings, bool)
        for method in (HEAD, LORA, FULL):
            for rate in RATES:
                result = tune(source, method, rate, seed, settings, bool)
                found.setdefault((method, rate), []).append(result['accuracy'])
    for (method, rate), accuracies in found.items():
        print(f'{method}, {rate}: {", ".join(f"{a:.1f}" for a in accuracies)}')
    return {method: max(RATES, key=lambda rate: sum(found[method, rate])) for method in (HEAD, LORA, FULL)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5, help='at least 2')
    parser.add_argument('--output', type=Path, default=Path('results/lora'))
    parser.add_argument('--rates', type=float, nargs=3, help='of head only, LoRA and full; chosen if not given')
    args = parser.parse_args()
    settings = Settings()

    def run_seed(seed: int, settings: Settings, step_done: Callable[[], object]) -> dict:
        source = source_model(seed, settings, step_done)
        results = {m: tune(source, m, rates[m], seed, settings, step_done) for m in (HEAD, LORA, FULL)}
        start = accuracy(source, *digits('test', 0))
        return dict(accuracy={m: r['accuracy'] for m, r in results.items()}, results=results, rates=rates, source=start)

    with one_thread():
        rates = dict(zip((HEAD, LORA, FULL), args.rates, strict=True)) if args.rates else best_rates(settings)
        print(f'learning rates: {rates}')
        results = results_of(args.seeds, settings, args.output, run_seed)
    summary: dict = dict(accuracy={}, difference={})
    for method in (HEAD, LORA, FULL):
        summary['accuracy'][method] = interval([r['accuracy'][method] for r in results.values()])
        costs = next(iter(results.values()))['results'][method]
        ms = interval([r['results'][method]['ms_a_step'] for r in results.values()])['mean']
        mean, width = summary['accuracy'][method].values()
        print(
            f'{method:10} {mean:5.1f} ± {width:.1f} %, {costs["parameters"]} parameters trained, '
            f'{costs["kilobytes"]} kB, {ms:.1f} ms a step'
        )
    for one, other in PAIRS:
        pair = interval([r['accuracy'][one] - r['accuracy'][other] for r in results.values()])
        summary['difference'][f'{one} - {other}'] = pair
        print(f'{one} above {other}: {pair["mean"]:+.1f} ± {pair["half_width"]:.1f}')
    write_json(args.output / 'summary.json', summary)


if __name__ == '__main__':
    main()
