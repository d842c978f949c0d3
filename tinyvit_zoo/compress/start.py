"""Which weights a group of blocks starts from (no training)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from .share import Group, find_stages

__all__ = ['INITS', 'choose_weights', 'natural_noise']

INITS = ('first', 'mean', 'best')

Weights = dict[str, torch.Tensor]


def choose_weights(
    teacher: nn.Module,
    student: nn.Module,
    groups: list[list[Group]],
    init: str,
    calibration: Iterable[torch.Tensor] | None,
) -> None:
    """Fill the shared weights of `student` from those that the blocks had before.

    Args:
        teacher: The model before sharing; left as it is.
        student: The multiplexed model, changed in place.
        groups: Its groups, by stage.
        init: See `multiplex`.
        calibration: See `multiplex`.

    Raises:
        ValueError: On an unknown `init`, or nothing to calibrate with.
    """
    if init not in INITS:
        raise ValueError(f'init must be one of {", ".join(INITS)}, got {init!r}.')
    if init == 'best':
        if next(student.parameters()).is_meta:
            raise ValueError("A model on the meta device has no weights to compare: use init='first'.")
        images = [natural_noise(student)] if calibration is None else list(calibration)
        if not images:
            raise ValueError('calibration holds no images.')
        with _evaluating(teacher), _evaluating(student):
            _choose_best(teacher, student, groups, images)
        return
    for group in (group for stage in groups for group in stage):
        _set(group, group.weights[0] if init == 'first' else _mean(group))


@torch.no_grad()
def _choose_best(teacher: nn.Module, student: nn.Module, groups: list[list[Group]], images: list[torch.Tensor]) -> None:
    """Group by group, the weights with which the blocks' outputs are nearest to the teacher's.

    The teacher's blocks go on from the teacher's outputs, the student's from the student's: a later group may make up
    for what an earlier one got wrong. Distance: mean over the blocks of |student - teacher|^2 / |teacher|^2.
    """
    goals = [_tokens(teacher, batch) for batch in images]
    inputs = [x.clone() for x in goals]
    for ours, theirs, stage in zip(find_stages(student), find_stages(teacher), groups, strict=True):
        goals, inputs = [theirs.before(x) for x in goals], [ours.before(x) for x in inputs]
        rest = iter(theirs.blocks)
        for group in stage:
            originals = [next(rest) for _ in group.blocks]
            wanted = [_run(originals, x) for x in goals]
            goals = [outputs[-1] for outputs in wanted]
            found = []
            for weights in [*group.weights, _mean(group)]:
                _set(group, weights)
                outputs = [_run(group.blocks, x) for x in inputs]
                found.append((_distance(outputs, wanted), weights))
            _set(group, min(found, key=lambda pair: pair[0])[1])
            inputs = [_run(group.blocks, x)[-1] for x in inputs]


def _tokens(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the first block is given."""
    weight = next(model.parameters())
    x = model.patch_embed(images.to(weight.device, weight.dtype))
    if isinstance(model, VisionTransformer):
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
    return x


def _run(blocks: list[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """Output of every block."""
    outputs = []
    for block in blocks:
        x = block(x)
        outputs.append(x)
    return outputs


def _distance(outputs: list[list[torch.Tensor]], wanted: list[list[torch.Tensor]]) -> float:
    pairs = [(x, y) for xs, ys in zip(outputs, wanted, strict=True) for x, y in zip(xs, ys, strict=True)]
    return sum(((x - y).square().sum() / y.square().sum()).item() for x, y in pairs) / len(pairs)


def _mean(group: Group) -> Weights:
    return {name: torch.stack([weights[name] for weights in group.weights]).mean(dim=0) for name in group.weights[0]}


@torch.no_grad()
def _set(group: Group, weights: Weights) -> None:
    for name, value in weights.items():
        group.blocks[0].get_parameter(name).copy_(value)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards every module in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def natural_noise(model: nn.Module, count: int = 32, seed: int = 0) -> torch.Tensor:
    """Noise whose amplitude falls with frequency as in natural images (1/f), of mean 0 and deviation 1.

    Args:
        model: Decides on channels and size.
        count: Pictures.
        seed: Of the generator.

    Returns:
        (count, in_chans, H, W), float32, on CPU.
    """
    height, width = model.patch_embed.img_size
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, model.in_chans, height, width, generator=generator)
    rows = torch.fft.fftfreq(height)[:, None] * height
    cols = torch.fft.rfftfreq(width)[None, :] * width
    frequency = (rows.square() + cols.square()).sqrt().clamp(min=1)
    noise = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(height, width))
    return (noise - noise.mean()) / noise.std()
