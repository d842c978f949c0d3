"""Shared by the benchmarks: model variants, the machine, the report, and the authors' modules."""

import copy
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import timm
import torch
from timm.models import _registry, reparameterize_model
from torch import nn

from tinyvit_zoo.common.paired_timing import cpu_name, measure
from tinyvit_zoo.layers import DeployLinear

__all__ = [
    'deploy', 'forward', 'has_bf16', 'import_file', 'matrix_rate', 'print_machine', 'report', 'write_figures',
]  # fmt: skip


def deploy(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Folded, channels_last, in `dtype`."""
    return reparameterize_model(model).to(dtype=dtype, memory_format=torch.channels_last)


def forward(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def matrix_rate(layer: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of one thread in a linear layer of a size typical of the models: the best of many runs."""
    x = torch.randn(1568, layer.in_features).to(dtype)
    layer = layer.to(dtype)
    with torch.inference_mode():
        seconds = measure({'product': lambda: [layer(x) for _ in range(10)]}, 30)['product']
    return 10 * 2 * x.shape[0] * layer.in_features * layer.out_features / min(seconds) / 1e9


def print_machine(rounds: int) -> tuple[str, dict[str, float]]:
    """Print processor, versions and GFLOP/s of one thread in matrix products, and return them."""
    rates = {
        'float32': matrix_rate(nn.Linear(384, 1536)),
        'float32 in deploy form': matrix_rate(DeployLinear(384, 1536)),
    }
    if has_bf16():
        rates['bfloat16'] = matrix_rate(nn.Linear(384, 1536), torch.bfloat16)
    where = (
        f'{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, timm {timm.__version__}'
    )
    print(f'{where}\none thread, {rounds} rounds, process CPU time; load average {os.getloadavg()[0]:.1f}')
    print('matrix product, one thread: ' + ', '.join(f'{k} {v:.0f} GFLOP/s' for k, v in rates.items()))
    if not has_bf16():
        print('bf16: n/a, this processor has no bf16 instructions')
    return where, rates


def report(result: dict, rates: dict[str, float], targets: dict[str, dict]) -> None:
    """Print ratios with their targets, then rates."""
    print(f'\n{result["model"]} B={result["batch"]}')
    for row, value in result['ratios'].items():
        target = targets.get(row, {}).get((result['model'], result['batch']))
        print(
            f'  {row:34s} {value:5.2f}'
            + (f'   target {target:.2f} {"met" if value >= target else "MISSED"}' if target else '')
        )
    for variant, rate in result.get('gflop_per_s', {}).items():
        limit = rates['bfloat16' if 'bf16' in variant else 'float32']  # the products that timm's models use
        print(
            f'  {variant:16s} {result["img_per_s"][variant]:7.2f} img/s  {rate:6.1f} GFLOP/s, '
            f'{rate / limit:.0%} of the matrix rate'
        )


def write_figures(path: Path | None, **figures: object) -> None:
    """Write the measurements as JSON and print the path, if one is given."""
    if path:
        path.write_text(json.dumps(figures, indent=2))
        print(f'\nfigures in {path}')


def import_file(path: Path) -> ModuleType:
    """Import a file of the authors' code, and undo its registrations, which would replace timm's models."""
    kept = {k: copy.copy(v) for k, v in vars(_registry).items() if isinstance(v, dict | set) and not k.startswith('__')}
    spec = importlib.util.spec_from_file_location(f'official_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))  # their files import each other
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        for k, v in kept.items():
            getattr(_registry, k).clear()
            getattr(_registry, k).update(v)
    return module
