"""Our TinyViT compared with timm's in one process: ratios of speed, ours over theirs.

Both models hold the same random weights with non-trivial BatchNorm statistics and bias tables, and their outputs are
compared before anything is timed. On CPU: one thread, process CPU time, the variants in turn, the order reversed
every other round, the median of each; a ratio is the median of the rounds' ratios. On CUDA: events around a batch of
calls, median.

    python benchmarks/inference.py                       # the table of docs/speed.md
    python benchmarks/inference.py --only 21m_224 --rounds 15 --no-compile
    python benchmarks/inference.py --official PATH       # and the authors' class: PATH holds models/tiny_vit.py
    python benchmarks/inference.py --device cuda
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timing import deploy, forward, has_bf16, import_file, print_machine, report, write_figures
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tinyvit_zoo  # noqa: F401  registers our models
from tinyvit_zoo.checkpoints import TINYVIT_KEYS
from tinyvit_zoo.common.paired_timing import cuda_ms, measure, ratio

# (model, batch), and the targets set for the ratios; None: not set.
CASES = {'21m_224': [8, 1], '21m_384': [2], '5m_224': [8]}
TARGETS = {
    'as created': {('21m_224', 8): 1.15, ('21m_384', 2): 1.35, ('5m_224', 8): 1.15, ('21m_224', 1): 1.05},
    'deploy': {('21m_224', 8): 1.30, ('21m_384', 2): 1.55, ('5m_224', 8): 1.35, ('21m_224', 1): 1.15},
    'deploy bf16 / timm fp32': {('21m_224', 8): 4.2, ('21m_384', 2): 3.9, ('5m_224', 8): 3.3, ('21m_224', 1): 2.6},
    'deploy compiled / timm compiled': {
        ('21m_224', 8): 1.10,
        ('21m_384', 2): 1.15,
        ('5m_224', 8): 1.10,
        ('21m_224', 1): 1.05,
    },
    'training step': {('21m_224', 4): 1.05},
}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights as created, but BatchNorm statistics, norms and bias tables away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith('running_var'):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point() and (tensor.ndim == 1 or name.endswith('attention_biases')):
                scale = 0.1 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(scale + (1.0 if name.endswith('weight') else 0.0))


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Ours and timm's, with the same weights, in eval mode."""
    ours = timm.create_model(f'tinyvit_{name}', num_classes=1000)
    randomise(ours)
    theirs = timm.create_model(f'tiny_vit_{name}', num_classes=1000)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def official(name: str, folder: Path, ours: nn.Module) -> nn.Module:
    """The authors' class with our weights."""
    module = import_file(folder / 'models' / 'tiny_vit.py')
    blocks = [stage.blocks for stage in ours.stages]
    model = module.TinyViT(
        img_size=ours.img_size[0],
        num_classes=1000,
        embed_dims=[info['num_chs'] for info in ours.feature_info],
        depths=[len(b) for b in blocks],
        num_heads=[1] + [b[0].attn.num_heads for b in blocks[1:]],
        window_sizes=[w[0] for w in ours.window_sizes],
    )
    model.load_state_dict(TINYVIT_KEYS.to_official(ours.state_dict()), strict=False)
    return model.eval()


