"""ONNX and pt2 files in their runtimes, compared with PyTorch, eager and in deploy form, in one process.

Every file is verified against PyTorch when it is exported. On CPU: one thread for each runtime, process CPU time, the
variants in turn, the order reversed every other round; a ratio is the median of the rounds' ratios.

    python benchmarks/export.py
    python benchmarks/export.py --only tinyvit_5m_224 --rounds 21
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import timm
import torch
from timing import deploy, forward, print_machine, report, write_figures

import tinyvit_zoo  # noqa: F401  registers our models
from tinyvit_zoo.common.paired_timing import measure, ratio
from tinyvit_zoo.export import export_model

NAMES = (
    'tinyvit_5m_224',
    'mini_deit_tiny_patch16_224',
    'mini_swin_tiny_patch4_window7_224',
    'tinymim_vit_tiny_patch16_224',
    'mae_lite_vit_tiny_patch16_224',
    'mae_lite_vit_tiny_rpe_patch16_224',
)
BATCHES = (8, 1)


def in_onnxruntime(path: Path, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One thread, as for PyTorch here, and no spinning, which would count as CPU time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda: torch.from_numpy(session.run(None, {'images': x.numpy()})[0])


def bench(name: str, batch: int, rounds: int) -> dict:
    model = timm.create_model(name).eval()
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        onnx, pt2 = (
            export_model(model, Path(folder) / f'model.{format}', dynamic_batch=True).path for format in ('onnx', 'pt2')
        )
        variants = {
            'eager': forward(model, x),
            'deploy': forward(deploy(model), x),
            'onnxruntime': in_onnxruntime(onnx, x),
            'pt2': forward(torch.export.load(pt2).module(), x),
        }
        seconds = measure(variants, rounds, reference=variants['eager']())
    pairs = (('deploy', 'eager'), ('onnxruntime', 'eager'), ('onnxruntime', 'deploy'), ('pt2', 'eager'))
    return dict(
        model=name,
        batch=batch,
        img_per_s={variant: batch / statistics.median(s) for variant, s in seconds.items()},
        ratios={f'{ours} / {theirs}': ratio(seconds[theirs], seconds[ours]) for ours, theirs in pairs},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--only', choices=NAMES)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    torch.set_num_threads(1)
    where, rates = print_machine(args.rounds)
    print(f'onnxruntime {onnxruntime.__version__}; above 1, the first is faster')
    results = []
    for name in [args.only] if args.only else NAMES:
        for batch in BATCHES:
            results.append(bench(name, batch, args.rounds))
            report(results[-1], rates, {})
    write_figures(args.json, where=where, rounds=args.rounds, rates=rates, results=results)


if __name__ == '__main__':
    main()
