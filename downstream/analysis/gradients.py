"""Norms of the gradients of logical layers during a training (MiniViT Fig. 4).

A logical layer is a call of a block. Weights that several calls share get a gradient from each of them: what counts
here is the contribution of the call, not the sum that the optimizer sees.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.text import reason
from tinyvit_zoo.training.blocks import find_blocks

from .layers import next_name

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ['GRADIENTS', 'CallGradients', 'GradientNorms', 'Norms', 'read_norms']

GRADIENTS = 'gradients.csv'


class CallGradients:
    """Gradients of the parameters of blocks, call by call, while the context is open.

    During a call of a block its parameters are views of themselves, whose gradients are those of this call; they flow
    on to the parameters as before. Calls are counted anew in every forward pass of the model, and the gradients of
    several passes add up until `clear`. Nothing is recorded where no gradient is.

    Under autocast each call casts its own views, and gradients of shared weights add up in the type of the weights.
    Without views autocast casts a weight once for all calls, and they add up in half precision: the same to rounding.

    Args:
        model: Made of blocks; not compiled. Re-entrant checkpointing hides its calls.

    Attributes:
        sums: By name of the logical layer, in the order of the calls: parameter -> gradient of the same shape. The
            second call of `blocks.0` is `blocks.0 (2)`.

    Raises:
        EvaluationError: If the model has no blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sums: dict[str, dict[nn.Parameter, torch.Tensor]] = {}
        blocks = set(find_blocks(model))
        self._names = {module: name for name, module in model.named_modules() if module in blocks}
        self._called: list[str] = []
        self._running = False
        self._hidden: list[tuple[dict[str, Any], str, nn.Parameter]] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> 'CallGradients':
        self._handles = [
            self.model.register_forward_pre_hook(self._begin_pass),
            self.model.register_forward_hook(self._end_pass, always_call=True),
        ]
        for block in self._names:
            self._handles.append(block.register_forward_pre_hook(self._begin))
            self._handles.append(block.register_forward_hook(self._end, always_call=True))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end()
        while self._handles:
            self._handles.pop().remove()

    def clear(self) -> None:
        """Forget the gradients so far."""
        self.sums.clear()

    def _begin_pass(self, *_: object) -> None:
        self._called.clear()
        self._running = True

    def _end_pass(self, *_: object) -> None:
        self._running = False

    def _begin(self, block: nn.Module, *_: object) -> None:
        # Outside a pass, checkpointing runs a block again in the backward pass: the gradients are those of the first.
        if not self._running or not torch.is_grad_enabled():
            return
        name = next_name(self._names[block], self._called)
        self._called.append(name)
        sums = self.sums.setdefault(name, {})
        views: dict[nn.Parameter, torch.Tensor] = {}
        for module in block.modules():
            own: dict[str, Any] = module._parameters
            for key, parameter in own.items():
                if not isinstance(parameter, nn.Parameter) or not parameter.requires_grad:
                    continue
                if parameter not in views:
                    views[parameter] = parameter.view_as(parameter)
                    views[parameter].register_hook(_adder(sums, parameter))
                self._hidden.append((own, key, parameter))
                own[key] = views[parameter]

    def _end(self, *_: object) -> None:
        """Put the parameters back."""
        while self._hidden:
            own, key, parameter = self._hidden.pop()
            own[key] = parameter


def _adder(sums: dict[nn.Parameter, torch.Tensor], parameter: nn.Parameter) -> Any:
    def add(gradient: torch.Tensor) -> None:
        sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient.detach().clone()

    return add


