"""The training loop: any task in timm's form, on one process or many, with its state on disk.

A run that is killed at any moment resumes from its last state, after an epoch or within one, with the same losses to
the bit, on the same machine with as many threads and processes; no image is read twice. Model and losses come from the
task, numbers from the recipe, images from the loader; the loop itself knows nothing but the 'loss' that it minimizes.

Processes and accumulated steps give the same weights to rounding where the model draws no random numbers and every
image counts for itself. BatchNorm that learns takes its statistics over the images at once: one process is then not
two, since its synchronised form needs CUDA; with `Recipe.freeze_batch_norm` it is.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

import numpy as np
import torch
from timm.scheduler import CosineLRScheduler
from timm.task import TrainingTask
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..common.errors import EvaluationError
from ..common.extras import needs_extra
from ..common.hashes import state_hash
from ..common.plain import plain
from ..common.seeding import Seeds, seed_generators
from .accelerator import create_accelerator
from .epoch_losses import EpochLosses
from .ingredients import create_optimizer, create_scheduler, set_training
from .recipes import Recipe
from .rest_of_epoch import RestOfEpoch, rest_of_epoch_in
from .run_log import RunLog
from .run_state import alone_in, read_state, read_weights, write_state

with needs_extra('eval'):
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderShard
    from accelerate.utils import broadcast

__all__ = [
    'Observer',
    'Record',
    'RunSettings',
    'TrainingLoop',
    'best_epoch',
]

# What a recipe says of itself; and the held-out share, which the images that are trained on show.
NO_SETTING = ('source', 'notes', 'starts', 'starts_at', 'held_out')
LOOK_EVERY = 50  # updates between looks at the losses: each waits for the device and for the other processes

Record = dict[str, float | None]
"""An epoch by name: the mean of each loss, 'lr' of its last update (the highest of all layers), measurements after it.
"""


class Observer(Protocol):
    """Sees a training from within, and changes nothing about it; on every process."""

    def watch(
        self, module: nn.Module, folder: Path, updates: int, accelerator: 'Accelerator'
    ) -> AbstractContextManager[None]:
        """A block around the training.

        Args:
            module: The trainable one, without wrappers and not compiled.
            folder: Of the run.
            updates: How many are done.
            accelerator: Of the run.
        """

    def updated(self, number: int) -> None:
        """The gradients of an update, from 1, are complete: before they are clipped, and the weights change."""


class RunSettings(TypedDict, total=False):
    """How a training is run, on what and where; the losses of one seed stay the same. See `TrainingLoop` for each."""

    micro_batch: int | None
    precision: str | None
    device: torch.device | None
    workers: int
    seed: int
    save_minutes: float
    compile: bool
    say: Callable[[str], None]
    observer: Observer | None


def best_epoch(history: Sequence[Record], chosen_by: str | None) -> int:
    """The first epoch, from 1, with the highest value of that name; the last one where there is no name or no value."""
    scores = [record[chosen_by] for record in history] if chosen_by else []
    known = [score for score in scores if score is not None]
    return len(history) if len(known) < len(history) else 1 + int(np.argmax(known))


class TrainingLoop:
    """A task in training: one epoch after another, and its state on disk.

    Args:
        task: Its `trainable_module` is trained in place; all else in it, such as a teacher, stays as it is and in its
            mode. Forward takes a batch and returns a dictionary of tensors: 'loss', and whatever else of no dimensions
            is to be recorded. The loop puts DistributedDataParallel and autocast around the trainable module.
        recipe: Its `batch_size` is that of an update, over all processes.
        folder: For `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        micro_batch: Images that a process takes at once; gradients add up to a batch. None: its part of the batch.
        precision: 'no' (float32), 'bf16' or 'fp16'. None: 'bf16' on CUDA, else 'no'.
        device: None: the best one, or with several processes that of each.
        workers: Processes that read and transform images.
        seed: Of every random number within the model and the task, with the numbers of epoch, step and process.
        save_minutes: Between two states within an epoch; 0 for one after each update. Several processes save them after
            every 50th update only, if it is time.
        compile: Compile the trainable module with `torch.compile`. A task that has `compiles = False` refuses it.
        say: Prints a line.
        observer: Sees every update.

    Attributes:
        accelerator: Of accelerate.
        module: The trainable module without wrappers.
        ema: Moving average of its weights, where the recipe has one.

    Raises:
        EvaluationError: If the batch does not fit images at once and processes, the device has no such precision, or
            the task refuses to be compiled, as an observer does.
    """

    def __init__(
        self,
        task: TrainingTask,
        recipe: Recipe,
        folder: Path,
        *,
        micro_batch: int | None = None,
        precision: str | None = None,
        device: torch.device | None = None,
        workers: int = 0,
        seed: int = 0,
        save_minutes: float = 10.0,
        compile: bool = False,
        say: Callable[[str], None] = print,
        observer: Observer | None = None,
    ) -> None:
        self.recipe, self.folder, self.workers, self.seed = recipe, folder, workers, seed
        self.save_every = 60 * save_minutes
        self.observer = observer
        self.accelerator, self.micro_batch = create_accelerator(recipe, micro_batch, precision, device)
        self.say = say if self.accelerator.is_main_process else lambda text: None
        self.module = cast(nn.Module, task.get_trainable_module())
        self.initial_hash = state_hash(self.module)
        self.task = task.to(self.accelerator.device)
        self.ema = ModelEmaV3(self.module, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = create_optimizer(self.module, recipe, recipe.batch_size)
        if compile:
            _compile(self.module, task, observer)
        self.wrapped, self.prepared_optimizer = self.accelerator.prepare(self.module, self.optimizer)
        self.task.trainable_module = self.wrapped  # as timm's own `prepare_distributed` does

    @property
    def result(self) -> nn.Module:
        """The weights that count: the moving average where the recipe has one."""
        return self.module if self.ema is None else self.ema.module

    def loader(self, dataset: Dataset, sampler: Sampler | None = None) -> DataLoaderShard:
        """Batches of `micro_batch` images for each process, on its device.

        Args:
            dataset: Of items that torch can collate.
            sampler: In whole batches of the recipe where it is to be trained on; its `set_epoch` is called before each
                epoch. None for the order of the data set.
        """
        loader: DataLoader = DataLoader(
            dataset,
            batch_size=self.micro_batch * self.accelerator.num_processes,
            sampler=None if sampler is None else RestOfEpoch(sampler),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.accelerator.device.type == 'cuda',
        )
        return self.accelerator.prepare(loader)

    def run(
        self,
        loader: DataLoaderShard,
        identity: Mapping[str, str],
        *,
        evaluate: Callable[[nn.Module], Record] | None = None,
        chosen_by: str | None = None,
        describe: Callable[[Record], str] = lambda record: f'loss {record["loss"]:.4g}',
    ) -> list[Record]:
        """Train every epoch that is not done yet. The module ends with the weights that result, in float32.

        Args:
            loader: Of training batches, see `loader`: as many as make whole updates.
            identity: What must be the same for a run to be resumed, besides recipe, seed, precision and initial
                weights.
            evaluate: Measures the weights that result so far after each epoch, on all processes.
            chosen_by: Which of its measurements chooses the epoch that results, the highest; None for the last epoch.
            describe: An epoch in words.

        Returns:
            One record an epoch, those of earlier runs included.

        Raises:
            EvaluationError: If the folder holds the state of another run, another run is writing to it or it cannot be
                written to, or the loss is no longer a number.
        """
        identity = {**self._own_identity(), **identity}
        with alone_in(self.folder) if self.accelerator.is_main_process else nullcontext():
            history = self._run(loader, identity, evaluate, chosen_by, describe)
            self.module.load_state_dict(read_weights(self.folder))
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.module._compiled_call_impl = None  # what is done with it next is not training
        return history

    def _run(
        self,
        loader: DataLoaderShard,
        identity: Mapping[str, str],
        evaluate: Callable[[nn.Module], Record] | None,
        chosen_by: str | None,
        describe: Callable[[Record], str],
    ) -> list[Record]:
        updates = len(loader) // self.accelerator.gradient_accumulation_steps
        scheduler = create_scheduler(self.optimizer, self.recipe, self.recipe.batch_size, updates)
        history, losses = self._resume(identity)  # learning rates too: the optimizer holds them
        before = len(history) * updates + losses.updates
        log, observer = self._open_log(before), self.observer
        watched = observer.watch(self.module, self.folder, before, self.accelerator) if observer else nullcontext()
        with log or nullcontext(), watched:
            for done in range(len(history), self.recipe.epochs):
                epoch = _Epoch(done, updates, losses, log, partial(self._save, identity, history, False))
                record = self._train_epoch(loader, scheduler, epoch)
                losses = EpochLosses(self.accelerator)
                history.append(record | (evaluate(self.result) if evaluate else {}))
                scheduler.step(done + 1)
                if log:  # before the state: what is killed between the two writes the line again, and only once
                    log.write((done + 1) * updates, done + 1, history[-1], 'epoch')
                self._save(identity, history, best_epoch(history, chosen_by) == len(history))
                self.say(f'Epoch {done + 1}/{self.recipe.epochs}: {describe(history[-1])}')
        return history

    def _open_log(self, update: int) -> RunLog | None:
        return RunLog(self.folder, update, self.recipe.batch_size) if self.accelerator.is_main_process else None

    def _train_epoch(self, loader: DataLoaderShard, scheduler: CosineLRScheduler, epoch: '_Epoch') -> Record:
        """The rest of an epoch."""
        accumulated, losses = self.accelerator.gradient_accumulation_steps, epoch.losses
        set_training(self.wrapped, self.recipe.freeze_batch_norm)
        skipped = losses.updates
        rest_of_epoch_in(loader).first = skipped * self.recipe.batch_size
        loader.set_epoch(epoch.done)  # accelerate counts epochs from 0 in every run, and passes that on to the sampler
        hidden = None if self.accelerator.is_main_process else True
        bar = tqdm(
            total=epoch.updates, initial=skipped, desc=f'epoch {epoch.done + 1}', unit='update', leave=False,
            disable=hidden,
        )  # fmt: skip
        saved = time.monotonic()
        with bar:
            for step, batch in enumerate(loader, skipped * accumulated):
                lr = self._step(batch, step, epoch)
                if not self.accelerator.sync_gradients:
                    continue
                update = (step + 1) // accumulated  # of the epoch
                scheduler.step_update(epoch.before + update)
                if self.ema is not None:
                    self.ema.update(self.module)
                bar.update()
                if update == epoch.updates:
                    continue  # the epoch's own state is next
                look = update % LOOK_EVERY == 0
                if look:
                    self._look(epoch, lr, bar)
                if self._is_time_to_save(saved, look):
                    _settle(epoch)
                    epoch.save(losses)
                    saved = time.monotonic()
        self._look(epoch, lr, bar)
        return losses.means() | dict(lr=lr)

    def _step(self, batch: Any, step: int, epoch: '_Epoch') -> float:
        """A forward and a backward pass; with the last one of a batch, an update. Returns its learning rate."""
        accelerator = self.accelerator
        # A resumed run has the same random numbers because every step begins with its own.
        seed_generators(Seeds.spawned(self.seed, epoch.done, step, accelerator.process_index), device=True)
        with accelerator.accumulate(self.wrapped), _one_image_named():
            outputs = self.task(*batch)
            accelerator.backward(outputs['loss'])
            if self.observer is not None and accelerator.sync_gradients:
                self.observer.updated(epoch.before + (step + 1) // accelerator.gradient_accumulation_steps)
            if self.recipe.clip_grad and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip_grad)
            lr = max(group['lr'] for group in self.optimizer.param_groups)
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad()
        epoch.losses.add(outputs)
        return lr

    def _look(self, epoch: '_Epoch', lr: float, bar: tqdm) -> None:
        """Settle the losses so far, and log them."""
        _settle(epoch)
        losses = epoch.losses
        means = losses.means((losses.updates - 1) % LOOK_EVERY + 1)
        bar.set_postfix_str(f'loss {means["loss"]:.4f}', refresh=False)
        if epoch.log and losses.updates < epoch.updates:
            epoch.log.write(epoch.before + losses.updates, epoch.done + 1, means | dict(lr=lr))

    def _is_time_to_save(self, since: float, look: bool) -> bool:
        """Whether to save a state within the epoch; all processes decide alike, and ask each other at looks only."""
        if not self.save_every:
            return True
        due = time.monotonic() - since >= self.save_every
        if self.accelerator.num_processes == 1:
            return due
        return look and bool(broadcast(torch.tensor([due], dtype=torch.int32, device=self.accelerator.device)).item())

    def _own_identity(self) -> dict[str, str]:
        settings = {key: value for key, value in plain(self.recipe).items() if key not in NO_SETTING}
        recipe = {f'recipe: {key}': repr(value) for key, value in settings.items()}
        return {
            **recipe,
            'seed': str(self.seed),
            'weights': self.initial_hash,
            'precision': self.accelerator.mixed_precision,
            'random numbers': 'of each step',
        }

    def _save(
        self, identity: Mapping[str, str], history: list[Record], best: bool, losses: EpochLosses | None = None
    ) -> None:
        """Write the state after an epoch, or within one that has these losses so far."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = dict(
                history=history,
                losses=None if losses is None else losses.settled,
                model=self.module.state_dict(),
                ema=None if self.ema is None else self.ema.module.state_dict(),
                optimizer=self.optimizer.state_dict(),
                scaler=None if scaler is None else scaler.state_dict(),
            )
            write_state(self.folder, identity, state, self.result.state_dict() if best else None)
        self.accelerator.wait_for_everyone()

    def _resume(self, identity: Mapping[str, str]) -> tuple[list[Record], EpochLosses]:
        """Take up the state in the folder, if there is one. Returns the epochs that are done, and what of the next."""
        state = read_state(self.folder, identity)
        if state is None:
            return [], EpochLosses(self.accelerator)
        self.module.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.ema is not None:
            self.ema.module.load_state_dict(state['ema'])
        if self.accelerator.scaler is not None and state['scaler'] is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        losses = EpochLosses(self.accelerator, state['losses'])
        within = f', update {losses.updates} of the next' if losses.updates else ''
        self.say(f'{self.folder}: resumed after epoch {len(state["history"])} of {self.recipe.epochs}{within}.')
        return state['history'], losses


@dataclass(frozen=True)
class _Epoch:
    """An epoch in work: how many are done, the updates of one, its losses, the log, and what saves the state."""

    done: int
    updates: int
    losses: EpochLosses
    log: RunLog | None
    save: Callable[[EpochLosses], None]

    @property
    def before(self) -> int:
        """Updates of the epochs that are done."""
        return self.done * self.updates


def _settle(epoch: _Epoch) -> None:
    """Settle the losses so far; stop where one is not a number."""
    epoch.losses.settle()
    bad = epoch.losses.first_without_number()
    if bad is not None:
        raise EvaluationError(
            f'The loss is no longer a number in update {bad} of epoch {epoch.done + 1}: choose another --output and a '
            'lower --lr, or --precision no.'
        )


def _compile(module: nn.Module, task: TrainingTask, observer: Observer | None) -> None:
    if observer is not None:
        raise EvaluationError(
            f'{type(observer).__name__} reads what is inside the model by hooks, which a compiled one does not run: '
            'leave --compile out.'
        )
    if not getattr(task, 'compiles', True):
        raise EvaluationError(
            f'{type(task).__name__} reads what is inside the model by hooks, which a compiled one does not run: leave '
            '--compile out.'
        )
    module.compile()


@contextmanager
def _one_image_named() -> Iterator[None]:
    """Say what BatchNorm's refusal of a single value means here."""
    try:
        yield
    except ValueError as e:
        if 'more than 1 value per channel' not in str(e):
            raise
        raise EvaluationError(
            'BatchNorm takes its statistics over the images at once, and of a single small one there are none: choose '
            'a --batch-size, or a --micro-batch, of at least 2.'
        ) from e
