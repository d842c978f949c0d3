"""Linear probes compared with a baseline: a sweep with the backbone in the loop, ridge and logistic paths.

One process, one thread, process CPU time. Both sides of the sweep compute the same crops of the same images; the
reference evaluates nothing, ours also passes its held-out and test images. Features for the paths are synthetic: 100
classes around centers, with a spectrum that falls like 1 / n. The reference of both paths is scikit-learn in float32
with its defaults (tol 1e-4, max_iter 100). At a large C those fits end long before convergence, and the accuracy there
is that of early stopping; so the logistic path is also compared with fits in float64 with tol 1e-9.

    python benchmarks/linear_probe.py [--only sweep|ridge|logistic]
"""

import argparse
import statistics
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from timing import print_machine, write_figures
from torch import nn

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.common import paired_timing
from tinyvit_zoo.common.paired_timing import timed
from tinyvit_zoo.common.seeding import Seeds, seeded
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.downstream.classifiers import logistic, ridge
from tinyvit_zoo.downstream.classifiers.linear_heads import LinearHeads, grid
from tinyvit_zoo.downstream.features.views import probe_transforms
from tinyvit_zoo.downstream.linear_probe import live

LRS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 3, 10, 30)
IMAGES, STEPS = 64, 3
ROWS, WIDTH, CLASSES = 50_000, 576, 100
DEFAULT_ITERATIONS, MOST_ITERATIONS = 100, 3000
EXPECTED, EXPECTED_RATE = 14.7, 73  # CPU seconds of a fit with C = 1 on a machine of that many GFLOP/s


def solo_run(model, train, start, lr, steps):
    """The baseline for one learning rate: crops, backbone, nn.Linear, SGD."""
    transform, _ = probe_transforms(model)
    head = nn.Linear(model.num_features, len(train.classes))
    head.load_state_dict(start)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9)
    targets = torch.from_numpy(train.labels)
    for epoch in range(steps):
        optimizer.param_groups[0]['lr'] = lr * len(train) / 256 * 0.5 * (1 + np.cos(np.pi * epoch / steps))
        images = []
        for i in range(len(train)):
            with seeded(Seeds.hashed(0, i, epoch)):
                images.append(transform(train[i][0]))
        with torch.no_grad():
            features = model.forward_head(model.forward_features(torch.stack(images)), pre_logits=True)
        optimizer.zero_grad()
        F.cross_entropy(head(features), targets).backward()
        optimizer.step()
    return head


def sweep(folder: Path) -> dict:
    model = timm.create_model('tinyvit_5m_224').eval()
    data = load_dataset('textures', 'train')
    order = np.random.default_rng(0).permutation(len(data))
    train, held, test = (
        data.subset(order[a:b]) for a, b in ((0, IMAGES), (IMAGES, IMAGES + 2), (IMAGES + 2, IMAGES + 4))
    )
    weight, bias = LinearHeads(grid(LRS, [0], ['pooled']), {'pooled': model.num_features}, len(train.classes)).head(0)
    start = dict(weight=weight, bias=bias)
    ours, theirs, heads = [], [], []
    for i, lr in enumerate(LRS):
        if i % 4 == 0:
            path = folder / f'probe{i}.pt'
            ours.append(
                timed(
                    lambda p=path: live(
                        model, train, held, test, lrs=LRS, epochs=STEPS, scale=(0.08, 1.0), chunk=IMAGES, checkpoint=p
                    )
                )[0]
            )
        seconds, head = timed(lambda lr=lr: solo_run(model, train, start, lr, STEPS))
        theirs.append(seconds)
        heads.append(head.weight.detach())
    state = torch.load(path, weights_only=True)['heads']['pooled.weight']
    errors = [((a - b).abs().max() / b.square().mean().sqrt()).item() for a, b in zip(state, heads, strict=True)]
    ratio = sum(theirs) / statistics.median(ours)
    print(
        f'\nsweep of {len(LRS)} learning rates, tinyvit_5m_224, {IMAGES} images, {STEPS} steps: {sum(theirs):.1f} s in '
        f'{len(LRS)} runs, {statistics.median(ours):.1f} s in one (median of {len(ours)})\n'
        f'  ratio {ratio:.2f}   target 12.50 {"met" if ratio >= 12.5 else "MISSED"}\n'
        f'  largest difference of weights / rms: {max(errors):.1e}   target 1e-05 '
        f'{"met" if max(errors) <= 1e-5 else "MISSED"}'
    )
    return dict(ratio=ratio, theirs_s=theirs, ours_s=ours, differences=errors)