class GradientNorms:
    """Writes the norm of each logical layer's gradient at each update of a training: an observer of `TrainingLoop`.

    `gradients.csv` in the folder of the run has a line an update, with its number and a column for each layer: the l2
    norm over all parameters of the block of what this call adds to their gradients, averaged over the images of the
    update, before clipping. A resumed run continues it. The gradients of one update are kept once more for it.
    """

    def __init__(self) -> None:
        self._gradients: CallGradients | None = None
        self._accelerator: Accelerator | None = None
        self._file: IO[str] | None = None

    @contextmanager
    def watch(self, module: nn.Module, folder: Path, updates: int, accelerator: 'Accelerator') -> Iterator[None]:
        """Hook into a module while it trains, and open the file.

        Args:
            module: The trainable one, without wrappers.
            folder: Of the run.
            updates: How many are done; the lines of later ones are removed.
            accelerator: Of the run.

        Raises:
            EvaluationError: If the module has no blocks, or the file cannot be written.
        """
        self._accelerator = accelerator
        with CallGradients(module) as self._gradients:
            if accelerator.is_main_process:
                path = folder / GRADIENTS
                with _writing(path):
                    write_whole(path, _until(path, updates).encode())
                    self._file = path.open('a', encoding='utf-8', newline='')
            try:
                yield
            finally:
                if self._file is not None:
                    self._file.close()
                    self._file = None

    def updated(self, number: int) -> None:
        """Write the line of an update, from 1, whose gradients are complete. Raises: EvaluationError: As `watch`."""
        assert self._gradients is not None
        assert self._accelerator is not None
        norms = _norms(self._gradients.sums, self._accelerator)
        self._gradients.clear()
        if self._file is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        with _writing(Path(self._file.name)):
            if not self._file.tell():
                writer.writerow(['update', *norms])
            writer.writerow([number, *(f'{norm:.9g}' for norm in norms.values())])
            self._file.write(text.getvalue())
            self._file.flush()


def _norms(sums: Mapping[str, Mapping[nn.Parameter, torch.Tensor]], accelerator: 'Accelerator') -> dict[str, float]:
    """The norm of each layer, of the mean over processes, without the scale that fp16 puts on losses."""
    scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
    squares = []
    for layer in sums.values():
        gradients = list(layer.values())
        if accelerator.num_processes > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            gradients = [accelerator.reduce(flat, 'mean')]
        norms = [torch.linalg.vector_norm(gradient.float() / scale) for gradient in gradients]
        squares.append(torch.stack(norms).square().sum() if norms else torch.zeros((), device=accelerator.device))
    values = torch.stack(squares).sqrt().tolist() if squares else []  # waits for the device once
    return dict(zip(sums, values, strict=True))


def _until(path: Path, updates: int) -> str:
    """The header and the whole lines up to an update; empty for none."""
    if not updates or not path.exists():
        return ''
    kept = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True):
        number = line.partition(',')[0]
        if line.endswith('\n') and (number == 'update' or (number.isdigit() and int(number) <= updates)):
            kept.append(line)
    return ''.join(kept)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise EvaluationError(
            f'{path} cannot be written ({reason(e)}): make room and give the same command again, which resumes from '
            'the last state that is on the disk.'
        ) from e


@dataclass(frozen=True)
class Norms:
    """What `GradientNorms` wrote.

    Attributes:
        updates: int64 (U,), from 1.
        layers: Names of the L logical layers.
        values: float64 (U, L).
    """

    updates: np.ndarray
    layers: tuple[str, ...]
    values: np.ndarray


def read_norms(folder: Path) -> Norms:
    """The norms that a run wrote to its folder. Raises: EvaluationError: If they are missing, damaged or none."""
    path = folder / GRADIENTS
    try:
        with path.open(encoding='utf-8', newline='') as file:
            header, *rows = [*csv.reader(file)] or [[]]
        values = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    except (OSError, ValueError) as e:
        raise EvaluationError(
            f'{path} is missing or damaged ({reason(e)}): choose another --output, and train with --gradient-norms.'
        ) from e
    if not rows:
        raise EvaluationError(
            f'{path} has no update, as the run in this folder was trained without --gradient-norms: choose another '
            '--output, or leave the option out.'
        )
    return Norms(values[:, 0].astype(np.int64), tuple(header[1:]), values[:, 1:])
