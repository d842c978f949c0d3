"""Comparison of detection backbones: time of a forward pass and of a training step, peak memory, parameters.

All variants are made in one process and measured in turn (`tinyvit_zoo.common.paired_timing`): process CPU time of
one thread, or CUDA events. Peak memory is that of one training step (forward and backward, gradients included, no
optimizer) in excess of the model and the image; on a CPU it is the peak resident size of a process that does nothing
else, after a step on a small image has loaded the code.
"""

import gc
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from mmengine.registry import MODELS
from torch import nn

import tinyvit_zoo
from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.paired_timing import cpu_name, cuda_ms, measure, ratio
from tinyvit_zoo.common.text import count_of

__all__ = ['DEFAULT', 'build', 'peak_memory', 'report', 'run']

SWIN, TIMM = 'mmdet:swin_tiny', 'timm:tiny_vit_21m_224'
DEFAULT = (
    'tinyvit_5m_224', 'tinyvit_11m_224', 'tinyvit_21m_224', 'tinyvit_21m_224+cp', TIMM,
    'mini_swin_tiny_patch4_window7_224+img_size=448+window_sizes=7', SWIN,
)  # fmt: skip
"""Names of `build`."""

SMALL = 64  # side of the image that loads the code
CUDA_CALLS = 3


class TimmFeatures(nn.Module):
    """timm's own feature extractor, without anything of ours."""

    def __init__(self, name: str, with_cp: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.net = cast(Any, timm.create_model(name, features_only=True, **kwargs))
        if with_cp:
            self.net.set_grad_checkpointing(True)
        self.channels = tuple(self.net.feature_info.channels())
        self.strides = tuple(self.net.feature_info.reduction())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) -> maps (B, channels[i], ...)."""
        return tuple(self.net(images))


def build(name: str) -> nn.Module:
    """A backbone with random weights and no stochastic depth.

    Args:
        name: Of a model for `ZooBackbone`; 'timm:NAME' for timm's own features; 'mmdet:swin_tiny' for mmdet's
            `SwinTransformer`. A suffix '+cp' turns on gradient checkpointing; '+img_size=448' and the like pass a
            number as that argument to the model.

    Raises:
        EvaluationError: If there is no such model, or it does not accept an argument.
    """
    plain, *extras = name.split('+')
    args = dict(_argument(name, extra) for extra in extras)
    try:
        if plain == SWIN:
            model = MODELS.build(dict(type='mmdet.SwinTransformer', drop_path_rate=0.0, **args))
            model.channels = tuple(model.num_features)
            model.strides = (4, 8, 16, 32)
        elif plain.startswith('timm:'):
            model = TimmFeatures(plain.removeprefix('timm:'), **args)
        else:
            model = MODELS.build(dict(type='ZooBackbone', model_name=plain, drop_path_rate=0.0, **args))
    except (RuntimeError, TypeError, ValueError) as e:
        raise EvaluationError(f"'{name}' cannot be made as a backbone: {e}") from e
    return model


def _argument(name: str, extra: str) -> tuple[str, Any]:
    if extra == 'cp':
        return 'with_cp', True
    key, _, value = extra.partition('=')
    if not value.isdigit():
        raise EvaluationError(f"'{name}' has +{extra}: only +cp and numbers, as +img_size=448, are known.")
    return key, int(value)


def run(
    names: Sequence[str],
    size: tuple[int, int],
    rounds: int,
    device: torch.device | str = 'cpu',
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure backbones on one image.

    Args:
        names: See `build`.
        size: Height and width of the image in pixels.
        rounds: Number of measurements of each variant, after a warm-up that is not counted.
        device: CPU (one thread) or CUDA.
        say: Prints a line.

    Returns:
        Machine and settings of the measurement, and by name: parameters, channels, strides, seconds of each round,
        bytes.

    Raises:
        EvaluationError: If a backbone cannot be made, or its memory not be measured.
    """
    device = torch.device(device)
    names = list(dict.fromkeys(names))
    with one_thread():
        models = {name: build(name).to(device) for name in names}
        image = torch.randn(1, 3, *size, device=device)
        say(f'{_where(device)}; {size[0]}x{size[1]}, B=1, {count_of(rounds, "round")}')
        result = {name: _facts(model) for name, model in models.items()}
        for kind, mode, act in (('forward', False, _forward), ('training_step', True, _step)):
            for model in models.values():
                model.train(mode)
            calls = {name: _call(act, model, image) for name, model in models.items()}
            for name, seconds in _measure(calls, rounds, device).items():
                result[name][f'{kind}_s'] = seconds
        del models, model, calls
        gc.collect()
        for name in names:
            result[name]['step_peak_bytes'] = peak_memory(name, size, device)
    return dict(
        where=_where(device), device=str(device), size=list(size), batch=1, rounds=rounds,
        load_average=os.getloadavg()[0], backbones=result,
    )  # fmt: skip


def _facts(model: Any) -> dict[str, Any]:
    parameters = sum(p.numel() for p in model.parameters())
    return dict(parameters=parameters, channels=list(model.channels), strides=list(model.strides))


def _forward(model: nn.Module, image: torch.Tensor) -> None:
    with torch.inference_mode():
        model(image)