def make(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, WIDTH) float32 and labels."""
    rng = np.random.default_rng(0)
    scale = (1 + np.arange(WIDTH)) ** -0.5
    turn, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    centres = rng.normal(size=(CLASSES, WIDTH)) * scale * 0.13
    labels = rng.integers(CLASSES, size=rows)
    x = (centres[labels] + rng.normal(size=(rows, WIDTH)) * scale) @ turn
    return (x / x.std()).astype(np.float32), labels


def ridge_rows(x: np.ndarray, y: np.ndarray, rounds: int, rate: float) -> dict:
    def all_weights():
        path = ridge.ridge_path(x, y, ridge.default_penalties(x), CLASSES)
        return path, [(path.weight(i), path.bias(i)) for i in range(len(path.penalties))]

    ours, theirs = [], []
    for _ in range(rounds):
        seconds, (path, found) = timed(all_weights)
        ours.append(seconds)
        theirs.append(timed(lambda: LogisticRegression(C=1, max_iter=100).fit(x, y))[0])
    centred = x - x.mean(axis=0, dtype=np.float64)
    targets = np.where(np.arange(CLASSES) == y[:, None], 1.0, -1.0)
    gram, products = centred.T @ centred, centred.T @ (targets - targets.mean(axis=0))
    error = 0.0
    for (weight, _), penalty in zip(found, path.penalties, strict=True):
        direct = np.linalg.solve(gram + penalty * np.eye(WIDTH), products)
        error = max(error, abs(weight - direct).max() / abs(direct).max())
    ratio = paired_timing.ratio(theirs, ours)
    expected, fit = EXPECTED * EXPECTED_RATE / rate, statistics.median(theirs)
    print(
        f'\nridge, {ROWS} x {WIDTH}, {CLASSES} classes: {len(found)} penalties in {statistics.median(ours):.2f} s, one '
        f'fit of scikit-learn {fit:.1f} s ({fit / expected:.2f} of {EXPECTED} s at {EXPECTED_RATE} GFLOP/s, scaled by '
        f'the matrix rate)\n  ratio {ratio:.1f}   target 12.0 {"met" if ratio >= 12 else "MISSED"}\n'
        f'  largest difference from np.linalg.solve, relative: {error:.1e}   target 1e-05 '
        f'{"met" if error <= 1e-5 else "MISSED"}'
    )
    return dict(ratio=ratio, ours_s=ours, theirs_s=theirs, difference=error)


def logistic_rows(x: np.ndarray, y: np.ndarray, tight: list[int]) -> dict:
    """The path before and after scikit-learn's fits; then both where scikit-learn runs until convergence."""
    held = ROWS // 10
    train, (choose, truth) = (x[held:], y[held:]), (x[:held], y[:held])
    first = timed(lambda: logistic.logistic_path(*train, progress=False))[0]
    print(f'\nlogistic path, {ROWS} x {WIDTH}, {CLASSES} classes, 45 C: ours {first:.1f} s; scikit-learn:', flush=True)
    defaults = [scikit_learn(i, train, choose, max_iter=DEFAULT_ITERATIONS) for i in range(len(logistic.CS))]
    second, fits = timed(lambda: logistic.logistic_path(*train, progress=False))
    mine, theirs = [fit.predict(choose) for fit in fits], [row.pop('predictions') for row in defaults]
    ours, accuracies = ([100 * float((p == truth).mean()) for p in all_of_them] for all_of_them in (mine, theirs))
    print(f'\n{"place":>5s} {"C":>9s} {"iterations":>14s} {"held out, %":>16s}')
    print(f'{"":5s} {"":9s} {"theirs":>7s} {"ours":>6s} {"theirs":>8s} {"ours":>7s}')
    for i, (row, fit) in enumerate(zip(defaults, fits, strict=True)):
        print(
            f'{i:5d} {fit.C:9.2g} {row["iterations"]:7d} {fit.iterations:6d} {accuracies[i]:8.2f} {ours[i]:7.2f}'
            f'{"" if fit.converged else " (ours has not converged)"}'
        )
    seconds = sum(row['seconds'] for row in defaults)
    ratio = seconds / ((first + second) / 2)
    print(
        f'{len(defaults)} fits of scikit-learn with its defaults {seconds:.0f} s, ours {first:.1f} and {second:.1f} s '
        f'(before and after)\n  ratio {ratio:.1f}   target 2 {judged(ratio >= 2)}, stretch 10 {judged(ratio >= 10)}'
    )
    differences = compare_defaults(defaults, accuracies, ours)
    best = int(np.argmax(ours))
    converged = compare_converged(sorted({*tight, best}), train, choose, truth, mine, ours)
    at_chosen = next(row for row in converged if row['place'] == best)
    gap = ours[best] - at_chosen['held_out']
    print(
        f'  at the C that ours chooses, {logistic.CS[best]:.3g}: ours {ours[best]:.2f} %, scikit-learn converged '
        f'{at_chosen["held_out"]:.2f} %, {gap:+.2f} points   target 0.05 {judged(abs(gap) <= 0.05 + 1e-9)}'
    )
    return dict(
        ratio=ratio, ours_s=[first, second], defaults=defaults, theirs=accuracies, ours=ours, converged=converged,
        **differences,
    )  # fmt: skip


