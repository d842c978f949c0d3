"""Every evaluator from end to end, by its command, on digits and textures: the table of README.

Random weights and small images: what it shows is that the evaluators run over any model and what their results look
like, not which model is better. Fine-tuning takes most of the time.

    python benchmarks/evaluators.py --output FOLDER [--frozen]
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = (
    'tinyvit_5m_224',
    'mini_swin_tiny_patch4_window7_224',
    'tinymim_vit_tiny_patch16_224',
    'resnet10t',
)
DATA = ('digits', 'textures')
SIDE = 32
TRAINING = [
    '--recipe', 'mae_lite_improved', '--epochs', '8', '--batch-size', '64', '--lr', '0.001', '--drop-path', '0',
    '--held-out', '0.1',
]  # fmt: skip


def run(command: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run one command, unless its results are there, and read them."""
    if not (folder / 'results.json').is_file():
        print(f'{command} {" ".join(arguments)}', flush=True)
        call = [sys.executable, '-m', 'tinyvit_zoo.cli', command, *arguments, '--output', str(folder)]
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / 'results.json').read_text())


def interval(accuracy: float, images: int) -> str:
    """Accuracy in % and half of its 95 % interval (normal approximation)."""
    return f'{accuracy:.1f} ± {196 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / images):.1f}'


def row(name: str, data: str, output: Path, frozen: bool) -> list[str]:
    """Few-shot, kNN, three kinds of probe, and, unless `frozen`, fine-tuning followed by `evaluate`; with intervals."""
    folder = output / name / data
    model = [name, '--random', '--img-size', str(SIDE), '--data', data]
    cached = [*model, '--cache', str(output / 'cache')]
    few = {r['shots']: r for r in run('fewshot', folder / 'fewshot', *cached, '--shots', '5,20')['results']}
    knn = run('knn', folder / 'knn', *cached)
    probes = {
        'ridge': run('probe', folder / 'ridge', *cached, '--mode', 'ridge'),
        'logistic': run('probe', folder / 'logistic', *cached, '--mode', 'logistic'),
        'live': run('probe', folder / 'live', *model, '--mode', 'live', '--epochs', '5', '--step-batch', '128'),
    }
    vote = next(r['accuracy'] for r in knn['results'] if r['k'] == 20)
    cells = [
        *(f'{few[shots]["accuracy"]:.1f} ± {few[shots]["ci95"]:.1f}' for shots in (5, 20)),
        interval(vote, knn['data']['queries']['images']),
        *(interval(p['test_accuracy'], p['test_images']) for p in probes.values()),
    ]
    if not frozen:
        run('finetune', folder / 'finetune', *model, *TRAINING)
        trained = run('evaluate', folder / 'evaluate', f'local-dir:{folder / "finetune" / "model"}', '--data', data)
        cells.append(interval(trained['top1'], trained['images']))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('evaluators'), help='what is there is not done again')
    parser.add_argument('--only', choices=NAMES, action='append')
    parser.add_argument('--frozen', action='store_true', help='leave out fine-tuning')
    args = parser.parse_args()
    heads = ['5-shot', '20-shot', 'kNN k=20', 'ridge', 'logistic', 'MoCo v3, 5 epochs']
    if not args.frozen:
        heads.append('fine-tuned, 8 epochs')
    lines = [f'| | {" | ".join(heads)} |', '| --- |' + ' --- |' * len(heads)]
    for data in DATA:
        for name in args.only or NAMES:
            lines.append(f'| {data}, `{name}` | {" | ".join(row(name, data, args.output, args.frozen))} |')
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
