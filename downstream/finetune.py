"""Fine-tuning of any timm model by a recipe: resumable, on one process or many (`torchrun`, `accelerate launch`).

The same images, augmentations and updates come out of any number of processes, workers and accumulated steps; random
numbers within the model (drop path, Mixup) are drawn by each process for its part of the batch, over which BatchNorm
takes its statistics, too.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from timm.scheduler import CosineLRScheduler
from timm.task import ClassificationTask
from timm.utils import ModelEmaV3, random_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.split import stratified_split
from tinyvit_zoo.data.transforms import data_config
from tinyvit_zoo.training.ingredients import (
    Draws,
    Seeded,
    create_mixup,
    create_optimizer,
    create_scheduler,
    create_transforms,
    reset_head,
    set_training,
)
from tinyvit_zoo.training.recipes import Recipe
from tinyvit_zoo.training.run_state import alone_in, read_state, read_weights, write_state

from .results import plain

__all__ = ['Epoch', 'Finetuned', 'Measured', 'finetune']

LOOK_EVERY = 50  # steps between looks at whether the loss is still a number: each waits for the device


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: mean training loss, the learning rate of its last update, and both after it."""

    loss: float
    lr: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class Measured:
    """A model on labelled images: predictions (N,) int64, mean cross entropy, accuracy in %."""

    predictions: np.ndarray
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Finetuned:
    """A training that is over; the model has the weights of `best_epoch`.

    Attributes:
        history: One record an epoch.
        best_epoch: Counted from 1: the first with the highest validation accuracy, or the last without validation.
        validation_images: How many images it was chosen with; 0 if nothing was chosen.
        test: On the test images, which nothing was chosen with; None without them.
        precision: 'no' (float32), 'bf16' or 'fp16'.
        processes: How many trained together.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    validation_images: int
    test: Measured | None
    precision: str
    processes: int


def finetune(
    model: nn.Module,
    train: ImageDataset,
    recipe: Recipe,
    output: str | Path,
    *,
    validation: ImageDataset | None = None,
    test: ImageDataset | None = None,
    held_out: float = 0.1,
    micro_batch: int | None = None,
    precision: str | None = None,
    device: torch.device | None = None,
    workers: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Finetuned:
    """Train, and go on where an earlier run into the same folder stopped.

    Killed at any moment, it goes on from the last whole epoch with the same losses to the bit (on the same machine,
    threads and processes).

    Args:
        model: Any timm model with as many classes as `train`, made with `drop_path_rate=recipe.drop_path_of(name)` and
            at the recipe's size: neither can be set here. Trained in place; left in eval mode.
        train: Images to learn from.
        recipe: Its `batch_size` is that of an update, over all processes.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        validation: Images to choose the epoch with. None: a part of `train` is held out for it.
        test: Images for the one number at the end.
        held_out: Share of `train`, of each class alike; 0 to train on all of it and take the last epoch.
        micro_batch: Images that a process takes at once; gradients add up to a batch. None: its part of the batch.
        precision: 'no', 'bf16' or 'fp16'. None: 'bf16' on CUDA, else 'no'.
        device: None: the best one, or with several processes that of each.
        workers: Processes that read and transform images.
        seed: Of order, augmentation, held-out images, a head of `recipe.head_std` and drop path.
        say: Prints a line.

    Raises:
        EvaluationError: If classes do not fit, the model takes other images than RGB, the batch does not fit images or
            processes, the folder holds the state of another run or another run is writing to it, the device has no such
            precision, or the loss is no longer a number.
    """
    _check_classes(model, train, validation, test)
    if validation is None and held_out:
        rest, held = stratified_split(train.labels, held_out, seed)
        train, validation = train.subset(rest), train.subset(held)
    if len(train) < recipe.batch_size:
        raise EvaluationError(
            f'{len(train)} training images make no batch of {recipe.batch_size}: choose a smaller --batch-size.'
        )
    reset_head(model, recipe.head_std, seed)
    run = _Run(model, recipe, Path(output), micro_batch, precision, device, workers, seed, say)
    with alone_in(run.folder) if run.accelerator.is_main_process else nullcontext():
        history = run.train(train, validation)
        model.load_state_dict(read_weights(run.folder))
    run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)  # the caller's model computes in float32 again
    return Finetuned(
        history=tuple(history),
        best_epoch=_best(history),
        validation_images=0 if validation is None else len(validation),
        test=None if test is None else run.measure(model, run.evaluation_loader(test)),
        precision=run.accelerator.mixed_precision,
        processes=run.accelerator.num_processes,
    )


def _check_classes(model: nn.Module, train: ImageDataset, *others: ImageDataset | None) -> None:
    if model.num_classes != len(train.classes):
        raise EvaluationError(
            f'The model has {model.num_classes} classes and {train.name} has {len(train.classes)}: make it with '
            f'num_classes={len(train.classes)}.'
        )
    if len(np.unique(train.labels)) < 2:
        raise EvaluationError(
            f'All images of {train.name} ({train.split}) are of one class: there is nothing to learn.'
        )
    for other in others:
        if other is not None and other.classes != train.classes:
            raise EvaluationError(f'The classes of {other.name} ({other.split}) are not those of {train.name}.')


def _best(history: list[Epoch]) -> int:
    """The first epoch, from 1, with the highest validation accuracy; the last one where nothing was validated."""
    scores = [epoch.validation_accuracy for epoch in history]
    return len(history) if None in scores else 1 + int(np.argmax(scores))


class _Run:
    """A model in training: one epoch after the other, and its state on disk."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        folder: Path,
        micro_batch: int | None,
        precision: str | None,
        device: torch.device | None,
        workers: int,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.folder, self.workers, self.seed = recipe, folder, workers, seed
        on_cuda = torch.cuda.is_available() if device is None else device.type == 'cuda'
        if on_cuda and device is not None and device.index is not None:
            torch.cuda.set_device(device)
        if precision == 'fp16' and not on_cuda:
            raise EvaluationError('fp16 needs a CUDA device: choose bf16, or no.')
        AcceleratorState._reset_state(reset_partial_state=True)  # else device and precision of an earlier run stay
        processes = PartialState(cpu=not on_cuda).num_processes
        self.micro_batch = micro_batch or max(recipe.batch_size // processes, 1)
        self.accelerator = Accelerator(
            cpu=not on_cuda,
            mixed_precision=precision or ('bf16' if on_cuda else 'no'),
            gradient_accumulation_steps=self._accumulated_steps(processes),
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            rng_types=[],  # every random number here has a seed of its own
        )
        self.say = say if self.accelerator.is_main_process else lambda text: None
        self.start_hash = state_hash(model)
        self.plain_model = model.to(self.accelerator.device)
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = create_optimizer(model, recipe, recipe.batch_size)
        self.model, self.prepared_optimizer = self.accelerator.prepare(model, self.optimizer)
        self.mixup = create_mixup(recipe, model.num_classes)
        smoothing = dict(soft_targets=True) if self.mixup else dict(smoothing=recipe.label_smoothing)
        device = self.accelerator.device
        self.task = ClassificationTask(self.model, criterion_kwargs=smoothing, device=device, verbose=False)
        self.training_transform, self.evaluation_transform = create_transforms(model, recipe)
        self.input = repr(sorted(plain(data_config(model)).items()))  # a ConvNet's weights fit any size

    def _accumulated_steps(self, processes: int) -> int:
        steps, rest = divmod(self.recipe.batch_size, self.micro_batch * processes)
        if rest or not steps:
            raise EvaluationError(
                f'A batch of {self.recipe.batch_size} does not come out of {processes} x {self.micro_batch} images at '
                'once: choose --batch-size and --micro-batch so that one divides the other.'
            )
        if self.micro_batch % 2 and (self.recipe.mixup or self.recipe.cutmix):
            raise EvaluationError(
                f'Mixup needs pairs and {self.micro_batch} images at once are odd: choose another --micro-batch.'
            )
        return steps

    def training_loader(self, dataset: ImageDataset) -> DataLoader:
        draws = Draws(len(dataset), self.recipe.batch_size, self.recipe.repeats, self.seed)
        return self._loader(Seeded(dataset.with_transform(self.training_transform)), sampler=draws)

    def evaluation_loader(self, dataset: ImageDataset) -> DataLoader:
        return self._loader(dataset.with_transform(self.evaluation_transform))

    def _loader(self, dataset: Any, **options: Any) -> DataLoader:
        loader = DataLoader(
            dataset,
            batch_size=self.micro_batch * self.accelerator.num_processes,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.accelerator.device.type == 'cuda',
            **options,
        )
        return self.accelerator.prepare(loader)

    def train(self, dataset: ImageDataset, validation: ImageDataset | None) -> list[Epoch]:
        """Train every epoch that is not done yet. Returns all of them."""
        loader = self.training_loader(dataset)
        evaluation = None if validation is None else self.evaluation_loader(validation)
        updates = len(dataset) // self.recipe.batch_size
        scheduler = create_scheduler(self.optimizer, self.recipe, self.recipe.batch_size, updates)
        identity = self.identity(dataset, validation)
        history = self.resume(identity)  # learning rates too: the optimizer holds them
        for done in range(len(history), self.recipe.epochs):
            loader.set_epoch(done)  # accelerate counts epochs from 0 in every run, and hands that on to the draws
            loss, lr = self.train_epoch(loader, scheduler, done, updates)
            measured = None if evaluation is None else self.measure(self.result, evaluation)
            history.append(Epoch(loss, lr, measured and measured.loss, measured and measured.accuracy))
            scheduler.step(done + 1)
            self.save(identity, history)
            chosen = measured and f', held-out accuracy {measured.accuracy:.1f} %'
            self.say(f'Epoch {done + 1}/{self.recipe.epochs}: loss {loss:.4f}{chosen or ""}')
        return history

    def train_epoch(
        self, loader: DataLoader, scheduler: CosineLRScheduler, done: int, updates: int
    ) -> tuple[float, float]:
        """One epoch after `done` others. Returns the mean loss, and the highest learning rate of its last update."""
        accelerator, losses = self.accelerator, []
        # A resumed run has the same random numbers because every epoch begins with its own.
        epoch_seed = np.random.SeedSequence((self.seed, done, accelerator.process_index)).generate_state(1)[0]
        random_seed(int(epoch_seed))
        set_training(self.model, self.recipe.freeze_batch_norm)
        number = done * updates
        shown = accelerator.is_main_process
        bar = tqdm(loader, desc=f'epoch {done + 1}', unit='step', leave=False, disable=None if shown else True)
        for images, labels in bar:
            if self.mixup is not None:
                images, labels = self.mixup(images, labels)
            with accelerator.accumulate(self.model):
                loss = self.task(images, labels)['loss']
                accelerator.backward(loss)
                if self.recipe.clip_grad and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
                lr = max(group['lr'] for group in self.optimizer.param_groups)
                self.prepared_optimizer.step()
                self.prepared_optimizer.zero_grad()
            if accelerator.sync_gradients:
                number += 1
                scheduler.step_update(number)
                if self.ema is not None:
                    self.ema.update(self.plain_model)
            losses.append(loss.detach())
            if len(losses) % LOOK_EVERY == 0:
                self._check_loss(losses, done)
        self._check_loss(losses, done)
        return accelerator.reduce(torch.stack(losses).double().mean(), 'mean').item(), lr

    def _check_loss(self, losses: list[torch.Tensor], done: int) -> None:
        if not torch.stack(losses[-LOOK_EVERY:]).isfinite().all():
            raise EvaluationError(
                f'The loss is no longer a number in epoch {done + 1}: choose another --output and a lower --lr, or '
                '--precision no.'
            )

    @property
    def result(self) -> nn.Module:
        """The weights that count: the moving average where the recipe has one."""
        return self.plain_model if self.ema is None else self.ema.module

    @torch.inference_mode()
    def measure(self, model: nn.Module, loader: DataLoader) -> Measured:
        """Leaves the model in eval mode."""
        model.eval()
        parts = []
        for images, labels in loader:
            with self.accelerator.autocast():
                logits = model(images).float()
            answers = logits.argmax(dim=1), F.cross_entropy(logits, labels, reduction='none'), labels
            parts.append([part.cpu() for part in self.accelerator.gather_for_metrics(answers)])
        predictions, losses, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        accuracy = (predictions == labels).double().mean().item() * 100
        return Measured(predictions.numpy(), losses.double().mean().item(), accuracy)

    def identity(self, dataset: ImageDataset, validation: ImageDataset | None) -> dict[str, str]:
        """What has to be the same for a run to be gone on with."""
        recipe = {f'recipe: {key}': repr(value) for key, value in plain(self.recipe).items()}
        images = {
            f'{what} images': d.fingerprint()
            for what, d in (('training', dataset), ('validation', validation))
            if d is not None
        }
        return dict(recipe, **images, input=self.input, seed=str(self.seed), weights=self.start_hash)

    def save(self, identity: dict[str, str], history: list[Epoch]) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = dict(
                history=[asdict(epoch) for epoch in history],
                model=self.plain_model.state_dict(),
                ema=None if self.ema is None else self.ema.module.state_dict(),
                optimizer=self.optimizer.state_dict(),
                scaler=None if scaler is None else scaler.state_dict(),
            )
            best = self.result.state_dict() if _best(history) == len(history) else None
            write_state(self.folder, identity, state, best)
        self.accelerator.wait_for_everyone()

    def resume(self, identity: dict[str, str]) -> list[Epoch]:
        """Take up the state in the folder, if there is one. Returns the epochs that are done."""
        state = read_state(self.folder, identity)
        if state is None:
            return []
        self.plain_model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.ema is not None:
            self.ema.module.load_state_dict(state['ema'])
        if self.accelerator.scaler is not None and state['scaler'] is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        self.say(f'{self.folder}: goes on after epoch {len(state["history"])} of {self.recipe.epochs}.')
        return [Epoch(**epoch) for epoch in state['history']]
