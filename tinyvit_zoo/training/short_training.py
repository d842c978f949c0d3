"""The short training of a contraction's candidates: from the same initial numbers, on the same views."""

import time
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..common.errors import EvaluationError
from ..common.paired_timing import cuda_ms, measure, ratio
from ..common.seeding import Seeds, seeded
from ..data.image_dataset import ImageDataset
from ..data.seeded import SeededDataset
from ..data.transforms import data_config
from .contraction_factors import Candidate, Factors, count_parameters
from .ingredients import RepeatedAugSampler, create_optimizer, create_transforms
from .loop import RunSettings, TrainingLoop
from .recipes import Recipe
from .tasks.classification import classification_task

__all__ = ['Make', 'ShortTraining']

ROUNDS = 9  # of the throughput: the median of fewer moves by several per cent on a busy machine
TIMED_IMAGES = dict(cpu=32, cuda=128)  # of a forward pass whose throughput is measured
TIMED_UPDATES = 2  # of an estimate


class Make(Protocol):
    """Makes the start model, with random weights, and with other arguments where they are given."""

    def __call__(self, **arguments: Any) -> nn.Module: ...


class ShortTraining:
    """The trainer of `contract`: candidates from the same seed on the same views.

    Args:
        make: Makes models, see `contract`.
        start: Factors of the start model.
        train: Images to train on.
        held: Images to rank on.
        recipe: Fitted to the images.
        run: See `TrainingLoop`.
    """

    def __init__(
        self,
        make: Make,
        start: Factors,
        train: ImageDataset,
        held: ImageDataset,
        recipe: Recipe,
        run: RunSettings,
    ) -> None:
        self._make, self.start, self.train, self.held, self.recipe = make, start, train, held, recipe
        self.run: RunSettings = {**run, 'say': lambda text: None}
        self.seed = run.get('seed', 0)
        self.device = run.get('device') or torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.count = cache(self._count)
        self._timed: tuple[nn.Module, torch.Tensor] | None = None

    def _count(self, factors: Factors) -> int:
        return count_parameters(self._make(device='meta', **factors.arguments(self.start)))

    def make(self, factors: Factors) -> nn.Module:
        """A model with the initial weights of the seed."""
        with seeded(Seeds.same(self.seed)):
            return self._make(**factors.arguments(self.start))

    def throughput(self, candidate: Candidate) -> float:
        """Measured in turn with the start model: absolute times move with the machine and what else it does."""
        if self._timed is None:
            start = self.make(self.start).eval().to(self.device)
            size = (TIMED_IMAGES.get(self.device.type, TIMED_IMAGES['cuda']), *data_config(start)['input_size'])
            self._timed = start, torch.zeros(size, device=self.device)
        start, images = self._timed
        model = self.make(candidate.factors).eval().to(self.device)
        calls = dict(start=lambda: start(images), candidate=lambda: model(images))
        with torch.inference_mode():
            if self.device.type == 'cpu':
                times = measure(calls, ROUNDS)
            else:
                rounds = [{name: cuda_ms(call, 1) for name, call in calls.items()} for _ in range(ROUNDS)]
                times = {name: [times[name] for times in rounds] for name in calls}
        return ratio(times['start'], times['candidate'])

    def right(self, candidate: Candidate, folder: Path) -> np.ndarray:
        """Train it, or go on with its training, and ask it about the held-out images."""
        model = self.make(candidate.factors)
        task = classification_task(model, self.recipe, len(self.train.classes))
        loop = TrainingLoop(task, self.recipe, folder, **self.run)
        training, evaluation = create_transforms(model, self.recipe)
        sampler = RepeatedAugSampler(len(self.train), self.recipe.batch_size, self.recipe.repeats, self.seed)
        images = dict(training=self.train.fingerprint(), size=repr(data_config(model)['input_size']))
        loop.run(loop.loader(SeededDataset(self.train.with_transform(training)), sampler), images)
        model.eval()
        answers = []
        with torch.inference_mode():
            for batch, labels in loop.loader(self.held.with_transform(evaluation)):
                with loop.accelerator.autocast():
                    logits = model(batch).float()
                if not logits.isfinite().all():
                    raise EvaluationError(
                        f'{candidate.name} returns NaN after its training: choose another --output and a lower --lr, '
                        'or --precision no.'
                    )
                answers.append((logits.argmax(dim=1) == labels).cpu().numpy())
        return np.concatenate(answers)

    def seconds(self) -> float:
        """About what the start model would take as a candidate, from a few updates."""
        model = self.make(self.start).to(self.device)
        task = classification_task(model, self.recipe, len(self.train.classes))
        optimizer = create_optimizer(model, self.recipe, self.recipe.batch_size)
        images = SeededDataset(self.train.with_transform(create_transforms(model, self.recipe)[0]))
        sampler = RepeatedAugSampler(len(self.train), self.recipe.batch_size, self.recipe.repeats, self.seed)
        at_once = max(
            2, min(self.run.get('micro_batch') or self.recipe.batch_size, len(sampler) // (1 + TIMED_UPDATES))
        )
        draws, times = iter(sampler), []
        model.train()
        for _ in range(1 + TIMED_UPDATES):  # the first one warms up
            begin = time.perf_counter()
            items = [images[next(draws)] for _ in range(at_once)]
            batch, labels = (torch.stack([torch.as_tensor(x) for x in part]) for part in zip(*items, strict=True))
            task(batch.to(self.device), labels.to(self.device))['loss'].backward()
            optimizer.step()
            optimizer.zero_grad()
            if self.device.type == 'cuda':
                torch.cuda.synchronize()
            times.append((time.perf_counter() - begin) / len(items))
        an_image = sum(times[1:]) / TIMED_UPDATES
        forward = an_image / 3  # a backward pass is about two forward passes
        timed = 2 * (1 + ROUNDS) * TIMED_IMAGES.get(self.device.type, TIMED_IMAGES['cuda'])
        return an_image * self.recipe.epochs * len(sampler) + forward * (len(self.held) + timed)