def bench_inference(name: str, batch: int, args: argparse.Namespace) -> dict:
    ours, theirs = pair(name)
    x = torch.randn(batch, 3, *ours.img_size, generator=torch.Generator().manual_seed(1))
    variants = {'timm': forward(theirs, x), 'as created': forward(ours, x), 'deploy': forward(deploy(ours), x)}
    if has_bf16():
        variants['deploy bf16'] = forward(deploy(ours, torch.bfloat16), x.bfloat16())
        variants['timm bf16'] = forward(copy.deepcopy(theirs).bfloat16(), x.bfloat16())
    if args.official:
        variants['official'] = forward(official(name, args.official, ours), x)
    reference = variants['timm']()
    seconds = measure(variants, args.rounds, reference)
    if args.compile:  # apart from the others: a compiler in the process leaves another heap behind
        torch.compiler.reset()  # else sizes seen in an earlier case make this one's graphs dynamic, and slow
        compiled = {
            'timm compiled': forward(torch.compile(copy.deepcopy(theirs)), x),
            'deploy compiled': forward(torch.compile(deploy(ours)), x),
        }
        seconds |= measure(compiled, args.rounds, reference)
    with FlopCounterMode(display=False) as counter:
        timm.create_model(f'tinyvit_{name}', device='meta').eval()(torch.empty_like(x, device='meta'))
    result = dict(model=name, batch=batch, gflop=counter.get_total_flops() / 1e9)
    result['img_per_s'] = {k: batch / statistics.median(v) for k, v in seconds.items()}
    result['gflop_per_s'] = {k: result['gflop'] / statistics.median(v) for k, v in seconds.items()}
    rows = {'as created': ('timm', 'as created'), 'deploy': ('timm', 'deploy')}
    if 'deploy bf16' in seconds:
        rows['deploy bf16 / timm fp32'] = ('timm', 'deploy bf16')
        rows['deploy bf16 / timm bf16'] = ('timm bf16', 'deploy bf16')
    if args.compile:
        rows['deploy compiled / timm compiled'] = ('timm compiled', 'deploy compiled')
    if args.official:
        rows['as created / official'] = ('official', 'as created')
        rows['deploy / official'] = ('official', 'deploy')
    result['ratios'] = {row: ratio(seconds[a], seconds[b]) for row, (a, b) in rows.items()}
    return result


def bench_training(name: str, batch: int, args: argparse.Namespace) -> dict:
    """Forward, backward and SGD step in float32."""
    x = torch.randn(batch, 3, 224, 224)

    def step(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-6)

        def call() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        return call

    ours, theirs = pair(name)
    seconds = measure({'timm': step(theirs), 'ours': step(ours)}, args.rounds)
    return dict(model=name, batch=batch, ratios={'training step': ratio(seconds['timm'], seconds['ours'])})


def run_cpu(args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    where, rates = print_machine(args.rounds)
    results = []
    for name, batches in CASES.items():
        for batch in batches:
            if args.only and args.only != name:
                continue
            results.append(bench_inference(name, batch, args))
            report(results[-1], rates, TARGETS)
    if args.train and args.only in (None, '21m_224'):
        results.append(bench_training('21m_224', 4, args))
        report(results[-1], rates, TARGETS)
    return dict(where=where, rounds=args.rounds, rates=rates, results=results)


def run_cuda(args: argparse.Namespace) -> dict:
    """Ours over timm's on a GPU: eager (as created, deploy) and compiled, in bf16 and fp16."""
    where = f'{torch.cuda.get_device_name()}, torch {torch.__version__}, timm {timm.__version__}'
    print(where)
    results = []
    for dtype in (torch.bfloat16, torch.float16):
        for batch in (1, 64, 256):
            ours, theirs = (m.cuda().to(dtype) for m in pair('21m_224'))
            x = torch.randn(batch, 3, 224, 224, device='cuda', dtype=dtype)
            variants = {'timm': theirs, 'as created': ours, 'deploy': deploy(ours, dtype)}
            if args.compile:
                torch.compiler.reset()
                variants['timm compiled'] = torch.compile(copy.deepcopy(theirs))
                variants['deploy compiled'] = torch.compile(deploy(ours, dtype))
            ms = {k: cuda_ms(forward(v, x), args.rounds) for k, v in variants.items()}
            ratios = {k: ms['timm compiled' if 'compiled' in k else 'timm'] / v for k, v in ms.items()}
            results.append(dict(dtype=str(dtype), batch=batch, ms=ms, ratios=ratios))
            print(f'{dtype} B={batch}: ' + ', '.join(f'{k} {v:.2f} ms ({ratios[k]:.2f}x)' for k, v in ms.items()))
    return dict(where=where, results=results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--only', choices=list(CASES))
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--official', type=Path, help="folder of the authors' TinyViT code")
    parser.add_argument('--no-compile', dest='compile', action='store_false')
    parser.add_argument('--no-train', dest='train', action='store_false')
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    figures = run_cuda(args) if args.device == 'cuda' else run_cpu(args)
    write_figures(args.json, **figures)


if __name__ == '__main__':
    main()
