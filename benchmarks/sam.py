"""Our SAM encoder compared with one on timm's TinyViT in one process: ratios of speed, ours over theirs.

timm's `tiny_vit_5m_224` gets the same stride in its last merging and the same neck; both hold the same random weights,
and their outputs are compared before anything is timed. One thread, process CPU time, the variants in turn, the order
reversed every other round; a ratio is that of the medians.

    python benchmarks/sam.py                              # 1024x1024, 5 rounds
    python benchmarks/sam.py --size 512 --profile         # and what ours spends its time on
"""

import argparse
import statistics
from pathlib import Path

import timm
import torch
from inference import randomise
from timing import deploy, forward, print_machine, write_figures
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tinyvit_zoo.common.paired_timing import measure
from tinyvit_zoo.dense import SamImageEncoder, sam_encoder

TARGETS = {'as created': 1.5}


class TimmEncoder(nn.Module):
    """timm's TinyViT with a last map of stride 16, and a neck."""

    def __init__(self, ours: SamImageEncoder, name: str) -> None:
        super().__init__()
        self.trunk = timm.create_model(name, num_classes=0)
        self.trunk.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.trunk.load_state_dict(ours.trunk.state_dict(), strict=False)
        self.neck = ours.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neck(self.trunk.forward_features(x))


def encoders(size: tuple[int, int], model: str = '5m_224') -> dict[str, nn.Module]:
    """Both with the same weights, and the deploy form of ours."""
    ours = sam_encoder(f'tinyvit_{model}', size)
    randomise(ours)
    return {'timm': TimmEncoder(ours, f'tiny_vit_{model}').eval(), 'as created': ours, 'deploy': deploy(ours)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='5m_224')
    parser.add_argument('--size', type=int, nargs='+', default=[1024], help='side, or height and width')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--profile', action='store_true', help='print the operators of ours')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    size = (args.size[0], args.size[-1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where, _ = print_machine(args.rounds)
    x, models = torch.randn(1, 3, *size), encoders(size, args.model)
    with torch.inference_mode():
        reference = models['timm'](x)
    seconds = measure({name: forward(model, x) for name, model in models.items()}, args.rounds, reference)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f'\nSAM encoder, {args.model}, {size[0]}x{size[1]}, float32, one image')
    for name, median in medians.items():
        ratio, target = medians['timm'] / median, TARGETS.get(name) if size == (1024, 1024) else None
        goal = f'   target {target:.2f} {"met" if ratio >= target else "MISSED"}' if target else ''
        print(f'  {name:12s} {median:6.2f} s   {ratio:5.2f}{goal}')
    if args.profile:
        with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.inference_mode():
            models['as created'](x)
        print(profiler.key_averages().table(sort_by='self_cpu_time_total', row_limit=15))
    write_figures(args.json, where=where, size=size, seconds=seconds, medians=medians)


if __name__ == '__main__':
    main()
