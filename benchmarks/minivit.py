"""Mini-Swin and Mini-DeiT compared with timm's uncompressed Swin and DeiT and the authors' classes, in one process.

Weight multiplexing saves parameters, not products: a Mini model does everything that its uncompressed one does, and
mixes heads. Ours and the authors' hold the same random weights, and their outputs are compared before anything is
timed; timm's have weights of their own. On CPU: one thread, process CPU time, the variants in turn, the order reversed
every other round; a ratio is the median of the rounds' ratios.

    python benchmarks/minivit.py
    python benchmarks/minivit.py --official PATH         # PATH holds Mini-DeiT/ and Mini-Swin/ of the authors' code
    python benchmarks/minivit.py --only mini_deit_small_patch16_224 --rounds 21 --no-compile
"""

import argparse
import contextlib
import copy
import io
import statistics
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from timing import deploy, forward, has_bf16, import_file, print_machine, report, write_figures
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tinyvit_zoo.checkpoints import MINI_DEIT_KEYS, MINI_SWIN_KEYS
from tinyvit_zoo.common.paired_timing import measure, ratio, same

DEIT, SWIN = 'mini_deit_small_patch16_224', 'mini_swin_tiny_patch4_window7_224'
UNCOMPRESSED = {DEIT: 'deit_small_patch16_224', SWIN: 'swin_tiny_patch4_window7_224'}
BATCHES = (8, 1)
TARGETS = {
    'as created / official': {(SWIN, 8): 1.12, (DEIT, 8): 1.10},
    'bf16 / official fp32': {(SWIN, 8): 2.5, (DEIT, 8): 2.5},
    'as created / timm uncompressed': {(SWIN, 8): 0.97, (DEIT, 8): 0.93},
}


def randomise(model: nn.Module) -> None:
    """Tables, norms and head mixing away from their initial values; head mixing about the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_mixing = '.proj_l.' in name or '.proj_w.' in name
            if parameter.ndim == 1 or is_mixing or 'table' in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
                if is_mixing and parameter.ndim == 2:
                    parameter.add_(torch.eye(len(parameter)))
                elif parameter.ndim == 1 and name.endswith('weight'):
                    parameter.add_(1.0)


class _AttrDict(dict):
    """Stands in for the authors' dependency `easydict`."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def official(name: str, folder: Path, ours: nn.Module) -> nn.Module:
    """The authors' class with our weights."""
    with contextlib.redirect_stdout(io.StringIO()):  # their constructor prints
        if name == SWIN:
            model = import_file(folder / 'Mini-Swin' / 'models' / 'swin_transformer_minivit.py').SwinTransformerMiniViT(
                separate_layer_num_list=[1, 1, 1, 1],
                is_sep_layernorm=True,
                is_transform_heads=True,
                is_transform_FFN=True,
            )
            model.load_state_dict(MINI_SWIN_KEYS.to_official(ours.state_dict()))
            return model.eval()
        sys.modules.setdefault('easydict', types.ModuleType('easydict')).EasyDict = _AttrDict
        module = import_file(folder / 'Mini-DeiT' / 'mini_vision_transformer.py')
        rpe = sys.modules['irpe'].get_rpe_config(
            ratio=1.9, method='product', mode='ctx', shared_head=True, skip=0, rpe_on='k'
        )
        model = module.VisionTransformer(
            embed_dim=384,
            num_heads=6,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            rpe_config=rpe,
            use_cls_token=False,
            repeated_times=2,
            use_transform=True,
        )
    model.load_state_dict(MINI_DEIT_KEYS.to_official(ours.state_dict()))
    return model.eval()


def make(name: str) -> tuple[nn.Module, nn.Module]:
    """Our Mini model, and timm's uncompressed one."""
    ours = timm.create_model(name)
    randomise(ours)
    return ours.eval(), timm.create_model(UNCOMPRESSED[name]).eval()


def bench_inference(name: str, batch: int, args: argparse.Namespace) -> dict:
    ours, uncompressed = make(name)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    variants = {'as created': forward(ours, x), 'deploy': forward(deploy(ours), x)}
    if has_bf16():
        variants['bf16'] = forward(copy.deepcopy(ours).bfloat16(), x.bfloat16())
        variants['deploy bf16'] = forward(deploy(ours, torch.bfloat16), x.bfloat16())
    if args.official:
        variants['official'] = forward(official(name, args.official, ours), x)
    reference = variants['as created']()
    for variant, call in variants.items():
        same(call(), reference, 5e-2 if 'bf16' in variant else 1e-4)
    variants['timm'] = forward(uncompressed, x)
    seconds = measure(variants, args.rounds)
    if args.compile:
        torch.compiler.reset()
        compiled = {
            'timm compiled': forward(torch.compile(copy.deepcopy(uncompressed)), x),
            'deploy compiled': forward(torch.compile(deploy(ours)), x),
        }
        seconds |= measure(compiled, args.rounds)
    rows = {'as created / timm uncompressed': ('timm', 'as created'), 'deploy / timm uncompressed': ('timm', 'deploy')}
    if args.compile:
        rows['deploy compiled / timm compiled'] = ('timm compiled', 'deploy compiled')
    if args.official:
        rows['as created / official'] = ('official', 'as created')
        rows['deploy / official'] = ('official', 'deploy')
        if has_bf16():
            rows['bf16 / official fp32'] = ('official', 'bf16')
            rows['deploy bf16 / official fp32'] = ('official', 'deploy bf16')
    return dict(
        model=name,
        batch=batch,
        img_per_s={k: batch / statistics.median(v) for k, v in seconds.items()},
        gflop_per_s={
            k: gflop(UNCOMPRESSED[name] if 'timm' in k else name, batch) / statistics.median(v)
            for k, v in seconds.items()
        },
        ratios={row: ratio(seconds[a], seconds[b]) for row, (a, b) in rows.items()},
    )


def gflop(name: str, batch: int) -> float:
    """10^9 floating-point operations of the products and convolutions of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        timm.create_model(name, device='meta').eval()(torch.empty(batch, 3, 224, 224, device='meta'))
    return counter.get_total_flops() / 1e9


def bench_training(name: str, batch: int, args: argparse.Namespace) -> dict:
    """Forward and backward in float32."""
    x = torch.randn(batch, 3, 224, 224)

    def step(model: nn.Module) -> Callable[[], None]:
        return lambda: model(x).square().mean().backward()

    ours, uncompressed = make(name)
    variants = {'ours': step(ours.train()), 'timm': step(uncompressed.train())}
    if args.official:
        variants['official'] = step(official(name, args.official, ours).train())
    seconds = measure(variants, args.rounds)
    rows = {f'training step / {k}': ratio(seconds[k], seconds['ours']) for k in variants if k != 'ours'}
    return dict(model=name, batch=batch, ratios=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--only', choices=list(UNCOMPRESSED))
    parser.add_argument('--official', type=Path, help="folder of the authors' MiniViT code")
    parser.add_argument('--no-compile', dest='compile', action='store_false')
    parser.add_argument('--no-train', dest='train', action='store_false')
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    torch.set_num_threads(1)
    where, rates = print_machine(args.rounds)
    results = []
    for name in [args.only] if args.only else UNCOMPRESSED:
        for batch in BATCHES:
            results.append(bench_inference(name, batch, args))
            report(results[-1], rates, TARGETS)
        if args.train:
            results.append(bench_training(name, 4, args))
            report(results[-1], rates, TARGETS)
    write_figures(args.json, where=where, rounds=args.rounds, rates=rates, results=results)


if __name__ == '__main__':
    main()
