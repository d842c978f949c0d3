"""What an analysis costs over the bare forward passes that it needs: process CPU time and peak memory.

Times are taken in one process, one thread, in turn, and are medians of the ratios of a round. Memory is that of a
process for each number of batches: its peak after the run.

    python benchmarks/analysis.py [--rounds 5] [--only cka,attention,memory]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timing import print_machine, write_figures

from tinyvit_zoo.common.paired_timing import measure, ratio
from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.downstream.analysis import attention, cka, fourier
from tinyvit_zoo.downstream.analysis.analysed_model import AnalysedModel
from tinyvit_zoo.downstream.analysis.attention_watch import AttentionWatch
from tinyvit_zoo.downstream.analysis.cka import CKA, gram
from tinyvit_zoo.downstream.analysis.layers import BLOCKS, LayerOutputs

CKA_PAIRS = ((32, 64), (224, 8))
"""Pixels and images of a batch."""
CKA_TARGET, ATTENTION_TARGET, MEMORY_TARGET = 1.1, 2.5, 1.05
ATTENTION = (
    ('tinyvit_5m_224', 224, 8),
    ('tinyvit_5m_224', 512, 2),
    ('mini_deit_tiny_patch16_224', 224, 8),
    ('mini_swin_tiny_patch4_window7_224', 224, 4),
    ('tinymim_vit_tiny_patch16_224', 224, 8),
    ('mae_lite_vit_tiny_patch16_224', 224, 8),
    ('mae_lite_vit_tiny_rpe_patch16_224', 224, 8),
    ('vit_tiny_patch16_224', 384, 2),
    ('swin_tiny_patch4_window7_224', 224, 4),
    ('beit_base_patch16_224', 224, 2),
    ('deit3_small_patch16_224', 224, 4),
    ('eva02_tiny_patch14_224', 224, 8),
)
"""Model, pixels, images of a batch."""


def model_of(name: str, pixels: int) -> AnalysedModel:
    torch.manual_seed(0)
    return AnalysedModel.of_timm(timm.create_model(name, img_size=pixels, num_classes=10), name)


def ratio_of(variants: dict[str, Callable[[], Any]], rounds: int) -> tuple[float, float]:
    """Median over the rounds of analysed over bare, and the bare one's fewest CPU seconds."""
    with torch.inference_mode():
        seconds = measure(variants, rounds)
    return ratio(seconds['analysed'], seconds['bare']), min(seconds['bare'])


def say(row: str, value: float, target: float) -> None:
    print(f'  {row:58s} {value:5.2f}   target {target:.2f} {"met" if value <= target else "MISSED"}')


def time_cka(rounds: int) -> dict[str, float]:
    """Two models, all pairs of blocks, over their two forward passes."""
    found = {}
    for pixels, batch in CKA_PAIRS:
        models = [model_of(name, pixels) for name in ('tinyvit_5m_224', 'vit_tiny_patch16_224')]
        images = torch.randn(batch, 3, pixels, pixels)

        def bare(models=models, images=images) -> list[torch.Tensor]:
            return [model(images) for model in models]

        def analysed(models=models, images=images) -> None:
            state = CKA()
            grams = []
            for model in models:
                with LayerOutputs(model, [BLOCKS], lambda name, x, size, module: gram(x)) as outputs:
                    grams.append(outputs(images))
            state.add(*grams)

        row = f'CKA, TinyViT-5M and ViT-tiny, {batch} images of {pixels}'
        found[row], seconds = ratio_of(dict(bare=bare, analysed=analysed), rounds)
        say(f'{row} ({seconds:.2f} s)', found[row], CKA_TARGET)
    return found


def time_attention(rounds: int) -> dict[str, float]:
    """Distance and entropy of all heads, over a forward pass."""
    found = {}
    for name, pixels, batch in ATTENTION:
        model, images = model_of(name, pixels), torch.randn(batch, 3, pixels, pixels)

        def analysed(model=model, images=images) -> None:
            with AttentionWatch(model) as watch:
                watch(images)
                watch.layers()

        row = f'attention, {name}, {batch} images of {pixels}'
        found[row], seconds = ratio_of(dict(bare=partial(model, images), analysed=analysed), rounds)
        say(f'{row} ({seconds:.2f} s)', found[row], ATTENTION_TARGET)
    return found


def peak_of(what: str, batches: int) -> None:
    """Print the peak of this process in MiB after an analysis of so many batches of 16 images."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (16 * batches, 32, 32, 3), dtype=np.uint8)
    dataset = ImageDataset('noise', 'all', ['noise'], [0] * len(pixels), Arrays(pixels, 'noise'))
    model = model_of('tinyvit_5m_224', 64)
    settings: dict[str, Any] = dict(batch_size=16, progress=False)
    if what == 'cka':
        cka.compare(model, model_of('vit_tiny_patch16_224', 64), dataset, **settings)
    elif what == 'attention':
        attention.measure(model, dataset, **settings)
    else:
        fourier.measure(model, dataset, **settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory() -> dict[str, float]:
    """Peak of 20 batches over that of 2."""
    found = {}
    for what in ('cka', 'attention', 'fourier'):
        peaks = []
        for batches in (2, 20):
            command = [sys.executable, __file__, '--peak-of', what, str(batches)]
            peaks.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        found[what] = peaks[1] / peaks[0]
        say(f'memory, {what}: {peaks[0]:.0f} MiB with 2 batches, {peaks[1]:.0f} with 20', found[what], MEMORY_TARGET)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--only', default='memory,cka,attention')
    parser.add_argument('--json', type=Path, help='keep the figures in this file')
    parser.add_argument('--peak-of', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak_of:
        peak_of(args.peak_of[0], int(args.peak_of[1]))
        return
    # Memory first: a process starts with the peak of the one that starts it.
    parts = dict(memory=memory, cka=partial(time_cka, args.rounds), attention=partial(time_attention, args.rounds))
    found = {name: part() for name, part in parts.items() if name in args.only.split(',')}
    where, _ = print_machine(args.rounds)
    print(f'load {os.getloadavg()[0]:.1f}')
    write_figures(args.json, where=where, found=found)


if __name__ == '__main__':
    main()
