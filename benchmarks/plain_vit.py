"""TinyMIM and MAE-Lite compared with timm's own ViT of equal layers and weights, in one process.

As created, both run timm's code at the same speed; the deploy form is ours. The outputs are compared
before anything is timed. On CPU: one thread, process CPU time, the variants in turn, the order reversed every other
round; a ratio is the median of the rounds' ratios.

    python benchmarks/plain_vit.py
    python benchmarks/plain_vit.py --only tinymim_vit_tiny_patch16_224 --rounds 21
"""

import argparse
import statistics
from pathlib import Path

import timm
import torch
from timing import deploy, forward, has_bf16, print_machine, report, write_figures
from torch import nn

import tinyvit_zoo  # noqa: F401  registers our models
from tinyvit_zoo.common.paired_timing import measure, ratio, same

# Ours, and the arguments that make timm's the same model.
STOCK = {
    'tinymim_vit_tiny_patch16_224': ('vit_tiny_patch16_224', dict(num_heads=3)),
    'mae_lite_vit_tiny_patch16_224': ('vit_tiny_patch16_224', dict(num_heads=12)),
    'tinymim_vit_small_patch16_224': ('vit_small_patch16_224', dict(num_heads=6)),
    'tinymim_vit_base_patch16_224': ('vit_base_patch16_224', dict(num_heads=12)),
}
BATCHES = (8, 1)


def make(name: str) -> tuple[nn.Module, nn.Module]:
    """Our model, and timm's with the same weights."""
    stock, kwargs = STOCK[name]
    ours, theirs = timm.create_model(name), timm.create_model(stock, global_pool='avg', **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def bench(name: str, batch: int, rounds: int) -> dict:
    ours, theirs = make(name)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    variants = {'timm': forward(theirs, x), 'as created': forward(ours, x), 'deploy': forward(deploy(ours), x)}
    if has_bf16():
        variants['deploy bf16'] = forward(deploy(ours, torch.bfloat16), x.bfloat16())
    reference = variants['timm']()
    for variant, call in variants.items():
        same(call(), reference, 5e-2 if 'bf16' in variant else 1e-4)
    seconds = measure(variants, rounds)
    return dict(
        model=name,
        batch=batch,
        img_per_s={variant: batch / statistics.median(s) for variant, s in seconds.items()},
        ratios={f'{variant} / timm fp32': ratio(seconds['timm'], seconds[variant]) for variant in list(variants)[1:]},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--only', choices=list(STOCK))
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    torch.set_num_threads(1)
    where, rates = print_machine(args.rounds)
    results = []
    for name in [args.only] if args.only else STOCK:
        for batch in BATCHES:
            results.append(bench(name, batch, args.rounds))
            report(results[-1], rates, {})
    write_figures(args.json, where=where, rounds=args.rounds, rates=rates, results=results)


if __name__ == '__main__':
    main()