def scikit_learn(i: int, train: tuple[np.ndarray, np.ndarray], choose: np.ndarray, **options: float) -> dict:
    seconds, fit = timed(lambda: LogisticRegression(C=logistic.CS[i], **options).fit(*train))
    row = dict(place=i, C=logistic.CS[i], seconds=seconds, iterations=int(fit.n_iter_[0]))
    print(f'  place {i}, C {row["C"]:.2g}: {row["iterations"]} iterations, {seconds:.1f} s', flush=True)
    return row | dict(predictions=fit.predict(choose))


def compare_defaults(defaults: list[dict], theirs: list[float], ours: list[float]) -> dict:
    """Accuracies at every C compared with scikit-learn as it is, which stops after 100 iterations, converged or not."""
    gaps: dict[bool, list[float]] = {True: [0.0], False: [0.0]}
    for row, a, b in zip(defaults, theirs, ours, strict=True):
        gaps[row['iterations'] < DEFAULT_ITERATIONS].append(abs(a - b))
    best, chosen = int(np.argmax(theirs)), int(np.argmax(ours))
    print(
        f'held-out accuracy compared with scikit-learn with its defaults:\n'
        f'  its {len(gaps[True]) - 1} fits that stop by themselves: at most {max(gaps[True]):.2f} points apart\n'
        f'  its {len(gaps[False]) - 1} fits that {DEFAULT_ITERATIONS} iterations end: up to {max(gaps[False]):.2f} '
        f'points apart (it has not converged)\n'
        f'  chosen C: theirs {logistic.CS[best]:.3g} ({theirs[best]:.2f} %), ours {logistic.CS[chosen]:.3g} '
        f'({ours[chosen]:.2f} %), {ours[chosen] - theirs[best]:+.2f} points'
    )
    return dict(gap_stopped=max(gaps[True]), gap_ended=max(gaps[False]), gap_chosen=ours[chosen] - theirs[best])


def compare_converged(
    places: list[int],
    train: tuple[np.ndarray, np.ndarray],
    choose: np.ndarray,
    truth: np.ndarray,
    mine: list[np.ndarray],
    ours: list[float],
) -> list[dict]:
    """Accuracies at some C compared with scikit-learn in float64 (float32 is too coarse) with a tolerance of 1e-9."""
    print('held-out accuracy compared with scikit-learn in float64 with tol 1e-9, run until convergence:')
    train = train[0].astype(np.float64), train[1]
    rows = []
    for i in places:
        row = scikit_learn(i, train, choose, tol=1e-9, max_iter=MOST_ITERATIONS)
        predictions = row.pop('predictions')
        row |= dict(held_out=100 * float((predictions == truth).mean()), equal=float((predictions == mine[i]).mean()))
        ended = '' if row['iterations'] < MOST_ITERATIONS else ' (it has not converged)'
        print(
            f'    {row["held_out"]:.2f} %{ended}, ours {ours[i]:.2f} %; {row["equal"]:.2%} of the predictions are equal'
        )
        rows.append(row)
    gap = max(abs(row['held_out'] - ours[row['place']]) for row in rows)
    print(f'  largest difference {gap:.2f} points   target 0.05 {judged(gap <= 0.05 + 1e-9)}')
    return rows


def judged(met: bool) -> str:
    return 'met' if met else 'MISSED'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=['sweep', 'ridge', 'logistic'])
    parser.add_argument('--rounds', type=int, default=3, help='of the ridge path')
    parser.add_argument('--tight', type=int, nargs='*', default=[4, 8, 12, 16, 20], help='places of C to converge at')
    parser.add_argument('--folder', type=Path, default=Path('.'), help='for the checkpoints of the sweep')
    parser.add_argument('--json', type=Path, help='keep the figures in this file')
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore', ConvergenceWarning)
    figures = {}
    with threadpool_limits(1):
        where, rates = print_machine(3)
        if args.only in (None, 'sweep'):
            figures['sweep'] = sweep(args.folder)
        x, y = make(ROWS)
        if args.only in (None, 'ridge'):
            figures['ridge'] = ridge_rows(x, y, args.rounds, rates['float32'])
        if args.only in (None, 'logistic'):
            figures['logistic'] = logistic_rows(x, y, args.tight)
    write_figures(args.json, machine=where, **figures)


if __name__ == '__main__':
    main()