def _step(model: nn.Module, image: torch.Tensor) -> None:
    sum(features.square().mean() for features in model(image)).backward()
    model.zero_grad(set_to_none=True)


def _call(act: Callable[..., None], model: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    return lambda: act(model, image)


def _measure(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    if device.type != 'cuda':
        return measure(calls, rounds)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(cuda_ms(calls[name], 1, CUDA_CALLS) / 1000)
    return seconds


def _where(device: torch.device) -> str:
    versions = f'torch {torch.__version__}, timm {timm.__version__}'
    if device.type == 'cuda':
        return f'{torch.cuda.get_device_name(device)}, {versions}, TF32 {torch.backends.cuda.matmul.allow_tf32}'
    return f'{cpu_name()}, one thread, process CPU time, {versions}'


# ---- memory


def peak_memory(name: str, size: tuple[int, int], device: torch.device | str = 'cpu') -> int | None:
    """Peak memory of one training step in bytes, in excess of the model and the image.

    Returns:
        None where the system does not report it (a CPU run outside Linux).

    Raises:
        EvaluationError: If the process that measures fails.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        return _peak_on_cuda(name, size, device)
    if not Path('/proc/self/clear_refs').exists():
        return None
    program = f'from tinyvit_zoo.downstream.detection.bench import _print_peak; _print_peak({name!r}, {tuple(size)!r})'
    folder = str(Path(tinyvit_zoo.__file__).parents[1])
    # One heap, returned at once, so that only memory in use is counted.
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'MALLOC_ARENA_MAX': '1', 'MALLOC_TRIM_THRESHOLD_': '0'}
    environment['PYTHONPATH'] = os.pathsep.join([folder, *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run([sys.executable, '-P', '-c', program], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise EvaluationError(f'The memory of {name} cannot be measured: {(done.stderr.strip() or "killed")[-300:]}')
    return int(done.stdout.split()[-1])


def _print_peak(name: str, size: tuple[int, int]) -> None:
    """Print the peak in bytes; the program of a separate process."""
    torch.set_num_threads(1)
    model = build(name)
    model.train()
    _step(model, torch.randn(1, 3, SMALL, SMALL))
    image = torch.randn(1, 3, *size)
    gc.collect()
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts from here
    before = _resident('VmRSS')
    _step(model, image)
    print(_resident('VmHWM') - before)


def _resident(field: str) -> int:
    """Bytes of a field of /proc/self/status, such as VmRSS."""
    found = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    if found is None:
        raise EvaluationError(f'/proc/self/status has no {field}.')
    return 1024 * int(found[1])


def _peak_on_cuda(name: str, size: tuple[int, int], device: torch.device) -> int:
    model, image = build(name).to(device), torch.randn(1, 3, *size, device=device)
    model.train()
    _step(model, torch.randn(1, 3, SMALL, SMALL, device=device))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _step(model, image)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


# ---- results


def ratios(results: dict[str, Any], to: str) -> dict[str, dict[str, float]]:
    """By name: speed relative to `to` (medians over the rounds), and parameters and memory as fractions of its own."""
    measured = results['backbones']
    if to not in measured:
        return {}
    theirs, table = measured[to], {}
    for name, ours in measured.items():
        if name == to:
            continue
        table[name] = dict(
            forward=ratio(theirs['forward_s'], ours['forward_s']),
            training_step=ratio(theirs['training_step_s'], ours['training_step_s']),
            parameters=ours['parameters'] / theirs['parameters'],
        )
        if ours['step_peak_bytes'] and theirs['step_peak_bytes']:
            table[name]['memory'] = ours['step_peak_bytes'] / theirs['step_peak_bytes']
    return table


def report(results: dict[str, Any], output: Path | None, say: Callable[[str], None] = print) -> None:
    """Print the numbers and the ratios to Swin-T and to timm's TinyViT; write them as bench.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    width = max(map(len, results['backbones'])) + 2
    say(f'{"":{width}s} {"params":>8s} {"forward":>9s} {"step":>9s} {"peak":>9s}  channels of the maps')
    for name, row in results['backbones'].items():
        forward, step = (statistics.median(row[f'{kind}_s']) for kind in ('forward', 'training_step'))
        peak = f'{row["step_peak_bytes"] / 2**20:6.0f} MiB' if row['step_peak_bytes'] else '?'
        say(
            f'{name:{width}s} {row["parameters"] / 1e6:6.2f} M {forward:7.3f} s {step:7.3f} s {peak:>9s}  '
            f'{"/".join(map(str, row["channels"]))} at {"/".join(map(str, row["strides"]))}'
        )
    compared = {to: table for to in (SWIN, TIMM) if (table := ratios(results, to))}
    for to, table in compared.items():
        say(f'\ncompared with {to}: times as fast in forward and training step; fraction of its memory and parameters')
        for name, row in table.items():
            memory = f'{row["memory"]:.2f}' if 'memory' in row else '?'
            say(
                f'  {name:{width - 2}s} {row["forward"]:6.2f} x {row["training_step"]:6.2f} x   memory {memory:>5s}   '
                f'parameters {row["parameters"]:.2f}'
            )
    if output:
        write_whole(output / 'bench.json', json.dumps({**results, 'ratios': compared}, indent=2).encode())
        say(f'\nfigures in {output / "bench.json"}')
