"""The training loop: any task in timm's form, on one process or many, with its state on disk.

A run that is killed at any moment resumes from its last complete epoch with the same losses to the bit, on the same
machine with as many threads and processes. Model and losses come from the task, numbers from the recipe, images from
the loader; the loop itself knows nothing but the 'loss' that it minimizes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

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
from .ingredients import create_optimizer, create_scheduler, set_training
from .recipes import Recipe
from .run_state import alone_in, read_state, read_weights, write_state

with needs_extra('eval'):
    from accelerate import Accelerator, PartialState
    from accelerate.data_loader import DataLoaderShard
    from accelerate.state import AcceleratorState
    from accelerate.utils import DataLoaderConfiguration

__all__ = ['Record', 'RunSettings', 'Trained', 'TrainingLoop', 'best_epoch', 'train_task']

# What a recipe says of itself; and the held-out share, which the images that are trained on show.
NO_SETTING = ('source', 'notes', 'starts', 'starts_at', 'held_out')
LOOK_EVERY = 50  # steps between looks at whether the loss is still a number: each waits for the device

Record = dict[str, float | None]
"""An epoch by name: the mean of each loss, 'lr' of its last update (the highest of all layers), measurements after it.
"""


class RunSettings(TypedDict, total=False):
    """How a training is run, on what and where; the losses of one seed stay the same. See `TrainingLoop` for each."""

    micro_batch: int | None
    precision: str | None
    device: torch.device | None
    workers: int
    seed: int
    say: Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A finished training of a task; its module has the weights of the last epoch.

    Attributes:
        history: One record an epoch: each of the task's losses, and 'lr'.
        recipe: As it was trained by.
        precision: 'no' (float32), 'bf16' or 'fp16'.
        processes: How many trained together.
    """

    history: tuple[Record, ...]
    recipe: Recipe
    precision: str
    processes: int


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
        seed: Of every random number within the model and the task, with the numbers of epoch and process.
        say: Prints a line.

    Attributes:
        accelerator: Of accelerate.
        module: The trainable module without wrappers.
        ema: Moving average of its weights, where the recipe has one.

    Raises:
        EvaluationError: If the batch does not fit images at once and processes, or the device has no such precision.
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
        say: Callable[[str], None] = print,
    ) -> None:
        self.recipe, self.folder, self.workers, self.seed = recipe, folder, workers, seed
        self.accelerator, self.micro_batch = _accelerator(recipe, micro_batch, precision, device)
        self.say = say if self.accelerator.is_main_process else lambda text: None
        self.module = cast(nn.Module, task.get_trainable_module())
        self.initial_hash = state_hash(self.module)
        self.task = task.to(self.accelerator.device)
        self.ema = ModelEmaV3(self.module, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = create_optimizer(self.module, recipe, recipe.batch_size)
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
            sampler=sampler,
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
        describe: Callable[[Record], str] = lambda record: f'loss {record["loss"]:.4f}',
    ) -> list[Record]:
        """Train every epoch that is not done yet. The module ends with the weights that result, in float32.

        Args:
            loader: Of training batches, see `loader`: as many as make whole updates.
            identity: What must be the same for a run to be resumed, besides recipe, seed and initial weights.
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
        history = self._resume(identity)  # learning rates too: the optimizer holds them
        for done in range(len(history), self.recipe.epochs):
            loader.set_epoch(done)  # accelerate counts epochs from 0 in every run, and passes that on to the sampler
            record = self._train_epoch(loader, scheduler, done, updates)
            history.append(record | (evaluate(self.result) if evaluate else {}))
            scheduler.step(done + 1)
            self._save(identity, history, best_epoch(history, chosen_by) == len(history))
            self.say(f'Epoch {done + 1}/{self.recipe.epochs}: {describe(history[-1])}')
        return history

    def _train_epoch(self, loader: DataLoaderShard, scheduler: CosineLRScheduler, done: int, updates: int) -> Record:
        """One epoch after `done` others."""
        accelerator, losses = self.accelerator, []
        # A resumed run has the same random numbers because every epoch begins with its own.
        epoch_seed = np.random.SeedSequence((self.seed, done, accelerator.process_index)).generate_state(1)[0]
        seed_generators(Seeds.same(int(epoch_seed)), device=True)
        set_training(self.wrapped, self.recipe.freeze_batch_norm)
        number = done * updates
        hidden = None if accelerator.is_main_process else True
        for batch in tqdm(loader, desc=f'epoch {done + 1}', unit='step', leave=False, disable=hidden):
            with accelerator.accumulate(self.wrapped), _one_image_named():
                outputs = self.task(*batch)
                accelerator.backward(outputs['loss'])
                if self.recipe.clip_grad and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip_grad)
                lr = max(group['lr'] for group in self.optimizer.param_groups)
                self.prepared_optimizer.step()
                self.prepared_optimizer.zero_grad()
            if accelerator.sync_gradients:
                number += 1
                scheduler.step_update(number)
                if self.ema is not None:
                    self.ema.update(self.module)
            losses.append({name: value.detach() for name, value in outputs.items() if value.ndim == 0})
            if len(losses) % LOOK_EVERY == 0:
                _check_losses(losses, done)
        _check_losses(losses, done)
        means: Record = {name: self._mean([step[name] for step in losses]) for name in losses[0]}
        return means | dict(lr=lr)

    def _mean(self, values: list[torch.Tensor]) -> float:
        return self.accelerator.reduce(torch.stack(values).double().mean(), 'mean').item()

    def _own_identity(self) -> dict[str, str]:
        settings = {key: value for key, value in plain(self.recipe).items() if key not in NO_SETTING}
        recipe = {f'recipe: {key}': repr(value) for key, value in settings.items()}
        return dict(recipe, seed=str(self.seed), weights=self.initial_hash)

    def _save(self, identity: Mapping[str, str], history: list[Record], best: bool) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = dict(
                history=history,
                model=self.module.state_dict(),
                ema=None if self.ema is None else self.ema.module.state_dict(),
                optimizer=self.optimizer.state_dict(),
                scaler=None if scaler is None else scaler.state_dict(),
            )
            write_state(self.folder, identity, state, self.result.state_dict() if best else None)
        self.accelerator.wait_for_everyone()

    def _resume(self, identity: Mapping[str, str]) -> list[Record]:
        """Take up the state in the folder, if there is one. Returns the epochs that are done."""
        state = read_state(self.folder, identity)
        if state is None:
            return []
        self.module.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.ema is not None:
            self.ema.module.load_state_dict(state['ema'])
        if self.accelerator.scaler is not None and state['scaler'] is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        self.say(f'{self.folder}: resumed after epoch {len(state["history"])} of {self.recipe.epochs}.')
        return state['history']


def train_task(
    task: TrainingTask,
    views: Dataset,
    sampler: Sampler,
    recipe: Recipe,
    output: str | Path,
    identity: Mapping[str, str],
    **run: Unpack[RunSettings],
) -> Trained:
    """Train a task that measures nothing but its losses, or resume an earlier run into the same folder.

    Args:
        task: See `TrainingLoop`. Its trainable module is left in eval mode.
        views: Items that torch collates to the arguments of the task's forward.
        sampler: Indices of `views`, in whole batches of the recipe.
        recipe: Its mixing and augmentation have no effect: the views are what they are.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        identity: What must be the same for a run to be resumed, besides recipe, seed and initial weights.
        **run: See `TrainingLoop`.

    Raises:
        EvaluationError: For a reason of `TrainingLoop` or of its `run`.
    """
    loop = TrainingLoop(task, recipe, Path(output), **run)
    history = loop.run(loop.loader(views, sampler), identity)
    loop.module.eval()
    return Trained(tuple(history), recipe, loop.accelerator.mixed_precision, loop.accelerator.num_processes)


def _accelerator(
    recipe: Recipe, micro_batch: int | None, precision: str | None, device: torch.device | None
) -> tuple[Accelerator, int]:
    """accelerate's accelerator, and the images that a process takes at once."""
    on_cuda = torch.cuda.is_available() if device is None else device.type == 'cuda'
    if on_cuda and device is not None and device.index is not None:
        torch.cuda.set_device(device)
    if precision == 'fp16' and not on_cuda:
        raise EvaluationError('fp16 needs a CUDA device: choose bf16, or no.')
    AcceleratorState._reset_state(reset_partial_state=True)  # else device and precision of an earlier run stay
    processes = PartialState(cpu=not on_cuda).num_processes
    micro_batch = micro_batch or max(recipe.batch_size // processes, 1)
    accelerator = Accelerator(
        cpu=not on_cuda,
        mixed_precision=precision or ('bf16' if on_cuda else 'no'),
        gradient_accumulation_steps=_accumulated_steps(recipe, micro_batch, processes),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        rng_types=[],  # every random number here has a seed of its own
    )
    return accelerator, micro_batch


def _accumulated_steps(recipe: Recipe, micro_batch: int, processes: int) -> int:
    steps, rest = divmod(recipe.batch_size, micro_batch * processes)
    if rest or not steps:
        raise EvaluationError(
            f'A batch of {recipe.batch_size} is not a multiple of {processes} x {micro_batch} images at once: choose '
            '--batch-size and --micro-batch so that one divides the other.'
        )
    if micro_batch % 2 and (recipe.mixup or recipe.cutmix):
        raise EvaluationError(
            f'Mixup needs pairs and {micro_batch} images at once are odd: choose an even --batch-size or --micro-batch.'
        )
    return steps


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


def _check_losses(losses: Sequence[Mapping[str, Any]], done: int) -> None:
    if not torch.stack([step['loss'] for step in losses[-LOOK_EVERY:]]).isfinite().all():
        raise EvaluationError(
            f'The loss is no longer a number in epoch {done + 1}: choose another --output and a lower --lr, or '
            '--precision no.'
        )
